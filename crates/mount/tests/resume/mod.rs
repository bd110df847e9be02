//! Servers that die, leave and follow one another while readers read.
//!
//! The test holds the device. Each server is a process of its own: this very test program, told to run
//! [`serves_for_another_test`], with the device as standard input and a socket to us as standard output.
//!
//! So are those who read by mapping. A fault may wait for a server with its process's address space locked, and then
//! that process cannot start the server it waits for; nor may anybody else in it close a descriptor for good, as one
//! that is just being started there still has a copy.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use format::IndexId;
use mount::fuse::{LeaveError, Mounted, Options, Server, Terms, Unanswered};
use rustix::io::Errno;
use store::{ReadError, SegmentFile, Segments};

use super::support::{Is, Packed, bytes, missing, pack};
use super::{errno, files};

/// Names the directory for a server.
const SERVE: &str = "FLOE_TEST_SERVE";

/// Names the directory for readers.
const READ: &str = "FLOE_TEST_READ";

/// Far longer than anything here takes, so that what hangs fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Segments as files of a directory, which other processes put there and take away.
struct OnDisk {
    dir: PathBuf,
    /// Hears which segments are waited for.
    told: Mutex<Option<UnixStream>>,
}

impl OnDisk {
    fn server(dir: &Path, told: Option<UnixStream>) -> Server<Vec<u8>> {
        let image = format::erofs::read::Image::open(fs::read(dir.join("metadata")).unwrap()).unwrap();
        let segments = OnDisk { dir: dir.join("segments"), told: Mutex::new(told) };
        Server::new(Arc::new(image), Arc::new(segments))
    }
}

impl Segments for OnDisk {
    fn local(&self, _: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        let file = File::open(self.dir.join(segment.to_string())).ok()?;
        let len = file.metadata().unwrap().len();
        Some(Arc::new(SegmentFile::new(file, len)))
    }

    fn fetch(&self, index: IndexId, segment: u32, deadline: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        if let Some(told) = &mut *self.told.lock().unwrap() {
            let _ = told.write_all(format!("fetching {segment}\n").as_bytes()); // a test that has heard enough
        }
        while Instant::now() < deadline {
            if let Some(file) = self.local(index, segment) {
                return Ok(file);
            }
            // It comes from another process, by a rename.
            thread::sleep(Duration::from_millis(1));
        }
        Err(ReadError::Timeout { index, segment })
    }

    fn hint(&self, _: IndexId, _: Range<u32>) {}
}

/// The server. As a test of its own it does nothing.
#[test]
fn serves_for_another_test() {
    let Some(dir) = env::var_os(SERVE) else { return };
    let dir = PathBuf::from(dir);
    let device = rustix::stdio::stdin().try_clone_to_owned().unwrap();
    let control = UnixStream::from(rustix::stdio::stdout().try_clone_to_owned().unwrap());
    let terms = Terms::from_bytes(&fs::read(dir.join("terms")).unwrap()).unwrap();
    let server = OnDisk::server(&dir, Some(control.try_clone().unwrap()));
    let (mut mounted, unanswered) = server.resume(device, terms, &dir.join("mnt")).unwrap();
    assert_eq!(unanswered, Unanswered::Resent);
    // Whole lines at a time: those who fetch speak too.
    (&control).write_all(b"serving\n").unwrap();
    let mut said = String::new();
    BufReader::new(&control).read_line(&mut said).unwrap();
    if said == "leave\n" {
        mounted.leave().unwrap();
        (&control).write_all(b"left\n").unwrap();
    }
    std::process::exit(0);
}

/// The readers: eight at a time, which go on until they are told to end. As a test of its own it does nothing.
#[test]
fn reads_for_another_test() {
    let Some(dir) = env::var_os(READ) else { return };
    let dir = PathBuf::from(dir);
    let control = UnixStream::from(rustix::stdio::stdout().try_clone_to_owned().unwrap());
    let (names, ending) = (names(), AtomicBool::new(false));
    thread::scope(|scope| {
        for reader in 0..8_usize {
            let (dir, names, ending, control) = (&dir, &names, &ending, &control);
            scope.spawn(move || {
                let mut n = reader * 31;
                while !ending.load(Ordering::SeqCst) {
                    let name = &names[n * 37 % names.len()];
                    if let Err(error) = read_once(dir, name, WAYS[n % 3]) {
                        eprintln!("{name}, {:?}: {error}", WAYS[n % 3]);
                        std::process::exit(1); // the others may wait
                    }
                    (&*control).write_all(b"checked\n").unwrap();
                    n += 1;
                }
            });
        }
        let ended = BufReader::new(&control).read_line(&mut String::new());
        ending.store(true, Ordering::SeqCst);
        assert!(ended.unwrap() > 0, "the test is gone");
    });
    (&control).write_all(b"ended\n").unwrap();
}

