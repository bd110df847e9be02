//! Who a container runs as: the image's `User`, looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! Same answers as Docker: a number is always an id, never a name; a group given by hand replaces the
//! supplementary groups; lines that make no sense are passed over. The files are data of the image: they
//! are opened inside its root, must be regular files and of bounded size.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use anyhow::Context;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Largest passwd or group file, in bytes. Sites with 100,000 users have some 8 MB.
const FILE: u64 = 16 << 20;

/// Highest id: the last number, -1, means "no change" to the kernel.
const HIGHEST_ID: u32 = u32::MAX - 1;

/// Ids and home directory of the first process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// User id.
    pub(super) uid: u32,
    /// Primary group id.
    pub(super) gid: u32,
    /// Supplementary groups, ascending.
    pub(super) groups: Vec<u32>,
    /// Home directory, if the user is in the image's passwd file.
    pub(super) home: Option<String>,
}

/// Why a user cannot be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UserError {
    /// A name without an entry.
    NoUser(String),
    /// A group name without an entry.
    NoGroup(String),
    /// A number no id can have.
    Range(String),
}

impl std::error::Error for UserError {}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser(name) => write!(f, "user {name:?} is not in the image's /etc/passwd"),
            Self::NoGroup(name) => write!(f, "group {name:?} is not in the image's /etc/group"),
            Self::Range(text) => write!(f, "{text:?} is not a user or group id"),
        }
    }
}

/// Reads the two files of the image below `root` and looks `user` up in them.
pub(super) fn identify(root: BorrowedFd<'_>, user: &str) -> anyhow::Result<Identity> {
    let passwd = read_inside(root, "etc/passwd").context("reading the image's /etc/passwd")?;
    let group = read_inside(root, "etc/group").context("reading the image's /etc/group")?;
    Ok(resolve(user, &passwd, &group)?)
}

/// Looks `user` (`name`, `uid`, each with an optional `:group` or `:gid`) up in these files.
///
/// Nothing at all means uid 0.
pub(super) fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UserError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user)?;
    let entry = passwd_entries(passwd).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let (uid, gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.into())),
    };
    let home = entry.as_ref().map(|entry| entry.home.to_owned()).filter(|home| !home.is_empty());
    let Some(wanted) = wanted_group else {
        let groups = entry.map(|entry| groups_of(group, entry.name)).unwrap_or_default();
        return Ok(Identity { uid, gid, groups, home });
    };
    let gid = match parse_id(wanted)? {
        Some(gid) => gid,
        None => group_entries(group)
            .find(|entry| entry.name == wanted)
            .map(|entry| entry.gid)
            .ok_or_else(|| UserError::NoGroup(wanted.into()))?,
    };
    Ok(Identity { uid, gid, groups: Vec::new(), home })
}

/// Digits are an id, whatever names the files hold; other text is a name.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= HIGHEST_ID => Ok(Some(id)),
        _ => Err(UserError::Range(text.into())),
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines of a colon-separated file that are text and no comment.
fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (_password, uid, gid, _gecos) = (fields.next()?, fields.next()?, fields.next()?, fields.next());
        let home = fields.next().unwrap_or_default();
        Some(PasswdEntry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (_password, gid) = (fields.next()?, fields.next()?);
        Some(GroupEntry { name, gid: gid.parse().ok()?, members: fields.next().unwrap_or_default() })
    })
}

