//! A container from its start to its end: one loop over signals, readiness, deadlines and the exit.
//!
//! Threads that block (on streams, on a port, on the process) report here; decisions are made here only.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use oci_spec::image::ImageConfiguration;
use rustix::process::Signal;

use super::options::{Input, Net, Options, Output};
use super::ready::{self, Ready, ReadyWhen, Search};
use super::runc::{self, Container, Exit, Start};
use super::stdio::Pump;
use super::tty::{self, ConsoleSocket, RawTerminal};
use super::{Listening, Outcome, Prepared, not_started, signal_names};
use crate::exit::misused;

/// So many requests to end, and the container is killed: its first process may ignore any of them.
const PATIENCE: usize = 3;

/// What the loop hears of.
enum Event {
    Signal(Signal),
    Ready(Ready),
    /// The port cannot be watched.
    Blind(anyhow::Error),
    Ended(Result<Exit>, Instant),
}

/// Runs what was prepared.
///
/// `signals` are those that came since the run began: one that comes while the container starts is for it.
pub(super) fn run(
    prepared: Prepared,
    (listening, signals): (&Arc<Listening>, Receiver<Signal>),
    options: Options,
    image: &ImageConfiguration,
    on_ready: impl FnOnce(Ready),
) -> Result<Outcome> {
    let stop_signal = stop_signal(image);
    let plan = Plan::of(&options);
    let (events, heard) = channel();
    let (running, started) = start(prepared, options, &events).map_err(not_started)?;
    relay(signals, events.clone()).context("relaying signals")?;
    let ended = watch_end(&running.container, events).context("watching the container")?;
    let mut outcome =
        Supervisor { running: &running, plan, stop_signal, heard, started, listening }.until_end(on_ready);
    if outcome.is_err() {
        // Whatever went wrong: nobody looks after it any more. Gone processes cannot be killed, and need not.
        let _ = running.container.signal(Signal::KILL.as_raw());
    }
    let _ = ended.join(); // its news was heard, or nobody needs it
    running.finish();
    if let Ok(outcome) = &mut outcome {
        tracing::debug!(exit = ?outcome.exit, "the container ended");
    }
    outcome
}

/// What the options say about the end.
struct Plan {
    ready: Option<ReadyWhen>,
    ready_timeout: Option<Duration>,
    exit_when_ready: bool,
    stop_timeout: Duration,
}

impl Plan {
    fn of(options: &Options) -> Self {
        Self {
            ready: options.ready.clone(),
            ready_timeout: options.ready_timeout,
            exit_when_ready: options.exit_when_ready,
            stop_timeout: options.stop_timeout,
        }
    }
}

/// A started container and the threads around it, in the order in which they end.
struct Running {
    container: Container,
    outputs: Vec<Pump>,
    input: Option<Pump>,
    /// Our side of its terminal.
    console: Option<(OwnedFd, RawTerminal)>,
    _prepared: Prepared,
}

impl Running {
    /// Lets the last output through, then removes every trace.
    fn finish(self) {
        let Self { container, outputs, input, console, _prepared } = self;
        drop(input);
        outputs.into_iter().for_each(Pump::finish);
        drop(console);
        drop(container);
    }
}

fn start(prepared: Prepared, options: Options, events: &Sender<Event>) -> Result<(Running, Instant)> {
    if let (Some(ReadyWhen::Port(port)), Net::Host) = (&options.ready, options.net)
        && ready::answers(*port)
    {
        return Err(misused(format!(
            "somebody else already answers on port {port}; nothing could be learned from it"
        )));
    }
    if options.tty {
        start_on_terminal(prepared, options, events)
    } else {
        start_on_pipes(prepared, options, events)
    }
}

fn start_on_pipes(
    prepared: Prepared,
    options: Options,
    events: &Sender<Event>,
) -> Result<(Running, Instant)> {
    let (stdin, feed) = match options.stdin {
        Input::Null => (Stdio::null(), None),
        Input::Pass => pipe_in(io::stdin().as_fd().try_clone_to_owned()?)?,
        Input::From(file) => pipe_in(file)?,
    };
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    let (to_out, to_err) =
        (sink(options.stdout, io::stdout().as_fd())?, sink(options.stderr, io::stderr().as_fd())?);
    let search = searcher(&options.ready, events);
    // Output is looked at from the first byte. Errors wait until the runtime has ended: it repeats there what
    // it wrote to its log when it fails.
    let out = Pump::output(out.into(), to_out, search)?;
    let started = Instant::now();
    let container = launch(&prepared, [stdin, stdout.into(), stderr.into()], None)?;
    let err = Pump::output(err.into(), to_err, |_| {})?;
    let input = feed.map(|(from, to)| Pump::input(from, to)).transpose()?;
    let running = Running { container, outputs: vec![out, err], input, console: None, _prepared: prepared };
    watch_port(&options.ready, options.net, &running.container, events)?;
    Ok((running, started))
}

