//! A text that must not be printed.

use std::fmt;

use serde::Deserialize;

/// A password or token. `Debug` prints nothing of it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret itself, to put into a request and nowhere else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn debug_prints_nothing_of_it() {
        assert_eq!(format!("{:?}", super::Secret::new("hunter2")), "(secret)");
    }
}
