//! How urgent a request is while it lasts.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::budget::Priority;

/// The priority of something that has begun: it may rise, from anywhere, whatever is being waited for. Clones are
/// the same.
#[derive(Debug, Clone)]
pub struct Urgency(Arc<State>);

#[derive(Debug)]
struct State {
    demand: AtomicBool,
    changed: Notify,
}

impl From<Priority> for Urgency {
    fn from(priority: Priority) -> Self {
        Self(Arc::new(State {
            demand: AtomicBool::new(priority == Priority::Demand),
            changed: Notify::new(),
        }))
    }
}

impl Urgency {
    /// Returns how urgent it is now.
    pub fn priority(&self) -> Priority {
        if self.0.demand.load(Ordering::Acquire) { Priority::Demand } else { Priority::Background }
    }

    /// Says that a reader has come to wait: it no longer gives way to others.
    pub fn hurry(&self) {
        if !self.0.demand.swap(true, Ordering::AcqRel) {
            self.0.changed.notify_waiters();
        }
    }

    /// Waits until somebody waits.
    pub(crate) async fn hurried(&self) {
        let mut changed = pin!(self.0.changed.notified());
        // Registered before looking, so that no change in between is missed.
        changed.as_mut().enable();
        if self.priority() == Priority::Background {
            changed.await;
        }
    }
}
