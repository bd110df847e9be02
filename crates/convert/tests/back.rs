//! Blobs of Nydus made into layers again: an image of these holds what that of the blobs holds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/rafs.rs"]
mod rafs;

use std::path::Path;

use common::expected;
use convert::Expected;
use convert::recode::nydus::{
    NydusError, Packing, Stored, apart, compare_together, merge, pack, together, unpack,
};
use convert::recode::{RecodeError, Recoded, Recoding, Target};
use format::index::{BlobAt, Codec};
use format::{Digest, unpack::whole};
use rafs::Bootstrap;
use testkit::dump::{Dump, Node, difference};
use testkit::tar::{Archive, Entry, Kind, Variant};

/// What `nydus-image` made.
#[cfg(test)]
fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../format/tests/nydus/{name}.zst"));
    zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap()
}

#[cfg(test)]
fn back(blob: &[u8], threads: usize) -> Result<(Vec<u8>, Recoded), RecodeError> {
    let recoding = Recoding { target: Target::Gzip, level: Some(6), blob_size: blob.len() as u64, threads };
    let (file, mut out) = (tempfile::tempfile().unwrap(), Vec::new());
    let made = unpack(blob, Digest::of(blob), &recoding, &file, &mut out)?;
    assert_eq!((made.digest, made.size), (Digest::of(&out), out.len() as u64));
    let tar = whole(Codec::Gzip, &out, u64::MAX).unwrap().unwrap();
    assert_eq!(*made.diff_id.digest(), Digest::of(&tar));
    Ok((tar, made))
}

#[cfg(test)]
fn blob(tar: &[u8]) -> (Vec<u8>, convert::recode::nydus::Packed) {
    let mut blob = Vec::new();
    let packing = Packing { level: Some(1), blob_size: tar.len() as u64, threads: 2 };
    let made = pack(tar, &expected(tar, tar), &packing, &mut blob).unwrap();
    (blob, made)
}

/// What an image of these tars shows.
#[cfg(test)]
fn dump(tars: &[Vec<u8>]) -> Dump {
    let layers: Vec<_> = tars.iter().map(|tar| blob(tar)).collect();
    let listed: Vec<_> = layers.iter().map(|(_, made)| (made.digest, &made.parts)).collect();
    let top = whole(Codec::Gzip, &merge(&listed).unwrap().blob, u64::MAX).unwrap().unwrap();
    let blobs = layers.iter().map(|(blob, made)| (made.digest.hex(), blob.clone())).collect();
    let image = Image { top: top.clone(), blobs: layers.iter().map(|(blob, _)| blob.clone()).collect() };
    assert_eq!(image.apart(), None, "blobs of ours are all of an image of ours");
    // A directory, the header of the bootstrap, and that.
    let len = usize::from_str_radix(std::str::from_utf8(&top[512 + 124..512 + 135]).unwrap(), 8).unwrap();
    let bootstrap = Bootstrap::open(&top[1024..1024 + len], &blobs);
    assert!(bootstrap.blobs().len() <= tars.len());
    bootstrap.dump()
}

#[cfg(test)]
fn timeless(dump: Dump) -> Dump {
    dump.into_iter().map(|(path, node)| (path, Node { mtime: (0, 0), ..node })).collect()
}

#[cfg(test)]
fn same(found: &Dump, wanted: &Dump) {
    if let Some(text) = difference(found, wanted) {
        panic!("{text}");
    }
}

#[test]
fn blobs_of_the_reference_become_layers_with_the_same_files() {
    let wanted = dump(&["base", "middle", "top"].map(|name| vector(&format!("{name}.tar"))));
    for version in ["", "5"] {
        let tars = ["base", "middle", "top"]
            .map(|name| back(&vector(&format!("{name}{version}.blob")), 2).unwrap().0);
        let found = dump(&tars);
        match version {
            "5" => same(&found, &wanted),
            _ => same(&timeless(found), &timeless(wanted.clone())),
        }
    }
}

#[test]
fn blobs_of_ours_become_layers_with_the_same_files_and_always_the_same() {
    let lower = [
        Entry::dir("d/").mode(0o1777).owner(3, 70_000),
        Entry::file("d/small", "content").xattr("user.a", b"\xff\0").mtime(5, 7),
        Entry::file("large", common::Dice::new(3).content((3 << 20) + 5)),
        Entry::link("d/hard", "d/small"),
        Entry::symlink("soft", "x".repeat(4000)),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::new("sparse", Kind::Sparse(9 << 20, vec![((2 << 20) + 7, vec![5; 3])])),
    ];
    // Nobody describes "d" here: what the lower layer says of it holds.
    let upper = [Entry::file("d/.wh.hard", ""), Entry::file("d/new", "2"), Entry::file("empty", "")];
    let tars = [&lower[..], &upper[..]].map(|entries| Archive::of(entries, Variant::Pax10).tar);
    let backs = tars.each_ref().map(|tar| {
        let (tar, made) = back(&blob(tar).0, 1).unwrap();
        assert_eq!(
            back(&blob(&tar).0, 4).unwrap(),
            (tar.clone(), made),
            "the bytes are those of the tree alone"
        );
        tar
    });
    same(&dump(&backs), &dump(&tars));
    let (nothing, _) = back(&blob(&Archive::of(&[], Variant::Pax10).tar).0, 1).unwrap();
    assert_eq!(nothing, [0; 1024]);
}

