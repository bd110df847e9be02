//! Snapshots: what is allowed, what survives, what is collected.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use format::{DiffId, Digest, IndexId};

use crate::gc::GcMode;
use crate::refs::RefLayer;
use crate::snapshots::*;
use crate::store::Store;

fn open(root: &Path) -> (Arc<Store>, Snapshots) {
    let store = Store::open(root).unwrap();
    let (snapshots, damaged) = Snapshots::open(&store).unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    (store, snapshots)
}

fn new<'a>(owner: &'a str, name: &'a str, parent: Option<&'a str>) -> NewSnapshot<'a> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    NewSnapshot { owner, name, parent, labels: &NONE }
}

fn lazy(seed: u8) -> LazyLayer {
    LazyLayer {
        reference: "docker://registry.example/app:v1".into(),
        layer: RefLayer {
            blob: Digest::of(&[seed]),
            size: 1,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            diff_id: DiffId::new(Digest::of(&[seed, 1])),
            index: IndexId::from_bytes([seed; 32]),
            proved: false,
        },
    }
}

fn names(snapshots: &Snapshots, owner: &str) -> Vec<String> {
    snapshots.list(owner).into_iter().map(|snapshot| snapshot.name).collect()
}

#[test]
fn a_layer_is_unpacked_committed_stood_on_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let (store, snapshots) = open(home.path());
    assert!(!home.path().join("snapshots").exists(), "who has none needs no room");
    let before = BTreeMap::from([("before".to_owned(), "unpacking".to_owned())]);
    let unpack = NewSnapshot { labels: &before, ..new("floe", "unpack", None) };
    let active = snapshots.create(&unpack, SnapshotKind::Active).unwrap();
    std::fs::write(snapshots.files(&active).join("file"), "x").unwrap();
    assert!(snapshots.work(&active).is_dir());
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let committed = snapshots
        .commit(
            &NewSnapshot { labels: &labels, ..new("floe", "layer", None) },
            "unpack",
            Usage { bytes: 1, inodes: 1 },
        )
        .unwrap();
    assert_eq!((committed.labels, committed.usage.map(|usage| usage.bytes)), (labels, Some(1)));
    assert!(matches!(snapshots.get("floe", "unpack"), Err(SnapshotError::NotFound(_))));

    snapshots.create(&new("floe", "container", Some("layer")), SnapshotKind::Active).unwrap();
    let view = snapshots.create(&new("floe", "view", Some("layer")), SnapshotKind::View).unwrap();
    assert!(!snapshots.work(&view).exists());
    let again = snapshots.create(&new("floe", "container", None), SnapshotKind::Active);
    assert!(matches!(again, Err(SnapshotError::Exists(_))));
    for (parent, name) in [("container", "x"), ("view", "x")] {
        let child = snapshots.create(&new("floe", name, Some(parent)), SnapshotKind::Active);
        assert!(matches!(child, Err(SnapshotError::Unfit { .. })));
    }
    let orphan = snapshots.create(&new("floe", "x", Some("nobody")), SnapshotKind::Active);
    assert!(matches!(orphan, Err(SnapshotError::NotFound(_))));
    let view = snapshots.commit(&new("floe", "x", None), "view", Usage::default());
    assert!(matches!(view, Err(SnapshotError::Unfit { .. })));
    let other = snapshots.commit(&new("floe", "x", Some("elsewhere")), "container", Usage::default());
    assert!(matches!(other, Err(SnapshotError::Invalid(_))));
    assert!(matches!(snapshots.remove("floe", "layer"), Err(SnapshotError::Unfit { .. })));

    drop((snapshots, store));
    let (_store, snapshots) = open(home.path());
    assert_eq!(names(&snapshots, "floe"), ["container", "layer", "view"]);
    let lineage = snapshots.lineage("floe", "container").unwrap();
    assert_eq!(std::fs::read_to_string(snapshots.files(&lineage[1]).join("file")).unwrap(), "x");
    for name in ["container", "view", "layer"] {
        snapshots.remove("floe", name).unwrap();
    }
    snapshots.clean_up();
    assert_eq!(std::fs::read_dir(home.path().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn snapshotters_do_not_see_each_other() {
    let home = tempfile::tempdir().unwrap();
    let (_store, snapshots) = open(home.path());
    for owner in ["floe", "stargz"] {
        snapshots.create_lazy(&new(owner, "layer", None), &lazy(1)).unwrap();
    }
    snapshots.create(&new("stargz", "container", Some("layer")), SnapshotKind::Active).unwrap();
    assert_eq!(names(&snapshots, "floe"), ["layer"]);
    assert_eq!(names(&snapshots, "flo"), [""; 0]);
    snapshots.remove("floe", "layer").unwrap();
    assert!(matches!(snapshots.get("floe", "layer"), Err(SnapshotError::NotFound(_))));
    assert_eq!(names(&snapshots, "stargz"), ["container", "layer"]);
}

#[test]
fn a_lazy_layer_is_made_once_and_keeps_its_layer_from_being_collected() {
    let home = tempfile::tempdir().unwrap();
    let (store, snapshots) = open(home.path());
    let bottom = snapshots.create_lazy(&new("floe", "a", None), &lazy(1)).unwrap();
    assert_eq!(snapshots.create_lazy(&new("floe", "a", None), &lazy(1)).unwrap(), bottom);
    snapshots.create_lazy(&new("floe", "b", Some("a")), &lazy(2)).unwrap();
    let other = snapshots.create_lazy(&new("floe", "b", None), &lazy(2));
    assert!(matches!(other, Err(SnapshotError::Exists(_))));
    let ids = |seeds: &[u8]| seeds.iter().map(|seed| IndexId::from_bytes([*seed; 32])).collect::<Vec<_>>();
    let mut stacks = crate::snapshots::stacks(&store).unwrap();
    stacks.sort();
    assert_eq!(stacks, [ids(&[1]), ids(&[1, 2])]);
    for id in ids(&[1, 2, 3]) {
        std::fs::create_dir(home.path().join("device").join(id.hex())).unwrap();
    }
    let garbage = store.gc(GcMode::Remove).unwrap();
    assert_eq!(garbage.len(), 1, "{garbage:?}");
    let found = snapshots.lazy(&lazy(2).layer.blob, &lazy(2).layer.diff_id);
    assert_eq!(found, [lazy(2)]);
    snapshots.remove("floe", "b").unwrap();
    assert_eq!(store.gc(GcMode::Remove).unwrap().len(), 1);
}

#[test]
fn what_was_cut_short_leaves_nothing_and_damage_costs_one() {
    let home = tempfile::tempdir().unwrap();
    let (store, snapshots) = open(home.path());
    let one = snapshots.create(&new("floe", "one", None), SnapshotKind::Active).unwrap();
    snapshots.create(&new("floe", "two", None), SnapshotKind::Active).unwrap();
    let kept = snapshots.files(&one);
    drop((snapshots, store));
    // A directory whose record was never written, or has gone already.
    std::fs::create_dir_all(home.path().join("snapshots/77.d/fs/deep")).unwrap();
    std::fs::write(home.path().join("snapshots/0"), b"nonsense").unwrap();
    let store = Store::open(home.path()).unwrap();
    let (snapshots, damaged) = Snapshots::open(&store).unwrap();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    snapshots.clean_up();
    assert!(kept.is_dir(), "its files stay");
    assert!(!home.path().join("snapshots/77.d").exists());
    assert_eq!(names(&snapshots, "floe"), ["two"]);
    assert!(store.gc(GcMode::Remove).is_err(), "nobody knows what it kept");
    let next = snapshots.create(&new("floe", "three", None), SnapshotKind::Active).unwrap();
    assert!(!snapshots.files(&next).starts_with(kept.parent().unwrap()), "its number is not given again");
}

#[test]
fn odd_names_and_too_many_labels_are_refused_and_long_ones_are_not() {
    let home = tempfile::tempdir().unwrap();
    let (store, snapshots) = open(home.path());
    for name in ["", "a\0b", &"x".repeat(4097)] {
        let made = snapshots.create(&new("floe", name, None), SnapshotKind::Active);
        assert!(matches!(made, Err(SnapshotError::Invalid(_))));
    }
    for name in ["../../etc/passwd", "k8s.io/7/ünïcode \n", &"y".repeat(4096)] {
        snapshots.create(&new("floe", name, None), SnapshotKind::Active).unwrap();
        snapshots.get("floe", name).unwrap();
    }
    // What is taken can be read again, however it is written.
    let worst = BTreeMap::from([("a".to_owned(), "\u{1}".repeat((128 << 10) - 1))]);
    snapshots.label("floe", "../../etc/passwd", |all| *all = worst.clone()).unwrap();
    assert!(Snapshots::open(&store).unwrap().1.is_empty());
    let labels = BTreeMap::from([("a".to_owned(), "b".repeat(128 << 10))]);
    let made =
        snapshots.create(&NewSnapshot { labels: &labels, ..new("floe", "z", None) }, SnapshotKind::View);
    assert!(matches!(made, Err(SnapshotError::Invalid(_))));
    let changed = snapshots.label("floe", "../../etc/passwd", |all| *all = labels.clone());
    assert!(matches!(changed, Err(SnapshotError::Invalid(_))));
}

#[test]
fn a_layer_that_was_unpacked_by_itself_is_put_on_its_parent_when_it_is_committed() {
    let home = tempfile::tempdir().unwrap();
    let (_store, snapshots) = open(home.path());
    snapshots.create_lazy(&new("floe", "base", None), &lazy(1)).unwrap();
    snapshots.create(&new("floe", "unpack", None), SnapshotKind::Active).unwrap();
    let nobody = snapshots.commit(&new("floe", "layer", Some("nobody")), "unpack", Usage::default());
    assert!(matches!(nobody, Err(SnapshotError::NotFound(_))));
    snapshots.commit(&new("floe", "layer", Some("base")), "unpack", Usage::default()).unwrap();
    assert_eq!(snapshots.lineage("floe", "layer").unwrap().len(), 2);
    assert!(matches!(snapshots.remove("floe", "base"), Err(SnapshotError::Unfit { .. })));
}

#[test]
fn whatever_a_crash_has_left_half_made_or_half_removed_goes_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let (store, snapshots) = open(home.path());
    let one = snapshots.create(&new("floe", "one", None), SnapshotKind::Active).unwrap();
    std::fs::write(snapshots.files(&one).join("file"), "x").unwrap();
    drop((snapshots, store));
    let all = home.path().join("snapshots");
    let record = std::fs::read(all.join("0")).unwrap();
    // As far as making had come, or removing: the record comes last and goes first.
    let made: [&[&str]; 6] =
        [&[""], &["fs"], &["fs", "work"], &["fs/a/b", "work/work"], &["work/work"], &["fs/a"]];
    for (n, dirs) in (70..).zip(made) {
        dirs.iter().for_each(|dir| std::fs::create_dir_all(all.join(format!("{n}.d")).join(dir)).unwrap());
        if dirs.contains(&"fs") {
            std::os::unix::fs::symlink(home.path(), all.join(format!("{n}.d/fs/link"))).unwrap();
        }
    }
    for len in [0, 1, record.len() / 2, record.len()] {
        std::fs::write(home.path().join(format!("tmp/{len}")), &record[..len]).unwrap();
    }
    // Removing what is left may be cut short as well, and is then done by the next start.
    for round in 0..2 {
        let (_store, snapshots) = open(home.path());
        assert_eq!(names(&snapshots, "floe"), ["one"]);
        if round == 1 {
            snapshots.clean_up();
        }
        let kept = snapshots.files(&snapshots.get("floe", "one").unwrap());
        assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), "x");
        assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
    }
    let mut left: Vec<_> = std::fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["0", "0.d"]);
}

