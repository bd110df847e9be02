//! A rate in bytes per second, shared by all connections.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may be sent at once after a pause. Timers are exact to a millisecond, so less would cost rate.
const BURST: Duration = Duration::from_millis(5);

/// Gives out sending time in the order of asking.
#[derive(Debug)]
pub(super) struct Shaper(Mutex<State>);

/// Held for a few instructions; no other lock is taken under it.
#[derive(Debug)]
struct State {
    rate: Option<u64>,
    /// When all that was granted so far has been sent at the rate.
    free: Instant,
}

impl Shaper {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self(Mutex::new(State { rate, free: Instant::now() }))
    }

    pub(super) fn set_rate(&self, rate: Option<u64>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.rate, state.free) = (rate, Instant::now());
    }

    /// How much to send in one go: little enough that a rate change and other connections come in between.
    pub(super) fn piece(&self) -> u64 {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).rate {
            Some(rate) => (rate / 200).clamp(1 << 10, 64 << 10),
            None => crate::limits::PIECE,
        }
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn take(&self, bytes: u64) {
        let until = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(rate) = state.rate.filter(|&rate| rate > 0) else { return };
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            state.free =
                state.free.max(earliest) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
            state.free
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn all_connections_together_keep_the_rate() {
        let shaper = Arc::new(Shaper::new(Some(1_000_000)));
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let shaper = Arc::clone(&shaper);
            tasks.spawn(async move {
                for _ in 0..100 {
                    shaper.take(5000).await;
                }
            });
        }
        tasks.join_all().await;
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(4990) && took <= Duration::from_millis(5010), "{took:?}");
        shaper.set_rate(None);
        shaper.take(u64::MAX).await;
        assert_eq!(start.elapsed(), took);
    }
}
