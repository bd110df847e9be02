//! The same done to many things on a few threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

/// Does the same to many things on a few threads; the first error ends it.
pub(super) fn parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<anyhow::Result<R>>>> = Mutex::new(items.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some(n) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < items.len()) {
                    let result = work(&items[n]);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner)[n] = Some(result);
                }
            });
        }
    });
    // What was not begun has no result, and then some other has an error.
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut done = Vec::with_capacity(items.len());
    let mut skipped = false;
    for result in results {
        match result {
            Some(result) => done.push(result?),
            None => skipped = true,
        }
    }
    if skipped {
        bail!("given up because another part failed")
    }
    Ok(done)
}
