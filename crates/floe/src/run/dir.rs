//! The directory of one run, `run/<id>` in the store: upper and work directory, configuration, runtime's log.
//!
//! It goes when its [`RunDir`] goes. What a killed process left behind is found by [`sweep`]: a run is alive as
//! long as somebody holds the lock on `run/<id>.lock`, and the kernel lets go of a lock with its owner, however
//! that ended. A lock also holds across pid namespaces and reused pids, where a pid and a start time lie.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, flock};

/// Ids are drawn at random; a second collision in a row means something else is wrong.
const ATTEMPTS: usize = 4;

const PREFIX: &str = "floe-";
const DIGITS: usize = 12;

/// The directory of a live run.
#[derive(Debug)]
pub(super) struct RunDir {
    id: String,
    path: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl RunDir {
    /// Makes the directory of a run that begins, with the root's mode and owner taken from `lower`.
    pub(super) fn create(store: &Path, lower: &Path) -> Result<Self> {
        let runs = store.join("run");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&runs)
            .with_context(|| format!("creating {}", runs.display()))?;
        for _ in 0..ATTEMPTS {
            let id = random_id()?;
            if let Some(dir) = Self::try_create(&runs, id)
                .with_context(|| format!("creating a run in {}", runs.display()))?
            {
                dir.fill(lower).with_context(|| format!("creating {}", dir.path.display()))?;
                return Ok(dir);
            }
        }
        Err(anyhow!("no run could be locked in {}", runs.display()))
    }

    fn try_create(runs: &Path, id: String) -> io::Result<Option<Self>> {
        let (path, lock) = (runs.join(&id), runs.join(format!("{id}.lock")));
        let mut held = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(error),
        };
        // A sweep may see the file before we hold it. Then it has it, or has already removed it.
        if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() || held.metadata()?.nlink() == 0 {
            return Ok(None);
        }
        writeln!(held, "{}", std::process::id())?; // for people who look
        let dir = Self { id, path, lock, _held: held };
        DirBuilder::new().mode(0o700).create(&dir.path)?;
        Ok(Some(dir))
    }

    fn fill(&self, lower: &Path) -> io::Result<()> {
        for path in [self.upper(), self.work(), self.rootfs(), self.etc()] {
            fs::create_dir(&path)?;
        }
        // An overlay's root shows the attributes of the upper directory.
        let root = fs::metadata(lower)?;
        let upper = File::open(self.upper())?;
        upper.set_permissions(fs::Permissions::from_mode(root.mode() & 0o7777))?;
        chown(self.upper(), Some(root.uid()), Some(root.gid()))?;
        upper.set_modified(root.modified()?)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
    pub(super) fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }
    pub(super) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }
    pub(super) fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    /// Writes a file that anybody in the container may read.
    pub(super) fn write(&self, name: &Path, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(content)?;
            file.set_permissions(fs::Permissions::from_mode(0o644))
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path, &self.lock) {
            tracing::warn!(run = self.id, %error, "the run's directory stays until the next run");
        }
    }
}

/// Removes what runs without an owner left, after `end` has ended their containers; returns their ids.
///
/// What cannot be removed stays for the next sweep: an old run is no reason to refuse a new one.
pub(super) fn sweep(store: &Path, end: impl Fn(&str, &Path) -> Result<()>) -> Vec<String> {
    let runs = store.join("run");
    let Ok(entries) = fs::read_dir(&runs) else { return Vec::new() };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|name| name.trim_end_matches(".lock").to_owned())
        .filter(|name| is_id(name))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| match sweep_one(&runs, id, &end) {
        Ok(swept) => swept,
        Err(error) => {
            tracing::warn!(run = id, error = format!("{error:#}"), "an abandoned run stays");
            false
        }
    });
    ids
}

