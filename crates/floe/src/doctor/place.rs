//! The store's directory, its file system, its room.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, OFlags, access, statfs, statvfs};
use store::Store;

use super::patience::{TRIAL, within};
use super::report::{Check, Group};
use super::scratch::nearest;
use crate::config::Config;
use crate::engine::room::reserve;
use crate::size::shown;

const GROUP: Group = Group::Store;

/// Less than this is no room: one segment of the largest kind and what the store notes.
const LEAST: u64 = 16 << 20;

/// A file system on which a store cannot be, or should not.
const UNFIT: [&str; 6] = ["nfs", "cifs", "9p", "fuse", "ceph", "overlay"];

/// Numbers of file systems (statfs(2), `include/uapi/linux/magic.h`).
const TYPES: [(u32, &str); 15] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0xf2f5_2010, "f2fs"),
    (0x2fc1_2fc1, "zfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x794c_7630, "overlay"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x00c3_6400, "ceph"),
    (0x8584_58f6, "ramfs"),
    (0xe0f5_e1e2, "erofs"),
];

/// Looks at the directory, the file system and the room.
pub(super) fn check(root: &Path, config: &Config) -> Vec<Check> {
    let place = nearest(root);
    vec![directory(root), file_system(&place), room(&place, config)]
}

fn directory(root: &Path) -> Check {
    let us = rustix::process::geteuid().as_raw();
    let here = root.display();
    let found = match fs::metadata(root) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = nearest(root);
            return match access(&parent, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => GROUP.ok("directory", format!("{here} is made by the first command")),
                Err(error) => {
                    let found =
                        format!("{here} cannot be made in {}: {}", parent.display(), io::Error::from(error));
                    no_leave(found, us)
                }
            };
        }
        Err(error) => return no_leave(format!("{here}: {error}"), us),
    };
    if let Some(bad) = unowned(root, &found, us) {
        return bad;
    }
    match Store::version(root) {
        Ok(None) => GROUP.ok("directory", format!("{here}, empty")),
        Ok(Some(version)) => GROUP.ok("directory", format!("{here}, version {version}")),
        Err(error) => {
            let found = format!("{:#}", anyhow::Error::new(error));
            GROUP.failed("directory", found, "it is no store of this program: choose another with --root DIR")
        }
    }
}

/// What is wrong with who may do what there.
fn unowned(root: &Path, found: &Metadata, us: u32) -> Option<Check> {
    let here = root.display();
    if !found.is_dir() {
        let hint = "choose another with --root DIR";
        return Some(GROUP.failed("directory", format!("{here} is no directory"), hint));
    }
    if let Err(error) = access(root, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        let error = io::Error::from(error);
        let found = format!("{here} of user {} cannot be used by user {us}: {error}", found.uid());
        return Some(no_leave(found, us));
    }
    if found.uid() != us {
        let found = format!("{here} belongs to user {}, and this is user {us}", found.uid());
        return Some(GROUP.warning("directory", found, format!("chown -R {us} {here}")));
    }
    // Who can write there chooses what containers see.
    (found.mode() & 0o022 != 0).then(|| {
        let found = format!("{here} can be written to by others (mode {:o})", found.mode() & 0o7777);
        GROUP.warning("directory", found, format!("chmod go-w {here}"))
    })
}

/// A place that only root may use is nothing wrong with the machine.
fn no_leave(found: String, us: u32) -> Check {
    match us {
        0 => GROUP.failed("directory", found, "mount it to be written to, or choose another with --root DIR"),
        _ => GROUP
            .skipped("directory", format!("{found}: sudo floe doctor, or one of your own with --root DIR")),
    }
}

fn file_system(place: &Path) -> Check {
    let found = match (statfs(place), statvfs(place)) {
        (Ok(found), Ok(flags)) => (found, flags),
        (Err(error), _) | (_, Err(error)) => {
            let found = format!("{}: {}", place.display(), io::Error::from(error));
            return GROUP.failed("file-system", found, "choose another store with --root DIR");
        }
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of 32 bits")]
    let number = found.0.f_type as u32;
    let read_only = found.1.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    judge_file_system(place, number, read_only)
}

fn judge_file_system(place: &Path, number: u32, read_only: bool) -> Check {
    let name = TYPES.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_owned());
    let name = name.unwrap_or_else(|| format!("type {number:#x}"));
    let found = format!("{name} at {}", place.display());
    if read_only {
        let hint = "mount it to be written to, or choose another store with --root DIR";
        return GROUP.failed("file-system", format!("{found}, read-only"), hint);
    }
    if UNFIT.contains(&&*name) {
        let hint =
            "put the store on a local file system (ext4, XFS, btrfs): --root DIR, or a volume in a container";
        return GROUP.warning("file-system", found, hint);
    }
    GROUP.ok("file-system", found)
}

