//! Headers that claim more than there is: refused before memory is taken for it.

#![allow(clippy::unwrap_used, reason = "tests")]

use format::limits;
use format::payload::SegmentSize;
use format::tar::{Parser, Placer, Step};
use testkit::tar::{Header, Variant};

/// Ten million members of an empty file each are five gigabytes of tar and five megabytes of gzip.
#[test]
fn members_are_counted_and_the_first_too_many_is_refused() {
    let mut header = Header::new(Variant::Gnu, b'0');
    header.put(0, b"file");
    header.number(124, 12, 0);
    let block = header.seal();
    let mut parser = Parser::new();
    for member in 1..=limits::ENTRIES {
        assert!(matches!(parser.step(&block), Ok((512, Step::Member(_)))), "member {member}");
    }
    let error = parser.step(&block).map(|_| ()).unwrap_err();
    assert!(format!("{error:?}").contains("number of members"), "{error:?}");
}

/// A header of 512 bytes that claimed a file of 16 TiB once took 4 GiB of memory for the cuts of its chunks.
#[test]
fn a_file_larger_than_a_mount_is_refused_before_it_is_cut() {
    for (bits, len, good) in [
        (16, (u64::from(limits::SEGMENTS) << 16) + 1, false),
        (16, u64::from(limits::SEGMENTS) << 16, true),
        (16, limits::LAYER - 4096, false),
        (20, limits::LAYER - 4096, false),
    ] {
        let mut header = Header::new(Variant::Gnu, b'0');
        header.put(0, b"file");
        header.number(124, 12, i64::try_from(len).unwrap());
        let Ok((512, Step::Member(member))) = Parser::new().step(&header.seal()) else { unreachable!() };
        let mut placer = Placer::new(SegmentSize::from_bits(bits).unwrap());
        assert_eq!(placer.member(&member).is_ok(), good, "{len} bytes, segments of 2^{bits}");
        assert!(placer.layout().cuts().len() <= limits::SEGMENTS as usize);
    }
}
