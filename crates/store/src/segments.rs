//! The segments of one layer: a file each, absent or of size 0 until it is whole. Its size is the claim.
//!
//! Promises: a file is only ever appended to, with verified bytes, so even a torn one holds right bytes up to
//! its size; past the size the kernel returns an error, never zeros. It is never cut or rewritten, for somebody may
//! have it mounted. One found bad is replaced by an empty one in a single rename, which leaves a mount with a file
//! that has no name any more: [`OpenLayer::generation`] tells that it must be made anew.
//!
//! Leaves to others: what is known of the layer as a whole (`standing.rs`), where bytes come from (`read_through.rs`) and when a layer may go (`gc.rs`).

mod checks;
mod sums;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock, Weak};

use format::IndexId;
use format::layer::Layer;

use crate::claim::{Claim, FillError};
use crate::error::StoreError;
use crate::guard;
use crate::record::{self, Kind};
use crate::standing::{self, Proof, STATE, Stage, Standing, directory, sizes};
use crate::store::{Pin, Store};
use sums::Sums;

/// A whole segment, open for reading.
#[derive(Debug)]
pub struct SegmentFile {
    /// The file; reading is all that may be done with it.
    pub file: File,
    /// Its length in bytes, which is the segment's.
    pub len: u64,
    withdrawn: AtomicBool,
}

impl SegmentFile {
    /// Returns a segment's file.
    pub fn new(file: File, len: u64) -> Self {
        Self { file, len, withdrawn: AtomicBool::new(false) }
    }

    /// Returns whether its bytes turned out bad: whoever keeps it open must ask for the segment again.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Relaxed)
    }

    /// Reads up to a buffer's length at an offset; 0 at the end.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

/// What the segments of a layer must be.
pub(crate) trait Content: Send + Sync {
    /// Returns the layer's identity.
    fn id(&self) -> IndexId;
    /// Returns how many segments there are.
    fn segments(&self) -> u32;
    /// Returns the length of a whole segment.
    fn len(&self, segment: u32) -> u64;
    /// Returns whether these are the bytes of a whole segment, padding included.
    fn is(&self, segment: u32, bytes: &[u8]) -> bool;
    /// Returns whether it can tell; where it cannot, what was filled is remembered.
    fn tells(&self) -> bool {
        true
    }
    /// Returns how long all is that it is fetched from.
    fn packed(&self) -> u64;
}

impl Content for Layer {
    fn id(&self) -> IndexId {
        self.id()
    }

    fn segments(&self) -> u32 {
        self.segments()
    }

    fn len(&self, segment: u32) -> u64 {
        self.segment_len(segment)
    }

    fn is(&self, segment: u32, bytes: &[u8]) -> bool {
        self.verify_segment(segment, bytes).is_ok()
    }

    fn tells(&self) -> bool {
        self.tells()
    }

    fn packed(&self) -> u64 {
        self.source().packed()
    }
}

#[derive(Debug, Default)]
struct Slot {
    claim: AtomicU8,
    /// Whether there is a file.
    there: AtomicBool,
    used: AtomicBool,
    file: RwLock<Kept>,
}

/// A segment's file while it is open. There is one at a time, so that all who have it can be told.
#[derive(Debug, Default)]
struct Kept {
    /// Kept open by us.
    ours: Option<Arc<SegmentFile>>,
    /// By anybody.
    any: Weak<SegmentFile>,
}

/// A layer whose segments are in use.
pub struct OpenLayer {
    store: Arc<Store>,
    content: Arc<dyn Content>,
    id: IndexId,
    dir: PathBuf,
    slots: Box<[Slot]>,
    /// What segments hash to, where the content cannot tell.
    sums: Option<Sums>,
    /// Bytes that came from other layers since it was opened.
    taken: AtomicU64,
    /// Segments that are not known to be whole.
    missing: AtomicUsize,
    /// Segments still suspect. When the last one is settled, the layer joins the present era.
    suspects: AtomicUsize,
    /// Whether the kernel may have opened the files.
    exposed: AtomicBool,
    /// Grows with each file that is replaced; recorded before a replacement that a mount may miss.
    generation: AtomicU64,
    standing: Mutex<Standing>,
    /// Held while the standing is changed and written; `standing` is taken under it, for a look.
    saving: Mutex<()>,
    /// One thread proves or seals at a time; held across I/O for that.
    pub(crate) completing: Mutex<()>,
    /// Told when a segment is no longer busy; the lock guards nothing else and is taken last.
    idle: (Mutex<()>, Condvar),
    _pin: Pin,
}

