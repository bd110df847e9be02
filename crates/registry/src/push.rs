//! Writing to a registry: blobs, manifests and the list of referrers.
//!
//! Promises: what exists is not sent again; a large blob goes in pieces, and after a failure on from the piece
//! that the registry has; a manifest goes last, after all that it names. A manifest with a subject is entered into
//! the fallback list exactly where the registry does not say that it keeps referrers itself (distribution spec
//! 1.1, "Pushing Manifests with Subject").

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use format::{Digest, DigestHasher, limits as sizes};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Url;

use crate::auth::Scopes;
use crate::client::{Inner, Pick, Repository};
use crate::error::{Error, Fault};
use crate::hosts::Capability;
use crate::layout::blocking;
use crate::limits;
use crate::manifest::{Manifest, is_manifest};
use crate::names::RepositoryName;
use crate::reply::{Answer, is_temporary};
use crate::retry::Tries;
use crate::transport::{Call, Endpoint, Target};

/// Bytes to be stored as a blob: in memory or in a file.
#[derive(Debug, Clone)]
pub struct Content {
    digest: Digest,
    size: u64,
    from: From,
}

#[derive(Debug, Clone)]
enum From {
    Memory(Bytes),
    File(Arc<File>),
}

impl Content {
    /// Returns bytes in memory as content.
    pub fn bytes(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), size: bytes.len() as u64, from: From::Memory(bytes) }
    }

    /// Returns a file as content; reads it once for its digest.
    pub async fn file(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        blocking("reading a file to push", move || {
            let doing = |error| Error::io(format!("reading {}", path.display()), error);
            let file = File::open(&path).map_err(doing)?;
            let size = file.metadata().map_err(doing)?.len();
            let mut content = Self { digest: Digest::of(b""), size, from: From::File(Arc::new(file)) };
            let mut hasher = DigestHasher::new();
            content.pieces(|piece| {
                hasher.update(piece);
                Ok(())
            })?;
            content.digest = hasher.finish();
            Ok(content)
        })
        .await
    }

    /// Returns the digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn pieces(&self, mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let mut at = 0;
        while at < self.size {
            let piece = self.read(at, (self.size - at).min(limits::PIECE))?;
            each(&piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn read(&self, at: u64, len: u64) -> Result<Bytes, Error> {
        let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        match &self.from {
            From::Memory(bytes) => Ok(bytes.slice(small(at)..small(at + len))),
            From::File(file) => {
                let mut piece = vec![0; small(len)];
                file.read_exact_at(&mut piece, at)
                    .map_err(|error| Error::io(format!("reading blob {}", self.digest), error))?;
                Ok(piece.into())
            }
        }
    }

    /// Writes all into a file, and fails if it is not what the digest says.
    pub(crate) fn copy_to(&self, file: &mut File) -> Result<(), Error> {
        let mut hasher = DigestHasher::new();
        self.pieces(|piece| {
            hasher.update(piece);
            file.write_all(piece).map_err(|error| Error::io(format!("writing blob {}", self.digest), error))
        })?;
        match hasher.finish() == self.digest {
            true => Ok(()),
            false => {
                Err(Error::invalid(format!("blob {}", self.digest), "the file changed while it was read"))
            }
        }
    }

    async fn piece(&self, at: u64, len: u64) -> Result<Bytes, Error> {
        let content = self.clone();
        blocking("reading a blob to push", move || content.read(at, len)).await
    }
}

/// What pushing a blob came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// The registry had it.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

impl Repository {
    /// Stores a blob; takes it from another repository of the registry where that is possible.
    pub async fn push_blob(&self, content: &Content, from: Option<&RepositoryName>) -> Result<Pushed, Error> {
        if self.blob_exists(content.digest()).await? {
            return Ok(Pushed::Existed);
        }
        let what = format!("upload of blob {} to {self}", content.digest());
        let endpoint = self.push_endpoint(&what)?;
        let limiter = self.client.0.net.endpoint_limiter(&endpoint);
        let mut tries = self.tries(&endpoint, &what, true);
        // An upload that failed in the middle is begun anew; the pieces of one have retries of their own.
        loop {
            let fault = match self.upload(&endpoint, content, from, &what).await {
                Ok(done) => return Ok(done),
                Err(Error::NotFound { .. }) => Fault::Answer("the registry forgot the upload".into()),
                Err(Error::Refused { status: status @ (409 | 416), .. }) => Fault::Status(status),
                Err(error) => return Err(error),
            };
            tries.again(&limiter, fault, None).await?;
        }
    }

    async fn upload(
        &self,
        endpoint: &Endpoint,
        content: &Content,
        from: Option<&RepositoryName>,
        what: &str,
    ) -> Result<Pushed, Error> {
        let mut call = self.push_call(Method::POST, "blobs/uploads/".into(), what.into());
        if let Some(from) = from {
            call.target =
                Target::Path(format!("/{}/blobs/uploads/?mount={}&from={from}", self.name, content.digest()));
            call.scopes = call.scopes.and_pull(from);
        }
        let answer = self.send(endpoint, &call).await?;
        match answer.status {
            StatusCode::CREATED if from.is_some() => return Ok(Pushed::Mounted),
            StatusCode::ACCEPTED => {}
            _ => return Err(answer.refusal(endpoint, what)),
        }
        let mut place = location(&answer, what)?;
        let small = content.size() <= limits::UPLOAD_PIECE;
        if !small {
            place = self.upload_pieces(endpoint, content, place, what).await?;
        }
        place.query_pairs_mut().append_pair("digest", &content.digest().to_string());
        let mut call = self.push_call(Method::PUT, String::new(), what.into());
        call.target = Target::Url(place);
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if small {
            call.body = content.piece(0, content.size()).await?;
        }
        if call.body.is_empty() {
            call.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let answer = self.send(endpoint, &call).await?;
        match answer.status {
            StatusCode::CREATED => Ok(Pushed::Sent),
            _ => Err(answer.refusal(endpoint, what)),
        }
    }

    /// Sends a large blob; returns where to say that it is complete.
    async fn upload_pieces(
        &self,
        endpoint: &Endpoint,
        content: &Content,
        mut place: Url,
        what: &str,
    ) -> Result<Url, Error> {
        let Inner { net, auth, .. } = &*self.client.0;
        let limiter = net.endpoint_limiter(endpoint);
        let mut tries = self.tries(endpoint, what, true);
        let mut at = 0;
        while at < content.size() {
            let len = (content.size() - at).min(limits::UPLOAD_PIECE);
            let mut call = self.push_call(Method::PATCH, String::new(), what.into());
            call.target = Target::Url(place.clone());
            call.body = content.piece(at, len).await?;
            call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            let range = HeaderValue::try_from(format!("{at}-{}", at + len - 1));
            call.headers.extend(range.ok().map(|range| (header::CONTENT_RANGE, range)));
            // Never sent twice blindly: the registry may have taken a part.
            let mut once = Tries::new(what, endpoint.host().as_str(), 0);
            let fault = match net.fetch(auth, endpoint, &call, &mut once, limits::ERROR_BODY).await {
                Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                    place = location(&answer, what)?;
                    at += len;
                    tries.reset();
                    continue;
                }
                Ok(answer)
                    if answer.status == StatusCode::RANGE_NOT_SATISFIABLE || is_temporary(answer.status) =>
                {
                    Fault::Status(answer.status.as_u16())
                }
                Ok(answer) => return Err(answer.refusal(endpoint, what)),
                Err(Error::Unavailable { source, .. }) => Fault::Answer(source.to_string()),
                Err(error) => return Err(error),
            };
            tries.again(&limiter, fault, None).await?;
            let mut call = self.push_call(Method::GET, String::new(), what.into());
            call.target = Target::Url(place.clone());
            let answer = self.send(endpoint, &call).await?;
            if !answer.status.is_success() {
                return Err(answer.refusal(endpoint, what));
            }
            // `0-99` is 100 bytes; nothing, or `0-0` from registries that cannot say "none", is none.
            let last =
                answer.header(header::RANGE).and_then(|text| text.rsplit_once('-')?.1.parse::<u64>().ok());
            at = last.filter(|&last| last > 0).map_or(0, |last| last + 1).min(content.size());
            place = location(&answer, what).unwrap_or(place);
        }
        Ok(place)
    }

    /// Stores a manifest under its digest or a tag; enters it into the list of its subject's referrers.
    pub async fn push_manifest(&self, manifest: &Manifest, pick: &Pick) -> Result<(), Error> {
        let what = format!("upload of manifest {} to {self}", manifest.digest);
        let answer = self.put_manifest(manifest, pick, &what).await?;
        if manifest.is_index() {
            return Ok(());
        }
        let parsed = manifest.image(&what)?;
        match &parsed.subject {
            Some(subject) if answer.header("oci-subject").is_none() => {
                self.add_fallback_referrer(&subject.digest, manifest, &parsed).await
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn put_manifest(
        &self,
        manifest: &Manifest,
        pick: &Pick,
        what: &str,
    ) -> Result<Answer, Error> {
        if manifest.bytes.len() as u64 > sizes::MANIFEST {
            let size = manifest.bytes.len() as u64;
            return Err(Error::TooLarge { what: what.into(), size, limit: sizes::MANIFEST });
        }
        if !is_manifest(&manifest.media_type)
            || pick.digest().is_some_and(|digest| *digest != manifest.digest)
        {
            return Err(Error::invalid(what, format!("it is no manifest with the name {pick}")));
        }
        let endpoint = self.push_endpoint(what)?;
        let mut call = self.push_call(Method::PUT, format!("manifests/{pick}"), what.into());
        let kind = HeaderValue::try_from(&manifest.media_type);
        call.headers.extend(kind.ok().map(|kind| (header::CONTENT_TYPE, kind)));
        call.body = manifest.bytes.clone();
        let answer = self.send(&endpoint, &call).await?;
        if answer.status != StatusCode::CREATED {
            return Err(answer.refusal(&endpoint, what));
        }
        match answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
            Some(stored) if stored != manifest.digest => {
                Err(Error::invalid(what, format!("the registry stored it as {stored}")))
            }
            _ => Ok(answer),
        }
    }

    fn push_call(&self, method: Method, path: String, what: String) -> Call {
        let mut call = self.call(method, path, what);
        call.scopes = Scopes::push(&self.name);
        if call.method == Method::POST {
            call.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        call
    }

    fn push_endpoint(&self, what: &str) -> Result<Arc<Endpoint>, Error> {
        // There is at least one, and the first is the registry itself.
        Ok(self.endpoints(Capability::Push, what)?.swap_remove(0))
    }

    async fn send(&self, endpoint: &Endpoint, call: &Call) -> Result<Answer, Error> {
        let Inner { net, auth, .. } = &*self.client.0;
        let mut tries = self.tries(endpoint, &call.what, true);
        net.fetch(auth, endpoint, call, &mut tries, limits::ERROR_BODY).await
    }
}

/// Where an upload goes on. Registries behind a proxy that ends TLS often forget about it and write `http:`.
fn location(answer: &Answer, what: &str) -> Result<Url, Error> {
    let text = answer
        .header(header::LOCATION)
        .ok_or_else(|| Error::invalid(what, "the registry names no place for it"))?;
    let mut url = answer
        .url
        .join(text)
        .map_err(|error| Error::invalid(what, format!("place of the upload: {error}")))?;
    if answer.url.scheme() == "https" && url.scheme() == "http" {
        if url.host_str() != answer.url.host_str() {
            return Err(Error::invalid(what, "the registry wants it sent to another host without TLS"));
        }
        // Cannot fail: both schemes have a host.
        let _ = url.set_scheme("https");
    }
    Ok(url)
}
