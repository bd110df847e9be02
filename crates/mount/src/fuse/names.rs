//! A file system of names: where containers/storage looks layers up.
//!
//! | path | what |
//! |---|---|
//! | `/IMAGE` | an image, whose name somebody else understands |
//! | `/IMAGE/LAYER` | one of its layers |
//! | `/IMAGE/LAYER/diff` | a symbolic link to where the layer is mounted by itself |
//! | `/IMAGE/LAYER/info` | what is known of it, JSON |
//! | `/IMAGE/LAYER/blob` | the layer as the registry has it |
//! | `/IMAGE/LAYER/use` | never there; who makes it says that he uses the layer |
//!
//! Removing `/IMAGE/LAYER` says that he uses it no more. Both are answered with `ENOENT`: that is how a user knows that they were understood.
//!
//! Promises: what is read of `info` and `blob` was whole and checked when it was opened, whoever reads it how; a server that
//! comes after this one knows every path anew, and what was open is an error. The kernel keeps no name, so one that is absent
//! today may be there tomorrow. Nobody waits for another's question: each that may take its time has a thread of its own.
//!
//! Leaves to others: everything that the names mean ([`Layers`]).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use format::Digest;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};

use super::device::Changes;
use super::filesystem::REQUEST;
use super::mounted::{self, MountError, Mounted, Serve, Stop, Unanswered};
use super::session::{Gate, Last};
use super::terms::Terms;
use super::{Options, wire};
use crate::errno;

/// Questions under way at once, each a thread. A pull asks for its layers one after the other, or a few at a time.
const QUESTIONS: usize = 256;

/// Files that are open at once.
const OPEN: usize = 1024;

/// For how long the kernel may keep what it was told.
const AT_ONCE: Duration = Duration::ZERO;

/// How long a link to a mount can be: any path.
const LINK: u64 = 4096;

/// A layer, by the names of its directories.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerName {
    /// The directory of its image.
    pub image: OsString,
    /// Its own.
    pub layer: OsString,
}

/// Why there is no answer; told elsewhere in more words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no such layer, or none that can be had this way: another way may be tried.
    Absent,
    /// There is, and it failed.
    Failed,
}

/// Who knows the layers. Every call but the first may take as long as a network.
pub trait Layers: Send + Sync + 'static {
    /// Says whether this can be the name of an image.
    fn is_image(&self, image: &OsStr) -> bool;
    /// Says whether a layer can be had.
    fn look(&self, layer: &LayerName) -> Result<(), Refused>;
    /// Mounts a layer, and returns where.
    fn diff(&self, layer: &LayerName) -> Result<PathBuf, Refused>;
    /// Returns what is known of it.
    fn info(&self, layer: &LayerName) -> Result<Vec<u8>, Refused>;
    /// Returns how long its blob is.
    fn blob_len(&self, layer: &LayerName) -> Result<u64, Refused>;
    /// Returns its blob, checked.
    fn blob(&self, layer: &LayerName) -> Result<File, Refused>;
    /// Hears that somebody uses it.
    fn hold(&self, layer: &LayerName) -> Result<(), Refused>;
    /// Hears that somebody uses it no more; he has been answered.
    fn release(&self, layer: &LayerName);
    /// Returns the layers that somebody uses.
    fn held(&self) -> Vec<LayerName>;
}

/// A file system of names, ready to be mounted.
pub struct NameServer {
    layers: Arc<dyn Layers>,
    options: Options,
}

impl NameServer {
    /// Returns one for these layers.
    pub fn new(layers: Arc<dyn Layers>) -> Self {
        Self { layers, options: Options::default() }
    }

    /// Mounts on a directory and serves until unmounted or dropped.
    pub fn mount(self, at: &Path) -> Result<Mounted, MountError> {
        mounted::mount(self, at)
    }

