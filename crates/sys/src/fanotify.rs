//! Permission events before file content is read: `FAN_PRE_ACCESS` (Linux 6.14, `fs/notify/fanotify`).
//!
//! A [`Group`] hears of every read that goes through a mount it has marked, and the reader waits until the group
//! answers. Three things the kernel does not say loudly:
//!
//! - When the last descriptor of a group is closed, everybody who waits is let through, and so is everybody later.
//! - An event is known to the kernel by the number of its descriptor in the process that read it. So one process
//!   reads a group, and keeps an event's descriptor open until it has answered.
//! - Whether a file is watched is settled when it is opened: a mark that comes later is not asked.
//!
//! Everything here needs `CAP_SYS_ADMIN`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Not in the `libc` crate. (`include/uapi/linux/fanotify.h`)
const FAN_PRE_ACCESS: u64 = 0x0010_0000;
const FAN_MARK_EVICTABLE: libc::c_uint = 0x0000_0200;
/// Type of the record that tells a range.
const INFO_RANGE: u8 = 6;
/// Length of `struct fanotify_event_metadata`, which every event begins with.
const METADATA: usize = 24;
/// Length of `struct fanotify_event_info_range`.
const RANGE: usize = 24;

/// Bytes of a buffer for events: some eighty of them.
const BUFFER: usize = 4096;

/// Somebody who is asked before file content is read.
#[derive(Debug)]
pub struct Group(OwnedFd);

/// A reader that waits. Dropped without an answer it waits on until the group is closed.
#[derive(Debug)]
pub struct Event {
    /// The file that is read. Reading it here asks nobody.
    pub file: File,
    /// The first byte that is read, page aligned.
    pub offset: u64,
    /// How many bytes.
    pub count: u64,
    /// The thread that waits.
    pub thread: i32,
}

/// The answer to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The content is there.
    Allow,
    /// It will not come: the read ends in `EIO`.
    Deny,
}

