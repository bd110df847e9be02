//! The structures of a blob: where its chunks are, and where its parts.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// [`MetaHeader::magic`].
pub const META_MAGIC: u32 = 0xb10b_b10b;

/// What a blob says of its units.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MetaHeader {
    /// [`META_MAGIC`].
    pub magic: U32,
    /// Bits of [`super::features`].
    pub features: U32,
    /// [`super::BlobRow::units_compressor`].
    pub units_compressor: U32,
    /// Number of units.
    pub units: U32,
    /// [`super::BlobRow::units_offset`].
    pub units_offset: U64,
    /// [`super::BlobRow::units_packed`].
    pub units_packed: U64,
    /// [`super::BlobRow::units_plain`].
    pub units_plain: U64,
    /// Where the contexts begin in the plain units.
    pub contexts_offset: U64,
    /// Length of the contexts in bytes.
    pub contexts_size: U64,
    /// Number of contexts.
    pub contexts: U32,
    /// 0.
    pub reserved: [u8; 4032],
    /// [`META_MAGIC`].
    pub magic2: U32,
}

/// Where a chunk is, by its number, as a blob itself has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Where it is in the blob, below 2^40; for one of a batch, where the batch is.
    pub packed_offset: u64,
    /// Length as it is stored; 0 for one of a batch.
    pub packed_size: u32,
    /// Where it is in plain space: a multiple of 4096 below 2^44.
    pub plain_offset: u64,
    /// Plain length, 1 to 16 MiB.
    pub plain_size: u32,
    /// What else [`UnitV2`] can say.
    pub flags: u8,
    /// What goes with the flags.
    pub data: u64,
}

/// Bits of [`Unit::flags`].
pub mod unit_flags {
    /// The chunk is packed.
    pub const PACKED: u8 = 0x1;
    /// The chunk is in a tar.gz: data is the number of the context, and in the lower 32 bits where in what comes out of it
    /// the chunk begins.
    pub const ZRAN: u8 = 0x2;
    /// The chunk is packed together with others: data is the number of the context, and in the lower 32 bits where
    /// in the plain batch it begins.
    pub const BATCH: u8 = 0x4;
    /// The chunk is encrypted.
    pub const ENCRYPTED: u8 = 0x8;
    /// Data is the CRC-32 of the plain bytes.
    pub const CRC32: u8 = 0x10;
    /// Every bit somebody has defined.
    pub const KNOWN: u8 = 0x1f;
}

const BITS_20: u64 = (1 << 20) - 1;
const BITS_24: u64 = (1 << 24) - 1;
const BITS_32: u64 = (1 << 32) - 1;
const BITS_40: u64 = (1 << 40) - 1;

/// A [`Unit`] in 16 bytes: without flags, and packed if its two lengths differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnitV1 {
    /// From the lowest bit: 8 of nothing, upper 4 of the length less 1, 32 of the offset in blocks, lower 20 of the length less 1.
    plain: U64,
    /// From the lowest bit: 40 of the offset, upper 4 of the length less 1, lower 20 of the length less 1.
    packed: U64,
}

impl UnitV1 {
    /// Encodes a unit; nothing if this form cannot say it.
    pub fn new(unit: &Unit) -> Option<Self> {
        let packed = u64::from(unit.packed_size.checked_sub(1)?);
        let plain = u64::from(unit.plain_size.checked_sub(1)?);
        if packed > BITS_24
            || plain > BITS_24
            || unit.packed_offset > BITS_40
            || unit.flags & !unit_flags::PACKED != 0
        {
            return None;
        }
        let block = block(unit.plain_offset)?;
        Some(Self {
            plain: U64::new((plain & BITS_20) << 44 | block << 12 | (plain >> 20) << 8),
            packed: U64::new((packed & BITS_20) << 44 | (packed >> 20) << 40 | unit.packed_offset),
        })
    }

