//! Results of several ways to start an image, as bars for a terminal and as an SVG file.
//!
//! Pure functions. The SVG has no script and no external font. Its colours follow the reader's light or dark theme;
//! it paints its own background, so viewers that know no themes show a light picture, readable anywhere.

use std::fmt::Write as _;

/// One way to start the image and what it took.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Row {
    /// What was run.
    pub system: String,
    /// From the command to ready.
    pub seconds: f64,
    /// Received up to ready, in millions of bytes.
    pub megabytes: f64,
    /// Sent up to ready.
    pub requests: u64,
}

/// Widest bar in a terminal, in cells.
const CELLS: usize = 48;

/// Eighths of a cell, from one to seven.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Returns one line per row: name, bar, seconds, megabytes, requests, and how often it fits into the first row.
///
/// `width` is the terminal's; `colour` says whether escape sequences are welcome.
pub fn bars(rows: &[Row], width: usize, colour: bool) -> String {
    let name_width = rows.iter().map(|row| row.system.chars().count()).max().unwrap_or(0);
    let numbers = 46;
    let cells = width.saturating_sub(name_width + numbers).clamp(8, CELLS);
    let longest = longest(rows.iter().map(|row| row.seconds));
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let bar = bar(row.seconds / longest, cells);
        let padding = " ".repeat(cells.saturating_sub(bar.chars().count()));
        let name_padding = " ".repeat(name_width - row.system.chars().count());
        let (on, off) = match (colour, number) {
            (false, _) => ("", ""),
            (true, 0) => ("\x1b[2m", "\x1b[0m"),
            (true, _) => ("\x1b[36m", "\x1b[0m"),
        };
        let requests = if row.requests == 1 { "request " } else { "requests" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}{name_padding}  {on}{bar}{off}{padding} {:>7} {:>9} {:>6} {requests} {:>6}",
            row.system,
            seconds(row.seconds),
            megabytes(row.megabytes),
            row.requests,
            times(rows, row),
        );
    }
    text
}

/// Returns the same as a picture.
pub fn svg(title: &str, rows: &[Row]) -> String {
    let bar = |row: &Row| {
        let requests = if row.requests == 1 { "request" } else { "requests" };
        Bar {
            name: row.system.clone(),
            detail: format!("{}, {} {requests}", megabytes(row.megabytes), row.requests),
            length: row.seconds,
            value: seconds(row.seconds),
            share: times(rows, row),
        }
    };
    let bars: Vec<_> = rows.iter().map(bar).collect();
    picture(title, "Seconds until the application is ready; shorter is better", &bars)
}

/// One bar of a picture.
pub(crate) struct Bar {
    /// What it stands for.
    pub(crate) name: String,
    /// More about that.
    pub(crate) detail: String,
    /// How long it is, beside the others.
    pub(crate) length: f64,
    /// The same as a text.
    pub(crate) value: String,
    /// And beside the first.
    pub(crate) share: String,
}

