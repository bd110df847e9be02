//! From tars to trees to what is compared. Each test binary uses a part of it.
#![allow(dead_code, reason = "shared by test binaries that need different parts")]

use std::collections::BTreeMap;

use format::payload::{Layout, SegmentSize};
use format::tar::{Member, Parser, Placer, Step, TarError, TarProblem};
use format::tree::{Apart, Builder, File, InodeNo, Kind, LayerNo, Runs, Tree, TreeError};
use testkit::dump::{Dump, Node, What};

/// A layer that has been read whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layer {
    pub(crate) members: Vec<(Member, Runs)>,
    pub(crate) skeleton: Vec<u8>,
    pub(crate) layout: Layout,
    /// Payload space.
    pub(crate) space: Vec<u8>,
}

pub(crate) fn segment() -> SegmentSize {
    SegmentSize::from_bits(16).unwrap()
}

/// Reads a tar fed in pieces of `step` bytes.
pub(crate) fn read(tar: &[u8], step: usize) -> Result<Layer, TarError> {
    let (mut parser, mut placer) = (Parser::new(), Placer::new(segment()));
    let (mut members, mut skeleton, mut space) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < tar.len() {
        let (taken, found) = parser.step(&tar[at..tar.len().min(at.saturating_add(step))])?;
        skeleton.extend_from_slice(&tar[at..at + taken]);
        at += taken;
        if let Step::Member(member) = found {
            assert_eq!(member.plain, at as u64);
            let first = placer.layout().extents().len();
            let runs = placer.member(&member).unwrap();
            for extent in &placer.layout().extents()[first..] {
                assert_eq!(extent.plain, at as u64);
                let len = usize::try_from(extent.len).unwrap();
                let place = usize::try_from(extent.payload).unwrap();
                let Some(data) = tar.get(at..at + len) else {
                    // To the parser payload comes when it is announced.
                    return Err(TarError { offset: member.plain, problem: TarProblem::Truncated });
                };
                space.resize(place + len, 0);
                space[place..].copy_from_slice(data);
                at += len;
            }
            members.push((member, runs));
        }
    }
    parser.finish()?;
    assert_eq!((parser.plain(), parser.skeleton()), (at as u64, skeleton.len() as u64));
    Ok(Layer { members, skeleton, layout: placer.finish(), space })
}

/// Reads a skeleton; the payload space stays empty.
pub(crate) fn read_skeleton(skeleton: &[u8], step: usize) -> Result<(Vec<(Member, Runs)>, Layout), TarError> {
    let (mut parser, mut placer, mut members) = (Parser::new(), Placer::new(segment()), Vec::new());
    let mut at = 0;
    while at < skeleton.len() {
        let (taken, found) = parser.step(&skeleton[at..skeleton.len().min(at.saturating_add(step))])?;
        at += taken;
        if let Step::Member(member) = found {
            let runs = placer.member(&member).unwrap();
            members.push((member, runs));
        }
    }
    parser.finish()?;
    Ok((members, placer.finish()))
}

pub(crate) fn tree(layers: &[Layer]) -> Result<Tree, TreeError> {
    let mut builder = Builder::new();
    for layer in layers {
        builder.layer()?;
        for (member, runs) in &layer.members {
            builder.member(member, runs.clone())?;
        }
    }
    Ok(builder.finish())
}

/// Returns the tree of a layer by itself.
pub(crate) fn apart(layer: &Layer) -> Result<Tree, TreeError> {
    let mut tree = Apart::new()?;
    for (member, runs) in &layer.members {
        tree.member(member, runs.clone())?;
    }
    tree.finish()
}

/// Returns what a tree looks like with the payload of its layers.
pub(crate) fn dump(tree: &Tree, layers: &[Layer]) -> Dump {
    let mut paths = BTreeMap::new();
    collect(tree, Tree::ROOT, &[], &mut paths);
    let mut first: BTreeMap<InodeNo, Vec<u8>> = BTreeMap::new();
    let mut dump = Dump::new();
    for (path, number) in paths {
        let inode = tree.inode(number);
        let seen = first.entry(number).or_insert_with(|| path.clone());
        let what = match &inode.kind {
            _ if *seen != path => What::SameAs(seen.clone()),
            Kind::Dir(_) => What::Dir,
            Kind::File(file) => What::File(content(file, layers)),
            Kind::Symlink(target) => What::Symlink(target.to_vec()),
            Kind::Char(device) => What::Char(device.major, device.minor),
            Kind::Block(device) => What::Block(device.major, device.minor),
            Kind::Fifo => What::Fifo,
        };
        let meta = &inode.meta;
        let node = Node {
            what,
            mode: meta.mode.into(),
            uid: meta.uid,
            gid: meta.gid,
            mtime: (meta.mtime.secs, meta.mtime.nanos),
            xattrs: meta.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        };
        dump.insert(path, node);
    }
    dump
}

fn collect(tree: &Tree, dir: InodeNo, path: &[u8], paths: &mut BTreeMap<Vec<u8>, InodeNo>) {
    let Kind::Dir(entries) = &tree.inode(dir).kind else { return };
    for (name, inode) in entries {
        let path =
            if path.is_empty() { name.as_bytes().to_vec() } else { [path, b"/", name.as_bytes()].concat() };
        collect(tree, *inode, &path, paths);
        paths.insert(path, *inode);
    }
}

fn content(file: &File, layers: &[Layer]) -> Vec<u8> {
    let index = |n: u64| usize::try_from(n).unwrap();
    let LayerNo(layer) = file.layer;
    let space = &layers[usize::from(layer)].space;
    let mut content = vec![0; index(file.size)];
    match &file.runs {
        Runs::None => {}
        Runs::Whole(at) => content.copy_from_slice(&space[index(*at)..][..index(file.size)]),
        Runs::Sparse(runs) => {
            for run in runs {
                // A run covers whole blocks, so that its last may end after the file.
                let end = space.len().min(index(run.payload + run.len));
                let data = &space[index(run.payload)..end];
                let place = &mut content[index(run.at)..];
                let len = data.len().min(place.len());
                place[..len].copy_from_slice(&data[..len]);
            }
        }
    }
    content
}
