//! Read-through: one fetch however many read, nobody cancelled by another, no error remembered.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use format::index::Codec;
use format::proof::Mismatch;

use super::fixture::{Bench, Memory, Sample, later, noise};
use crate::origin::{OriginError, Priority};
use crate::read_error::{CompleteError, ReadError};
use crate::read_through::{Observer, Segments, Workers};
use crate::standing::{Proof, Stage};

#[test]
fn thirty_two_readers_of_one_segment_are_one_read_of_the_origin() {
    let sample = Sample::new(1, 3, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.hold();
    let barrier = Barrier::new(33);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                bench.check(&sample, 1);
            });
        }
        barrier.wait();
        bench.origin.wait_for_held(1);
        bench.origin.release();
    });
    assert_eq!(bench.origin.count(), 1);
    assert!(bench.read.local(sample.id(), 0).is_none());
}

#[test]
fn readers_of_all_segments_in_any_order_get_right_bytes() {
    let plain = Sample::new(2, 9, Codec::Plain);
    let zstd = Sample::new(3, 9, Codec::Zstd);
    let bench = Bench::new(&[&plain, &zstd]);
    let _holds = [bench.add(&plain), bench.add(&zstd)];
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let (bench, plain, zstd) = (&bench, &plain, &zstd);
            scope.spawn(move || {
                bench.read.hint(plain.id(), thread..thread + 2);
                for n in 0..9 {
                    bench.check(plain, (n * 5 + thread) % 9);
                    bench.check(zstd, (n * 7 + thread) % 9);
                }
            });
        }
    });
    assert_eq!(
        bench.origin.asked.lock().unwrap().iter().filter(|(r, _)| r.end == zstd.blob.len() as u64).count(),
        1
    );
    bench.settle();
}