/// Returns an SVG of bars; `note` says what their length means.
pub(crate) fn picture(title: &str, note: &str, bars: &[Bar]) -> String {
    const WIDTH: f64 = 760.0;
    const LEFT: f64 = 24.0;
    const FULL: f64 = 560.0;
    const STEP: f64 = 58.0;
    const TOP: f64 = 74.0;
    let height = TOP + STEP * u32::try_from(bars.len()).map_or(0.0, f64::from) + 26.0;
    let longest = longest(bars.iter().map(|bar| bar.length));
    let mut text = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">
<title>{title}</title>
<style>
  text {{ font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2430; }}
  .title {{ font-size: 19px; font-weight: 600; }}
  .note, .detail {{ font-size: 13px; fill: #626a7a; }}
  .name {{ font-size: 14px; }}
  .value {{ font-size: 15px; font-weight: 600; }}
  .back {{ fill: #ffffff; }}
  .first {{ fill: #a3abba; }}
  .other {{ fill: #1285a6; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e4e8f0; }}
    .note, .detail {{ fill: #98a1b2; }}
    .back {{ fill: #14181f; }}
    .first {{ fill: #626c7f; }}
    .other {{ fill: #35b5d8; }}
  }}
</style>
<rect class="back" width="{WIDTH}" height="{height}" rx="8"/>
<text class="title" x="{LEFT}" y="34">{title}</text>
<text class="note" x="{LEFT}" y="54">{note}</text>
"#,
        title = escape(title),
        note = escape(note),
    );
    let mut y = TOP;
    for (number, bar) in bars.iter().enumerate() {
        let length = (bar.length / longest * FULL).max(2.0);
        let class = if number == 0 { "first" } else { "other" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            r#"<text class="name" x="{LEFT}" y="{:.1}">{}<tspan class="detail" dx="10">{}</tspan></text>
<rect class="{class}" x="{LEFT}" y="{:.1}" width="{length:.1}" height="20" rx="3"/>
<text class="value" x="{:.1}" y="{:.1}">{}<tspan class="detail" dx="8">{}</tspan></text>"#,
            y + 14.0,
            escape(&bar.name),
            escape(&bar.detail),
            y + 22.0,
            LEFT + length + 8.0,
            y + 37.5,
            escape(&bar.value),
            escape(&bar.share),
        );
        y += STEP;
    }
    text.push_str("</svg>\n");
    text
}

/// Never 0, so that it can be divided by.
fn longest(lengths: impl Iterator<Item = f64>) -> f64 {
    lengths.filter(|length| length.is_finite()).fold(f64::MIN_POSITIVE, f64::max)
}

fn bar(share: f64, cells: usize) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (u32::try_from(cells * 8).map_or(0.0, f64::from) * share).round();
    // At least a sliver: something that took time must not look like nothing.
    let eighths = (1..=cells * 8)
        .take_while(|n| u32::try_from(*n).is_ok_and(|n| f64::from(n) <= eighths))
        .count()
        .max(1);
    let mut bar = "█".repeat(eighths / 8);
    if let Some(part) = (eighths % 8).checked_sub(1) {
        bar.push(EIGHTHS[part]);
    }
    bar
}

fn seconds(value: f64) -> String {
    if value < 9.995 { format!("{value:.2} s") } else { format!("{value:.1} s") }
}

fn megabytes(value: f64) -> String {
    if value < 9.95 { format!("{value:.1} MB") } else { format!("{value:.0} MB") }
}

/// How often a row fits into the first one; nothing for the first itself.
fn times(rows: &[Row], row: &Row) -> String {
    match rows.first() {
        Some(first) if !std::ptr::eq(first, row) && row.seconds > 0.0 => {
            let times = first.seconds / row.seconds;
            if times < 9.95 { format!("{times:.1}×") } else { format!("{times:.0}×") }
        }
        _ => String::new(),
    }
}

/// Text that is safe between tags and in attributes; what XML forbids altogether becomes a replacement sign.
fn escape(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '"' => "&quot;".into(),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => "\u{fffd}".into(),
            letter => letter.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |system: &str, seconds, megabytes, requests| Row {
            system: system.into(),
            seconds,
            megabytes,
            requests,
        };
        vec![
            row("full pull, unpacked", 9.184, 70.02, 6),
            row("Floe, first pull", 6.5, 70.9, 31),
            row("Floe, lazy", 1.02, 7.94, 12),
            row("Floe, lazy & profile", 0.712, 5.0, 1),
        ]
    }

    #[test]
    fn bars_show_every_number() {
        let text = bars(&rows(), 120, false);
        assert_eq!(text.lines().count(), 4);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0] && *width <= 120), "{widths:?}\n{text}");
        for shown in [
            "9.18 s",
            "70 MB",
            "6 requests",
            "6.50 s",
            "1.4×",
            "7.9 MB",
            "9.0×",
            "0.71 s",
            "1 request ",
            "13×",
        ] {
            assert!(text.contains(shown), "{shown:?} in\n{text}");
        }
        assert!(!text.contains('\x1b'));
        assert!(bars(&rows(), 120, true).contains("\x1b[36m"));
    }

    #[test]
    fn bars_are_as_long_as_what_they_show() {
        for (share, cells, bar_text) in [
            (1.0, 4, "████"),
            (0.5, 4, "██"),
            (0.53125, 4, "██▏"),
            (0.0, 4, "▏"),
            (0.001, 4, "▏"),
            (0.99, 4, "████"),
            (0.96, 4, "███▉"),
            (f64::NAN, 4, "▏"),
            (7.0, 4, "████"),
        ] {
            assert_eq!(bar(share, cells), bar_text, "{share}");
        }
    }

    #[test]
    fn odd_rows_do_no_harm() {
        assert_eq!(bars(&[], 80, false), "");
        let row = Row { system: "x".into(), seconds: 0.0, megabytes: 0.0, requests: 0 };
        assert!(bars(std::slice::from_ref(&row), 1, false).contains("0.00 s"));
        let odd = Row { seconds: f64::INFINITY, ..row.clone() };
        assert!(!bars(&[row.clone(), odd.clone()], 80, false).is_empty());
        assert!(svg("x", &[row, odd]).ends_with("</svg>\n"));
        assert!(svg("x", &[]).contains("<title>x</title>"));
    }

    #[test]
    fn the_picture_is_well_formed_and_shows_every_number() {
        let text = svg("a <b> & \"c\"\u{1}", &rows());
        for shown in
            ["9.18 s", "70 MB, 6 requests", "5.0 MB, 1 request<", "9.0×", "13×", "Floe, lazy &amp; profile"]
        {
            assert!(text.contains(shown), "{shown:?} in\n{text}");
        }
        assert!(text.contains("<title>a &lt;b&gt; &amp; &quot;c&quot;\u{fffd}</title>"));
        assert_well_formed(&text);
        assert_eq!(text.matches("<rect").count(), 1 + 4, "background and bars");
        // The longest bar and its label stay inside.
        assert!(text.contains(r#"width="560.0""#));
    }

    /// Every tag is closed in order, and no bare `<` or `&` is left.
    fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            for part in rest[..at].split('&').skip(1) {
                assert!(
                    ["amp;", "lt;", "gt;", "quot;"].iter().any(|known| part.starts_with(known)),
                    "{part}"
                );
            }
            let end = at + rest[at..].find('>').unwrap();
            let tag = &rest[at + 1..end];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap().to_owned());
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
        assert_eq!(rest.trim(), "");
    }
}
