//! Layers that are read by a zTOC of SOCI: what comes out is what went in, or an error.

#[cfg(test)]
mod soci;

use std::sync::Arc;

use format::decode::{DecodeError, Half, SpanDecoder};
use format::fuzz::opened;
use format::index::{Hash, Index};
use format::layer::{Layer, LayerError};
use format::payload::SegmentSize;
use format::soci::ahead::segments;
use format::soci::index::{Whose, layer};
use format::soci::{SociError, assumes_short_header};
use format::tar::{Member, MemberKind};
use format::tree::Runs;
use format::{DiffId, Digest};
use proptest::prelude::*;
use soci::{digests, points, ztoc};
use sys::deflate::compress;
use sys::inflate::Wrap;
use testkit::arbitrary;
use testkit::soci::{Ztoc, checkpoints};
use testkit::tar::{Archive, Entry, Kind, Variant};

const SEGMENT: u64 = 1 << 16;

/// Bytes that compress, but not to nothing.
#[cfg(test)]
fn text(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:x} ", state >> 52)
    };
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend(word().into_bytes());
    }
    out.truncate(len);
    out
}

/// A layer, and what it is made of.
#[cfg(test)]
struct Made {
    tar: Vec<u8>,
    blob: Vec<u8>,
    ztoc: Ztoc,
}

/// Returns the index of a layer that was made of a table.
#[cfg(test)]
fn index_of(made: Layer) -> Index {
    opened(made).index().clone()
}

#[cfg(test)]
impl Made {
    fn of(entries: &[Entry], level: u8, span: u64) -> Self {
        let tar = Archive::of(entries, Variant::Pax10).tar;
        let blob = compress(&tar, Wrap::Gzip, level).unwrap();
        Self { ztoc: ztoc(&blob, &tar, span), tar, blob }
    }

    fn index(&self) -> Result<Index, SociError> {
        self.read(&self.ztoc.encode())
    }

    fn read(&self, raw: &[u8]) -> Result<Index, SociError> {
        let whose = Whose {
            blob: Digest::of(&self.blob),
            size: self.blob.len() as u64,
            diff_id: DiffId::new(Digest::of(&self.tar)),
            table: Digest::of(raw),
            segment: SegmentSize::from_bits(16).unwrap(),
        };
        layer(raw, &whose).map(index_of)
    }

    fn open(&self) -> Arc<Layer> {
        let index = self.index().unwrap();
        assert_eq!(Index::decode(&index.encode()).as_ref(), Ok(&index), "it encodes to itself");
        Arc::new(Layer::open(index).unwrap())
    }

    /// Returns these segments, decoded from just what is asked for, in pieces.
    fn decode(
        &self,
        layer: &Arc<Layer>,
        wanted: std::ops::Range<u32>,
        step: usize,
    ) -> Result<Vec<Vec<u8>>, DecodeError> {
        let mut decoder = SpanDecoder::new(Arc::clone(layer), wanted.clone())?;
        let mut out = Vec::new();
        for part in decoder.parts() {
            let range = usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap();
            for mut piece in self.blob[range].chunks(step) {
                while let Some((number, verified)) = decoder.push(&mut piece)? {
                    assert_eq!(number, wanted.start + u32::try_from(out.len()).unwrap());
                    out.push(verified.into_vec());
                }
            }
        }
        decoder.finish()?;
        Ok(out)
    }

    /// Decodes what holds a group of segments, and keeps halves; returns how many bytes that took.
    fn decode_all(&self, layer: &Arc<Layer>, group: u32, space: &mut Space, halves: &mut Vec<Half>) -> usize {
        let wanted = layer.span(group).unwrap().segments;
        let edges = [wanted.start, wanted.end - 1];
        let known = halves.extract_if(.., |half| edges.contains(&half.segment())).collect();
        let mut decoder = SpanDecoder::with_neighbours(Arc::clone(layer), wanted, known).unwrap();
        let mut took = 0;
        for part in decoder.parts() {
            let range = usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap();
            took += range.len();
            let mut input = &self.blob[range];
            while let Some((number, verified)) = decoder.push(&mut input).unwrap() {
                space.put(number, verified.as_slice());
            }
        }
        decoder.finish().unwrap();
        for half in decoder.halves() {
            match halves.iter().find_map(|other| half.join(other, layer)) {
                Some(whole) => space.put(half.segment(), whole.as_slice()),
                None => halves.push(half),
            }
        }
        took
    }

