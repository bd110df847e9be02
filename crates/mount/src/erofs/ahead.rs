//! How far ahead the kernel reads in a mount of EROFS from files, which has no device of its own.
//!
//! The kernel keeps the figure beside the file system (`struct backing_dev_info`) and shows it as
//! `/sys/class/bdi/erofs-<number>/read_ahead_kb`, which root can write. Nothing tells which number a mount got, so mounts are made one
//! at a time here, and what has appeared meanwhile is the mount's. Where another one is made in the same moment, in another way or by
//! another process, it cannot be told, and the kernel's figure stays.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const FOUND: &str = "/sys/class/bdi";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `mount`, which makes one mount, and then has the kernel read up to so many KiB ahead in it. That is a wish: where it cannot
/// be, a message says why.
/// Where another one is being made, `meanwhile` comes before the wait for that.
pub(super) fn with<T, E>(
    kib: u32,
    meanwhile: impl FnOnce(),
    mount: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let free = ONE_AT_A_TIME.try_lock().ok();
    let _one = free.unwrap_or_else(|| {
        meanwhile();
        ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
    });
    let before = mounts();
    let made = mount()?;
    if let Err(error) = set(&before, kib) {
        tracing::info!(kib, %error, "the kernel reads ahead as far as it likes");
    }
    Ok(made)
}

fn set(before: &BTreeSet<String>, kib: u32) -> io::Result<()> {
    let after = mounts();
    let mut new = after.difference(before);
    let (Some(name), None) = (new.next(), new.next()) else {
        return Err(io::Error::other("several mounts were made in the same moment, or none can be seen"));
    };
    fs::write(Path::new(FOUND).join(name).join("read_ahead_kb"), kib.to_string())
}

/// Returns what the kernel calls its mounts of EROFS from files; nothing where that cannot be seen.
fn mounts() -> BTreeSet<String> {
    let entries = fs::read_dir(FOUND).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("erofs-")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::erofs::{AHEAD, mount};
    use crate::sample::Sample;

    fn figure(name: &str) -> String {
        fs::read_to_string(Path::new(FOUND).join(name).join("read_ahead_kb"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    #[test]
    fn the_mount_that_was_made_reads_ahead() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let sample = Sample::make(dir.path()).unwrap();
        sample.fill().unwrap();
        let segments = File::open(sample.segments()).unwrap();
        // Other tests make and end mounts meanwhile: until one is made alone.
        let mut seen = Vec::new();
        for _ in 0..200 {
            let before = mounts();
            let made = mount(&sample.image(), &[sample.device(true)], &segments, None);
            let Ok(_made) = made else { testkit::skip!("no EROFS from files here: {made:?}") };
            let after = mounts();
            if after.is_empty() {
                testkit::skip!("the kernel shows no {FOUND}/erofs-*");
            }
            let new: Vec<_> = after.difference(&before).collect();
            if let [name] = new[..] {
                if figure(name) == AHEAD.to_string() {
                    return;
                }
                seen.push(figure(name));
            }
        }
        panic!("read ahead by {seen:?}");
    }
}
