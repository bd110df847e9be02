//! OCI layouts (image spec 1.1, image-layout.md): a directory, or the same in a plain tar file. What `docker save` and
//! skopeo's `dir:` write is seen as such a layout ([`docker`], [`flat`]), and only read.
//!
//! Gives what the client gives: manifests and configs checked, ranges of blobs unchecked, and the artifacts that
//! refer to an image, which are the entries of `index.json` whose manifest has that subject. A directory can also
//! be written to: content first, made durable, then the `index.json` that names it.

pub(crate) mod docker;
pub(crate) mod flat;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use format::{Digest, limits as sizes};
use tokio::sync::mpsc;

use crate::archive::{self, Member};
use crate::blob::RangeReader;
use crate::content::{Content, Pieces};
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, ImageIndex, Manifest, is_manifest};
use crate::names::{LayoutName, Tag};
use crate::push::Pushed;
use crate::reference::LayoutPath;
use crate::referrers::referrer;

/// Pieces of a blob that are in memory while it is written.
const PIECES: usize = 4;

/// What `oci-layout` says.
pub(crate) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The annotation that names an image.
pub(crate) const NAME: &str = "org.opencontainers.image.ref.name";

/// An OCI layout that was opened. Clones share it.
#[derive(Debug, Clone)]
pub struct Layout(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    kind: Kind,
    /// What has been put together from files of another form, by the names it would have in a layout.
    made: HashMap<String, Bytes>,
}

#[derive(Debug)]
enum Kind {
    Dir,
    Flat,
    Archive(Members),
    Docker(Members),
}

#[derive(Debug)]
struct Members {
    file: Arc<File>,
    by_name: HashMap<String, Member>,
}

impl Layout {
    /// Opens a directory.
    pub async fn open_dir(path: &Path) -> Result<Self, Error> {
        let layout = Self::new(path, Kind::Dir, HashMap::new());
        layout.check_version().await?;
        Ok(layout)
    }

    /// Opens a directory as skopeo's `dir:` writes it.
    pub(crate) async fn open_flat(path: &Path) -> Result<Self, Error> {
        let found = Self::new(path, Kind::Flat, HashMap::new());
        let made = flat::shown(found.small("manifest.json").await, &found.to_string())?;
        Ok(Self::new(path, Kind::Flat, made))
    }

    fn new(path: &Path, kind: Kind, made: HashMap<String, Bytes>) -> Self {
        Self(Arc::new(Inner { path: path.into(), kind, made }))
    }

    /// Opens a directory; makes it a layout if it is missing or empty.
    pub async fn create_dir(path: &Path) -> Result<Self, Error> {
        let target = path.to_owned();
        blocking("creating an OCI layout", move || {
            let doing = |error| Error::io(format!("creating {}", target.display()), error);
            std::fs::create_dir_all(target.join("blobs/sha256")).map_err(doing)?;
            if !target.join("oci-layout").exists() {
                let empty = serde_json::to_vec(&ImageIndex::empty()).map_err(|error| doing(error.into()))?;
                if !target.join("index.json").exists() {
                    replace(&target, "index.json", &empty)?;
                }
                replace(&target, "oci-layout", MARKER)?;
            }
            Ok(())
        })
        .await?;
        Self::open_dir(path).await
    }

    /// Opens a tar file, that on standard input when all of it has come. Its members are located once.
    pub(crate) async fn open_archive(place: &LayoutPath) -> Result<Self, Error> {
        let Members { file, by_name } = Self::members(place).await?;
        let layout = Self::new(place.path(), Kind::Archive(Members { file, by_name }), HashMap::new());
        layout.check_version().await?;
        Ok(layout)
    }

    /// Opens a tar file that docker saved in the same way.
    pub(crate) async fn open_docker(place: &LayoutPath) -> Result<Self, Error> {
        let Members { file, mut by_name } = Self::members(place).await?;
        let (what, archive) = (format!("docker-archive:{}", place.path().display()), file.clone());
        let shown = move || docker::shown(&archive, &mut by_name, &what).map(|made| (by_name, made));
        let (by_name, made) = blocking("opening an archive", shown).await?;
        Ok(Self::new(place.path(), Kind::Docker(Members { file, by_name }), made))
    }

