//! What other layers have is copied and not fetched; whatever is wrong with it, the bytes are right.

use std::collections::HashSet;
use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use format::IndexId;
use format::index::{Chunk, Codec, Hash};
use format::payload::SegmentSize;

use super::fixture::{Bench, Memory, Sample, later, noise, simulated, store};
use crate::gc::GcMode;
use crate::known::{Asker, Table};
use crate::origin::Priority;
use crate::plan::fetched;
use crate::read_through::{Observer, ReadThrough, Segments, Workers};
use crate::record::{self, Kind};
use crate::room::Room;
use crate::sim::{Dice, Fault, FaultOn, Model};
use crate::store::Store;

const CODECS: [Codec; 3] = [Codec::Plain, Codec::Gzip, Codec::Zstd];

/// Waits for the thread that makes them.
fn wait_for_tables(store: &Store, count: usize) {
    let until = later();
    while store.known.tables().len() < count {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
}

/// A file of a segment of its own, the same for the same number.
fn file(n: u64) -> Vec<u8> {
    noise(n, 60_001)
}

fn layer(files: impl IntoIterator<Item = u64>, codec: Codec) -> Sample {
    Sample::of(files.into_iter().map(file).collect(), codec)
}

/// A store that has all of one layer and nothing of another.
struct Upgrade {
    bench: Bench,
    old: Sample,
    new: Sample,
}

impl Upgrade {
    fn new(old: Sample, new: Sample) -> Self {
        let bench = Bench::new(&[&old, &new]);
        {
            let _hold = bench.add(&old);
            bench.read.complete(old.id(), later()).unwrap();
        }
        bench.settle();
        bench.store.make_known(&old.layer).unwrap();
        bench.origin.asked.lock().unwrap().clear();
        Self { bench, old, new }
    }

    fn asked(&self) -> Vec<std::ops::Range<u64>> {
        self.bench.origin.asked.lock().unwrap().iter().map(|(range, _)| range.clone()).collect()
    }

    fn received(&self) -> u64 {
        self.asked().iter().map(|range| range.end - range.start).sum()
    }

    fn check_all(&self) {
        (0..self.new.layer.segments()).for_each(|segment| self.bench.check(&self.new, segment));
    }

    fn segment_of_old(&self, segment: u32) -> std::path::PathBuf {
        self.bench.store.devices().join(self.old.id().hex()).join(segment.to_string())
    }
}

#[test]
fn what_another_layer_has_needs_no_request() {
    for codec in CODECS {
        let up = Upgrade::new(layer(0..6, Codec::Gzip), layer([4, 1, 0, 5], codec));
        let hold = up.bench.add(&up.new);
        up.bench.check(&up.new, 2);
        up.bench.read.complete(up.new.id(), later()).unwrap();
        up.check_all();
        assert_eq!(up.asked(), [], "{codec:?}");
        let all: u64 = (0..4).map(|segment| up.new.layer.segment_len(segment)).sum();
        assert_eq!((hold.files().taken(), up.bench.read.taken()), (all, all));
        assert!(up.bench.read.prove(up.new.id()).unwrap().is_some());
    }
}

#[test]
fn a_request_goes_around_what_is_known_if_that_is_worth_it() {
    // Two of 60 kB that are known lie between others, then five.
    let new = layer([100, 1, 2, 101, 0, 1, 2, 3, 4, 102, 5], Codec::Plain);
    let up = Upgrade::new(layer(0..6, Codec::Plain), new);
    let _hold = up.bench.add(&up.new);
    up.bench.read.complete(up.new.id(), later()).unwrap();
    let packed = |segments| up.new.layer.packed(segments).unwrap();
    assert_eq!(up.asked(), [packed(0..4), packed(9..10)]);
    up.check_all();
}

#[test]
fn a_decoder_that_waits_goes_on_behind_what_was_known() {
    let up = Upgrade::new(layer(0..2, Codec::Gzip), layer([100, 1, 101, 102], Codec::Gzip));
    let _hold = up.bench.add(&up.new);
    up.bench.check(&up.new, 0);
    up.bench.settle();
    up.bench.check(&up.new, 1);
    up.bench.check(&up.new, 2);
    let asked = up.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].start + 512 >= asked[0].end, "{asked:?}");
}

