//! Eviction: what goes first, what never goes, and what a fault in the middle of it costs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use format::index::Codec;
use format::{DiffId, Digest};

use super::fixture::{Bench, Fake, Sample, image, later, simulated};
use crate::claim::Claim;
use crate::error::StoreError;
use crate::gc::GcMode;
use crate::origin::Priority;
use crate::read_error::CompleteError;
use crate::refs::RefName;
use crate::room::Room;
use crate::segments::{Content, OpenLayer};
use crate::sim::{Fault, FaultOn};
use crate::standing::{Proof, Stage};
use crate::store::Store;

fn whole(store: &Arc<Store>, content: &Arc<Fake>) -> Arc<OpenLayer> {
    let layer = OpenLayer::open(store, content.clone()).unwrap();
    for segment in 0..content.segments() {
        layer.fill(segment, &content.bytes(segment)).unwrap();
    }
    layer
}

fn size(content: &Fake) -> u64 {
    (0..content.segments()).map(|n| Content::len(content, n)).sum()
}

/// Makes a layer one that was used so many minutes ago.
fn used(root: &Path, content: &Fake, minutes: u64) {
    let dir = std::fs::File::open(root.join("device").join(content.id().hex())).unwrap();
    dir.set_modified(SystemTime::now() - Duration::from_secs(60 * minutes)).unwrap();
}

fn is_here(root: &Path, content: &Fake) -> bool {
    root.join("device").join(content.id().hex()).join("0").exists()
}

fn name(text: &str) -> RefName {
    RefName::parse(text).unwrap()
}