#[test]
fn a_reader_that_gives_up_takes_nothing_from_the_others() {
    let sample = Sample::new(4, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.hold();
    let gone = bench.read.begin(sample.id(), 0, later()).unwrap();
    let stays = bench.read.begin(sample.id(), 0, later()).unwrap();
    let late = bench.read.begin(sample.id(), 0, Instant::now()).unwrap();
    assert_eq!(bench.read.joined(), 2);
    bench.origin.wait_for_held(1);
    drop(gone);
    assert!(matches!(late.wait(), Err(ReadError::Timeout { segment: 0, .. })));
    bench.origin.release();
    assert_eq!(stays.wait().unwrap().len, sample.layer.segment_len(0));
    assert_eq!(bench.origin.count(), 1);
}

#[test]
fn a_fill_that_nobody_wants_any_more_is_cut_short_and_can_be_asked_for_again() {
    let sample = Sample::new(5, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.hold();
    let only = bench.read.begin(sample.id(), 0, later()).unwrap();
    bench.origin.wait_for_held(1);
    drop(only);
    bench.origin.release();
    bench.check(&sample, 0);
    // Waiting in the queue it is not even begun.
    let one = Workers { all: 1, unhurried: 1 };
    let bench = Bench::watched(&[&sample], Arc::new(()), one);
    let _hold = bench.add(&sample);
    bench.origin.hold();
    let first = bench.read.begin(sample.id(), 0, later()).unwrap();
    bench.origin.wait_for_held(1);
    drop(bench.read.begin(sample.id(), 1, later()).unwrap());
    bench.origin.release();
    first.wait().unwrap();
    bench.read.close();
    assert_eq!(bench.origin.count(), 1);
}

#[test]
fn an_error_is_not_remembered() {
    let sample = Sample::new(6, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.answer(|read, _, bytes| match read {
        0 => Err(OriginError::Unavailable("no route".into())),
        1 => Err(OriginError::Timeout),
        _ => Ok(bytes),
    });
    let fetch = || bench.read.fetch(sample.id(), 0, later());
    assert!(matches!(fetch(), Err(ReadError::Origin { segment: 0, .. })));
    assert!(matches!(fetch(), Err(ReadError::Origin { .. })), "long before the deadline that is a failure");
    bench.check(&sample, 0);
}

#[test]
fn wrong_bytes_are_asked_for_once_more_and_never_served() {
    type Spoil = fn(Vec<u8>) -> Vec<u8>;
    let spoils: [(&str, Spoil); 4] = [
        ("flipped", |mut bytes| {
            bytes[777] ^= 1;
            bytes
        }),
        ("short", |bytes| bytes[..bytes.len() - 1].to_vec()),
        ("empty", |_| Vec::new()),
        ("other", |bytes| noise(99, bytes.len())),
    ];
    for codec in [Codec::Plain, Codec::Zstd] {
        for (what, spoil) in spoils {
            let sample = Sample::new(7, 2, codec);
            let bench = Bench::new(&[&sample]);
            let _hold = bench.add(&sample);
            // Once wrong: nobody notices.
            bench.origin.answer(move |read, _, bytes| Ok(if read == 0 { spoil(bytes) } else { bytes }));
            bench.check(&sample, 0);
            assert_eq!(bench.origin.count(), 2, "{what}");
            // Always wrong: an error that names the thing.
            let bench = Bench::new(&[&sample]);
            let _hold = bench.add(&sample);
            bench.origin.answer(move |_, _, bytes| Ok(spoil(bytes)));
            let blob = sample.layer.source().blob;
            match bench.read.fetch(sample.id(), 0, later()) {
                Err(ReadError::Corrupt { segment: 0, blob: named, .. }) => assert_eq!(named, blob),
                other => panic!("{what}: {other:?}"),
            }
            assert_eq!(bench.origin.count(), 2, "{what}");
            let files = _hold.files();
            assert_eq!(std::fs::metadata(files.path(0)).map_or(0, |file| file.len()), 0);
            // Right again: what was remembered no longer counts.
            assert!(files.doubted().is_some(), "{what}");
            bench.origin.answer(|_, _, bytes| Ok(bytes));
            bench.check(&sample, 0);
            assert!(files.doubted().is_none(), "{what}");
        }
    }
}

#[test]
fn an_origin_that_sends_too_much_is_cut_off() {
    let sample = Sample::new(8, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.answer(|_, _, bytes| Ok([bytes, vec![0; 50_000]].concat()));
    bench.check(&sample, 0);
    assert_eq!(bench.origin.count(), 1);
}

#[test]
fn hints_are_one_request_and_a_reader_overtakes_them() {
    let sample = Sample::new(9, 12, Codec::Plain);
    let bench = Bench::watched(&[&sample], Arc::new(()), Workers { all: 2, unhurried: 1 });
    let _hold = bench.add(&sample);
    bench.origin.hold();
    bench.read.hint(sample.id(), 0..12);
    bench.origin.wait_for_held(1);
    let reader = bench.read.begin(sample.id(), 8, later()).unwrap();
    bench.origin.wait_for_held(2);
    bench.origin.release();
    reader.wait().unwrap();
    bench.read.complete(sample.id(), later()).unwrap();
    let asked = bench.origin.asked.lock().unwrap().clone();
    let packed = |segments| sample.layer.packed(segments).unwrap();
    assert_eq!(asked[0], (packed(0..12), Priority::Hint));
    assert_eq!(asked[1], (packed(8..9), Priority::Demand));
    // Whether the hinted request was far enough to meet the reader's segment or behind it: each segment once.
    for (range, _) in &asked[2..] {
        assert_eq!(*range, packed(9..12));
    }
    for segment in 0..12 {
        bench.check(&sample, segment);
    }
}

#[test]
fn a_byte_that_the_disk_has_changed_is_no_lie_of_the_index() {
    let sample = Sample::new(23, 4, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.read.complete(sample.id(), later()).unwrap();
    let file = std::fs::File::options().write(true).open(hold.files().path(2)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"?", 5000).unwrap();
    let error = bench.read.prove(sample.id()).unwrap_err();
    assert!(matches!(error, CompleteError::Read(ReadError::Disk { segment: 2, .. })), "{error:?}");
    assert_eq!(hold.files().standing().proof, Proof::Open);
    // It was thrown out, and comes again.
    bench.read.complete(sample.id(), later()).unwrap();
    bench.check(&sample, 2);
    assert!(bench.read.prove(sample.id()).unwrap().is_some());
}

#[test]
fn completing_ends_when_it_is_no_longer_wanted_and_what_was_asked_for_comes() {
    let sample = Sample::new(24, 4, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.origin.hold();
    let mut heard = Vec::new();
    let stopped = bench.read.complete_while(sample.id(), later(), &mut |missing| {
        heard.push(missing);
        false
    });
    assert!(matches!(stopped, Err(CompleteError::Stopped)), "{stopped:?}");
    assert_eq!((heard, hold.files().standing().stage), (vec![4], Stage::Filling));
    bench.origin.release();
    bench.read.complete(sample.id(), later()).unwrap();
    assert_eq!(bench.origin.count(), 1);
}

#[test]
fn completing_fetches_the_rest_seals_and_proves() {
    let sample = Sample::new(10, 40, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.check(&sample, 20);
    assert_eq!(bench.read.prove(sample.id()).unwrap(), None);
    bench.read.complete(sample.id(), later()).unwrap();
    assert_eq!(hold.files().standing().stage, Stage::Sealed);
    assert_eq!(bench.origin.count(), 3, "the segment, what is before it, what is behind it");
    let proved = bench.read.prove(sample.id()).unwrap().unwrap();
    assert_eq!(proved.index(), sample.id());
    assert_eq!(hold.files().standing().proof, Proof::Proved);
    drop(hold);
    let hold = bench.add(&sample);
    assert_eq!(hold.files().standing().proof, Proof::Proved);
    assert!(bench.read.scrub(sample.id()).unwrap().is_empty());
}

#[test]
fn layers_of_files_of_any_size_are_proved() {
    let sizes = [0, 1, 4096, 65_536, 65_537, 300_000, 0, 5, 200_000, 70_000];
    for codec in [Codec::Plain, Codec::Zstd] {
        for sizes in [&sizes[..], &sizes[..2], &[0], &[]] {
            let files = sizes.iter().map(|len| noise(*len as u64, *len)).collect();
            let sample = Sample::of(files, codec);
            let bench = Bench::new(&[&sample]);
            let _hold = bench.add(&sample);
            bench.read.complete(sample.id(), later()).unwrap();
            assert_eq!(bench.read.prove(sample.id()).unwrap().unwrap().index(), sample.id(), "{sizes:?}");
        }
    }
}

#[test]
fn an_index_that_lies_about_its_diff_id_is_refused_for_good() {
    #[derive(Default)]
    struct Alarm(AtomicUsize);
    impl Observer for Alarm {
        fn refused(&self, _: format::IndexId, _: &Mismatch) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let honest = Sample::new(11, 2, Codec::Plain);
    let index = honest.layer.index();
    let facts = format::index::Facts {
        diff_id: format::DiffId::new(format::Digest::of(b"another layer")),
        ..index.facts().clone()
    };
    let lie = format::index::Index::new(
        facts,
        index.skeleton().into(),
        index.chunks().to_vec(),
        index.source().clone(),
    );
    let layer = Arc::new(format::layer::Layer::open(lie.unwrap()).unwrap());
    let sample = Sample { layer, ..honest };
    let alarm = Arc::new(Alarm::default());
    let bench = Bench::watched(&[&sample], alarm.clone(), Workers::default());
    let hold = bench.add(&sample);
    bench.read.complete(sample.id(), later()).unwrap();
    assert!(matches!(bench.read.prove(sample.id()), Err(CompleteError::Refused { .. })));
    assert_eq!(alarm.0.load(Ordering::SeqCst), 1);
    let evidence = hold.files().path(0);
    drop(hold);
    let again = bench.read.add(sample.layer.clone());
    assert!(matches!(again, Err(crate::AddError::Refused { .. })));
    assert_eq!(bench.store.gc(crate::GcMode::Remove).unwrap(), []);
    assert!(evidence.exists());
}

#[test]
fn a_segment_that_rots_is_found_and_fetched_again_into_another_file() {
    let sample = Sample::new(12, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.read.complete(sample.id(), later()).unwrap();
    let rot = || {
        let mut bytes = std::fs::read(hold.files().path(1)).unwrap();
        bytes[5] ^= 1;
        std::fs::write(hold.files().path(1), &bytes).unwrap();
    };
    // Closed by us and kept by somebody else, who must hear of it as well.
    let kept = bench.read.local(sample.id(), 1).unwrap();
    while hold.files().is_open(1) {
        hold.files().let_go(1);
    }
    rot();
    assert_eq!(bench.read.scrub(sample.id()).unwrap(), [1]);
    assert!(bench.read.local(sample.id(), 1).is_none() && kept.is_withdrawn());
    assert_eq!(hold.files().standing().stage, Stage::Filling);
    bench.check(&sample, 1);
    assert!(!bench.read.local(sample.id(), 1).unwrap().is_withdrawn());
    // What the kernel has opened is left alone, and loses its name.
    let generation = hold.files().expose().unwrap();
    rot();
    let mounted = std::fs::File::open(hold.files().path(1)).unwrap();
    let before = std::fs::read(hold.files().path(1)).unwrap();
    assert_eq!(bench.read.scrub(sample.id()).unwrap(), [1]);
    assert_eq!(hold.files().generation(), generation + 1);
    let mut after = Vec::new();
    std::io::Read::read_to_end(&mut &mounted, &mut after).unwrap();
    assert_eq!((before, mounted.metadata().unwrap().nlink()), (after, 0));
    bench.check(&sample, 1);
}

#[test]
fn layers_are_in_use_while_somebody_holds_them() {
    let sample = Sample::new(13, 1, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let unknown =
        |bench: &Bench| matches!(bench.read.fetch(sample.id(), 0, later()), Err(ReadError::Unknown { .. }));
    assert!(unknown(&bench));
    let (one, two) = (bench.add(&sample), bench.add(&sample));
    drop(one);
    bench.check(&sample, 0);
    assert!(matches!(bench.read.fetch(sample.id(), 1, later()), Err(ReadError::Unknown { segment: 1, .. })));
    assert_eq!(bench.store.gc(crate::GcMode::Remove).unwrap(), [], "in use");
    drop(two);
    assert!(unknown(&bench));
    assert_eq!(bench.store.gc(crate::GcMode::DryRun).unwrap().len(), 1);
    assert_eq!(bench.store.gc(crate::GcMode::Remove).unwrap().len(), 1);
    assert_eq!(bench.store.gc(crate::GcMode::Remove).unwrap(), []);
}

#[test]
fn closing_ends_every_wait() {
    let sample = Sample::new(14, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.hold();
    let waiter = bench.read.begin(sample.id(), 0, later()).unwrap();
    bench.origin.wait_for_held(1);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| bench.read.close());
        assert!(matches!(waiter.wait(), Err(ReadError::Closed)));
        bench.origin.release();
        closing.join().unwrap();
    });
    assert!(matches!(bench.read.fetch(sample.id(), 0, later()), Err(ReadError::Closed)));
    bench.store.close().unwrap();
}

#[test]
fn what_is_wished_for_after_the_end_is_refused_at_once() {
    let sample = Sample::new(25, 2, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.read.close();
    let soon = Instant::now() + Duration::from_secs(3);
    let error = bench.read.complete(sample.id(), soon).unwrap_err();
    assert!(matches!(error, CompleteError::Read(ReadError::Closed)), "{error:?}");
    assert!(bench.read.want(sample.id(), 0..2, Priority::Hint));
    assert_eq!(bench.read.under_way(), 0);
}

#[test]
fn a_panic_in_a_fill_fails_its_readers_and_nothing_else() {
    let sample = Sample::new(15, 2, Codec::Plain);
    let bench = Bench::watched(&[&sample], Arc::new(()), Workers { all: 1, unhurried: 1 });
    let _hold = bench.add(&sample);
    bench.origin.answer(
        |read, _, bytes| if read == 0 { std::panic::resume_unwind(Box::new("bug")) } else { Ok(bytes) },
    );
    assert!(matches!(bench.read.fetch(sample.id(), 0, later()), Err(ReadError::Internal)));
    assert_eq!(bench.read.under_way(), 0);
}

#[test]
fn the_observer_hears_who_waited_for_what() {
    #[derive(Default)]
    struct Notes {
        waits: Mutex<Vec<(u32, bool)>>,
        filled: AtomicU64,
        received: AtomicU64,
    }
    impl Observer for Notes {
        fn waited(&self, _: format::IndexId, segment: u32, _: Duration, result: Result<(), &ReadError>) {
            self.waits.lock().unwrap().push((segment, result.is_ok()));
        }
        fn filled(&self, _: format::IndexId, _: u32, bytes: u64, priority: Priority) {
            assert_eq!(priority, Priority::Demand);
            self.filled.fetch_add(bytes, Ordering::SeqCst);
        }
        fn received(&self, _: format::IndexId, bytes: u64, _: Priority) {
            self.received.fetch_add(bytes, Ordering::SeqCst);
        }
    }
    let sample = Sample::new(16, 3, Codec::Plain);
    let notes = Arc::new(Notes::default());
    let bench = Bench::watched(&[&sample], notes.clone(), Workers::default());
    let _hold = bench.add(&sample);
    bench.check(&sample, 2);
    bench.check(&sample, 2);
    assert_eq!(*notes.waits.lock().unwrap(), [(2, true)]);
    assert_eq!(notes.filled.load(Ordering::SeqCst), sample.layer.segment_len(2));
    let packed = sample.layer.packed(2..3).unwrap();
    assert_eq!(notes.received.load(Ordering::SeqCst), packed.end - packed.start);
}

#[test]
fn a_streamed_layer_appears_with_its_proof_or_not_at_all() {
    let sample = Sample::new(17, 3, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let stage = || {
        let mut staging = bench.store.stage().unwrap();
        for (segment, file) in (0..).zip(&sample.files) {
            let mut bytes = file.clone();
            bytes.resize(usize::try_from(sample.layer.segment_len(segment)).unwrap(), 0);
            staging.write(segment, &bytes).unwrap();
        }
        staging
    };
    let entries = |dir: &str| std::fs::read_dir(bench.store.root().join(dir)).unwrap().count();
    drop(stage());
    assert_eq!((entries("tmp"), entries("device")), (0, 0), "a failed pull leaves nothing");

    let digest = |bytes: &[u8]| format::Digest::of(bytes);
    let proof = |tar: &[u8]| {
        format::proof::Proved::by_digests(sample.layer.index(), digest(&sample.blob), digest(tar))
    };
    assert!(proof(b"another").is_err());
    let pin = stage().commit(&sample.layer, proof(&sample.blob).unwrap()).unwrap();
    assert_eq!(bench.store.gc(crate::GcMode::Remove).unwrap(), [], "pinned");
    let hold = bench.add(&sample);
    assert_eq!((hold.files().missing(), hold.files().standing().proof), (0, Proof::Proved));
    drop(pin);
    for segment in 0..3 {
        bench.check(&sample, segment);
    }
    assert_eq!(bench.origin.count(), 0, "all of it is here");

    // Over a layer that is in use and not whole.
    drop(hold);
    bench.store.gc(crate::GcMode::Remove).unwrap();
    let hold = bench.add(&sample);
    hold.files().expose().unwrap();
    bench.check(&sample, 1);
    stage().commit(&sample.layer, proof(&sample.blob).unwrap()).unwrap();
    assert_eq!((hold.files().missing(), hold.files().standing().proof), (0, Proof::Proved));
    assert_eq!(entries("tmp"), 0);

    // A stage that is not what its index says.
    let mut short = stage();
    short.write(0, b"more").unwrap();
    assert!(short.commit(&sample.layer, proof(&sample.blob).unwrap()).is_err());
}

#[test]
fn a_sink_may_break_at_any_piece() {
    // The origin's contract, by the origin the tests use.
    let sample = Sample::new(18, 1, Codec::Plain);
    let origin = Memory::of(&[&sample]);
    let blob = crate::Blob { digest: sample.layer.source().blob, size: sample.blob.len() as u64 };
    let mut pieces = 0;
    crate::Origin::read(
        &*origin,
        &blob,
        0..blob.size,
        &crate::Urgency::new(Priority::Demand),
        later(),
        &mut |_| {
            pieces += 1;
            ControlFlow::Break(())
        },
    )
    .unwrap();
    assert_eq!(pieces, 1);
}
