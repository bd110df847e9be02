//! Not a target: writes a first few small inputs of every target into `$FUZZ_CORPUS/<target>/`.
#![no_main]

use std::path::Path;

use convert::recode::nydus::{Packing, pack};
use format::erofs::write::{self, LayerDevices};
use format::payload::SegmentSize;
use format::skeleton::SkeletonWriter;
use format::tar::{Parser, Placer, Step};
use format::tree::Builder;
use format::{Digest, IndexId, limits};
use testkit::tar::{Archive, Entry, Kind, Variant};

libfuzzer_sys::fuzz_target!(init: write_all(), |_data: &[u8]| {});

fn write_all() {
    let corpus = std::env::var_os("FUZZ_CORPUS").expect("FUZZ_CORPUS says where the corpora are");
    let put = |target: &str, name: &str, parts: &[&[u8]]| {
        let dir = Path::new(&corpus).join(target);
        std::fs::create_dir_all(&dir).expect("a directory for seeds");
        std::fs::write(dir.join(format!("seed-{name}")), parts.concat()).expect("a seed");
    };
    for variant in [Variant::V7, Variant::Ustar, Variant::Gnu, Variant::Pax00, Variant::Pax01, Variant::Pax10]
    {
        let entries: Vec<_> = entries().into_iter().filter(|entry| variant.holds(entry)).collect();
        let archive = Archive::of(&entries, variant);
        let name = format!("{variant:?}");
        put("tar", &name, &[&[1], &archive.tar]);
        put("skeleton", &name, &[&[200], &archive.skeleton]);
        put("image", &name, &[&[0], &[255], &archive.tar]);
        for mode in 0..5u8 {
            put(
                "convert",
                &format!("{name}-{mode}"),
                &[&[1 | mode << 1 | 6 << 4], &[0, 2, 1, 0, 7, 0], &archive.tar],
            );
            put("recode", &format!("{name}-{mode}"), &[&[mode << 1], &archive.tar]);
            put(
                "span",
                &format!("{name}-{mode}"),
                &[&[mode | 6 << 4], &[0, 2], &[1], &[mode, 1, 0, 1, 0], &archive.tar],
            );
        }
        let mut writer = SkeletonWriter::new().expect("zstd");
        writer.write(&archive.skeleton).expect("short");
        let (packed, facts) = writer.finish().expect("short");
        let len = facts.len.to_le_bytes();
        put("skeleton", &format!("{name}-packed"), &[&[0], &len[..3], &packed]);
        put(
            "skeleton",
            &format!("{name}-lean"),
            &[&[1], &len[..3], &zstd::bulk::decompress(&packed, 1 << 20).expect("just packed")],
        );

        let gzip = sys::deflate::compress(&archive.tar, sys::inflate::Wrap::Gzip, 6).expect("deflate");
        for (packing, blob) in [("plain", &archive.tar), ("gzip", &gzip)] {
            let built = fuzz::build(blob, None, |_| blob.len()).expect("a layer");
            put("index", &format!("{name}-{packing}"), &[&[3], &built.index.encode()]);
            put("index", &format!("{name}-{packing}-raw"), &[&[0], &built.index.encode()]);
        }
        put("erofs", &name, &[&[1], &image(&archive.skeleton)]);
        put("erofs", &format!("{name}-layer"), &[&[3], &layer(&archive.tar)]);
        put("erofs_back", &name, &[&[1], &layer(&archive.tar)]);
        put("nydus_back", &name, &[&[1], &blob(&archive.tar)]);
        put("nydus_back", &format!("{name}-plain"), &[&[1], &unpacked_ends(&blob(&archive.tar))]);
        let many = (0..70).map(|n| Entry::file(format!("many/{n}-{}", "x".repeat(70)), vec![b'y'; 9 * n]));
        let many: Vec<_> = many.chain(entries).collect();
        put("erofs", &format!("{name}-many"), &[&[1], &image(&Archive::of(&many, variant).skeleton)]);
    }
    texts(&put);
}

fn entries() -> Vec<Entry> {
    vec![
        Entry::dir("dir/").mode(0o1755).owner(1, 2),
        Entry::file("dir/small", b"content").mtime(1_600_000_000, 5),
        Entry::file("dir/long", vec![b'x'; 5000]),
        Entry::file("attributes", b"a").xattr("user.a", b"1").xattr("security.capability", b"\x01\0\0\x02"),
        Entry::new("sparse", Kind::Sparse(9000, vec![(7, vec![2; 100]), (5000, vec![3; 4000])])),
        Entry::link("hard", "dir/long"),
        Entry::symlink("soft", "dir/long"),
        Entry::file("dir/.wh.gone", b""),
        Entry::file("a".repeat(150), b"long name"),
    ]
}