/// Reads a file and asks two questions whose answers the kernel does not keep.
fn read_once(dir: &Path, name: &str, way: Way) -> io::Result<()> {
    check(dir, name, way)?;
    rustix::fs::statfs(dir.join("mnt"))?;
    match rustix::fs::getxattr(dir.join("mnt").join(name), "user.none", &mut [0; 9]) {
        Err(Errno::NODATA) => Ok(()),
        other => Err(io::Error::other(format!("getxattr: {other:?}"))),
    }
}

/// A process that serves or reads; killed when dropped.
struct Process {
    child: Child,
    control: UnixStream,
    says: BufReader<UnixStream>,
    /// What it said while we waited for something else: a new server may fetch before it says that it serves.
    said: Vec<String>,
}

impl Process {
    fn run(test: &str, variable: &str, dir: &Path, input: Stdio) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(variable, dir)
            .stdin(input)
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        Self { child, says: BufReader::new(ours.try_clone().unwrap()), control: ours, said: Vec::new() }
    }

    fn start(held: &Held<'_>) -> Self {
        let input = Stdio::from(held.device());
        let mut process = Self::run("resume::serves_for_another_test", SERVE, held.packed.dir.path(), input);
        process.until("serving");
        process
    }

    fn readers(packed: &Packed) -> Self {
        Self::run("resume::reads_for_another_test", READ, packed.dir.path(), Stdio::null())
    }

    /// Waits until it says a line that begins so, unless it has said one that nobody waited for yet.
    fn until(&mut self, word: &str) {
        if let Some(at) = self.said.iter().position(|line| line.starts_with(word)) {
            self.said.swap_remove(at);
            return;
        }
        loop {
            let mut line = String::new();
            assert!(self.says.read_line(&mut line).unwrap() > 0, "ended before it said {word}");
            if line.starts_with(word) {
                return;
            }
            self.said.push(line);
        }
    }

    /// Ends readers, all of whom must have got their bytes.
    fn end(mut self) {
        self.control.write_all(b"end\n").unwrap();
        self.until("ended");
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn leave(mut self) {
        self.control.write_all(b"leave\n").unwrap();
        self.until("left");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not waited for: a reader dies only with the mount, which goes later.
        let _ = self.child.kill(); // perhaps it is gone
    }
}

/// A mount whose device the test holds. When dropped the mount goes, so that readers of a test that fails end.
struct Held<'a> {
    packed: &'a Packed,
    device: Option<OwnedFd>,
}

impl<'a> Held<'a> {
    /// Mounts, and leaves the mount to whoever comes.
    fn new(packed: &'a Packed) -> Self {
        let (held, mut mounted) = Self::served(packed);
        mounted.leave().unwrap();
        assert!(!mounted.is_served());
        held
    }

    fn served(packed: &'a Packed) -> (Self, Mounted) {
        fs::write(packed.dir.path().join("metadata"), &packed.metadata).unwrap();
        let mounted = OnDisk::server(packed.dir.path(), None).mount(&packed.mount_point()).unwrap();
        fs::write(packed.dir.path().join("terms"), mounted.terms().to_bytes()).unwrap();
        (Self { packed, device: Some(mounted.device().unwrap()) }, mounted)
    }

    fn device(&self) -> OwnedFd {
        self.device.as_ref().unwrap().try_clone().unwrap()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        use rustix::mount::UnmountFlags;
        let at = self.packed.mount_point();
        if rustix::mount::unmount(&at, UnmountFlags::DETACH | UnmountFlags::FORCE).is_err() {
            let _ = Command::new("fusermount3").arg("-uz").arg(at).output(); // perhaps it is gone
        }
    }
}

/// Puts a segment out of reach, or back. One that a server has open stays with it.
fn set(packed: &Packed, segment: u32, is: Is) {
    let here = packed.segments.path(segment).to_owned();
    let away = here.with_extension("away");
    let _ = if is == Is::Here { fs::rename(away, here) } else { fs::rename(here, away) }; // perhaps it is so already
}