impl Group {
    /// Makes a group. Reading it does not block.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_PRE_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_TID
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let files = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC).cast_unsigned();
        // SAFETY: takes numbers only, and returns a descriptor that nobody else has.
        let fd = unsafe { libc::fanotify_init(flags, files) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks the group before any read through a mount, of files that are opened from now on.
    ///
    /// `mount` is anything open in it, though not as a path only (`O_PATH`). Fails with `EOPNOTSUPP` on file systems that do not take part, and `EINVAL` where the kernel is too old.
    pub fn watch_mount(&self, mount: impl AsFd) -> io::Result<()> {
        self.mark(libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT, mount.as_fd())
    }

    /// Undoes [`Group::watch_mount`]: reads are let through from now on, those that wait wait on.
    pub fn leave_mount(&self, mount: impl AsFd) -> io::Result<()> {
        self.mark(libc::FAN_MARK_REMOVE | libc::FAN_MARK_MOUNT, mount.as_fd())
    }

    /// Does not ask about a file again, whatever mount it is read through, while anybody has it open. The mark keeps no
    /// inode in memory: one that is forgotten is asked about again.
    pub fn ignore(&self, file: impl AsFd) -> io::Result<()> {
        self.mark(libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORE_SURV | FAN_MARK_EVICTABLE, file.as_fd())
    }

    fn mark(&self, flags: libc::c_uint, of: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: without a path the kernel marks what the descriptor is open on; both descriptors live.
        let done = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                flags,
                FAN_PRE_ACCESS,
                of.as_raw_fd(),
                std::ptr::null::<libc::c_char>(),
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns the events that have come; none if there are none.
    ///
    /// Out of descriptors the kernel denies the events it cannot hand over, and tells the error.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [0; BUFFER];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(len) => Ok(parse(&buffer[..len])),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a reader go on. An event that the kernel does not know any more (its reader was killed) is no error.
    pub fn answer(&self, event: Event, verdict: Verdict) -> io::Result<()> {
        let response = match verdict {
            Verdict::Allow => libc::FAN_ALLOW,
            Verdict::Deny => libc::FAN_DENY,
        };
        let mut bytes = [0; 8]; // struct fanotify_response
        bytes[..4].copy_from_slice(&event.file.as_raw_fd().to_ne_bytes());
        bytes[4..].copy_from_slice(&response.to_ne_bytes());
        let written = rustix::io::write(&self.0, &bytes);
        drop(event); // its number may be given out again from here on
        match written {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads what the kernel has written: events of `struct fanotify_event_metadata` and records behind it.
fn parse(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while bytes.len() >= METADATA {
        let len = usize::try_from(u32_at(bytes, 0)).unwrap_or(usize::MAX);
        let Some((event, rest)) = bytes.split_at_checked(len.max(METADATA)) else { break };
        bytes = rest;
        // vers and reserved at 4, metadata_len at 6, mask at 8, fd at 16, pid at 20.
        let (fd, thread) = (i32_at(event, 16), i32_at(event, 20));
        if fd < 0 {
            continue; // the queue has overflowed; ours has no limit
        }
        // SAFETY: the kernel has just opened this descriptor for us, and names each in one event only.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let (offset, count) = range(&event[METADATA..]).unwrap_or((0, u64::MAX));
        events.push(Event { file, offset, count, thread });
    }
    events
}

/// Finds the record that tells which bytes are read.
fn range(mut records: &[u8]) -> Option<(u64, u64)> {
    while records.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([records[2], records[3]]));
        let (record, rest) = records.split_at_checked(len.max(4))?;
        if record[0] == INFO_RANGE && record.len() >= RANGE {
            return Some((u64_at(record, 8), u64_at(record, 16)));
        }
        records = rest;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    u32_at(bytes, at).cast_signed()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let low = u64::from(u32_at(bytes, at));
    let high = u64::from(u32_at(bytes, at + 4));
    if cfg!(target_endian = "little") { low | high << 32 } else { high | low << 32 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::mount::bind;

    /// A watched bind mount of a directory with one file of 64 KiB.
    fn watched(dir: &Path) -> Result<(Group, File), String> {
        std::fs::write(dir.join("file"), [7; 65536]).map_err(|e| e.to_string())?;
        let group = Group::new().map_err(|e| format!("no fanotify group: {e}"))?;
        let bound = bind(dir).map_err(|e| e.to_string())?.root().map_err(|e| e.to_string())?;
        group.watch_mount(&bound).map_err(|e| format!("no pre-content events here: {e}"))?;
        Ok((group, bound))
    }

    fn open(mount: &File) -> File {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        File::from(rustix::fs::openat(mount, "file", flags, rustix::fs::Mode::empty()).unwrap())
    }

    fn next(group: &Group) -> Event {
        for _ in 0..5000 {
            if let Some(event) = group.read().unwrap().pop() {
                return event;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no event came");
    }

    #[test]
    fn a_reader_waits_for_the_answer_and_is_asked_about_until_ignored() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (group, bound) = match watched(dir.path()) {
            Ok(made) => made,
            Err(why) => testkit::skip!("{why}"),
        };
        let file = open(&bound);
        std::thread::scope(|scope| {
            let read = |at| {
                let mut buf = [0; 100];
                file.read_exact_at(&mut buf, at).map(|()| buf[99])
            };
            let reader = scope.spawn(move || read(5000));
            let event = next(&group);
            assert_eq!((event.offset, event.count), (4096, 4096));
            assert!(!reader.is_finished());
            // Its own descriptor asks nobody.
            event.file.read_exact_at(&mut [0; 10], 0).unwrap();
            group.answer(event, Verdict::Allow).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), 7);

            let reader = scope.spawn(move || read(5000));
            group.answer(next(&group), Verdict::Deny).unwrap();
            assert!(reader.join().unwrap().is_err());

            let reader = scope.spawn(move || read(5000));
            let event = next(&group);
            group.ignore(&event.file).unwrap();
            group.answer(event, Verdict::Allow).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), 7);
            assert_eq!(read(0).unwrap(), 7);
            assert!(group.read().unwrap().is_empty());
        });
        // Through another mount nobody is asked, and none once the mark is gone.
        std::fs::read(dir.path().join("file")).unwrap();
        group.leave_mount(&bound).unwrap();
        open(&bound).read_exact_at(&mut [0; 10], 0).unwrap();
        assert!(group.read().unwrap().is_empty());
    }

    #[test]
    fn a_file_of_any_other_kind_of_mount_is_refused() {
        let Ok(group) = Group::new() else { testkit::skip!("fanotify needs root") };
        assert!(group.watch_mount(File::open("/proc").unwrap()).is_err());
    }

    #[test]
    fn records_that_are_cut_off_or_unknown_are_passed_over() {
        assert_eq!(range(&[]), None);
        assert_eq!(range(&[6, 0, 24]), None);
        assert_eq!(range(&[6, 0, 200, 0, 0]), None);
        let mut record = vec![9, 0, 0, 0];
        record[2..4].copy_from_slice(&4_u16.to_ne_bytes());
        record.extend([6, 0]);
        record.extend(24_u16.to_ne_bytes());
        record.extend([0; 4]);
        record.extend(4096_u64.to_ne_bytes());
        record.extend(8192_u64.to_ne_bytes());
        assert_eq!(range(&record), Some((4096, 8192)));
        assert!(parse(&[0; 10]).is_empty());
    }
}
