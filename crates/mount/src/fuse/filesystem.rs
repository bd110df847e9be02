//! The kernel's requests, answered from the metadata image and the segments.
//!
//! FUSE knows the root as 1 and inodes by any other number but 0; an inode's number is its nid. Where the
//! root's nid is not 1, the two change places, so no inode is lost.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use format::erofs::read::{Corrupt, Inode, Kind, Nid};
use format::limits;
use format::tree::Time;
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::reads::{Core, Outcome};
use super::session::{Gate, Last};
use super::waiters::{Parked, Waiters};
use super::wire;
use crate::errno;

/// How long the kernel may keep what it was told: nothing ever changes, so as long as its clock can say.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// Largest request: what kernels allow by default (256 pages), and what a read may need as buffer.
pub(super) const REQUEST: u32 = 1 << 20;

/// Readahead that the kernel may have under way at once. Those that wait for a segment count, and must not
/// keep out those that would be answered at once; so far above what a busy node has open.
const BACKGROUND: u16 = 4096;

const GENERATION: Generation = Generation(0);

/// The file system that fuser talks to.
pub(super) struct Fs<B: AsRef<[u8]> + Send + Sync + 'static> {
    core: Arc<Core<B>>,
    waiters: Arc<Waiters<B>>,
    /// Whether the kernel does without open requests for files, and for directories.
    opens: Opens,
    gate: Arc<Gate>,
    _last: Last,
}

/// Which open requests the kernel can do without.
#[derive(Debug, Clone, Copy, Default)]
struct Opens {
    no_open: bool,
    no_opendir: bool,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Fs<B> {
    pub(super) fn new(core: Arc<Core<B>>, waiters: Arc<Waiters<B>>, gate: Arc<Gate>, last: Last) -> Self {
        Self { core, waiters, opens: Opens::default(), gate, _last: last }
    }

    /// Returns the nid behind a number of FUSE, and the other way round.
    fn swap(&self, number: u64) -> u64 {
        let root = self.core.image.root().0;
        match number {
            1 => root,
            n if n == root => 1,
            n => n,
        }
    }

    fn inode(&self, number: INodeNo) -> Result<Inode, Corrupt> {
        self.core.image.inode(Nid(self.swap(number.0)))
    }

    fn attr(&self, inode: &Inode) -> FileAttr {
        let mtime = system_time(inode.mtime);
        FileAttr {
            ino: INodeNo(self.swap(inode.nid.0)),
            size: inode.size,
            // As EROFS reports it in the kernel: whole blocks, holes included.
            blocks: inode.size.div_ceil(limits::BLOCK) * (limits::BLOCK / 512),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind: file_type(inode.kind),
            perm: inode.permissions,
            nlink: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            // FUSE and EROFS both use `new_encode_dev`.
            rdev: inode.device,
            blksize: 4096, // limits::BLOCK
            flags: 0,
        }
    }

    fn damaged(&self, corrupt: &Corrupt) -> fuser::Errno {
        tracing::error!(nid = corrupt.nid.0, what = corrupt.what, "the metadata image is damaged");
        errno::CORRUPT
    }

    /// Reads for the kernel, or parks the read.
    fn serve(&self, number: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        let inode = match self.inode(number) {
            Ok(inode) => inode,
            Err(corrupt) => return reply.error(self.damaged(&corrupt)),
        };
        // Only what is past the end of a file may be missing from an answer.
        let len = u64::from(size).min(inode.size.saturating_sub(offset));
        match self.core.in_place(&inode, offset, len) {
            Some(bytes) => {
                self.core.observer.hit(inode.nid, len);
                reply.data(bytes.bytes());
            }
            None => self.serve_copy(inode, offset, len, reply),
        }
        if len > 0 {
            self.core.look_ahead(&inode, offset, len);
        }
    }

    /// As [`Fs::serve`], for what does not lie together or is not here.
    fn serve_copy(&self, inode: Inode, offset: u64, len: u64, reply: ReplyData) {
        with_buffer(len, |buf| match self.core.read(&inode, offset, buf) {
            Ok(Outcome::Read) => {
                self.core.observer.hit(inode.nid, len);
                reply.data(buf);
            }
            Ok(Outcome::Missing(device)) => {
                let since = Instant::now();
                self.waiters.wait(device, Parked { inode, offset, len, device, since, reply });
            }
            Err(why) => {
                self.core.observer.failed(inode.nid, &why);
                reply.error(errno::of_read(&why));
            }
        });
    }

    /// Calls `add` with the entries of a directory from a cookie on until it says that the reply is full.
    fn list(
        &self,
        number: INodeNo,
        cookie: u64,
        mut add: impl FnMut(&format::erofs::read::Entry<'_>) -> Result<bool, Corrupt>,
    ) -> Result<(), Corrupt> {
        let dir = self.inode(number)?;
        for (n, entry) in self.core.image.entries(&dir, cookie)?.enumerate() {
            match entry.and_then(|entry| add(&entry)) {
                Ok(false) => {}
                Ok(true) => break,
                // What came before it is told first; the kernel comes back for the rest and meets the error.
                Err(_) if n > 0 => break,
                Err(corrupt) => return Err(corrupt),
            }
        }
        Ok(())
    }

    fn xattr_of<'a>(&'a self, inode: &Inode, name: &[u8]) -> Result<Option<&'a [u8]>, Corrupt> {
        for xattr in self.core.image.xattrs(inode)? {
            let xattr = xattr?;
            if !xattr.prefix.is_empty() && xattr.is_named(name) {
                return Ok(Some(xattr.value));
            }
        }
        Ok(None)
    }

