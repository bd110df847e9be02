//! The whole way of a layer, held against GNU tar: what the kernel shows of it is what tar extracts.
//!
//! GNU tar packs a directory with one of everything; from the blob come an index and, each from its range, the
//! segments; from the index the tree and its metadata image; the kernel mounts that as EROFS over the segment files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{built, decode, pack};
use convert::Threads;
use format::erofs::write::{self, LayerDevices};
use format::layer::{Layer, LayerError};
use format::tree::{Builder, Tree};
use sys::mount::{self, Detached, DeviceReads};
use testkit::dump::{self, difference};
use testkit::{fixture, skip};

#[test]
fn the_kernel_shows_what_gnu_tar_extracts() {
    // Not in /tmp: the kernel refuses an image on tmpfs.
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    if fs::metadata(temp.path()).unwrap().uid() != 0 {
        skip!("devices, owners, trusted attributes and mounts need root");
    }
    if Command::new("tar").arg("--version").output().is_err() {
        skip!("there is no tar");
    }
    let nothing = Builder::new().finish();
    if let Err(error) = mounted(&temp.path().join("nothing"), &nothing, &[], &[]) {
        skip!("no EROFS from files here: {error}");
    }
    for rich in [false, true] {
        let from = temp.path().join(format!("from-{rich}"));
        fixture::populate(&from, rich).unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o1751)).unwrap();
        chown(&from, Some(7), Some(8)).unwrap();
    }
    let everything = ["--xattrs", "--xattrs-include=*"];
    for (n, (rich, options, packing)) in [
        (false, &["--format=ustar"][..], "gzip -9"),
        (true, &["--format=gnu", "--sparse"], "pigz"),
        (true, &["--format=posix", everything[0], everything[1]], "zstd -3"),
        (true, &["--format=posix", "--sparse", everything[0], everything[1]], "gzip -6"),
        (true, &["--format=posix", "--sparse", "--hard-dereference", everything[0], everything[1]], "bgzf"),
        (
            true,
            &["--format=posix", "--sparse", "--sparse-version=0.1", everything[0], everything[1]],
            "plain",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = temp.path().join(n.to_string());
        fs::create_dir_all(dir.join("extracted")).unwrap();
        let archive = dir.join("tar");
        let create = [&["-cf", archive.to_str().unwrap()], options, &["."]].concat();
        fixture::gnu_tar(&create, &temp.path().join(format!("from-{rich}"))).unwrap();
        let extract = ["-xpf", archive.to_str().unwrap(), "--numeric-owner", everything[0], everything[1]];
        fixture::gnu_tar(&extract, &dir.join("extracted")).unwrap();

        let tar = fs::read(&archive).unwrap();
        let (tree, devices, segments) = through_an_index(&tar, &pack(packing, &tar));
        assert!(segments.len() > 10, "{options:?}: {} segments", segments.len());
        let mount = mounted(&dir, &tree, &devices, &segments).unwrap();
        let shown = PathBuf::from(format!("/proc/self/fd/{}/", mount.as_fd().as_raw_fd()));
        compare(&dir.join("extracted"), &shown, options);
    }
}

/// Returns the tree of a layer and its segments, of which nothing but the index is taken from the build.
fn through_an_index(tar: &[u8], blob: &[u8]) -> (Tree, Vec<LayerDevices>, Vec<Vec<u8>>) {
    let layer = built(tar, blob, 16, Threads::Two).layer;
    let mut builder = Builder::new();
    builder.layer().unwrap();
    let reopened = Layer::open_with(layer.index().clone(), |member, runs| {
        builder.member(&member, runs).unwrap();
        Ok::<_, LayerError>(())
    });
    assert_eq!(reopened.unwrap().id(), layer.id());
    let segments = (0..layer.segments()).map(|n| decode(&layer, blob, n..n + 1, 4096).unwrap().remove(0));
    let devices =
        LayerDevices { index: layer.id(), segment: layer.facts().segment, lens: layer.segment_blocks() };
    (builder.finish(), vec![devices], segments.collect())
}

/// Mounts a tree from files in a directory.
fn mounted(
    dir: &Path,
    tree: &Tree,
    devices: &[LayerDevices],
    segments: &[Vec<u8>],
) -> Result<Detached, mount::MountError> {
    fs::create_dir_all(dir).unwrap();
    let image = dir.join("image");
    fs::write(&image, write::image(tree, devices).unwrap()).unwrap();
    let files = segments.iter().enumerate().map(|(n, bytes)| {
        let path = dir.join(format!("segment-{n}"));
        fs::write(&path, bytes).unwrap();
        path
    });
    mount::erofs(&image, files.collect::<Vec<_>>(), DeviceReads::Buffered)
}

fn compare(extracted: &Path, shown: &Path, options: &[&str]) {
    let wanted = dump::disk(extracted).unwrap();
    assert!(wanted.len() > 20, "{options:?}: {} names", wanted.len());
    let difference = difference(&wanted, &dump::disk(shown).unwrap());
    assert!(difference.is_none(), "{options:?}\n{}", difference.unwrap_or_default());
    // What a dump leaves out: lengths as they are stated, link counts, the root. Its member is the one that counts
    // for nothing (docs/SEMANTICS.md).
    assert_eq!(stated(extracted), stated(shown), "{options:?}");
    let [tars, ours] = [extracted, shown].map(|path| fs::metadata(path).unwrap());
    assert_eq!((ours.mode(), ours.uid(), ours.gid()), (0o040_755, 0, 0), "{options:?}");
    assert_eq!((ours.mtime(), ours.mtime_nsec(), ours.nlink()), (0, 0, tars.nlink()), "{options:?}");
}

/// Returns length and link count of all that is no directory, and the link count of what is.
fn stated(root: &Path) -> BTreeMap<PathBuf, (Option<u64>, u64)> {
    let (mut all, mut left) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let seen = fs::symlink_metadata(&path).unwrap();
            let len = (!seen.is_dir()).then_some(seen.len());
            all.insert(path.strip_prefix(root).unwrap().to_path_buf(), (len, seen.nlink()));
            if seen.is_dir() {
                left.push(path);
            }
        }
    }
    all
}
