//! The kernel's table of mounts, as this process sees it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Where.
    pub path: PathBuf,
    /// Device number of the file system.
    pub device: u64,
    /// Of which type: `ext4`, `fuse.NAME`.
    pub fs_type: String,
    /// Of what.
    pub source: String,
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)), in the order of mounting; no file system is asked.
pub fn points() -> io::Result<Vec<Point>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// Reads `id parent major:minor root path … - type source …`.
fn parse(line: &[u8]) -> Option<Point> {
    let mut fields = line.split(|b| *b == b' ');
    let (device, path) = (fields.nth(2)?, unescape(fields.nth(1)?));
    let mut fields = fields.skip_while(|field| *field != b"-");
    let (fs_type, source) = (fields.nth(1)?, unescape(fields.next().unwrap_or_default()));
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    Some(Point {
        path: OsString::from_vec(path).into(),
        device: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
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
    use std::path::Path;

    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = br"36 35 98:5 /mnt1 /a\040b\134c rw,noatime master:1 shared:2 - ext3 /dev/my\011root rw";
        let point = parse(line).unwrap();
        assert_eq!(point.path, Path::new("/a b\\c"));
        assert_eq!(point.device, rustix::fs::makedev(98, 5));
        assert_eq!((point.fs_type.as_str(), point.source.as_str()), ("ext3", "/dev/my\troot"));
        for bad in [&b""[..], b"1 2 3", b"1 2 x:y / /a - t s", b"36 35 98:0 / /x rw"] {
            assert_eq!(parse(bad), None);
        }
        for odd in [&br"1 2 3:4 / /\9 - t s"[..], br"1 2 3:4 / /a\04 - t s"] {
            assert_ne!(parse(odd).unwrap().path, Path::new("/a"), "what is no escape stays as it is");
        }
    }

    #[test]
    fn this_machine_has_a_proc() {
        assert!(
            points().unwrap().iter().any(|point| point.path == Path::new("/proc") && point.fs_type == "proc")
        );
    }
}
