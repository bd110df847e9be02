//! How much of a file the kernel has in its page cache.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::MmapOptions;

/// Bytes that are asked about at once: 256 KiB of answers with pages of 4 KiB.
const STEP: u64 = 1 << 30;

/// Returns how many bytes of a range of a file are in the page cache, counted in whole pages.
///
/// The kernel tells only whoever owns the file or may write to it; to all others it says that everything is there
/// (`mincore(2)`, since Linux 5.2). No page is read, and the answer is out of date when it is given.
pub fn cached(file: &File, range: Range<u64>) -> io::Result<u64> {
    // SAFETY: it takes a number and returns one.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let (mut at, mut found) = (range.start - range.start % page as u64, 0);
    while at < range.end {
        let now = usize::try_from((range.end - at).min(STEP)).map_err(io::Error::other)?;
        // Never looked at, so that it does not matter what becomes of the file.
        let map = MmapOptions::new().offset(at).len(now).map_raw_read_only(file)?;
        let mut pages = vec![0_u8; now.div_ceil(page)];
        // SAFETY: the range is that of the map, which lives; the kernel writes a byte for each page of it, as many as there is
        // room for. No safe wrapper has this call.
        let answer = unsafe { libc::mincore(map.as_mut_ptr().cast(), now, pages.as_mut_ptr()) };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        found += pages.iter().filter(|here| **here & 1 == 1).count() as u64;
        at += now as u64;
    }
    Ok((found * page as u64).min(range.end.saturating_sub(range.start)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write as _};

    use super::*;

    #[test]
    fn what_was_read_is_cached_and_what_was_dropped_is_not() {
        // On a disk: what is in memory anyway cannot be dropped.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let len = 40 * 4096 + 17;
        file.write_all(&vec![7; len]).unwrap();
        assert_eq!(cached(&file, 0..len as u64).unwrap(), len as u64);
        assert_eq!(cached(&file, 0..0).unwrap(), 0);
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        if cached(&file, 0..len as u64).unwrap() > 0 {
            testkit::skip!("this file system does not let go of its pages");
        }
        let mut page = [0; 4096];
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_exact(&mut page).unwrap();
        let found = cached(&file, 0..len as u64).unwrap();
        assert!((4096..len as u64).contains(&found), "{found}");
    }
}
