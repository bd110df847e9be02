//! Trees made by hand, with segments full of bytes that tell where they belong. Tests only.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::write::LayerDevices;
use crate::IndexId;
use crate::name::Name;
use crate::payload::{Layout, Piece, Run, SegmentSize};
use crate::tree::{File, Inode, InodeNo, Kind, LayerNo, Meta, Runs, Tree, Xattrs};

/// A tree in the making, and the payload of its layers.
pub(crate) struct Fixture {
    pub(crate) tree: Tree,
    layers: Vec<Layout>,
    plain: u64,
}

/// Extended attributes from pairs.
pub(crate) fn xattrs(pairs: &[(&[u8], &[u8])]) -> Xattrs {
    Arc::new(pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect())
}

impl Fixture {
    /// Returns an empty root over layers with these segment sizes (as powers of two).
    pub(crate) fn new(bits: &[u8]) -> Self {
        let layers = bits.iter().map(|&bits| Layout::new(SegmentSize::from_bits(bits).unwrap())).collect();
        Self { tree: Tree::new(), layers, plain: 0 }
    }

    /// Adds a name and an inode; directories on the way that are missing are made.
    pub(crate) fn add(&mut self, path: &[u8], kind: Kind) -> InodeNo {
        let number = self.push(kind);
        self.link(path, number);
        number
    }

    /// Adds a file of `size` bytes.
    pub(crate) fn file(&mut self, path: &[u8], layer: u16, size: u64) -> InodeNo {
        let payload = self.layers[usize::from(layer)].file(self.plain, size);
        self.plain += size + 512;
        let runs = if size == 0 { Runs::None } else { Runs::Whole(payload) };
        self.add(path, Kind::File(File { size, layer: LayerNo(layer), runs }))
    }

    /// Adds a sparse file of `size` bytes with data at (offset, length).
    pub(crate) fn sparse(&mut self, path: &[u8], layer: u16, size: u64, data: &[(u64, u64)]) -> InodeNo {
        let pieces: Vec<_> = data.iter().map(|&(at, len)| Piece { at, len }).collect();
        let runs = self.layers[usize::from(layer)].sparse(self.plain, &pieces);
        self.plain += data.iter().map(|(_, len)| len).sum::<u64>() + 512;
        let runs = if runs.is_empty() { Runs::None } else { Runs::Sparse(runs.into()) };
        self.add(path, Kind::File(File { size, layer: LayerNo(layer), runs }))
    }

    /// Adds an empty directory.
    pub(crate) fn dir(&mut self, path: &[u8]) -> InodeNo {
        self.add(path, Kind::Dir(BTreeMap::new()))
    }

    /// Adds a name for an inode that is there.
    pub(crate) fn link(&mut self, path: &[u8], number: InodeNo) {
        let mut names: Vec<_> = path.split(|&b| b == b'/').collect();
        let last = names.pop().unwrap();
        let mut at = Tree::ROOT;
        for name in names {
            let next = match &self.tree.inode(at).kind {
                Kind::Dir(entries) => entries.get(name).copied(),
                other => panic!("{other:?} is not a directory"),
            };
            at = next.unwrap_or_else(|| {
                let made = self.push(Kind::Dir(BTreeMap::new()));
                self.entries(at).insert(Name::parse(name).unwrap(), made);
                made
            });
        }
        self.entries(at).insert(Name::parse(last).unwrap(), number);
    }

    /// Gives access to the attributes of an inode.
    pub(crate) fn meta(&mut self, number: InodeNo) -> &mut Meta {
        &mut self.tree.inodes[number.0 as usize].meta
    }

    /// Adds an inode without a name.
    pub(crate) fn push(&mut self, kind: Kind) -> InodeNo {
        let mode = if matches!(kind, Kind::Dir(_)) { 0o755 } else { 0o644 };
        let number = InodeNo(u32::try_from(self.tree.inodes.len()).unwrap());
        self.tree.inodes.push(Inode { meta: Meta { mode, ..Meta::default() }, kind });
        number
    }

    /// Returns the entries of a directory.
    pub(crate) fn entries(&mut self, number: InodeNo) -> &mut BTreeMap<Name, InodeNo> {
        match &mut self.tree.inodes[number.0 as usize].kind {
            Kind::Dir(entries) => entries,
            other => panic!("{other:?} is not a directory"),
        }
    }

    /// Says that no file will be added.
    pub(crate) fn finish(mut self) -> Self {
        self.layers.iter_mut().for_each(Layout::finish);
        self
    }

    /// Returns the devices of a finished fixture.
    pub(crate) fn devices(&self) -> Vec<LayerDevices> {
        (0..)
            .zip(&self.layers)
            .map(|(n, layout)| LayerDevices {
                index: IndexId::from_bytes([n; 32]),
                segment: layout.segment_size(),
                lens: (0..layout.segments())
                    .map(|s| u32::try_from(layout.segment_len(s) / 4096).unwrap())
                    .collect(),
            })
            .collect()
    }

    /// Returns the bytes of all segment files, in the order of their device numbers.
    pub(crate) fn segments(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (layer, layout) in (0..).zip(&self.layers) {
            for segment in 0..layout.segments() {
                let start = layout.segment_size().start(segment);
                let mut bytes = vec![0; usize::try_from(layout.segment_len(segment)).unwrap()];
                for extent in layout.extents_of(segment) {
                    let first = extent.payload.max(start);
                    let end = (extent.payload + extent.len).min(start + layout.segment_size().bytes());
                    for at in first..end {
                        bytes[usize::try_from(at - start).unwrap()] = byte(layer, at);
                    }
                }
                all.push(bytes);
            }
        }
        all
    }

    /// Returns `len` bytes of a file at `at`, by its runs and nothing else.
    pub(crate) fn contents(&self, file: &File, at: u64, len: usize) -> Vec<u8> {
        let layout = &self.layers[usize::from(file.layer.0)];
        let whole;
        let runs = match &file.runs {
            Runs::None => &[][..],
            &Runs::Whole(payload) => {
                whole = [Run { at: 0, payload, len: file.size }];
                &whole
            }
            Runs::Sparse(runs) => runs,
        };
        let mut bytes = vec![0; len];
        let end = at + len as u64;
        for run in runs {
            for offset in run.at.max(at)..(run.at + run.len).min(end) {
                let payload = run.payload + (offset - run.at);
                let extent = layout.extents().partition_point(|e| e.payload + e.len <= payload);
                if layout.extents()[extent].payload <= payload {
                    bytes[usize::try_from(offset - at).unwrap()] = byte(file.layer.0, payload);
                }
            }
        }
        bytes
    }
}

/// A byte of payload: never 0, and another one at most other places.
fn byte(layer: u16, payload: u64) -> u8 {
    let mixed = (payload ^ u64::from(layer) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    mixed[7] ^ mixed[6] | 1
}