/// Returns the metadata image of a layer.
fn image(skeleton: &[u8]) -> Vec<u8> {
    let (mut parser, mut placer) = (Parser::new(), Placer::new(SegmentSize::DEFAULT));
    let mut builder = Builder::new();
    builder.layer().expect("the first");
    let mut rest = skeleton;
    while !rest.is_empty() {
        let (taken, step) = parser.step(rest).expect("a skeleton");
        rest = &rest[taken..];
        if let Step::Member(member) = step {
            let runs = placer.member(&member).expect("small");
            builder.member(&member, runs).expect("sensible");
        }
    }
    let layout = placer.finish();
    let lens = (0..layout.segments()).map(|n| (layout.segment_len(n) / limits::BLOCK) as u32).collect();
    let devices = LayerDevices { index: IndexId::from_bytes([7; 32]), segment: SegmentSize::DEFAULT, lens };
    write::image(&builder.finish(), &[devices]).expect("small")
}

/// The file system that a layer becomes.
fn layer(tar: &[u8]) -> Vec<u8> {
    let digest = Digest::of(tar);
    let expected = convert::Expected { blob: digest, diff_id: format::DiffId::new(digest) };
    let mut out = std::io::Cursor::new(Vec::new());
    convert::recode::erofs::image(tar, &expected, tar.len() as u64, &mut out).expect("a sensible layer");
    out.into_inner()
}

/// The blob of Nydus that a layer becomes.
fn blob(tar: &[u8]) -> Vec<u8> {
    let digest = Digest::of(tar);
    let expected = convert::Expected { blob: digest, diff_id: format::DiffId::new(digest) };
    let packing = Packing { level: Some(1), blob_size: tar.len() as u64, threads: 1 };
    let mut out = Vec::new();
    pack(tar, &expected, &packing, &mut out).expect("a sensible layer");
    out
}

