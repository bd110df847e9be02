//! When to try again: exponential waits with jitter, and what servers say in `Retry-After`.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, header};
use ring::rand::{SecureRandom, SystemRandom};

use crate::budget::Limiter;
use crate::error::{Error, Fault};
use crate::limits;

/// The retries left for one thing we want from one host.
#[derive(Debug)]
pub(crate) struct Tries {
    what: String,
    host: String,
    failed: u32,
    allowed: u32,
}

impl Tries {
    pub(crate) fn new(what: impl Into<String>, host: impl Into<String>, retries: u32) -> Self {
        Self { what: what.into(), host: host.into(), failed: 0, allowed: retries }
    }

    /// Begins to count anew, because there was progress.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try, or fails if there is none left.
    pub(crate) async fn again(
        &mut self,
        limiter: &Arc<Limiter>,
        fault: Fault,
        asked: Option<Duration>,
    ) -> Result<(), Error> {
        self.failed += 1;
        if self.failed > self.allowed {
            return Err(Error::Unavailable {
                what: self.what.clone(),
                host: self.host.clone(),
                tries: self.failed,
                source: Arc::new(fault),
            });
        }
        if let Some(wait) = asked.filter(|&wait| wait > limits::RETRY_AFTER) {
            return Err(Error::Throttled { what: self.what.clone(), host: self.host.clone(), wait });
        }
        let budgets = limiter.budgets();
        let wait = backoff(budgets.retry_min, budgets.retry_max, self.failed, random());
        let wait = wait.max(asked.unwrap_or_default());
        limiter.counters.retries.fetch_add(1, Relaxed);
        let (host, what, wait_ms) = (&self.host, &self.what, wait.as_millis());
        tracing::debug!(%host, %what, %fault, failed = self.failed, wait_ms, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The wait before retry `n` (from 1): between half and all of `min * 2^(n-1)`, never outside `min..=max`.
fn backoff(min: Duration, max: Duration, n: u32, random: f64) -> Duration {
    let full = min.saturating_mul(1 << (n - 1).min(20)).min(max);
    full.mul_f64(0.5 + random / 2.0).max(min).min(max)
}

/// A number in 0..1, so that clients which failed together do not come back together.
fn random() -> f64 {
    let mut raw = [0; 4];
    match SystemRandom::new().fill(&mut raw) {
        Ok(()) => f64::from(u32::from_le_bytes(raw)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5, // without randomness the wait is only less well spread
    }
}

/// Returns how long an answer asks us to wait.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = http_date(text)?;
    // Reckoned by the server's clock where it shows it: ours may differ by hours.
    let server = headers.get(header::DATE).and_then(|date| http_date(date.to_str().ok()?));
    let now =
        server.or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs()))?;
    Some(Duration::from_secs(until.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that may be sent (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let parts: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    if !(1..=31).contains(&day)
        || !(1970..=9999).contains(&year)
        || hours > 23
        || minutes > 59
        || seconds > 60
    {
        return None;
    }
    // Days since 1970-01-01, counting years from March so that the leap day is the last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?; // that count for 1970-01-01
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(20));
        for n in 1..40 {
            for random in [0.0, 0.5, 0.999] {
                let wait = backoff(min, max, n, random);
                assert!(wait >= min && wait <= max, "{n} {random} {wait:?}");
            }
        }
        assert_eq!(backoff(min, max, 1, 0.0), min);
        assert_eq!(backoff(min, max, 3, 0.0), Duration::from_millis(400));
        assert_eq!(backoff(min, max, 20, 0.0), Duration::from_secs(10));
        assert!((0.0..1.0).contains(&random()));
    }

    #[test]
    fn dates() {
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000)),
            ("Fri, 31 Dec 2100 23:59:59 GMT", Some(4_133_980_799)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(http_date(text), seconds, "{text}");
        }
    }

    #[test]
    fn what_servers_ask_for() {
        let ask = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            retry_after(&headers)
        };
        assert_eq!(ask(&[]), None);
        assert_eq!(ask(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(ask(&[("retry-after", "soon")]), None);
        let date =
            [("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), ("date", "Sun, 06 Nov 1994 08:49:30 GMT")];
        assert_eq!(ask(&date), Some(Duration::from_secs(7)));
        assert_eq!(ask(&date[..1]), Some(Duration::ZERO), "long past");
    }
}
