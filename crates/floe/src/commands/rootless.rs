//! `floe run` of an ordinary user: a container whose root is that user.
//!
//! This process enters a user namespace of its own, where the user is root, and a mount table of its own. There it
//! mounts the image by FUSE and serves it itself, for a mount made outside would show files of nobody's; segments come
//! from the user's daemon, which stays outside. Everything made here is gone with this process and its container.
//!
//! There is one user inside, root. An image that runs as another needs ranges of subordinate ids, which this does not
//! use. The daemon does not learn what a start reads.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use format::IndexId;
use format::erofs::read::Image;
use mount::fuse::{self, Server};
use store::{ReadError, SegmentFile, Segments};
use sys::map::Map;

use super::{Session, user_image};
use crate::cli;
use crate::daemon::client::{Address, Client};
use crate::daemon::protocol::{Call, Opened, Segment};
use crate::engine::mounts::ReadPath;
use crate::exit::{Code, Coded, Hint, misused};
use crate::run;
use crate::talk::Talk;

pub(super) fn run(session: &Session, args: cli::Run) -> anyhow::Result<Code> {
    if matches!(args.path, Some(ReadPath::Erofs | ReadPath::Plain)) {
        return Err(misused(format!("--path {}: only root can", args.path.unwrap_or_default())));
    }
    let options = super::run::options(session, &args)?;
    let image = user_image(args.image);
    let not_started = || Coded::new(Code::NotStarted, format!("running {image}"));
    let at = crate::daemon::run_dir(&session.address.root)?.join("mnt");
    if let Err(why) = fuse::available() {
        let hint = "let this user open /dev/fuse (chmod 666 /dev/fuse); floe doctor says more";
        return Err(anyhow::Error::new(why))
            .context(Hint::new("looking for FUSE", hint))
            .with_context(not_started);
    }
    // The daemon must not live in the namespace of one container; and only a process of one thread can enter one.
    let mut client = Client::connect(&session.address).with_context(not_started)?;
    crate::home::become_root().map_err(|error| {
        let hint = "let users have user namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0, as far as they are there; or sudo floe run …";
        anyhow::Error::new(error).context(Hint::new("becoming root of a user namespace", hint)).context(not_started())
    })?;
    let opened: Opened = {
        let talk = Talk::stderr();
        let call = Call::Open { image: image.clone() };
        client.call(call, &mut |event| talk.hear(event)).with_context(not_started)?
    };
    let config = serde_json::from_str(&opened.config)
        .context("parsing the image's config")
        .with_context(not_started)?;
    let served = serve(session, &opened, &at).with_context(not_started)?;
    let outcome = run::run(&at, &config, options, |_| ())?;
    drop(served);
    // Until here the image was in use.
    drop(client);
    if args.timings.is_some() {
        super::run::eprint("floe: no timings: only root's runs have them\n");
    }
    let code = Code::Container(outcome.code());
    std::mem::forget(outcome.listening); // as in any run
    Ok(code)
}

fn serve(session: &Session, opened: &Opened, at: &std::path::Path) -> anyhow::Result<fuse::Mounted> {
    let what = || format!("reading the metadata image {}", opened.meta.display());
    let file = File::open(&opened.meta).with_context(what)?;
    let image = Image::open(Map::of(&file).with_context(what)?).with_context(what)?;
    let options = fuse::Options { deadline: session.config.fetch.deadline(), ..Default::default() };
    let segments = Arc::new(Through { address: session.address.clone(), whole: Mutex::default() });
    let mounted = Server::new(Arc::new(image), segments).with(options).mount(at);
    mounted.with_context(|| format!("mounting at {}", at.display()))
}

/// Segments by way of the daemon.
struct Through {
    address: Address,
    /// The files of those that are known to be whole. Held for a look only.
    whole: Mutex<HashMap<(IndexId, u32), PathBuf>>,
}

impl Through {
    fn ask(&self, index: IndexId, number: u32) -> anyhow::Result<PathBuf> {
        let client = Client::connect_running(&self.address)?;
        let mut client = client.context("the daemon has ended")?;
        let segment: Segment = client.call(Call::Segment { index, number }, &mut |_| ())?;
        Ok(segment.file)
    }
}

impl Segments for Through {
    fn local(&self, index: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let path = whole.get(&(index, segment))?.clone();
        drop(whole);
        let file = File::open(path).ok()?;
        let len = file.metadata().ok()?.len();
        Some(Arc::new(SegmentFile::new(file, len)))
    }

    fn fetch(&self, index: IndexId, segment: u32, _: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        let path = self.ask(index, segment).map_err(|error| {
            tracing::warn!(%index, segment, "asking the daemon: {error:#}");
            ReadError::Internal
        })?;
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).insert((index, segment), path);
        self.local(index, segment).ok_or(ReadError::Unknown { index, segment })
    }

    fn hint(&self, _: IndexId, _: Range<u32>) {}
}
