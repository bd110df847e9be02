//! Segments kept open between reads.
//!
//! A table of fixed size in which a device has one place, so a lookup is one short lock and nothing is ever
//! searched or evicted by rule; a neighbour may take the place, which costs the next read one question to the
//! store. A segment that is whole stays as it is while it is mounted; one whose bytes turn out bad is withdrawn, and
//! asked for again.
//!
//! A segment is mapped as well, so that an answer goes from the page cache to the kernel in one call and with one
//! copy. Only the kernel reads the map, when it is handed the answer: should the disk fail or somebody cut the
//! file, that call fails and the reader gets `EIO`; there is no signal and there are no zeros.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use store::SegmentFile;
use sys::map::Map;

/// Places in the table; file descriptors that a mount may keep of its own.
const PLACES: usize = 256;

/// A place: the device that has it, and its file. Locked for as long as it takes to copy the two.
type Place = Mutex<Option<(u16, Arc<OpenSegment>)>>;

/// A whole segment, open and, where that is possible, mapped.
#[derive(Debug)]
pub(super) struct OpenSegment {
    file: Arc<SegmentFile>,
    map: Option<Map>,
}

impl OpenSegment {
    pub(super) fn new(file: Arc<SegmentFile>) -> Self {
        // Without a map it is read as a file: slower, not wrong.
        let map = Map::of(&file.file).ok();
        Self { file, map }
    }

    /// Returns where a range of the segment is in its map, if it is mapped and has the range.
    pub(super) fn mapped(self: Arc<Self>, range: Range<u64>) -> Option<InPlace> {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        let map = self.map.as_ref()?;
        map.as_ref().get(start..end)?;
        // The kernel answers the reader with EIO if it has to fetch a page for a process that is being killed.
        // A page that is there it takes; and a process killed in this call has not answered yet.
        map.populate(start..end);
        Some(InPlace { segment: self, range: start..end })
    }

    /// Fills a buffer. A file that ends early is an error: what it lacks is not zeros.
    pub(super) fn read_exact(&self, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = &mut buf[n..];
                    at += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes of a mapped segment.
#[derive(Debug)]
pub(super) struct InPlace {
    segment: Arc<OpenSegment>,
    range: Range<usize>,
}

impl InPlace {
    /// Returns the bytes. They are for the kernel only: see above.
    pub(super) fn bytes(&self) -> &[u8] {
        // `mapped` has looked.
        self.segment.map.as_ref().map_or(&[], |map| &map.as_ref()[self.range.clone()])
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Files(Box<[Place]>);

impl Files {
    pub(super) fn new() -> Self {
        Self((0..PLACES).map(|_| Mutex::new(None)).collect())
    }

    /// Returns the file of a device if it is kept.
    pub(super) fn get(&self, device: u16) -> Option<Arc<OpenSegment>> {
        let place = self.place(device).lock().unwrap_or_else(PoisonError::into_inner);
        let (_, open) =
            place.as_ref().filter(|(owner, open)| *owner == device && !open.file.is_withdrawn())?;
        Some(Arc::clone(open))
    }

    /// Keeps the file of a device.
    pub(super) fn put(&self, device: u16, file: Arc<SegmentFile>) -> Arc<OpenSegment> {
        let open = Arc::new(OpenSegment::new(file));
        let former = {
            let mut place = self.place(device).lock().unwrap_or_else(PoisonError::into_inner);
            place.replace((device, Arc::clone(&open)))
        };
        drop(former); // outside of the lock: it may close a file
        open
    }

    fn place(&self, device: u16) -> &Place {
        &self.0[usize::from(device) % PLACES]
    }
}
