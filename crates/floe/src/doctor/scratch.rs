//! The directory of the trials: on the file system of the store, whether there is a store or not.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What its name begins with.
const PREFIX: &str = ".floe-doctor-";

/// After this time one of ours is of a process that was killed.
const ABANDONED: Duration = Duration::from_secs(600);

/// A directory that goes when this goes.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in a store's own directory for such things, or where the store would be made.
    pub(super) fn make(store: &Path) -> io::Result<Self> {
        let tmp = store.join("tmp");
        let parent = if tmp.is_dir() { tmp } else { nearest(store) };
        sweep(&parent);
        // Others may write there: a name that is taken is left alone, and another one tried.
        for n in 0..100_u32 {
            let dir = parent.join(format!("{PREFIX}{}-{n}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Self(dir)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", parent.display())));
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // what cannot go is swept by the next one
    }
}

/// Returns the last part of a path that is a directory.
pub(super) fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Takes away what a killed process has left.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let Ok(found) = entry.metadata() else { continue };
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        let age = found.modified().ok().and_then(|made| SystemTime::now().duration_since(made).ok());
        if ours && age.is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_dir_all(entry.path()); // then it stays for the next one
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_where_the_store_would_be_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("a/b");
        let scratch = Scratch::make(&store).unwrap();
        assert_eq!(scratch.path().parent(), Some(dir.path()));
        fs::write(scratch.path().join("file"), "x").unwrap();
        let (other, made) = (Scratch::make(&store).unwrap(), scratch.path().to_owned());
        assert_ne!(other.path(), made);
        drop((scratch, other));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir_all(store.join("tmp")).unwrap();
        assert_eq!(Scratch::make(&store).unwrap().path().parent(), Some(&*store.join("tmp")));
    }

    #[test]
    fn what_was_left_long_ago_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (old, young) = (dir.path().join(".floe-doctor-1-0"), dir.path().join(".floe-doctor-2-0"));
        fs::create_dir(&old).unwrap();
        fs::create_dir(&young).unwrap();
        let long_ago = SystemTime::now() - ABANDONED * 2;
        fs::File::open(&old).unwrap().set_modified(long_ago).unwrap();
        drop(Scratch::make(dir.path()).unwrap());
        assert!(!old.exists() && young.exists());
    }
}
