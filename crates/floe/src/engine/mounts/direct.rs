//! Mounts of an ordinary user: binds need privileges, so each directory of the user's has a FUSE mount of its own.
//!
//! The place of such a mount among the daemon's own is a link to the user's directory, by which the next daemon, or
//! whoever clears up, can tell.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use anyhow::Context;
use rustix::thread::CapabilitySet;

use super::{Bind, LiveMount, Mounts, ReadPath, Recipe, in_use, vacated};

/// Says whether this process may mount as root does.
pub(super) fn is_privileged() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

impl Mounts {
    /// Mounts an image at a directory of the user's.
    pub(in crate::engine) fn show(
        &self,
        wanted: ReadPath,
        recipe: Recipe,
        dir: &Path,
        reference: &str,
    ) -> anyhow::Result<()> {
        if is_privileged() {
            return self.bind(self.live(wanted, recipe)?, dir, reference);
        }
        let _gone; // outlives the locks
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mut binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        _gone = vacated(&mut binds, dir)?;
        let path = self.choose(wanted, &recipe)?;
        let key = recipe.key;
        let name = self.fresh_name(key)?;
        let link = self.shop.mnt.join(&name);
        let linked = std::fs::remove_dir(&link).and_then(|()| symlink(dir, &link));
        linked.with_context(|| format!("linking {}", link.display()))?;
        let made = LiveMount::make(&self.shop, &name, path, recipe);
        let mount = made.inspect_err(|_| drop(std::fs::remove_file(&link)))?;
        live.entry(key).or_default().push(Arc::downgrade(&mount));
        mount.binds(|binds| binds.push(dir.to_owned()));
        binds.insert(dir.to_owned(), Bind { live: mount, reference: reference.to_owned() });
        Ok(())
    }
}

/// Says whether a mount is at a directory of the user's itself.
pub(super) fn is_direct(mount: &LiveMount) -> bool {
    mount.dir().is_symlink()
}

/// Returns where a mount with this place among the daemon's own really is.
pub(in crate::engine) fn place(dir: &Path) -> PathBuf {
    std::fs::read_link(dir).unwrap_or_else(|_| dir.to_owned())
}

/// Forgets the links, and the empty directories, that a daemon before us has left and nothing is known of; what it mounted at a
/// link is the user's to take away. One of a mount that is still there stays.
pub(super) fn sweep(place: &Path, known: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(&known) {
            continue;
        }
        // It only takes a name that another mount may have. Whoever is mounted there is not asked.
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => std::fs::remove_file(entry.path()),
            _ => std::fs::remove_dir(entry.path()),
        };
    }
}

/// Forgets where such a mount is; it ends when it is dropped.
pub(super) fn forget(mount: &LiveMount) {
    let _ = std::fs::remove_file(mount.dir()); // swept by the next daemon
}

/// Takes such a mount away, unless somebody uses it.
pub(super) fn end(bind: &Bind, dir: &Path) -> anyhow::Result<()> {
    match mount::fuse::unmount(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => return Err(in_use(dir)),
        // By hand, and then there is nothing there.
        Err(_) if !super::is_mounted(dir) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {}", dir.display())),
    }
    forget(&bind.live);
    Ok(())
}
