//! Random images, held against what umoci unpacks of them: a program of others that applies layers in its own way.
//!
//! Where it is known to read something in another way, that is not in these images. Of umoci 0.4.7 (`oci/layer/tar_extract.go`) and
//! Go's `archive/tar`:
//! - What the header of a hard link says of owner, mode, time and attributes is passed over, where containerd and Floe take it: so
//!   links say what their targets are.
//! - What is in the way of a hard link is removed before its target is looked for: so no link takes the place of its target,
//!   or of a directory on the way there.
//! - A whiteout where there is no directory makes none, and a directory that stays only for what lies below it stays what it was: so
//!   layers with whiteouts describe all of their directories.
//! - Directories that nobody describes, and those they are made in, have the time of unpacking: so somebody describes them.
//! - Directories below one in which a whiteout stands have the time of unpacking where something is removed from them: so of images
//!   with whiteouts times of directories are not compared.
//! - Members of type `S` are refused: so sparse files are pax's.
//! - Records without a value are passed over: so attributes have one. Capabilities that are none are refused by kernels.
//! - Times are nanoseconds since 1970 in 64 bits, and ext4 has none before 1901.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use format::Digest;
use proptest::prelude::*;
use testkit::dump::{self, Dump, What, difference};
use testkit::layers::{described, flatten, tidy};
use testkit::tar::{Archive, Entry, Kind, Variant};
use testkit::{arbitrary, skip};

/// Returns what both read alike of these layers; what keeps them from having a tree is left out.
fn agreed(layers: &[Vec<(Entry, Variant)>]) -> Vec<Vec<Entry>> {
    let mut agreed: Vec<Vec<Entry>> = Vec::new();
    for layer in layers {
        let layer: Vec<Entry> = layer.iter().map(|(entry, _)| tamed(entry.clone())).collect();
        let layer = if layer.iter().any(is_whiteout) { described(&layer) } else { layer };
        agreed.push(Vec::new());
        for entry in layer {
            let tree = flatten(&agreed).unwrap();
            let path = tidy(&entry.path);
            let parents = (0..path.len()).filter(|at| path[*at] == b'/').map(|at| &path[..at]);
            let missing = parents.filter(|dir| !tree.contains_key(*dir)).map(Entry::dir);
            let last = agreed.len() - 1;
            let before = agreed[last].len();
            agreed[last].extend(missing);
            agreed[last].extend(linked(entry, &tree));
            if flatten(&agreed).is_err() {
                agreed[last].truncate(before);
            }
        }
    }
    agreed
}

fn is_whiteout(entry: &Entry) -> bool {
    let name = entry.path.rsplit(|b| *b == b'/').next();
    name.is_some_and(|name| name.starts_with(b".wh."))
}

fn tamed(mut entry: Entry) -> Entry {
    for (name, value) in &mut entry.xattrs {
        if name == b"security.capability" {
            *name = b"security.other".to_vec();
        }
        if value.is_empty() {
            value.push(b'v');
        }
    }
    entry.mtime.0 = entry.mtime.0.clamp(-2_000_000_000, 9_000_000_000);
    entry
}

/// Returns a link that says what its target is, if it may take its place; and all else as it is.
fn linked(mut entry: Entry, tree: &Dump) -> Option<Entry> {
    let Kind::Link(target) = &entry.kind else { return Some(entry) };
    let (path, target) = (tidy(&entry.path), tidy(target));
    let node = tree.get(&target)?;
    if target.starts_with(&path) && matches!(target.get(path.len()), None | Some(b'/')) {
        return None;
    }
    (entry.mode, entry.uid, entry.gid, entry.mtime) = (node.mode, node.uid, node.gid, node.mtime);
    entry.xattrs.clear();
    Some(entry)
}

fn tar(layer: &[Entry]) -> Vec<u8> {
    let mut archive = Archive::new();
    for (n, entry) in layer.iter().enumerate() {
        let variant = match (arbitrary::variant(entry, n), &entry.kind) {
            (Variant::Gnu, Kind::Sparse(..)) => Variant::Pax01,
            (variant, _) => variant,
        };
        archive.entry(entry, variant);
    }
    archive.finish();
    archive.tar
}

/// Writes an image of these layers as an OCI layout.
fn layout(tars: &[Vec<u8>], dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len());
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        format!(r#""mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}"#)
    };
    let list = |texts: Vec<String>| texts.join(",");
    let layers = list(tars.iter().map(|tar| format!("{{{}}}", blob("layer.v1.tar", tar))).collect());
    let diff_ids = list(tars.iter().map(|tar| format!("{:?}", Digest::of(tar).to_string())).collect());
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}}}"#
    );
    let config = blob("config.v1+json", config.as_bytes());
    let manifest = format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{layers}]}}"#);
    let manifest = blob("manifest.v1+json", manifest.as_bytes());
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"it"}"#;
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{{manifest},{name}}}]}}"#);
    fs::write(dir.join("index.json"), index).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Returns what umoci makes of an image.
fn unpacked(tars: &[Vec<u8>]) -> Dump {
    let dir = tempfile::tempdir().unwrap();
    let (image, root) = (dir.path().join("image"), dir.path().join("root"));
    layout(tars, &image);
    let done = Command::new("sh")
        .args(["-c", r#"umask 022; exec umoci raw unpack --image "$0:it" "$1""#])
        .args([&image, &root])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    dump::disk(&root).unwrap()
}

#[test]
fn trees_are_what_umoci_unpacks() {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        skip!("devices, owners and trusted attributes need root");
    }
    if Command::new("umoci").arg("--version").output().is_err() {
        skip!("umoci is not installed");
    }
    proptest!(ProptestConfig::with_cases(64), |(layers in prop::collection::vec(arbitrary::layer(0..16), 1..4))| {
        let layers = agreed(&layers);
        let tars: Vec<_> = layers.iter().map(|layer| tar(layer)).collect();
        let read: Vec<_> = tars.iter().map(|tar| support::read(tar, usize::MAX).unwrap()).collect();
        // What only the builder refuses is a matter of order: a whiteout behind what it makes room for.
        let Ok(tree) = support::tree(&read) else { return Ok(()) };
        let (mut wanted, mut found) = (support::dump(&tree, &read), unpacked(&tars));
        if layers.iter().flatten().any(is_whiteout) {
            let dirs = wanted.values_mut().chain(found.values_mut()).filter(|node| node.what == What::Dir);
            dirs.for_each(|dir| dir.mtime = (0, 0));
        }
        let difference = difference(&found, &wanted);
        prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    });
}
