//! Bytes as a metadata image, and as the image of a layer: whatever they are, reading ends and stays inside.
#![no_main]

use std::ops::ControlFlow;

use format::erofs::disk;
use format::erofs::read::{Image, Kind, LayerHead, Nid, Source};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, image)) = data.split_first() else { return };
    let mut image = image.to_vec();
    if mode & 1 == 1 {
        image.resize(image.len().next_multiple_of(disk::BLOCK), 0);
        if let Some(block) = image.first_chunk::<{ disk::BLOCK }>() {
            let sum = disk::super_checksum(block).to_le_bytes();
            image[disk::SUPER_OFFSET + 4..disk::SUPER_OFFSET + 8].copy_from_slice(&sum);
        }
    }
    if mode & 2 == 2 {
        return layer(&image);
    }
    let Ok(image) = Image::open(&image[..]) else { return };
    (0..=image.devices()).for_each(|n| assert_eq!(image.device(n).is_some(), n > 0));
    all(&image, &|number| image.device(number).expect("checked").len);
});

fn layer(bytes: &[u8]) {
    let Some(Ok(head)) = bytes.first_chunk().map(LayerHead::read) else { return };
    let (meta, whole) = (head.meta(), head.len());
    let Some(meta) = usize::try_from(meta).ok().and_then(|meta| bytes.get(meta..)) else { return };
    let Ok(image) = head.open(meta) else { return };
    all(&image, &|number| if number == 0 { whole } else { 0 });
}

/// Looks at all of an image, whose devices have these lengths.
fn all(image: &Image<&[u8]>, room: &dyn Fn(u16) -> u64) {
    let mut names = 0;
    let _ = image.walk(|step| {
        look(image, step.entry.nid, step.entry.name, room);
        names += 1;
        if names < 3000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (0..200).for_each(|nid| look(image, Nid(nid), b"name", room));
    look(image, Nid(u64::MAX), b"", room);
}

fn look(image: &Image<&[u8]>, nid: Nid, name: &[u8], room: &dyn Fn(u16) -> u64) {
    let Ok(inode) = image.inode(nid) else { return };
    if let Ok(xattrs) = image.xattrs(&inode) {
        for xattr in xattrs.take(100).flatten() {
            let full = [xattr.prefix, xattr.suffix].concat();
            assert!(xattr.is_named(&full) && full.len() == xattr.name_len());
        }
    }
    let _ = image.xattr(&inode, b"user.a");
    match inode.kind {
        Kind::File => {
            for offset in [0, 4095, inode.size / 2] {
                let Ok(pieces) = image.pieces(&inode, offset, 1 << 20) else { continue };
                let mut left = inode.size.saturating_sub(offset).min(1 << 20);
                for piece in pieces {
                    let Ok(piece) = piece else { break };
                    assert!(piece.len > 0 && piece.len <= left);
                    left -= piece.len;
                    if let Source::Device { number, offset } = piece.source {
                        assert!(offset + piece.len <= room(number));
                    }
                }
            }
        }
        Kind::Dir => {
            let _ = image.lookup(&inode, name);
            for cookie in [0, 1, 4096, u64::MAX] {
                let Ok(entries) = image.entries(&inode, cookie) else { continue };
                for entry in entries.take(50) {
                    let Ok(entry) = entry else { break };
                    assert!(
                        !entry.name.is_empty() && !entry.name.contains(&b'/') && !entry.name.contains(&0)
                    );
                }
            }
        }
        Kind::Symlink => {
            let _ = image.readlink(&inode);
        }
        _ => {}
    }
}
