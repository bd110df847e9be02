//! Makes the zTOC of a gzip layer, as `soci create` does: the generator behind the tests of its reader.

use format::Digest;
use format::index::Codec;
use format::rfc3339;
use format::tar::{Member, MemberKind, Parser, Step};
use format::unpack::Unpacker;
use testkit::soci::{Checkpoint, File, WINDOW, Ztoc, checkpoints};

/// Returns the zTOC of a blob that unpacks to a tar, with a span for each so many bytes of it.
pub(crate) fn ztoc(blob: &[u8], tar: &[u8], span: u64) -> Ztoc {
    let points = points(blob, tar, span);
    Ztoc {
        version: "0.9".into(),
        packed: i64::try_from(blob.len()).unwrap(),
        plain: i64::try_from(tar.len()).unwrap(),
        files: files(tar),
        kind: Some(1),
        last_span: i32::try_from(points.len()).unwrap() - 1,
        digests: digests(blob, &points),
        checkpoints: checkpoints(&points, span, false),
    }
}

/// Returns the digests of the spans.
pub(crate) fn digests(blob: &[u8], points: &[Checkpoint]) -> Vec<String> {
    let ends = points[1..].iter().map(|point| point.place).chain([blob.len() as u64]);
    let span = |(point, end): (&Checkpoint, u64)| {
        let range = usize::try_from(point.begin()).unwrap()..usize::try_from(end).unwrap();
        Digest::of(&blob[range]).to_string()
    };
    points.iter().zip(ends).map(span).collect()
}

/// Returns where a blob can be entered: first behind its header, then at blocks more than a span apart.
pub(crate) fn points(blob: &[u8], tar: &[u8], span: u64) -> Vec<Checkpoint> {
    let (mut unpacker, mut room) = (Unpacker::new(Codec::Gzip).unwrap(), vec![0; 1 << 16]);
    let (mut at, mut out, mut points) = (0, 0, Vec::<Checkpoint>::new());
    loop {
        let step = unpacker.step(&blob[at..], &mut room, true).unwrap();
        (at, out) = (at + step.read, out + step.written);
        if step.read == 0 && step.written == 0 && step.place.is_none() {
            return points;
        }
        let due = points.last().is_none_or(|last| out as u64 - last.plain > span);
        if let Some(place) = step.place.filter(|_| due) {
            let window = tar[out.saturating_sub(WINDOW)..out].to_vec();
            points.push(Checkpoint { place: at as u64, plain: out as u64, bits: place.bits, window });
        }
    }
}

fn files(tar: &[u8]) -> Vec<File> {
    let (mut parser, mut at, mut files) = (Parser::new(), 0, Vec::new());
    while at < tar.len() {
        let (taken, step) = parser.step(&tar[at..]).unwrap();
        at += taken;
        if let Step::Member(member) = step {
            at += usize::try_from(member.payload).unwrap();
            files.push(file(&member));
        }
    }
    files
}

fn file(member: &Member) -> File {
    let (kind, link, device) = match &member.kind {
        MemberKind::Dir => ("dir", &b""[..], None),
        MemberKind::File => ("reg", &b""[..], None),
        MemberKind::Link(link) => ("hardlink", &link[..], None),
        MemberKind::Symlink(link) => ("symlink", &link[..], None),
        MemberKind::Char(device) => ("char", &b""[..], Some(device)),
        MemberKind::Block(device) => ("block", &b""[..], Some(device)),
        MemberKind::Fifo => ("fifo", &b""[..], None),
        MemberKind::Sparse { .. } => panic!("a sparse file is for a test of its own"),
    };
    File {
        name: member.path.to_vec(),
        kind,
        offset: i64::try_from(member.plain).unwrap(),
        size: i64::try_from(member.payload).unwrap(),
        link: link.to_vec(),
        mode: member.mode.into(),
        uid: member.uid,
        gid: member.gid,
        time: rfc3339::write(member.mtime).unwrap(),
        device: device.map_or((0, 0), |device| (device.major.into(), device.minor.into())),
        records: member
            .xattrs
            .iter()
            .map(|(name, value)| ([b"SCHILY.xattr.", &name[..]].concat(), value.to_vec()))
            .collect(),
    }
}
