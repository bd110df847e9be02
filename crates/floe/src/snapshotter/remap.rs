//! Snapshots for containers in user namespaces of their own: their root is somebody else outside.
//!
//! Who asks for one says by labels which IDs stand for which. What is below is shown with its owners shifted, in idmapped mounts; nothing is
//! changed or copied. What is written belongs to the container's root. Clients could make such mounts themselves if they were told to by
//! options (`uidmap=`, as containerd's own snapshotter does): 1.7 does not understand them, and 2.1 takes all lower directories for parts
//! of one mount.
//!
//! A client that has not been told that we can (`remap-ids` among the capabilities) sends the labels too, and changes all owners first: it
//! prepares a snapshot whose key ends with `-remap`, walks it, commits it, and stands on that (`client/snapshotter_opts_unix.go` of
//! containerd). What stands on such a one is not shifted once more.
//!
//! | file | what |
//! |---|---|
//! | `shifted/<number of the snapshot>/<n>` in the runtime directory | a lower directory as it is shown to the snapshot; gone with it |

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use store::SnapshotError;
use sys::mount::Unmount;
use sys::namespace::{Mapping, Users};

use crate::exit::Hint;

/// How the key of a snapshot ends whose owners somebody is changing.
pub(super) const CHANGING: &str = "-remap";

/// The label of what was committed from it.
pub(super) const CHANGED: &str = "containerd.io/snapshot/floe.remapped";

/// The labels, of users and of groups. A value is `CONTAINER:HOST:LENGTH`, several of them with commas between.
pub(super) const LABELS: [&str; 2] =
    ["containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"];

/// Which IDs stand for which.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remap {
    users: Vec<Mapping>,
    groups: Vec<Mapping>,
    /// What the container's root is outside.
    pub(super) root: [u32; 2],
}

impl Remap {
    /// Returns what labels say, if they say anything.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Result<Option<Self>, SnapshotError> {
        let [users, groups] = match LABELS.map(|label| labels.get(label)) {
            [None, None] => return Ok(None),
            [Some(users), Some(groups)] => [users, groups],
            _ => {
                let what = "users and groups have to be mapped both, or neither";
                return Err(SnapshotError::Invalid(what.into()));
            }
        };
        let read = |map: &str, label: &str| {
            parse(map).ok_or_else(|| {
                let map: String = map.chars().take(256).collect();
                SnapshotError::Invalid(format!(
                    "label {label}: {map:?} does not say who the container's root is"
                ))
            })
        };
        let ((users, user), (groups, group)) = (read(users, LABELS[0])?, read(groups, LABELS[1])?);
        Ok(Some(Self { users, groups, root: [user, group] }))
    }

    /// Shows directories shifted, below another one; returns where.
    pub(super) fn show(&self, lowers: &[String], below: &Path) -> anyhow::Result<Vec<String>> {
        let mut users = None;
        let mut shown = Vec::new();
        for (n, lower) in lowers.iter().enumerate() {
            let at = below.join(n.to_string());
            fs::create_dir_all(below).with_context(|| format!("making {}", below.display()))?;
            match fs::create_dir(&at) {
                // It may be a mount whose server has gone: that is not looked into.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.with_context(|| format!("making {}", at.display()))?,
            }
            if !is_same(Path::new(lower), &at)? {
                while sys::mount::unmount(&at, Unmount::Lazy).is_ok() {} // of something that is mounted anew
                let mount = sys::mount::bind(Path::new(lower))?;
                let users = match &users {
                    Some(users) => users,
                    None => users.insert(self.namespace()?),
                };
                mount.shift(users).context(Hint::new(
                    format!("showing {lower} to a user namespace"),
                    "its file system has to know idmapped mounts, which mounts through FUSE do not; there take remap-ids out of the \
                     plugin's capabilities, and containerd changes the owners in a copy",
                ))?;
                mount.attach(&at)?;
            }
            shown.push(super::text(&at));
        }
        Ok(shown)
    }

    fn namespace(&self) -> anyhow::Result<Users> {
        Users::new(&self.users, &self.groups).context("making a user namespace with these IDs")
    }
}