#[test]
fn what_cannot_be_a_layer_says_why() {
    let inexpressible = |name: &str, word: &str| {
        let RecodeError::Inexpressible { why, .. } = back(&vector(name), 1).unwrap_err() else {
            panic!("{name}")
        };
        assert!(why.contains(word), "{why}");
    };
    inexpressible("zstd.blob", "no bootstrap");
    inexpressible("big.ref", "ordinary image");
}

#[test]
fn a_damaged_blob_is_an_error() {
    let blob = vector("top5.blob");
    let recoding = Recoding { target: Target::Gzip, level: None, blob_size: blob.len() as u64, threads: 1 };
    let file = tempfile::tempfile().unwrap();
    let attempt = |bytes: &[u8], digest| unpack(bytes, digest, &recoding, &file, std::io::sink());
    let right = Digest::of(&blob);
    let whole = attempt(&blob, right).unwrap();
    assert!(matches!(attempt(&blob[1..], right), Err(RecodeError::BlobLength { .. })));
    assert!(matches!(attempt(&[&blob[..], b"x"].concat(), right), Err(RecodeError::BlobLength { .. })));
    let mut harm = 0;
    for at in 0..blob.len() {
        let mut bad = blob.clone();
        bad[at] ^= 0x41;
        if at % 1000 == 0 {
            assert!(matches!(attempt(&bad, right), Err(RecodeError::BlobDigest { .. })));
        }
        // Whoever made it so has its digest, too. Bytes of a chunk are hashed still.
        let made = attempt(&bad, Digest::of(&bad));
        harm += usize::from(made.is_err());
        if at < 1372 {
            match made {
                Err(RecodeError::Nydus(NydusError::Chunk { .. })) => {}
                made => assert_eq!(made.unwrap(), whole, "{at}: a bit that says nothing"),
            }
        }
    }
    assert!(harm > 2000, "{harm}");
}

/// An image of Nydus: its layer with the tree, and its blobs.
#[cfg(test)]
struct Image {
    top: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

#[cfg(test)]
impl Image {
    fn of(boot: &[u8], blobs: &[&str]) -> Self {
        let entries = [Entry::file("image/image.boot", boot)];
        let blobs = blobs.iter().map(|name| vector(&format!("{name}.blob"))).collect();
        Self { top: Archive::of(&entries, Variant::Pax10).tar, blobs }
    }

    /// Does something with the layers; a blob that is cut short is one that does not come as a whole.
    fn stored<T>(&self, work: impl FnOnce(Stored<'_, '_>) -> T) -> T {
        let at = |blob: &Vec<u8>| BlobAt { digest: Digest::of(blob), size: blob.len() as u64 };
        let blobs: Vec<_> = self.blobs.iter().map(at).collect();
        let all: Vec<_> = self.blobs.iter().chain([&self.top]).cloned().collect();
        let mut open = |digest: &Digest, range: std::ops::Range<u64>| {
            let blob = all.iter().find(|blob| Digest::of(blob) == *digest).unwrap();
            let place = |at| usize::try_from(at).unwrap();
            let part = blob[place(range.start)..place(range.end)].to_vec();
            Box::new(std::io::Cursor::new(part)) as Box<dyn std::io::Read>
        };
        let top: Expected = expected(&self.top, &self.top);
        work(Stored { top, top_size: self.top.len() as u64, blobs: &blobs, open: &mut open })
    }

    fn apart(&self) -> Option<String> {
        self.stored(apart).unwrap()
    }

