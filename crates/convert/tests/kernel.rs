//! A tar by GNU tar, through index, segments and metadata image, as the kernel shows it: what GNU tar extracts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::{built, pack};
use convert::Threads;
use format::erofs::write::{self, LayerDevices};
use format::tree::Builder;
use sys::mount::{DeviceReads, Unmount, erofs, unmount};
use testkit::dump::{self, difference};
use testkit::{fixture, skip};

fn tar(arguments: &[&str], dir: &Path) {
    let output = Command::new("tar").args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "tar {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_kernel_shows_what_gnu_tar_extracts() {
    // Not where files may lie in memory only: the kernel wants them on a file system with blocks.
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    if fs::metadata(home.path()).unwrap().uid() != 0 {
        skip!("devices, owners, trusted attributes and mounts need root");
    }
    if Command::new("tar").arg("--version").output().is_err() {
        skip!("there is no tar");
    }
    let [from, archive, out, meta, at] =
        ["from", "layer.tar", "out", "meta", "at"].map(|name| home.path().join(name));
    fixture::populate(&from, true).unwrap();
    fs::write(from.join("large"), pack("zstd -3", &common::assorted(4, 60))).unwrap(); // some segments of noise
    let xattrs = ["--xattrs", "--xattrs-include=*"];
    let name = archive.to_str().unwrap();
    tar(&[&["-cf", name, "--format=posix", "--sparse"][..], &xattrs, &["."]].concat(), &from);
    for dir in [&out, &at] {
        fs::create_dir(dir).unwrap();
    }
    tar(&[&["-xpf", name, "--numeric-owner"][..], &xattrs].concat(), &out);
    let mut wanted = dump::disk(&out).unwrap();

    let tar = fs::read(&archive).unwrap();
    let layer = built(&tar, &pack("gzip -6", &tar), 18, Threads::Two);
    let devices: Vec<_> =
        (0..layer.segments.len()).map(|n| home.path().join(format!("segment{n}"))).collect();
    for (path, bytes) in devices.iter().zip(&layer.segments) {
        fs::write(path, bytes).unwrap();
    }
    assert!(devices.len() > 3, "{} segments", devices.len());
    let mut builder = Builder::new();
    builder.layer().unwrap();
    let read: Result<(), Box<dyn std::error::Error>> =
        layer.layer.members(|member, runs| Ok(builder.member(&member, runs)?));
    read.unwrap();
    let segment = layer.layer.facts().segment;
    let lens = layer.layer.segment_blocks();
    let image =
        write::image(&builder.finish(), &[LayerDevices { index: layer.layer.id(), segment, lens }]).unwrap();
    fs::write(&meta, image).unwrap();

    // The root is the image's own, whatever a layer says of it (docs/SEMANTICS.md).
    wanted.retain(|path, _| !path.is_empty());
    for reads in [DeviceReads::Buffered, DeviceReads::Direct] {
        match erofs(&meta, &devices, reads) {
            Ok(mount) => mount.attach(&at).unwrap(),
            Err(error) => skip!("no EROFS over files here: {error}"),
        }
        let shown = dump::disk(&at);
        unmount(&at, Unmount::Idle).unwrap();
        let mut shown = shown.unwrap();
        shown.retain(|path, _| !path.is_empty());
        assert!(shown.len() > 30, "{} paths", shown.len());
        let difference = difference(&shown, &wanted);
        assert!(difference.is_none(), "{reads:?}\n{}", difference.unwrap_or_default());
    }
}
