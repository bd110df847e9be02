//! Which file a place in a segment belongs to: for what the kernel tells of its own reads, which is no more.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use format::IndexId;
use format::erofs::read::{Image, Kind, Nid, Source};

use crate::observe::FileWaits;

/// Returns waits by file; those of places that no file has are left out.
///
/// Looks at every file of the image once.
pub fn by_file<B: AsRef<[u8]>>(
    image: &Image<B>,
    places: &HashMap<(IndexId, u32, u64), FileWaits>,
) -> Vec<(Nid, FileWaits)> {
    if places.is_empty() {
        return Vec::new();
    }
    let mut by_segment: HashMap<(IndexId, u32), BTreeMap<u64, FileWaits>> = HashMap::new();
    for ((index, segment, offset), waits) in places {
        by_segment.entry((*index, *segment)).or_default().insert(*offset, *waits);
    }
    let on = |number| {
        let device = image.device(number)?;
        by_segment.get(&(device.index, device.segment))
    };
    let mut found: HashMap<Nid, FileWaits> = HashMap::new();
    // What is damaged is told to whoever reads it.
    let _ = image.walk(|step| {
        let Ok(inode) = image.inode(step.entry.nid) else { return ControlFlow::Continue(()) };
        if inode.kind != Kind::File || found.contains_key(&inode.nid) {
            return ControlFlow::Continue(());
        }
        for piece in image.pieces(&inode, 0, u64::MAX).into_iter().flatten().flatten() {
            let Source::Device { number, offset } = piece.source else { continue };
            let Some(here) = on(number) else { continue };
            for waits in here.range(offset..offset + piece.len).map(|(_, waits)| waits) {
                found.entry(inode.nid).or_default().merge(waits);
            }
        }
        ControlFlow::Continue(())
    });
    found.into_iter().collect()
}
