//! `floe run`: the daemon mounts the image, this process puts a container on it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Session, show, user_image};
use crate::cli::{self, Output};
use crate::daemon::client::Client;
use crate::daemon::protocol::{self, Call, Learned, Lesson, Mounted, Ready, Request, Told};
use crate::engine::mounts::ReadPath;
use crate::engine::profile::{Profile, with_files_read};
use crate::engine::report::Timings;
use crate::exit::{Code, Coded, misused};
use crate::run::{self, Net, Options, ReadyWhen, Volume};
use crate::talk::Talk;

pub(super) fn run(session: &Session, args: cli::Run) -> anyhow::Result<Code> {
    let options = options(session, &args)?;
    let background = !args.no_background && session.config.fetch.background;
    let started = start(session, user_image(args.image), args.path, background, options)?;
    if let (Some(place), Some(timings)) = (&args.timings, &started.timings) {
        tell_timings(session.output, timings, place);
    }
    // Whoever asks again and again may still be at it when the container has ended: it is its code that counts.
    std::mem::forget(started.listening);
    Ok(started.code)
}

/// Never on stdout, which is the container's; and never instead of its exit code, for it has run.
fn tell_timings(output: Output, timings: &Timings, place: &Path) {
    let text = match output {
        Output::Human => Ok(show::timings(timings)),
        Output::Json => serde_json::to_string_pretty(timings).map(|text| text + "\n").context("writing JSON"),
    };
    let told = text.and_then(|text| {
        if place == Path::new("-") {
            eprint(&text);
            return Ok(());
        }
        std::fs::write(place, text).with_context(|| format!("writing {}", place.display()))
    });
    if let Err(error) = told {
        eprint(&format!("floe: no timings: {error:#}\n"));
    }
}

/// Longest that a container which has ended waits for what is told of it: looking which files were read takes ten seconds at most.
const TOLD: Duration = Duration::from_secs(15);

/// How a run went.
pub(crate) struct Started {
    pub(crate) code: Code,
    /// Nothing if the daemon did not live to tell.
    pub(crate) timings: Option<Timings>,
    /// When the container became ready, if it did.
    pub(crate) ready: Option<Instant>,
    /// Signals that come while it lives end nothing.
    listening: Arc<run::Listening>,
}

/// Runs a container and tells where the time until it was ready went.
pub(crate) fn start(
    session: &Session,
    image: String,
    path: Option<ReadPath>,
    background: bool,
    options: Options,
) -> anyhow::Result<Started> {
    let not_started = || Coded::new(Code::NotStarted, format!("running {image}"));
    let mut client = Client::connect(&session.address).with_context(not_started)?;
    let mounted: Mounted = {
        let talk = Talk::stderr();
        let call = Call::Hold { image: image.clone(), path, background };
        client.send(&Request { version: protocol::VERSION, call }).with_context(not_started)?;
        client.reply(&mut |event| talk.hear(event)).with_context(not_started)?
    };
    let config = serde_json::from_str(&mounted.config)
        .context("parsing the image's config")
        .with_context(not_started)?;

    let from = Instant::now();
    let (dir, mut moment) = (mounted.dir.clone(), None);
    // Beside the container: signals are passed on meanwhile.
    let (say, said) = std::sync::mpsc::channel();
    let (tell_on, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let ready = said.recv().unwrap_or_else(|_| Ready { running: from.elapsed(), record: false });
        let timings = tell(&mut client, &dir, &ready);
        let _ = tell_on.send((client, timings)); // nobody waits any more
    });
    let outcome = run::run(&mounted.dir, &config, options, |ready| {
        moment = Some(ready.at);
        let running = ready.at.saturating_duration_since(from);
        let _ = say.send(Ready { running, record: true }); // it has not ended without
    });
    // A container that ended before it was ready is told as well, but it is no example for the next start.
    drop(say);
    let told = told.recv_timeout(TOLD);
    let outcome = outcome?;
    // The container has run: whatever became of the daemon, its exit code is what counts.
    let (client, timings) = told.map_or_else(
        |_| (None, Err(anyhow::anyhow!("the daemon, or the mount, does not answer"))),
        |(client, timings)| (Some(client), timings),
    );
    let timings = timings.inspect_err(|error| eprint(&format!("floe: no timings: {error:#}\n"))).ok();
    // The connection is the hold on the mount: it lives until the container has ended.
    drop(client);
    let code = Code::Container(outcome.code());
    Ok(Started { code, timings, ready: moment, listening: outcome.listening })
}

fn tell(client: &mut Client, dir: &Path, ready: &Ready) -> anyhow::Result<Timings> {
    client.send(ready)?;
    let Told { timings, lesson } = client.reply(&mut |_| ())?;
    if let Some(lesson) = lesson
        && let Err(error) = learn(client, dir, &lesson)
    {
        eprint(&format!("floe: which files the start has read is not known: {error:#}\n"));
    }
    Ok(timings)
}

/// Looks which files a start has read, and has them kept.
fn learn(client: &mut Client, dir: &Path, lesson: &Lesson) -> anyhow::Result<()> {
    let profile = Profile::parse(lesson.profile.as_bytes())?;
    let profile = with_files_read(profile, &lesson.meta, dir)?;
    client.send(&Learned { profile: String::from_utf8(profile.to_json()?)? })?;
    client.reply(&mut |_| ())
}

pub(super) fn options(session: &Session, args: &cli::Run) -> anyhow::Result<Options> {
    let mut options = Options::new(&session.address.root);
    options.runtime.clone_from(&args.runtime);
    options.args.clone_from(&args.command);
    options.env.clone_from(&args.env);
    options.net = match args.net {
        cli::Net::Host => Net::Host,
        cli::Net::None => Net::None,
    };
    options.volumes =
        args.volumes.iter().map(|text| text.parse::<Volume>()).collect::<Result<_, _>>().map_err(misused)?;
    options.ready =
        Some(args.ready.parse::<ReadyWhen>().map_err(|error| misused(format!("--ready: {error}")))?);
    options.exit_when_ready = args.exit_when_ready;
    Ok(options)
}

pub(super) fn eprint(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes()); // talk: a closed stderr is not our failure
}