    fn together(&self, target: Target, threads: usize) -> Result<(Vec<u8>, Recoded), RecodeError> {
        let recoding = Recoding { target, level: None, blob_size: 0, threads };
        let (file, mut out) = (tempfile::tempfile().unwrap(), Vec::new());
        let made = self.stored(|stored| together(stored, &recoding, &file, &mut out))?;
        assert_eq!((made.digest, made.size), (Digest::of(&out), out.len() as u64));
        Ok((out, made))
    }
}

#[test]
fn blobs_are_made_one_by_one_only_if_they_show_the_image() {
    let (six, five) = (vector("merged.boot"), vector("merged5.boot"));
    assert_eq!(Image::of(&six, &["base", "middle", "top"]).apart(), None);
    assert_eq!(Image::of(&five, &["base5", "middle5", "top5"]).apart(), None);
    // Who looks at a link sees 0777, whatever a writer has put there.
    let links: Vec<_> =
        (0..six.len()).filter(|at| six[*at..].starts_with(&0o120_777_u16.to_le_bytes())).collect();
    assert!(!links.is_empty());
    let mut other = six.clone();
    links.iter().for_each(|at| other[*at..*at + 2].copy_from_slice(&0o120_755_u16.to_le_bytes()));
    assert_eq!(Image::of(&other, &["base", "middle", "top"]).apart(), None);
    for (boot, blobs, why) in [
        // In another order, or without one of a layer that has no bytes in the image any more.
        (&six, &["base", "top", "middle"][..], "do not show what the image does"),
        (&six, &["base", "top"], "do not show what the image does"),
        (&five, &["middle5", "base5", "top5"], "do not show what the image does"),
        (&vector("zstd.boot"), &["zstd"], "no bootstrap of its own"),
        (&vector("lz45.boot"), &["lz45"], "no bootstrap of its own"),
    ] {
        let found = Image::of(boot, blobs).apart().unwrap();
        assert!(found.contains(why), "{found}");
    }
}

#[test]
fn one_layer_of_all_has_the_files_of_the_image() {
    let wanted = timeless(dump(&["base", "middle", "top"].map(|name| vector(&format!("{name}.tar")))));
    let base = timeless(dump(&[vector("base.tar")]));
    for (boot, blobs, wanted) in [
        ("merged", &["base", "top", "middle"][..], &wanted),
        ("merged5", &["top5", "middle5", "base5"], &wanted),
        ("zstd", &["zstd"], &base),
        ("lz4", &["lz4"], &base),
        ("batch", &["batch"], &base),
        ("zstd5", &["zstd5"], &base),
        ("lz45", &["lz45"], &base),
    ] {
        let image = Image::of(&vector(&format!("{boot}.boot")), blobs);
        for (target, codec) in [(Target::Gzip, Codec::Gzip), (Target::Zstd, Codec::Zstd)] {
            let (layer, made) = image.together(target, 3).unwrap();
            assert_eq!(image.together(target, 1).unwrap(), (layer.clone(), made.clone()), "{boot}");
            let tar = whole(codec, &layer, u64::MAX).unwrap().unwrap();
            assert_eq!(*made.diff_id.digest(), Digest::of(&tar));
            same(&timeless(dump(std::slice::from_ref(&tar))), wanted);

            let compared = |layer: &[u8], tar: &[u8]| {
                let (file, made) = (tempfile::tempfile().unwrap(), expected(tar, layer));
                image.stored(|stored| compare_together(stored, &file, (made, layer.len() as u64, layer)))
            };
            compared(&layer, &tar).unwrap();
            let other = [&tar[..tar.len() - 1], b"x"].concat();
            assert!(matches!(compared(&other, &other), Err(RecodeError::Nydus(NydusError::Other { .. }))));
        }
    }
}

#[test]
fn what_is_wrong_with_an_image_names_the_blob() {
    let boot = vector("merged.boot");
    let mut lacking = Image::of(&boot, &["base", "middle", "top"]);
    let gone = Digest::of(&lacking.blobs.remove(1));
    let error = lacking.together(Target::Gzip, 1).unwrap_err();
    assert!(matches!(error, RecodeError::Nydus(NydusError::Missing(blob)) if blob == gone), "{error}");

    // A chunk that is another one than the tree says.
    let whole = Image::of(&boot, &["base", "middle", "top"]);
    let mut harm = 0;
    for at in (0..boot.len()).step_by(101) {
        let mut bad = boot.clone();
        bad[at] ^= 0x41;
        let made = Image::of(&bad, &["base", "middle", "top"]).together(Target::Gzip, 1);
        // Names and attributes nobody vouches for here, and some bits say nothing.
        if let Err(RecodeError::Nydus(NydusError::Chunk { blob, .. })) = made {
            assert!(whole.blobs.iter().any(|one| Digest::of(one) == blob));
            harm += 1;
        }
    }
    assert!(harm > 10, "{harm}");

    // Its original is there: no blob is looked at.
    let refs = Image { top: Image::of(&vector("refs.boot"), &[]).top, blobs: Vec::new() };
    for error in [refs.together(Target::Gzip, 1).unwrap_err(), refs.stored(apart).unwrap_err()] {
        assert!(error.to_string().contains("a layer of an ordinary image"), "{error}");
    }
}