    /// Serves a mount that another process has made; as [`super::Server::resume`].
    pub fn resume(
        self,
        device: OwnedFd,
        terms: Terms,
        at: &Path,
    ) -> Result<(Mounted, Unanswered), MountError> {
        mounted::resume(self, device, terms, at)
    }
}

impl Serve for NameServer {
    const CHANGES: Changes = Changes::Asked;

    type Fs = Names;

    fn options(&self) -> &Options {
        &self.options
    }

    fn begin(self, gate: Arc<Gate>, last: Last) -> (Names, Stop) {
        // What a thread still answers after the end reaches nobody.
        let stop = Stop { stop: Box::new(|| ()), leave: Box::new(|| ()) };
        let shared = Shared {
            layers: self.layers,
            nodes: Mutex::default(),
            open: Mutex::default(),
            // Of no use to a successor: what it is asked for by our number it must not take for its own.
            next: AtomicU64::new(RandomState::new().build_hasher().finish()),
            asking: AtomicUsize::new(0),
        };
        (Names { shared: Arc::new(shared), gate, _last: last }, stop)
    }
}

/// What a number of the kernel's stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    Root,
    Image(OsString),
    Layer(LayerName),
    Diff(LayerName),
    Info(LayerName),
    Blob(LayerName),
}

impl Node {
    /// Returns its number: a function of its path, so that a successor gives the same.
    fn number(&self) -> u64 {
        let (kind, image, layer) = match self {
            Self::Root => return INodeNo::ROOT.0,
            Self::Image(image) => ("image", image.as_bytes(), &b""[..]),
            Self::Layer(name) => ("layer", name.image.as_bytes(), name.layer.as_bytes()),
            Self::Diff(name) => ("diff", name.image.as_bytes(), name.layer.as_bytes()),
            Self::Info(name) => ("info", name.image.as_bytes(), name.layer.as_bytes()),
            Self::Blob(name) => ("blob", name.image.as_bytes(), name.layer.as_bytes()),
        };
        let digest = Digest::of(&[kind.as_bytes(), image, layer].join(&b'/'));
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest.as_bytes()[..8]);
        // Not among the numbers with a meaning of their own.
        u64::from_le_bytes(bytes) | 1 << 63
    }

    fn kind(&self) -> FileType {
        match self {
            Self::Root | Self::Image(_) | Self::Layer(_) => FileType::Directory,
            Self::Diff(_) => FileType::Symlink,
            Self::Info(_) | Self::Blob(_) => FileType::RegularFile,
        }
    }
}

/// What was opened, and its bytes.
struct Open {
    node: u64,
    bytes: Bytes,
}

enum Bytes {
    Memory(Vec<u8>),
    File(File),
}

/// What all threads share.
struct Shared {
    layers: Arc<dyn Layers>,
    /// What the kernel knows by number, and how often it was told. Held for a look only.
    nodes: Mutex<HashMap<u64, (Node, u64)>>,
    /// Held for a look only.
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next: AtomicU64,
    asking: AtomicUsize,
}

