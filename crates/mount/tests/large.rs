//! An image of 64 GiB in 16,384 segments, all of them sparse: it is mounted, read through, and what is missing asks.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use format::IndexId;
use format::erofs::write::{self, LayerDevices};
use format::payload::SegmentSize;
use format::tar::{Member, MemberKind, Placer};
use format::tree::{Builder, Time};
use mount::erofs::{Device, WatchPoint, mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::fanotify::{Group, Verdict};

/// Segments, each of the largest size.
const SEGMENTS: u64 = 16_384;
const SEGMENT: u64 = 4 << 20;

/// Files, as large as they have to be.
const FILES: u64 = 16;
const FILE: u64 = SEGMENTS / FILES * SEGMENT;

/// Returns the metadata image of a layer of that size.
fn image(index: IndexId) -> Vec<u8> {
    let size = SegmentSize::from_bits(22).unwrap();
    let (mut placer, mut builder) = (Placer::new(size), Builder::new());
    builder.layer().unwrap();
    let mut plain = 0;
    for n in 0..FILES {
        plain += 512;
        let member = Member {
            path: format!("file{n}").into_bytes().into(),
            kind: MemberKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Default::default(),
            plain,
            payload: FILE,
        };
        plain += FILE;
        let placed = placer.member(&member).unwrap();
        builder.member(&member, placed).unwrap();
    }
    let blocks = u32::try_from(SEGMENT / 4096).unwrap();
    let lens = vec![blocks; usize::try_from(SEGMENTS).unwrap()];
    write::image(&builder.finish(), &[LayerDevices { index, segment: size, lens }]).unwrap()
}

/// Returns the kernel's slab, in KiB.
fn slab() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Answers a group until told to stop: a segment that is missing becomes a sparse one that is whole.
fn fill(group: &Group, over: &AtomicBool, asked: &AtomicU64) {
    while !over.load(Ordering::Relaxed) {
        let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        poll(&mut [PollFd::new(group, PollFlags::IN)], Some(&tick)).unwrap();
        for event in group.read().unwrap() {
            asked.fetch_add(1, Ordering::Relaxed);
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&event.file));
            let path = fs::read_link(link).unwrap();
            let file = File::options().write(true).open(real(&path)).unwrap();
            file.set_len(SEGMENT).unwrap();
            group.ignore(&event.file).unwrap();
            group.answer(event, Verdict::Allow).unwrap();
        }
    }
}

/// Returns where a file of the watch point really is: nobody is asked about it there.
fn real(path: &Path) -> PathBuf {
    let mut names = path.iter().rev();
    let (segment, layer) = (names.next().unwrap(), names.next().unwrap());
    let home = path.ancestors().nth(3).unwrap();
    home.join("segments").join(layer).join(segment)
}

/// Takes a watch point away, whatever became of the test.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        mount::erofs::remove_point(&self.0);
    }
}

#[test]
fn an_image_of_sixteen_thousand_segments_is_mounted_and_read() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    if let Err(why) = mount::erofs::trial(dir.path()) {
        testkit::skip!("no read path of the kernel's own here: {why}");
    }
    let index = IndexId::from_bytes([0xab; 32]);
    let meta = dir.path().join("image");
    fs::write(&meta, image(index)).unwrap();
    let segments = dir.path().join("segments");
    let layer = segments.join(index.hex());
    fs::create_dir_all(&layer).unwrap();
    // Every other one is missing.
    let whole = |segment: u64| segment.is_multiple_of(2);
    for segment in 0..SEGMENTS {
        let file = File::create(layer.join(segment.to_string())).unwrap();
        file.set_len(if whole(segment) { SEGMENT } else { 0 }).unwrap();
    }
    let devices: Vec<_> = (0..SEGMENTS)
        .map(|n| Device { index, segment: u32::try_from(n).unwrap(), whole: whole(n) })
        .collect();

    let before = slab();
    let begun = Instant::now();
    let group = Group::new().unwrap();
    let at = dir.path().join("watch");
    let point = WatchPoint::create(&segments, &at, false).unwrap();
    let _gone = Gone(at);
    group.watch_mount(point.root()).unwrap();
    let mounted = mount(&meta, &devices, &File::open(&segments).unwrap(), Some(&point)).unwrap();
    let (took, mount_slab) = (begun.elapsed(), slab().saturating_sub(before));

    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| fill(&group, &over, &asked));
        let read = std::panic::catch_unwind(|| {
            for n in 0..FILES {
                let file = mounted.open(&format!("file{n}")).unwrap();
                // The first and the last page of every segment.
                for at in (0..FILE).step_by(usize::try_from(SEGMENT).unwrap()) {
                    for at in [at, at + SEGMENT - 4096] {
                        let mut page = [1; 4096];
                        file.read_exact_at(&mut page, at).unwrap();
                        assert!(page.iter().all(|byte| *byte == 0));
                    }
                }
            }
        });
        over.store(true, Ordering::Relaxed);
        read.unwrap();
    });
    assert_eq!(asked.load(Ordering::Relaxed), SEGMENTS / 2, "each missing segment asks once");
    let mut open = String::new();
    File::open("/proc/sys/fs/file-nr").unwrap().read_to_string(&mut open).unwrap();
    eprintln!(
        "{SEGMENTS} segments: mounted in {took:?}, slab +{mount_slab} KiB, after reading +{} KiB, two pages of each in {:?}, image {} KiB, files open on this machine {}",
        slab().saturating_sub(before),
        begun.elapsed(),
        fs::metadata(&meta).unwrap().len() / 1024,
        open.split_whitespace().next().unwrap(),
    );
    let begun = Instant::now();
    drop(mounted);
    eprintln!("taken down in {:?}", begun.elapsed());
    // What nobody is asked about and nobody has is no zeros.
    drop(group);
    File::options().write(true).open(layer.join("1")).unwrap().set_len(0).unwrap();
    let mounted = mount(&meta, &devices, &File::open(&segments).unwrap(), Some(&point)).unwrap();
    assert!(mounted.open("file0").unwrap().read_exact_at(&mut [0; 4096], SEGMENT).is_err());
}