#[test]
fn a_reader_of_what_is_known_needs_nothing_that_lies_before_it() {
    let up = Upgrade::new(layer(0..2, Codec::Gzip), layer([100, 101, 1, 102], Codec::Gzip));
    let _hold = up.bench.add(&up.new);
    up.bench.check(&up.new, 2);
    up.bench.settle();
    assert_eq!(up.asked(), []);
    up.check_all();
    up.bench.settle();
    assert!(up.received() <= up.new.layer.packed(0..4).map(|range| range.end - range.start).unwrap() + 1024);
}

/// The copy of what lies behind ended the flight of a reader who had nothing yet and asked again, until its deadline.
#[test]
fn a_reader_in_front_of_what_is_known_gets_its_own() {
    let up = Upgrade::new(layer(0..2, Codec::Gzip), layer([100, 1], Codec::Zstd));
    let hold = up.bench.add(&up.new);
    let deadline = Instant::now() + Duration::from_secs(30);
    up.bench.read.fetch(up.new.id(), 0, deadline).unwrap();
    up.check_all();
    assert_eq!(up.asked(), [up.new.layer.packed(0..1).unwrap()]);
    up.bench.settle();
    assert_eq!(hold.files().taken(), up.new.layer.segment_len(1));
}

/// The same where asking again would cost more than the rest of the span, so that a reader's job is all of it.
#[test]
fn a_reader_on_a_slow_link_gets_its_own_in_front_of_what_is_known() {
    let (old, new) = (layer(0..2, Codec::Plain), layer([100, 1], Codec::Gzip));
    let bench = Bench::new(&[&old, &new]);
    bench.origin.answer(|_, _, bytes| {
        std::thread::sleep(Duration::from_millis(200)); // what such a link takes
        Ok(bytes)
    });
    let _old = bench.add(&old);
    bench.read.complete(old.id(), later()).unwrap();
    bench.store.make_known(&old.layer).unwrap();
    let _new = bench.add(&new);
    bench.read.fetch(new.id(), 0, Instant::now() + Duration::from_secs(30)).unwrap();
    (0..2).for_each(|segment| bench.check(&new, segment));
}

#[test]
fn of_a_span_with_something_unknown_only_its_end_is_copied() {
    for codec in [Codec::Gzip, Codec::Zstd] {
        let up = Upgrade::new(layer(0..3, Codec::Plain), layer([1, 100, 0, 2], codec));
        let hold = up.bench.add(&up.new);
        up.bench.read.complete(up.new.id(), later()).unwrap();
        assert_eq!(up.asked(), [up.new.layer.packed(0..2).unwrap()]);
        let taken: u64 = (2..4).map(|segment| up.new.layer.segment_len(segment)).sum();
        assert_eq!(hold.files().taken(), taken, "{codec:?}: what comes with a request is not taken");
        up.check_all();
    }
}

/// However long the span is: who reads its end does not wait for the copying of what is before, be it known or not.
#[test]
fn a_reader_waits_for_the_copy_of_its_own_segment_alone() {
    for first in [3, 100] {
        let up = Upgrade::new(layer(0..4, Codec::Plain), layer([first, 1, 2, 0], Codec::Zstd));
        let hold = up.bench.add(&up.new);
        up.bench.check(&up.new, 2);
        up.bench.settle();
        assert_eq!(up.asked(), []);
        assert_eq!(hold.files().taken(), up.new.layer.segment_len(2));
        up.check_all();
        up.bench.settle();
        assert_eq!(up.asked().len(), usize::from(first == 100));
    }
}

/// Holds up the fill of each segment until the test goes on.
struct Held(Mutex<(Sender<u32>, Receiver<()>)>);

impl Observer for Held {
    fn filled(&self, _: IndexId, segment: u32, _: u64, _: Priority) {
        let held = self.0.lock().unwrap();
        if held.0.send(segment).is_ok() {
            let _ = held.1.recv(); // gone: nobody holds it any more
        }
    }
}

