//! Where the bytes of blobs come from: the store's view of the network, implemented elsewhere.
//!
//! The store asks for ranges and believes nothing it gets; retries, budgets and credentials are the origin's.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use format::Digest;

use crate::guard;

/// A blob of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blob {
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// Why bytes are wanted, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A reader waits.
    Demand,
    /// A recorded start-up read it at about this time.
    Profile,
    /// A reader comes to it next.
    Hint,
    /// It is the rest of the image.
    Background,
}

/// How urgent something is that has begun: it may become a reader's at any moment.
pub struct Urgency {
    begun_as: Priority,
    hurried: AtomicBool,
    /// Who wants to hear of that.
    listener: Mutex<Option<Listener>>,
}

type Listener = Box<dyn Fn() + Send>;

impl Urgency {
    /// Returns the urgency of something that begins with this priority.
    pub fn new(priority: Priority) -> Self {
        Self { begun_as: priority, hurried: AtomicBool::new(false), listener: Mutex::default() }
    }

    /// Returns how urgent it is now.
    pub fn priority(&self) -> Priority {
        if self.hurried.load(Ordering::Acquire) { Priority::Demand } else { self.begun_as }
    }

    /// Says that a reader has come to wait.
    pub fn hurry(&self) {
        if !self.hurried.swap(true, Ordering::AcqRel)
            && let Some(listener) = guard::lock(&self.listener).as_ref()
        {
            listener();
        }
    }

    /// Has `listener` called when a reader comes to wait, at once if one does. It must not block. There is one
    /// listener at a time.
    pub fn on_hurry(&self, listener: impl Fn() + Send + 'static) {
        *guard::lock(&self.listener) = Some(Box::new(listener));
        // Whoever came before that found nobody to tell.
        if self.priority() == Priority::Demand
            && let Some(listener) = guard::lock(&self.listener).as_ref()
        {
            listener();
        }
    }
}

impl fmt::Debug for Urgency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Urgency").field("priority", &self.priority()).finish_non_exhaustive()
    }
}

/// Why an origin could not deliver.
#[derive(Debug)]
pub enum OriginError {
    /// The deadline came first.
    Timeout,
    /// No source could be reached or would answer; another time may be better.
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
    /// The blob is not there or not for us; another time will not be better.
    Denied(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer in time",
            Self::Unavailable(_) => "no source answers",
            Self::Denied(_) => "every source refuses",
        })
    }
}

impl std::error::Error for OriginError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Timeout => None,
            Self::Unavailable(source) | Self::Denied(source) => Some(source.as_ref()),
        }
    }
}

/// A source of unverified bytes.
pub trait Origin: Send + Sync {
    /// Streams a range of a blob into `sink`, in order; stops early and without error when `sink` says so.
    ///
    /// Blocks, at most until the deadline. Called from several threads at once. The urgency may rise while it
    /// reads: a reader has come to wait for what was begun for nobody.
    fn read(
        &self,
        blob: &Blob,
        range: Range<u64>,
        urgency: &Urgency,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), OriginError>;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_listener_hears_of_a_reader_once_whoever_comes_first() {
        let heard = Arc::new(AtomicUsize::new(0));
        let listener = || {
            let heard = Arc::clone(&heard);
            move || {
                heard.fetch_add(1, Ordering::SeqCst);
            }
        };
        let urgency = Urgency::new(Priority::Hint);
        urgency.on_hurry(listener());
        assert_eq!((urgency.priority(), heard.load(Ordering::SeqCst)), (Priority::Hint, 0));
        urgency.hurry();
        urgency.hurry();
        assert_eq!((urgency.priority(), heard.load(Ordering::SeqCst)), (Priority::Demand, 1));
        urgency.on_hurry(listener());
        assert_eq!(heard.load(Ordering::SeqCst), 2);
        Urgency::new(Priority::Demand).on_hurry(listener());
        assert_eq!(heard.load(Ordering::SeqCst), 3);
    }
}
