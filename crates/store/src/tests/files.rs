//! Every small file of the store, byte by byte: a change is found and named, or harms nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use format::Digest;
use format::index::Codec;

use super::fixture::{Sample, image, simulated, store};
use crate::claim::Claim;
use crate::contents::MetaKey;
use crate::error::StoreError;
use crate::gc::{GarbageKind, GcMode};
use crate::refs::RefName;
use crate::segments::OpenLayer;
use crate::store::Store;

/// Calls `check` with each byte of a file changed, and with it cut short.
fn damage(path: &Path, check: impl Fn(&str)) {
    let good = std::fs::read(path).unwrap();
    for at in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            std::fs::write(path, &bad).unwrap();
            check(&format!("byte {at} of {}", path.display()));
        }
    }
    for len in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(path, &good[..len]).unwrap();
        check(&format!("{len} bytes of {}", path.display()));
    }
    std::fs::write(path, good).unwrap();
}

fn only_file(dir: PathBuf) -> PathBuf {
    let mut files = std::fs::read_dir(dir).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}

fn is_damaged<T>(result: Result<T, StoreError>, file: &Path) -> bool {
    matches!(result, Err(StoreError::Damaged { path, .. }) if path == file)
}

#[test]
fn a_damaged_reference_harms_one_image_and_is_named() {
    let home = tempfile::tempdir().unwrap();
    let (_, store) = simulated(home.path(), "boot");
    let name = |name| RefName::parse(name).unwrap();
    store.refs().put(&image("docker.io/library/a:1", &[], 1)).unwrap();
    let file = only_file(home.path().join("refs"));
    store.refs().put(&image("docker.io/library/b:1", &[], 2)).unwrap();
    damage(&file, |what| {
        assert!(is_damaged(store.refs().get(&name("docker.io/library/a:1")), &file), "{what}");
        let (images, damaged) = store.refs().list().unwrap();
        assert_eq!((images.len(), damaged.len()), (1, 1), "{what}");
        assert!(is_damaged(store.gc(GcMode::Remove), &file), "{what}");
    });
    assert_eq!(store.refs().list().unwrap().0.len(), 2);
    // Another's record under this name.
    let other = store.refs().get(&name("docker.io/library/b:1")).unwrap().unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(only_file(home.path().join("refs")), &file).unwrap();
    assert!(is_damaged(store.refs().get(&name("docker.io/library/a:1")), &file));
    let (_, damaged) = store.refs().list().unwrap();
    assert!(store.refs().remove_damaged(&damaged[0]).unwrap());
    store.refs().put(&other).unwrap();
    assert!(store.refs().remove(&other.name).unwrap());
    assert!(!store.refs().remove(&other.name).unwrap());
    assert_eq!(store.refs().get(&other.name).unwrap(), None);
}

#[test]
fn names_are_parsed_at_the_door() {
    assert!(RefName::parse("a").is_ok());
    assert!(RefName::parse(&"x".repeat(1024)).is_ok());
    for bad in ["", "a\nb", "\0", &"x".repeat(1025)] {
        assert!(RefName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_reference_with_parts_that_do_not_match_is_not_put() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let good = image("a", &[], 1);
    let mut bad = good.clone();
    bad.config.push(b' ');
    assert!(store.refs().put(&bad).is_err());
    let layer = image("a", &[MetaLayer::id()], 1).layers[0].clone();
    let many = |n| crate::ImageRef { layers: vec![layer.clone(); n], ..good.clone() };
    store.refs().put(&many(127)).unwrap();
    assert!(store.refs().put(&many(128)).is_err());
    assert_eq!(store.refs().get(&good.name).unwrap().unwrap().layers.len(), 127);
}

struct MetaLayer;
impl MetaLayer {
    fn id() -> format::IndexId {
        format::IndexId::from_bytes([7; 32])
    }
}

#[test]
fn damaged_indexes_profiles_and_metadata_images_are_never_used() {
    let home = tempfile::tempdir().unwrap();
    // Syncs cost nothing here, and there are hundreds.
    let (_, store) = simulated(home.path(), "boot");
    let sample = Sample::new(1, 1, Codec::Plain);
    let pin = store.put_index(sample.layer.index()).unwrap();
    assert_eq!(store.index(sample.id()).unwrap().as_ref(), Some(sample.layer.index()));
    let file = only_file(home.path().join("index"));
    damage(&file, |what| assert!(is_damaged(store.index(sample.id()), &file), "{what}"));
    let other = Sample::new(2, 1, Codec::Plain);
    std::fs::write(&file, other.layer.index().encode()).unwrap();
    assert!(is_damaged(store.index(sample.id()), &file));
    drop(pin);

    let manifest = Digest::of(b"manifest");
    assert_eq!(store.profile(manifest).unwrap(), None);
    store.put_profile(manifest, b"profile").unwrap();
    assert_eq!(store.profile(manifest).unwrap().unwrap(), b"profile");
    let file = only_file(home.path().join("profile"));
    damage(&file, |what| assert!(is_damaged(store.profile(manifest), &file), "{what}"));
    std::fs::rename(&file, home.path().join("profile").join(Digest::of(b"other").hex())).unwrap();
    assert!(store.profile(Digest::of(b"other")).is_err());
    store.remove_profile(Digest::of(b"other")).unwrap();

    let key = MetaKey::of(&[sample.id()]);
    let image = b"a metadata image".repeat(10);
    assert!(store.meta(key).unwrap().is_none());
    for file in [key.to_string(), format!("{key}.sum")] {
        store.put_meta(key, &image).unwrap();
        let path = home.path().join("meta").join(file);
        damage(&path, |what| {
            assert!(store.meta(key).unwrap().is_none(), "{what}");
            assert!(!path.exists(), "{what}");
            store.put_meta(key, &image).unwrap();
        });
    }
    store.put_meta(key, &image).unwrap();
    assert_eq!(store.meta(key).unwrap().unwrap().len, 160);
    assert_ne!(key, MetaKey::of(&[]));
    assert_ne!(key, MetaKey::apart(sample.id()));
}

#[test]
fn a_damaged_version_is_refused_and_a_newer_one_named() {
    let home = tempfile::tempdir().unwrap();
    drop(store(home.path()));
    let version = home.path().join("VERSION");
    damage(&version, |what| assert!(Store::open(home.path()).is_err(), "{what}"));
    std::fs::write(&version, "floe store 7\n").unwrap();
    let error = Store::open(home.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }));
    assert!(error.to_string().contains("has version 7") && error.to_string().contains("up to 1"), "{error}");
    std::fs::remove_file(&version).unwrap();
    std::fs::write(home.path().join("my thesis"), "").unwrap();
    std::fs::remove_file(home.path().join("SESSION")).unwrap();
    let error = Store::open(home.path()).unwrap_err();
    assert!(error.to_string().contains("my thesis"), "{error}");
}

