//! A skeleton that a thread of its own packs: of making one from a table, which a start waits for, that is nearly half.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::{SkeletonError, SkeletonFacts, SkeletonWriter};

/// Bytes of a part.
const PART: usize = 128 << 10;

/// Parts that wait to be packed.
const PARTS: usize = 8;

type Packed = Result<(Vec<u8>, SkeletonFacts), SkeletonError>;

/// Packs a skeleton beside whoever makes it, unless it is short.
pub(super) struct Beside {
    /// Less than a part.
    waiting: Vec<u8>,
    packer: Packer,
}

enum Packer {
    /// What is short, and what finds no thread, is packed by the caller.
    Here(Box<SkeletonWriter>),
    There(SyncSender<Vec<u8>>, JoinHandle<Packed>),
}

impl Beside {
    /// Returns one that has got nothing.
    pub(super) fn new() -> Result<Self, SkeletonError> {
        let packer = Packer::Here(Box::new(SkeletonWriter::new()?));
        Ok(Self { waiting: Vec::with_capacity(PART), packer })
    }

    /// Adds bytes. Why a thread cannot pack them is told at the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), SkeletonError> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() < PART {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.waiting, Vec::with_capacity(PART));
        if matches!(&self.packer, Packer::Here(writer) if writer.is_empty())
            && let Some(there) = start()?
        {
            self.packer = there;
        }
        match &mut self.packer {
            Packer::Here(writer) => writer.write(&part),
            Packer::There(parts, _) => {
                let _ = parts.send(part); // see above
                Ok(())
            }
        }
    }

    /// Returns the packed bytes and what identifies the plain ones.
    pub(super) fn finish(self) -> Packed {
        match self.packer {
            Packer::Here(mut writer) => {
                writer.write(&self.waiting)?;
                writer.finish()
            }
            Packer::There(parts, thread) => {
                let _ = parts.send(self.waiting); // likewise
                drop(parts);
                let ended = || SkeletonError::Codec(std::io::Error::other("the thread that packs has ended"));
                thread.join().unwrap_or_else(|_| Err(ended()))
            }
        }
    }
}

/// Starts a thread that packs, if there is one to be had.
fn start() -> Result<Option<Packer>, SkeletonError> {
    let (parts, to_pack) = sync_channel::<Vec<u8>>(PARTS);
    let mut writer = SkeletonWriter::new()?;
    let pack = move || {
        to_pack.iter().try_for_each(|part| writer.write(&part))?;
        writer.finish()
    };
    let thread = Builder::new().name("skeleton".into()).spawn(pack);
    Ok(thread.ok().map(|thread| Packer::There(parts, thread)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_packs_is_what_the_caller_would_have() {
        let plain = testkit::tar::large(5000).skeleton;
        assert!(plain.len() > 3 * PART * PARTS, "the thread has to keep up with parts that wait");
        for len in [0, 1, PART - 1, PART, PART + 1, 2 * PART, plain.len()] {
            let mut here = SkeletonWriter::new().unwrap();
            here.write(&plain[..len]).unwrap();
            let mut beside = Beside::new().unwrap();
            plain[..len].chunks(1000).for_each(|bytes| beside.write(bytes).unwrap());
            assert_eq!(matches!(beside.packer, Packer::There(..)), len >= PART);
            assert!(beside.finish().unwrap() == here.finish().unwrap(), "{len}");
        }
    }
}
