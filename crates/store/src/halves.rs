//! Halves of segments that lie in two spans, of layers of which only spans are hashed: what one of the two had of them when it
//! was decoded for something else.
//!
//! Whoever brings the other half makes the segment whole. Losing one costs its span once more, never a byte.

use std::collections::VecDeque;

use format::IndexId;
use format::decode::{Half, Verified};
use format::layer::Layer;

/// Bytes of all halves: some forty runs of what is fetched in the background leave two of half a megabyte each.
const ROOM: usize = 32 << 20;

/// The halves, the one that has been here longest first.
#[derive(Debug, Default)]
pub(crate) struct Halves {
    kept: VecDeque<(IndexId, Half)>,
    bytes: usize,
}

impl Halves {
    /// Keeps a half of a segment that is not here, or returns the segment if the other half is there.
    pub(crate) fn put(&mut self, layer: &Layer, half: Half) -> Option<Verified> {
        let (id, segment) = (layer.id(), half.segment());
        let whole = self.of(id, segment).find_map(|other| other.join(&half, layer));
        if let Some(whole) = whole {
            self.forget(id, segment);
            return Some(whole);
        }
        let begins = half.begins(layer);
        self.retain(|of, other| !(of == id && other.segment() == segment && other.begins(layer) == begins));
        self.bytes += half.len();
        self.kept.push_back((id, half));
        self.shrink_to(ROOM);
        None
    }

    fn shrink_to(&mut self, room: usize) {
        while self.bytes > room
            && let Some((_, oldest)) = self.kept.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    /// Takes what is here of a segment.
    pub(crate) fn take(&mut self, layer: IndexId, segment: u32) -> Option<Half> {
        let at = self.kept.iter().position(|(of, half)| *of == layer && half.segment() == segment)?;
        let (_, half) = self.kept.remove(at)?;
        self.bytes -= half.len();
        Some(half)
    }

    /// Forgets what there is of a segment that is here.
    pub(crate) fn forget(&mut self, layer: IndexId, segment: u32) {
        self.retain(|of, half| of != layer || half.segment() != segment);
    }

    /// Forgets all of a layer that is out of use.
    pub(crate) fn forget_layer(&mut self, layer: IndexId) {
        self.retain(|of, _| of != layer);
    }

    fn of(&self, layer: IndexId, segment: u32) -> impl Iterator<Item = &Half> {
        let of = move |(of, half): &&(IndexId, Half)| *of == layer && half.segment() == segment;
        self.kept.iter().filter(of).map(|(_, half)| half)
    }

    fn retain(&mut self, keep: impl Fn(IndexId, &Half) -> bool) {
        self.kept.retain(|(of, half)| keep(*of, half));
        self.bytes = self.kept.iter().map(|(_, half)| half.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::sealed;

    #[test]
    fn what_has_been_here_longest_goes_first_and_two_halves_are_a_segment() {
        let (layer, found) = sealed::halves(0);
        let mut halves = Halves::default();
        let segments: Vec<_> = found.iter().map(Half::segment).collect();
        let lens: Vec<_> = found.iter().map(Half::len).collect();
        assert!(segments.len() >= 4 && segments[0] != segments[1], "{segments:?}");
        for half in found {
            assert!(halves.put(&layer, half).is_none());
        }
        assert_eq!(halves.bytes, lens.iter().sum::<usize>());
        halves.shrink_to(halves.bytes - 1);
        assert!(halves.take(layer.id(), segments[0]).is_none(), "it was the first");
        // Of the same spans again: a half takes the place of its like, and is whole with its other.
        let again = sealed::halves(0).1;
        let wholes = again.into_iter().filter_map(|half| halves.put(&layer, half)).count();
        assert_eq!((wholes, halves.kept.len()), (0, segments.len()));
        let others = sealed::halves(1).1;
        let wholes = others.into_iter().filter_map(|half| halves.put(&layer, half)).count();
        assert_eq!((wholes, halves.bytes), (segments.len(), 0));
        sealed::halves(0).1.into_iter().for_each(|half| assert!(halves.put(&layer, half).is_none()));
        assert_ne!(halves.bytes, 0);
        halves.forget_layer(layer.id());
        assert_eq!((halves.kept.len(), halves.bytes), (0, 0));
    }
}