    async fn members(place: &LayoutPath) -> Result<Members, Error> {
        let path = place.path().to_owned();
        let given = if place.is_standard() { Some(archive::stdin::keep().await?) } else { None };
        blocking("opening an archive", move || {
            let doing = |error| Error::io(format!("opening {}", path.display()), error);
            let mut file = given.map_or_else(|| File::open(&path), Ok).map_err(doing)?;
            let by_name = archive::members(&mut file).map_err(doing)?;
            Ok(Members { file: Arc::new(file), by_name })
        })
        .await
    }

    async fn check_version(&self) -> Result<(), Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let what = self.to_string();
        let text = self.small("oci-layout").await.map_err(|error| match error {
            Error::NotFound { .. } => Error::invalid(&what, "no OCI layout: it has no file oci-layout"),
            other => other,
        })?;
        let marker: Marker = serde_json::from_slice(&text)
            .map_err(|error| Error::invalid(&what, format!("oci-layout: {error}")))?;
        match marker.image_layout_version.split('.').next() {
            Some("1") => Ok(()),
            _ => Err(Error::Unsupported {
                what,
                why: format!("OCI layout version {:.20}", marker.image_layout_version),
            }),
        }
    }

    /// Returns the list of what is in the layout.
    pub async fn index(&self) -> Result<ImageIndex, Error> {
        let text = self.small("index.json").await?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::invalid(self.to_string(), format!("index.json: {error}")))
    }

    /// Returns the image with this name, or the only one.
    pub async fn find(&self, name: Option<&LayoutName>) -> Result<Descriptor, Error> {
        let index = self.index().await?;
        // What belongs to an image has to be asked for by its name.
        let beside = |entry: &Descriptor| {
            let named = entry.annotations.get(NAME);
            entry.artifact_type.is_some() || named.is_some_and(|name| Tag::is_about_a_manifest(name))
        };
        let images = index.descriptors().filter(|entry| is_manifest(&entry.media_type));
        let mut images: Vec<Descriptor> = images.filter(|entry| name.is_some() || !beside(entry)).collect();
        let names: Vec<String> =
            images.iter().filter_map(|image| image.annotations.get(NAME).cloned()).collect();
        if let Some(name) = name {
            let same = match self.0.kind {
                Kind::Docker(_) => docker::same_name,
                _ => |own: &str, name: &str| own == name,
            };
            images.retain(|image| image.annotations.get(NAME).is_some_and(|own| same(own, name.as_str())));
        }
        match (images.len(), name) {
            (1, _) => Ok(images.remove(0)),
            // Two entries of one name: the last written, as when a tag is moved by appending.
            (2.., Some(_)) => Ok(images.remove(images.len() - 1)),
            (0, Some(name)) => {
                Err(Error::not_found(format!("image {name} in {self} (there is: {})", names.join(", "))))
            }
            (0, None) => Err(Error::not_found(format!("any image in {self}"))),
            (count, None) => Err(Error::invalid(
                self.to_string(),
                format!("{count} images; append :NAME to choose one of: {}", names.join(", ")),
            )),
        }
    }

    /// Returns a manifest, checked.
    pub async fn manifest(&self, digest: &Digest, media_type: Option<&str>) -> Result<Manifest, Error> {
        let bytes = self.small(&blob_name(digest)).await?;
        Manifest::verify(bytes, Some(digest), media_type, &format!("manifest {digest} in {self}"))
    }

    /// Reads a range of a blob of known size.
    pub fn read_range(&self, blob: &Digest, size: u64, range: Range<u64>) -> RangeReader {
        let what = format!("bytes {}..{} of blob {blob} in {self}", range.start, range.end);
        RangeReader::local(LocalRange {
            what,
            layout: self.clone(),
            blob: *blob,
            size,
            next: range.start,
            end: range.end,
            file: None,
        })
    }

    /// Returns the manifests that refer to this one, and their descriptors.
    pub(crate) async fn referrers(&self, subject: &Digest) -> Result<Vec<(Descriptor, Manifest)>, Error> {
        let mut found = Vec::new();
        let take = |of: Digest, entry: Descriptor, manifest: Manifest| {
            if of == *subject && found.len() < limits::REFERRERS {
                found.push((entry, manifest));
            }
        };
        let skipped = |manifest: &Digest, error: &Error| {
            tracing::warn!(layout = %self, %manifest, %error, "skipped");
        };
        self.each_referrer(take, skipped).await?;
        Ok(found)
    }

    /// Calls for each manifest that refers to another one with that, its descriptor and itself, and for each that cannot be
    /// read. No more than one is in memory.
    pub(crate) async fn each_referrer(
        &self,
        mut take: impl FnMut(Digest, Descriptor, Manifest),
        skipped: impl Fn(&Digest, &Error),
    ) -> Result<(), Error> {
        let index = self.index().await?;
        let mut seen = std::collections::HashSet::new();
        for entry in index.descriptors().filter(|entry| is_manifest(&entry.media_type)) {
            if !seen.insert(entry.digest) {
                continue;
            }
            let manifest = match self.manifest(&entry.digest, Some(&entry.media_type)).await {
                Ok(manifest) => manifest,
                Err(error) => {
                    skipped(&entry.digest, &error);
                    continue;
                }
            };
            if let Ok(Some((subject, _))) = referrer(&manifest, "") {
                take(subject, entry, manifest);
            }
        }
        Ok(())
    }

    /// Whether a blob is there.
    pub async fn blob_exists(&self, blob: &Digest) -> Result<bool, Error> {
        match self.place(blob).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a blob is there, as long as it should be.
    pub(crate) async fn has(&self, blob: &Digest, size: u64) -> Result<bool, Error> {
        match self.place(blob).await {
            Ok((_, there)) => Ok(there.len == size),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the directory of a layout's blobs.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.path.join("blobs/sha256")
    }

    /// Adds a blob. The content is checked against its digest on the way.
    pub async fn put_blob(&self, content: &Content) -> Result<(), Error> {
        self.store(content).await.map(|_| ())
    }

    /// Adds a blob as [`Layout::put_blob`] does; says whether it was there.
    pub(crate) async fn store(&self, content: &Content) -> Result<Pushed, Error> {
        self.writable()?;
        let (dir, digest) = (self.blobs(), *content.digest());
        // One of another length was cut off by somebody else; ours get their names when they are whole.
        if self.has(&digest, content.size()).await? {
            return Ok(Pushed::Existed);
        }
        let (send, mut receive) = mpsc::channel(PIECES);
        let write = blocking("writing a blob", move || {
            std::fs::create_dir_all(&dir)
                .map_err(|error| Error::io(format!("creating {}", dir.display()), error))?;
            write_durably(&dir, &digest.hex(), |file| fill(file, &mut receive, &digest))
        });
        let (written, ()) = tokio::join!(write, feed(content.pieces(), send));
        written.map(|()| Pushed::Sent)
    }

    /// Adds a manifest that is about another one, and its entry.
    pub(crate) async fn put_referrer(&self, manifest: &Manifest) -> Result<(), Error> {
        let what = format!("manifest {}", manifest.digest);
        let entry = referrer(manifest, &what)?.map_or_else(|| manifest.descriptor(), |(_, entry)| entry);
        self.put_manifest(manifest, entry, None).await
    }

    /// Adds a manifest and its entry, under a name if it is an image. An entry of that name is replaced.
    pub async fn put_manifest(
        &self,
        manifest: &Manifest,
        entry: Descriptor,
        name: Option<&LayoutName>,
    ) -> Result<(), Error> {
        self.put_blob(&Content::bytes(manifest.bytes.clone())).await?;
        let mut entry = entry;
        if let Some(name) = name {
            entry.annotations.insert(NAME.into(), name.to_string());
        }
        self.update(move |index| {
            let name = entry.annotations.get(NAME);
            let same = |old: &Descriptor| match name {
                Some(name) => old.annotations.get(NAME) == Some(name),
                None => old.digest == entry.digest && !old.annotations.contains_key(NAME),
            };
            index.put(&entry, same)
        })
        .await
    }

    /// Removes the entry of a name.
    pub(crate) async fn remove_name(&self, name: &LayoutName) -> Result<(), Error> {
        let name = name.to_string();
        self.update(move |index| index.remove(|entry| entry.annotations.get(NAME) == Some(&name))).await
    }

    /// Removes a blob, which nothing refers to, if it is there.
    pub(crate) async fn remove_blob(&self, blob: &Digest) -> Result<(), Error> {
        let path = self.blobs().join(blob.hex());
        blocking("removing a blob", move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", path.display()), error))
            }
            _ => Ok(()),
        })
        .await
    }

    /// Changes the list of what is in the layout, if `change` says that it has.
    async fn update(
        &self,
        change: impl FnOnce(&mut ImageIndex) -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let dir = self.0.path.clone();
        blocking("writing index.json", move || {
            let doing = |error| Error::io(format!("updating {}", dir.join("index.json").display()), error);
            // Two writers at once: the second reads what the first has written.
            let lock = File::open(&dir).map_err(doing)?;
            lock.lock().map_err(doing)?;
            let text = std::fs::read(dir.join("index.json")).map_err(doing)?;
            let mut index: ImageIndex = serde_json::from_slice(&text).map_err(|error| doing(error.into()))?;
            if change(&mut index) {
                let text = serde_json::to_vec(&index).map_err(|error| doing(error.into()))?;
                fits(&text)?;
                replace(&dir, "index.json", &text)?;
            }
            Ok(())
        })
        .await
    }

    fn writable(&self) -> Result<(), Error> {
        match self.0.kind {
            Kind::Dir => Ok(()),
            Kind::Flat | Kind::Archive(_) | Kind::Docker(_) => {
                Err(Error::Unsupported { what: self.to_string(), why: "it is only read; use oci:DIR".into() })
            }
        }
    }

    /// Reads a small file: a manifest or a list.
    async fn small(&self, name: &str) -> Result<Bytes, Error> {
        if let Some(made) = self.0.made.get(name) {
            return Ok(made.clone());
        }
        let (layout, name) = (self.clone(), name.to_owned());
        blocking("reading an OCI layout", move || {
            let (file, member) = layout.locate(&name)?;
            whole(&file, &member, sizes::MANIFEST, format!("{name} in {layout}"))
        })
        .await
    }

    async fn place(&self, blob: &Digest) -> Result<(Arc<File>, Member), Error> {
        let (layout, name) = (self.clone(), blob_name(blob));
        blocking("opening a blob", move || layout.locate(&name)).await
    }

    fn locate(&self, name: &str) -> Result<(Arc<File>, Member), Error> {
        let missing = || Error::not_found(format!("{name} in {self}"));
        match &self.0.kind {
            Kind::Archive(members) | Kind::Docker(members) => {
                Ok((Arc::clone(&members.file), *members.by_name.get(name).ok_or_else(missing)?))
            }
            Kind::Dir | Kind::Flat => {
                let doing = |error: std::io::Error| match error.kind() {
                    std::io::ErrorKind::NotFound => missing(),
                    _ => Error::io(format!("opening {name} in {self}"), error),
                };
                let path = match self.0.kind {
                    Kind::Flat => flat::path(&self.0.path, name),
                    _ => self.0.path.join(name),
                };
                // Opening a pipe would block for ever.
                if !std::fs::metadata(&path).map_err(doing)?.is_file() {
                    return Err(Error::invalid(format!("{name} in {self}"), "no file"));
                }
                let file = File::open(path).map_err(doing)?;
                let len = file.metadata().map_err(doing)?.len();
                Ok((Arc::new(file), Member { offset: 0, len }))
            }
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let transport = match self.0.kind {
            Kind::Dir => "oci",
            Kind::Flat => "dir",
            Kind::Archive(_) => "oci-archive",
            Kind::Docker(_) => "docker-archive",
        };
        write!(f, "{transport}:{}", self.0.path.display())
    }
}

