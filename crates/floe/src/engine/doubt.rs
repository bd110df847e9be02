//! Indexes by which bytes came wrong twice: what they say of places nobody has hashed.
//!
//! The store keeps which segment it was ([`store::OpenLayer::doubted`]); here it is asked for once more.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use format::IndexId;
use store::{ReadError, Segments};

use super::Engine;
use super::found::FoundLayer;

/// Why an index is passed over that says where nothing right was found.
pub(super) const WRONG: &str = "what lies where it says came wrong, again and again";

/// How long a segment is waited for, at least, that came wrong twice.
const LEAST: Duration = Duration::from_secs(5);
/// And at most: an opening waits for it.
const MOST: Duration = Duration::from_secs(60);

/// How often its span could be fetched in that time: what comes wrong is fetched twice, perhaps beside something else.
const FETCHES: u32 = 4;

/// How long one fetch is taken to last where nothing has been fetched yet: a mebibyte or two at 2 to 4 Mbit/s.
const UNKNOWN: Duration = Duration::from_secs(4);

/// For how long one that came wrong again is not asked for once more: an opening looks at an index in several places.
const SURE: Duration = Duration::from_secs(60);

/// Indexes by which bytes have just come wrong once more, and when. Held for a look only.
#[derive(Debug, Default)]
pub(super) struct Wrong(Mutex<HashMap<IndexId, Instant>>);

impl Wrong {
    fn has(&self, id: IndexId) -> bool {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.retain(|_, when| when.elapsed() < SURE);
        found.contains_key(&id)
    }

    fn add(&self, id: IndexId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }
}

impl Engine {
    /// Says whether a segment that came wrong twice does so again: then its index is passed over. Whoever sent it then
    /// need not be whom we ask now. Nobody who cannot be reached is waited for.
    pub(super) fn is_wrong(&self, found: &FoundLayer) -> bool {
        let Some(segment) = found.doubted() else { return false };
        let id = found.id();
        if self.wrong.has(id) {
            return true;
        }
        let time = patience(self.through.time(id, segment));
        let again = self.through.fetch(id, segment, Instant::now() + time);
        let wrong = matches!(again, Err(ReadError::Corrupt { .. }));
        if wrong {
            self.wrong.add(id);
        }
        wrong
    }
}

/// Returns how long a segment is waited for whose span takes so long to fetch.
fn patience(fetch: Option<Duration>) -> Duration {
    fetch.unwrap_or(UNKNOWN).saturating_mul(FETCHES).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_line_is_given_its_time() {
        let patience = |millis| patience(Some(Duration::from_millis(millis))).as_millis();
        assert_eq!([0, 1_250, 1_251, 15_000, 15_001].map(patience), [5_000, 5_000, 5_004, 60_000, 60_000]);
        assert_eq!(super::patience(Some(Duration::MAX)), MOST);
        assert_eq!(super::patience(None), UNKNOWN * FETCHES);
    }
}
