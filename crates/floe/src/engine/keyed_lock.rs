//! A lock per key: who wants the same thing waits, who wants another does not.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, PoisonError};

/// Locks by key.
pub(crate) struct KeyedLock<K> {
    held: Mutex<HashSet<K>>,
    freed: Condvar,
}

impl<K> Default for KeyedLock<K> {
    fn default() -> Self {
        Self { held: Mutex::default(), freed: Condvar::new() }
    }
}

/// A held key.
pub(crate) struct Held<'a, K: Eq + Hash> {
    lock: &'a KeyedLock<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> KeyedLock<K> {
    /// Waits until nobody holds the key, and holds it.
    pub(crate) fn hold(&self, key: K) -> Held<'_, K> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while !held.insert(key.clone()) {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        Held { lock: self, key }
    }
}

impl<K: Eq + Hash> Drop for Held<'_, K> {
    fn drop(&mut self) {
        self.lock.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.lock.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_holder_per_key() {
        let (lock, inside, most) = (KeyedLock::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _held = lock.hold(1);
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
            let _other = lock.hold(2);
        });
        assert_eq!(most.into_inner(), 1);
    }
}
