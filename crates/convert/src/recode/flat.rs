//! Ordinary layers: gzip, zstd.
//!
//! Both may be several members or frames one after another (RFC 1952, 2.2; RFC 8878, 3.1), which every decoder of layers
//! reads as one stream. So the tar is cut into pieces of one length, and each is packed by itself. What that costs is
//! that nothing in a piece refers to the one before: see the lengths.

use super::RecodeError;
use super::members::{Event, Receiver};
use super::pipe::Pipe;

/// Plain bytes of a gzip member. Its window is 32 KiB, so that of each piece less than a hundredth has less to refer to:
/// 0.02 % of the blob, and 0.2 % with 1 MiB.
pub(super) const GZIP: usize = 4 << 20;

/// Plain bytes of a zstd frame. The window of level 3 is 2 MiB, of level 19 8 MiB. It costs 1.5 % of the blob at level 3, 4
/// MiB 2.6 %.
pub(super) const ZSTD: usize = 8 << 20;

/// Hands on what the tar holds.
pub(super) struct Flat<'a, 'scope> {
    pipe: &'a mut Pipe<'scope>,
    empty: bool,
}

impl<'a, 'scope> Flat<'a, 'scope> {
    pub(super) fn new(pipe: &'a mut Pipe<'scope>) -> Self {
        Self { pipe, empty: true }
    }

    pub(super) fn finish(self) -> Result<(), RecodeError> {
        // A blob of no bytes is neither gzip nor zstd.
        if self.empty { self.pipe.whole(b"") } else { Ok(()) }
    }
}

impl Receiver for Flat<'_, '_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError> {
        self.empty &= event.bytes().is_empty();
        self.pipe.write(event.bytes())
    }
}