impl Shared {
    fn nodes(&self) -> MutexGuard<'_, HashMap<u64, (Node, u64)>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, number: INodeNo) -> Result<Node, Errno> {
        if number == INodeNo::ROOT {
            return Ok(Node::Root);
        }
        // A predecessor told it; the kernel asks by path.
        self.nodes().get(&number.0).map(|(node, _)| node.clone()).ok_or(errno::STALE)
    }

    /// Returns what a name in a directory stands for.
    fn child(&self, parent: &Node, name: &OsStr) -> Result<Node, Errno> {
        match parent {
            Node::Root if self.layers.is_image(name) => Ok(Node::Image(name.to_owned())),
            Node::Image(image) => {
                let layer = LayerName { image: image.clone(), layer: name.to_owned() };
                self.layers.look(&layer).map_err(errno::of_layer)?;
                Ok(Node::Layer(layer))
            }
            Node::Layer(layer) => match name.as_bytes() {
                b"diff" => {
                    self.layers.diff(layer).map_err(errno::of_layer)?;
                    Ok(Node::Diff(layer.clone()))
                }
                b"info" => Ok(Node::Info(layer.clone())),
                b"blob" => Ok(Node::Blob(layer.clone())),
                _ => Err(errno::ABSENT),
            },
            _ => Err(errno::ABSENT),
        }
    }

    fn attr(&self, node: &Node) -> Result<FileAttr, Errno> {
        let size = match node {
            Node::Info(layer) => self.layers.info(layer).map(|text| text.len() as u64),
            Node::Blob(layer) => self.layers.blob_len(layer),
            Node::Diff(_) => Ok(LINK),
            Node::Root | Node::Image(_) | Node::Layer(_) => Ok(0),
        };
        let size = size.map_err(errno::of_layer)?;
        let kind = node.kind();
        let never = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(node.number()),
            size,
            blocks: size.div_ceil(512),
            atime: never,
            mtime: never,
            ctime: never,
            crtime: never,
            kind,
            perm: match kind {
                FileType::Directory => 0o700,
                FileType::Symlink => 0o777,
                _ => 0o400,
            },
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let node = self.child(&self.node(parent)?, name)?;
        let attr = self.attr(&node)?;
        self.nodes().entry(attr.ino.0).or_insert((node, 0)).1 += 1;
        Ok(attr)
    }

    fn opened(&self, number: INodeNo) -> Result<u64, Errno> {
        let bytes = match self.node(number)? {
            Node::Info(layer) => self.layers.info(&layer).map(Bytes::Memory),
            Node::Blob(layer) => self.layers.blob(&layer).map(Bytes::File),
            _ => return Err(errno::FIXED),
        };
        let bytes = bytes.map_err(errno::of_layer)?;
        let mut open = self.open();
        if open.len() >= OPEN {
            return Err(errno::CROWDED);
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(handle, Arc::new(Open { node: number.0, bytes }));
        Ok(handle)
    }

    fn read(&self, number: INodeNo, handle: FileHandle, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let open = self.open().get(&handle.0).filter(|open| open.node == number.0).cloned();
        // What a predecessor opened.
        let open = open.ok_or(errno::STALE)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        match &open.bytes {
            Bytes::Memory(bytes) => {
                let rest = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
                Ok(rest[..rest.len().min(size)].to_vec())
            }
            Bytes::File(file) => {
                let len = file.metadata().map_err(|_| errno::CORRUPT)?.len();
                // The kernel asks for a megabyte at most.
                let here = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(size);
                let mut bytes = vec![0; here];
                file.read_exact_at(&mut bytes, offset).map_err(|_| errno::CORRUPT)?;
                Ok(bytes)
            }
        }
    }

    fn entries(&self, number: INodeNo) -> Result<Vec<(Node, OsString)>, Errno> {
        let name = |text: &str| OsString::from(text);
        Ok(match self.node(number)? {
            Node::Root => {
                let mut images: Vec<_> = self.layers.held().into_iter().map(|layer| layer.image).collect();
                images.sort();
                images.dedup();
                images.into_iter().map(|image| (Node::Image(image.clone()), image)).collect()
            }
            Node::Image(image) => {
                let mut layers = self.layers.held();
                layers.retain(|layer| layer.image == image);
                layers.into_iter().map(|layer| (Node::Layer(layer.clone()), layer.layer)).collect()
            }
            Node::Layer(layer) => vec![
                (Node::Diff(layer.clone()), name("diff")),
                (Node::Info(layer.clone()), name("info")),
                (Node::Blob(layer), name("blob")),
            ],
            _ => return Err(errno::NO_DIRECTORY),
        })
    }
}

/// The file system that fuser talks to.
pub(super) struct Names {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    _last: Last,
}