/// Whoever stops what no reader waits for does not wait for a long copy, nor does it go on behind their back.
#[test]
fn a_pause_ends_what_is_being_copied() {
    let (old, new) = (layer(0..4, Codec::Plain), layer([3, 2, 1, 0], Codec::Plain));
    let ((filled, seen), (go, goes)) = (channel(), channel());
    let bench = Bench::watched(&[&old, &new], Arc::new(Held(Mutex::new((filled, goes)))), Workers::default());
    let _old = bench.add(&old);
    (0..4).for_each(|_| go.send(()).unwrap());
    bench.read.complete(old.id(), later()).unwrap();
    bench.store.make_known(&old.layer).unwrap();
    let _new = bench.add(&new);
    (0..4).for_each(|_| assert!(seen.recv().is_ok()));
    assert!(bench.read.want(new.id(), 0..4, Priority::Hint));
    let first = seen.recv().unwrap();
    bench.read.pause();
    drop((go, seen));
    bench.settle();
    let here = |segment: &u32| bench.read.local(new.id(), *segment).is_some();
    assert_eq!((0..4).filter(here).collect::<Vec<_>>(), [first]);
}

#[test]
fn a_hint_and_a_profile_are_asked_for_alike() {
    for priority in [Priority::Profile, Priority::Hint, Priority::Background] {
        let up = Upgrade::new(layer(0..3, Codec::Plain), layer([2, 1], Codec::Plain));
        let _hold = up.bench.add(&up.new);
        assert!(up.bench.read.want(up.new.id(), 0..2, priority));
        up.bench.settle();
        assert!((0..2).all(|segment| up.bench.read.local(up.new.id(), segment).is_some()));
        assert_eq!(up.asked(), []);
    }
}

