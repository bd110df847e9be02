//! Why layers have no index that can be used: in words for a report, and counted for `floe status`.

use std::collections::HashMap;

use super::layers::NotSigned;
use super::report::Fallback;

/// Why layers have no index that can be used.
#[derive(Default)]
pub(super) struct WhyNot {
    /// In words, the first of them.
    pub(super) text: Option<String>,
    /// Of single layers, by number.
    layers: HashMap<usize, Fallback>,
    /// Of all others.
    pub(super) usual: Fallback,
}

impl WhyNot {
    /// Notes why what there is for a layer is not used.
    pub(super) fn note(&mut self, layer: usize, error: &anyhow::Error) {
        let reason = if error.is::<NotSigned>() { Fallback::Unsigned } else { Fallback::Unusable };
        self.layers.insert(layer, reason);
        self.text.get_or_insert(format!("{error:#}"));
    }

    /// Adds what was tried after it: of a layer the first reason stays.
    pub(super) fn then(&mut self, later: Self) {
        self.text = self.text.take().or(later.text);
        later.layers.into_iter().for_each(|(layer, reason)| {
            self.layers.entry(layer).or_insert(reason);
        });
    }

    /// Returns the reason for one layer.
    pub(super) fn of(&self, layer: usize) -> Fallback {
        self.layers.get(&layer).copied().unwrap_or(self.usual)
    }
}