#[test]
fn the_least_recently_used_layers_go_first_and_no_more_than_needed() {
    let home = tempfile::tempdir().unwrap();
    let (_, store) = simulated(home.path(), "boot");
    let contents: Vec<_> = (0..4).map(Fake::new).collect();
    for (content, minutes) in contents.iter().zip([10, 40, 30, 20]) {
        drop(whole(&store, content));
        used(home.path(), content, minutes);
    }
    let room = Room::new(store.clone());
    assert_eq!(room.held().unwrap(), contents.iter().map(|content| size(content)).sum::<u64>());
    assert_eq!(room.evict(0).unwrap(), []);

    let evicted = room.evict(size(&contents[1]) + 1).unwrap();
    let gone: Vec<_> = evicted.iter().map(|evicted| (evicted.layer, evicted.bytes)).collect();
    assert_eq!(gone, [(contents[1].id(), size(&contents[1])), (contents[2].id(), size(&contents[2]))]);
    assert_eq!(room.held().unwrap(), size(&contents[0]) + size(&contents[3]));
    // What is opened again finds nothing of it, and is filled as on the first day.
    let layer = OpenLayer::open(&store, contents[1].clone()).unwrap();
    assert_eq!(layer.missing(), contents[1].segments() as usize);
    layer.fill(0, &contents[1].bytes(0)).unwrap();
    assert_eq!(layer.claim(0), Some(Claim::Whole));
    drop(layer);
    // It has just been used; after a restart that is still known.
    drop((room, store));
    let (_, store) = simulated(home.path(), "boot");
    let evicted = Room::new(store.clone()).evict(u64::MAX).unwrap();
    let order: Vec<_> = evicted.iter().map(|evicted| evicted.layer).collect();
    assert_eq!(order, [3, 0, 1].map(|n: usize| contents[n].id()));
    assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_is_used_pinned_or_evidence_never_goes() {
    let home = tempfile::tempdir().unwrap();
    let (_, store) = simulated(home.path(), "boot");
    let [in_use, pinned, evidence, unreadable, free] = [0, 1, 2, 3, 4].map(Fake::new);
    let held = whole(&store, &in_use);
    for content in [&pinned, &free, &unreadable] {
        drop(whole(&store, content));
    }
    let found = DiffId::new(Digest::of(b"found"));
    whole(&store, &evidence).update(|standing| standing.proof = Proof::Refused { found }).unwrap();
    let state = home.path().join("device").join(unreadable.id().hex()).join("state");
    std::fs::write(&state, "damaged").unwrap();
    store.refs().put(&image("a", &[pinned.id()], 1)).unwrap();
    store.pinned().put(&name("a")).unwrap();
    // A name that nothing stands for keeps nothing.
    store.pinned().put(&name("b")).unwrap();
    assert_eq!(store.pinned().list().unwrap(), [name("a"), name("b")]);

    let room = Room::new(store.clone());
    let gone = |room: &Room| room.evict(u64::MAX).unwrap().iter().map(|gone| gone.layer).collect::<Vec<_>>();
    assert_eq!(gone(&room), [free.id()]);
    drop(held);
    assert_eq!(gone(&room), [in_use.id()]);
    // Nor does `gc` take the pinned one, which a reference names.
    store.gc(GcMode::Remove).unwrap();
    assert!(is_here(home.path(), &pinned) && is_here(home.path(), &evidence));
    assert!(store.pinned().remove(&name("a")).unwrap());
    assert!(!store.pinned().remove(&name("a")).unwrap());
    assert_eq!(gone(&room), [pinned.id()]);
}

#[test]
fn a_damaged_pin_still_holds_and_a_damaged_reference_of_one_stops_eviction() {
    let home = tempfile::tempdir().unwrap();
    let (_, store) = simulated(home.path(), "boot");
    let [pinned, other] = [1, 2].map(Fake::new);
    drop((whole(&store, &pinned), whole(&store, &other)));
    store.refs().put(&image("a", &[pinned.id()], 1)).unwrap();
    store.pinned().put(&name("a")).unwrap();
    let only = |dir: &str| std::fs::read_dir(home.path().join(dir)).unwrap().next().unwrap().unwrap().path();
    std::fs::write(only("pins"), "damaged").unwrap();
    assert_eq!(store.pinned().list().unwrap(), [name("a")], "the reference still knows the name");
    let reference = std::fs::read(only("refs")).unwrap();
    std::fs::write(only("refs"), "damaged").unwrap();
    let room = Room::new(store.clone());
    assert!(matches!(room.evict(u64::MAX), Err(StoreError::Damaged { .. })));
    assert!(is_here(home.path(), &other));
    assert_eq!(store.pinned().list().unwrap(), []);
    std::fs::write(only("refs"), reference).unwrap();
    assert_eq!(room.evict(u64::MAX).unwrap().len(), 1);
    assert!(is_here(home.path(), &pinned));
}

#[test]
fn a_proof_outlives_the_bytes_and_a_seal_does_not() {
    let home = tempfile::tempdir().unwrap();
    let (_, store) = simulated(home.path(), "boot");
    let content = Fake::new(1);
    let layer = whole(&store, &content);
    assert!(layer.seal().unwrap());
    layer.update(|standing| standing.proof = Proof::Proved).unwrap();
    drop(layer);
    let room = Room::new(store.clone());
    assert_eq!(room.evict(1).unwrap().len(), 1);
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    let standing = layer.standing();
    assert_eq!((standing.stage, standing.proof), (Stage::Filling, Proof::Proved));
    assert_eq!(layer.missing(), content.segments() as usize);
    drop(layer);
    // What says no more than that takes no room, and is not taken again.
    assert_eq!(room.held().unwrap(), 0);
    assert_eq!(room.evict(1).unwrap(), []);
}

#[test]
fn a_full_disk_gets_room_at_the_price_of_a_proof() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(1);
    whole(&store, &content).update(|standing| standing.proof = Proof::Proved).unwrap();
    let errno = rustix::io::Errno::NOSPC.raw_os_error();
    disk.fail(Fault { after: 0, errno, lasting: true, on: FaultOn::Appends });
    assert_eq!(Room::new(store.clone()).evict(1).unwrap().len(), 1);
    disk.heal();
    assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(OpenLayer::open(&store, content).unwrap().standing().proof, Proof::Open);
}

