//! A bound on how much of something happens at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// So many places, and whoever wants one waits until there is.
#[derive(Debug, Default)]
pub(super) struct Places<const N: usize> {
    taken: Mutex<usize>,
    freed: Condvar,
}

impl<const N: usize> Places<N> {
    /// Takes a place; it is free again when this is dropped.
    pub(super) fn hold(&self) -> Place<'_, N> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken =
            self.freed.wait_while(taken, |taken| *taken >= N).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Place(self)
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Place<'a, const N: usize>(&'a Places<N>);

impl<const N: usize> Drop for Place<'_, N> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_than_so_many_have_a_place() {
        let (places, now, most) = (Places::<3>::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let _place = places.hold();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!(*places.taken.lock().unwrap(), 0);
    }
}
