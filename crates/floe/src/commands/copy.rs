//! `floe copy`: an image and all that belongs to it, from one place to another. The command does it itself, with the
//! user's own credentials; nothing of it goes into the store.

use std::sync::Arc;

use registry::Copied;
use serde::Serialize;

use super::transfer::{self, Bars};
use super::{Session, show};
use crate::engine::parse;
use crate::exit::Code;
use crate::origin::Net;

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
    let bars = Arc::new(Bars::new("copying"));
    let copied = net.run(transfer::until_ended("copying", async {
        let copied = net.client().copy(&from, &to, bars.clone()).await;
        copied.map_err(|error| transfer::advised(error, format!("copying {from} to {to}")))
    }));
    bars.clear();
    let report = Report { source: from.to_string(), destination: to.to_string(), copied: copied? };
    transfer::print(session, &to, &report, shown)?;
    Ok(Code::Done)
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