impl fmt::Debug for OpenLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenLayer")
            .field("id", &self.id)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl OpenLayer {
    /// Opens a layer, making its directory if it is not there; each layer is open once.
    pub(crate) fn open(store: &Arc<Store>, content: Arc<dyn Content>) -> Result<Arc<Self>, StoreError> {
        let id = content.id();
        let pin = Pin::new(store, id);
        // Held across I/O: two openers of one layer must not both look at its files. No reader waits here.
        let mut open = guard::lock(&store.open);
        if let Some(layer) = open.get(&id).and_then(Weak::upgrade) {
            return Ok(layer);
        }
        open.retain(|_, layer| layer.strong_count() > 0);
        let layer = Arc::new(Self::look(store, content, pin)?);
        open.insert(id, Arc::downgrade(&layer));
        Ok(layer)
    }

    /// Looks at a layer's files. Those that are missing are made when they are filled or mounted: a start that
    /// reads a hundred segments of a thousand must not wait for a thousand files.
    fn look(store: &Arc<Store>, content: Arc<dyn Content>, pin: Pin) -> Result<Self, StoreError> {
        let id = content.id();
        let dir = directory(id);
        let failed = |error| StoreError::io("opening", &store.path(&dir), error);
        let state = standing::load(store, &dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is known of a layer is lost: its segments will be checked");
            None
        });
        let trusted =
            state.as_ref().is_some_and(|s| s.era == store.era() || s.standing.stage == Stage::Sealed);
        let generation = state.as_ref().map_or_else(standing::new_generation, |state| state.generation);
        let standing = state.map_or(Standing::NEW, |state| state.standing);
        let sizes = sizes(store, &dir).map_err(failed)?;
        let layer = Self {
            store: Arc::clone(store),
            id,
            dir: dir.clone(),
            sums: (!content.tells()).then(|| Sums::open(store.disk(), &dir)),
            slots: (0..content.segments()).map(|_| Slot::default()).collect(),
            content,
            taken: AtomicU64::new(0),
            missing: AtomicUsize::new(0),
            suspects: AtomicUsize::new(0),
            exposed: AtomicBool::new(false),
            generation: AtomicU64::new(generation),
            standing: Mutex::new(standing),
            saving: Mutex::default(),
            completing: Mutex::default(),
            idle: Default::default(),
            _pin: pin,
        };
        for (segment, slot) in (0..).zip(&layer.slots) {
            let size = sizes.get(&segment).copied();
            let claim = layer.first_claim(segment, size, trusted).map_err(failed)?;
            slot.there.store(size.is_some(), Ordering::Relaxed);
            slot.claim.store(claim as u8, Ordering::Relaxed);
            layer.missing.fetch_add(usize::from(claim != Claim::Whole), Ordering::Relaxed);
            layer.suspects.fetch_add(usize::from(claim == Claim::Suspect), Ordering::Relaxed);
        }
        if layer.missing() > 0 && standing.stage == Stage::Sealed {
            // Somebody has cut files by hand. What is left was synced, what is gone can be fetched.
            tracing::warn!(layer = %id, missing = layer.missing(), "segments of a complete layer are gone");
            layer.update(|standing| standing.stage = Stage::Filling)?;
        } else if !trusted && layer.suspects.load(Ordering::Relaxed) == 0 {
            layer.update(|_| ())?;
        }
        Ok(layer)
    }

    /// Returns what a segment's size claims; a torn one that cannot be trusted begins anew.
    fn first_claim(&self, segment: u32, size: Option<u64>, trusted: bool) -> io::Result<Claim> {
        Ok(match size {
            None | Some(0) => Claim::Missing,
            Some(size) if size == self.content.len(segment) => {
                if trusted {
                    Claim::Whole
                } else {
                    Claim::Suspect
                }
            }
            Some(_) => {
                if !trusted {
                    self.empty(segment)?;
                }
                Claim::Missing
            }
        })
    }

    /// Returns the layer's identity.
    pub fn id(&self) -> IndexId {
        self.id
    }

    /// Returns what is known of the layer.
    pub fn standing(&self) -> Standing {
        *guard::lock(&self.standing)
    }

    fn refused(&self) -> bool {
        matches!(self.standing().proof, Proof::Refused { .. })
    }

    /// Returns how many packed bytes all of it takes.
    pub fn packed(&self) -> u64 {
        self.content.packed()
    }

    /// Returns how many segments the layer has.
    pub fn segments(&self) -> u32 {
        self.content.segments()
    }

    /// Returns how many segments are not known to be whole.
    pub fn missing(&self) -> usize {
        self.missing.load(Ordering::Acquire)
    }

    /// Returns the bytes that came from other layers since it was opened.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(crate) fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes of the segments that are here.
    pub(crate) fn held(&self) -> u64 {
        let here = |n: &u32| matches!(self.claim(*n), Some(Claim::Whole | Claim::Suspect));
        (0..self.segments()).filter(here).map(|n| self.content.len(n)).sum()
    }

    /// Returns the path of a segment's file, for mounting.
    pub fn path(&self, segment: u32) -> PathBuf {
        self.store.path(&self.file_of(segment))
    }

    /// Returns what is known of a segment, nothing if there is no such segment.
    pub(crate) fn claim(&self, segment: u32) -> Option<Claim> {
        let slot = self.slots.get(segment as usize)?;
        Some(Claim::ALL[usize::from(slot.claim.load(Ordering::Acquire) & 3)])
    }

    /// Returns a whole segment; no system call if its file is open.
    pub(crate) fn file(self: &Arc<Self>, segment: u32) -> io::Result<Option<Arc<SegmentFile>>> {
        if self.claim(segment) != Some(Claim::Whole) {
            return Ok(None);
        }
        let slot = &self.slots[segment as usize];
        if let Some(file) = guard::read(&slot.file).ours.as_ref() {
            // Stored only when it changes, so that readers on many cores share the line.
            if !slot.used.load(Ordering::Relaxed) {
                slot.used.store(true, Ordering::Relaxed);
            }
            return Ok(Some(Arc::clone(file)));
        }
        let file = {
            // Held while the file is opened: `scrub` changes the claim before it clears the slot, and what it threw
            // out must not come back as what was fetched since.
            let mut kept = guard::write(&slot.file);
            if self.claim(segment) != Some(Claim::Whole) {
                return Ok(None);
            }
            let file = match kept.any.upgrade() {
                Some(file) => file,
                None => {
                    let opened = self.store.disk().open(&self.file_of(segment))?;
                    Arc::new(SegmentFile::new(opened, self.content.len(segment)))
                }
            };
            *kept = Kept { ours: Some(Arc::clone(&file)), any: Arc::downgrade(&file) };
            file
        };
        self.store.files.opened(self, segment);
        Ok(Some(file))
    }

    /// Closes a segment's cached file unless it was used since the last call; returns whether it was closed.
    pub(crate) fn let_go(&self, segment: u32) -> bool {
        let slot = &self.slots[segment as usize];
        let idle = !slot.used.swap(false, Ordering::Relaxed);
        if idle {
            guard::write(&slot.file).ours = None;
        }
        idle
    }

    /// Returns whether a segment's file is kept open.
    #[cfg(test)]
    pub(crate) fn is_open(&self, segment: u32) -> bool {
        guard::read(&self.slots[segment as usize].file).ours.is_some()
    }

    /// Makes the files ready for the kernel to open: all are there, and nothing wrong is below any size.
    ///
    /// Returns the generation they are of. If it is another one once they have been opened, they have to be opened
    /// again.
    pub fn expose(&self) -> Result<u64, StoreError> {
        let failed = |what| move |error| StoreError::io(what, &self.store.path(&self.dir), error);
        self.settle_all().map_err(failed("checking"))?;
        self.exposed.store(true, Ordering::Release);
        let generation = self.generation();
        for (segment, slot) in (0..).zip(&self.slots) {
            if slot.there.load(Ordering::Acquire) || self.claim(segment) == Some(Claim::Whole) {
                continue;
            }
            match self.store.disk().create(&self.file_of(segment)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("making the segments of")(error));
                }
                _ => slot.there.store(true, Ordering::Release),
            }
        }
        Ok(generation)
    }

    /// Returns a number that is another one after files have been replaced, also for whoever opens the layer later.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns whether a segment is whole.
    pub fn is_whole(&self, segment: u32) -> bool {
        self.claim(segment) == Some(Claim::Whole)
    }

    /// Writes a whole segment of verified bytes. What is there of it already is compared, not written again.
    pub(crate) fn fill(&self, segment: u32, bytes: &[u8]) -> Result<(), FillError> {
        let closed = guard::read(&self.store.closed);
        if *closed {
            return Err(FillError::Closed);
        }
        if self.refused() {
            return Err(FillError::Refused);
        }
        let Some(owned) = self.own(segment) else { return Ok(()) };
        if let Some(sums) = &self.sums {
            sums.put(self.store.disk(), segment, bytes)?;
        }
        self.append_rest(segment, bytes)?;
        owned.becomes(Claim::Whole);
        self.came_right(segment);
        Ok(())
    }

    /// Makes all segments durable, if all are whole; then nothing but a bad disk can harm them.
    pub(crate) fn seal(&self) -> Result<bool, StoreError> {
        if self.missing() > 0 {
            return Ok(false);
        }
        if self.standing().stage == Stage::Sealed {
            return Ok(true);
        }
        let disk = self.store.disk();
        for segment in 0..self.segments() {
            let path = self.file_of(segment);
            if let Err(error) = disk.open(&path).and_then(|file| disk.sync(&file)) {
                // What was accepted may be lost although it can still be read: fetch it again.
                self.unclaim(segment)?;
                return Err(StoreError::io("syncing", &self.store.path(&path), error));
            }
        }
        let sums = self.sums.as_ref().map_or(Ok(()), |sums| sums.sync(disk));
        sums.and_then(|()| disk.sync_dir(&self.dir))
            .and_then(|()| self.store.sync_parent(&self.dir))
            .map_err(|error| StoreError::io("syncing", &self.store.path(&self.dir), error))?;
        self.update(|standing| standing.stage = Stage::Sealed)?;
        Ok(true)
    }

    /// Changes what is known of the layer and records it, and that its segments are good in this era if that has been
    /// looked at.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Standing)) -> Result<(), StoreError> {
        let _one = guard::lock(&self.saving);
        let mut standing = self.standing();
        change(&mut standing);
        let settled = self.suspects.load(Ordering::Acquire) == 0;
        let era = if settled { self.store.era() } else { "" };
        let state = standing::state(era, standing, self.generation());
        record::write(&self.store, Kind::Layer, &self.dir.join(STATE), &state)?;
        *guard::lock(&self.standing) = standing;
        Ok(())
    }

    /// Fills a buffer with bytes of a whole segment.
    pub(crate) fn read(self: &Arc<Self>, segment: u32, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.file(segment)?.ok_or(io::ErrorKind::NotFound)?;
        crate::fs::read_exact(self.store.disk(), &file.file, buf, offset)
    }

    fn file_of(&self, segment: u32) -> PathBuf {
        self.dir.join(segment.to_string())
    }

    /// Takes a segment that is not whole for writing or checking; waits while somebody else has it.
    fn own(&self, segment: u32) -> Option<Owned<'_>> {
        let slot = self.slots.get(segment as usize)?;
        loop {
            let was = self.claim(segment)?;
            if was == Claim::Whole {
                return None;
            }
            if was == Claim::Busy {
                let idle = guard::lock(&self.idle.0);
                if self.claim(segment)? == Claim::Busy {
                    drop(guard::wait(&self.idle.1, idle));
                }
                continue;
            }
            let busy = Claim::Busy as u8;
            if slot.claim.compare_exchange(was as u8, busy, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some(Owned { layer: self, segment, was, then: was });
            }
        }
    }

    fn append_rest(&self, segment: u32, bytes: &[u8]) -> Result<(), FillError> {
        let path = self.file_of(segment);
        let disk = self.store.disk();
        let mut file = match disk.open_append(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match disk.create(&path) {
                // Made for a mount a moment ago.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.open_append(&path)?,
                made => {
                    self.slots[segment as usize].there.store(true, Ordering::Release);
                    made?
                }
            },
            file => file?,
        };
        let mut there = file.metadata()?.len();
        if there > 0 && !self.is_prefix(&file, there, bytes).unwrap_or(false) {
            self.empty(segment)?;
            file = disk.open_append(&path)?;
            there = 0;
        }
        let rest = usize::try_from(there).ok().and_then(|there| bytes.get(there..)).unwrap_or_default();
        let appended = disk.append(&file, there, rest);
        if appended.is_err() && !self.exposed.load(Ordering::Acquire) {
            // Gives the room back. If it fails as well, the next fill compares what is there.
            let _ = self.empty(segment);
        }
        Ok(appended?)
    }

    /// Withdraws the claim of a whole segment that turned out bad; evidence is left alone.
    fn unclaim(&self, segment: u32) -> Result<(), StoreError> {
        let slot = &self.slots[segment as usize];
        let (whole, busy) = (Claim::Whole as u8, Claim::Busy as u8);
        if self.refused()
            || slot.claim.compare_exchange(whole, busy, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return Ok(());
        }
        // Whatever fails below, nobody is served these bytes again.
        let _owned = Owned { layer: self, segment, was: Claim::Whole, then: Claim::Missing };
        self.missing.fetch_add(1, Ordering::AcqRel);
        if let Some(file) = std::mem::take(&mut *guard::write(&slot.file)).any.upgrade() {
            file.withdrawn.store(true, Ordering::Relaxed);
        }
        // The stage first: a complete layer is not looked at again, one that is filling is.
        if self.standing().stage != Stage::Filling {
            self.update(|standing| standing.stage = Stage::Filling)?;
        }
        self.begin_another()?;
        self.put_empty(segment)
            .and_then(|()| self.store.disk().sync_dir(&self.dir))
            .map_err(|error| StoreError::io("emptying", &self.store.path(&self.file_of(segment)), error))
    }

    /// Puts an empty file in the place of a segment. Who has the old one open keeps it.
    fn empty(&self, segment: u32) -> io::Result<()> {
        self.begin_another().map_err(io::Error::other)?;
        self.put_empty(segment)
    }

    /// Begins another generation. Before a replacement: who looks between the two opens once too often, never once too
    /// seldom.
    fn begin_another(&self) -> Result<(), StoreError> {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // A mount may outlive us, and its files are compared with this by whoever takes it over. What the kernel has
        // open was settled before, so the record may say that it is of this era.
        if self.exposed.load(Ordering::Acquire) { self.update(|_| ()) } else { Ok(()) }
    }

    fn put_empty(&self, segment: u32) -> io::Result<()> {
        let temporary = self.store.temporary();
        self.store.disk().create(&temporary)?;
        self.store.disk().rename(&temporary, &self.file_of(segment))
    }

    /// After the last suspect the layer is good again; until then every start would check it.
    fn suspect_gone(&self) {
        if self.suspects.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if let Err(error) = self.update(|_| ()) {
            tracing::warn!(layer = %self.id, %error, "cannot record that a layer was checked");
        }
    }
}

/// A segment in somebody's hands; what it becomes is told when they let go.
struct Owned<'a> {
    layer: &'a OpenLayer,
    segment: u32,
    was: Claim,
    then: Claim,
}

impl Owned<'_> {
    fn becomes(mut self, claim: Claim) {
        self.then = claim;
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        let layer = self.layer;
        layer.slots[self.segment as usize].claim.store(self.then as u8, Ordering::Release);
        if self.then == Claim::Whole {
            layer.missing.fetch_sub(1, Ordering::AcqRel);
        }
        if self.was == Claim::Suspect && self.then != Claim::Suspect {
            layer.suspect_gone();
        }
        let _idle = guard::lock(&layer.idle.0);
        layer.idle.1.notify_all();
    }
}