    /// Decodes it.
    pub fn unit(&self) -> Unit {
        let (plain, packed) = (self.plain.get(), self.packed.get());
        let packed_size = short(packed >> 44 | (packed >> 40 & 15) << 20) + 1;
        let plain_size = short(plain >> 44 | (plain >> 8 & 15) << 20) + 1;
        Unit {
            packed_offset: packed & BITS_40,
            packed_size,
            plain_offset: plain & BITS_32 << 12,
            plain_size,
            flags: if packed_size == plain_size { 0 } else { unit_flags::PACKED },
            data: 0,
        }
    }
}

/// A [`Unit`] in 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UnitV2 {
    /// From the lowest bit: 32 of the offset in blocks, 24 of the length less 1, 8 of flags.
    plain: U64,
    /// From the lowest bit: 40 of the offset, 24 of the length.
    packed: U64,
    /// [`Unit::data`].
    data: U64,
}

impl UnitV2 {
    /// Encodes a unit; nothing if this form cannot say it.
    pub fn new(unit: &Unit) -> Option<Self> {
        let plain = u64::from(unit.plain_size.checked_sub(1)?);
        let packed = u64::from(unit.packed_size);
        if packed > BITS_24 || plain > BITS_24 || unit.packed_offset > BITS_40 {
            return None;
        }
        Some(Self {
            plain: U64::new(u64::from(unit.flags) << 56 | plain << 32 | block(unit.plain_offset)?),
            packed: U64::new(packed << 40 | unit.packed_offset),
            data: unit.data.into(),
        })
    }

    /// Decodes it.
    pub fn unit(&self) -> Unit {
        let (plain, packed) = (self.plain.get(), self.packed.get());
        Unit {
            packed_offset: packed & BITS_40,
            packed_size: short(packed >> 40),
            plain_offset: (plain & BITS_32) << 12,
            plain_size: short(plain >> 32 & BITS_24) + 1,
            flags: plain.to_be_bytes()[0],
            data: self.data.get(),
        }
    }
}

/// Returns an offset in blocks, if it is a number of blocks below 2^32.
fn block(offset: u64) -> Option<u64> {
    (offset & 0xfff == 0 && offset >> 12 <= BITS_32).then_some(offset >> 12)
}

/// Returns a number of 24 bits.
fn short(bits: u64) -> u32 {
    let [a, b, c, ..] = bits.to_le_bytes();
    u32::from_le_bytes([a, b, c, 0])
}

/// Chunks that are packed together.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BatchContext {
    /// Length as it is stored.
    pub packed_size: U32,
    /// Length of the chunks, back to back.
    pub plain_size: U32,
    /// 0.
    pub reserved: [u8; 32],
}

/// Where a tar.gz can be entered, and how far one gets from there. The windows follow the last one.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZranContext {
    /// Offset in the blob of the first whole byte.
    pub packed_offset: U64,
    /// Offset in the tar.
    pub plain_offset: U64,
    /// Where among the windows its own is: the output before it.
    pub window_offset: U64,
    /// Length in the blob up to where its last chunk is out.
    pub packed_size: U32,
    /// Length of what comes out.
    pub plain_size: U32,
    /// Length of the window.
    pub window_size: U32,
    /// The byte before the first whole one.
    pub byte: u8,
    /// So many of its highest bits come first.
    pub bits: u8,
    /// 0.
    pub reserved: [u8; 2],
}

/// Names of [`TocEntry`]s, and of the tar headers in a blob.
pub mod names {
    /// The chunks.
    pub const CHUNKS: &str = "image.blob";
    /// The units and contexts.
    pub const META: &str = "blob.meta";
    /// The [`super::MetaHeader`].
    pub const META_HEADER: &str = "blob.meta.header";
    /// The digests of chunks.
    pub const DIGESTS: &str = "blob.digest";
    /// The bootstrap.
    pub const BOOTSTRAP: &str = "image.boot";
    /// The table of contents; it does not list itself.
    pub const TOC: &str = "rafs.blob.toc";
}

