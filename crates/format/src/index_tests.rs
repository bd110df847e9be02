use super::*;
use proptest::prelude::*;

fn facts(chunks: &[Chunk], segments: u64) -> Facts {
    Facts {
        diff_id: DiffId::new(Digest::of(b"tar")),
        basis: Basis::Tar,
        tar_len: 10_000_000,
        segment: SegmentSize::DEFAULT,
        space: segments << 20,
        skeleton_len: 1234,
        skeleton_hash: [7; 32],
        chunk_count: u32::try_from(chunks.len()).unwrap(),
        chunks_hash: hash_of(chunks),
    }
}

fn source(starts: usize, segments: u32) -> Source {
    let start = |n: u64| Start {
        plain: n << 20,
        packed: n * 1000,
        bits: 3,
        window: [9].repeat(usize::try_from(n).unwrap()).into(),
    };
    let starts: Vec<_> = (0..starts as u64).map(start).collect();
    let last = u32::try_from(starts.len()).unwrap().saturating_sub(1);
    let reach = |n: u32| Reach { start: n.min(last), packed_end: u64::from(n) * 1000 + 1500 };
    Source {
        blob: Digest::of(b"blob"),
        size: 20_000,
        codec: Codec::Gzip,
        starts,
        reach: (0..segments).map(reach).collect(),
        contents: None,
    }
}

fn small() -> Index {
    let chunks = vec![Chunk { len: 5, id: ChunkId([1; 32]) }, Chunk { len: 1 << 20, id: ChunkId([2; 32]) }];
    Index::new(facts(&chunks, 3), b"skeleton".as_slice().into(), chunks, source(2, 3)).unwrap()
}

/// The file of `index` with its sections changed: (kind, flags, plain length or stored length, bytes).
fn rebuilt(index: &Index, change: impl FnOnce(&mut Vec<(u32, u32, Option<u64>, Vec<u8>)>)) -> Vec<u8> {
    let mut sections = vec![
        (1, CRITICAL, None, index.facts.encode()),
        (2, CRITICAL | ZSTD, Some(index.facts.skeleton_len), index.skeleton.to_vec()),
        (3, CRITICAL, None, table_of(&index.chunks)),
        (4, CRITICAL, None, index.source.encode()),
    ];
    change(&mut sections);
    let mut body = Vec::new();
    put(&mut body, u32::try_from(sections.len()).unwrap());
    let mut offset = (BODY + 4 + sections.len() * ENTRY) as u64;
    for (kind, flags, plain, stored) in &sections {
        put(&mut body, *kind);
        put(&mut body, *flags);
        put(&mut body, offset);
        put(&mut body, stored.len() as u64);
        put(&mut body, plain.unwrap_or(stored.len() as u64));
        offset += stored.len() as u64;
    }
    sections.iter().for_each(|s| body.extend_from_slice(&s.3));
    sealed(&body)
}

#[test]
fn a_file_decodes_to_what_was_encoded() {
    let index = small();
    let file = index.encode();
    assert_eq!(file.len() as u64, index.encoded_len());
    assert_eq!(Index::decode(&file), Ok(index.clone()));
    assert_eq!(rebuilt(&index, |_| {}), file);
    let empty = Index::new(facts(&[], 0), Box::default(), vec![], source(0, 0)).unwrap();
    assert_eq!(Index::decode(&empty.encode()), Ok(empty));
}

#[test]
fn every_flipped_byte_and_every_cut_is_an_error() {
    let file = small().encode();
    for at in 0..file.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = file.clone();
            bad[at] ^= flip;
            assert!(Index::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Index::decode(&file[..at]).is_err(), "cut at {at}");
    }
    assert!(Index::decode(&[&file[..], b"x"].concat()).is_err());
}

#[test]
fn flips_behind_a_right_checksum_are_errors_or_decode_to_themselves() {
    let file = small().encode();
    for at in BODY..file.len() {
        for flip in [1, 0x80, 0xff] {
            let mut body = file[BODY..].to_vec();
            body[at - BODY] ^= flip;
            let bad = sealed(&body);
            if let Ok(index) = Index::decode(&bad) {
                assert_eq!(index.encode(), bad, "byte {at}");
            }
        }
    }
}

