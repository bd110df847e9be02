//! Read-only memory maps of files.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Advice, Mmap};

/// A whole file, mapped read-only and shared.
///
/// Only for files that nobody changes once they have their name: metadata images, indexes. The contract is the
/// caller's, because the kernel offers no way to enforce it:
///
/// - If the file is **truncated** while mapped, touching what is gone raises `SIGBUS`, which ends the process. That
///   is the wanted outcome for damage by another process of the administrator: readers wait for a successor, nobody
///   is served zeros. The rest of the page at the new end reads as zeros, so a format must tell its own length.
/// - If the file is **rewritten** while mapped, the map shows the new bytes. So nothing that was checked stays
///   checked; files are replaced by renaming another one over them, never written in place.
/// - The length is that at the time of [`Map::of`]; a file that grows shows nothing of it.
#[derive(Debug)]
pub struct Map(Mmap);

impl Map {
    /// Maps a file that obeys the contract above. The file may be closed, renamed or unlinked afterwards.
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the memory stays mapped for the life of `Mmap`. That its bytes do not change under the references
        // handed out is the contract of this type: the files it is for are written under another name, synced and
        // renamed before anybody maps them, and never opened for writing again. No safe code can express that.
        unsafe { Mmap::map(file) }.map(Self)
    }

    /// Brings a range of the file into memory and into this process's page tables (Linux 5.14).
    ///
    /// It does not fail where the file is damaged or short: whoever touches it finds out.
    pub fn populate(&self, range: Range<usize>) {
        let _ = self.0.advise_range(Advice::PopulateRead, range.start, range.len()); // see above
    }

    /// Asks the kernel to read the whole file soon, so that a walk does not wait for each page.
    pub fn will_need(&self) -> io::Result<()> {
        self.0.advise(Advice::WillNeed)
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn maps_show_the_file_and_outlive_its_name() {
        for len in [0, 1, 4095, 4096, 4097, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            let map = Map::of(file.as_file()).unwrap();
            drop(file);
            map.will_need().unwrap();
            map.populate(0..bytes.len());
            assert_eq!(*map, *bytes);
        }
    }

    #[test]
    fn a_directory_cannot_be_mapped() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Map::of(&File::open(dir.path()).unwrap()).is_err());
    }
}