    /// Says that what has come of each file is somewhere in the tar: where, only the zTOC knows.
    fn assert_of_tar(&self, layer: &Arc<Layer>, space: &Space) {
        let same = |member: Member, runs: Runs| {
            let (MemberKind::File, Runs::Whole(at)) = (&member.kind, runs) else { return Ok(()) };
            let has = |n: &u64| space.has.contains(&u32::try_from((at + n) / SEGMENT).unwrap());
            let found: Vec<_> = (0..member.payload).filter(has).collect();
            let is_at = |start: usize| {
                found.iter().all(|n| {
                    let byte = space.bytes[usize::try_from(at + n).unwrap()];
                    self.tar.get(start + usize::try_from(*n).unwrap()) == Some(&byte)
                })
            };
            assert!((0..self.tar.len()).step_by(512).any(is_at), "{member:?}");
            Ok::<_, LayerError>(())
        };
        layer.members(same).unwrap();
    }

    /// Holds every file of a layer against the tar.
    fn assert_same(&self, layer: &Arc<Layer>, space: &[u8]) {
        let same = |member: Member, runs: Runs| {
            if let (MemberKind::File, Runs::Whole(at)) = (&member.kind, runs) {
                let at = usize::try_from(at).unwrap();
                let file = self.ztoc.files.iter().find(|file| file.name == *member.path).unwrap();
                let plain = usize::try_from(file.offset).unwrap();
                let len = usize::try_from(file.size).unwrap();
                assert!(space[at..at + len] == self.tar[plain..plain + len], "{file:?}");
            }
            Ok::<_, LayerError>(())
        };
        layer.members(same).unwrap();
    }
}

/// The segments of a layer that have come.
#[cfg(test)]
#[derive(Default)]
struct Space {
    bytes: Vec<u8>,
    has: std::collections::BTreeSet<u32>,
}