#[test]
fn foreign_and_newer_files_are_told_apart() {
    let mut file = small().encode();
    assert_eq!(Index::decode(b"\x1f\x8b\x08"), Err(IndexError::Foreign));
    assert_eq!(Index::decode(b""), Err(IndexError::Foreign));
    file[8] = 2;
    assert_eq!(Index::decode(&file), Err(IndexError::Unsupported { what: "version", number: 2 }));
    let codec = rebuilt(&small(), |s| s[3].3[40] = 9);
    assert_eq!(Index::decode(&codec), Err(IndexError::Unsupported { what: "codec", number: 9 }));
}

#[test]
fn unknown_sections_are_kept_or_refused() {
    let index = small();
    let file = rebuilt(&index, |s| {
        s.push((70, 0, None, b"later".to_vec()));
        s.push((71, ZSTD, Some(1 << 50), b"packed".to_vec()));
    });
    let decoded = Index::decode(&file).unwrap();
    assert_eq!(decoded.id(), index.id());
    assert_eq!(decoded.encode(), file);
    let critical = rebuilt(&index, |s| s.push((70, CRITICAL, None, vec![])));
    assert_eq!(
        Index::decode(&critical),
        Err(IndexError::Unsupported { what: "critical section", number: 70 })
    );
    let flag = rebuilt(&index, |s| s.push((70, 4, None, vec![])));
    assert_eq!(Index::decode(&flag), Err(IndexError::Unsupported { what: "section flag", number: 4 }));
}

#[test]
fn misshapen_section_tables_are_errors() {
    let index = small();
    for missing in 0..4 {
        let file = rebuilt(&index, |s| drop(s.remove(missing)));
        assert_eq!(Index::decode(&file), Err(IndexError::Corrupt("a section is missing")));
    }
    type Change = fn(&mut Vec<(u32, u32, Option<u64>, Vec<u8>)>);
    let changes: [(&str, Change); 8] = [
        ("twice", |s| s.insert(1, s[0].clone())),
        ("order", |s| s.swap(0, 1)),
        ("flags", |s| s[0].1 = 0),
        ("flags", |s| s[1].1 = CRITICAL),
        ("lengths", |s| s[0].2 = Some(5)),
        ("long facts", |s| s[0].3.push(0)),
        ("row", |s| s[2].3.push(0)),
        ("table", |s| s[3].3.push(0)),
    ];
    for (why, change) in changes {
        assert!(matches!(Index::decode(&rebuilt(&index, change)), Err(IndexError::Corrupt(_))), "{why}");
    }
    let many = rebuilt(&index, |s| s.extend((5..66).map(|kind| (kind, 0, None, vec![]))));
    assert!(matches!(Index::decode(&many), Err(IndexError::Limit { .. })));
}

#[test]
fn counts_are_bounded_before_memory_is_taken() {
    for at in [44, 48] {
        let file = rebuilt(&small(), |s| s[3].3[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes()));
        assert!(matches!(Index::decode(&file), Err(IndexError::Limit { .. })), "{at}");
    }
}