/// A question under way.
struct Asking(Arc<Shared>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Names {
    /// Answers on a thread of its own. A reply that is dropped without an answer is an error to who asked.
    fn ask<R: Send + 'static>(
        &self,
        reply: R,
        answer: impl FnOnce(&Shared, R) + Send + 'static,
        refuse: impl FnOnce(R, Errno),
    ) {
        let asking = Asking(Arc::clone(&self.shared));
        if self.shared.asking.fetch_add(1, Ordering::Relaxed) >= QUESTIONS {
            return refuse(reply, errno::CROWDED);
        }
        let asked = std::thread::Builder::new().name("layer".into()).spawn(move || answer(&asking.0, reply));
        if let Err(error) = asked {
            tracing::warn!(%error, "no thread can be started to look a layer up");
        }
    }
}

impl Filesystem for Names {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_MAX_PAGES;
        let refused = config.add_capabilities(wanted & config.capabilities());
        debug_assert!(refused.is_ok(), "only what was offered was asked for");
        let _ = config.set_max_write(REQUEST); // an error is the nearest value that would do
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        let answer = move |shared: &Shared, reply: ReplyEntry| match shared.look_up(parent, &name) {
            Ok(attr) => reply.entry(&AT_ONCE, &attr, Generation(0)),
            Err(error) => reply.error(error),
        };
        self.ask(reply, answer, |reply, error| reply.error(error));
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        if ino.0 == wire::NO_NODE {
            return self.gate.pass();
        }
        let mut nodes = self.shared.nodes();
        let told = nodes.get_mut(&ino.0).map(|(_, told)| {
            *told = told.saturating_sub(count);
            *told
        });
        if told == Some(0) {
            nodes.remove(&ino.0);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let answer = move |shared: &Shared, reply: ReplyAttr| match shared
            .node(ino)
            .and_then(|node| shared.attr(&node))
        {
            Ok(attr) => reply.attr(&AT_ONCE, &attr),
            Err(error) => reply.error(error),
        };
        self.ask(reply, answer, |reply, error| reply.error(error));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let answer = move |shared: &Shared, reply: ReplyData| match shared.node(ino) {
            Ok(Node::Diff(layer)) => match shared.layers.diff(&layer) {
                Ok(path) => reply.data(path.as_os_str().as_bytes()),
                Err(refused) => reply.error(errno::of_layer(refused)),
            },
            Ok(_) => reply.error(errno::FIXED),
            Err(error) => reply.error(error),
        };
        self.ask(reply, answer, |reply, error| reply.error(error));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(errno::FIXED);
        }
        let answer = move |shared: &Shared, reply: ReplyOpen| match shared.opened(ino) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        };
        self.ask(reply, answer, |reply, error| reply.error(error));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.shared.read(ino, handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(errno::NEVER);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        drop(self.shared.open().remove(&handle.0));
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.shared.entries(ino) {
            Ok(entries) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                for (at, (node, name)) in (1..).zip(&entries).skip(from) {
                    if reply.add(INodeNo(node.number()), at, node.kind(), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let used = name == "use";
        let answer = move |shared: &Shared, reply: ReplyCreate| {
            reply.error(match shared.node(parent) {
                Ok(Node::Layer(layer)) if used => match shared.layers.hold(&layer) {
                    Ok(()) => errno::ABSENT,
                    Err(_) => errno::CORRUPT, // a user who is not noted must not take it for noted
                },
                Ok(_) => errno::FIXED,
                Err(error) => error,
            });
        };
        self.ask(reply, answer, |reply, error| reply.error(error));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let answer = move |shared: &Shared, reply: ReplyEmpty| match shared.node(parent) {
            Ok(Node::Image(image)) => {
                // Answered first: what is not answered when we die is asked again, and one use too many
                // harms less than one too few.
                reply.error(errno::ABSENT);
                shared.layers.release(&LayerName { image, layer: name });
            }
            Ok(_) => reply.error(errno::FIXED),
            Err(error) => reply.error(error),
        };
        self.ask(reply, answer, |reply, error| reply.error(error));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno::FIXED);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno::FIXED);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno::FIXED);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno::FIXED);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(errno::NEVER);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(errno::NEVER);
    }
}
