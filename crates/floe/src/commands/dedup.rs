//! What images would save by sharing more than whole layers: `floe dedup --estimate`.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use super::{Session, show, user_image};
use crate::daemon::protocol::Call;
use crate::demo::chart::{self, Bar};
use crate::engine::report::{Sharing, Unit};
use crate::exit::Code;

pub(super) fn estimate(session: &Session, images: Vec<String>, chart: Option<&Path>) -> anyhow::Result<Code> {
    let images = images.into_iter().map(user_image).collect();
    let sharing: Sharing = session.ask(Call::Sharing { images })?;
    if let Some(file) = chart {
        std::fs::write(file, picture(&sharing)).with_context(|| format!("writing {}", file.display()))?;
    }
    session.print(&sharing, table)?;
    Ok(Code::Done)
}

/// What is kept once, how many pieces that are, and the bytes in them.
struct Row {
    name: &'static str,
    pieces: Option<u64>,
    unique: u64,
    /// Of a thousand bytes.
    saved: u64,
}

fn rows(sharing: &Sharing) -> Vec<Row> {
    let row = |name, pieces, unique: u64| {
        let saved = u128::from(sharing.logical.saturating_sub(unique)) * 1000;
        let saved = u64::try_from(saved / u128::from(sharing.logical.max(1))).unwrap_or(1000);
        Row { name, pieces, unique, saved }
    };
    let nothing = row("nothing shared", None, sharing.logical);
    let schemes = sharing.schemes.iter().map(|scheme| {
        let name = match scheme.unit {
            Unit::Layers => "whole layers",
            Unit::Files => "whole files",
            Unit::Chunks => "chunks of the indexes",
            Unit::ContentDefinedChunks => "content-defined chunks",
        };
        row(name, Some(scheme.pieces), scheme.unique)
    });
    std::iter::once(nothing).chain(schemes).collect()
}

fn table(sharing: &Sharing) -> String {
    let mut text = format!("{:<24}{:>10}{:>12}{:>12}{:>9}\n", "", "pieces", "logical", "unique", "saved");
    for row in rows(sharing) {
        let pieces = row.pieces.map(|pieces| pieces.to_string()).unwrap_or_default();
        let (logical, unique) = (show::bytes(sharing.logical), show::bytes(row.unique));
        let _ =
            writeln!(text, "{:<24}{pieces:>10}{logical:>12}{unique:>12}{:>9}", row.name, percent(row.saved)); // to a String: cannot fail
    }
    text
}

fn picture(sharing: &Sharing) -> String {
    let bar = |row: Row| Bar {
        name: row.name.to_owned(),
        detail: row.pieces.map(|pieces| format!("{pieces} pieces")).unwrap_or_default(),
        length: u32::try_from(1000 - row.saved.min(1000)).map_or(0.0, f64::from),
        value: show::bytes(row.unique),
        share: if row.saved > 0 { format!("{} saved", percent(row.saved)) } else { String::new() },
    };
    let bars: Vec<_> = rows(sharing).into_iter().map(bar).collect();
    let title = match sharing.images.len() {
        1 => "File contents of one image".to_owned(),
        images => format!("File contents of {images} images"),
    };
    chart::picture(&title, "Bytes that are kept, uncompressed; shorter is better", &bars)
}

fn percent(of_a_thousand: u64) -> String {
    format!("{}.{} %", of_a_thousand / 10, of_a_thousand % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::report::Scheme;

    fn sharing(logical: u64, unique: u64) -> Sharing {
        let scheme = Scheme { unit: Unit::Files, pieces: 3, unique };
        Sharing { images: vec!["a".to_owned(), "b".to_owned()], logical, schemes: vec![scheme] }
    }

    #[test]
    fn every_way_to_share_has_a_row_and_a_bar() {
        let sharing = sharing(4_000_000, 3_000_000);
        let text = table(&sharing);
        let words: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["pieces", "logical", "unique", "saved"]);
        assert_eq!(words[1], ["nothing", "shared", "4.0", "MB", "4.0", "MB", "0.0", "%"]);
        assert_eq!(words[2], ["whole", "files", "3", "4.0", "MB", "3.0", "MB", "25.0", "%"]);
        let picture = picture(&sharing);
        for part in
            ["File contents of 2 images", r#"width="560.0""#, r#"width="420.0""#, "25.0 % saved", "3 pieces"]
        {
            assert!(picture.contains(part), "{part} in {picture}");
        }
    }

    #[test]
    fn images_without_files_save_nothing() {
        assert!(table(&sharing(0, 0)).contains("0.0 %"));
        assert!(picture(&sharing(0, 0)).ends_with("</svg>\n"));
    }
}
