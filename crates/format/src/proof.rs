//! Whether an index tells the truth about the layer its image's config names.
//!
//! Chunks that match their hashes prove that bytes are what the *index* says. Skeleton and payload put together
//! again are the layer's tar, and its SHA-256 is the diffID the (signed) config says. Blob and diffID that were
//! hashed while the index was made prove the same.

use crate::digest::{DiffId, Digest, DigestHasher, IndexId};
use crate::index::Index;
use crate::layer::Layer;
use crate::skeleton::{RestoreError, restore};

/// Payload that is hashed at once.
const PIECE: usize = 256 << 10;

/// Evidence that an index is true. Made only here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proved(IndexId);

/// Why an index is not true: a digest that was computed is not the one it states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {what} is {found}, expected {expected}")]
pub struct Mismatch {
    /// Which digest.
    pub what: &'static str,
    /// What the index says.
    pub expected: Digest,
    /// What was computed.
    pub found: Digest,
}

impl Proved {
    /// Returns the evidence, from the digests of the whole blob and of the whole tar that came out of it.
    pub fn by_digests(index: &Index, blob: Digest, tar: Digest) -> Result<Self, Mismatch> {
        let stated = [
            ("SHA-256 of the blob", index.source().blob, blob),
            ("diffID of the layer", *index.facts().diff_id.digest(), tar),
        ];
        for (what, expected, found) in stated {
            if expected != found {
                return Err(Mismatch { what, expected, found });
            }
        }
        Ok(Self(index.id()))
    }

    /// Returns the evidence, from payload that is here: `read` fills a buffer from an offset in payload space.
    ///
    /// The inner result is the verdict; the outer one says whether there is any.
    pub fn by_payload<E: From<std::io::Error>>(
        layer: &Layer,
        read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<Result<Self, Mismatch>, E> {
        let expected = layer.facts().diff_id;
        let found = diff_id(layer, read)?;
        Ok(if expected == found {
            Ok(Self(layer.id()))
        } else {
            Err(Mismatch {
                what: "diffID of the layer",
                expected: *expected.digest(),
                found: *found.digest(),
            })
        })
    }

    /// Returns which index is true.
    pub fn index(&self) -> IndexId {
        self.0
    }
}

/// Returns the diffID of the tar made of a layer's skeleton and this payload.
fn diff_id<E: From<std::io::Error>>(
    layer: &Layer,
    mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
) -> Result<DiffId, E> {
    let mut tar = DigestHasher::new();
    let skeleton = layer.index().read_skeleton().map_err(std::io::Error::other)?;
    let segment = layer.layout().segment_size();
    let fill = |at, buf: &mut [u8]| read(buf, at);
    let restored = restore(skeleton, segment, PIECE, fill, |bytes| {
        tar.update(bytes);
        Ok(())
    });
    match restored {
        Ok(_) => Ok(DiffId::new(tar.finish())),
        Err(RestoreError::Caller(error)) => Err(error),
        // Not seen after `Layer::open`, which has read this very skeleton.
        Err(RestoreError::Skeleton(error)) => Err(std::io::Error::other(error).into()),
        Err(RestoreError::Tar(error)) => Err(std::io::Error::other(error).into()),
        Err(RestoreError::Space(error)) => Err(std::io::Error::other(error).into()),
    }
}
