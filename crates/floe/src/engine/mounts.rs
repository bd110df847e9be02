//! Mounts: one per image, shared by its containers; what users see are binds of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use format::erofs::read::Image;
use mount::fuse::{self, Mounted, Server};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use std::os::unix::fs::PermissionsExt;
use store::{MetaKey, Segments};
use sys::map::Map;

use super::profile::Recorder;
use super::report::MountReport;
use super::waits::Waits;
use crate::exit::Hint;

/// The type the kernel shows for our mounts in `/proc/self/mountinfo`.
const FS_TYPE: &str = "fuse.floe";

/// One mounted image.
pub struct LiveMount {
    dir: PathBuf,
    image: Arc<Image<Map>>,
    waits: Arc<Waits>,
    recorder: Arc<Recorder>,
    mounted: Mutex<Option<Mounted>>,
    /// Keeps the layers in use, whatever becomes of the reference they were mounted by. Let go after the mount.
    _layers: Arc<dyn Send + Sync>,
}

impl LiveMount {
    /// Returns where the image is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns who waited for what.
    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Returns the tree.
    pub fn image(&self) -> &Image<Map> {
        &self.image
    }

    /// Returns what has been read, in order.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }
}

impl Drop for LiveMount {
    fn drop(&mut self) {
        // Somebody may still have a file open: the mount leaves the tree at once and ends with its last user.
        drop(self.mounted.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        let _ = std::fs::remove_dir(&self.dir); // an empty directory below /run
    }
}

/// The mounts of a daemon.
pub struct Mounts {
    /// Directory of our own mount points.
    dir: PathBuf,
    /// Held while mounting: two users of one image share one mount. Taken before `binds`.
    live: Mutex<HashMap<MetaKey, std::sync::Weak<LiveMount>>>,
    binds: Mutex<HashMap<PathBuf, Bind>>,
}

struct Bind {
    live: Arc<LiveMount>,
    reference: String,
}

impl Mounts {
    /// Returns no mounts; takes away what a killed daemon left below its directory.
    pub fn new(run: &Path) -> anyhow::Result<Self> {
        let dir = run.join("mnt");
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        // Images hold setuid programs and devices that are meant for containers: nobody else gets here.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("closing {} to other users", dir.display()))?;
        for point in mount_points()?.into_iter().filter(|point| point.path.starts_with(&dir)).rev() {
            let detached = unmount(&point.path, UnmountFlags::DETACH);
            detached.with_context(|| format!("taking away the leftover mount {}", point.path.display()))?;
            let _ = std::fs::remove_dir(&point.path); // it is empty; the next mount makes its own
        }
        Ok(Self { dir, live: Mutex::default(), binds: Mutex::default() })
    }

