//! `floe copy`: an image and all that belongs to it, from one place to another. The command does it itself, with the
//! user's own credentials; nothing of it goes into the store.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use format::Digest;
use registry::{Copied, Error, Pushed, Reference, Watch};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{Session, show};
use crate::cli::Output;
use crate::engine::parse;
use crate::exit::{Code, Coded, Hint};
use crate::origin::Net;
use crate::progress::{LayerProgress, Progress};

/// What is printed of a copy.
#[derive(Serialize)]
struct Report {
    source: String,
    destination: String,
    #[serde(flatten)]
    copied: Copied,
}

pub(super) fn copy(session: &Session, from: &str, to: &str) -> anyhow::Result<Code> {
    let (from, to) = (parse(from)?, parse(to)?);
    let net = Net::new(&session.config, None)?;
    let bars = Arc::new(Bars { progress: Progress::stderr(), bars: Mutex::default() });
    let copied = net.run(async {
        let mut end = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
        // What is dropped leaves no draft behind.
        tokio::select! {
            copied = net.client().copy(&from, &to, bars.clone()) => copied.map_err(|error| advised(error, &from, &to)),
            ended = tokio::signal::ctrl_c() => Err(interrupted(ended.context("watching for Ctrl-C"))),
            _ = end.recv() => Err(interrupted(Ok(()))),
        }
    });
    bars.progress.clear();
    let report = Report { source: from.to_string(), destination: to.to_string(), copied: copied? };
    // There stdout is the archive's.
    if matches!(&to, Reference::Archive(archive) if archive.is_standard()) {
        let text = match session.output {
            Output::Json => serde_json::to_string_pretty(&report).context("writing JSON")? + "\n",
            Output::Human => shown(&report),
        };
        let _ = std::io::stderr().write_all(text.as_bytes()); // talk
        return Ok(Code::Done);
    }
    session.print(&report, shown)?;
    Ok(Code::Done)
}

fn interrupted(why: anyhow::Result<()>) -> anyhow::Error {
    let error = why.err().unwrap_or_else(|| {
        anyhow::anyhow!("interrupted").context(Hint::new(
            "copying was given up",
            "begun anew, blobs that have arrived in a registry or a layout are not sent again",
        ))
    });
    error.context(Coded::new(Code::Interrupted, "copying"))
}

/// Adds to an error what the user can do about it.
fn advised(error: Error, from: &Reference, to: &Reference) -> anyhow::Error {
    let hint = match &error {
        Error::Denied { host, .. } => Some(format!(
            "docker login {host}, as somebody who may read the source and write the destination"
        )),
        Error::Refused { status: 413, host, .. } => Some(format!(
            "{host}, or a proxy before it, does not take requests of 8 MiB: raise its limit (nginx: client_max_body_size)"
        )),
        error if error.is_temporary() => {
            Some("begun anew, blobs that have arrived in a registry or a layout are not sent again".into())
        }
        Error::Invalid { .. } => Some(
            "nothing was named at the destination; where the source is damaged, pushing it again mends it"
                .into(),
        ),
        Error::NotFound { .. } => {
            Some("is the name right? where only a part of the image is missing, push it there again".into())
        }
        _ => None,
    };
    let what = format!("copying {from} to {to}");
    match hint {
        Some(hint) => anyhow::Error::new(error).context(Hint::new(what, hint)),
        None => anyhow::Error::new(error).context(what),
    }
}

fn shown(report: &Report) -> String {
    let Report { destination, copied, .. } = report;
    let Copied { digest, manifests, referrers, sent, bytes, mounted, existed, .. } = copied;
    format!(
        "{destination}\n  digest    {digest}\n  manifests {manifests}, and {referrers} that refer to them\n  \
         blobs     {sent} sent ({}), {mounted} mounted from another repository, {existed} were there\n",
        show::bytes(*bytes)
    )
}

/// Progress bars, one per blob.
struct Bars {
    progress: Progress,
    /// Held while one is drawn.
    bars: Mutex<HashMap<Digest, LayerProgress>>,
}

impl Bars {
    fn draw(&self, blob: &Digest, total: u64, draw: impl FnOnce(&LayerProgress)) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        draw(bars.entry(*blob).or_insert_with(|| self.progress.bar(&blob.hex()[..12], total)));
    }
}

impl Watch for Bars {
    fn passed(&self, blob: &Digest, done: u64, total: u64) {
        self.draw(blob, total, |bar| {
            bar.set(done);
            bar.say("copying");
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
}

impl std::fmt::Debug for Bars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bars")
    }
}
