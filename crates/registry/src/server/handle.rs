//! Requests to answers: what the distribution specification says for each method of each resource.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use format::{Digest, limits as sizes};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use super::Counters;
use super::body::ReplyBody;
use super::request::{BadPath, Part, Resource, UploadId, parameter, part};
use super::shape::Shaper;
use super::storage::{Refusal, Storage};
use super::upload::{Upload, Uploads};
use crate::client::Pick;
use crate::error::Error;
use crate::layout::blocking;
use crate::manifest::media_type;
use crate::names::RepositoryName;

/// Time without any byte of a request's body after which the client is given up.
const BODY_TIME: Duration = Duration::from_secs(120);

/// How long a request waits for another one that writes to the same upload.
const BUSY_TIME: Duration = Duration::from_secs(5);

/// Names in one answer, if the client wants no fewer.
const PAGE: usize = 1000;

/// What the connections share.
#[derive(Debug)]
pub(super) struct Registry {
    storage: Arc<Storage>,
    uploads: Arc<Uploads>,
    shaper: Shaper,
    counters: Counters,
}

type Reply = Response<ReplyBody>;
type Result<T> = std::result::Result<T, Problem>;

/// Why a request failed, as the specification codes it.
#[derive(Debug)]
struct Problem(StatusCode, &'static str, String);

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let missing = |code| Self(StatusCode::NOT_FOUND, code, String::new());
        match refusal {
            Refusal::BlobUnknown => missing("BLOB_UNKNOWN"),
            Refusal::ManifestUnknown => missing("MANIFEST_UNKNOWN"),
            Refusal::NameUnknown => missing("NAME_UNKNOWN"),
            Refusal::ManifestInvalid(why) => Self(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why),
            Refusal::ManifestBlobUnknown(digest) => Self(
                StatusCode::BAD_REQUEST,
                "MANIFEST_BLOB_UNKNOWN",
                format!("the repository lacks {digest}"),
            ),
            Refusal::DigestInvalid(why) => Self(StatusCode::BAD_REQUEST, "DIGEST_INVALID", why),
            Refusal::Failed(error) => error.into(),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        // The client learns that we failed; the log says why.
        tracing::error!(error = &error as &dyn std::error::Error, "the registry failed");
        Self(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry failed; its log says why".into())
    }
}

impl From<BadPath> for Problem {
    fn from(bad: BadPath) -> Self {
        match bad {
            BadPath::Unknown => Self(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such path".into()),
            BadPath::Name => {
                Self(StatusCode::BAD_REQUEST, "NAME_INVALID", "malformed repository name".into())
            }
            BadPath::Digest => {
                Self(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "malformed digest, or not sha256".into())
            }
            BadPath::Tag => Self(StatusCode::BAD_REQUEST, "TAG_INVALID", "malformed tag".into()),
            BadPath::Upload => upload_unknown(),
        }
    }
}

fn upload_unknown() -> Problem {
    Problem(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", String::new())
}

impl Registry {
    pub(super) fn new(storage: Storage, shaper: Shaper) -> Self {
        Self { storage: Arc::new(storage), uploads: Arc::default(), shaper, counters: Counters::default() }
    }

    pub(super) fn shaper(&self) -> &Shaper {
        &self.shaper
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Answers a request, whatever happens.
    pub(super) async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Reply {
        self.counters.requests.fetch_add(1, Relaxed);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut reply = match self.route(request).await {
            Ok(reply) => reply,
            Err(Problem(status, code, message)) => {
                let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
                let mut reply = self.json(body.into(), "application/json");
                *reply.status_mut() = status;
                reply
            }
        };
        tracing::debug!(%method, %path, status = reply.status().as_u16(), "request");
        let version = HeaderValue::from_static("registry/2.0");
        reply.headers_mut().insert("docker-distribution-api-version", version);
        if method == Method::HEAD {
            // The headers say what a GET would send.
            *reply.body_mut() = ReplyBody::bytes(self, Bytes::new());
        }
        reply
    }

    async fn route(self: &Arc<Self>, request: Request<Incoming>) -> Result<Reply> {
        let query = request.uri().query().map(String::from);
        let resource = Resource::parse(request.uri().path())?;
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        match (request.method().clone(), resource) {
            (_, Resource::Root) if read => Ok(self.json("{}".into(), "application/json")),
            (_, Resource::Catalog) if read => self.catalog(query.as_deref()).await,
            (_, Resource::Tags(name)) if read => self.tags(name, query.as_deref()).await,
            (_, Resource::Referrers(name, digest)) if read => {
                self.referrers(name, digest, query.as_deref()).await
            }
            (_, Resource::Manifest(name, pick)) if read => self.get_manifest(name, pick).await,
            (Method::PUT, Resource::Manifest(name, pick)) => self.put_manifest(name, pick, request).await,
            (Method::DELETE, Resource::Manifest(name, pick)) => {
                self.disk(move |storage| storage.delete_manifest(&name, &pick)).await?;
                Ok(self.empty(StatusCode::ACCEPTED))
            }
            (Method::HEAD, Resource::Blob(name, digest)) => self.head_blob(name, digest).await,
            (Method::GET, Resource::Blob(name, digest)) => {
                let range = request
                    .headers()
                    .get(header::RANGE)
                    .and_then(|value| value.to_str().ok())
                    .map(String::from);
                self.get_blob(name, digest, range).await
            }
            (Method::DELETE, Resource::Blob(name, digest)) => {
                self.disk(move |storage| storage.delete_blob(&name, &digest)).await?;
                Ok(self.empty(StatusCode::ACCEPTED))
            }
            (Method::POST, Resource::Uploads(name)) => {
                self.begin_upload(name, query.as_deref(), request).await
            }
            (Method::GET, Resource::Upload(name, id)) => {
                let upload = self.uploads.get(&name, &id).ok_or_else(upload_unknown)?;
                Ok(self.upload_state(StatusCode::NO_CONTENT, &name, &id, upload.len()))
            }
            (Method::PATCH, Resource::Upload(name, id)) => {
                let upload = self.uploads.get(&name, &id).ok_or_else(upload_unknown)?;
                self.receive(&upload, request).await?;
                Ok(self.upload_state(StatusCode::ACCEPTED, &name, &id, upload.len()))
            }
            (Method::PUT, Resource::Upload(name, id)) => {
                self.finish_upload(name, id, query.as_deref(), request).await
            }
            (Method::DELETE, Resource::Upload(name, id)) => {
                self.uploads.get(&name, &id).ok_or_else(upload_unknown)?;
                self.uploads.end(&id);
                Ok(self.empty(StatusCode::NO_CONTENT))
            }
            _ => Err(Problem(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", String::new())),
        }
    }

    async fn disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> std::result::Result<T, Refusal> + Send + 'static,
    ) -> Result<T> {
        let storage = Arc::clone(&self.storage);
        Ok(blocking("working on the registry's directory", move || Ok(work(&storage))).await??)
    }

    async fn catalog(self: &Arc<Self>, query: Option<&str>) -> Result<Reply> {
        let all = self.disk(|storage| Ok(storage.repositories()?)).await?;
        let all = all.iter().map(ToString::to_string).collect();
        let (page, more) = page(all, query);
        let body = json!({ "repositories": page }).to_string();
        Ok(self.list(body, more.map(|more| format!("/v2/_catalog?{more}"))))
    }

    async fn tags(self: &Arc<Self>, name: RepositoryName, query: Option<&str>) -> Result<Reply> {
        let repository = name.clone();
        let all = self.disk(move |storage| storage.tags(&repository)).await?;
        let (page, more) = page(all.iter().map(ToString::to_string).collect(), query);
        let body = json!({ "name": name.as_str(), "tags": page }).to_string();
        Ok(self.list(body, more.map(|more| format!("/v2/{name}/tags/list?{more}"))))
    }

    async fn referrers(
        self: &Arc<Self>,
        name: RepositoryName,
        subject: Digest,
        query: Option<&str>,
    ) -> Result<Reply> {
        let kind = parameter(query, "artifactType");
        let wanted = kind.clone();
        let list = self.disk(move |storage| storage.referrers(&name, &subject, wanted.as_deref())).await?;
        let body = serde_json::to_vec(&list).map_err(|error| Error::io("writing a list", error.into()))?;
        let mut reply = self.json(body.into(), media_type::INDEX);
        if kind.is_some() {
            reply.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
        }
        Ok(reply)
    }

    async fn get_manifest(self: &Arc<Self>, name: RepositoryName, pick: Pick) -> Result<Reply> {
        self.counters.manifests.fetch_add(1, Relaxed);
        let manifest = self.disk(move |storage| storage.manifest(&name, &pick)).await?;
        let mut reply = self.json(manifest.bytes.clone(), &manifest.media_type);
        name_content(&mut reply, &manifest.digest);
        Ok(reply)
    }

    async fn put_manifest(
        self: &Arc<Self>,
        name: RepositoryName,
        pick: Pick,
        request: Request<Incoming>,
    ) -> Result<Reply> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        let bytes = self.small_body(request).await?;
        let repository = name.clone();
        let stored = self
            .disk(move |storage| storage.put_manifest(&repository, &pick, kind.as_deref(), bytes))
            .await?;
        let (manifest, subject) = stored;
        let mut reply = self.empty(StatusCode::CREATED);
        name_content(&mut reply, &manifest.digest);
        set(&mut reply, header::LOCATION, &format!("/v2/{name}/manifests/{}", manifest.digest));
        if let Some(subject) = subject {
            set(&mut reply, header::HeaderName::from_static("oci-subject"), &subject.to_string());
        }
        Ok(reply)
    }

    /// Says that a blob is there. Nothing of it is read, and it takes nothing of the rate.
    async fn head_blob(self: &Arc<Self>, name: RepositoryName, digest: Digest) -> Result<Reply> {
        let (_, len) = self.disk(move |storage| storage.blob(&name, &digest)).await?;
        let mut reply = self.empty(StatusCode::OK);
        name_blob(&mut reply, &digest, len);
        Ok(reply)
    }

    async fn get_blob(
        self: &Arc<Self>,
        name: RepositoryName,
        digest: Digest,
        range: Option<String>,
    ) -> Result<Reply> {
        self.counters.blobs.fetch_add(1, Relaxed);
        let (file, len) = self.disk(move |storage| storage.blob(&name, &digest)).await?;
        let (status, start, end) = match part(range.as_deref(), len) {
            Part::Whole => (StatusCode::OK, 0, len),
            Part::Range { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
            Part::Unsatisfiable => {
                let mut reply = self.empty(StatusCode::RANGE_NOT_SATISFIABLE);
                set(&mut reply, header::CONTENT_RANGE, &format!("bytes */{len}"));
                return Ok(reply);
            }
        };
        let mut reply = Response::new(ReplyBody::file(self, file, start, end));
        *reply.status_mut() = status;
        if status == StatusCode::PARTIAL_CONTENT {
            self.counters.ranges.fetch_add(1, Relaxed);
            set(&mut reply, header::CONTENT_RANGE, &format!("bytes {start}-{}/{len}", end - 1));
        }
        name_blob(&mut reply, &digest, end - start);
        Ok(reply)
    }

    async fn begin_upload(
        self: &Arc<Self>,
        name: RepositoryName,
        query: Option<&str>,
        request: Request<Incoming>,
    ) -> Result<Reply> {
        let digest = |text: &str| text.parse::<Digest>().map_err(|_| Problem::from(BadPath::Digest));
        if let Some(mount) = parameter(query, "mount") {
            let mount = digest(&mount)?;
            // Without `from`, or with one that lacks the blob, it becomes an ordinary upload.
            if let Some(from) = parameter(query, "from").and_then(|from| from.parse::<RepositoryName>().ok())
            {
                let target = name.clone();
                if self.disk(move |storage| storage.mount(&target, &mount, &from)).await? {
                    return Ok(self.stored(&name, &mount));
                }
            }
        }
        let (uploads, dir, repository) = (Arc::clone(&self.uploads), self.storage.uploads(), name.clone());
        let id = blocking("beginning an upload", move || uploads.begin(dir, &repository)).await?;
        let busy =
            || Problem(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many uploads at once".into());
        let id = id.ok_or_else(busy)?;
        match parameter(query, "digest") {
            Some(_) => self.finish_upload(name, id, query, request).await,
            None => Ok(self.upload_state(StatusCode::ACCEPTED, &name, &id, 0)),
        }
    }

    /// Takes in the body of a request. What has come in before a failure stays.
    async fn receive(self: &Arc<Self>, upload: &Arc<Upload>, request: Request<Incoming>) -> Result<()> {
        let range = request.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start =
            range.and_then(|text| text.trim_start_matches("bytes ").split_once('-')?.0.parse::<u64>().ok());
        let busy = || {
            Problem(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", "another request is writing to it".into())
        };
        // A client that comes back after its connection broke may be faster than the news of the break.
        let sink = tokio::time::timeout(BUSY_TIME, Arc::clone(&upload.sink).lock_owned()).await;
        let mut sink = sink.map_err(|_| busy())?;
        if range.is_some() && start != Some(upload.len()) {
            let why = format!("{} bytes are here", upload.len());
            return Err(Problem(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", why));
        }
        let mut body = request.into_body();
        let mut gathered = BytesMut::new();
        loop {
            let frame = next_data(&mut body).await?;
            let ended = frame.is_none();
            gathered.extend_from_slice(&frame.unwrap_or_default());
            if upload.len() + gathered.len() as u64 > sizes::LAYER {
                return Err(Problem(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "SIZE_INVALID",
                    "no layer is that large".into(),
                ));
            }
            if gathered.len() as u64 >= crate::limits::PIECE || (ended && !gathered.is_empty()) {
                let (piece, target) = (gathered.split().freeze(), Arc::clone(upload));
                self.counters.bytes_received.fetch_add(piece.len() as u64, Relaxed);
                // The guard travels along, so that a client that leaves cannot let two writers in.
                sink = blocking("writing an upload", move || target.write(&mut sink, &piece).map(|()| sink))
                    .await?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn finish_upload(
        self: &Arc<Self>,
        name: RepositoryName,
        id: UploadId,
        query: Option<&str>,
        request: Request<Incoming>,
    ) -> Result<Reply> {
        let wanted =
            parameter(query, "digest").and_then(|text| text.parse::<Digest>().ok()).ok_or(BadPath::Digest)?;
        let upload = self.uploads.get(&name, &id).ok_or_else(upload_unknown)?;
        self.receive(&upload, request).await?;
        let (uploads, repository) = (Arc::clone(&self.uploads), name.clone());
        self.disk(move |storage| {
            let Ok(mut sink) = Arc::clone(&upload.sink).try_lock_owned() else {
                return Err(Refusal::DigestInvalid("another request is writing to it".into()));
            };
            let found = upload.seal(&mut sink)?;
            let result = match found == wanted {
                true => storage.adopt(&repository, &wanted, upload.path()).map_err(Refusal::from),
                false => Err(Refusal::DigestInvalid(format!("what came has digest {found}"))),
            };
            uploads.end(&id);
            result
        })
        .await?;
        Ok(self.stored(&name, &wanted))
    }

    async fn small_body(&self, request: Request<Incoming>) -> Result<Bytes> {
        let mut body = request.into_body();
        let mut bytes = BytesMut::new();
        while let Some(data) = next_data(&mut body).await? {
            bytes.extend_from_slice(&data);
            if bytes.len() as u64 > sizes::MANIFEST {
                let why = format!("a manifest has at most {} bytes", sizes::MANIFEST);
                return Err(Problem(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", why));
            }
        }
        self.counters.bytes_received.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes.freeze())
    }

    fn stored(self: &Arc<Self>, name: &RepositoryName, digest: &Digest) -> Reply {
        let mut reply = self.empty(StatusCode::CREATED);
        name_content(&mut reply, digest);
        set(&mut reply, header::LOCATION, &format!("/v2/{name}/blobs/{digest}"));
        reply
    }

    fn upload_state(
        self: &Arc<Self>,
        status: StatusCode,
        name: &RepositoryName,
        id: &UploadId,
        len: u64,
    ) -> Reply {
        let mut reply = self.empty(status);
        set(&mut reply, header::LOCATION, &format!("/v2/{name}/blobs/uploads/{}", id.as_str()));
        set(&mut reply, header::RANGE, &format!("0-{}", len.saturating_sub(1)));
        set(&mut reply, header::HeaderName::from_static("docker-upload-uuid"), id.as_str());
        reply
    }

    fn empty(self: &Arc<Self>, status: StatusCode) -> Reply {
        let mut reply = Response::new(ReplyBody::bytes(self, Bytes::new()));
        *reply.status_mut() = status;
        reply
    }

    fn json(self: &Arc<Self>, body: Bytes, kind: &str) -> Reply {
        let len = body.len();
        let mut reply = Response::new(ReplyBody::bytes(self, body));
        set(&mut reply, header::CONTENT_TYPE, kind);
        set(&mut reply, header::CONTENT_LENGTH, &len.to_string());
        reply
    }

    fn list(self: &Arc<Self>, body: String, more: Option<String>) -> Reply {
        let mut reply = self.json(body.into(), "application/json");
        if let Some(more) = more {
            set(&mut reply, header::LINK, &format!("<{more}>; rel=\"next\""));
        }
        reply
    }
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        let frame = tokio::time::timeout(BODY_TIME, body.frame()).await;
        let broken =
            || Problem(StatusCode::BAD_REQUEST, "SIZE_INVALID", "the request's body ended early".into());
        match frame.map_err(|_| broken())? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame.map_err(|_| broken())?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Says what a blob is, and how much of it comes.
fn name_blob(reply: &mut Reply, digest: &Digest, len: u64) {
    set(reply, header::CONTENT_LENGTH, &len.to_string());
    set(reply, header::CONTENT_TYPE, "application/octet-stream");
    set(reply, header::ACCEPT_RANGES, "bytes");
    name_content(reply, digest);
}

fn name_content(reply: &mut Reply, digest: &Digest) {
    set(reply, header::HeaderName::from_static("docker-content-digest"), &digest.to_string());
    set(reply, header::ETAG, &format!("\"{digest}\""));
}

/// Sets a header whose value is made of names and numbers, which always fit.
fn set(reply: &mut Reply, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// Cuts a sorted list to what `n` and `last` ask for; returns the query for what follows.
fn page(all: Vec<String>, query: Option<&str>) -> (Vec<String>, Option<String>) {
    let count = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(PAGE).min(PAGE);
    let after = parameter(query, "last");
    let mut rest = all.into_iter().filter(|name| after.as_ref().is_none_or(|after| name > after));
    let page: Vec<String> = rest.by_ref().take(count).collect();
    let more = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => Some(format!("n={count}&last={last}")),
        _ => None,
    };
    (page, more)
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn pages() {
        let all = || ["a", "b", "c"].map(String::from).to_vec();
        for (query, names, more) in [
            (None, &["a", "b", "c"][..], None),
            (Some("n=2"), &["a", "b"], Some("n=2&last=b")),
            (Some("n=2&last=b"), &["c"], None),
            (Some("n=3"), &["a", "b", "c"], None),
            (Some("n=0"), &[], None),
            (Some("last=x"), &[], None),
            (Some("n=x&last=a"), &["b", "c"], None),
        ] {
            let (found, next) = page(all(), query);
            assert_eq!(
                (found.iter().map(String::as_str).collect::<Vec<_>>(), next.as_deref()),
                (names.to_vec(), more),
                "{query:?}"
            );
        }
    }
}
