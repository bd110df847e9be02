//! A skeleton that a thread of its own packs: of making one from a table, which a start waits for, that is nearly half.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::{SkeletonError, SkeletonFacts, SkeletonWriter};

/// Bytes of a part.
const PART: usize = 128 << 10;

/// Parts that wait to be packed.
const PARTS: usize = 8;

type Packed = Result<(Vec<u8>, SkeletonFacts), SkeletonError>;

/// Packs a skeleton beside whoever makes it, from the second part on.
pub(super) struct Beside {
    /// Less than a part.
    waiting: Vec<u8>,
    packer: Packer,
}

enum Packer {
    /// What is short, and what finds no thread, is packed by the caller.
    Here(Box<SkeletonWriter>),
    There(SyncSender<Vec<u8>>, JoinHandle<Packed>),
    /// It has failed, and has said why.
    Gone,
}

impl Beside {
    /// Returns one that has got nothing.
    pub(super) fn new() -> Result<Self, SkeletonError> {
        let packer = Packer::Here(Box::new(SkeletonWriter::new()?));
        Ok(Self { waiting: Vec::with_capacity(PART), packer })
    }

    /// Adds bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), SkeletonError> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() < PART {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.waiting, Vec::with_capacity(PART));
        self.packer = match std::mem::replace(&mut self.packer, Packer::Gone) {
            Packer::Here(mut writer) if !writer.is_empty() => {
                writer.write(&part)?;
                Packer::Here(writer)
            }
            Packer::Here(mut writer) => {
                writer.write(&part)?;
                start(writer)?
            }
            Packer::There(parts, thread) => match parts.send(part) {
                Ok(()) => Packer::There(parts, thread),
                Err(_) => return Err(packed(thread).err().unwrap_or_else(gone)),
            },
            Packer::Gone => return Err(gone()),
        };
        Ok(())
    }

    /// Returns the packed bytes and what identifies the plain ones.
    pub(super) fn finish(mut self) -> Packed {
        match self.packer {
            Packer::Here(mut writer) => {
                writer.write(&self.waiting)?;
                writer.finish()
            }
            Packer::There(parts, thread) => {
                // Where nobody takes it any more, the thread tells why.
                let _ = parts.send(std::mem::take(&mut self.waiting));
                drop(parts);
                packed(thread)
            }
            Packer::Gone => Err(gone()),
        }
    }
}

/// Starts a thread that packs what follows, if there is one to be had.
fn start(writer: Box<SkeletonWriter>) -> Result<Packer, SkeletonError> {
    let (to, from) = sync_channel::<Vec<u8>>(PARTS);
    let (here, there) = sync_channel::<Box<SkeletonWriter>>(1);
    let pack = move || {
        let mut writer = there.recv().map_err(|_| gone())?;
        from.iter().try_for_each(|part| writer.write(&part))?;
        writer.finish()
    };
    match Builder::new().name("skeleton".into()).spawn(pack) {
        Ok(thread) => match here.send(writer) {
            Ok(()) => Ok(Packer::There(to, thread)),
            Err(_) => Err(gone()),
        },
        Err(_) => Ok(Packer::Here(writer)),
    }
}

fn packed(thread: JoinHandle<Packed>) -> Packed {
    thread.join().unwrap_or_else(|_| Err(gone()))
}

fn gone() -> SkeletonError {
    SkeletonError::Codec(std::io::Error::other("the thread that packs has ended"))
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