/// Reads a member of an archive, or a file, that is not longer than it may be.
fn whole(file: &File, &Member { offset, len }: &Member, limit: u64, what: String) -> Result<Bytes, Error> {
    if len > limit {
        return Err(Error::TooLarge { what, size: len, limit });
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, offset).map_err(|error| Error::io(format!("reading {what}"), error))?;
    Ok(bytes.into())
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A range of a local blob.
#[derive(Debug)]
pub(crate) struct LocalRange {
    what: String,
    layout: Layout,
    blob: Digest,
    size: u64,
    next: u64,
    end: u64,
    file: Option<(Arc<File>, u64)>,
}

impl LocalRange {
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn left(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }

    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.next > self.end || self.end > self.size {
            return Err(Error::invalid(
                &self.what,
                format!("no such range: the blob has {} bytes", self.size),
            ));
        }
        if self.next == self.end {
            return Ok(None);
        }
        let (file, offset) = match &self.file {
            Some((file, offset)) => (Arc::clone(file), *offset),
            None => {
                let (file, Member { offset, len }) = self.layout.place(&self.blob).await?;
                if len != self.size {
                    let why = format!("the blob has {len} bytes, the manifest says {}", self.size);
                    return Err(Error::invalid(&self.what, why));
                }
                self.file = Some((Arc::clone(&file), offset));
                (file, offset)
            }
        };
        let len = (self.end - self.next).min(limits::PIECE);
        let (at, what) = (offset + self.next, self.what.clone());
        let piece = blocking("reading a blob", move || {
            let mut piece = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut piece, at)
                .map_err(|error| Error::io(format!("reading {what}"), error))?;
            Ok(Bytes::from(piece))
        })
        .await?;
        self.next += len;
        Ok(Some(piece))
    }
}

