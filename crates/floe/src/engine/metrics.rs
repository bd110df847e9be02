//! What a monitoring system is told: a page in the text format of OpenMetrics.
//!
//! The page is made when somebody asks. Most of what is on it is counted for other reasons elsewhere; what is counted for the page alone
//! is in [`Reads`], because a counter must not go back when a mount does.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use mount::observe::Failure;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Engine;
use super::report::Fallback;

/// Upper bounds of waits that are told apart, in seconds: from a segment that is just being inflated to a network that is down.
const WAITS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Name and value of each label.
type Labels = Vec<(&'static str, String)>;

/// The reads of all mounts since the daemon began.
pub struct Reads {
    here: AtomicU64,
    failed: Family<Labels, Counter>,
    waited: Histogram,
}

impl Default for Reads {
    fn default() -> Self {
        Self { here: AtomicU64::new(0), failed: Family::default(), waited: Histogram::new(WAITS) }
    }
}

impl Reads {
    /// Hears of a read that was answered at once.
    pub(super) fn hit(&self) {
        self.here.fetch_add(1, Ordering::Relaxed);
    }

    /// Hears of a read that waited and was answered.
    pub(super) fn waited(&self, took: Duration) {
        self.waited.observe(took.as_secs_f64());
    }

    /// Hears of a read that failed.
    pub(super) fn failed(&self, why: &Failure) {
        let labels = vec![("errno", why.errno().to_owned()), ("reason", why.word().to_owned())];
        self.failed.get_or_create(&labels).inc();
    }
}

/// Layers that containerd was to have lazily and got an ordinary snapshot of, since the daemon began.
#[derive(Default)]
pub struct Ordinary(Family<Labels, Counter>);

impl Ordinary {
    /// Hears of one, and why, in a word.
    pub(crate) fn because(&self, why: &str) {
        self.0.get_or_create(&vec![("reason", why.to_owned())]).inc();
    }
}

/// The page in the making.
struct Page(Registry);

impl Page {
    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.0.register(name, help, family);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [(Labels::new(), value)]);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.gauges(name, help, [(Labels::new(), value)]);
    }
}

impl Engine {
    /// Returns the page.
    pub(crate) fn metrics(&self) -> anyhow::Result<String> {
        let mut page = Page(Registry::with_prefix("floe"));
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        page.gauges("build_info", "The program that runs", [(version, 1)]);
        self.tell_registries(&mut page);
        self.tell_mounts(&mut page);
        self.tell_store(&mut page);
        let mut text = String::new();
        encode(&mut text, &page.0).context("writing the metrics")?;
        Ok(text)
    }

    fn tell_registries(&self, page: &mut Page) {
        let stats = self.net.client().stats();
        let per_host = |value: fn(&registry::HostStats) -> u64| {
            let of = move |(host, stats): (&String, &registry::HostStats)| {
                (vec![("host", host.clone())], value(stats))
            };
            stats.iter().map(of).collect::<Vec<_>>()
        };
        page.counters("registry_received_bytes", "Content received", per_host(|s| s.bytes));
        page.counters("registry_requests", "Requests sent", per_host(|s| s.requests));
        page.counters("registry_retries", "Requests that repeated one that failed", per_host(|s| s.retries));
        page.counters("registry_throttled", "Answers that asked to slow down", per_host(|s| s.throttled));
        page.counters("registry_redirects", "Redirects resolved", per_host(|s| s.redirects));
        page.counters("registry_tokens", "Tokens fetched", per_host(|s| s.tokens));
        page.gauges("registry_in_flight", "Requests in flight", per_host(|s| u64::from(s.in_flight)));
        page.gauges(
            "registry_queued",
            "Requests that wait for the budget",
            per_host(|s| s.waiting.iter().map(|n| *n as u64).sum()),
        );
        let fallbacks = self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let streamed = Fallback::ALL
            .map(|why| (vec![("reason", why.word().to_owned())], fallbacks.get(&why).copied().unwrap_or(0)));
        page.counters("layers_streamed", "Layers that were fetched whole instead of being lazy", streamed);
        let ordinary = self.ordinary.0.clone();
        page.0.register("layers_ordinary", "Layers that were left to the client to unpack", ordinary);
    }

    fn tell_mounts(&self, page: &mut Page) {
        let mounts = self.mounts.all();
        let mut by_path = std::collections::BTreeMap::from([("erofs", 0), ("fuse", 0), ("plain", 0)]);
        for mount in &mounts {
            *by_path.entry(mount.path().word()).or_insert(0) += 1;
        }
        let by_path = by_path.into_iter().map(|(path, count)| (vec![("path", path.to_owned())], count));
        page.gauges("mounts", "Mounts by the way in which they are read", by_path);
        let waiting = mounts.iter().map(|mount| mount.waits().counters().waiting()).sum();
        page.gauge("readers_waiting", "Reads that wait for a segment at this moment", waiting);
        let reads = self.mounts.reads();
        page.counter(
            "reads_here",
            "Reads that were asked about and answered at once; what is here the kernel mostly reads without asking",
            reads.here.load(Ordering::Relaxed),
        );
        let joined = self.through.joined();
        page.counter("joins", "Reads that joined a fetch that was under way or asked for already", joined);
        page.0.register("read_errors", "Reads that ended in an error", reads.failed.clone());
        page.0.register_with_unit(
            "wait",
            "How long reads waited for what was missing",
            Unit::Seconds,
            reads.waited.clone(),
        );
    }

    fn tell_store(&self, page: &mut Page) {
        let alerts = self.alerts.list().len() as u64;
        page.gauge("alerts", "What somebody has to look at, see `floe status`", alerts);
        let room = match self.room.report() {
            Ok(room) => room,
            Err(error) => return tracing::warn!("looking at the room of the store: {error:#}"),
        };
        page.gauge("store_held_bytes", "What all segments have", room.held);
        page.gauge("store_free_bytes", "What is free on the store's disk", room.free);
        page.gauge("store_reserve_bytes", "What is kept free there", room.reserve);
        if let Some(quota) = room.quota {
            page.gauge("store_quota_bytes", "The most that segments may have", quota);
        }
        let taken = self.through.taken();
        page.counter("taken_bytes", "Content copied from other layers instead of being fetched", taken);
        page.counter("evicted_layers", "Layers evicted", room.evicted_layers);
        page.counter("evicted_bytes", "What they had", room.evicted_bytes);
        let paused = u64::from(room.paused.is_some());
        page.gauge("background_paused", "Whether what no reader waits for is paused", paused);
    }
}