#[test]
fn nothing_is_freed_before_its_name_is_gone_for_good() {
    for (on, left) in [(FaultOn::Syncs, 1), (FaultOn::Writes, 0)] {
        let home = tempfile::tempdir().unwrap();
        let (disk, store) = simulated(home.path(), "boot");
        let content = Fake::new(1);
        drop(whole(&store, &content));
        disk.fail(Fault { after: 0, errno: rustix::io::Errno::IO.raw_os_error(), lasting: true, on });
        assert!(matches!(Room::new(store.clone()).evict(1), Err(StoreError::Io { .. })));
        disk.heal();
        assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), left, "{on:?}");
        // All of it, or nothing.
        let layer = OpenLayer::open(&store, content.clone()).unwrap();
        assert_eq!(layer.missing(), content.segments() as usize * left);
    }
}

#[test]
fn whoever_opens_a_layer_that_is_being_evicted_finds_all_of_it_or_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (_, store) = simulated(home.path(), "boot");
    let content = Fake::new(2);
    let segments = content.segments() as usize;
    assert!(segments > 1);
    let (done, evicted) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let room = Room::new(store.clone());
            while !done.load(Ordering::Relaxed) {
                evicted.fetch_add(room.evict(1).unwrap().len(), Ordering::Relaxed);
                room.held().unwrap();
            }
        });
        // Nothing is evicted while it is open, and on a busy machine the other thread may look at no other time.
        let (mut rounds, later) = (0, later());
        while rounds < 500 || evicted.load(Ordering::Relaxed) == 0 && Instant::now() < later {
            rounds += 1;
            // `held` looks at open layers for a moment; one it has found is the one we get.
            let layer = OpenLayer::open(&store, content.clone()).unwrap();
            assert!([0, segments].contains(&layer.missing()), "half a layer");
            drop(whole(&store, &content));
            assert_eq!(layer.missing(), 0);
            for segment in 0..content.segments() {
                assert!(std::fs::read(layer.path(segment)).unwrap() == content.bytes(segment));
            }
            assert!(layer.file(0).unwrap().is_some());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(evicted.into_inner() > 0);
}

#[test]
fn a_pause_stops_what_nobody_waits_for_and_no_reader() {
    let sample = Sample::new(1, 6, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.read.pause();
    assert!(bench.read.want(sample.id(), 0..6, Priority::Background), "asking again would be of no use");
    assert_eq!(bench.read.under_way(), 0);
    assert!(matches!(bench.read.complete(sample.id(), later()), Err(CompleteError::Paused)));
    bench.check(&sample, 3);
    bench.settle();
    assert_eq!(bench.origin.count(), 1);
    bench.read.resume();
    bench.read.complete(sample.id(), later()).unwrap();
    // With all of it here there is nothing to pause.
    bench.read.pause();
    bench.read.complete(sample.id(), later()).unwrap();
}

#[test]
fn a_pause_forgets_what_is_queued_and_a_reader_of_it_asks_anew() {
    let (one, two) = (Sample::new(1, 2, Codec::Plain), Sample::new(2, 2, Codec::Plain));
    let workers = crate::Workers { all: 2, unhurried: 1 };
    let bench = Bench::watched(&[&one, &two], Arc::new(()), workers);
    let _holds = [bench.add(&one), bench.add(&two)];
    bench.origin.hold();
    assert!(bench.read.want(one.id(), 0..2, Priority::Hint));
    bench.origin.wait_for_held(1);
    assert!(bench.read.want(two.id(), 0..2, Priority::Profile));
    let waiter = bench.read.begin(two.id(), 1, later()).unwrap();
    bench.read.pause();
    bench.origin.wait_for_held(2);
    bench.origin.release();
    waiter.wait().unwrap();
    bench.settle();
    let here = |sample: &Sample, n| crate::Segments::local(&bench.read, sample.id(), n).is_some();
    assert!(here(&one, 0) && here(&one, 1), "what has been asked for still comes");
    assert!(!here(&two, 0) && here(&two, 1));
}