/// The same blob with its bootstrap once more, not compressed, which is the one that the table of contents names.
fn unpacked_ends(blob: &[u8]) -> Vec<u8> {
    let (rest, header) = blob.split_last_chunk::<512>().expect("a header");
    let len = std::str::from_utf8(&header[124..135]).expect("digits");
    let (rest, toc) = rest.split_at(rest.len() - usize::from_str_radix(len, 8).expect("a length"));
    let number = |entry: &[u8], at: usize| {
        usize::try_from(u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight"))).expect("small")
    };
    let (mut out, mut table) = (rest.to_vec(), toc.to_vec());
    for entry in table.chunks_mut(128).filter(|entry| entry[8..].starts_with(b"image.boot\0")) {
        let (at, packed, plain) = (number(entry, 56), number(entry, 64), number(entry, 72));
        let bytes = zstd::bulk::decompress(&rest[at..at + packed], plain).expect("packed");
        entry[0] = 1;
        for (field, value) in [(56, out.len()), (64, bytes.len())] {
            entry[field..field + 8].copy_from_slice(&(value as u64).to_le_bytes());
        }
        out.extend(bytes);
    }
    [&out[..], &table, header].concat()
}

fn texts(put: &dyn Fn(&str, &str, &[&[u8]])) {
    let digest = Digest::of(b"");
    let pinned = format!("localhost:5000/a/b:v1@{digest}");
    for (n, text) in
        ["nginx", "docker://Host.example/app", &pinned, "oci:dir:name", "oci-archive:f.tar", "linux/arm64/v8"]
            .into_iter()
            .enumerate()
    {
        put("reference", &n.to_string(), &[text.as_bytes()]);
    }
    let descriptor =
        |kind: &str, more: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7{more}}}"#);
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "");
    let platform = r#","platform":{"os":"linux","architecture":"amd64","os.version":"1"}"#;
    let list = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{{}}]}}"#,
        descriptor("application/vnd.oci.image.manifest.v1+json", platform)
    );
    let config = descriptor("application/vnd.oci.image.config.v1+json", "");
    let image = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}]}}"#);
    let told = format!(r#"{{"rootfs":{{"diff_ids":["{digest}","{digest}"]}}}}"#);
    let table = format!(
        r#"{{"version":1,"entries":[{{"name":"d/","type":"dir","modtime":"2026-01-31T12:00:00Z","mode":493,"uid":1}},
        {{"name":"d/f","type":"reg","size":70000,"offset":5,"chunkSize":66000,"chunkDigest":"{digest}","xattrs":{{"user.a":"YQ=="}}}},
        {{"name":"d/f","type":"chunk","offset":900,"innerOffset":3,"chunkOffset":66000,"chunkDigest":"{digest}"}},
        {{"name":".prefetch.landmark","type":"reg","size":1,"offset":950,"digest":"{digest}","endOffset":980}},
        {{"name":"l","type":"hardlink","linkName":"d/f"}},{{"name":"c","type":"char","devMajor":4,"devMinor":5}}]}}"#
    );
    put("contents", "json", &[table.as_bytes()]);
    put("contents", "zstd", &[&zstd::bulk::compress(table.as_bytes(), 3).expect("zstd")]);
    let tar = Archive::of(&[Entry::file("stargz.index.json", table.as_bytes())], Variant::Ustar).tar;
    let member = sys::deflate::compress(&tar, sys::inflate::Wrap::Gzip, 6).expect("deflate");
    let footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\x000000000000000000STARGZ\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";
    put("contents", "footer", &[&member, footer]);
    let vector = |packed: &[u8]| zstd::decode_all(packed).expect("a file of the tests");
    put("nydus", "bootstrap", &[&vector(include_bytes!("../../crates/format/tests/nydus/none.boot.zst"))]);
    let blob = vector(include_bytes!("../../crates/format/tests/nydus/batch.blob.zst"));
    put("nydus", "meta", &[&blob[8154..]]);
    put("nydus", "bootstrap5", &[&vector(include_bytes!("../../crates/format/tests/nydus/none5.boot.zst"))]);
    for (name, blob) in [
        ("base", &include_bytes!("../../crates/format/tests/nydus/base.blob.zst")[..]),
        ("middle", include_bytes!("../../crates/format/tests/nydus/middle.blob.zst")),
        ("base5", include_bytes!("../../crates/format/tests/nydus/base5.blob.zst")),
    ] {
        put("nydus_back", name, &[&[0], &vector(blob)]);
    }
    let beside = vector(include_bytes!("../../crates/format/tests/nydus/big.ref.zst"));
    put("nydus", "zran", &[&beside[..796 + 4096]]);
    put("soci", "ztoc", &[&testkit::soci::Ztoc::sample(1 << 20).encode()]);
    let spans = r#"{"start_span":0,"end_span":1,"priority":1},{"start_span":1,"end_span":9}"#;
    let ahead = format!(r#"{{"version":"1.0","prefetch_spans":[{spans}]}}"#);
    put("soci", "ahead", &[ahead.as_bytes()]);
    let id = IndexId::from_bytes([7; 32]);
    let notes = format!(
        r#","annotations":{{"dev.floe.layer":"{digest}","dev.floe.diffid":"{digest}","dev.floe.index":"{id}"}}"#
    );
    let artifact = format!(
        r#"{{"schemaVersion":2,"artifactType":"application/vnd.floe.index.v1","config":{config},"layers":[{}],"subject":{layer}}}"#,
        descriptor("application/vnd.floe.layer.index.v1", &notes)
    );
    put("manifest", "list", &[&[0], list.as_bytes()]);
    put("manifest", "image", &[&[0], image.as_bytes()]);
    put("manifest", "artifact", &[&[0], artifact.as_bytes()]);
    put(
        "manifest",
        "challenge",
        &[&[1], br#"Basic realm=x, Bearer realm="https://a/t",service="s",scope="b:c:pull""#],
    );
    put(
        "manifest",
        "archive",
        &[&[2], &Archive::of(&[Entry::file("index.json", b"{}")], Variant::Pax10).tar],
    );
    put("manifest", "config", &[&[3], image.as_bytes(), &[0], told.as_bytes()]);
    let position = r#","annotations":{"io.github.containers.zstd-chunked.manifest-position":"1:2:3:1","#;
    let chunked =
        format!(r#"{position}"io.github.containers.zstd-chunked.manifest-checksum":"{digest}"}}"#);
    let stargz = format!(
        r#","annotations":{{"containerd.io/snapshot/stargz/toc.digest":"{digest}","containerd.io/snapshot/stargz/layer.digest":"{digest}"}}"#
    );
    let kinds = [chunked, stargz].map(|notes| descriptor("a/b", &notes).replace("\"size\":7", "\"size\":70"));
    let tables = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, kinds.join(","));
    put("manifest", "tables", &[&[0], tables.as_bytes()]);
    let list = r#"[{"Config":"1","RepoTags":["a:b","c"],"Layers":["2","3"]},{"Config":"1","Layers":["3","2"]}]"#;
    put("manifest", "saved", &[&[5], list.as_bytes(), &[0], told.as_bytes(), b"\0tar\0\x1f\x8b\x08gzip"]);
    put("manifest", "flat", &[&[6], image.as_bytes()]);
    let mirrors =
        b"server = \"https://a.example\"\n[host.\"http://b.example/v2\"]\ncapabilities = [\"pull\"]\n";
    put("manifest", "hosts", &[&[4], &mirrors[..]]);

    let header = format!(
        r#"{{"name":"a","manifest":{{"digest":"{digest}","len":0}},"config":{{"digest":"{digest}","len":0}},"layers":[]}}"#
    );
    put("record", "ref", &[&(header.len() as u32).to_le_bytes(), header.as_bytes()]);
    put("record", "frame", &[b"FLOEREC\0", &1u32.to_le_bytes(), &2u32.to_le_bytes(), &[0; 8], &[0; 32]]);
    put(
        "profile",
        "one",
        &[format!(r#"{{"version":1,"layers":["{id}"],"segments":[[0,3],[0,0]]}}"#).as_bytes()],
    );
}
