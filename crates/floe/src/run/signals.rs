//! Signals this process receives, handed to whoever runs a container.
//!
//! While somebody listens, the signals go to them. While nobody does, those that end a process end this one, as
//! if it had never asked. Signals are taken over at the first [`listen`] and stay so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Forwarded to the container.
const FORWARDED: [Signal; 7] =
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];

/// Those who listen, each with a number of its own.
static LISTENERS: Mutex<Vec<(u64, Sender<Signal>)>> = Mutex::new(Vec::new());

/// Numbers for listeners.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Whether the signals were taken over, or why not.
static TAKEN: OnceLock<Result<(), String>> = OnceLock::new();

/// While this lives, signals go to its receiver and do not end this process.
#[derive(Debug)]
pub struct Listening(u64);

/// Returns the signals that arrive from here on, until the first part is dropped.
pub(super) fn listen() -> Result<(Listening, Receiver<Signal>)> {
    TAKEN
        .get_or_init(|| take_over().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
        .context("taking over signals")?;
    let (sender, receiver) = channel();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    listeners().push((number, sender));
    Ok((Listening(number), receiver))
}

impl Drop for Listening {
    fn drop(&mut self) {
        listeners().retain(|(number, _)| *number != self.0);
    }
}

fn listeners() -> MutexGuard<'static, Vec<(u64, Sender<Signal>)>> {
    // A list of senders is whole whatever panicked.
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread of its own with tokio's handlers: the only safe code here that catches signals.
fn take_over() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    for kind in FORWARDED {
        let context = runtime.enter();
        let mut stream = signal(SignalKind::from_raw(kind.as_raw()))?;
        drop(context);
        runtime.spawn(async move {
            while stream.recv().await.is_some() {
                deliver(kind);
            }
        });
    }
    let forever = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("signals".into()).spawn(forever)?;
    Ok(())
}

fn deliver(kind: Signal) {
    let listeners = listeners();
    for (_, listener) in listeners.iter() {
        let _ = listener.send(kind); // its run is about to end
    }
    if listeners.is_empty() && kind != Signal::WINCH {
        std::process::exit(128 + kind.as_raw());
    }
}
