//! Which files a start has read: those of which the kernel has pages.
//!
//! Who reads is not in the way of anybody who could count, so the page cache is asked when the start is over. It knows of
//! either read path to the page, and of nothing that was read before the mount was made; what it has read ahead counts as read.
//! In which order files were read it does not know: they are in that of the segments, which is heard of.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use format::IndexId;
use format::erofs::read::{Image, Kind, Nid, Source};
use rustix::fs::{Mode, OFlags};
use sys::map::Map;

use super::super::mounts::LiveMount;
use super::super::open::OpenImage;
use super::{Profile, ReadFile};

/// Returns the profile of a start that has read these segments.
pub(in crate::engine) fn learned(image: &OpenImage, mount: &LiveMount, reads: &[(IndexId, u32)]) -> Profile {
    let layers = image.layer_ids();
    let files = files_read(mount.image(), mount.dir(), &layers, reads);
    Profile::new(layers, reads).with_files(image.diff_ids(), files)
}

/// Returns the files of a mounted image that were read, in the order of these reads; only files in them are looked at.
/// Of a mount that is not root's the kernel tells nothing that is so.
fn files_read(image: &Image<Map>, dir: &Path, layers: &[IndexId], reads: &[(IndexId, u32)]) -> Vec<ReadFile> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    match looked_at(image, dir, layers, reads) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!("which files the start has read is not known: {error:#}");
            Vec::new()
        }
    }
}

fn looked_at(
    image: &Image<Map>,
    dir: &Path,
    layers: &[IndexId],
    reads: &[(IndexId, u32)],
) -> anyhow::Result<Vec<ReadFile>> {
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
        ControlFlow::Continue(())
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
    let size = image.inode(nid).ok()?.size;
    let read = file.map_err(Into::into).and_then(|file| sys::cached::cached(&File::from(file), size));
    match read {
        Ok(0) => None,
        Ok(read) => Some(ReadFile { layer, path: name.to_owned(), size, read }),
        Err(error) => {
            tracing::debug!(path = name, %error, "what of a file was read is not known");
            None
        }
    }
}