#[cfg(test)]
impl Space {
    fn put(&mut self, segment: u32, bytes: &[u8]) {
        let at = usize::try_from(u64::from(segment) * SEGMENT).unwrap();
        self.bytes.resize(self.bytes.len().max(at + bytes.len()), 0);
        let is_new = self.has.insert(segment);
        assert!(is_new || self.bytes[at..at + bytes.len()] == *bytes, "{segment} is another one");
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
fn entries() -> Vec<Entry> {
    let small = (0..40).map(|n| Entry::file(format!("d/{n}"), text(n, n * 50)));
    let kinds = [
        Entry::dir("d/").mode(0o1755).owner(1, 2).mtime(1_600_000_000, 500_000_000),
        Entry::file("long", text(99, 700_000)).xattr("user.a", b"\0\xff").mode(0o4755),
        Entry::file("empty", b""),
        Entry::link("hard", "long"),
        Entry::symlink("soft", "d/1"),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::new("disk", Kind::Block(8, 17)),
        Entry::new("pipe", Kind::Fifo),
        Entry::file([b"\xff", &[b'n'; 150][..]].concat(), b"a long name that is no text"),
        Entry::file("last", text(98, 90_000)),
    ];
    kinds.into_iter().chain(small).collect()
}

#[test]
fn every_group_of_segments_comes_from_its_own_spans() {
    let made = Made::of(&entries(), 6, 100_000);
    assert!(made.ztoc.digests.len() > 4, "{} spans", made.ztoc.digests.len());
    let layer = made.open();
    assert_eq!(layer.hash(), Hash::Sealed);
    let (mut space, mut next) = (Vec::new(), 0);
    while next < layer.segments() {
        let span = layer.span(next).unwrap();
        assert_eq!(span.segments.start, next);
        for segment in made.decode(&layer, span.segments.clone(), 1000).unwrap() {
            space.resize(usize::try_from(u64::from(next) * SEGMENT).unwrap(), 0);
            space.extend(segment);
            next += 1;
        }
    }
    made.assert_same(&layer, &space);
    // All of it in one go, byte by byte: spans that have a byte in common are asked for once.
    let all = made.decode(&layer, 0..layer.segments(), 1).unwrap();
    assert_eq!(SpanDecoder::new(Arc::clone(&layer), 0..layer.segments()).unwrap().parts().len(), 1);
    let joined: Vec<u8> = all
        .iter()
        .flat_map(|segment| {
            let mut segment = segment.clone();
            segment.resize(usize::try_from(SEGMENT).unwrap(), 0);
            segment
        })
        .collect();
    made.assert_same(&layer, &joined);
}

#[test]
fn members_are_as_the_tar_has_them() {
    let made = Made::of(&entries(), 6, 100_000);
    let layer = made.open();
    let mut left = entries().into_iter();
    layer
        .members::<LayerError>(|member, _| {
            let entry = left.next().expect("no more members than entries");
            assert_eq!((&*member.path, u32::from(member.mode)), (&entry.path[..], entry.mode));
            assert_eq!((member.uid, member.gid), (entry.uid, entry.gid));
            assert_eq!((member.mtime.secs, member.mtime.nanos), entry.mtime);
            let xattrs: Vec<_> = member.xattrs.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            assert_eq!(xattrs, entry.xattrs);
            let same = match (&member.kind, &entry.kind) {
                (MemberKind::Dir, Kind::Dir)
                | (MemberKind::File, Kind::File(_))
                | (MemberKind::Fifo, Kind::Fifo) => true,
                (MemberKind::Link(a), Kind::Link(b)) | (MemberKind::Symlink(a), Kind::Symlink(b)) => {
                    **a == **b
                }
                (MemberKind::Char(a), Kind::Char(major, minor))
                | (MemberKind::Block(a), Kind::Block(major, minor)) => (a.major, a.minor) == (*major, *minor),
                _ => false,
            };
            assert!(same, "{:?} for {:?}", member.kind, entry.kind);
            Ok(())
        })
        .unwrap();
    assert!(left.next().is_none());
}

#[test]
fn old_writers_leave_out_the_first_checkpoint() {
    let mut made = Made::of(&entries(), 6, 100_000);
    let points = points(&made.blob, &made.tar, 100_000);
    assert_eq!((points[0].place, points[0].bits), (10, 0), "the header that old writers take for granted");
    assert!(!assumes_short_header(&made.ztoc.encode()).unwrap());
    let with = made.index().unwrap();
    made.ztoc.checkpoints = checkpoints(&points, 100_000, true);
    assert!(assumes_short_header(&made.ztoc.encode()).unwrap());
    assert_eq!(made.index().unwrap().id(), with.id());
    // A single span, which is left out altogether.
    let mut made = Made::of(&entries()[..3], 6, 1 << 30);
    made.ztoc.checkpoints.truncate(12);
    let layer = made.open();
    made.decode(&layer, 0..layer.segments(), 100).unwrap();
}

#[test]
fn members_of_gzip_may_follow_each_other() {
    let tar = Archive::of(&entries(), Variant::Pax10).tar;
    let blob: Vec<u8> = tar.chunks(70_000).flat_map(|part| compress(part, Wrap::Gzip, 6).unwrap()).collect();
    let made = Made { ztoc: ztoc(&blob, &tar, 100_000), tar, blob };
    let layer = made.open();
    let mut space = Space::default();
    let mut next = 0;
    while next < layer.segments() {
        for segment in made.decode(&layer, layer.span(next).unwrap().segments, 500).unwrap() {
            space.put(next, &segment);
            next += 1;
        }
    }
    made.assert_same(&layer, &space.bytes);
}

#[test]
fn the_name_of_an_index_covers_what_is_decoded() {
    let made = Made::of(&entries(), 6, 100_000);
    let points = points(&made.blob, &made.tar, 100_000);
    let with = |change: &dyn Fn(&mut Vec<testkit::soci::Checkpoint>)| {
        let mut points = points.clone();
        change(&mut points);
        let ztoc = Ztoc { checkpoints: checkpoints(&points, 100_000, false), ..made.ztoc.clone() };
        made.read(&ztoc.encode()).map(|index| index.id())
    };
    let right = with(&|_| ()).unwrap();
    assert_eq!(right, made.index().unwrap().id());
    assert_ne!(with(&|points| points[1].window[WHERE] ^= 1).unwrap(), right, "another window");
    assert_ne!(with(&|points| points[2].bits = (points[2].bits % 7) + 1).unwrap(), right, "other bits");
    // What lies elsewhere is another index, if it is one at all.
    let moved = with(&|points| points[1].place += 1);
    assert!(moved.is_err() || moved.is_ok_and(|id| id != right), "another place");
}

#[test]
fn what_is_to_be_fetched_first_lies_in_the_spans_that_are_named() {
    let made = Made::of(&entries(), 6, 100_000);
    let (layer, ztoc) = (made.open(), made.ztoc.encode());
    let begins: Vec<_> =
        points(&made.blob, &made.tar, 100_000).iter().map(testkit::soci::Checkpoint::begin).collect();
    let first = |spans: &str| {
        let list = format!(r#"{{"version":"1.0","prefetch_spans":[{spans}]}}"#);
        segments(list.as_bytes(), &ztoc, &layer)
    };
    let lies_in = |segment: u32, begin: u64, end: u64| {
        let parts = layer.parts(segment..segment + 1).unwrap();
        parts.iter().any(|part| part.range.start < end && part.range.end > begin + 1)
    };
    let mut all = Vec::new();
    for (n, begin) in begins.iter().enumerate() {
        let end = begins.get(n + 1).copied().unwrap_or(made.blob.len() as u64);
        let found = first(&format!(r#"{{"start_span":{n},"end_span":{n}}}"#)).unwrap();
        let wanted: Vec<_> = (0..layer.segments()).filter(|segment| lies_in(*segment, *begin, end)).collect();
        assert_eq!(found, wanted, "span {n}");
        for segment in found {
            if !all.contains(&segment) {
                all.push(segment);
            }
        }
    }
    // All of them, however many are asked for; the lower priority first; each once.
    let more = format!(r#"{{"start_span":0,"end_span":{}}}"#, u64::MAX);
    assert_eq!(first(&more).unwrap(), all);
    let one = r#"{"start_span":3,"end_span":3,"priority":-1}"#;
    let (three, both) = (first(one).unwrap(), first(&format!("{more},{one}")).unwrap());
    assert!(!three.is_empty() && both.starts_with(&three) && both.len() == all.len());
    assert!(first(r#"{"start_span":9999,"end_span":9999}"#).unwrap().is_empty());
    for wrong in [r#"{"start_span":-1,"end_span":2}"#, r#"{"start_span":1}"#, "7"] {
        assert!(matches!(first(wrong), Err(SociError::Ahead(_))), "{wrong}");
    }
    let newer = segments(br#"{"version":"2.0","prefetch_spans":[]}"#, &ztoc, &layer);
    assert!(matches!(newer, Err(SociError::Unsupported(_))));
}

/// Some byte of a window.
#[cfg(test)]
const WHERE: usize = 20_000;

#[test]
fn a_changed_byte_of_the_blob_never_comes_out() {
    let mut made = Made::of(&entries(), 6, 100_000);
    let layer = made.open();
    for at in (10..made.blob.len()).step_by(made.blob.len() / 200) {
        made.blob[at] ^= 0x10;
        // Of the spans that have the byte nothing, of all others all.
        for segment in 0..layer.segments() {
            let span = layer.span(segment).unwrap();
            let has = span.parts.iter().any(|part| part.range.contains(&(at as u64)));
            let decoded = made.decode(&layer, span.segments, 4096);
            assert_eq!(decoded.is_err(), has, "{at} and segment {segment}");
            assert!(matches!(decoded, Ok(_) | Err(DecodeError::Corrupt(_))));
        }
        made.blob[at] ^= 0x10;
    }
}

/// What is wrong with a zTOC, and what says so.
#[cfg(test)]
fn refused(change: impl Fn(&mut Ztoc), says: &str) {
    let mut made = Made::of(&entries(), 6, 100_000);
    change(&mut made.ztoc);
    let error = made.index().expect_err(says).to_string();
    assert!(error.contains(says), "{error:?} for {says:?}");
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    refused(|ztoc| ztoc.version = "1.0".into(), "version \"1.0\"");
    refused(|ztoc| ztoc.kind = Some(2), "not compressed");
    refused(|ztoc| ztoc.kind = Some(7), "kind 7");
    refused(|ztoc| ztoc.packed += 1, "a blob of another length");
    refused(|ztoc| ztoc.plain = 1 << 50, "the tar of the zTOC exceeds");
    refused(|ztoc| ztoc.plain = -1, "below zero");
    refused(|ztoc| ztoc.last_span += 1, "another number of spans");
    refused(|ztoc| ztoc.last_span = -1, "another number of spans");
    refused(|ztoc| ztoc.digests.truncate(1), "another number of spans");
    refused(|ztoc| ztoc.digests[1] = "sha256:12".into(), "no SHA-256");
    refused(|ztoc| ztoc.checkpoints.truncate(ztoc.checkpoints.len() - 1), "the length of its checkpoints");
    refused(|ztoc| ztoc.checkpoints[0] += 1, "another number of spans");
    refused(|ztoc| ztoc.checkpoints[0] += 2, "the length of its checkpoints");
    refused(|ztoc| ztoc.checkpoints.clear(), "the length of its checkpoints");
    // The second checkpoint: its place, its offset in the tar, its bits.
    let second = 12 + 17 + (32 << 10);
    refused(|ztoc| ztoc.checkpoints[second + 7] = 0x80, "out of order or out of range");
    refused(|ztoc| ztoc.checkpoints[second..second + 8].fill(0), "checkpoint");
    refused(|ztoc| ztoc.checkpoints[second + 8..second + 16].fill(0), "out of order");
    refused(|ztoc| ztoc.checkpoints[second + 15] = 0x7f, "out of order or out of range");
    refused(|ztoc| ztoc.checkpoints[second + 16] = 8, "the bits of a checkpoint");
    refused(|ztoc| ztoc.checkpoints[12 + 8] = 1, "out of order"); // the first does not begin the tar
    // Files.
    refused(|ztoc| ztoc.files[1].offset = -512, "below zero");
    refused(|ztoc| ztoc.files[1].offset += 1, "\"long\" in the zTOC: its bytes are out of order");
    refused(|ztoc| ztoc.files[1].offset = 0, "its bytes are out of order");
    refused(|ztoc| ztoc.files[1].size = 1 << 40, "not in the tar");
    refused(|ztoc| ztoc.files[1].size = i64::MAX, "not in the tar");
    refused(|ztoc| ztoc.files.swap(1, 9), "out of order");
    refused(|ztoc| ztoc.files[1].size += 100_000, "out of order");
    refused(|ztoc| ztoc.files[3].size = 5, "no file, and has bytes");
    refused(|ztoc| ztoc.files[3].link.clear(), "a link without");
    refused(|ztoc| ztoc.files[5].device.0 = 1 << 12, "a device number");
    refused(|ztoc| ztoc.files[1].kind = "socket", "nobody has defined");
    refused(|ztoc| ztoc.files[1].name.clear(), "a name that no file can have");
    refused(|ztoc| ztoc.files[1].name = vec![b'x'; 5000], "a name that no file can have");
    refused(|ztoc| ztoc.files[1].time.clear(), "a time that is none");
    refused(|ztoc| ztoc.files[1].time = "yesterday".into(), "a time that is none");
    let sparse = (b"GNU.sparse.major".to_vec(), b"1".to_vec());
    refused(|ztoc| ztoc.files[1].records.push(sparse.clone()), "a sparse file");
    let unnamed = (b"SCHILY.xattr.".to_vec(), b"1".to_vec());
    refused(|ztoc| ztoc.files[1].records.push(unnamed.clone()), "an attribute without a name");
}

#[test]
fn noise_and_pieces_of_a_ztoc_are_errors() {
    let made = Made::of(&entries()[..12], 6, 100_000);
    let raw = made.ztoc.encode();
    let tables = raw.len() - made.ztoc.checkpoints.len();
    for len in (0..tables).chain([raw.len() - 2]) {
        assert!(made.read(&raw[..len]).is_err(), "{len}");
    }
    for fill in [0, 1, 0x7f, 0xff] {
        assert!(made.read(&[fill; 4096]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a tar holds, and wherever its blob can be entered.
    #[test]
    fn any_layer_comes_out_as_it_went_in(
        mut entries in prop::collection::vec(arbitrary::entry(), 1..30),
        level in 1_u8..=9,
        span in 1_u64..200_000,
        step in 1_usize..5000,
    ) {
        entries.retain(|entry| !matches!(entry.kind, Kind::Sparse(..)) && (0..253_402_300_800).contains(&entry.mtime.0));
        for (n, entry) in entries.iter_mut().enumerate() {
            entry.path = [format!("{n}-").as_bytes(), &entry.path].concat();
        }
        entries.push(Entry::file("end", text(step, 150_000)));
        let made = Made::of(&entries, level, span);
        let layer = made.open();
        let mut space = Vec::new();
        for segment in made.decode(&layer, 0..layer.segments(), step).unwrap() {
            space.extend(segment);
            space.resize(space.len().next_multiple_of(usize::try_from(SEGMENT).unwrap()), 0);
        }
        made.assert_same(&layer, &space);
    }

    /// Whoever comes first for whatever segments, all of them come, and no span more often than once.
    #[test]
    fn what_comes_with_its_neighbours_is_the_same_in_any_order(
        span in 20_000_u64..200_000,
        order in prop::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let made = Made::of(&entries(), 6, span);
        let layer = made.open();
        let (mut space, mut halves, mut took) = (Space::default(), Vec::new(), 0);
        let picked = order.iter().map(|at| u32::try_from(at.index(layer.segments() as usize)).unwrap());
        for segment in picked.chain(0..layer.segments()) {
            if !space.has.contains(&segment) {
                took += made.decode_all(&layer, segment, &mut space, &mut halves);
            }
        }
        made.assert_same(&layer, &space.bytes);
        // A segment that lies in three spans or more has those between by itself.
        let spans = made.ztoc.digests.len();
        prop_assert!(span < 2 * SEGMENT || took <= made.blob.len() + spans, "{} of {}", took, made.blob.len());
    }

    /// A changed byte anywhere in a zTOC is an error, or makes an index that opens. What comes out then of the blob as it is are
    /// the bytes of the tar where the zTOC says that files are. Only where the stream is entered wrongly it may be anything,
    /// and then the index is another one.
    #[test]
    fn damage_is_an_error_or_harmless(at in any::<prop::sample::Index>(), bit in 0..8, tables in any::<bool>()) {
        let made = Made::of(&entries()[..14], 6, 100_000);
        let mut raw = made.ztoc.encode();
        let within = if tables { raw.len() - made.ztoc.checkpoints.len() } else { raw.len() };
        let at = at.index(within);
        raw[at] ^= 1_u8 << bit;
        if let Ok(index) = made.read(&raw) {
            let enters = at >= raw.len() - made.ztoc.checkpoints.len();
            let is_another = index.id() != made.index().unwrap().id();
            let layer = Arc::new(Layer::open(index).unwrap());
            let mut space = Space::default();
            for segment in 0..layer.segments() {
                let span = layer.span(segment).unwrap().segments;
                match made.decode(&layer, span.clone(), 4096) {
                    Ok(segments) => span.zip(segments).for_each(|(n, bytes)| space.put(n, &bytes)),
                    Err(DecodeError::Corrupt(_) | DecodeError::Undecodable { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            if !enters || !is_another {
                made.assert_of_tar(&layer, &space);
            }
            if !is_another && space.has.len() == layer.segments() as usize {
                made.assert_same(&layer, &space.bytes);
            }
        }
    }

    #[test]
    fn digests_are_of_the_spans_only(span in 1000_u64..300_000) {
        let made = Made::of(&entries(), 3, span);
        let points = points(&made.blob, &made.tar, span);
        prop_assert_eq!(digests(&made.blob, &points).len(), points.len());
        prop_assert!(points.windows(2).all(|two| two[1].plain - two[0].plain > span));
    }
}
