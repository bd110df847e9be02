//! Full, broken and read-only disks: a clear error that names the thing, and life goes on.

use std::sync::Arc;

use format::index::Codec;

use super::fixture::{Fake, Memory, Sample, image, later, simulated};
use crate::claim::Claim;
use crate::error::StoreError;
use crate::read_error::ReadError;
use crate::read_through::{ReadThrough, Segments, Workers};
use crate::refs::RefName;
use crate::segments::{Content, OpenLayer};
use crate::sim::{Fault, FaultOn};
use crate::standing::Stage;
use crate::store::Store;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EROFS: i32 = 30;

#[test]
fn a_full_disk_fails_the_readers_and_heals() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let sample = Sample::new(1, 3, Codec::Plain);
    let read = ReadThrough::start(store, Memory::of(&[&sample]), Arc::new(()), Workers::default()).unwrap();
    let hold = read.add(sample.layer.clone()).unwrap();
    // The table of its chunks is written meanwhile, and is not to meet the fault.
    while !home.path().join("known").join(sample.id().hex()).exists() {
        std::thread::yield_now();
    }
    for lasting in [true, false] {
        disk.fail(Fault { after: 0, errno: ENOSPC, lasting, on: FaultOn::Appends });
        let error = read.fetch(sample.id(), 0, later()).unwrap_err();
        assert!(matches!(error, ReadError::Full { segment: 0, .. }), "{error}");
        assert!(read.local(sample.id(), 0).is_none());
    }
    // What had been written was given back.
    assert_eq!(std::fs::metadata(hold.files().path(0)).unwrap().len(), 0);
    disk.heal();
    assert_eq!(read.fetch(sample.id(), 0, later()).unwrap().len, sample.layer.segment_len(0));
}

#[test]
fn a_full_disk_under_a_mount_leaves_a_right_prefix_and_goes_on_from_it() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(2);
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    layer.expose().unwrap();
    disk.fail(Fault { after: 0, errno: ENOSPC, lasting: true, on: FaultOn::Appends });
    assert!(layer.fill(0, &content.bytes(0)).is_err());
    disk.heal();
    let there = std::fs::read(layer.path(0)).unwrap();
    assert!(!there.is_empty() && content.bytes(0).starts_with(&there));
    layer.fill(0, &content.bytes(0)).unwrap();
    assert_eq!(layer.claim(0), Some(Claim::Whole));
    assert!(std::fs::read(layer.path(0)).unwrap() == content.bytes(0));
}

#[test]
fn any_operation_may_fail_and_a_reference_is_old_or_new() {
    for errno in [EIO, ENOSPC] {
        for on in [FaultOn::Writes, FaultOn::Syncs] {
            for after in 0..6 {
                let home = tempfile::tempdir().unwrap();
                let (disk, store) = simulated(home.path(), "boot");
                store.refs().put(&image("a", &[], 1)).unwrap();
                disk.fail(Fault { after, errno, lasting: false, on });
                let put = store.refs().put(&image("a", &[], 2));
                disk.heal();
                let name = RefName::parse("a").unwrap();
                let found = store.refs().get(&name).unwrap().unwrap();
                match put {
                    Ok(()) => assert_eq!(found, image("a", &[], 2)),
                    Err(StoreError::Full { path, .. }) if errno == ENOSPC => {
                        assert!(path.starts_with(home.path()))
                    }
                    Err(StoreError::Io { path, .. }) if errno == EIO => {
                        assert!(path.starts_with(home.path()))
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(found == image("a", &[], 1) || found == image("a", &[], 2));
                store.refs().put(&image("a", &[], 3)).unwrap();
                assert_eq!(store.refs().get(&name).unwrap().unwrap(), image("a", &[], 3));
                assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
            }
        }
    }
}

#[test]
fn a_sync_that_fails_ends_trust_in_the_segment() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(3);
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    for segment in 0..content.segments() {
        layer.fill(segment, &content.bytes(segment)).unwrap();
    }
    disk.fail(Fault { after: 0, errno: EIO, lasting: false, on: FaultOn::Syncs });
    assert!(matches!(layer.seal(), Err(StoreError::Io { .. })));
    assert_eq!((layer.missing(), layer.standing().stage), (1, Stage::Filling));
    assert!(!layer.seal().unwrap());
    layer.fill(0, &content.bytes(0)).unwrap();
    assert!(layer.seal().unwrap());
}

#[test]
fn a_segment_that_cannot_be_read_is_fetched_again() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(3);
    OpenLayer::open(&store, content.clone()).unwrap().fill(0, &content.bytes(0)).unwrap();
    drop(store);
    let store = Store::open_on(home.path(), disk.clone(), "another boot".to_owned()).unwrap();
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    assert_eq!(layer.claim(0), Some(Claim::Suspect));
    disk.fail(Fault { after: 1, errno: EIO, lasting: false, on: FaultOn::Reads });
    assert!(!layer.settle(0).unwrap());
    layer.fill(0, &content.bytes(0)).unwrap();
    assert!(std::fs::read(layer.path(0)).unwrap() == content.bytes(0));
}

