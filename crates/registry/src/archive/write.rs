//! Writes an OCI archive from its beginning to its end: a plain tar file (POSIX.1-2001 `ustar`).
//!
//! `oci-layout`, the blobs as they come, then `index.json`. A file is written under another name and gets its own when
//! it is whole; one that was there is replaced then.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use format::Digest;

use super::BLOCK;
use crate::error::Error;
use crate::layout::{MARKER, NAME, blob_name, fits};
use crate::manifest::{Descriptor, ImageIndex};
use crate::names::LayoutName;

/// An archive that is being written; what is not finished goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Standard output, if there is none.
    path: Option<PathBuf>,
    /// Held while a piece is written; one thing is written after the other.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    out: Out,
    there: HashSet<Digest>,
}

#[derive(Debug)]
enum Out {
    /// A file, what it is called, and what it will be called.
    Draft(File, PathBuf, PathBuf),
    Stdout,
    /// It has its name.
    Named,
}

impl Writer {
    /// Begins an archive; without path, on standard output.
    pub(crate) fn create(path: Option<PathBuf>) -> Result<Self, Error> {
        let out = match &path {
            None => Out::Stdout,
            Some(path) => {
                let doing = |error| Error::io(format!("creating {}", path.display()), error);
                // A device or a pipe would be replaced, and so would what a link leads to.
                let is_free = match std::fs::symlink_metadata(path) {
                    Ok(there) => there.is_file(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => path.file_name().is_some(),
                    Err(error) => return Err(doing(error)),
                };
                if !is_free {
                    return Err(doing(io::Error::other("there is something that is no file")));
                }
                // Nobody has it, or a link of its name.
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let nanos = since.unwrap_or_default().as_nanos();
                let draft = path.with_file_name(format!(".tmp-{}-{nanos}", std::process::id()));
                Out::Draft(File::create_new(&draft).map_err(doing)?, draft, path.clone())
            }
        };
        let state = Mutex::new(State { out, there: HashSet::new() });
        let writer = Self { path, state };
        for dir in ["blobs/", "blobs/sha256/"] {
            writer.write(&header(dir, 0, b'5'))?;
        }
        writer.member("oci-layout", MARKER)?;
        Ok(writer)
    }

    /// Returns the directory that it will be in, if it will be a file.
    pub(crate) fn dir(&self) -> Option<PathBuf> {
        let dir = self.path.as_ref()?.parent()?;
        Some(if dir == Path::new("") { ".".into() } else { dir.into() })
    }

    /// Begins a blob of so many bytes; says whether it is not there yet.
    pub(crate) fn begin(&self, blob: &Digest, size: u64) -> Result<bool, Error> {
        if !self.state().there.insert(*blob) {
            return Ok(false);
        }
        self.write(&header(&blob_name(blob), size, b'0')).map(|()| true)
    }

    /// Writes some of it.
    pub(crate) fn write(&self, piece: &[u8]) -> Result<(), Error> {
        let mut state = self.state();
        let written = match &mut state.out {
            Out::Draft(file, ..) => file.write_all(piece),
            Out::Stdout => io::stdout().lock().write_all(piece),
            Out::Named => Err(io::Error::other("it is complete")),
        };
        written.map_err(|error| self.failed(error))
    }

    /// Ends a blob of so many bytes.
    pub(crate) fn end(&self, size: u64) -> Result<(), Error> {
        let padding = size.next_multiple_of(BLOCK) - size;
        self.write(&[0; 512][..usize::try_from(padding).unwrap_or_default()]) // below 512
    }

    /// Writes the list of what is in it, under names or without, makes it durable and gives it its name.
    pub(crate) fn finish(&self, entries: Vec<(Descriptor, Option<LayoutName>)>) -> Result<(), Error> {
        let mut index = ImageIndex::empty();
        for (mut entry, name) in entries {
            entry.annotations.extend(name.map(|name| (NAME.to_owned(), name.to_string())));
            index.put(&entry, |_| false);
        }
        let text = serde_json::to_vec(&index).map_err(|error| self.failed(error.into()))?;
        fits(&text)?;
        self.member("index.json", &text)?;
        self.write(&[0; 1024])?;
        let mut state = self.state();
        let named = match &state.out {
            Out::Stdout => io::stdout().lock().flush(),
            Out::Draft(file, draft, path) => file.sync_all().and_then(|()| {
                std::fs::rename(draft, path)?;
                let dir = path.parent().filter(|dir| *dir != Path::new(""));
                File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
            }),
            Out::Named => Ok(()),
        };
        named.map_err(|error| self.failed(error))?;
        state.out = Out::Named;
        Ok(())
    }

    fn member(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.write(&header(name, bytes.len() as u64, b'0'))?;
        self.write(bytes)?;
        self.end(bytes.len() as u64)
    }

    fn failed(&self, error: io::Error) -> Error {
        let to = self.path.as_ref().map_or("stdout".into(), |path| path.display().to_string());
        Error::io(format!("writing an OCI archive to {to}"), error)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Out::Draft(_, draft, _) = &self.state().out {
            let _ = std::fs::remove_file(draft); // what remains is only untidy
        }
    }
}

/// Returns the header of a member: mode 0644 or 0755, owner 0, time 0.
fn header(name: &str, size: u64, kind: u8) -> [u8; 512] {
    let mut header = [0; 512];
    // All our names are shorter than the field.
    header[..name.len()].copy_from_slice(name.as_bytes());
    let mode: &[u8] = if kind == b'5' { b"0000755\0" } else { b"0000644\0" };
    header[100..108].copy_from_slice(mode);
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    if size < 1 << 33 {
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        // Eleven octal digits end at 8 GiB; GNU's way of writing more is known to all.
        header[124] = 0x80;
        header[128..136].copy_from_slice(&size.to_be_bytes());
    }
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::members;

    #[test]
    fn what_is_written_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        std::fs::write(&path, b"before").unwrap();
        let writer = Writer::create(Some(path.clone())).unwrap();
        let blob = Digest::of(b"content");
        assert!(writer.begin(&blob, 7).unwrap());
        writer.write(b"content").unwrap();
        writer.end(7).unwrap();
        assert!(!writer.begin(&blob, 7).unwrap(), "once");
        assert_eq!(std::fs::read(&path).unwrap(), b"before", "not before it is whole");
        writer.finish(Vec::new()).unwrap();
        drop(writer);
        let found = members(&mut File::open(&path).unwrap()).unwrap();
        let mut names: Vec<_> = found.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, [&*blob_name(&blob), "index.json", "oci-layout"]);
        assert_eq!(found[&blob_name(&blob)].len, 7);

        drop(Writer::create(Some(path.clone())).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a draft that was given up");
    }

    #[test]
    fn long_members_have_their_length() {
        for size in [0, 1, (1 << 33) - 1, 1 << 33, 1 << 40] {
            assert_eq!(super::super::number(&header("x", size, b'0')[124..136]), Some(size));
        }
    }
}
