//! Mounts a metadata image whose segments are all in files: for measuring and for looking around.
//!
//! `serve IMAGE DIR SEGMENT…` mounts on DIR until it is unmounted; device n is the n-th SEGMENT.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use format::IndexId;
use format::erofs::read::Image;
use mount::fuse::{Options, Server};
use store::{ReadError, SegmentFile, Segments};

/// Segments by number alone; all are there.
struct Files(Vec<Arc<SegmentFile>>);

impl Segments for Files {
    fn local(&self, _: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        self.0.get(usize::try_from(segment).ok()?).cloned()
    }
    fn fetch(&self, index: IndexId, segment: u32, _: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        self.local(index, segment).ok_or(ReadError::Unknown { index, segment })
    }
    fn hint(&self, _: IndexId, _: Range<u32>) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, dir, segments @ ..] = args.as_slice() else {
        return Err("usage: serve IMAGE DIR SEGMENT…".into());
    };
    let image = Image::open(sys::map::Map::of(&File::open(image)?)?)?;
    let open = |path: &std::ffi::OsString| {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Arc::new(SegmentFile::new(file, len)))
    };
    let files = Files(segments.iter().map(open).collect::<io::Result<_>>()?);
    let mut options = Options::default();
    if let Some(threads) = std::env::var("THREADS").ok().and_then(|n| n.parse().ok()) {
        options.threads = threads;
    }
    options.read_ahead_kib = std::env::var("READ_AHEAD").ok().and_then(|n| n.parse().ok());
    let mut mounted = Server::new(Arc::new(image), Arc::new(files)).with(options).mount(Path::new(dir))?;
    mounted.wait()?;
    Ok(())
}
