//! Progress bars of layers on stderr.
//!
//! Drawn only when stderr is a terminal that can move its cursor; otherwise every call does nothing, so
//! callers need not ask. Results never come through here.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Width that holds the short name of a layer and its state.
const NAME: usize = 20;

/// A set of progress bars, one per layer.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    style: ProgressStyle,
}

/// The bar of one layer.
pub struct LayerProgress(ProgressBar);

impl Progress {
    /// Returns bars on stderr, or hidden ones if stderr is no terminal.
    pub fn stderr() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let target = if std::io::stderr().is_terminal() && !dumb {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self::on(target, std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()))
    }

    /// Returns bars that are never drawn.
    pub fn hidden() -> Self {
        Self::on(ProgressDrawTarget::hidden(), false)
    }

    fn on(target: ProgressDrawTarget, colour: bool) -> Self {
        let bar = if colour { "{bar:28.cyan/dim}" } else { "{bar:28}" };
        let template = format!("{{prefix:{NAME}}} {bar} {{bytes:>11}} of {{total_bytes:<11}} {{msg}}");
        // A wrong template is a mistake in the line above; a plain bar is then better than none.
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bars: MultiProgress::with_draw_target(target), style: style.progress_chars("━╸─") }
    }

    /// Adds the bar of something of `total` bytes.
    pub fn bar(&self, name: &str, total: u64) -> LayerProgress {
        let bar = self.bars.add(ProgressBar::new(total).with_style(self.style.clone()));
        bar.set_prefix(name.to_owned());
        LayerProgress(bar)
    }

    /// Writes a line on stderr, above the bars if there are any.
    pub fn notice(&self, line: &str) {
        // Talk: a closed stderr is not our failure.
        let _ = if self.bars.is_hidden() {
            writeln!(std::io::stderr(), "{line}")
        } else {
            self.bars.println(line)
        };
    }

    /// Removes all bars from the terminal.
    pub fn clear(&self) {
        let _ = self.bars.clear(); // as above
    }
}

impl LayerProgress {
    /// Says how many bytes are done.
    pub fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// Says in a word what happens to the layer.
    pub fn say(&self, state: impl Into<Cow<'static, str>>) {
        self.0.set_message(state);
    }

    /// Completes the bar.
    pub fn done(&self, state: impl Into<Cow<'static, str>>) {
        self.0.finish_with_message(state);
    }

    /// Returns the bytes counted up to here.
    pub fn bytes(&self) -> u64 {
        self.0.position()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_bars_count_all_the_same() {
        let progress = Progress::hidden();
        let bar = progress.bar("a", 10);
        bar.set(7);
        assert_eq!(bar.bytes(), 7);
        bar.done("done");
        assert_eq!(bar.bytes(), 10, "a finished bar is full");
    }

    #[test]
    fn both_styles_are_valid_templates() {
        for colour in [false, true] {
            let bar = if colour { "{bar:28.cyan/dim}" } else { "{bar:28}" };
            assert!(ProgressStyle::with_template(bar).is_ok());
            let _ = Progress::on(ProgressDrawTarget::hidden(), colour);
        }
    }
}
