//! What a command says on stderr while it waits for the daemon.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::daemon::protocol::Event;
use crate::progress::{LayerProgress, Progress};

/// Shows the daemon's progress and notices.
pub struct Talk {
    progress: Progress,
    bars: RefCell<HashMap<String, LayerProgress>>,
}

impl Talk {
    /// Talks on stderr; progress only where it is a terminal.
    pub fn stderr() -> Self {
        Self { progress: Progress::stderr(), bars: RefCell::default() }
    }

    /// Shows one event.
    pub fn hear(&self, event: Event) {
        match event {
            Event::Progress(step) => {
                let mut bars = self.bars.borrow_mut();
                let bar = bars
                    .entry(step.what.clone())
                    .or_insert_with(|| self.progress.bar(&step.what, step.total));
                bar.set(step.done);
                if step.done >= step.total {
                    bar.done(step.step);
                } else {
                    bar.say(step.step);
                }
            }
            Event::Notice { text } => self.progress.notice(&text),
            Event::Differences { .. } | Event::Done { .. } | Event::Failed(_) => {}
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.progress.clear();
    }
}
