//! Readers that check every byte: processes of the test binary, half of which read and half of which map, for a page
//! fault that cannot be served kills its process.
//!
//! A test program that starts them has a test named `reader` that calls [`act`].

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use testkit::dice::Dice;

use super::PATIENCE;

/// What a reader ends with that saw other bytes.
const WRONG: i32 = 66;

/// In a reader's environment: where the image is, where the truth is, how to read, what to do on an error, and a seed.
const TASK: &str = "FLOE_TEST_READER";

const SIGBUS: i32 = 7;

/// Bytes of one read at most.
const MOST: u64 = 300_000;

/// What a reader says of a read that was right.
const RIGHT: u8 = 1;
/// And of one that was an error.
const ERROR: u8 = 2;

/// Returns numbers of a seed that differs from run to run, and tells it.
pub fn dice() -> Dice {
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    Dice(seed)
}

/// What a reader does that gets an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    End,
    GoOn,
}

/// What a reader process does. Without a task it does nothing.
pub fn act() {
    let Ok(task) = std::env::var(TASK) else { return };
    let mut words = task.split('\n');
    let mut word = || words.next().unwrap().to_owned();
    let (image, truth) = (PathBuf::from(word()), PathBuf::from(word()));
    let (maps, goes_on, seed) = (word() == "map", word() == "go on", word());
    let mut dice = Dice(seed.parse().unwrap());
    let files: Vec<_> = fs::read_dir(&truth).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    // What the kernel has kept can be read for ever, daemon or not: somebody has to say that it is enough.
    while !stop(&truth).exists() {
        let name = &files[usize::try_from(dice.below(files.len() as u64)).unwrap()];
        let whole = File::open(truth.join(name)).unwrap();
        let len = whole.metadata().unwrap().len();
        let at = dice.below(len);
        let mut wanted = vec![0; usize::try_from((len - at).min(1 + dice.below(MOST))).unwrap()];
        whole.read_exact_at(&mut wanted, at).unwrap();
        let found = if maps { mapped } else { pread }(&image.join(name), at, wanted.len());
        let said = match found {
            Err(_) if goes_on => ERROR,
            Err(_) => std::process::exit(0),
            Ok(found) if found == wanted => RIGHT,
            Ok(found) => {
                let first = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
                let text = format!("{} from {at}: other at {first:?} of {}", name.display(), wanted.len());
                fs::write(wrong(&truth), text).unwrap();
                std::process::exit(WRONG)
            }
        };
        // Not where the harness talks. The test may have seen enough.
        let _ = rustix::io::write(rustix::stdio::stderr(), &[said]);
    }
}

/// Returns the file that ends the readers of a truth.
fn stop(truth: &Path) -> PathBuf {
    truth.with_file_name("stop")
}

/// Returns the file that tells what was wrong.
fn wrong(truth: &Path) -> PathBuf {
    truth.with_file_name("wrong")
}

/// Reads a part of a file, and has the kernel forget it.
pub fn pread(path: &Path, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let file = File::open(path)?;
    file.read_exact_at(&mut bytes, at)?;
    forget(&file);
    Ok(bytes)
}

fn mapped(path: &Path, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let map = sys::map::Map::of(&file)?;
    let at = usize::try_from(at).unwrap();
    let bytes = map.as_ref()[at..at + len].to_vec();
    drop(map);
    forget(&file);
    Ok(bytes)
}

/// Has the kernel forget a file's content, as far as nobody else uses it: the next read asks again.
pub fn forget(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

/// Readers at work; they read the files of a directory of which another one has the truth.
pub struct Readers {
    children: Vec<Child>,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    listener: JoinHandle<()>,
    truth: PathBuf,
}

/// What readers have seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Reads of right bytes.
    pub right: u64,
    /// Errors, a signal among them.
    pub errors: u64,
    over: bool,
}

impl Readers {
    pub fn start(count: u64, image: &Path, truth: &Path, on_error: OnError, dice: &mut Dice) -> Self {
        let (mut pipe, said) = std::io::pipe().unwrap();
        let start = |n: u64| {
            let how = if n.is_multiple_of(2) { "map" } else { "read" };
            let then = if on_error == OnError::GoOn { "go on" } else { "end" };
            let (image, truth, seed) = (image.display(), truth.display(), dice.below(1 << 40));
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "reader", "--nocapture", "--test-threads=1"])
                .env(TASK, format!("{image}\n{truth}\n{how}\n{then}\n{seed}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(said.try_clone().unwrap())
                .spawn()
                .unwrap()
        };
        let children = (0..count).map(start).collect();
        drop(said);
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let told = seen.clone();
        let listener = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                let len = pipe.read(&mut bytes).unwrap();
                let mut seen = told.0.lock().unwrap();
                let count = |byte| bytes[..len].iter().filter(|b| **b == byte).count() as u64;
                seen.right += count(RIGHT);
                seen.errors += count(ERROR);
                seen.over = len == 0;
                told.1.notify_all();
                if len == 0 {
                    return;
                }
            }
        });
        Self { children, seen, listener, truth: truth.to_owned() }
    }

    /// Waits until so many more reads were right, or all readers have ended.
    pub fn see(&self, reads: u64) {
        let seen = self.seen.0.lock().unwrap();
        let enough = seen.right + reads;
        let waiting = |seen: &mut Seen| seen.right < enough && !seen.over;
        let (_seen, waited) = self.seen.1.wait_timeout_while(seen, PATIENCE, waiting).unwrap();
        assert!(!waited.timed_out(), "{reads} reads have not ended in {PATIENCE:?}");
    }

    /// Ends all readers; none may have seen wrong bytes, none may hang.
    pub fn finish(self) -> Seen {
        fs::write(stop(&self.truth), "").unwrap();
        let truth = &self.truth;
        let killed = self.children.into_iter().filter_map(|child| end(child, truth).then_some(())).count();
        fs::remove_file(stop(&self.truth)).unwrap();
        self.listener.join().unwrap();
        let mut seen = *self.seen.0.lock().unwrap();
        seen.errors += killed as u64;
        seen
    }
}

/// Waits for a reader's end; tells whether it was killed by a page fault.
fn end(mut reader: Child, truth: &Path) -> bool {
    let fd = pidfd_open(Pid::from_child(&reader), PidfdFlags::empty()).unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let patience: Timespec = PATIENCE.try_into().unwrap();
    let ended = poll(&mut fds, Some(&patience)) == Ok(1);
    if !ended {
        reader.kill().unwrap();
    }
    let status = reader.wait().unwrap();
    assert!(ended, "a reader hangs");
    let wrong = || fs::read_to_string(wrong(truth)).unwrap();
    assert!(status.code() != Some(WRONG), "a reader saw wrong bytes: {}", wrong());
    let killed = status.signal() == Some(SIGBUS);
    assert!(status.success() || killed, "a reader failed: {status}");
    killed
}
