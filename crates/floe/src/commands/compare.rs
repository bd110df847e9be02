//! Two images side by side: `floe diff` and `floe check`.

use std::fmt::Write;

use serde::Serialize;

use super::{Session, show, user_image};
use crate::daemon::client::Client;
use crate::daemon::protocol::{Call, Event};
use crate::engine::report::{Compared, Difference, Sign, Upgrade};
use crate::exit::Code;
use crate::talk::Talk;

/// Differences of a copy that are shown to people: the first few say what has happened.
const SHOWN: usize = 50;

#[derive(Serialize)]
struct Comparison {
    #[serde(flatten)]
    compared: Compared,
    differences: Vec<Difference>,
}

pub(super) fn diff(session: &Session, from: String, to: String) -> anyhow::Result<Code> {
    compare(session, [from, to], false, |comparison| {
        let mut text = lines(&comparison.differences);
        text += &summary(comparison);
        if let Some(upgrade) = &comparison.compared.upgrade {
            text += &fetched(upgrade);
        }
        text
    })
}

pub(super) fn check(session: &Session, from: String, to: String) -> anyhow::Result<Code> {
    compare(session, [from, to], true, |comparison| {
        let differences = &comparison.differences;
        let mut text = lines(&differences[..differences.len().min(SHOWN)]);
        if let Some(rest) = differences.len().checked_sub(SHOWN).filter(|rest| *rest > 0) {
            let _ = writeln!(text, "and {rest} more"); // to a String: cannot fail
        }
        text += &summary(comparison);
        let Compared { left_out, believed, .. } = comparison.compared;
        if left_out > 0 {
            let _ = writeln!(text, "left out: {left_out} that formats add to the root");
        }
        if believed > 0 {
            let layers = if believed == 1 { "layer is" } else { "layers are" };
            let _ = writeln!(
                text,
                "{believed} {layers} what an index says that was not proved here; `floe pull` proves it"
            );
        }
        text
    })
}

fn compare(
    session: &Session,
    images: [String; 2],
    as_copy: bool,
    human: impl FnOnce(&Comparison) -> String,
) -> anyhow::Result<Code> {
    let talk = Talk::stderr();
    let call = Call::Compare { images: images.map(user_image), as_copy };
    // Printed at the end: whoever reads slowly, `less` say, must not keep the daemon waiting.
    let mut differences = Vec::new();
    let compared = Client::connect(&session.address)?.call(call, &mut |event| match event {
        Event::Differences { differences: more } => differences.extend(more),
        event => talk.hear(event),
    })?;
    drop(talk);
    let comparison = Comparison { compared, differences };
    session.print(&comparison, human)?;
    Ok(if comparison.differences.is_empty() { Code::Done } else { Code::Differ })
}

fn lines(differences: &[Difference]) -> String {
    let mut text = String::new();
    for difference in differences {
        let sign = match difference.sign {
            Sign::Added => '+',
            Sign::Removed => '-',
            Sign::Changed => '~',
        };
        let words: Vec<_> = difference.changes.iter().map(|change| change.word()).collect();
        let gap = if words.is_empty() { "" } else { "  " };
        let _ = writeln!(text, "{sign} {}{gap}{}", difference.path, words.join(", "));
    }
    text
}

fn summary(Comparison { compared, differences }: &Comparison) -> String {
    if differences.is_empty() {
        return format!("the same: {} entries, {} bytes\n", compared.entries, compared.bytes);
    }
    format!("{} of {} entries differ\n", differences.len(), compared.entries)
}

fn fetched(upgrade: &Upgrade) -> String {
    format!(
        "an upgrade fetches {} of {} layers, {} of {}; without what A has whole segments of these are {}; in chunks that no layer of A \
         has there are {}, about {} compressed\n",
        upgrade.new_layers,
        upgrade.layers,
        show::bytes(upgrade.new_layer_bytes),
        show::bytes(upgrade.layer_bytes),
        show::bytes(upgrade.fetched),
        show::bytes(upgrade.new_chunk_bytes),
        show::bytes(upgrade.new_chunk_packed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use format::compare::Change;

    #[test]
    fn each_path_has_a_line() {
        let difference = |path: &str, sign, changes| Difference { path: path.to_owned(), sign, changes };
        let differences = [
            difference("/a", Sign::Added, vec![]),
            difference("/b", Sign::Removed, vec![]),
            difference("/c", Sign::Changed, vec![Change::Content, Change::Time]),
        ];
        assert_eq!(lines(&differences), "+ /a\n- /b\n~ /c  content, time\n");
    }
}