#[test]
fn a_rotten_source_is_fetched_and_left_as_it_is() {
    let up = Upgrade::new(layer(0..3, Codec::Plain), layer([2, 1, 0], Codec::Plain));
    let path = up.segment_of_old(1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[30_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let _hold = up.bench.add(&up.new);
    up.bench.read.complete(up.new.id(), later()).unwrap();
    assert_eq!(up.asked(), [up.new.layer.packed(1..2).unwrap()]);
    up.check_all();
    assert!(fs::read(&path).unwrap() == bytes, "only read");
}

#[test]
fn another_layer_has_what_the_first_has_lost() {
    let up = Upgrade::new(layer(0..3, Codec::Plain), layer([2, 1, 0], Codec::Plain));
    let other = layer([7, 1], Codec::Plain);
    {
        let hold = up.bench.add(&other);
        up.bench.store.make_known(&other.layer).unwrap();
        hold.files().fill(1, &[&file(1)[..], &[0; 1439]].concat()).unwrap();
    }
    fs::remove_file(up.segment_of_old(1)).unwrap();
    fs::File::options().write(true).open(up.segment_of_old(0)).unwrap().set_len(60_000).unwrap();
    let _hold = up.bench.add(&up.new);
    up.bench.read.complete(up.new.id(), later()).unwrap();
    assert_eq!(up.asked(), [up.new.layer.packed(2..3).unwrap()], "one byte of it was gone");
    up.check_all();
}

#[test]
fn what_was_evicted_or_collected_is_not_known() {
    let up = Upgrade::new(layer(0..3, Codec::Plain), layer(0..3, Codec::Gzip));
    let twin = layer([1, 0], Codec::Plain);
    assert_eq!(Room::new(up.bench.store.clone()).evict(u64::MAX).unwrap().len(), 1);
    let _hold = up.bench.add(&twin);
    up.bench.read.fetch(twin.id(), 0, later()).unwrap_err();
    assert_eq!(up.asked().len(), 1, "asked of somebody who does not have this blob");

    wait_for_tables(&up.bench.store, 2);
    let table = |sample: &Sample| up.bench.store.root().join("known").join(sample.id().hex());
    assert!(table(&up.old).exists());
    up.bench.store.gc(GcMode::Remove).unwrap();
    assert!(!table(&up.old).exists());
    assert_eq!(up.bench.store.known.tables().len(), 1, "that of the layer in use");
}

#[test]
fn a_disk_that_cannot_be_read_costs_a_fetch() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let (old, new) = (layer(0..3, Codec::Plain), layer([2, 1], Codec::Plain));
    let origin = Memory::of(&[&old, &new]);
    let read = ReadThrough::start(store.clone(), origin.clone(), Arc::new(()), Workers::default()).unwrap();
    let _old = read.add(old.layer.clone()).unwrap();
    read.complete(old.id(), later()).unwrap();
    store.make_known(&old.layer).unwrap();
    let _new = read.add(new.layer.clone()).unwrap();
    // Whose making would meet the fault.
    wait_for_tables(&store, 2);
    let before = origin.count();
    // Opening the file of its first chunk, reading it.
    for (segment, after) in [(0, 0), (1, 1)] {
        disk.fail(Fault { after, errno: 5, lasting: false, on: FaultOn::Reads });
        assert_eq!(read.fetch(new.id(), segment, later()).unwrap().len, new.layer.segment_len(segment));
    }
    assert_eq!(origin.count(), before + 2);
}

/// What an upgrade would fetch is told before, and is what it then fetches: of layers that share any files in any order. Who
/// reads some of it first makes it no dearer.
#[test]
fn what_is_told_is_what_is_fetched() {
    let mut dice = Dice(7);
    for _ in 0..60 {
        let old = layer((0..12).map(|_| dice.below(16) as u64).collect::<HashSet<_>>(), Codec::Gzip);
        let files: Vec<_> = (0..1 + dice.below(14)).map(|_| file(dice.below(24) as u64)).collect();
        let new = match dice.below(4) {
            n @ 0..3 => Sample::of(files, CODECS[n]),
            _ => Sample::members(dice.roll(), 1 + dice.below(12)),
        };
        let up = Upgrade::new(old, new);
        let segments = usize::try_from(up.new.layer.segments()).unwrap();
        let first = (dice.below(2) == 0).then(|| u32::try_from(dice.below(segments)).unwrap());
        let has: HashSet<_> =
            up.old.layer.index().chunks().iter().map(|chunk| (chunk.id, chunk.len)).collect();
        let told = fetched(&up.new.layer, |chunk: &Chunk| has.contains(&(chunk.id, chunk.len)));
        let _hold = up.bench.add(&up.new);
        if let Some(segment) = first {
            up.bench.check(&up.new, segment);
            up.bench.settle();
        }
        up.bench.read.complete(up.new.id(), later()).unwrap();
        match first {
            None => assert_eq!(up.received(), told),
            // A decoder that goes on behind what was read may read what it had read before; what is read by itself may be
            // what all would have asked around.
            Some(segment) => {
                assert!(
                    up.received() <= told + 1024,
                    "{segment}: {} of {told}: {:?}",
                    up.received(),
                    up.asked()
                )
            }
        }
        up.check_all();
    }
}

/// A crash at any moment leaves a table that is right, or none; the next start makes what is missing.
#[test]
fn a_table_is_right_or_made_again() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let sample = layer(0..4, Codec::Gzip);
    drop(store.put_index(sample.layer.index()).unwrap());
    store.make_known(&sample.layer).unwrap();
    let path = std::path::Path::new("known").join(sample.id().hex());
    let right = fs::read(home.path().join(&path)).unwrap();
    let log = disk.log();
    let mut dice = Dice(3);
    for prefix in log.begin()..=log.len() {
        for model in [Model::Journal, Model::Any] {
            let crashed = tempfile::tempdir().unwrap();
            log.crash(prefix, model, &mut dice, crashed.path());
            let (disk, store) = simulated(crashed.path(), "another boot");
            if Table::open(&*disk, &path, sample.id()).is_ok() {
                assert!(fs::read(crashed.path().join(&path)).unwrap() == right);
            }
            let there = store.index(sample.id()).is_ok_and(|index| index.is_some());
            for id in store.load_all_known() {
                store.make_known_of(id);
            }
            assert_eq!(store.known.tables().len(), usize::from(there));
        }
    }
}

#[test]
fn any_changed_byte_of_a_table_is_found_and_the_next_start_mends_it() {
    let home = tempfile::tempdir().unwrap();
    let sample = layer(0..2, Codec::Plain);
    let path = home.path().join("known").join(sample.id().hex());
    let first = store(home.path());
    drop(first.put_index(sample.layer.index()).unwrap());
    first.make_known(&sample.layer).unwrap();
    drop(first);
    let right = fs::read(&path).unwrap();
    for at in 0..=right.len() {
        let mut wrong = right.clone();
        match wrong.get_mut(at) {
            Some(byte) => *byte ^= 0x11,
            None => wrong.push(0),
        }
        // Not in place: what is mapped is never written.
        fs::remove_file(&path).unwrap();
        fs::write(&path, wrong).unwrap();
        let store = store(home.path());
        assert_eq!(store.load_all_known(), [sample.id()], "byte {at}");
        if at % 50 == 0 {
            store.make_known_of(sample.id());
            assert!(fs::read(&path).unwrap() == right);
        }
    }
}

