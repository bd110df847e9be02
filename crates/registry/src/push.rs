//! Writing to a registry: blobs, manifests and the list of referrers; and removing manifests.
//!
//! Promises: what exists is not sent again; a large blob goes in pieces, and after a failure on from the piece
//! that the registry has; a manifest goes last, after all that it names. A manifest with a subject is entered into
//! the fallback list exactly where the registry does not say that it keeps referrers itself (distribution spec
//! 1.1, "Pushing Manifests with Subject").

use std::sync::Arc;

use format::{Digest, limits as sizes};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Url;

use crate::auth::Scopes;
use crate::client::{Inner, Pick, Repository};
use crate::content::{Content, Pieces};
use crate::error::{Error, Fault};
use crate::hosts::Capability;
use crate::limits;
use crate::manifest::{Manifest, is_manifest};
use crate::names::RepositoryName;
use crate::referrers::referrer;
use crate::reply::{Answer, is_temporary};
use crate::retry::Tries;
use crate::transport::{Call, Endpoint, Target};

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

/// Why an upload ended without its blob.
enum Stop {
    /// It may be begun anew.
    Anew(Fault),
    /// It would end so again.
    Final(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Stop {
    /// Says what a refusal by the registry means.
    fn refused(error: Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::Anew(Fault::Answer("the registry forgot the upload".into())),
            Error::Refused { status: status @ (409 | 416), .. } => Self::Anew(Fault::Status(status)),
            error => Self::Final(error),
        }
    }
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
                Err(Stop::Anew(fault)) => fault,
                Err(Stop::Final(error)) => return Err(error),
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
    ) -> Result<Pushed, Stop> {
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
            _ => return Err(Stop::refused(answer.refusal(endpoint, what))),
        }
        let mut place = location(&answer, what)?;
        let mut pieces = content.pieces();
        let mut last = None;
        if content.size() <= limits::UPLOAD_PIECE {
            last = pieces.next(content.size()).await?;
        } else {
            place = self.upload_pieces(endpoint, &mut pieces, content.size(), place, what).await?;
        }
        pieces.verify()?;
        place.query_pairs_mut().append_pair("digest", &content.digest().to_string());
        let mut call = self.push_call(Method::PUT, String::new(), what.into());
        call.target = Target::Url(place);
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        match last {
            Some(last) => call.body = last,
            None => drop(call.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"))),
        }
        let answer = self.send(endpoint, &call).await?;
        match answer.status {
            StatusCode::CREATED => Ok(Pushed::Sent),
            _ => Err(Stop::refused(answer.refusal(endpoint, what))),
        }
    }

    /// Sends a large blob; returns where to say that it is complete.
    async fn upload_pieces(
        &self,
        endpoint: &Endpoint,
        pieces: &mut Pieces,
        size: u64,
        mut place: Url,
        what: &str,
    ) -> Result<Url, Stop> {
        let Inner { net, auth, .. } = &*self.client.0;
        let limiter = net.endpoint_limiter(endpoint);
        let mut tries = self.tries(endpoint, what, true);
        let mut at = 0;
        while at < size {
            let Some(piece) = pieces.from(at, limits::UPLOAD_PIECE).await? else {
                return Err(Stop::Anew(Fault::Answer("the registry lost a part of the upload".into())));
            };
            let end = at + piece.len() as u64;
            let mut call = self.push_call(Method::PATCH, String::new(), what.into());
            call.target = Target::Url(place.clone());
            call.body = piece;
            call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            let range = HeaderValue::try_from(format!("{at}-{}", end - 1));
            call.headers.extend(range.ok().map(|range| (header::CONTENT_RANGE, range)));
            // Never sent twice blindly: the registry may have taken a part.
            let mut once = Tries::new(what, endpoint.host().as_str(), 0);
            let fault = match net.fetch(auth, endpoint, &call, &mut once, limits::ERROR_BODY).await {
                Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                    place = location(&answer, what)?;
                    at = end;
                    tries.reset();
                    continue;
                }
                Ok(answer)
                    if answer.status == StatusCode::RANGE_NOT_SATISFIABLE || is_temporary(answer.status) =>
                {
                    Fault::Status(answer.status.as_u16())
                }
                Ok(answer) => return Err(Stop::refused(answer.refusal(endpoint, what))),
                Err(Error::Unavailable { source, .. }) => Fault::Answer(source.to_string()),
                Err(error) => return Err(error.into()),
            };
            tries.again(&limiter, fault, None).await?;
            let mut call = self.push_call(Method::GET, String::new(), what.into());
            call.target = Target::Url(place.clone());
            let answer = self.send(endpoint, &call).await?;
            if !answer.status.is_success() {
                return Err(Stop::refused(answer.refusal(endpoint, what)));
            }
            // `0-99` is 100 bytes; nothing, or `0-0` from registries that cannot say "none", is none.
            let last =
                answer.header(header::RANGE).and_then(|text| text.rsplit_once('-')?.1.parse::<u64>().ok());
            at = last.filter(|&last| last > 0).map_or(0, |last| last + 1).min(size);
            place = location(&answer, what).unwrap_or(place);
        }
        Ok(place)
    }

    /// Stores a manifest under its digest or a tag; enters it into the list of its subject's referrers.
    pub async fn push_manifest(&self, manifest: &Manifest, pick: &Pick) -> Result<(), Error> {
        let what = format!("upload of manifest {} to {self}", manifest.digest);
        let answer = self.put_manifest(manifest, pick, &what).await?;
        match referrer(manifest, &what)? {
            Some((subject, entry)) if answer.header("oci-subject").is_none() => {
                self.add_fallback_referrer(&subject, &entry).await
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

    /// Removes a tag, or a manifest with the tags that lead to it, if it is there.
    pub(crate) async fn delete_manifest(&self, pick: &Pick) -> Result<(), Error> {
        let what = format!("removal of {pick} from {self}");
        let endpoint = self.push_endpoint(&what)?;
        let mut call = self.call(Method::DELETE, format!("manifests/{pick}"), what.clone());
        call.scopes = Scopes::delete(&self.name);
        let answer = self.send(&endpoint, &call).await?;
        match answer.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(answer.refusal(&endpoint, &what)),
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