/// Says whether one directory is the other, mounted there. What is there may be of a server that has gone.
fn is_same(lower: &Path, at: &Path) -> anyhow::Result<bool> {
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let wanted = id(lower).with_context(|| format!("looking at {}", lower.display()))?;
    Ok(id(at).is_ok_and(|there| there == wanted))
}

/// Makes the directory in which directories are shown. They hold setuid programs and what is not everybody's: nobody else gets here.
pub(super) fn prepare(shifted: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(shifted).with_context(|| format!("making {}", shifted.display()))?;
    fs::set_permissions(shifted, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("closing {} to other users", shifted.display()))
}

/// Says whether this kernel shows the owners of our mounts and of a directory's file system shifted.
pub(crate) fn can(dir: &Path) -> bool {
    let one = [Mapping { inside: 0, outside: 1, length: 1 }];
    let tried = || -> anyhow::Result<()> { Ok(sys::mount::bind(dir)?.shift(&Users::new(&one, &one)?)?) };
    crate::doctor::kernel::shifts_owners() && tried().is_ok()
}

/// Takes away what was shown below a directory.
pub(super) fn hide(below: &Path) {
    for at in dirs(below) {
        while sys::mount::unmount(&at, Unmount::Lazy).is_ok() {}
        let _ = fs::remove_dir(&at); // whatever is in the way is taken away at the next start
    }
    let _ = fs::remove_dir(below);
}

/// Takes away what is shown of snapshots but these.
pub(super) fn hide_others(shifted: &Path, stay: impl Fn(u64) -> bool) {
    for below in dirs(shifted) {
        let number = below.file_name().and_then(|name| name.to_str()?.parse().ok());
        if !number.is_some_and(&stay) {
            hide(&below);
        }
    }
}

fn dirs(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Returns what a map says, and what 0 stands for, if it is well-formed and says so.
fn parse(map: &str) -> Option<(Vec<Mapping>, u32)> {
    let mut ranges = Vec::new();
    for part in map.split(',') {
        let mut numbers = part.split(':').map(|number| {
            let digits = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
            digits.then(|| number.parse::<u32>().ok())?
        });
        let [inside, outside, length] = [numbers.next()??, numbers.next()??, numbers.next()??];
        if numbers.next().is_some() || length == 0 {
            return None;
        }
        inside.checked_add(length)?;
        outside.checked_add(length)?;
        ranges.push(Mapping { inside, outside, length });
    }
    let root = ranges.iter().find(|range| range.inside == 0)?.outside;
    Some((ranges, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(users: &str, groups: &str) -> BTreeMap<String, String> {
        LABELS.iter().zip([users, groups]).map(|(label, map)| ((*label).into(), map.into())).collect()
    }

    #[test]
    fn maps_are_understood() {
        let both = labels("0:100000:65536", "1:5:10,0:200000:1");
        let remap = Remap::of(&both).unwrap().unwrap();
        assert_eq!(remap.root, [100_000, 200_000]);
        assert_eq!(remap.users, [Mapping { inside: 0, outside: 100_000, length: 65_536 }]);
        assert_eq!(remap.groups[0], Mapping { inside: 1, outside: 5, length: 10 });
        assert_eq!(Remap::of(&BTreeMap::new()).unwrap(), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = "0:1000:1";
        for bad in [
            "",
            "0",
            "0:1000",
            "0:1000:0",
            "1:1000:1",
            "0:1000:1:1",
            "0:1000:1,",
            "0:+1:1",
            "0: 1:1",
            "0:4294967295:1",
            "0:4294967296:1",
            "0:0:4294967295,x",
        ] {
            for both in [labels(bad, good), labels(good, bad)] {
                assert!(matches!(Remap::of(&both), Err(SnapshotError::Invalid(_))), "{bad:?}");
            }
        }
        let mut one = labels(good, good);
        one.remove(LABELS[1]);
        assert!(matches!(Remap::of(&one), Err(SnapshotError::Invalid(_))));
    }
}