/// Hashed through a map, such a table ended the process, at every start.
#[test]
fn a_table_that_cannot_be_read_is_made_again() {
    let home = tempfile::tempdir().unwrap();
    let sample = layer(0..2, Codec::Plain);
    let (_, first) = simulated(home.path(), "boot");
    drop(first.put_index(sample.layer.index()).unwrap());
    first.make_known(&sample.layer).unwrap();
    drop(first);
    let (disk, store) = simulated(home.path(), "boot");
    // Listing the indexes and opening it go well.
    disk.fail(Fault { after: 2, errno: 5, lasting: false, on: FaultOn::Reads });
    assert_eq!(store.load_all_known(), [sample.id()]);
    store.make_known_of(sample.id());
    assert_eq!(store.known.tables().len(), 1);
}

#[test]
fn a_start_reads_what_is_there_and_makes_the_rest() {
    let home = tempfile::tempdir().unwrap();
    let samples = [layer(0..2, Codec::Plain), layer(2..4, Codec::Plain)];
    let first = store(home.path());
    samples.iter().for_each(|sample| drop(first.put_index(sample.layer.index()).unwrap()));
    first.make_known(&samples[0].layer).unwrap();
    drop(first);
    let store = store(home.path());
    let read = ReadThrough::start(store.clone(), Memory::of(&[]), Arc::new(()), Workers::default()).unwrap();
    wait_for_tables(&store, 2);
    assert!(home.path().join("known").join(samples[1].id().hex()).exists());
    drop(read);
}

/// Tells what a question costs where nothing is known, and what tables cost at a start: `cargo test --release -p store --lib
/// -- --ignored --nocapture what_a_question_costs`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn what_a_question_costs() {
    const LAYERS: u64 = 200;
    const CHUNKS: usize = 10_000;
    let home = tempfile::tempdir().unwrap();
    let first = store(home.path());
    let mut dice = Dice(1);
    let (hash, segment) = (Hash::Blake3, SegmentSize::from_bits(19).unwrap());
    let mut making = Duration::ZERO;
    for layer in 0..LAYERS {
        let id = IndexId::from_bytes(*blake3::hash(&layer.to_le_bytes()).as_bytes());
        let rows = (0..CHUNKS as u64).map(|n| (dice.roll(), n << 15, 30_000)).collect();
        let begin = Instant::now();
        let body = record::encode(Kind::Known, &Table::body_of(id, hash, segment, rows));
        making += begin.elapsed();
        fs::write(first.root().join("known").join(id.hex()), body).unwrap();
        fs::write(first.root().join("index").join(id.hex()), "").unwrap();
    }
    println!("a table of {CHUNKS} chunks is made in {:?}", making / u32::try_from(LAYERS).unwrap());
    drop(first);
    let store = store(home.path());
    let begin = Instant::now();
    assert_eq!(store.load_all_known(), []);
    println!("{LAYERS} of them are read in {:?}", begin.elapsed());

    let sample = layer(0..64, Codec::Plain);
    for cold in [true, false] {
        let mut times = Vec::new();
        for _ in 0..4 {
            let mut asker = Asker::new(&store, &sample.layer, false);
            for segment in 0..sample.layer.segments() {
                // What the processor remembers of the tables is pushed out.
                let other = if cold { 64 << 20 } else { 0 };
                std::hint::black_box(vec![1_u8; other].iter().map(|byte| u64::from(*byte)).sum::<u64>());
                let begin = Instant::now();
                assert!(!asker.has(segment..segment + 1));
                times.push(begin.elapsed());
            }
        }
        times.sort();
        println!(
            "cold {cold}, nothing known: median {:?}, most {:?}",
            times[times.len() / 2],
            times.last().unwrap()
        );
    }
}