fn set_all(packed: &Packed, is: Is) {
    (0..packed.segments.count()).for_each(|segment| set(packed, segment, is));
}

/// Why servers cannot follow one another here, if so.
fn no_successors() -> Option<String> {
    if let Some(why) = missing() {
        return Some(why);
    }
    let packed = pack(|_| ());
    let (mounted, _) = packed.mount(Options::default());
    let resends = mounted.terms().resends();
    (!resends).then(|| "a kernel older than 6.9 does not ask again for what is unanswered".to_owned())
}

macro_rules! needs_successors {
    () => {
        if let Some(why) = no_successors() {
            testkit::skip!("{why}");
        }
    };
}

/// The ways to read a file; all but one always ask the server.
#[derive(Debug, Clone, Copy)]
enum Way {
    Read,
    /// Past the page cache, so that no second try of the kernel's hides an error.
    Direct,
    Mapped,
}

/// Reads a file of the mount and checks every byte.
fn check(dir: &Path, name: &str, way: Way) -> io::Result<()> {
    let wanted = fs::read(dir.join("source").join(name))?;
    let mut options = File::options();
    options.read(true);
    if matches!(way, Way::Direct) {
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
    }
    let file = options.open(dir.join("mnt").join(name))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    if let Way::Mapped = way {
        // What a map cannot give is a signal, which ends the process.
        let map = sys::map::Map::of(&file)?;
        assert!(map.as_ref() == wanted, "{name} mapped");
        return Ok(());
    }
    let mut shown = vec![0; wanted.len()];
    file.read_exact_at(&mut shown, 0)?;
    assert!(shown == wanted, "{name} {way:?}");
    Ok(())
}

const WAYS: [Way; 3] = [Way::Read, Way::Direct, Way::Mapped];

fn names() -> Vec<String> {
    (0..200).map(|n| format!("d{}/f{n}", n % 7)).chain(["long".to_owned()]).collect()
}

#[test]
fn who_waits_when_the_server_is_killed_is_answered_by_the_next() {
    needs_successors!();
    let packed = pack(files);
    let held = Held::new(&packed);
    let mut server = Process::start(&held);
    set_all(&packed, Is::Away);
    let mut readers = Process::readers(&packed);
    // The second one dies with the same requests, the third one leaves with them.
    for _ in 0..2 {
        (0..4).for_each(|_| server.until("fetching"));
        server.kill();
        server = Process::start(&held);
    }
    (0..4).for_each(|_| server.until("fetching"));
    server.leave();
    assert!(readers.child.try_wait().unwrap().is_none());
    let server = Process::start(&held);
    set_all(&packed, Is::Here);
    (0..200).for_each(|_| readers.until("checked"));
    readers.end();
    drop(server);
}

#[test]
fn readers_notice_nothing_of_servers_that_are_killed_and_replaced_again_and_again() {
    needs_successors!();
    let rounds = env::var("FLOE_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(50);
    let packed = pack(files);
    let held = Held::new(&packed);
    let readers = Process::readers(&packed);
    let reads = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (mut readers, held) = (readers, held);
        let mut says = BufReader::new(readers.control.try_clone().unwrap());
        let reads = &reads;
        scope.spawn(move || {
            let mut line = String::new();
            while line != "ended\n" && says.read_line(&mut line).is_ok_and(|len| len > 0) {
                if line == "checked\n" {
                    reads.fetch_add(1, Ordering::SeqCst);
                }
                if line != "ended\n" {
                    line.clear();
                }
            }
        });
        let mut chance = bytes(77, 4 * rounds).into_iter().map(u32::from);
        for round in 0..rounds {
            let away: Vec<_> = chance.by_ref().take(3).collect();
            away.iter().for_each(|segment| set(&packed, segment % packed.segments.count(), Is::Away));
            let server = Process::start(&held);
            let before = reads.load(Ordering::SeqCst);
            let some = usize::try_from(chance.next().unwrap()).unwrap();
            // All may come to wait for the same segment.
            let limit = Instant::now() + Duration::from_millis(40);
            while reads.load(Ordering::SeqCst) < before + some && Instant::now() < limit {
                thread::sleep(Duration::from_micros(100));
            }
            if round % 3 == 2 {
                server.leave()
            } else {
                server.kill()
            }
            set_all(&packed, Is::Here);
            assert!(readers.child.try_wait().unwrap().is_none(), "a reader has failed");
        }
        let server = Process::start(&held);
        readers.control.write_all(b"end\n").unwrap();
        let limit = Instant::now() + PATIENCE;
        while readers.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < limit, "a reader hangs");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(readers.child.wait().unwrap().success());
        drop(server);
    });
    assert!(reads.load(Ordering::SeqCst) > rounds);
}