fn start_on_terminal(
    prepared: Prepared,
    options: Options,
    events: &Sender<Event>,
) -> Result<(Running, Instant)> {
    std::fs::create_dir_all(&options.state)
        .with_context(|| format!("creating {}", options.state.display()))?;
    let socket = ConsoleSocket::bind(options.state.join(format!("{}.tty", prepared.dir.id())))?;
    let started = Instant::now();
    let container = launch(&prepared, [Stdio::null(), Stdio::null(), Stdio::null()], Some(&socket))?;
    let console = socket.receive()?;
    tty::copy_size(&console);
    let raw = RawTerminal::enter()?;
    let search = searcher(&options.ready, events);
    let out = Pump::output(console.try_clone()?, sink(options.stdout, io::stdout().as_fd())?, search)?;
    let input = Pump::input(io::stdin().as_fd().try_clone_to_owned()?, console.try_clone()?)?;
    let running = Running {
        container,
        outputs: vec![out],
        input: Some(input),
        console: Some((console, raw)),
        _prepared: prepared,
    };
    watch_port(&options.ready, options.net, &running.container, events)?;
    Ok((running, started))
}

fn launch(prepared: &Prepared, stdio: [Stdio; 3], console: Option<&ConsoleSocket>) -> Result<Container> {
    let rootfs = prepared.dir.rootfs();
    prepared.runtime.start(Start {
        id: prepared.dir.id(),
        bundle: prepared.dir.path(),
        root: (&prepared.root, &rootfs),
        stdio,
        console: console.map(ConsoleSocket::path),
    })
}

type Feed = Option<(OwnedFd, OwnedFd)>;

fn pipe_in(from: OwnedFd) -> io::Result<(Stdio, Feed)> {
    let (stdin, to) = io::pipe()?;
    Ok((stdin.into(), Some((from, to.into()))))
}

fn sink(output: Output, ours: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match output {
        Output::Pass => ours.try_clone_to_owned(),
        Output::Discard => Ok(File::options().write(true).open("/dev/null")?.into()),
        Output::To(file) => Ok(file),
    }
}

/// Reports the first time the wanted text goes by.
fn searcher(ready: &Option<ReadyWhen>, events: &Sender<Event>) -> impl FnMut(&[u8]) + Send + 'static {
    let mut search = match ready {
        Some(ReadyWhen::Line(text)) => Some(Search::new(text)),
        _ => None,
    };
    let events = events.clone();
    move |bytes| {
        if search.as_mut().is_some_and(|search| search.feed(bytes)) {
            search = None;
            let _ = events.send(Event::Ready(Ready { at: Instant::now() })); // the run may be over
        }
    }
}

fn watch_port(
    ready: &Option<ReadyWhen>,
    net: Net,
    container: &Container,
    events: &Sender<Event>,
) -> Result<()> {
    let Some(ReadyWhen::Port(port)) = *ready else { return Ok(()) };
    let network = match net {
        Net::Host => None,
        Net::None => Some(
            File::open(format!("/proc/{}/ns/net", container.pid().as_raw_nonzero()))
                .context("looking for the container's network")?,
        ),
    };
    let (until, events) = (container.process().try_clone()?, events.clone());
    let watch = move || {
        let event = match ready::wait_for_port(port, network, until.as_fd()) {
            Ok(Some(ready)) => Event::Ready(ready),
            Ok(None) => return,
            Err(error) => Event::Blind(error),
        };
        let _ = events.send(event); // the run may be over
    };
    // Not joined: it ends with the container.
    std::thread::Builder::new().name("port".into()).spawn(watch)?;
    Ok(())
}

/// Ends when nobody listens for signals any more.
fn relay(signals: Receiver<Signal>, events: Sender<Event>) -> io::Result<()> {
    let relay = move || {
        for signal in signals {
            let _ = events.send(Event::Signal(signal)); // after its end there is no container to tell
        }
    };
    std::thread::Builder::new().name("relay".into()).spawn(relay).map(drop)
}

