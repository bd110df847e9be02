//! What a successor must know of a mount beside its device.
//!
//! Layout, little-endian: `version u32` (1), `major u32`, `minor u32`, `max_readahead u32`, `flags u64`,
//! `number u64`, `by u32` (0 mount(2), 1 fusermount3). A program that meets another version leaves the mount alone.

use super::device::By;
use super::wire::{HAS_RESEND, Offer};

const VERSION: u32 = 1;

/// The terms on which the kernel and the first server of a mount met: the same for every successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub(super) offer: Offer,
    /// Device number of the mount.
    pub(super) number: u64,
    pub(super) by: By,
}

impl Terms {
    /// How long their bytes are.
    pub const LEN: usize = 36;

    /// Returns them as bytes, to be kept where a successor finds them.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let Offer { major, minor, max_readahead, flags } = self.offer;
        let by: u32 = if self.by == By::Us { 0 } else { 1 };
        for (at, word) in [(0, VERSION), (4, major), (8, minor), (12, max_readahead), (32, by)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[16..24].copy_from_slice(&flags.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Reads them; nothing if they are of another version or none at all.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        if word(0)? != VERSION {
            return None;
        }
        let by = match word(32)? {
            0 => By::Us,
            1 => By::Helper,
            _ => return None,
        };
        let offer = Offer { major: word(4)?, minor: word(8)?, max_readahead: word(12)?, flags: long(16)? };
        Some(Self { offer, number: long(24)?, by })
    }

    /// Says whether the kernel can ask again for what was read and not answered (Linux 6.9).
    pub fn resends(&self) -> bool {
        self.offer.flags & HAS_RESEND != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_as_they_were_written_and_no_others() {
        let offer = Offer { major: 7, minor: 45, max_readahead: 1 << 17, flags: HAS_RESEND | 5 };
        for by in [By::Us, By::Helper] {
            let terms = Terms { offer, number: 0x1234_5678_9abc, by };
            assert_eq!(Terms::from_bytes(&terms.to_bytes()), Some(terms));
            assert!(terms.resends());
        }
        let bytes = Terms { offer, number: 1, by: By::Us }.to_bytes();
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes;
            bytes[at] = to;
            Terms::from_bytes(&bytes)
        };
        assert_eq!((changed(0, 2), changed(32, 2), Terms::from_bytes(&bytes[1..])), (None, None, None));
    }
}
