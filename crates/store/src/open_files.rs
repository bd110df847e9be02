//! How many segment files stay open: a bounded number, the least used are closed first.
//!
//! A mount may have 16,384 segments and the usual process 1,024 descriptors. The queue is a clock: a file that
//! was used since it was last at the front goes round once more. Files that a reader holds stay open until the
//! reader is done; there are no more of those than readers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use rustix::process::{Resource, getrlimit};

use crate::guard;
use crate::segments::OpenLayer;

/// Most files ever kept open: each costs the kernel some 256 bytes and a pinned inode of 1 KiB.
const MOST: usize = 8192;
/// Fewest files kept open, however low the limit is.
const FEWEST: usize = 16;

/// The segment files that are open, oldest first.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    capacity: usize,
    /// Taken before a segment's own file lock.
    queue: Mutex<VecDeque<(Weak<OpenLayer>, u32)>>,
}

impl OpenFiles {
    /// Returns an empty cache as large as the process's limit allows.
    pub(crate) fn new() -> Self {
        Self::with_capacity(capacity(getrlimit(Resource::Nofile).current))
    }

    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { capacity, queue: Mutex::default() }
    }

    /// Takes note of a file just opened and closes others if there are too many.
    pub(crate) fn opened(&self, layer: &Arc<OpenLayer>, segment: u32) {
        let mut queue = guard::lock(&self.queue);
        queue.push_back((Arc::downgrade(layer), segment));
        // Twice round at most: the first time may find every file in use.
        let mut patience = 2 * queue.len();
        while queue.len() > self.capacity && patience > 0 {
            patience -= 1;
            let Some((weak, segment)) = queue.pop_front() else { return };
            let closed = weak.upgrade().is_none_or(|layer| layer.let_go(segment));
            if !closed {
                queue.push_back((weak, segment));
            }
        }
    }
}

/// Half of what the process may open: the rest is for connections, FUSE and the files being filled.
fn capacity(limit: Option<u64>) -> usize {
    let half = limit.map_or(MOST, |limit| usize::try_from(limit / 2).unwrap_or(MOST));
    half.clamp(FEWEST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_as_large_as_the_process_may_have_it() {
        for (limit, files) in
            [(None, 8192), (Some(0), 16), (Some(33), 16), (Some(1024), 512), (Some(1 << 40), 8192)]
        {
            assert_eq!(capacity(limit), files, "{limit:?}");
        }
    }
}