#[test]
fn facts_outside_the_limits_are_refused() {
    type Change = fn(&mut Facts);
    let changes: [(&str, Change); 4] = [
        ("the tar", |f| f.tar_len = limits::LAYER + 1),
        ("the skeleton", |f| f.skeleton_len = limits::SKELETON + 1),
        ("the number of segments", |f| f.space = (u64::from(limits::SEGMENTS) << 20) + 1),
        ("the payload space", |f| f.space = u64::MAX),
    ];
    for (name, change) in changes {
        let mut facts = facts(&[], 0);
        change(&mut facts);
        match Index::new(facts, Box::default(), vec![], source(0, 0)) {
            Err(IndexError::Limit { what, .. }) => assert_eq!(what, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let mut bomb = facts(&[], 0);
    bomb.tar_len = limits::LAYER;
    assert!(matches!(Index::new(bomb, Box::default(), vec![], source(0, 0)), Err(IndexError::Limit { .. })));
}

#[test]
fn decoder_tables_have_one_form() {
    type Change = fn(&mut Source);
    let changes: [(&str, Change); 14] = [
        ("no start", |s| s.starts.clear()),
        ("unused start", |s| s.reach.iter_mut().for_each(|r| r.start = 0)),
        ("skipped start", |s| s.reach[0].start = 1),
        ("unknown start", |s| s.reach[2].start = 2),
        ("backwards", |s| s.reach[2].start = 0),
        ("end before start", |s| s.reach[1].packed_end = 1000),
        ("end goes back", |s| s.reach[2].packed_end = s.reach[1].packed_end - 1),
        ("end past the blob", |s| s.reach[2].packed_end = 20_001),
        ("starts swapped", |s| s.starts.swap(0, 1)),
        ("bits", |s| s.starts[1].bits = 8),
        ("window", |s| s.starts[1].window = vec![0; Source::MAX_WINDOW + 1].into()),
        ("bits in zstd", |s| s.codec = Codec::Zstd),
        ("plain past the tar", |s| s.starts[1].plain = 10_000_000),
        ("missing segment", |s| s.reach.truncate(2)),
    ];
    for (why, change) in changes {
        let mut source = source(2, 3);
        change(&mut source);
        assert!(
            matches!(Index::new(facts(&[], 3), Box::default(), vec![], source), Err(IndexError::Corrupt(_))),
            "{why}"
        );
    }
    let mut plain = source(1, 3);
    plain.codec = Codec::Plain;
    plain.starts[0].bits = 0;
    assert!(Index::new(facts(&[], 3), Box::default(), vec![], plain.clone()).is_ok());
    plain.starts[0].packed = 1;
    assert!(Index::new(facts(&[], 3), Box::default(), vec![], plain).is_err());
}

#[test]
fn chunks_must_match_their_hash() {
    let chunks = vec![Chunk { len: 5, id: ChunkId([1; 32]) }];
    let other = vec![Chunk { len: 6, id: ChunkId([1; 32]) }];
    assert!(Index::new(facts(&chunks, 0), Box::default(), other, source(0, 0)).is_err());
    for len in [0, limits::CHUNK + 1] {
        let bad = vec![Chunk { len, id: ChunkId([1; 32]) }];
        assert!(Index::new(facts(&bad, 0), Box::default(), bad, source(0, 0)).is_err());
    }
}

#[test]
fn the_identity_covers_all_facts_and_nothing_else() {
    let index = small();
    assert_eq!(index.id().hex(), "46449beaf20ffa56c24c96fbce1186415a667efaeafefff7623decf762caa0ef");
    let chunks = index.chunks.clone();
    let other =
        Index::new(index.facts.clone(), b"other frame".as_slice().into(), chunks, source(1, 3)).unwrap();
    assert_eq!(other.id(), index.id());
    let bytes = index.facts.encode();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        if let Ok(facts) = Facts::decode(&changed) {
            assert_ne!(facts.id(), index.id(), "byte {at}");
        }
    }
}

prop_compose! {
    fn any_index()(
        lens in prop::collection::vec((1..=limits::CHUNK, any::<[u8; 32]>()), 0..8),
        skeleton in prop::collection::vec(any::<u8>(), 0..50),
        rows in prop::collection::vec((any::<bool>(), 1u64..5000, 1u64..5000, 0u8..8, 0usize..40), 0..6),
        bits in limits::SEGMENT_BITS,
    ) -> Index {
        let chunks: Vec<_> = lens.into_iter().map(|(len, id)| Chunk { len, id: ChunkId(id) }).collect();
        let mut source = Source { blob: Digest::of(b"b"), size: 0, codec: Codec::Gzip, starts: vec![], reach: vec![], contents: None };
        let (mut plain, mut packed) = (0, 0);
        for (fresh, plain_step, packed_step, bits, window) in rows {
            plain += plain_step;
            packed += packed_step;
            if fresh || source.starts.is_empty() {
                source.starts.push(Start { plain, packed, bits, window: vec![1; window].into() });
            }
            packed += packed_step;
            let start = u32::try_from(source.starts.len() - 1).unwrap();
            source.reach.push(Reach { start, packed_end: packed });
        }
        source.size = packed + 1;
        let segment = SegmentSize::from_bits(bits).unwrap();
        let facts = Facts { tar_len: plain + 1, segment, space: segment.bytes() * source.reach.len() as u64, ..facts(&chunks, 0) };
        Index::new(facts, skeleton.into(), chunks, source).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_index_survives_the_journey(index in any_index()) {
        let file = index.encode();
        prop_assert_eq!(file.len() as u64, index.encoded_len());
        prop_assert_eq!(Index::decode(&file), Ok(index));
    }

    #[test]
    fn any_body_is_an_error_or_encodes_to_itself(index in any_index(), at: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut body = index.encode()[BODY..].to_vec();
        let at = at.index(body.len());
        let n = bytes.len().min(body.len() - at);
        body[at..at + n].copy_from_slice(&bytes[..n]);
        let file = sealed(&body);
        if let Ok(index) = Index::decode(&file) {
            prop_assert_eq!(index.encode(), file);
        }
    }
}