fn sweep_one(runs: &Path, id: &str, end: &impl Fn(&str, &Path) -> Result<()>) -> Result<bool> {
    let (path, lock) = (runs.join(id), runs.join(format!("{id}.lock")));
    let held = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock)?;
    if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() || held.metadata()?.nlink() == 0 {
        return Ok(false); // alive, or somebody else's to sweep
    }
    end(id, &path)?;
    remove(&path, &lock)?;
    Ok(true)
}

/// The lock file goes last: as long as it is there, the directory is somebody's.
fn remove(path: &Path, lock: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_file(lock)
}

fn is_id(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn random_id() -> Result<String> {
    let mut raw = [0; DIGITS / 2];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut raw)
        .map_err(|_| anyhow!("the kernel gives no random numbers"))?;
    Ok(raw.iter().fold(PREFIX.to_owned(), |id, byte| format!("{id}{byte:02x}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn names(store: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(store.join("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_run_leaves_nothing_behind() {
        let store = tempfile::tempdir().unwrap();
        let dir = RunDir::create(store.path(), store.path()).unwrap();
        assert!(is_id(dir.id()));
        assert_eq!(names(store.path()), [dir.id().to_owned(), format!("{}.lock", dir.id())]);
        drop(dir);
        assert!(names(store.path()).is_empty());
    }

    #[test]
    fn the_root_looks_like_the_lower_one() {
        let store = tempfile::tempdir().unwrap();
        let lower = store.path().join("lower");
        fs::create_dir(&lower).unwrap();
        fs::set_permissions(&lower, fs::Permissions::from_mode(0o1751)).unwrap();
        let dir = RunDir::create(store.path(), &lower).unwrap();
        assert_eq!(fs::metadata(dir.upper()).unwrap().mode() & 0o7777, 0o1751);
        assert_eq!(
            fs::metadata(dir.upper()).unwrap().modified().unwrap(),
            fs::metadata(&lower).unwrap().modified().unwrap()
        );
    }

    #[test]
    fn a_sweep_takes_the_dead_and_leaves_the_living_and_the_foreign() {
        let store = tempfile::tempdir().unwrap();
        let alive = RunDir::create(store.path(), store.path()).unwrap();
        let runs = store.path().join("run");
        fs::create_dir(runs.join("floe-0123456789ab")).unwrap();
        fs::write(runs.join("floe-0123456789ab/file"), "x").unwrap();
        fs::write(runs.join("floe-0123456789ab.lock"), "1").unwrap();
        fs::create_dir(runs.join("floe-00000000000a")).unwrap();
        fs::write(runs.join("floe-00000000000b.lock"), "1").unwrap();
        fs::create_dir(runs.join("somebody's")).unwrap();

        let ended = RefCell::new(Vec::new());
        let swept = sweep(store.path(), |id, _| {
            ended.borrow_mut().push(id.to_owned());
            Ok(())
        });
        assert_eq!(swept, ["floe-00000000000a", "floe-00000000000b", "floe-0123456789ab"]);
        assert_eq!(*ended.borrow(), swept);
        assert_eq!(names(store.path()), [alive.id(), &format!("{}.lock", alive.id()), "somebody's"]);
    }

    #[test]
    fn a_run_whose_container_cannot_be_ended_stays() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir_all(store.path().join("run/floe-0123456789ab")).unwrap();
        assert!(sweep(store.path(), |_, _| Err(anyhow!("no"))).is_empty());
        assert!(store.path().join("run/floe-0123456789ab").exists());
        assert_eq!(sweep(store.path(), |_, _| Ok(())).len(), 1);
    }

    #[test]
    fn ids_are_ours_only() {
        for (name, ours) in [
            ("floe-0123456789ab", true),
            ("floe-0123456789a", false),
            ("floe-0123456789abc", false),
            ("floe-0123456789aB", false),
            ("0123456789ab", false),
            ("floe-../../../../e", false),
        ] {
            assert_eq!(is_id(name), ours, "{name}");
        }
    }
}
