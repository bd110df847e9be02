//! The image of a layer: what is beside the bytes of its files is read, those are told by their place.

use super::super::disk::{BLOCK, SuperBlock};
use super::{Image, OpenError, super_block};
use crate::limits;

/// The first block of a layer's image.
#[derive(Debug, Clone)]
pub struct LayerHead {
    sb: SuperBlock,
}

impl LayerHead {
    /// Reads it; an image that has devices is none of a layer.
    pub fn read(block: &[u8; BLOCK]) -> Result<Self, OpenError> {
        let sb = super_block(block)?;
        if sb.devices.get() != 0 {
            return Err(OpenError::Devices);
        }
        Ok(Self { sb })
    }

    /// Returns where names and attributes are: from there to the end.
    pub fn meta(&self) -> u64 {
        u64::from(self.sb.meta_block.get().min(self.sb.xattr_block.get())) * limits::BLOCK
    }

    /// Returns the length of the image.
    pub fn len(&self) -> u64 {
        u64::from(self.sb.blocks.get()) * limits::BLOCK
    }

    /// Says that there is nothing in it, not even names.
    pub fn is_empty(&self) -> bool {
        self.len() <= self.meta()
    }

    /// Opens the image; `bytes` are those from [`meta`](Self::meta) to its end.
    pub fn open<B: AsRef<[u8]>>(self, bytes: B) -> Result<Image<B>, OpenError> {
        let (origin, whole, is) = (self.meta(), self.len(), bytes.as_ref().len());
        let must = whole.saturating_sub(origin);
        if is as u64 != must {
            return Err(OpenError::Short { is: is as u64, must });
        }
        let unrooted = Image { origin, whole: Some(whole), ..Image::of(bytes, &self.sb, is) };
        unrooted.rooted().map_err(OpenError::Root)
    }
}
