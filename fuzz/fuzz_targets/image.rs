//! Layers to a tree to a metadata image: what is written can be read, and every name of it leads somewhere.
#![no_main]

use std::ops::ControlFlow;

use format::IndexId;
use format::erofs::read::{Image, Kind};
use format::erofs::write::{self, LayerDevices};
use format::limits;
use format::payload::SegmentSize;
use format::tar::{Parser, Placer, Step};
use format::tree::Builder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut dice = fuzz::Dice(data);
    let (mut builder, mut devices) = (Builder::new(), Vec::new());
    for n in 0..=dice.byte() % 3 {
        let len = if n == 2 { data.len() } else { usize::from(dice.byte()) * 512 };
        let mut tar = dice.bytes(len).to_vec();
        fuzz::seal(&mut tar);
        match layer(&mut builder, &tar) {
            Some(lens) => devices.push(LayerDevices {
                index: IndexId::from_bytes([n; 32]),
                segment: SegmentSize::DEFAULT,
                lens,
            }),
            None => return,
        }
    }
    let tree = builder.finish();
    let Ok(bytes) = write::image(&tree, &devices) else { return };
    let image = Image::open(&bytes[..]).expect("written by us");
    let mut names = 0;
    image
        .walk(|step| {
            names += 1;
            let inode = image.inode(step.entry.nid).expect("every name has an inode");
            assert_eq!(inode.kind, step.entry.kind);
            image.xattrs(&inode).expect("attributes").for_each(|x| assert!(x.is_ok(), "attribute"));
            match inode.kind {
                Kind::File => {
                    let len: u64 = image
                        .pieces(&inode, 0, u64::MAX)
                        .expect("pieces")
                        .map(|p| p.expect("piece").len)
                        .sum();
                    assert_eq!(len, inode.size);
                }
                Kind::Symlink => assert!(!image.readlink(&inode).expect("target").is_empty()),
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .expect("written by us");
    assert!(names >= image.inodes().saturating_sub(1), "each inode but the root has a name");
});

/// Adds a layer; returns its segments' lengths in blocks, or nothing if it is no layer.
fn layer(builder: &mut Builder, tar: &[u8]) -> Option<Vec<u32>> {
    let (mut parser, mut placer) = (Parser::new(), Placer::new(SegmentSize::DEFAULT));
    builder.layer().ok()?;
    let mut rest = tar;
    while !rest.is_empty() {
        let (taken, step) = parser.step(rest).ok()?;
        rest = &rest[taken..];
        let Step::Member(member) = step else { continue };
        // Payload that is not there any more is taken for granted, so that files can be large. But not so large that
        // devices run out.
        if member.payload > 1 << 30 {
            return None;
        }
        let runs = placer.member(&member).ok()?;
        builder.member(&member, runs).ok()?;
        rest = &rest[rest.len().min(member.payload as usize)..];
    }
    parser.finish().ok()?;
    let layout = placer.finish();
    (layout.segments() < 1000)
        .then(|| (0..layout.segments()).map(|n| (layout.segment_len(n) / limits::BLOCK) as u32).collect())
}
