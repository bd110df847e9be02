//! A real directory that holds one of everything a tar can say about files.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Runs GNU tar in a directory; an error has what it said.
pub fn gnu_tar(arguments: &[&str], dir: &Path) -> io::Result<()> {
    let output = Command::new("tar").args(arguments).current_dir(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("tar {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Fills a directory; needs root. What v7 and ustar cannot hold comes only if `rich`.
pub fn populate(root: &Path, rich: bool) -> io::Result<()> {
    let at = |name: &[u8]| root.join(std::ffi::OsStr::from_bytes(name));
    fs::create_dir_all(at(b"d/empty"))?;
    fs::create_dir_all(at(b"d/sub"))?;
    fs::write(at(b"d/sub/file"), b"some content\n")?;
    fs::write(at(b"d/nothing"), b"")?;
    fs::write(at(b"d/\xff\xfe not utf-8 \n"), b"x")?;
    fs::write(at(b"block"), vec![7; 4096])?;
    fs::write(at(b"large"), (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())?;
    fs::hard_link(at(b"d/sub/file"), at(b"a-hard-link"))?;
    fs::hard_link(at(b"d/sub/file"), at(b"z-hard-link"))?;
    symlink("d/sub/file", at(b"symlink"))?;
    symlink("/nowhere/\u{e9}", at(b"d/dangling"))?;
    node(&at(b"fifo"), FileType::Fifo, 0, 0)?;
    node(&at(b"null"), FileType::CharacterDevice, 1, 3)?;
    node(&at(b"loop"), FileType::BlockDevice, 7, 200)?;
    sparse(&at(b"holes"), 40)?;
    sparse(&at(b"only-a-hole"), 0)?;
    for (name, mode) in [(&b"setuid"[..], 0o4755), (b"setgid", 0o2711), (b"none", 0), (b"all", 0o777)] {
        fs::write(at(name), name)?;
        lchown(at(name), Some(1000), Some(1001))?;
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode))?;
    }
    fs::set_permissions(at(b"d/empty"), fs::Permissions::from_mode(0o1777))?;
    lchown(at(b"symlink"), Some(5), Some(6))?;
    if rich {
        enrich(&at)?;
    }
    // Last, because what is made in a directory changes its time.
    touch(&at(b"d/sub/file"), 1_234_567_890, 123_456_789)?;
    touch(&at(b"symlink"), 1_000_000_000, 5)?;
    touch(&at(b"d/empty"), 0, 0)?;
    touch(&at(b"d/sub"), 1, 999_999_999)?;
    touch(&at(b"d"), 1_600_000_000, 0)
}

fn enrich(at: &impl Fn(&[u8]) -> PathBuf) -> io::Result<()> {
    let long = [b'l'; 255];
    let deep = [&long[..], b"/", &[b'm'; 200], b"/", &[0xe9; 120]].concat();
    fs::create_dir_all(at(&deep))?;
    fs::write(at(&[&deep[..], b"/file"].concat()), b"deep")?;
    fs::hard_link(at(&[&deep[..], b"/file"].concat()), at(b"to-the-deep"))?;
    symlink("t".repeat(3000), at(b"long-target"))?;
    fs::write(at(b"old"), b"")?;
    touch(&at(b"old"), -86_400, 250_000_000)?;
    fs::write(at(b"future"), b"")?;
    touch(&at(b"future"), 10_000_000_000, 1)?;
    fs::write(at(b"far-ids"), b"")?;
    lchown(at(b"far-ids"), Some(4_000_000_000), Some(2_097_152))?;
    fs::write(at(b"attributes"), b"")?;
    // A version 2 capability set with CAP_NET_BIND_SERVICE permitted and effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (path, name, value) in [
        (&b"attributes"[..], "security.capability", &capability[..]),
        (b"attributes", "user.binary", b"\0\xff\n=% "),
        (b"attributes", "user.empty", b""),
        (b"d/empty", "user.dir", b"v"),
        (b"d", "trusted.t", b"trust"),
        (b"symlink", "trusted.link", b"trust"),
    ] {
        rustix::fs::lsetxattr(at(path), name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn node(path: &Path, kind: FileType, major: u32, minor: u32) -> io::Result<()> {
    let device = rustix::fs::makedev(major, minor);
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device)?)
}

/// Makes a file of a hole, `pieces` blocks with holes between them, and a hole.
fn sparse(path: &Path, pieces: u64) -> io::Result<()> {
    let file = File::create(path)?;
    for n in 0..pieces {
        file.write_all_at(&[b'p'; 4096], (1 << 20) + n * 16_384)?;
    }
    file.set_len((3 << 20) + 77)
}

fn touch(path: &Path, secs: i64, nanos: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
