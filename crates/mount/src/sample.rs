//! An image of one small file, with its segment, to try things with.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use format::IndexId;
use format::erofs::write::{self, LayerDevices};
use format::payload::SegmentSize;
use format::tar::{Member, MemberKind, Placer};
use format::tree::{Builder, Time};

use crate::erofs::{Device, remove_point};

/// Length of the file.
const LEN: usize = 8192;

/// Its layer.
pub(crate) const INDEX: IndexId = IndexId::from_bytes([0xf1; 32]);

/// Makes a directory for a trial inside another one, has it used, and takes it away again, with what may be mounted at
/// `point` in it. `prepare` says of an error that there is no place to try.
pub(crate) fn within<E>(
    dir: &Path,
    kind: &str,
    point: &str,
    prepare: impl Fn(&Path, io::Error) -> E,
    trial: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let dir = dir.join(format!("{kind}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir); // of a process that had our number and was killed
    fs::create_dir(&dir).map_err(|error| prepare(&dir, error))?;
    let tried = trial(&dir);
    remove_point(&dir.join(point));
    let _ = fs::remove_dir_all(&dir); // swept at the next start of the store
    tried
}

/// Reads a file to its end.
pub(crate) fn whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map(|_| bytes)
}

/// The image, below a directory.
pub(crate) struct Sample {
    dir: PathBuf,
    content: Vec<u8>,
}

impl Sample {
    /// Writes the metadata image, and makes the directory of the segment, which is not there yet.
    pub(crate) fn make(dir: &Path) -> io::Result<Self> {
        let member = Member {
            path: (*b"file").into(),
            kind: MemberKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Default::default(),
            plain: 512,
            payload: LEN as u64,
        };
        let size = SegmentSize::from_bits(16).ok_or(io::ErrorKind::InvalidInput)?;
        let (mut placer, mut builder) = (Placer::new(size), Builder::new());
        let placed = placer.member(&member).map_err(io::Error::other)?;
        builder.layer().map_err(io::Error::other)?;
        builder.member(&member, placed).map_err(io::Error::other)?;
        let devices = LayerDevices { index: INDEX, segment: size, lens: vec![2] }; // blocks of 4 KiB
        let image = write::image(&builder.finish(), &[devices]).map_err(io::Error::other)?;
        let sample = Self { dir: dir.to_owned(), content: (1..=251).cycle().take(LEN).collect() };
        fs::write(sample.image(), image)?;
        fs::create_dir_all(sample.segments().join(INDEX.hex()))?;
        Ok(sample)
    }

    /// Makes the segment so many bytes long.
    pub(crate) fn cut(&self, len: usize) -> io::Result<()> {
        fs::write(self.segment(), &self.content[..len.min(self.content.len())])
    }

    /// Makes the segment whole.
    pub(crate) fn fill(&self) -> io::Result<()> {
        fs::write(self.segment(), &self.content)
    }

    /// Returns where the metadata image is.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("image")
    }

    /// Returns the directory of the segments of all layers.
    pub(crate) fn segments(&self) -> PathBuf {
        self.dir.join("segments")
    }

    /// Returns the file of the segment.
    pub(crate) fn segment(&self) -> PathBuf {
        self.segments().join(INDEX.hex()).join("0")
    }

    /// Returns its entry in the device table.
    pub(crate) fn device(&self, whole: bool) -> Device {
        Device { index: INDEX, segment: 0, whole }
    }

    /// Returns what the file holds.
    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }
}
