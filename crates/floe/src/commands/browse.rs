//! Looking into an image without mounting it: names from the metadata image, bytes from segments.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};
use format::erofs::read::{Image, Inode, Kind, Source};
use format::limits;
use format::name::printable;
use serde::Serialize;
use sys::map::Map;

use super::{Session, out, show, user_image};
use crate::daemon::client::Client;
use crate::daemon::protocol::{Call, Opened, Segment};
use crate::exit::{Code, Hint};
use crate::talk::Talk;

/// Symbolic links followed in one path: what Linux does.
const LINKS: usize = 40;

pub(super) fn inspect(session: &Session, image: String) -> anyhow::Result<Code> {
    let opened: Opened = session.ask(Call::Open { image: user_image(image) })?;
    session.print(&opened.report, show::image)?;
    Ok(Code::Done)
}

#[derive(Serialize)]
struct Line {
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Seconds since 1970.
    mtime: i64,
    /// Printable: what is not is escaped.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

pub(super) fn ls(session: &Session, image: String, path: &Path) -> anyhow::Result<Code> {
    let opened: Opened = session.ask(Call::Open { image: user_image(image) })?;
    let tree = tree(&opened)?;
    let inode = find(&tree, path)?;
    let mut lines = Vec::new();
    if inode.kind == Kind::Dir {
        for entry in tree.entries(&inode, 0)? {
            let entry = entry?;
            if !matches!(entry.name, b"." | b"..") {
                lines.push(line(&tree, &tree.inode(entry.nid)?, entry.name)?);
            }
        }
    } else {
        lines.push(line(&tree, &inode, path.as_os_str().as_bytes())?);
    }
    session.print(&lines, |lines| {
        let mut text = String::new();
        for l in lines {
            let arrow = l.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "{} {:>3} {:>5} {:>5} {:>11} {}{arrow}",
                l.mode, l.links, l.uid, l.gid, l.size, l.name
            );
        }
        text
    })?;
    Ok(Code::Done)
}

fn line(tree: &Image<Map>, inode: &Inode, name: &[u8]) -> anyhow::Result<Line> {
    let target = match inode.kind {
        Kind::Symlink => Some(printable(tree.readlink(inode)?)),
        _ => None,
    };
    Ok(Line {
        mode: mode(inode),
        links: inode.links,
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        mtime: inode.mtime.secs,
        name: printable(name),
        target,
    })
}

/// Returns the mode as `ls -l` writes it.
fn mode(inode: &Inode) -> String {
    let kind = match inode.kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
    };
    let mut text = String::from(kind);
    // Read, write, execute; and what setuid, setgid and sticky make of the execute bit.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = inode.permissions >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (inode.permissions & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    text
}

pub(super) fn cat(session: &Session, image: String, path: &Path) -> anyhow::Result<Code> {
    let talk = Talk::stderr();
    let mut client = Client::connect(&session.address)?;
    let opened: Opened =
        client.call(Call::Open { image: user_image(image) }, &mut |event| talk.hear(event))?;
    let tree = tree(&opened)?;
    let inode = find(&tree, path)?;
    if inode.kind != Kind::File {
        bail!("{} is not a regular file", path.display());
    }
    let mut buf = vec![0; 1 << 20];
    for piece in tree.pieces(&inode, 0, inode.size)? {
        let piece = piece?;
        let file = match piece.source {
            Source::Hole => None,
            Source::Device { number, offset } => {
                let device = tree.device(number).context("a file lies on a device that is not there")?;
                let call = Call::Segment { index: device.index, number: device.segment };
                let segment: Segment = client.call(call, &mut |event| talk.hear(event))?;
                let file = std::fs::File::open(&segment.file);
                Some((file.with_context(|| format!("opening {}", segment.file.display()))?, offset))
            }
        };
        let mut done = 0;
        while done < piece.len {
            let n = usize::try_from(piece.len - done).map_or(buf.len(), |left| left.min(buf.len()));
            match &file {
                None => buf[..n].fill(0),
                Some((file, offset)) => {
                    file.read_exact_at(&mut buf[..n], offset + done).context("reading a segment")?
                }
            }
            out(&buf[..n])?;
            done += n as u64;
        }
    }
    Ok(Code::Done)
}

fn tree(opened: &Opened) -> anyhow::Result<Image<Map>> {
    let what = || format!("reading the metadata image {}", opened.meta.display());
    let file = std::fs::File::open(&opened.meta).with_context(what)?;
    Image::open(Map::of(&file).with_context(what)?).with_context(what)
}

/// Finds a path as a process in the image would: links are followed inside the image.
fn find(tree: &Image<Map>, path: &Path) -> anyhow::Result<Inode> {
    let missing = || anyhow::anyhow!("{} is not in the image", path.display());
    let mut todo: Vec<Vec<u8>> = parts(path.as_os_str().as_bytes());
    let mut at = vec![tree.inode(tree.root())?];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            at.truncate(at.len().saturating_sub(1).max(1));
            continue;
        }
        let Some(dir) = at.last().filter(|inode| inode.kind == Kind::Dir) else { return Err(missing()) };
        let inode = tree.inode(tree.lookup(dir, &name)?.ok_or_else(missing)?)?;
        if inode.kind != Kind::Symlink {
            at.push(inode);
            continue;
        }
        links += 1;
        if links > LINKS {
            bail!(anyhow::anyhow!("more than {LINKS} symbolic links").context(Hint::new(
                format!("finding {}", path.display()),
                "the links of the image lead in a circle"
            )));
        }
        let target = tree.readlink(&inode)?;
        if target.starts_with(b"/") {
            at.truncate(1);
        }
        todo.extend(parts(target));
        if todo.len() > limits::PATH {
            bail!("the links in {} lead nowhere", path.display());
        }
    }
    at.pop().ok_or_else(missing)
}

/// Returns the components, last first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_come_last_first() {
        assert_eq!(parts(b"/a//./b/../c"), [&b"c"[..], b"..", b"b", b"a"]);
        assert!(parts(b"/").is_empty());
    }
}