#[test]
fn damaged_records_of_layers_and_sessions_cost_a_check_and_no_trust() {
    let home = tempfile::tempdir().unwrap();
    // Syncs cost nothing here, and there are thousands.
    let content = super::fixture::Fake::new(1);
    {
        let store = simulated(home.path(), "boot").1;
        let layer = OpenLayer::open(&store, content.clone()).unwrap();
        layer.fill(0, &content.bytes(0)).unwrap();
        store.close().unwrap();
    }
    let claim = || {
        let store = simulated(home.path(), "boot").1;
        OpenLayer::open(&store, content.clone()).unwrap().claim(0)
    };
    assert_eq!(claim(), Some(Claim::Whole));
    let state = home.path().join("device").join(crate::segments::Content::id(&*content).hex()).join("state");
    let good = std::fs::read(&state).unwrap();
    damage(&state, |what| assert_eq!(claim(), Some(Claim::Suspect), "{what}"));
    assert_eq!(std::fs::read(&state).unwrap(), good);
    let session = home.path().join("SESSION");
    damage(&session, |what| {
        assert!(matches!(claim(), Some(Claim::Suspect | Claim::Whole)), "{what}");
        assert!(
            OpenLayer::open(&simulated(home.path(), "boot").1, content.clone()).unwrap().settle(0).unwrap(),
            "{what}"
        );
    });
}

#[test]
fn gc_removes_what_nothing_names_and_tells_sizes_before() {
    let home = tempfile::tempdir().unwrap();
    let store = store(home.path());
    let samples: Vec<_> = (0..3).map(|n| Sample::new(n, 2, Codec::Plain)).collect();
    for sample in &samples {
        drop(store.put_index(sample.layer.index()).unwrap());
        let layer = OpenLayer::open(&store, Arc::<format::layer::Layer>::clone(&sample.layer)).unwrap();
        let mut bytes = sample.files[0].clone();
        bytes.resize(61_440, 0);
        layer.fill(0, &bytes).unwrap();
    }
    let ids: Vec<_> = samples.iter().map(Sample::id).collect();
    store.refs().put(&image("a", &ids[..2], 1)).unwrap();
    for chain in [&ids[..1], &ids[..2], &ids[..3], &ids[1..2]] {
        store.put_meta(MetaKey::of(chain), b"meta").unwrap();
    }
    for id in &ids[1..] {
        store.put_meta(MetaKey::apart(*id), b"meta").unwrap();
    }
    let before = store.gc(GcMode::DryRun).unwrap();
    assert_eq!(before, store.gc(GcMode::Remove).unwrap(), "a dry run removes nothing");
    let count = |kind: fn(&GarbageKind) -> bool| before.iter().filter(|garbage| kind(&garbage.kind)).count();
    assert_eq!(count(|kind| matches!(kind, GarbageKind::Layer(_))), 1);
    assert_eq!(count(|kind| matches!(kind, GarbageKind::Index(_))), 1);
    assert_eq!(count(|kind| matches!(kind, GarbageKind::Meta(_))), 6, "three images and their sums");
    let layer = before.iter().find(|garbage| garbage.kind == GarbageKind::Layer(ids[2])).unwrap();
    assert!(layer.bytes >= 61_440);
    assert!(store.index(ids[1]).unwrap().is_some() && store.index(ids[2]).unwrap().is_none());
    assert!(store.meta(MetaKey::of(&ids[..1])).unwrap().is_some());
    assert!(store.meta(MetaKey::apart(ids[1])).unwrap().is_some());
    store.refs().remove(&RefName::parse("a").unwrap()).unwrap();
    assert_eq!(store.gc(GcMode::Remove).unwrap().len(), 10);
    for dir in ["device", "index", "meta", "tmp", "refs"] {
        assert_eq!(std::fs::read_dir(home.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}
