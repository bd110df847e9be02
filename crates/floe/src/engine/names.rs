//! The mount of the file system of names: made once, kept over the daemon's end like mounts of images.
//!
//! One file in the runtime directory says where it is and on what terms its device is served. Where nobody can go on serving it, it is
//! taken away and made anew: who asked at that moment gets an errno, and everybody after that an answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, bail};
use mount::fuse::names::{Layers, NameServer};
use mount::fuse::{self, Mounted, Terms, Unanswered};
use mount::keeper::Client;
use serde::{Deserialize, Serialize};

use super::Engine;
use super::points::{is_ours, mount_points};

/// By which name the keeper holds the device.
pub(super) const NAMES: &str = "fuse:names";

const VERSION: u32 = 1;

/// Longest record: a path.
const LIMIT: u64 = 64 << 10;

/// The mount, served by this process.
pub(super) struct NamesMount {
    mounted: Mounted,
    /// Who holds the device; held while that is arranged.
    keeper: Mutex<Weak<Client>>,
}

/// What a successor must know.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    version: u32,
    at: PathBuf,
    terms: Vec<u8>,
}

impl Engine {
    /// Shows layers at a directory, which is made if there is none; goes on with what an earlier daemon has left there.
    pub(crate) fn show_names(&self, at: &Path, layers: &Arc<dyn Layers>) -> anyhow::Result<()> {
        if let Err(why) = fuse::available() {
            return Err(anyhow::Error::new(why).context("looking for FUSE"));
        }
        // By the name that the kernel has for it. The mount itself is not asked: nobody answers for it, also not us.
        let at = &resolved(at).with_context(|| format!("looking at {}", at.display()))?;
        let resumed = self.resume_names(at, layers).unwrap_or_else(|error| {
            tracing::warn!(at = %at.display(), "the names of layers are shown anew: {error:#}");
            None
        });
        let mounted = match resumed {
            Some(mounted) => mounted,
            None => {
                self.take_names_away()?;
                detach(at)?; // of which there is no note
                std::fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
                let made = NameServer::new(layers.clone()).mount(at);
                made.with_context(|| format!("showing layers at {}", at.display()))?
            }
        };
        let terms = mounted.terms().to_bytes().to_vec();
        let noted = Noted { version: VERSION, at: at.to_owned(), terms };
        noted.write(&self.names_file()?).context("noting where layers are shown")?;
        *self.names() = Some(NamesMount { mounted, keeper: Mutex::default() });
        if !self.rearm_names() {
            tracing::warn!("nobody keeps the names of layers should the daemon die");
        }
        Ok(())
    }

    /// Goes on with the mount of an earlier daemon, if there is one at this place that can be gone on with.
    fn resume_names(&self, at: &Path, layers: &Arc<dyn Layers>) -> anyhow::Result<Option<Mounted>> {
        let Some(noted) = Noted::read(&self.names_file()?)?.filter(|noted| noted.at == at) else {
            return Ok(None);
        };
        let there = mount_points()?.iter().any(|point| point.path == at && is_ours(point));
        if !there {
            return Ok(None);
        }
        let terms = Terms::from_bytes(&noted.terms).context("a program of another version made it")?;
        let device = self.keeping.connection()?.client.fetch(NAMES)?;
        match NameServer::new(layers.clone()).resume(device, terms, at)? {
            (mounted, Unanswered::Resent | Unanswered::None) => Ok(Some(mounted)),
            (mounted, Unanswered::Lost { at_most }) => {
                drop(mounted); // who asked would wait for ever
                bail!("who asked ({at_most:?} at most) cannot be asked again (Linux 6.9)")
            }
        }
    }

    /// Takes away what an earlier daemon has left and nobody serves.
    pub(crate) fn take_names_away(&self) -> anyhow::Result<()> {
        let file = self.names_file()?;
        if let Some(connection) = self.keeping.current() {
            let _ = connection.client.release(NAMES); // it may hold none
        }
        let Some(noted) = Noted::read(&file)? else { return Ok(()) };
        detach(&noted.at)?;
        std::fs::remove_file(&file).context("forgetting where layers were shown")
    }

    /// Has the keeper that runs now hold the device, unless it does; says whether it does.
    pub(super) fn rearm_names(&self) -> bool {
        let names = self.names();
        let Some(NamesMount { mounted, keeper }) = &*names else { return true };
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let held = (|| {
            let connection = self.keeping.connection()?;
            if !std::ptr::eq(keeper.as_ptr(), Arc::as_ptr(&connection.client)) {
                if !connection.held.iter().any(|name| name == NAMES) {
                    connection.client.keep(NAMES, mounted.device().context("sharing the FUSE device")?)?;
                }
                *keeper = Arc::downgrade(&connection.client);
            }
            anyhow::Ok(())
        })();
        held.inspect_err(|error| tracing::warn!("keeping the names of layers: {error:#}")).is_ok()
    }

    /// Shows layers no more; where there will be a successor it goes on from here.
    pub(crate) fn end_names(&self) {
        let Some(mut names) = self.names().take() else { return };
        if self.leaving.load(Ordering::Relaxed) {
            match names.mounted.leave() {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!("leaving the names of layers: {:#}", anyhow::Error::new(error));
                }
            }
        }
        drop(names);
        if let Err(error) = self.take_names_away() {
            tracing::warn!("{error:#}");
        }
    }

    fn names(&self) -> MutexGuard<'_, Option<NamesMount>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names_file(&self) -> anyhow::Result<PathBuf> {
        Ok(crate::daemon::run_dir(self.root())?.join("names.json"))
    }
}

/// Takes away where layers were shown by the daemon of a runtime directory that has gone for good, and the keeper that holds
/// it, so that who asks there gets an errno.
pub(crate) fn clear(run: &Path) -> anyhow::Result<()> {
    let file = run.join("names.json");
    let Some(noted) = Noted::read(&file)? else { return Ok(()) };
    detach(&noted.at)?;
    mount::keeper::end(&run.join("keeper.sock")).context("ending the keeper")?;
    std::fs::remove_file(&file).context("forgetting where layers were shown")
}

/// Takes away what is mounted of ours at a directory.
fn detach(at: &Path) -> anyhow::Result<()> {
    let points = mount_points()?;
    for point in points.iter().filter(|point| point.path == at && is_ours(point)) {
        fuse::detach(&point.path).with_context(|| format!("taking away {}", point.path.display()))?;
    }
    Ok(())
}

/// Returns a directory without the symbolic links on the way to it.
fn resolved(dir: &Path) -> std::io::Result<PathBuf> {
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) => {
            std::fs::create_dir_all(parent)?;
            Ok(parent.canonicalize()?.join(name))
        }
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

impl Noted {
    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        Ok(std::fs::rename(new, file)?)
    }

    /// Reads it; one that makes no sense says nothing.
    fn read(file: &Path) -> anyhow::Result<Option<Self>> {
        let len = match std::fs::metadata(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata.context("looking for the names of layers")?.len(),
        };
        if len > LIMIT {
            return Ok(None);
        }
        let noted: Option<Self> = serde_json::from_slice(&std::fs::read(file)?).ok();
        Ok(noted.filter(|noted| noted.version == VERSION))
    }
}
