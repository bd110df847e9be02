//! Layers from directory trees: what a tree has that another has not, as a tar.
//!
//! The tar is plain ustar with pax records where ustar has no room: long names, file capabilities. Removed names
//! become whiteouts (OCI image spec, layer, "Whiteouts"). Good for trees we made ourselves a moment ago: they
//! must not change meanwhile, and times are kept in whole seconds.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Size of a tar record; everything is padded to it.
const RECORD: usize = 512;

/// The one extended attribute images need: a program's capabilities.
const CAPABILITY: &str = "security.capability";

/// Writes everything below `top` that is not the same below `base` as one tar layer.
///
/// Without a base everything is written. The root directory itself is not a member.
pub(super) fn write(top: &Path, base: Option<&Path>, out: &mut dyn Write) -> io::Result<()> {
    let mut writer = Writer { out, seen: HashMap::new() };
    writer.directory(top, base, Path::new(""))?;
    writer.out.write_all(&[0; 2 * RECORD])
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    /// First name of each file that has several, by device and inode.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl Writer<'_> {
    fn directory(&mut self, top: &Path, base: Option<&Path>, at: &Path) -> io::Result<()> {
        let names = names(&top.join(at))?;
        for name in &names {
            let path = at.join(name);
            let meta = fs::symlink_metadata(top.join(&path))?;
            let below =
                base.and_then(|base| fs::symlink_metadata(base.join(&path)).ok().map(|meta| (base, meta)));
            let same = match &below {
                Some((base, other)) => is_same(&top.join(&path), &meta, &base.join(&path), other),
                None => false,
            };
            if !same {
                self.member(top, &path, &meta)?;
            }
            if meta.is_dir() {
                let base = below.filter(|(_, other)| other.is_dir()).map(|(base, _)| base);
                self.directory(top, base, &path)?;
            }
        }
        let Some(base) = base else { return Ok(()) };
        for name in names_of_removed(&base.join(at), &names)? {
            let mut whiteout = std::ffi::OsString::from(".wh.");
            whiteout.push(name);
            self.header(&at.join(whiteout), b'0', 0o644, [0, 0], 0, 0, Path::new(""), [0, 0])?;
        }
        Ok(())
    }

    fn member(&mut self, top: &Path, path: &Path, meta: &Metadata) -> io::Result<()> {
        let file = top.join(path);
        let kind = meta.file_type();
        if kind.is_socket() {
            return Ok(()); // nobody listens on it any more, and tar has no word for it
        }
        let none = Path::new("");
        let owner = [meta.uid(), meta.gid()];
        let mode = meta.mode() & 0o7777;
        let mut put = |kind: u8, size: u64, link: &Path, device: [u32; 2]| {
            self.header(path, kind, mode, owner, size, meta.mtime(), link, device)
        };
        if kind.is_dir() {
            return put(b'5', 0, none, [0, 0]);
        }
        if kind.is_symlink() {
            return put(b'2', 0, &fs::read_link(&file)?, [0, 0]);
        }
        if kind.is_fifo() {
            return put(b'6', 0, none, [0, 0]);
        }
        if kind.is_char_device() || kind.is_block_device() {
            let device = [rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())];
            return put(if kind.is_char_device() { b'3' } else { b'4' }, 0, none, device);
        }
        if meta.nlink() > 1 {
            let first = self.seen.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned()).clone();
            if first != path {
                return self.header(path, b'1', mode, owner, 0, meta.mtime(), &first, [0, 0]);
            }
        }
        if let Some(value) = capability(&file)? {
            self.pax(&[(format!("SCHILY.xattr.{CAPABILITY}"), value)])?;
        }
        self.header(path, b'0', mode, owner, meta.size(), meta.mtime(), none, [0, 0])?;
        let copied = io::copy(&mut File::open(&file)?.take(meta.size()), self.out)?;
        if copied != meta.size() {
            return Err(io::Error::other(format!("{} became shorter while it was read", file.display())));
        }
        self.pad(copied)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of a tar header")]
    fn header(
        &mut self,
        path: &Path,
        kind: u8,
        mode: u32,
        owner: [u32; 2],
        size: u64,
        mtime: i64,
        link: &Path,
        device: [u32; 2],
    ) -> io::Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == b'5' {
            name.push(b'/');
        }
        let link = link.as_os_str().as_bytes();
        let mut records = Vec::new();
        if name.len() > 100 {
            records.push(("path".to_owned(), name.clone()));
        }
        if link.len() > 100 {
            records.push(("linkpath".to_owned(), link.to_vec()));
        }
        if !records.is_empty() {
            self.pax(&records)?;
        }
        let mtime = u64::try_from(mtime).unwrap_or(0);
        let record = record(&name, kind, mode, owner, size, mtime, link, device)?;
        self.out.write_all(&record)
    }

    fn pax(&mut self, records: &[(String, Vec<u8>)]) -> io::Result<()> {
        let mut body = Vec::new();
        for (key, value) in records {
            // "length key=value\n", where the length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length = length.to_string().len() + rest;
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let size = body.len() as u64;
        self.out.write_all(&record(b"././@PaxHeader", b'x', 0o644, [0, 0], size, 0, b"", [0, 0])?)?;
        self.out.write_all(&body)?;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % RECORD as u64).unwrap_or(0);
        self.out.write_all(&[0; RECORD][..(RECORD - over) % RECORD])
    }
}

