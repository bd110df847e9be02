//! Commands about images and mounts whose work the daemon does.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::bail;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Session, out, show, user_image, user_path};
use crate::cli;
use crate::daemon::client::Client;
use crate::daemon::protocol::{Call, Freed, Indexed, Mounted, Pinned};
use crate::engine::report::{ImageReport, MountTrace};
use crate::exit::{Code, Hint, misused};
use crate::snapshotter::register::{ADDRESS, Target};

pub(super) fn mount(session: &Session, args: cli::Mount) -> anyhow::Result<Code> {
    let dir = args.dir.canonicalize().map_err(|error| {
        let what = format!("looking at {}", args.dir.display());
        match error.kind() {
            ErrorKind::NotFound => {
                let hint = format!("mkdir -p {}", args.dir.display());
                anyhow::Error::new(error).context(Hint::new(what, hint))
            }
            _ => anyhow::Error::new(error).context(what),
        }
    })?;
    let background = !args.no_background && session.config.fetch.background;
    let mounted: Mounted =
        session.ask(Call::Mount { image: user_image(args.image), dir, path: args.path, background })?;
    session.print(&mounted, |m| format!("{}\n", m.dir.display()))?;
    Ok(Code::Done)
}

pub(super) fn umount(session: &Session, dir: &Path) -> anyhow::Result<Code> {
    // As `mount` took it, links and all. What is gone, or answers nothing any more, is looked for by the name given.
    let dir = dir.canonicalize().or_else(|_| user_path(dir))?;
    let running = Client::connect_running(&session.address)?;
    let run = crate::daemon::run_dir(&session.address.root)?;
    let client = match running {
        None if crate::engine::mounts::is_left(&run, &dir) => Some(Client::connect(&session.address)?),
        running => running,
    };
    if let Some(mut client) = client {
        let talk = crate::talk::Talk::stderr();
        let () = client.call(Call::Umount { dir }, &mut |event| talk.hear(event))?;
    } else {
        // Nobody knows of it: it fails every access and only has to be taken away.
        crate::engine::mounts::detach_leftover(&dir)?;
    }
    Ok(Code::Done)
}

pub(super) fn pull(session: &Session, args: cli::Pull) -> anyhow::Result<Code> {
    let to = args.to.as_deref().map(|to| containerd(to, args.blobs)).transpose()?;
    let report: ImageReport = session.ask(Call::Pull { image: user_image(args.image), to })?;
    session.print(&report, show::image)?;
    Ok(Code::Done)
}

/// Returns the containerd that `--to` names, which is to have the layers' blobs or not.
fn containerd(to: &str, blobs: bool) -> anyhow::Result<Target> {
    let address = match to.strip_prefix("containerd") {
        Some("") => None,
        Some(rest) if rest.starts_with("=/") => Some(rest[1..].to_owned()),
        _ => bail!(misused(format!(
            "--to {to}: only containerd and containerd=/path/to/its.sock are understood"
        ))),
    };
    let or = |name, usual: &str| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| usual.to_owned())
    };
    Ok(Target {
        address: address.unwrap_or_else(|| or("CONTAINERD_ADDRESS", ADDRESS)).into(),
        namespace: or("CONTAINERD_NAMESPACE", "default"),
        snapshotter: or("CONTAINERD_SNAPSHOTTER", "floe"),
        blobs,
    })
}

pub(super) fn index(session: &Session, args: cli::Index) -> anyhow::Result<Code> {
    let paths = [args.out, args.sign].map(|path| path.as_deref().map(user_path).transpose());
    let [out, sign] = paths;
    let profile = match args.profile {
        Some(path) if path != Path::new("recorded") => Some(user_path(&path)?),
        recorded => recorded,
    };
    let call =
        Call::Index { image: user_image(args.image), push: args.push, out: out?, sign: sign?, profile };
    let indexed: Indexed = session.ask(call)?;
    session.print(&indexed, |indexed| {
        let mut text = show::image(&indexed.report);
        let all = indexed.report.compressed().max(1);
        #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
        let share = indexed.bytes as f64 * 100.0 / all as f64;
        let _ = writeln!(text, "  index    {} ({share:.2} % of the layers)", show::bytes(indexed.bytes)); // to a String
        if let Some(artifact) = &indexed.artifact {
            let _ = writeln!(text, "  artifact {artifact}");
        }
        text
    })?;
    Ok(Code::Done)
}

pub(super) fn verify(session: &Session, image: String, rebuild: bool) -> anyhow::Result<Code> {
    let report: ImageReport = session.ask(Call::Verify { image: user_image(image), rebuild })?;
    session.print(&report, show::image)?;
    Ok(Code::Done)
}

pub(super) fn rm(session: &Session, image: String) -> anyhow::Result<Code> {
    let () = session.ask(Call::Rm { image: user_image(image) })?;
    Ok(Code::Done)
}

pub(super) fn pin(session: &Session, image: String, remove: bool) -> anyhow::Result<Code> {
    let image = user_image(image);
    let () = session.ask(if remove { Call::Unpin { image } } else { Call::Pin { image } })?;
    Ok(Code::Done)
}

pub(super) fn pinned(session: &Session) -> anyhow::Result<Code> {
    let pinned: Pinned = session.ask(Call::Pinned)?;
    session.print(&pinned, |pinned| pinned.images.iter().map(|image| format!("{image}\n")).collect())?;
    Ok(Code::Done)
}

pub(super) fn gc(session: &Session, dry_run: bool) -> anyhow::Result<Code> {
    let freed: Freed = session.ask(Call::Gc { dry_run })?;
    session.print(&freed, |freed| {
        let mut text = String::new();
        for (what, size) in &freed.items {
            let _ = writeln!(text, "{:>10}  {what}", show::bytes(*size)); // to a String: cannot fail
        }
        let verb = if dry_run { "would free" } else { "freed" };
        let _ = writeln!(text, "{verb} {}", show::bytes(freed.items.iter().map(|item| item.1).sum()));
        text
    })?;
    Ok(Code::Done)
}

pub(super) fn status(session: &Session) -> anyhow::Result<Code> {
    look(session, Call::Status, show::status)
}

pub(super) fn trace(session: &Session, what: Option<String>) -> anyhow::Result<Code> {
    // A directory as the daemon knows it, which works in another one.
    let here = |what: String| match Path::new(&what).is_dir() {
        true => user_path(Path::new(&what)).map(|dir| dir.display().to_string()),
        false => Ok(user_image(what)),
    };
    let of = what.map(here).transpose()?;
    look(session, Call::Trace { of }, |traces: &Vec<MountTrace>| show::traces(traces))
}

/// Asks a daemon that runs, or is needed; where none is, there is nothing to see.
fn look<T: DeserializeOwned + Serialize + Default>(
    session: &Session,
    call: Call,
    show: impl Fn(&T) -> String,
) -> anyhow::Result<Code> {
    let running = match Client::connect_running(&session.address)? {
        // Somebody may want to read there, and there is nobody to serve.
        None if crate::engine::mounts::are_left(&crate::daemon::run_dir(&session.address.root)?) => {
            Some(Client::connect(&session.address)?)
        }
        running => running,
    };
    let Some(mut client) = running else {
        let hint = Hint::new("no daemon runs for this store", "any command that needs one starts it");
        return match session.output {
            cli::Output::Json => session.print(&T::default(), show).map(|()| Code::Done),
            cli::Output::Human => out(format!("{hint}\n").as_bytes()).map(|()| Code::Done),
        };
    };
    let seen: T = client.call(call, &mut |_| ())?;
    session.print(&seen, show)?;
    Ok(Code::Done)
}
