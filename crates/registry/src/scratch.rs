//! Files without names, for what must be whole before it can go on. They go with whoever holds them, however that ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns where they are unless there is a better place: `TMPDIR`, else `/var/tmp`, for `/tmp` may be memory.
pub(crate) fn dir() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(dir) if !dir.is_empty() => dir.into(),
        _ => "/var/tmp".into(),
    }
}

/// Returns an empty file where they are, that nobody else can open.
pub fn scratch() -> io::Result<File> {
    file(&dir())
}

/// Returns an empty file that nobody else can open.
pub(crate) fn file(dir: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!(".tmp-{}-{nanos}-{count}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [file(dir.path()).unwrap(), file(dir.path()).unwrap()];
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        one.write_all_at(b"one", 0).unwrap();
        assert_eq!((one.metadata().unwrap().len(), other.metadata().unwrap().len()), (3, 0));
        assert!(file(&dir.path().join("missing")).is_err());
    }
}