    /// Returns the names of all attributes that a user may know of, each with a NUL after it.
    fn xattr_names(&self, inode: &Inode, user: u32) -> Result<Vec<u8>, Corrupt> {
        let mut names = Vec::new();
        for xattr in self.core.image.xattrs(inode)? {
            let xattr = xattr?;
            // As the kernel does for EROFS: names of no namespace do not exist, trusted ones are root's.
            if xattr.prefix.is_empty() || (xattr.prefix == b"trusted." && user != 0) {
                continue;
            }
            names.extend_from_slice(xattr.prefix);
            names.extend_from_slice(xattr.suffix);
            names.push(0);
        }
        Ok(names)
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Filesystem for Fs<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // Access control lists cost a question for each inode that somebody else than its owner looks at, so the
        // kernel hears of them only where there are some.
        let wanted = if self.core.image.has_acls() { wanted | InitFlags::FUSE_POSIX_ACL } else { wanted };
        let refused = config.add_capabilities(wanted & offered);
        debug_assert!(refused.is_ok(), "only what was offered was asked for");
        self.opens = Opens {
            no_open: offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
            no_opendir: offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        };
        // The larger of the two is the longest request. Each `Err` is the nearest value that would do, and the
        // old one stays: fine for all.
        let _ = config.set_max_write(REQUEST);
        let _ = config.set_max_readahead(REQUEST);
        let _ = config.set_max_background(BACKGROUND);
        let _ = config.set_congestion_threshold(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > limits::NAME {
            return reply.error(errno::TOO_LONG);
        }
        let found = self.inode(parent).and_then(|dir| {
            let nid = self.core.image.lookup(&dir, name.as_bytes())?;
            nid.map(|nid| self.core.image.inode(nid)).transpose()
        });
        match found {
            Ok(Some(inode)) => reply.entry(&FOREVER, &self.attr(&inode), GENERATION),
            // Number 0 says that there is no such name, and that this may be kept too.
            Ok(None) => reply.entry(&FOREVER, &NOTHING, GENERATION),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        // There is no state per inode, so the kernel's say nothing to us.
        if ino.0 == wire::NO_NODE {
            self.gate.pass();
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(ino) {
            Ok(inode) => reply.attr(&FOREVER, &self.attr(&inode)),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let inode = self.inode(ino);
        match inode.as_ref().map_err(Clone::clone).and_then(|inode| self.core.image.readlink(inode)) {
            Ok(target) => reply.data(target),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.opens.no_open {
            reply.error(errno::NEVER);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The one place that calls out to others. A panic there must cost this read, which is answered with an
        // error as it is dropped, and not the thread: without threads all readers would hang.
        let served = catch_unwind(AssertUnwindSafe(|| self.serve(ino, offset, size, reply)));
        if served.is_err() {
            tracing::error!(ino = ino.0, offset, "a read failed by a panic");
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(errno::NEVER);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.opens.no_opendir {
            reply.error(errno::NEVER);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(ino, offset, |entry| {
            let number = INodeNo(self.swap(entry.nid.0));
            Ok(reply.add(number, entry.next, file_type(entry.kind), OsStr::from_bytes(entry.name)))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(ino, offset, |entry| {
            let attr = self.attr(&self.core.image.inode(entry.nid)?);
            let name = OsStr::from_bytes(entry.name);
            Ok(reply.add(attr.ino, entry.next, name, &FOREVER, &attr, GENERATION))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let image = &self.core.image;
        let devices = (1..=image.devices()).filter_map(|number| image.device(number));
        let bytes = image.len() + devices.map(|device| device.len).sum::<u64>();
        reply.statfs(bytes / limits::BLOCK, 0, 0, image.inodes(), 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let inode = self.inode(ino);
        let value = inode.and_then(|inode| self.xattr_of(&inode, name.as_bytes()));
        match value {
            Ok(Some(value)) => sized(value, size, reply),
            Ok(None) => reply.error(errno::NO_XATTR),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let inode = self.inode(ino);
        match inode.and_then(|inode| self.xattr_names(&inode, request.uid())) {
            Ok(names) => sized(&names, size, reply),
            Err(corrupt) => reply.error(self.damaged(&corrupt)),
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(errno::NO_CONTROL);
    }
}

/// Answers a question for an attribute: for its length, or for its bytes where they have room.
fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(errno::TOO_SMALL),
    }
}

/// The attributes of no inode.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// Returns the time as `SystemTime`, which has the same range; the reader has checked the nanoseconds.
fn system_time(time: Time) -> SystemTime {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(secs)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(secs)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends this thread's buffer, which is as long as the longest request it has seen.
///
/// Requests are at most [`REQUEST`] long: the kernel was told so.
pub(super) fn with_buffer<R>(len: u64, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut buffer = BUFFER.take();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let result = f(&mut buffer[..len]);
    BUFFER.set(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let half = Duration::from_millis(500);
        let time = |secs| system_time(Time { secs, nanos: 500_000_000 });
        assert_eq!(time(1), SystemTime::UNIX_EPOCH + Duration::from_secs(1) + half);
        assert_eq!(time(-1), SystemTime::UNIX_EPOCH - half);
        assert!(time(i64::MIN) < SystemTime::UNIX_EPOCH);
    }
}
