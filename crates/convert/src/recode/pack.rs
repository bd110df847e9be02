//! Whole pieces to gzip members and zstd frames.
//!
//! A piece is in memory before it is packed, so nothing is kept from one to the next, and any thread may pack any of
//! them. The bytes depend on piece and level alone, for one version of the libraries.

use zstd::zstd_safe::CParameter;

use super::{RecodeError, Target};

/// libdeflate's level for each of gzip's, from 1 on: the lowest whose output is no longer than zlib's on the largest layer of
/// `nginx` (`benches/recode.rs`). So 9, which takes zlib 7.9 s for 190 MB, takes 1.6 s here. Above 9 there is no zlib to
/// compare with, but still something to be had: at 11 a member for each file costs no more than what is saved, so that eStargz is
/// about as long as a layer of zlib's 9.
const GZIP: [i32; 12] = [1, 1, 2, 2, 2, 3, 4, 4, 5, 7, 10, 12];

/// Levels of zstd.
const ZSTD: std::ops::RangeInclusive<i32> = 1..=22;

/// What stargz-snapshotter's writer takes unless told otherwise.
const OWN_GZIP: i32 = 9;

/// What zstd takes.
const OWN_ZSTD: i32 = 3;

/// What containers/storage's writer takes: many short frames gain from it, 5 % against level 3.
const OWN_CHUNKED: i32 = 10;

/// A level of one of the two libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Gzip(i32),
    Zstd(i32),
    /// Zstd without sums of its own: for what has other ones.
    Bare(i32),
}

impl Level {
    /// Returns the level asked for of bare zstd, or zstd's own.
    pub(super) fn bare(level: Option<i32>) -> Result<Self, RecodeError> {
        match Self::of(Target::Zstd, level)? {
            Self::Zstd(level) => Ok(Self::Bare(level)),
            other => Ok(other),
        }
    }

    /// Returns the level asked for, or the target's own.
    pub(super) fn of(target: Target, level: Option<i32>) -> Result<Self, RecodeError> {
        match target {
            Target::EStargz | Target::Gzip => {
                let level = level.unwrap_or(OWN_GZIP);
                let place = usize::try_from(level).ok().and_then(|level| level.checked_sub(1));
                let packer = place.and_then(|place| GZIP.get(place));
                packer.map(|level| Self::Gzip(*level)).ok_or(RecodeError::Level { level, least: 1, most: 12 })
            }
            Target::Zstd | Target::ZstdChunked => {
                let own = if target == Target::Zstd { OWN_ZSTD } else { OWN_CHUNKED };
                match level.unwrap_or(own) {
                    level if ZSTD.contains(&level) => Ok(Self::Zstd(level)),
                    level => Err(RecodeError::Level { level, least: *ZSTD.start(), most: *ZSTD.end() }),
                }
            }
        }
    }
}

/// Packs pieces; for one thread.
pub(super) struct Packer {
    codec: Codec,
    room: Vec<u8>,
}

enum Codec {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    pub(super) fn new(level: Level) -> Result<Self, RecodeError> {
        let codec = match level {
            Level::Gzip(level) => {
                let level = libdeflater::CompressionLvl::new(level)
                    .map_err(|_| RecodeError::Pack("gzip has no such level".into()))?;
                Codec::Gzip(libdeflater::Compressor::new(level))
            }
            Level::Zstd(number) | Level::Bare(number) => {
                let mut zstd = zstd::bulk::Compressor::new(number).map_err(pack)?;
                // As zstd(1) and the writers of zstd:chunked have it.
                let sums = matches!(level, Level::Zstd(_));
                zstd.set_parameter(CParameter::ChecksumFlag(sums)).map_err(pack)?;
                Codec::Zstd(zstd)
            }
        };
        Ok(Self { codec, room: Vec::new() })
    }

    /// Appends a piece as one member or frame; says how long that is.
    pub(super) fn pack(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<usize, RecodeError> {
        let bound = match &mut self.codec {
            Codec::Gzip(gzip) => gzip.gzip_compress_bound(plain.len()),
            Codec::Zstd(_) => zstd::zstd_safe::compress_bound(plain.len()),
        };
        if self.room.len() < bound {
            self.room.resize(bound, 0);
        }
        let len = match &mut self.codec {
            Codec::Gzip(gzip) => gzip
                .gzip_compress(plain, &mut self.room)
                .map_err(|error| RecodeError::Pack(error.to_string()))?,
            Codec::Zstd(zstd) => zstd.compress_to_buffer(plain, &mut self.room[..]).map_err(pack)?,
        };
        out.extend_from_slice(&self.room[..len]);
        Ok(len)
    }
}

fn pack(error: std::io::Error) -> RecodeError {
    RecodeError::Pack(error.to_string())
}