fn watch_end(container: &Container, events: Sender<Event>) -> io::Result<JoinHandle<()>> {
    let process = container.process().try_clone()?;
    std::thread::Builder::new().name("wait".into()).spawn(move || {
        let exit = runc::wait(&process);
        let _ = events.send(Event::Ended(exit, Instant::now())); // the loop may have failed
    })
}

struct Supervisor<'a> {
    running: &'a Running,
    plan: Plan,
    stop_signal: i32,
    heard: Receiver<Event>,
    started: Instant,
    listening: &'a Arc<Listening>,
}

impl Supervisor<'_> {
    fn until_end(self, on_ready: impl FnOnce(Ready)) -> Result<Outcome> {
        let mut on_ready = Some(on_ready);
        let mut ready = None;
        let mut ready_by =
            self.plan.ready_timeout.filter(|_| self.plan.ready.is_some()).map(|time| self.started + time);
        let mut kill_at = None;
        let mut requests = 0;
        loop {
            let deadline = [ready_by, kill_at].into_iter().flatten().min();
            match self.next(deadline) {
                Ok(Event::Signal(signal)) => {
                    requests += usize::from(matches!(signal, Signal::INT | Signal::TERM));
                    self.forward(signal, requests)?;
                }
                Ok(Event::Ready(now)) if ready.is_none() => {
                    ready = Some(now);
                    ready_by = None;
                    on_ready.take().into_iter().for_each(|tell| tell(now));
                    if self.plan.exit_when_ready {
                        self.running.container.signal(self.stop_signal)?;
                        kill_at = Some(Instant::now() + self.plan.stop_timeout);
                    }
                }
                Ok(Event::Ready(_)) => {}
                Ok(Event::Blind(error)) => return Err(error),
                Ok(Event::Ended(exit, ended)) => {
                    let exit = exit?;
                    let stopped = self.plan.exit_when_ready && ready.is_some();
                    if self.plan.ready == Some(ReadyWhen::Exit) {
                        let now = Ready { at: ended };
                        ready = Some(now);
                        on_ready.take().into_iter().for_each(|tell| tell(now));
                    }
                    let (started, listening) = (self.started, Arc::clone(self.listening));
                    return Ok(Outcome { exit, started, ready, ended, stopped, listening });
                }
                Err(Timeout) if ready_by.is_some_and(|by| by <= Instant::now()) => {
                    let time = self.plan.ready_timeout.unwrap_or_default();
                    return Err(anyhow!("the container was not ready after {} s", time.as_secs_f64()));
                }
                Err(Timeout) => {
                    kill_at = None;
                    self.running.container.signal(Signal::KILL.as_raw())?;
                }
            }
        }
    }

    fn next(&self, deadline: Option<Instant>) -> Result<Event, Timeout> {
        let event = match deadline {
            None => self.heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        event.or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(Timeout),
            // Cannot be: the thread that waits for the end holds a sender until it has reported.
            RecvTimeoutError::Disconnected => {
                Ok(Event::Ended(Err(anyhow!("nobody watches the container")), Instant::now()))
            }
        })
    }

    fn forward(&self, signal: Signal, requests: usize) -> Result<()> {
        match (&self.running.console, signal) {
            (Some((console, _)), Signal::WINCH) => tty::copy_size(console),
            (None, Signal::WINCH) => {}
            (_, Signal::INT | Signal::TERM) if requests >= PATIENCE => {
                tracing::warn!("asked {PATIENCE} times to end: killing the container");
                self.running.container.signal(Signal::KILL.as_raw())?;
            }
            (_, signal) => self.running.container.signal(signal.as_raw())?,
        }
        Ok(())
    }
}

struct Timeout;

/// The image's own, or SIGTERM, as Docker does it.
fn stop_signal(image: &ImageConfiguration) -> i32 {
    let named = image.config().as_ref().and_then(|config| config.stop_signal().as_deref());
    named.filter(|name| !name.is_empty()).map_or(Signal::TERM.as_raw(), |name| {
        signal_names::parse(name).unwrap_or_else(|| {
            tracing::warn!(signal = name, "the image's StopSignal is unknown; SIGTERM is used");
            Signal::TERM.as_raw()
        })
    })
}
