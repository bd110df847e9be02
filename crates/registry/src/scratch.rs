//! Files without names, for what must be whole before it can go on. They go with whoever holds them, however that ends.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

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

/// Returns an empty file that nobody else can open. It never has a name (`O_TMPFILE`) where the file system can do that: who is
/// killed right after has left nothing.
pub(crate) fn file(dir: &Path) -> io::Result<File> {
    tempfile::tempfile_in(dir)
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
