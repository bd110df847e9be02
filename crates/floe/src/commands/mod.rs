//! What each command does on the side of the user: asks the daemon, shows the answer.

mod browse;
mod compare;
mod convert;
mod copy;
mod dedup;
mod doctor;
mod manage;
mod optimize;
mod rootless;
pub(crate) mod run;
pub(crate) mod serve;
mod show;
mod transfer;

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::cli::{Cli, Command, Output};
use crate::config::Config;
use crate::daemon::client::{Address, Client};
use crate::daemon::protocol::Call;
use crate::exit::Code;
use crate::talk::Talk;

/// What every command knows.
pub(crate) struct Session {
    pub(crate) address: Address,
    pub(crate) output: Output,
    pub(crate) config: Config,
}

impl Session {
    /// Asks the daemon of the store, starting it if need be; shows progress.
    pub(crate) fn ask<R: DeserializeOwned>(&self, call: Call) -> anyhow::Result<R> {
        let talk = Talk::stderr();
        Client::connect(&self.address)?.call(call, &mut |event| talk.hear(event))
    }

    /// Prints a result: JSON as it is, or what `human` makes of it.
    pub(crate) fn print<T: serde::Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        print(self.output, value, human)
    }
}

/// Prints a result: JSON as it is, or what `human` makes of it.
fn print<T: serde::Serialize>(
    output: Output,
    value: &T,
    human: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match output {
        Output::Json => serde_json::to_string_pretty(value).context("writing JSON")? + "\n",
        Output::Human => human(value),
    };
    out(text.as_bytes())
}

/// Writes to stdout; a reader that has had enough (`floe ls | head`) is no failure.
pub(crate) fn out(bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("writing to stdout"),
    }
}

/// Runs the command that was typed.
pub fn dispatch(cli: Cli) -> anyhow::Result<Code> {
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("resolving {}", path.display()));
    let root = cli.root.as_deref().map_or_else(crate::home::store, absolute)?;
    let file = cli.config.as_deref().map(absolute).transpose()?;
    let address = Address { root, config: file };
    if let Command::Doctor(args) = cli.command {
        return doctor::doctor(address, cli.output, args);
    }
    let config = Config::load(cli.config.as_deref())
        .context(crate::exit::Coded::new(Code::Misused, "reading the configuration"))?;
    let session = Session { address, output: cli.output, config };

    match cli.command {
        Command::Run(args) if !rustix::process::geteuid().is_root() => rootless::run(&session, args),
        Command::Run(args) => run::run(&session, args),
        Command::Mount(args) => manage::mount(&session, args),
        Command::Umount { dir } => manage::umount(&session, &dir),
        Command::Pull(args) => manage::pull(&session, args),
        Command::Copy { from, to } => copy::copy(&session, &from, &to),
        Command::Convert(args) => convert::convert(&session, &args),
        Command::Optimize(args) => optimize::optimize(&session, &args),
        Command::Index(args) => manage::index(&session, args),
        Command::Verify { image, rebuild } => manage::verify(&session, image, rebuild),
        Command::Rm { image } => manage::rm(&session, image),
        Command::Pin { image: Some(image), remove } => manage::pin(&session, image, remove),
        Command::Pin { image: None, .. } => manage::pinned(&session),
        Command::Gc { dry_run } => manage::gc(&session, dry_run),
        Command::Status => manage::status(&session),
        Command::Trace { what } => manage::trace(&session, what),
        Command::Inspect { image } => browse::inspect(&session, image),
        Command::Ls { image, path } => browse::ls(&session, image, &path),
        Command::Cat { image, path } => browse::cat(&session, image, &path),
        Command::Diff { from, to } => compare::diff(&session, from, to),
        Command::Check { from, to } => compare::check(&session, from, to),
        Command::Dedup { estimate: _, images, chart } => dedup::estimate(&session, images, chart.as_deref()),
        Command::Registry { dir, listen, rate } => serve::registry(&dir, listen, rate),
        Command::Daemon(args) => serve::daemon(&session, args),
        Command::Install => crate::install::install(&session),
        Command::Uninstall { force } => crate::install::uninstall(&session, force),
        Command::Keeper => serve::keeper(&session),
        Command::Doctor(args) => doctor::doctor(session.address, session.output, args),
        Command::Demo(args) => serve::demo(&session, &args),
        Command::Man { dir } => {
            let pages = || {
                std::fs::create_dir_all(&dir)?;
                clap_mangen::generate_to(<Cli as clap::CommandFactory>::command(), &dir)
            };
            pages().with_context(|| format!("writing manual pages into {}", dir.display()))?;
            Ok(Code::Done)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut <Cli as clap::CommandFactory>::command(),
                "floe",
                &mut script,
            );
            out(&script)?;
            Ok(Code::Done)
        }
    }
}

/// Names a file of the user's in full: the daemon works in another directory.
pub(crate) fn user_path(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))
}

/// Completes references to local files (`oci:dir`), for the same reason.
pub(crate) fn user_image(image: String) -> String {
    if image.parse::<registry::Reference>().is_ok_and(|reference| reference.is_standard()) {
        return image; // the command's own, which the daemon has not: it says so
    }
    for scheme in ["oci:", "oci-archive:", "docker-archive:", "dir:"] {
        if let Some(rest) = image.strip_prefix(scheme)
            && let (false, Ok(here)) = (rest.starts_with('/'), std::env::current_dir())
        {
            return format!("{scheme}{}/{rest}", here.display());
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::user_image;

    #[test]
    fn local_files_are_named_in_full_and_standard_input_stays() {
        for text in [
            "oci-archive:-",
            "docker-archive:-:app:v1",
            "oci:/a:v1",
            "dir:/a",
            "nginx",
            "docker://a.example/b",
        ] {
            assert_eq!(user_image(text.into()), text);
        }
        let here = std::env::current_dir().unwrap_or_default();
        for (scheme, rest) in
            [("oci", "-"), ("dir", "-"), ("docker-archive", "a.tar:app:v1"), ("oci-archive", "a.tar")]
        {
            let full = format!("{scheme}:{}/{rest}", here.display());
            assert_eq!(user_image(format!("{scheme}:{rest}")), full);
        }
    }
}
