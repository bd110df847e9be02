//! Results as people read them.

use std::fmt::Write;
use std::time::Duration;

use crate::engine::report::{
    ImageReport, IndexOrigin, LayerReport, MountReport, MountTrace, RoomReport, Status, Timings,
};
pub(super) use crate::size::shown as bytes;

/// Files listed under "waits"; the rest is summed up.
const WAITS: usize = 8;

pub(super) fn image(report: &ImageReport) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}\n  manifest {}\n  {}", report.reference, report.manifest, report.why); // to a String: cannot fail
    let _ = writeln!(
        text,
        "  {:<21} {:>10} {:>8} {:>9} {:>12}  proved",
        "layer", "size", "index", "from", "segments"
    );
    for layer in &report.layers {
        let _ = writeln!(text, "  {}", line(layer));
    }
    if report.taken() > 0 {
        let _ = writeln!(text, "  {} taken from other layers", bytes(report.taken()));
    }
    text
}

fn line(layer: &LayerReport) -> String {
    let from = match layer.origin {
        IndexOrigin::Local => "store",
        IndexOrigin::Registry => "registry",
        IndexOrigin::Contents => "layer",
        IndexOrigin::Soci => "SOCI",
        IndexOrigin::Streamed => "streamed",
    };
    let here = format!("{}/{}", layer.local, layer.segments);
    let proved = if layer.proved { "yes" } else { "no" };
    let (size, index) = (bytes(layer.size), bytes(layer.index_size));
    format!("{:<21} {size:>10} {index:>8} {from:>9} {here:>12}  {proved}", &layer.blob.to_string()[..19])
}

pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    for alert in &status.alerts {
        let _ = writeln!(text, "ALERT {alert}");
    }
    if let Some(why) = &status.room.paused {
        let _ = writeln!(text, "PAUSED what no reader waits for: {why}");
    }
    for (reference, report) in &status.images {
        let local: u64 = report.layers.iter().map(|l| u64::from(l.local)).sum();
        let all: u64 = report.layers.iter().map(|l| u64::from(l.segments)).sum();
        let percent = (local * 100).checked_div(all).unwrap_or(100);
        let _ =
            writeln!(text, "{reference}\n  {percent} % here, {}; {}", bytes(report.compressed()), report.why);
    }
    for report in &status.mounts {
        text += &mount(report);
    }
    for reference in &status.pinned {
        let _ = writeln!(text, "pinned {reference}");
    }
    for (reason, layers) in &status.fallbacks {
        let _ = writeln!(text, "{layers} layers streamed whole: {reason}");
    }
    let _ = writeln!(text, "{}", room(&status.room));
    let _ =
        writeln!(text, "received {} in {} requests", bytes(status.traffic.bytes), status.traffic.requests);
    if status.taken > 0 {
        let _ = writeln!(text, "taken from other layers {}", bytes(status.taken));
    }
    text
}

fn mount(mount: &MountReport) -> String {
    let percent = (mount.here * 100).checked_div(mount.segments).unwrap_or(100);
    let mut text = format!(
        "{}\n  {} of {}, {percent} % here; {} reads, {} waited {}",
        mount.dir,
        mount.path,
        mount.reference,
        mount.reads,
        mount.misses,
        seconds(mount.waited)
    );
    for (count, what) in [(mount.waiting, "wait now"), (mount.failed, "failed")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if mount.stale {
        text += "; it may show damage, mount it anew";
    }
    text + "\n"
}

/// Who waited for what.
pub(super) fn traces(traces: &[MountTrace]) -> String {
    let mut text = String::new();
    for trace in traces {
        text += &mount(&trace.mount);
        for wait in &trace.waits {
            let _ = writeln!(text, "  {:>9} {:>6} times  {}", seconds(wait.waited), wait.times, wait.path);
        }
    }
    text
}

fn room(room: &RoomReport) -> String {
    let mut text = format!("holds {}", bytes(room.held));
    if let Some(quota) = room.quota {
        text += &format!(" of {}", bytes(quota));
    }
    text += &format!("; {} free, {} kept free", bytes(room.free), bytes(room.reserve));
    if room.evicted_layers > 0 {
        text += &format!("; evicted {} layers, {}", room.evicted_layers, bytes(room.evicted_bytes));
    }
    text
}

/// The one table `--timings` ends with.
pub(super) fn timings(timings: &Timings) -> String {
    let mut text = String::new();
    let opening = &timings.report.opening;
    let application = timings.running.saturating_sub(timings.waiting);
    let waited = format!("{} files", timings.waits.len());
    let rows = [
        ("resolve", opening.resolve, "reference to manifest and config".to_owned()),
        ("index", opening.index, timings.report.why.clone()),
        ("mount", opening.mount, "indexes to a mounted tree".to_owned()),
        ("waits", timings.waiting, waited),
        ("application", application, "everything else until ready".to_owned()),
        ("ready", timings.total(), String::new()),
    ];
    for (what, time, note) in rows {
        let _ = writeln!(text, "{what:<12} {:>9}  {note}", seconds(time));
    }
    for wait in timings.waits.iter().take(WAITS) {
        let _ = writeln!(text, "  waited {:>9}  {}", seconds(wait.waited), wait.path);
    }
    if let Some(rest) = timings.waits.len().checked_sub(WAITS).filter(|rest| *rest > 0) {
        let _ = writeln!(text, "  and {rest} more");
    }
    let (traffic, all) = (timings.traffic, timings.report.compressed());
    let _ = writeln!(
        text,
        "received     {:>9}  of {} in {} requests, {} repeated",
        bytes(traffic.bytes),
        bytes(all),
        traffic.requests,
        traffic.retries
    );
    text
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}
