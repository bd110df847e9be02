//! What commands have in common that bring an image from one place to another: bars, signals, hints.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use format::Digest;
use registry::{Error, Pushed, Reference, Watch};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::Session;
use crate::cli::Output;
use crate::exit::{Code, Coded, Hint};
use crate::progress::{LayerProgress, Progress};

/// What is said of work that has to be begun anew.
const AGAIN: &str = "begun anew, blobs that have arrived in a registry or a layout are not sent again";

/// Works until it is done, or the user ends it. What is dropped leaves no draft behind.
pub(super) async fn until_ended<T>(
    doing: &'static str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut end = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    tokio::select! {
        done = work => done,
        ended = tokio::signal::ctrl_c() => Err(interrupted(doing, ended.context("watching for Ctrl-C"))),
        _ = end.recv() => Err(interrupted(doing, Ok(()))),
    }
}

fn interrupted(doing: &'static str, why: anyhow::Result<()>) -> anyhow::Error {
    let error = why.err().unwrap_or_else(|| {
        anyhow::anyhow!("interrupted").context(Hint::new(format!("{doing} was given up"), AGAIN))
    });
    error.context(Coded::new(Code::Interrupted, doing))
}

/// Adds to an error what the user can do about it.
pub(super) fn advised(error: Error, what: String) -> anyhow::Error {
    let hint = match &error {
        Error::Denied { host, .. } => Some(format!(
            "docker login {host}, as somebody who may read the source and write the destination"
        )),
        Error::Refused { status: 413, host, .. } => Some(format!(
            "{host}, or a proxy before it, does not take requests of 8 MiB: raise its limit (nginx: client_max_body_size)"
        )),
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Some("TMPDIR may name a directory with more room, for what waits before it is sent".into())
        }
        error if error.is_temporary() => Some(AGAIN.into()),
        Error::Invalid { .. } => Some(
            "nothing was named at the destination; where the source is damaged, pushing it again mends it"
                .into(),
        ),
        Error::NotFound { .. } => {
            Some("is the name right? where only a part of the image is missing, push it there again".into())
        }
        _ => None,
    };
    match hint {
        Some(hint) => anyhow::Error::new(error).context(Hint::new(what, hint)),
        None => anyhow::Error::new(error).context(what),
    }
}

/// Prints a result: to stdout, unless that is the archive's.
pub(super) fn print<T: Serialize>(
    session: &Session,
    to: &Reference,
    report: &T,
    shown: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if !to.is_standard() {
        return session.print(report, shown);
    }
    let text = match session.output {
        Output::Json => serde_json::to_string_pretty(report).context("writing JSON")? + "\n",
        Output::Human => shown(report),
    };
    let _ = std::io::stderr().write_all(text.as_bytes()); // talk
    Ok(())
}

/// Progress bars, one per blob.
pub(super) struct Bars {
    /// What happens to a blob that comes.
    doing: &'static str,
    progress: Progress,
    /// Held while one is drawn.
    bars: Mutex<HashMap<Digest, LayerProgress>>,
}

impl Bars {
    /// Returns bars on stderr, if it is a terminal.
    pub(super) fn new(doing: &'static str) -> Self {
        Self { doing, progress: Progress::stderr(), bars: Mutex::default() }
    }

    /// Removes all bars from the terminal.
    pub(super) fn clear(&self) {
        self.progress.clear();
    }

    fn draw(&self, blob: &Digest, total: u64, draw: impl FnOnce(&LayerProgress)) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        draw(bars.entry(*blob).or_insert_with(|| self.progress.bar(&blob.hex()[..12], total)));
    }
}

impl Watch for Bars {
    fn passed(&self, blob: &Digest, done: u64, total: u64) {
        self.draw(blob, total, |bar| {
            bar.set(done);
            bar.say(self.doing);
        });
    }

    fn arrived(&self, blob: &Digest, total: u64, how: Pushed) {
        let state = match how {
            Pushed::Sent => "sent",
            Pushed::Mounted => "mounted",
            Pushed::Existed => "was there",
        };
        self.draw(blob, total, |bar| bar.done(state));
    }

    fn left_out(&self, what: &str) {
        self.progress.notice(&format!("left out: {what}"));
    }

    fn noticed(&self, what: &str) {
        self.progress.notice(&format!("floe: {what}"));
    }
}

impl std::fmt::Debug for Bars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bars")
    }
}