/// A ustar header. What does not fit is cut: a pax record in front of it tells the whole.
#[expect(clippy::too_many_arguments, reason = "they are the fields of a tar header")]
fn record(
    name: &[u8],
    kind: u8,
    mode: u32,
    owner: [u32; 2],
    size: u64,
    mtime: u64,
    link: &[u8],
    device: [u32; 2],
) -> io::Result<[u8; RECORD]> {
    let mut record = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    let octal = |value: u64, digits: usize| -> io::Result<Vec<u8>> {
        let text = format!("{value:0digits$o}");
        if text.len() > digits {
            Err(io::Error::other(format!("{value} does not fit a tar header")))
        } else {
            Ok(text.into())
        }
    };
    put(0, &name[..name.len().min(100)]);
    put(100, &octal(mode.into(), 7)?);
    put(108, &octal(owner[0].into(), 7)?);
    put(116, &octal(owner[1].into(), 7)?);
    put(124, &octal(size, 11)?);
    put(136, &octal(mtime, 11)?);
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, &octal(device[0].into(), 7)?);
    put(337, &octal(device[1].into(), 7)?);
    let sum: u64 = record.iter().map(|byte| u64::from(*byte)).sum();
    record[148..154].copy_from_slice(&octal(sum, 6)?);
    record[154] = 0;
    Ok(record)
}

fn names(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn names_of_removed(base: &Path, names_above: &[std::ffi::OsString]) -> io::Result<Vec<std::ffi::OsString>> {
    let mut gone = names(base)?;
    gone.retain(|name| names_above.binary_search(name).is_err());
    Ok(gone)
}

/// The same without a look at the contents: one tree was copied from the other with its times.
fn is_same(path: &Path, a: &Metadata, other: &Path, b: &Metadata) -> bool {
    let facts = |meta: &Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.rdev());
    if facts(a) != facts(b) {
        return false;
    }
    if a.file_type().is_symlink() {
        return fs::read_link(path).ok() == fs::read_link(other).ok();
    }
    // A directory's time changes with its entries, which are members themselves.
    a.is_dir() || (a.size(), a.mtime(), a.mtime_nsec()) == (b.size(), b.mtime(), b.mtime_nsec())
}

fn capability(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256]; // the longest version of the structure has 24 bytes
    match rustix::fs::lgetxattr(file, CAPABILITY, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::{Command, Stdio};

    /// What GNU tar says is in the layer.
    fn listed(top: &Path, base: Option<&Path>) -> Vec<String> {
        let mut tar = Vec::new();
        write(top, base, &mut tar).unwrap();
        assert_eq!(tar.len() % RECORD, 0);
        let mut child =
            Command::new("tar").arg("-tf-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_tree_comes_back_out_of_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (top, back) = (dir.path().join("top"), dir.path().join("back"));
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(200));
        fs::create_dir_all(top.join("a/empty")).unwrap();
        fs::create_dir_all(top.join("d".repeat(90))).unwrap();
        fs::create_dir(&back).unwrap();
        fs::write(top.join("a/one"), vec![7; RECORD]).unwrap();
        fs::write(top.join("a/two"), vec![8; RECORD + 1]).unwrap();
        fs::write(top.join(&long), "long name").unwrap();
        fs::hard_link(top.join("a/two"), top.join("linked")).unwrap();
        symlink("x".repeat(150), top.join("away")).unwrap();
        fs::set_permissions(top.join("a/one"), fs::Permissions::from_mode(0o4711)).unwrap();
        let mut tar = Vec::new();
        write(&top, None, &mut tar).unwrap();
        let mut child =
            Command::new("tar").args(["-xpf-", "-C"]).arg(&back).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&tar).unwrap();
        assert!(child.wait().unwrap().success());
        let same =
            Command::new("diff").arg("-r").arg("--no-dereference").arg(&top).arg(&back).status().unwrap();
        assert!(same.success());
        assert_eq!(fs::metadata(back.join("a/one")).unwrap().mode() & 0o7777, 0o4711);
        let ino = |name: &str| fs::metadata(back.join(name)).unwrap().ino();
        assert_eq!(ino("a/two"), ino("linked"));
        let secs = |root: &Path| fs::metadata(root.join("a/one")).unwrap().mtime();
        assert_eq!(secs(&top), secs(&back));
    }

    #[test]
    fn only_differences_are_in_a_layer_with_a_base() {
        let dir = tempfile::tempdir().unwrap();
        let (top, base) = (dir.path().join("top"), dir.path().join("base"));
        for name in ["kept", "gone", "both", "turned"] {
            fs::create_dir_all(base.join(name)).unwrap();
            fs::write(base.join(name).join("file"), name).unwrap();
        }
        symlink("kept", base.join("link")).unwrap();
        assert!(Command::new("cp").arg("-a").arg(&base).arg(&top).status().unwrap().success());
        assert!(listed(&top, Some(&base)).is_empty());
        fs::remove_dir_all(top.join("gone")).unwrap();
        fs::remove_file(top.join("both/file")).unwrap();
        fs::write(top.join("both/new"), "x").unwrap();
        fs::remove_dir_all(top.join("turned")).unwrap();
        fs::write(top.join("turned"), "now a file").unwrap();
        fs::remove_file(top.join("link")).unwrap();
        symlink("both", top.join("link")).unwrap();
        assert_eq!(listed(&top, Some(&base)), ["both/new", "both/.wh.file", "link", "turned", ".wh.gone"]);
    }

    #[test]
    fn what_no_header_can_hold_is_an_error() {
        assert!(record(b"x", b'0', 0o644, [0, 0], (1 << 33) - 1, 0, b"", [0, 0]).is_ok());
        assert!(record(b"x", b'0', 0o644, [0, 0], 1 << 33, 0, b"", [0, 0]).is_err());
        assert!(record(b"x", b'0', 0o644, [1 << 21, 0], 0, 0, b"", [0, 0]).is_err());
    }
}
