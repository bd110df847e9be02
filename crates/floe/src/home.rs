//! Where the store and the sockets are, for root and for ordinary users.
//!
//! An ordinary user has a store, a daemon and mounts of their own. What has no place by the XDG base directory
//! specification is in a directory below `/tmp` that nobody else may enter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context;

use crate::exit::{Hint, misused};

/// Root's store.
pub const STORE: &str = "/var/lib/floe";

/// Where root's sockets and mount points are.
const RUN: &str = "/run/floe";

/// Returns the store of whoever runs this.
pub fn store() -> anyhow::Result<PathBuf> {
    store_of(uid(), |name| std::env::var_os(name).map(PathBuf::from))
}

fn store_of(uid: u32, variable: impl Fn(&str) -> Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if uid == 0 {
        return Ok(STORE.into());
    }
    let absolute = |name| variable(name).filter(|dir| dir.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    data.map(|dir| dir.join("floe")).ok_or_else(|| {
        misused("neither HOME nor XDG_DATA_HOME names a directory")
            .context(Hint::new("looking for this user's store", "name one with --root DIR"))
    })
}

/// Returns where sockets and mount points of all stores of whoever runs this are.
pub fn run() -> PathBuf {
    // Once: in a user namespace files seem to be another's.
    static RUN_OF_OURS: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        run_of(uid(), named, |dir| is_private(dir, uid()).is_ok())
    };
    RUN_OF_OURS.get_or_init(find).clone()
}

/// Makes this process, which must have one thread, root of a user namespace of its own.
pub fn become_root() -> io::Result<()> {
    let _ = (run(), uid()); // as they are outside
    sys::namespace::own_users()
}

/// Says whether this process has become root in that way.
pub fn is_inside() -> bool {
    uid() != rustix::process::geteuid().as_raw()
}

fn run_of(uid: u32, named: Option<PathBuf>, usable: impl Fn(&Path) -> bool) -> PathBuf {
    if uid == 0 {
        return RUN.into();
    }
    // Also where nobody has set the variable, as with `su`: all commands must find the one daemon.
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    let found = named.into_iter().chain([usual]).find(|dir| dir.is_absolute() && usable(dir));
    found.map_or_else(|| format!("/tmp/floe-{uid}").into(), |dir| dir.join("floe"))
}

/// Makes a directory below [`run`], where it is not there; for an ordinary user nobody else may have made it.
pub fn make_run(dir: &Path) -> anyhow::Result<()> {
    make(&run(), dir, uid()).with_context(|| format!("making {}", dir.display()))
}

fn make(run: &Path, dir: &Path, uid: u32) -> io::Result<()> {
    if uid == 0 {
        return fs::create_dir_all(dir);
    }
    match DirBuilder::new().mode(0o700).create(run) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => is_private(run, uid)?,
    }
    fs::create_dir_all(dir)
}

/// Says whether a directory is this user's, and nobody else can write there.
fn is_private(dir: &Path, uid: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(dir)?;
    if found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let why = format!("{} is not a directory that only user {uid} can write to", dir.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Returns who started this process.
fn uid() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn stores_are_where_users_keep_data() {
        let store = |uid, xdg: Option<&str>, home: Option<&str>| {
            store_of(uid, |name| if name == "HOME" { home } else { xdg }.map(PathBuf::from)).ok()
        };
        assert_eq!(store(0, Some("/x"), Some("/h")), Some("/var/lib/floe".into()));
        assert_eq!(store(7, Some("/x"), Some("/h")), Some("/x/floe".into()));
        assert_eq!(store(7, None, Some("/h")), Some("/h/.local/share/floe".into()));
        assert_eq!(store(7, Some("x"), Some("/h")), Some("/h/.local/share/floe".into()));
        assert_eq!(store(7, None, None), None);
    }

    #[test]
    fn sockets_are_where_nobody_else_is() {
        let run = |uid, named: Option<&str>, usable: &[&str]| {
            run_of(uid, named.map(PathBuf::from), |dir| usable.iter().any(|good| dir == Path::new(good)))
        };
        assert_eq!(run(0, Some("/x"), &["/x"]), Path::new("/run/floe"));
        assert_eq!(run(7, Some("/x"), &["/x"]), Path::new("/x/floe"));
        assert_eq!(run(7, Some("/x"), &["/run/user/7"]), Path::new("/run/user/7/floe"));
        assert_eq!(run(7, None, &["/run/user/7"]), Path::new("/run/user/7/floe"));
        assert_eq!(run(7, Some("x"), &["x"]), Path::new("/tmp/floe-7"));
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (run, us) = (dir.path().join("floe"), fs::metadata(dir.path()).unwrap().uid());
        // As an ordinary user, whoever runs the test.
        let make = |uid| if uid == 0 { is_private(&run, us) } else { make(&run, &run.join("a/b"), uid) };
        assert!(make(us + 1).is_err(), "it is made, and belongs to another");
        fs::set_permissions(&run, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(is_private(&run, us).is_err());
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(is_private(&run, us).is_ok());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&run, &link).unwrap();
        assert!(is_private(&link, us).is_err());
    }
}
