//! Layers that are file systems, as an index has them: the members of the tar that is made of one, and their bytes.

use std::sync::Arc;

use convert::recode::RecodeError;
use convert::recode::erofs::index;
use format::Digest;
use format::decode::SpanDecoder;
use format::layer::{Layer, LayerError};
use format::tar::{Member, MemberKind, Parser, Step};
use format::tree::Runs;

use super::{expected, options};

pub struct Indexed {
    pub layer: Arc<Layer>,
    pub segments: Vec<Vec<u8>>,
}

/// Makes an index of an image; its segments come out of the image again.
pub fn indexed(bytes: &[u8], bits: u8) -> Result<Indexed, RecodeError> {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let keep = |number: u32, bytes: &[u8]| {
        assert_eq!(number as usize, segments.len());
        segments.push(bytes.to_vec());
        Ok(())
    };
    let (file, table) = (tempfile::tempfile().unwrap(), Digest::of(b"the table"));
    let (layer, proved) = index(bytes, &expected(bytes, bytes), options(bytes, bits), table, &file, keep)?;
    assert_eq!((proved.index(), layer.source().blob), (layer.id(), Digest::of(bytes)));
    assert_eq!(layer.source().contents.as_ref().unwrap().table, table);
    let layer = Arc::new(layer);
    assert_eq!(fetched(&layer, bytes), segments);
    Ok(Indexed { layer, segments })
}

/// Returns the segments as they come out of ranges of a blob.
fn fetched(layer: &Arc<Layer>, blob: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    for segment in 0..layer.segments() {
        let mut decoder = SpanDecoder::new(Arc::clone(layer), segment..segment + 1).unwrap();
        let before = segments.len();
        for part in decoder.parts() {
            let range = usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap();
            let mut rest = &blob[range];
            while let Some((number, bytes)) = decoder.push(&mut rest).unwrap() {
                assert_eq!(number, segment);
                segments.push(bytes.as_slice().to_vec());
            }
        }
        assert_eq!(segments.len(), before + 1);
    }
    segments
}

/// Compares an index with the tar that was made of the same image.
pub fn says_the_same(Indexed { layer, segments }: &Indexed, tar: &[u8]) {
    let segment = usize::try_from(layer.layout().segment_size().bytes()).unwrap();
    let mut space = Vec::new();
    for bytes in segments {
        space.resize(space.len().next_multiple_of(segment), 0);
        space.extend_from_slice(bytes);
    }
    let mut members = members(tar).into_iter();
    layer
        .members::<LayerError>(|member, runs| {
            let (wanted, content) = members.next().unwrap();
            assert_eq!(content_of(&member, &runs, &space), content, "{:?}", wanted.path);
            let kind = match member.kind {
                MemberKind::Sparse { .. } => MemberKind::File,
                ref kind => kind.clone(),
            };
            let (plain, payload) = (wanted.plain, content.len() as u64);
            assert_eq!(Member { kind, plain, payload, ..member }, wanted);
            Ok(())
        })
        .unwrap();
    assert_eq!(members.next(), None);
}

/// Returns the members of a tar, and their bytes.
fn members(tar: &[u8]) -> Vec<(Member, &[u8])> {
    let (mut parser, mut rest, mut members) = (Parser::new(), tar, Vec::new());
    loop {
        let (taken, step) = parser.step(rest).unwrap();
        rest = &rest[taken..];
        let Step::Member(member) = step else { return members };
        let (content, after) = rest.split_at(usize::try_from(member.payload).unwrap());
        rest = after;
        members.push((member, content));
    }
}

fn content_of(member: &Member, runs: &Runs, space: &[u8]) -> Vec<u8> {
    let at = |n: u64| usize::try_from(n).unwrap();
    let mut content = vec![0; at(member.size())];
    match runs {
        Runs::None => {}
        Runs::Whole(start) => content.copy_from_slice(&space[at(*start)..at(start + member.size())]),
        Runs::Sparse(runs) => {
            for run in runs {
                let bytes = &space[at(run.payload)..at(run.payload + run.len)];
                content[at(run.at)..at(run.at + run.len)].copy_from_slice(bytes);
            }
        }
    }
    content
}
