//! The root file system of a container: overlayfs over read-only lower directories.
//!
//! Nothing is copied: what the container writes goes to the upper directory, everything else is read where
//! it is. A mount begins *detached*, reachable through its descriptor alone, and is gone with it unless
//! somebody attaches it. The caller attaches it in a mount table of its own, so no mount of ours can be left
//! behind on the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::exit::Hint;

/// Longest string `fsconfig` takes, in bytes, without its final NUL.
const OPTION: usize = 255;

/// Returns a detached overlay of `lowers` (topmost first) with `upper` to write to and `work` beside it.
pub(super) fn mount(lowers: &[&Path], upper: &Path, work: &Path) -> Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(explain_missing)?;
    let paths = Paths::open(lowers, upper, work)?;
    fsconfig_set_string(&fs, "source", "floe").context("naming the overlay")?;
    fsconfig_set_string(&fs, "lowerdir", paths.lower.as_slice()).context("setting the lower directories")?;
    fsconfig_set_string(&fs, "upperdir", paths.upper.as_slice()).context("setting the upper directory")?;
    fsconfig_set_string(&fs, "workdir", paths.work.as_slice()).context("setting the work directory")?;
    if crate::home::is_inside() {
        // What overlayfs notes has to be in attributes that a user may set.
        fsconfig_set_flag(&fs, "userxattr").context("setting userxattr")?;
    }
    fsconfig_create(&fs).map_err(|error| explain_refused(error.into(), &fs, upper))?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context("mounting the overlay")
}

/// Makes a detached mount visible at a directory of the calling thread's mount table.
pub(super) fn attach(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// The option strings, and the descriptors they may name.
struct Paths {
    lower: Vec<u8>,
    upper: Vec<u8>,
    work: Vec<u8>,
    _held: Vec<File>,
}

impl Paths {
    /// Paths are handed over as they are where overlayfs takes them literally. Where it would split or unescape
    /// them, or where they are too long, they go by descriptor.
    fn open(lowers: &[&Path], upper: &Path, work: &Path) -> Result<Self> {
        let joined = lowers.iter().map(|path| path.as_os_str().len() + 1).sum::<usize>();
        let plain = joined <= OPTION && lowers.iter().chain([&upper, &work]).all(|path| is_plain(path));
        let mut held = Vec::new();
        let mut option = |path: &Path| -> Result<Vec<u8>> {
            if plain {
                return Ok(path.as_os_str().as_bytes().to_vec());
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
                .with_context(|| format!("opening {}", path.display()))?;
            let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
            held.push(File::from(fd));
            Ok(name.into_bytes())
        };
        let lower = lowers.iter().map(|path| option(path)).collect::<Result<Vec<_>>>()?.join(&b':');
        let (upper, work) = (option(upper)?, option(work)?);
        Ok(Self { lower, upper, work, _held: held })
    }
}

fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    path.is_absolute()
        && bytes.len() <= OPTION
        && !bytes.iter().any(|byte| matches!(byte, b':' | b',' | b'\\' | b'\n'))
}

fn explain_missing(error: rustix::io::Errno) -> anyhow::Error {
    let what = "asking the kernel for overlayfs";
    match error {
        rustix::io::Errno::NODEV => anyhow::Error::new(error).context(Hint::new(what, "modprobe overlay")),
        rustix::io::Errno::PERM => anyhow::Error::new(error)
            .context(Hint::new(what, "mounting needs root with CAP_SYS_ADMIN: run floe with sudo")),
        _ => anyhow::Error::new(error).context(what),
    }
}

/// The kernel explains refusals on the descriptor; `EINVAL` alone would help nobody.
fn explain_refused(error: io::Error, fs: &OwnedFd, upper: &Path) -> anyhow::Error {
    let mut said = vec![0; 1024];
    let mut messages = Vec::new();
    while let Ok(length) = rustix::io::read(fs, &mut said) {
        let text = std::ffi::OsString::from_vec(said[..length].to_vec());
        messages.push(text.to_string_lossy().trim().to_owned());
        if length == 0 || messages.len() == 8 {
            break;
        }
    }
    let what = match messages.join("; ") {
        none if none.is_empty() => "creating the overlay".to_owned(),
        said => format!("creating the overlay: the kernel says {said:?}"),
    };
    let hint = format!(
        "{} must be on a local file system with extended attributes (ext4, xfs, btrfs, tmpfs), itself no overlay",
        upper.display()
    );
    anyhow::Error::new(error).context(Hint::new(what, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::fs;

    #[test]
    fn odd_paths_are_not_given_as_text() {
        for (path, plain) in [
            ("/a/b c", true),
            ("/a:b", false),
            ("/a,b", false),
            ("/a\\b", false),
            ("a", false),
            ("/\n", false),
        ] {
            assert_eq!(is_plain(Path::new(path)), plain, "{path:?}");
        }
        let long = format!("/{}", "x".repeat(254));
        assert!(is_plain(Path::new(&long)));
        assert!(!is_plain(Path::new(&format!("{long}x"))));
        assert!(is_plain(Path::new(OsStr::from_bytes(b"/\xff"))));
    }

    /// Writes through an overlay whose directories have this name, and returns false without privileges.
    fn works_with(name: &str, lowers: usize) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join(name);
        let mut paths = Vec::new();
        for number in 0..lowers {
            let lower = base.join(format!("lower{number}"));
            fs::create_dir_all(&lower).unwrap();
            fs::write(lower.join(format!("file{number}")), "below").unwrap();
            fs::write(lower.join("same"), number.to_string()).unwrap();
            paths.push(lower);
        }
        let (upper, work) = (base.join("upper"), base.join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let lowers: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
        let mount = mount(&lowers, &upper, &work).unwrap();
        let seen = std::path::PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        assert_eq!(fs::read(seen.join(format!("file{}", lowers.len() - 1))).unwrap(), b"below");
        assert_eq!(fs::read(seen.join("same")).unwrap(), b"0", "the first is on top");
        fs::write(seen.join("file0"), "above").unwrap();
        assert_eq!(fs::read(upper.join("file0")).unwrap(), b"above");
        assert_eq!(fs::read(paths[0].join("file0")).unwrap(), b"below");
    }

    #[test]
    fn overlays_take_any_path() {
        if !rustix::process::geteuid().is_root() {
            testkit::skip!("mounting needs root");
        }
        works_with("plain", 1);
        works_with("a:b,c\\d", 1);
        works_with("many", 7);
        works_with(&"long".repeat(60), 9);
    }

    #[test]
    fn a_refusal_names_the_directory() {
        if !rustix::process::geteuid().is_root() {
            testkit::skip!("mounting needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let error = mount(&[dir.path()], &upper, &dir.path().join("missing")).unwrap_err();
        let mut shown = Vec::new();
        crate::exit::write_error(&error, &mut shown).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("upper must be on a local file system") || shown.contains("work"), "{shown}");
    }
}