/// Whether reads can go past the page cache, as the kernel's own path does for what is whole.
pub(super) fn direct(dir: &Path) -> Check {
    let file = dir.join("direct");
    let tried = within(TRIAL, move || read_direct(&file)).unwrap_or(Err(ErrorKind::TimedOut.into()));
    match tried {
        Ok(()) => GROUP.ok("direct-io", "reads can go past the page cache"),
        Err(error) => GROUP.warning(
            "direct-io",
            format!("no reads past the page cache: {error}"),
            "a store on ext4, XFS or btrfs keeps each byte in memory once",
        ),
    }
}

fn read_direct(path: &Path) -> io::Result<()> {
    const BLOCK: usize = 4096;
    fs::write(path, [7; BLOCK])?;
    let flags = OFlags::DIRECT.bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    // The kernel wants an address that is a multiple of its blocks.
    let mut room = vec![0; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    let block = room.get_mut(start..start + BLOCK).ok_or(ErrorKind::Other)?;
    file.read_exact(block)?;
    if block.iter().all(|byte| *byte == 7) { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn room(place: &Path, config: &Config) -> Check {
    match statvfs(place) {
        Ok(found) => {
            let (free, capacity) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
            judge_room(free, reserve(&config.store, capacity), found.f_favail, found.f_files)
        }
        Err(error) => GROUP.skipped("room", format!("{}: {}", place.display(), io::Error::from(error))),
    }
}

fn judge_room(free: u64, kept: u64, files: u64, all_files: u64) -> Check {
    let found = format!("{} free, {} of it are kept free", shown(free), shown(kept));
    if free < LEAST {
        return GROUP.failed("room", found, "free some, or choose a store elsewhere with --root DIR");
    }
    // Some file systems have no such number.
    if all_files > 0 && files < 1000 {
        let found = format!("{found}; {files} files can be made");
        return GROUP.failed("room", found, "remove files, or make the file system anew with more inodes");
    }
    if free < kept {
        let hint = "what no reader waits for pauses: free some, or set reserve in [store]";
        return GROUP.warning("room", found, hint);
    }
    GROUP.ok("room", found)
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn room_is_enough_short_or_none() {
        let state = |free, kept, files, all| judge_room(free, kept, files, all).state;
        assert_eq!(state(LEAST, LEAST, 1000, 1001), State::Ok);
        assert_eq!(state(LEAST, LEAST + 1, 1000, 1001), State::Warning);
        assert_eq!(state(LEAST - 1, 0, 1000, 1001), State::Failed);
        assert_eq!(state(LEAST, LEAST, 999, 1001), State::Failed);
        assert_eq!(state(LEAST, LEAST, 0, 0), State::Ok);
    }

    #[test]
    fn file_systems_are_named_and_judged() {
        let judge = |number, read_only| judge_file_system(Path::new("/x"), number, read_only);
        assert_eq!(judge(0xef53, false).state, State::Ok);
        assert!(judge(0xef53, false).found.starts_with("ext4 at /x"));
        assert_eq!(judge(0xef53, true).state, State::Failed);
        assert_eq!(judge(0x6969, false).state, State::Warning);
        assert_eq!(judge(0x794c_7630, false).state, State::Warning);
        assert_eq!(judge(0x1234, false).state, State::Ok);
    }

    #[test]
    fn directories_that_are_no_store_are_told() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory(dir.path()).state, State::Ok);
        assert_eq!(directory(&dir.path().join("a/b")).state, State::Ok);
        fs::write(dir.path().join("stranger"), "").unwrap();
        assert_eq!(directory(dir.path()).state, State::Failed);
        assert_eq!(directory(&dir.path().join("stranger")).state, State::Failed);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let open = directory(dir.path());
        assert_eq!(open.state, State::Warning);
        assert!(open.hint.unwrap().starts_with("chmod"));
    }
}