fn groups_of(file: &[u8], user: &str) -> Vec<u32> {
    let mut groups: Vec<u32> = group_entries(file)
        .filter(|entry| entry.members.split(',').any(|member| member == user))
        .map(|entry| entry.gid)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Reads a small file below `root`, never leaving it by a link; a missing one is empty.
fn read_inside(root: BorrowedFd<'_>, path: &str) -> io::Result<Vec<u8>> {
    // Without NONBLOCK an image whose passwd file is a pipe would hang us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Ok(file) => break file,
            // The kernel asks to try again when something was renamed during the walk.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    std::fs::File::from(file).take(FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE {
        return Err(io::Error::other(format!("longer than {FILE} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        web:x:33:34:web:/srv/www:/bin/sh\n\
        33000:x:7:7::/odd:/bin/sh\n\
        nohome:x:50:51::\n\
        big:x:99999999999:1::/:/\n\
        \xff\xfe:x:8:8::/:/\n\
        web:x:1:1:second entry loses:/:/bin/sh";
    const GROUP: &[u8] =
        b"root:x:0:\nweb:x:34:\nvideo:x:44:web,other\naudio:x:29:other,web\nwebby:x:45:webmaster\n\
        video2:x:44:web\nnonsense\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.map(Into::into) }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let table = [
            ("", identity(0, 0, &[], Some("/root"))),
            ("root", identity(0, 0, &[], Some("/root"))),
            ("web", identity(33, 34, &[29, 44], Some("/srv/www"))),
            ("33", identity(33, 34, &[29, 44], Some("/srv/www"))),
            ("web:", identity(33, 34, &[29, 44], Some("/srv/www"))),
            ("web:video", identity(33, 44, &[], Some("/srv/www"))),
            ("web:1234", identity(33, 1234, &[], Some("/srv/www"))),
            ("33:audio", identity(33, 29, &[], Some("/srv/www"))),
            (":44", identity(0, 44, &[], Some("/root"))),
            ("1000", identity(1000, 0, &[], None)),
            ("1000:1001", identity(1000, 1001, &[], None)),
            ("33000", identity(33000, 0, &[], None)),
            ("nohome", identity(50, 51, &[], None)),
            ("4294967294", identity(4_294_967_294, 0, &[], None)),
        ];
        for (user, expected) in table {
            assert_eq!(resolve(user, PASSWD, GROUP), Ok(expected), "{user:?}");
        }
    }

    #[test]
    fn unknown_users_and_groups_are_named() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve("big", PASSWD, GROUP), Err(UserError::NoUser("big".into())));
        assert_eq!(resolve("web:nogroup", PASSWD, GROUP), Err(UserError::NoGroup("nogroup".into())));
        for bad in ["4294967295", "0:4294967295", "99999999999999999999"] {
            assert!(matches!(resolve(bad, PASSWD, GROUP), Err(UserError::Range(_))), "{bad}");
        }
        assert_eq!(resolve("-1", b"", b""), Err(UserError::NoUser("-1".into())));
        assert_eq!(resolve("0", b"", b""), Ok(identity(0, 0, &[], None)));
    }

    #[test]
    fn files_are_read_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("passwd");
        std::fs::write(&secret, "root:x:0:0::/outside:/bin/sh\nspy:x:1:1::/:/").unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("usr")).unwrap();
        let fd = std::fs::File::open(&root).unwrap();

        assert_eq!(identify(fd.as_fd(), "5").unwrap(), identity(5, 0, &[], None), "no files at all");
        std::os::unix::fs::symlink("../../passwd", root.join("etc/passwd")).unwrap();
        assert!(identify(fd.as_fd(), "spy").is_err(), "a relative link stays inside");
        std::fs::remove_file(root.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink(&secret, root.join("etc/passwd")).unwrap();
        assert!(identify(fd.as_fd(), "spy").is_err(), "an absolute link stays inside");
        std::fs::remove_file(root.join("etc/passwd")).unwrap();

        std::fs::write(root.join("usr/passwd"), "u:x:9:8::/h:/").unwrap();
        std::os::unix::fs::symlink("/usr/passwd", root.join("etc/passwd")).unwrap();
        assert_eq!(
            identify(fd.as_fd(), "u").unwrap(),
            identity(9, 8, &[], Some("/h")),
            "a link inside works"
        );
    }

    #[test]
    fn a_pipe_or_directory_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/passwd")).unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        assert!(identify(fd.as_fd(), "0").is_err());
        std::fs::remove_dir(dir.path().join("etc/passwd")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("etc/passwd"),
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert!(identify(fd.as_fd(), "0").is_err());
    }
}
