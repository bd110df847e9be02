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

/// How long a segment is waited for that came wrong twice.
const AGAIN: Duration = Duration::from_secs(5);

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
        let again = self.through.fetch(id, segment, Instant::now() + AGAIN);
        let wrong = matches!(again, Err(ReadError::Corrupt { .. }));
        if wrong {
            self.wrong.add(id);
        }
        wrong
    }
}