#[test]
fn records_of_other_versions_are_read_or_refused_by_name_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (store, snapshots) = open(home.path());
    snapshots.create_lazy(&new("floe", "layer", None), &lazy(1)).unwrap();
    snapshots.create(&new("floe", "other", None), SnapshotKind::Active).unwrap();
    drop((snapshots, store));
    let file = home.path().join("snapshots/0");
    let ours = std::fs::read(&file).unwrap();
    let (mut fields, body) = (ours[..24].to_vec(), &ours[56..]);
    fields[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let sum = *blake3::Hasher::new().update(&fields).update(body).finalize().as_bytes();
    // Its checksum may be where ours is, or elsewhere.
    for theirs in [[&fields, &sum[..], body].concat(), [&fields, body, &sum[..]].concat()] {
        std::fs::write(&file, &theirs).unwrap();
        let store = Store::open(home.path()).unwrap();
        let (snapshots, damaged) = Snapshots::open(&store).unwrap();
        let said = damaged[0].to_string();
        assert!(
            damaged.len() == 1 && said.contains("version 2") && said.contains(file.to_str().unwrap()),
            "{said}"
        );
        assert!(store.gc(GcMode::Remove).unwrap_err().to_string().contains("version 2"));
        assert_eq!(names(&snapshots, "floe"), ["other"]);
        snapshots.label("floe", "other", |labels| drop(labels.insert("a".into(), "b".into()))).unwrap();
        snapshots.clean_up();
        assert_eq!(std::fs::read(&file).unwrap(), theirs);
    }

    // As the first program that had snapshots wrote them, and with a field that it did not know.
    for text in
        [FIRST.to_owned(), FIRST.replacen('{', "{\"later\":[1],", 1), FIRST.replace(",\"usage\":null", "")]
    {
        std::fs::write(&file, framed(&text)).unwrap();
        let (_store, snapshots) = open(home.path());
        let read = snapshots.get("floe", "layer").unwrap();
        assert_eq!((read.kind, &read.parent, &read.lazy), (SnapshotKind::Committed, &None, &Some(lazy(1))));
        assert_eq!(read.labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(read.created, Duration::new(1_795_800_000, 123_456_789));
    }
}

/// The body of a record, as the first program that had snapshots wrote it.
const FIRST: &str = concat!(
    r#"{"owner":"floe","name":"layer","parent":null,"kind":"committed","#,
    r#""created":{"secs":1795800000,"nanos":123456789},"updated":{"secs":1795800000,"nanos":123456789},"#,
    r#""labels":{"a":"b"},"lazy":{"reference":"docker://registry.example/app:v1","layer":{"#,
    r#""blob":"sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a","size":1,"#,
    r#""media_type":"application/vnd.oci.image.layer.v1.tar+gzip","#,
    r#""diff_id":"sha256:9dcf97a184f32623d11a73124ceb99a5709b083721e878a16d78f596718ba7b2","#,
    r#""index":"blake3:0101010101010101010101010101010101010101010101010101010101010101","proved":false}},"#,
    r#""usage":null}"#
);

/// Returns a record's file, by the format and not by what writes it today.
fn framed(body: &str) -> Vec<u8> {
    let length = (body.len() as u64).to_le_bytes();
    let fields = [b"FLOEREC\0\x01\0\0\0\x07\0\0\0".as_slice(), &length].concat();
    let sum = blake3::Hasher::new().update(&fields).update(body.as_bytes()).finalize();
    [&fields, sum.as_bytes().as_slice(), body.as_bytes()].concat()
}