/// Bits of [`TocEntry::flags`].
pub mod toc_flags {
    /// Not packed.
    pub const PLAIN: u32 = 1;
    /// Packed by zstd.
    pub const ZSTD: u32 = 2;
    /// Packed by lz4.
    pub const LZ4_BLOCK: u32 = 4;
}

/// A part of a blob.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TocEntry {
    /// One of [`toc_flags`].
    pub flags: U32,
    /// 0.
    pub reserved: U32,
    /// One of [`names`], then zeros.
    pub name: [u8; 16],
    /// SHA-256 of the plain bytes; zeros for the chunks.
    pub digest: [u8; 32],
    /// Where it is in the blob.
    pub packed_offset: U64,
    /// Length as it is stored.
    pub packed_size: U64,
    /// Plain length.
    pub plain_size: U64,
    /// 0.
    pub reserved2: [u8; 48],
}

const _: () = {
    assert!(size_of::<MetaHeader>() == 4096);
    assert!(size_of::<UnitV1>() == 16);
    assert!(size_of::<UnitV2>() == 24);
    assert!(size_of::<BatchContext>() == 40);
    assert!(size_of::<ZranContext>() == 40);
    assert!(size_of::<TocEntry>() == 128);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unit_has_its_bits_where_the_reference_has_them() {
        let unit = Unit {
            packed_offset: 0x12_3456_789a,
            packed_size: 0xab_cdef,
            plain_offset: 0xfed_cba9_8000,
            plain_size: 0x12_3457,
            flags: unit_flags::PACKED,
            data: 7 << 32 | 5,
        };
        let v1 = UnitV1::new(&unit).unwrap();
        assert_eq!(v1.plain.get(), 0x2345_6fed_cba9_8100);
        assert_eq!(v1.packed.get(), 0xbcde_ea12_3456_789a);
        let v2 = UnitV2::new(&unit).unwrap();
        assert_eq!(v2.plain.get(), 0x0112_3456_fedc_ba98);
        assert_eq!(v2.packed.get(), 0xabcd_ef12_3456_789a);
        assert_eq!(v2.unit(), unit);
    }

    #[test]
    fn what_a_unit_cannot_say_is_refused() {
        let unit =
            Unit { packed_offset: 0, packed_size: 1, plain_offset: 0, plain_size: 1, flags: 0, data: 0 };
        for (bad, in_v2) in [
            (Unit { packed_offset: 1 << 40, ..unit }, false),
            (Unit { plain_offset: 1 << 44, ..unit }, false),
            (Unit { plain_offset: 512, ..unit }, false),
            (Unit { plain_size: 0, ..unit }, false),
            (Unit { plain_size: (1 << 24) + 1, ..unit }, false),
            (Unit { packed_size: (1 << 24) + 1, ..unit }, false),
            (Unit { packed_size: 0, ..unit }, true),
            (Unit { flags: unit_flags::BATCH, ..unit }, true),
        ] {
            assert_eq!(UnitV1::new(&bad), None, "{bad:?}");
            assert_eq!(UnitV2::new(&bad).is_some(), in_v2, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn units_come_back(
            packed_offset in 0..1_u64 << 40, packed_size in 1..1_u32 << 24,
            block in any::<u32>(), plain_size in 1..=1_u32 << 24, flags: u8, data: u64,
        ) {
            let plain_offset = u64::from(block) << 12;
            let unit = Unit { packed_offset, packed_size, plain_offset, plain_size, flags, data };
            prop_assert_eq!(UnitV2::new(&unit).unwrap().unit(), unit);
            let flags = u8::from(packed_size != plain_size);
            let unit = Unit { flags, data: 0, ..unit };
            prop_assert_eq!(UnitV1::new(&unit).unwrap().unit(), unit);
        }
    }
}
