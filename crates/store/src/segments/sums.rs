//! What the whole segments of a layer hash to, for layers whose index cannot tell of a segment by itself.
//!
//! A file beside the segments, `device/<id>/sums`: records of 36 bytes, number of a segment u32 and BLAKE3 of its bytes,
//! little-endian; of several for one segment the last counts. A record is appended before its segment is, so after a crash a
//! segment without one, or with another one, is fetched again. A torn record is filled up with ones, so that it is of no
//! other segment. Lost, the file costs a fetch of what is suspect; what is not is believed, and cannot be checked again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::fs::{Disk, read_whole};
use crate::guard;

/// The name of the file; segments are numbers.
const NAME: &str = "sums";
const ROW: usize = 36;

/// Most that is read: each of 16,384 segments fetched a hundred times. A longer file is removed.
const LIMIT: u64 = 64 << 20;

/// The sums of one layer.
#[derive(Debug)]
pub(super) struct Sums {
    path: PathBuf,
    /// Held across the append of a record.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sums: HashMap<u32, [u8; 32]>,
    /// The file and its length; opened with the first append.
    file: Option<(File, u64)>,
}

impl Sums {
    /// Reads what is there.
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> Self {
        let path = dir.join(NAME);
        let bytes = read_whole(disk, &path, LIMIT).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, path = %path.display(), "sums of segments are lost");
                if error.kind() == io::ErrorKind::InvalidData {
                    let _ = disk.remove_file(&path); // it stays, and is as lost
                }
            }
            Vec::new()
        });
        let (rows, _torn) = bytes.as_chunks::<ROW>();
        let row = |row: &[u8; ROW]| {
            let (number, sum) = row.split_first_chunk()?;
            Some((u32::from_le_bytes(*number), <[u8; 32]>::try_from(sum).ok()?))
        };
        // A crash may leave zeros behind what was written.
        let sums = rows.iter().filter_map(row).filter(|(_, sum)| *sum != [0; 32]).collect();
        Self { path, known: Mutex::new(Known { sums, file: None }) }
    }

    /// Records what a segment is about to be.
    pub(super) fn put(&self, disk: &dyn Disk, segment: u32, bytes: &[u8]) -> io::Result<()> {
        let sum = *blake3::hash(bytes).as_bytes();
        let mut known = guard::lock(&self.known);
        if known.sums.get(&segment) == Some(&sum) {
            return Ok(());
        }
        let (file, end) = match known.file.take() {
            Some(open) => open,
            None => {
                let file = match disk.open_append(&self.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(&self.path)?,
                    file => file?,
                };
                let end = file.metadata()?.len();
                (file, end)
            }
        };
        // Behind a torn record, which then says something wrong of the segment it was about, and of no other.
        let mut rows = vec![0xff; usize::try_from(end.next_multiple_of(ROW as u64) - end).unwrap_or(0)];
        rows.extend_from_slice(&segment.to_le_bytes());
        rows.extend_from_slice(&sum);
        disk.append(&file, end, &rows)?; // if it fails the file is opened anew, to see how far it went
        known.sums.insert(segment, sum);
        known.file = Some((file, end + rows.len() as u64));
        Ok(())
    }

    /// Says whether these are the bytes of a segment; nothing if that is not known.
    pub(super) fn is(&self, segment: u32, bytes: &[u8]) -> Option<bool> {
        let sum = *blake3::hash(bytes).as_bytes();
        guard::lock(&self.known).sums.get(&segment).map(|known| *known == sum)
    }

    /// Makes the records durable.
    pub(super) fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        match disk.open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => disk.sync(&file?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::RealDisk;

    #[test]
    fn a_record_torn_anywhere_is_of_no_other_segment() {
        for torn in 0..=ROW {
            let home = tempfile::tempdir().unwrap();
            let disk = RealDisk::open(home.path()).unwrap();
            let here = Path::new("");
            let sums = Sums::open(&disk, here);
            sums.put(&disk, 0, b"zero").unwrap();
            sums.put(&disk, 0x0403_0201, b"torn").unwrap();
            let path = home.path().join(NAME);
            File::options().write(true).open(&path).unwrap().set_len((ROW + torn) as u64).unwrap();
            let sums = Sums::open(&disk, here);
            sums.put(&disk, 7, b"seven").unwrap();
            let sums = Sums::open(&disk, here);
            assert_eq!((sums.is(0, b"zero"), sums.is(0, b"other")), (Some(true), Some(false)));
            assert_eq!(sums.is(7, b"seven"), Some(true), "torn at {torn}");
            assert_eq!([1, 2, 3, 0x0201].map(|n| sums.is(n, b"")), [None; 4]);
            assert_eq!(sums.is(0x0403_0201, b"torn") == Some(true), torn == ROW);
        }
    }
}
