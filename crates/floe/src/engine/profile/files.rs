//! Which files a start has read: those of which the kernel has pages.
//!
//! Who reads is not in the way of anybody who could count, so the page cache is asked when the start is over. It knows of
//! either read path to the page, and of nothing that was read before the mount was made; what it has read ahead counts as read.
//! In which order files were read it does not know: they are in that of the segments, which is heard of.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use format::IndexId;
use format::erofs::read::{Image, Kind, Nid, Source};
use rustix::fs::{Mode, OFlags};
use sys::map::Map;

use super::{Profile, ReadFile};

/// The longest that may be looked: who watches the start waits for it.
const LONGEST: Duration = Duration::from_secs(10);

/// Returns a profile with the files that were read of the image, mounted in a directory, whose tree is in this file: in the order of the profile's
/// reads; only files in these are looked at. Nobody who serves that mount may ask. Of one that is not root's the kernel tells
/// nothing that is so.
pub(crate) fn with_files_read(profile: Profile, meta: &Path, dir: &Path) -> anyhow::Result<Profile> {
    if !rustix::process::geteuid().is_root() {
        return Ok(profile);
    }
    let what = || format!("reading the metadata image {}", meta.display());
    let file = File::open(meta).with_context(what)?;
    let image = Image::open(Map::of(&file).with_context(what)?).with_context(what)?;
    let files = looked_at(&image, dir, &profile.layers, &profile.reads().collect::<Vec<_>>())?;
    Ok(profile.with_files(files))
}

fn looked_at(
    image: &Image<Map>,
    dir: &Path,
    layers: &[IndexId],
    reads: &[(IndexId, u32)],
) -> anyhow::Result<Vec<ReadFile>> {
    let until = Instant::now() + LONGEST;
    let rank: HashMap<_, _> = reads.iter().enumerate().map(|(rank, segment)| (*segment, rank)).collect();
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty())
        .with_context(|| format!("opening the mount at {}", dir.display()))?;
    let (mut found, mut seen) = (Vec::new(), HashSet::<Nid>::new());
    let walked = image.walk(|step| {
        if step.entry.kind == Kind::File
            && seen.insert(step.entry.nid)
            && let Some(((rank, offset), layer)) = first_read(image, step.entry.nid, layers, &rank)
            && let Some(file) = read(image, &root, layer, step.path, step.entry.nid)
        {
            found.push(((rank, offset), file));
        }
        if Instant::now() < until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    walked.context("reading the tree")?;
    found.sort_by(|(one, a), (other, b)| (one, &a.path).cmp(&(other, &b.path)));
    Ok(found.into_iter().map(|(_, file)| file).collect())
}

/// Returns the first of the reads in which a file may have been read, where it lies there, and the number of its layer.
fn first_read(
    image: &Image<Map>,
    nid: Nid,
    layers: &[IndexId],
    rank: &HashMap<(IndexId, u32), usize>,
) -> Option<((usize, u64), u16)> {
    let inode = image.inode(nid).ok()?; // what is damaged is told to whoever reads it
    let (mut first, mut layer) = (None, None);
    for piece in image.pieces(&inode, 0, u64::MAX).ok()?.flatten() {
        let Source::Device { number, offset } = piece.source else { continue };
        let Some(device) = image.device(number) else { continue };
        layer = layer.or_else(|| layers.iter().position(|layer| *layer == device.index));
        if let Some(rank) = rank.get(&(device.index, device.segment)) {
            first = first.into_iter().chain([(*rank, offset)]).min();
        }
    }
    first.zip(layer.and_then(|layer| u16::try_from(layer).ok()))
}

/// Returns what of a file is in memory, if anything is.
fn read(image: &Image<Map>, root: &OwnedFd, layer: u16, path: &[u8], nid: Nid) -> Option<ReadFile> {
    let name = std::str::from_utf8(path).ok()?; // JSON has no others
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(root, Path::new(std::ffi::OsStr::from_bytes(path)), flags, Mode::empty());
    let read = file.map_err(Into::into).and_then(|file| cached(image, nid, &File::from(file)));
    match read {
        Ok((_, 0)) => None,
        Ok((size, read)) => Some(ReadFile { layer, path: name.to_owned(), size, read }),
        Err(error) => {
            tracing::debug!(path = name, %error, "what of a file was read is not known");
            None
        }
    }
}

/// Returns the length of a file, and how much of what it has apart from holes is in memory: of holes there may be any number.
fn cached(image: &Image<Map>, nid: Nid, file: &File) -> io::Result<(u64, u64)> {
    let inode = image.inode(nid).map_err(io::Error::other)?;
    let (mut at, mut read) = (0, 0);
    for piece in image.pieces(&inode, 0, u64::MAX).map_err(io::Error::other)? {
        let piece = piece.map_err(io::Error::other)?;
        if matches!(piece.source, Source::Device { .. }) {
            read += sys::cached::cached(file, at..at + piece.len)?;
        }
        at += piece.len;
    }
    Ok((inode.size, read))
}