/// Passes content on to whoever writes it, then the word that all of it was right.
async fn feed(mut pieces: Pieces, to: mpsc::Sender<Result<Option<Bytes>, Error>>) {
    loop {
        let piece = match pieces.next(limits::PIECE).await {
            Ok(None) => pieces.verify().map(|()| None),
            piece => piece,
        };
        let more = matches!(piece, Ok(Some(_)));
        if to.send(piece).await.is_err() || !more {
            return; // a writer that has gone says itself why
        }
    }
}

/// Writes what is passed on, until the word that it was right.
fn fill(
    file: &mut File,
    from: &mut mpsc::Receiver<Result<Option<Bytes>, Error>>,
    blob: &Digest,
) -> Result<(), Error> {
    while let Some(piece) = from.blocking_recv() {
        match piece? {
            Some(piece) => {
                file.write_all(&piece).map_err(|error| Error::io(format!("writing blob {blob}"), error))?
            }
            None => return Ok(()),
        }
    }
    Err(Error::invalid(format!("blob {blob}"), "it was given up"))
}

/// Runs file operations where they block nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::io(doing, std::io::Error::other(error)))?
}

/// Gives a small file new content, all or nothing.
pub(crate) fn replace(dir: &Path, name: &str, content: &[u8]) -> Result<(), Error> {
    write_durably(dir, name, |file| {
        file.write_all(content).map_err(|error| Error::io(format!("writing {name}"), error))
    })
}

/// Makes sure that an `index.json` is one that can be read again.
pub(crate) fn fits(index: &[u8]) -> Result<(), Error> {
    let (what, size, limit) = ("index.json".to_owned(), index.len() as u64, sizes::MANIFEST);
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}

/// Writes a file under another name, makes it durable, then gives it its name.
pub(crate) fn write_durably(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut File) -> Result<(), Error>,
) -> Result<(), Error> {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let draft = dir.join(format!(".tmp-{}-{count}-{}", std::process::id(), &name[..name.len().min(16)]));
    let doing = |error| Error::io(format!("writing {}", dir.join(name).display()), error);
    let mut file = File::create_new(&draft).map_err(doing)?;
    let written = write(&mut file).and_then(|()| {
        file.sync_all().map_err(doing)?;
        std::fs::rename(&draft, dir.join(name)).map_err(doing)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(doing)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&draft); // what remains is only untidy
    }
    written
}
