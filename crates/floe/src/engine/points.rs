//! The kernel's table of mounts, as far as it is asked for here.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// One line of the kernel's table.
pub(super) struct MountPoint {
    /// Where.
    pub(super) path: PathBuf,
    /// Of which type.
    fs_type: String,
    /// Of what.
    source: String,
}

impl MountPoint {
    /// Says whether it looks like a mount of an image by us: FUSE says so, EROFS names a metadata image of a store.
    pub(super) fn is_ours(&self) -> bool {
        let image = || {
            let path = Path::new(&self.source);
            let named = path.file_name().is_some_and(|name| name.len() == 64);
            named && path.parent().and_then(Path::file_name).is_some_and(|dir| dir == "meta")
        };
        self.fs_type == "fuse.floe" || (self.fs_type == "erofs" && image())
    }
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)), in the order of mounting.
pub(super) fn mount_points() -> anyhow::Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_mount).collect())
}

fn parse_mount(line: &[u8]) -> Option<MountPoint> {
    use std::os::unix::ffi::OsStringExt;
    let mut fields = line.split(|b| *b == b' ');
    let path = unescape(fields.nth(4)?);
    let mut fields = fields.skip_while(|field| *field != b"-");
    let (fs_type, source) = (fields.nth(1)?, unescape(fields.next().unwrap_or_default()));
    Some(MountPoint {
        path: std::ffi::OsString::from_vec(path).into(),
        fs_type: String::from_utf8_lossy(fs_type).into(),
        source: String::from_utf8_lossy(&source).into(),
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
        assert!(point.is_ours());
        let erofs = |source: &str| {
            let line = format!("36 35 0:40 / /m ro - erofs {source} ro");
            parse_mount(line.as_bytes()).unwrap().is_ours()
        };
        assert!(erofs(&format!("/var/lib/floe/meta/{}", "a".repeat(64))));
        assert!(!erofs("/dev/vda") && !erofs("/images/base.erofs"));
        assert!(parse_mount(b"").is_none());
        assert!(parse_mount(b"36 35 98:0 / /x rw").is_none());
    }
}
