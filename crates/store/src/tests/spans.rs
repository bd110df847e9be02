//! Spans of several segments: fetched as far as they are wanted, by decoders that wait for whoever comes next; and
//! how urgent what has begun becomes.

use std::sync::Arc;
use std::time::Duration;

use format::index::Codec;

use super::fixture::{Bench, Sample, later, noise};
use crate::flights::Ahead;
use crate::origin::Priority;
use crate::read_through::Segments;

#[test]
fn a_span_is_fetched_as_far_as_it_is_wanted_and_never_twice() {
    let sample = Sample::new(20, 6, Codec::Gzip);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.check(&sample, 1);
    assert!(bench.read.local(sample.id(), 0).is_some() && bench.read.local(sample.id(), 2).is_none());
    // The decoder has waited there.
    bench.check(&sample, 2);
    bench.read.hint(sample.id(), 4..5);
    bench.check(&sample, 5);
    let asked: Vec<_> = bench.origin.asked.lock().unwrap().iter().map(|(range, _)| range.clone()).collect();
    assert_eq!(asked[0], sample.layer.packed(0..2).unwrap());
    for pair in asked.windows(2) {
        // What was read after a segment's last byte comes again.
        assert!(pair[1].start <= pair[0].end && pair[1].start + 512 >= pair[0].end, "{asked:?}");
    }
    assert_eq!(asked.last().unwrap().end, sample.layer.packed(0..6).unwrap().end);
    (0..6).for_each(|segment| bench.check(&sample, segment));
    bench.settle();
}

#[test]
fn a_segment_that_has_been_decoded_already_needs_no_request() {
    // The second file is the second segment, and comes out of the bytes that the first one needs.
    let files = |n: usize| vec![noise(26, 47_000 + 64 * n), vec![7; 17_000], noise(27, 60_001)];
    let samples = (0..8).map(|n| Sample::of(files(n), Codec::Gzip));
    let both = |sample: &Sample| sample.layer.packed(0..1) == sample.layer.packed(0..2);
    let sample = samples.into_iter().find(both).unwrap();
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.check(&sample, 0);
    bench.settle();
    assert!(bench.read.local(sample.id(), 1).is_none());
    bench.check(&sample, 1);
    assert_eq!(bench.origin.count(), 1);
}

#[test]
fn a_reader_of_more_than_a_flight_brings_asks_again_and_a_wish_follows_it() {
    let sample = Sample::new(21, 6, Codec::Gzip);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.origin.hold();
    let first = bench.read.begin(sample.id(), 0, later()).unwrap();
    bench.origin.wait_for_held(1);
    let further = bench.read.begin(sample.id(), 3, later()).unwrap();
    bench.read.hint(sample.id(), 5..6);
    bench.origin.release();
    first.wait().unwrap();
    further.wait().unwrap();
    bench.check(&sample, 5);
    let asked = bench.origin.asked.lock().unwrap().clone();
    assert_eq!(asked[0].0, sample.layer.packed(0..1).unwrap());
    assert!(asked.len() <= 3, "{asked:?}");
    assert!(asked[1..].iter().all(|(range, _)| range.start > asked[0].0.start), "{asked:?}");
}