    /// Returns the mount of an image, mounting it if nobody has; it keeps `layers` as long as it lives.
    pub fn live(
        &self,
        key: MetaKey,
        open: impl FnOnce() -> anyhow::Result<Image<Map>>,
        segments: Arc<dyn Segments>,
        layers: Arc<dyn Send + Sync>,
        options: fuse::Options,
    ) -> anyhow::Result<Arc<LiveMount>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mount) = live.get(&key).and_then(std::sync::Weak::upgrade) {
            return Ok(mount);
        }
        if let Err(why) = fuse::available() {
            let hint = "load the fuse module (modprobe fuse) and give this container or user /dev/fuse";
            return Err(anyhow::Error::new(why).context(Hint::new("looking for FUSE", hint)));
        }
        let dir = self.fresh_dir(key)?;
        let image = Arc::new(open()?);
        let waits = Arc::new(Waits::default());
        let recorder = Arc::new(Recorder::new(segments));
        let server = Server::new(image.clone(), recorder.clone()).observed_by(waits.clone()).with(options);
        let mounted = server.mount(&dir).with_context(|| format!("mounting at {}", dir.display()))?;
        let mounted = Mutex::new(Some(mounted));
        let mount = Arc::new(LiveMount { dir, image, waits, recorder, mounted, _layers: layers });
        live.retain(|_, mount| mount.strong_count() > 0);
        live.insert(key, Arc::downgrade(&mount));
        Ok(mount)
    }

    /// Shows a mount at a directory of the user's.
    pub fn bind(&self, live: Arc<LiveMount>, dir: &Path, reference: &str) -> anyhow::Result<()> {
        let mut binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        if binds.contains_key(dir) {
            let hint = "choose another directory or `floe umount` it first";
            bail!(
                anyhow::Error::msg("an image is mounted there")
                    .context(Hint::new(format!("mounting at {}", dir.display()), hint))
            );
        }
        mount_bind(live.dir(), dir).with_context(|| format!("mounting at {}", dir.display()))?;
        // As with a disk that somebody plugs in: its programs run, but as whoever runs them.
        let safe = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount_remount(dir, safe, c"") {
            let _ = unmount(dir, UnmountFlags::DETACH); // just mounted, and nobody's yet
            return Err(error).with_context(|| format!("mounting nosuid,nodev at {}", dir.display()));
        }
        binds.insert(dir.to_owned(), Bind { live, reference: reference.to_owned() });
        Ok(())
    }

    /// Undoes [`Mounts::bind`]; a mount in use stays.
    pub fn unbind(&self, dir: &Path) -> anyhow::Result<()> {
        let mut binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        if !binds.contains_key(dir) {
            drop(binds);
            return detach_leftover(dir);
        }
        match unmount(dir, UnmountFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(rustix::io::Errno::BUSY) => {
                let hint = format!("end what uses it: fuser -vm {}", dir.display());
                bail!(
                    anyhow::Error::msg("it is in use")
                        .context(Hint::new(format!("unmounting {}", dir.display()), hint))
                );
            }
            Err(error) => return Err(error).with_context(|| format!("unmounting {}", dir.display())),
        }
        let bind = binds.remove(dir);
        drop(binds);
        drop(bind); // the last user takes the mount with it
        Ok(())
    }

    /// Says whether an image is mounted.
    pub fn uses(&self, key: MetaKey) -> bool {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(&key).is_some_and(|mount| mount.strong_count() > 0)
    }

    /// Says whether anything is mounted.
    pub fn any(&self) -> bool {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.values().any(|mount| mount.strong_count() > 0)
    }

    /// Takes every bind away, also those in use; their files stay readable as long as this process lives.
    pub fn detach_all(&self) {
        for (dir, bind) in self.binds.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            if let Err(error) = unmount(&dir, UnmountFlags::DETACH) {
                tracing::warn!(dir = %dir.display(), "unmounting: {error}");
            }
            drop(bind);
        }
    }

    /// Returns what is mounted where.
    pub fn report(&self) -> Vec<MountReport> {
        let binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |(dir, bind): (&PathBuf, &Bind)| {
            let (waits, counters) = (bind.live.waits(), bind.live.waits().counters());
            MountReport {
                dir: dir.display().to_string(),
                reference: bind.reference.clone(),
                path: "fuse".into(),
                reads: counters.hits() + counters.misses(),
                misses: counters.misses(),
                waited: waits.waited(),
            }
        };
        binds.iter().map(report).collect()
    }

    fn fresh_dir(&self, key: MetaKey) -> anyhow::Result<PathBuf> {
        // A mount that is still being let go may have the plain name: take the first free one.
        for n in 0..1000 {
            let dir = self.dir.join(format!("{:.12}-{n}", key.to_string()));
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(dir),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("making {}", dir.display())),
            }
        }
        bail!("no free mount point below {}", self.dir.display())
    }
}

/// Takes away a mount of ours that no daemon serves any more.
pub fn detach_leftover(dir: &Path) -> anyhow::Result<()> {
    let ours = mount_points()?.into_iter().any(|point| point.path == dir && point.fs_type == FS_TYPE);
    if !ours {
        bail!("{} is not a mount of floe", dir.display());
    }
    unmount(dir, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", dir.display()))
}

struct MountPoint {
    path: PathBuf,
    fs_type: String,
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)), in the order of mounting.
fn mount_points() -> anyhow::Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_mount).collect())
}

fn parse_mount(line: &[u8]) -> Option<MountPoint> {
    use std::os::unix::ffi::OsStringExt;
    let mut fields = line.split(|b| *b == b' ');
    let path = unescape(fields.nth(4)?);
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountPoint {
        path: std::ffi::OsString::from_vec(path).into(),
        fs_type: String::from_utf8_lossy(fs_type).into(),
    })
}

/// Blank, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..] if *first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = more;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_understood() {
        let line = b"36 35 98:0 /mnt1 /mnt\\040two\\134 rw,noatime master:1 shared:2 - fuse.floe floe ro";
        let point = parse_mount(line).unwrap();
        assert_eq!(point.path, Path::new("/mnt two\\"));
        assert_eq!(point.fs_type, FS_TYPE);
        assert!(parse_mount(b"").is_none());
        assert!(parse_mount(b"36 35 98:0 / /x rw").is_none());
    }

    #[test]
    fn only_our_own_mounts_are_taken_away() {
        assert!(detach_leftover(Path::new("/proc")).is_err());
    }
}
