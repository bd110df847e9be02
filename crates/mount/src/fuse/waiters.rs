//! Reads of a mount that wait for a segment: what is fetched for them, and how they are answered.

use std::sync::Arc;
use std::time::Instant;

use format::erofs::read::Inode;
use fuser::ReplyData;

use super::filesystem::with_buffer;
use super::reads::{Core, Outcome};
use crate::errno;
use crate::observe::{Failure, Wait};
use crate::parking::{Parking, Serve};

/// A read that waits.
pub(super) struct Parked {
    pub(super) inode: Inode,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The device that was missing first.
    pub(super) device: u16,
    pub(super) since: Instant,
    pub(super) reply: ReplyData,
}

/// The reads that wait of one mount, by device.
pub(super) struct Waiters<B: AsRef<[u8]> + Send + Sync + 'static>(Arc<Parking<Server<B>>>);

struct Server<B>(Arc<Core<B>>);

impl<B: AsRef<[u8]> + Send + Sync + 'static> Waiters<B> {
    pub(super) fn new(core: Arc<Core<B>>) -> Self {
        Self(Arc::new(Parking::new(Server(core))))
    }

    /// Takes a read that found a device missing.
    pub(super) fn wait(&self, device: u16, read: Parked) {
        let core = &self.0.server().0;
        if let Some(slot) = core.image.device(read.device) {
            core.observer.waiting(read.inode.nid, (slot.index, slot.segment));
        }
        self.0.park(device, read);
    }

    /// Ends; those who wait are the successor's.
    pub(super) fn leave(&self) {
        // Dropped without an answer fuser would send an error, to a socket that nobody reads by now.
        drop(self.0.end());
    }

    /// Answers all that wait with an error, and every one that would wait from here on.
    pub(super) fn stop(&self) {
        self.0.stop();
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Server<B> {
    fn tell(&self, read: &Parked, outcome: Result<(), &Failure>) {
        let Some(slot) = self.0.image.device(read.device) else { return };
        self.0.observer.waited(&Wait {
            nid: read.inode.nid,
            offset: read.offset,
            len: read.len,
            missing: (slot.index, slot.segment),
            took: read.since.elapsed(),
            outcome,
        });
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Serve for Server<B> {
    type Key = u16;
    type Read = Parked;

    fn fetch(&self, device: u16, deadline: Instant) -> Result<(), Failure> {
        let Some(slot) = self.0.image.device(device) else { return Ok(()) }; // then nobody could have asked
        let fetched = self.0.segments.fetch(slot.index, slot.segment, deadline);
        let file = fetched.map_err(|error| Failure::Fetch(Arc::new(error)))?;
        self.0.files.put(device, file);
        Ok(())
    }

    /// Reads what a read asked for; it waits on if another segment is missing.
    fn answer(&self, read: Parked) -> Option<(u16, Parked)> {
        if let Some(bytes) = self.0.in_place(&read.inode, read.offset, read.len) {
            self.tell(&read, Ok(()));
            read.reply.data(bytes.bytes());
            return None;
        }
        with_buffer(read.len, |buf| match self.0.read(&read.inode, read.offset, buf) {
            Ok(Outcome::Read) => {
                self.tell(&read, Ok(()));
                read.reply.data(buf);
                None
            }
            Ok(Outcome::Missing(next)) => Some((next, read)),
            Err(why) => {
                self.fail(read, &why);
                None
            }
        })
    }

    fn fail(&self, read: Parked, why: &Failure) {
        self.tell(&read, Err(why));
        read.reply.error(errno::of_read(why));
    }

    fn deadline(&self, read: &Parked) -> Instant {
        read.since + self.0.deadline
    }
}