#[test]
fn a_decoder_that_is_gone_or_fails_costs_the_beginning_of_its_span() {
    let sample = Sample::new(22, 3, Codec::Gzip);
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.check(&sample, 0);
    // Wrong bytes for the decoder that goes on: asked for once more, from the start.
    bench.origin.answer(|read, _, mut bytes| {
        if read == 1 {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        Ok(bytes)
    });
    bench.check(&sample, 1);
    let asked = |n: usize| bench.origin.asked.lock().unwrap()[n].0.clone();
    assert!(asked(1).start > asked(0).start);
    assert_eq!(asked(2), sample.layer.packed(0..2).unwrap());
    // Out of use, nothing of the layer is kept.
    bench.settle();
    drop(hold);
    let _hold = bench.add(&sample);
    bench.check(&sample, 2);
    assert_eq!(asked(3), sample.layer.packed(0..3).unwrap());
}

#[test]
fn a_decoder_does_not_outlive_the_table_it_was_made_by() {
    let gzip = Sample::new(24, 3, Codec::Gzip);
    // The same layer, packed anew: another blob under the same identity.
    let member = sys::deflate::compress(b"", sys::inflate::Wrap::Gzip, 6).unwrap();
    let index = gzip.layer.index();
    let mut source = index.source().clone();
    let longer = member.len() as u64;
    source.starts[0].packed += longer;
    source.reach.iter_mut().for_each(|reach| reach.packed_end += longer);
    source.size += longer;
    let blob = [member, gzip.blob.clone()].concat();
    source.blob = format::Digest::of(&blob);
    let index = format::index::Index::new(
        index.facts().clone(),
        index.skeleton().into(),
        index.chunks().to_vec(),
        source,
    );
    let layer = Arc::new(format::layer::Layer::open(index.unwrap()).unwrap());
    let anew = Sample { layer, blob, files: gzip.files.clone() };
    assert_eq!(gzip.id(), anew.id());
    let bench = Bench::new(&[&gzip, &anew]);
    let hold = bench.add(&gzip);
    bench.origin.hold();
    let waiter = bench.read.begin(gzip.id(), 0, later()).unwrap();
    bench.origin.wait_for_held(1);
    // Out of use and in use again while a fill is under way.
    drop(hold);
    let _hold = bench.add(&anew);
    bench.origin.release();
    waiter.wait().unwrap();
    bench.settle();
    bench.check(&anew, 1);
    let asked: Vec<_> = bench.origin.asked.lock().unwrap().iter().map(|(range, _)| range.clone()).collect();
    assert_eq!(asked[1..], [anew.layer.packed(0..2).unwrap()]);
}

/// A span whose last segment was there was held to be served, and its reader asked until its deadline.
#[test]
fn a_segment_lost_in_the_middle_of_a_span_comes_again() {
    let sample = Sample::new(36, 3, Codec::Zstd);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.read.complete(sample.id(), later()).unwrap();
    let path = bench.store.devices().join(sample.id().hex()).join("1");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(bench.read.scrub(sample.id()).unwrap(), [1]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    bench.read.fetch(sample.id(), 1, deadline).unwrap();
    (0..3).for_each(|segment| bench.check(&sample, segment));
}

#[test]
fn what_a_start_has_read_does_not_come_again_with_the_rest() {
    let sample = Sample::members(31, 9);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    for segment in [0, 2, 4, 6] {
        bench.check(&sample, segment);
    }
    bench.settle();
    bench.read.complete(sample.id(), later()).unwrap();
    let asked: u64 =
        bench.origin.asked.lock().unwrap().iter().map(|(range, _)| range.end - range.start).sum();
    // What was read after a segment's last byte comes again.
    assert!(asked <= sample.blob.len() as u64 + 8 * 512, "{asked} of {}", sample.blob.len());
    (0..9).for_each(|segment| bench.check(&sample, segment));
}

#[test]
fn a_last_segment_that_has_been_decoded_needs_no_request_for_what_trails() {
    let sample = Sample::of(vec![noise(5, 58_000), vec![7; 7_000]], Codec::Gzip);
    assert_eq!(sample.layer.segments(), 2);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.check(&sample, 0);
    bench.settle();
    bench.check(&sample, 1);
    assert_eq!(bench.origin.count(), 1);
}

#[test]
fn a_request_that_has_no_answer_yet_is_hurried_by_a_reader() {
    for (urgency, wish) in [(Priority::Profile, 0..1), (Priority::Background, 0..2)] {
        let sample = Sample::new(33, 2, Codec::Gzip);
        let bench = Bench::new(&[&sample]);
        let _hold = bench.add(&sample);
        bench.origin.hold();
        assert!(bench.read.want(sample.id(), wish, urgency));
        bench.origin.wait_for_held(1);
        let reader = bench.read.begin(sample.id(), 0, later()).unwrap();
        bench.origin.release();
        reader.wait().unwrap();
        assert_eq!(bench.origin.asked.lock().unwrap()[0].1, urgency);
        assert_eq!(bench.origin.answered.lock().unwrap()[0], Priority::Demand);
    }
}

#[test]
fn a_wish_for_what_turns_out_to_be_there_goes_on_to_the_rest() {
    let sample = Sample::new(34, 3, Codec::Gzip);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.check(&sample, 0);
    bench.settle();
    // The first wish has nothing to fetch; whenever the second one comes, it must not be lost with it.
    for _ in 0..50 {
        bench.read.hint(sample.id(), 0..1);
        bench.read.hint(sample.id(), 0..2);
    }
    bench.settle();
    assert!(bench.read.local(sample.id(), 1).is_some());
}

#[test]
fn what_nobody_waits_for_is_asked_for_a_little_at_a_time_where_that_is_the_limit() {
    let sample = Sample::new(35, 13, Codec::Plain);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    let asked = || -> Vec<_> {
        let asked = bench.origin.asked.lock().unwrap();
        asked.iter().map(|(range, priority)| (range.end - range.start, *priority)).collect()
    };
    bench.origin.hold();
    bench.read.limit(1, Some(Ahead { requests: 2, bytes: 130_000 }));
    bench.read.limit(2, Some(Ahead { requests: 3, bytes: 300_000 }));
    bench.read.limit(3, Some(Ahead { requests: 1, bytes: 1 }));
    bench.read.limit(3, None);
    assert!(bench.read.want(sample.id(), 0..9, Priority::Background));
    bench.origin.wait_for_held(2);
    // Neither a reader nor a profile is held up by that.
    let reader = bench.read.begin(sample.id(), 9, later()).unwrap();
    bench.origin.wait_for_held(3);
    assert!(bench.read.want(sample.id(), 10..11, Priority::Profile));
    bench.origin.wait_for_held(4);
    assert_eq!(asked().iter().filter(|(_, priority)| *priority == Priority::Background).count(), 2);
    bench.origin.release();
    reader.wait().unwrap();
    bench.settle();
    let (arriving, to_readers) = bench.read.arriving();
    assert!(arriving > to_readers && to_readers > Duration::ZERO);
    let background: Vec<_> = asked().into_iter().filter(|(_, p)| *p == Priority::Background).collect();
    assert!(background.len() >= 5 && background.iter().all(|(len, _)| *len <= 130_000), "{background:?}");
    (0..11).for_each(|segment| bench.check(&sample, segment));
    // Of the rest nothing is asked for while the limit is no request at all, but what somebody waits for.
    bench.read.limit(1, Some(Ahead { requests: 0, bytes: 1 }));
    let before = bench.origin.count();
    assert!(bench.read.want(sample.id(), 11..12, Priority::Background));
    bench.read.fetch(sample.id(), 12, later()).unwrap();
    assert_eq!(bench.origin.count(), before + 1);
    // A span that is larger than the limit comes nevertheless.
    bench.read.limit(1, Some(Ahead { requests: 1, bytes: 1 }));
    bench.settle();
    bench.check(&sample, 11);
}