#[test]
fn a_read_only_store_says_so() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    disk.fail(Fault { after: 0, errno: EROFS, lasting: true, on: FaultOn::Writes });
    let error = store.refs().put(&image("a", &[], 1)).unwrap_err();
    assert!(error.to_string().ends_with("the store is read-only"), "{error}");
    drop(store);
    let error = Store::open_on(home.path(), disk, "boot".to_owned()).unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
}

#[test]
fn a_full_disk_does_not_keep_the_store_from_opening() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(3);
    OpenLayer::open(&store, content.clone()).unwrap().fill(0, &content.bytes(0)).unwrap();
    store.close().unwrap();
    drop(store);
    disk.fail(Fault { after: 0, errno: ENOSPC, lasting: true, on: FaultOn::Appends });
    let store = Store::open_on(home.path(), disk.clone(), "next boot".to_owned()).unwrap();
    disk.heal();
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    assert_eq!(layer.claim(0), Some(Claim::Whole), "the clean shutdown counts");
    drop((layer, store));
    let store = Store::open_on(home.path(), disk, "boot after that".to_owned()).unwrap();
    let layer = OpenLayer::open(&store, content).unwrap();
    assert_eq!(layer.claim(0), Some(Claim::Suspect), "and the unclean one after it");
}

#[test]
fn what_came_wrong_is_remembered_and_makes_nothing_else_right() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(1);
    assert!(content.segments() > 1);
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    layer.fill(0, &content.bytes(0)).unwrap();
    drop((layer, store));
    let again = || {
        let store = Store::open_on(home.path(), disk.clone(), "boot after power loss".to_owned()).unwrap();
        let layer = OpenLayer::open(&store, content.clone()).unwrap();
        (store, layer)
    };
    let (store, layer) = again();
    assert!(layer.doubted().is_none());
    layer.doubt(1);
    drop((layer, store));
    let (store, layer) = again();
    assert!(layer.doubted().is_some());
    assert_eq!(layer.claim(0), Some(Claim::Suspect), "nobody has looked at it");

    // Read whole the layer is as good as new.
    let mut staging = store.stage().unwrap();
    for segment in 0..content.segments() {
        staging.write(segment, &content.bytes(segment)).unwrap();
    }
    staging.commit_as(content.clone()).unwrap();
    assert_eq!(layer.missing(), 0);
    layer.scrub(1).unwrap();
    std::fs::write(layer.path(1), b"rotten").unwrap();
    assert_eq!(layer.scrub(1).unwrap(), Some(false));
    assert!(layer.doubted().is_none(), "it can be fetched by what is known now");
    drop((layer, store));
    assert!(again().1.doubted().is_none());
}