#[test]
fn without_a_successor_the_last_device_closed_is_an_errno_for_all() {
    needs_successors!();
    let packed = pack(files);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut held = Held::new(&packed);
        let mut server = Process::start(&held);
        set_all(&packed, Is::Away);
        let (done, answers) = mpsc::channel();
        let mut readers = 0;
        for name in &names()[1..40] {
            if fs::metadata(packed.source().join(name)).unwrap().len() == 0 {
                continue;
            }
            let file = File::open(packed.mount_point().join(name)).unwrap();
            readers += 1;
            let (ended, done) = (&ended, done.clone());
            scope.spawn(move || {
                let code = errno(file.read_at(&mut [0; 4096], 0));
                assert!(ended.load(Ordering::SeqCst), "{code} before the end");
                done.send(code).unwrap();
            });
        }
        drop(done);
        for _ in 0..10 {
            server.until("fetching");
        }
        server.kill();
        ended.store(true, Ordering::SeqCst);
        held.device = None;
        let wanted = [Errno::IO, Errno::CONNABORTED, Errno::NOTCONN].map(|errno| errno.raw_os_error());
        for _ in 0..readers {
            let code = answers.recv_timeout(PATIENCE).expect("a reader hangs");
            assert!(wanted.contains(&code), "{code}");
        }
        assert_eq!(errno(fs::read(packed.mount_point().join("long"))), Errno::NOTCONN.raw_os_error());
    });
}

#[test]
fn a_mount_that_was_left_is_taken_over_within_one_process_too() {
    needs_successors!();
    let packed = pack(files);
    packed.segments.set_all(Is::Away);
    let (mut mounted, counters) = packed.mount(Options::default());
    let (device, terms, at) = (mounted.device().unwrap(), mounted.terms(), packed.mount_point());
    let mounted = thread::scope(|scope| {
        let readers: Vec<_> = names()[1..30]
            .iter()
            .map(|name| {
                let (packed, name) = (&packed, name.clone());
                scope.spawn(move || check(packed.dir.path(), &name, Way::Read).unwrap())
            })
            .collect();
        packed.segments.until_fetching(10);
        mounted.leave().unwrap();
        assert!(matches!(mounted.leave(), Err(LeaveError::Ended(_))));
        assert!(!mounted.is_served());
        mounted.unmount().unwrap();
        drop(mounted);
        assert!(readers.iter().any(|reader| !reader.is_finished()));
        packed.segments.set_all(Is::Here);
        let server = Server::new(packed.image(), packed.segments.clone());
        let (next, unanswered) = server.resume(device.try_clone().unwrap(), terms, &at).unwrap();
        assert_eq!(unanswered, Unanswered::Resent);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        next
    });
    assert_eq!(counters.bytes(), 0);
    assert!(fs::read(at.join("long")).unwrap() == bytes(1000, 3_000_000));
    // It is the mount's owner now, whoever else has the device.
    drop(mounted);
    assert!(!at.join("long").exists());
    let server = Server::new(packed.image(), packed.segments.clone());
    assert!(server.resume(device, terms, &at).is_err());
}

#[test]
fn a_kernel_that_cannot_ask_again_is_told_of() {
    needs_successors!();
    let packed = pack(files);
    let (held, mut mounted) = Held::served(&packed);
    let mut terms = mounted.terms().to_bytes();
    // FUSE_HAS_RESEND.
    terms[16 + 4] &= !0x80;
    let terms = Terms::from_bytes(&terms).unwrap();
    assert!(!terms.resends());
    mounted.leave().unwrap();
    let server = OnDisk::server(packed.dir.path(), None);
    let (mut next, unanswered) = server.resume(held.device(), terms, &packed.mount_point()).unwrap();
    assert_ne!(unanswered, Unanswered::Resent);
    assert!(matches!(next.leave(), Err(LeaveError::Unsupported)));
    check(packed.dir.path(), "long", Way::Direct).unwrap();
    next.unmount().unwrap();
}
