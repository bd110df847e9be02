//! Which manifests say something about another one (distribution spec 1.1, "Listing Referrers").
//!
//! A registry that has no such list answers 404; then it is an image index under the tag `sha256-<hex>`, which
//! whoever pushes a referrer reads, extends and writes back.

use std::collections::BTreeMap;

use format::{Digest, limits as sizes};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;

use crate::client::{Pick, Repository, next_page};
use crate::error::Error;
use crate::hosts::Capability;
use crate::limits;
use crate::manifest::{Descriptor, ImageIndex, Manifest, media_type};
use crate::names::Tag;
use crate::transport::{Call, Target};

/// By which a registry says that it has left out what was not asked for.
const FILTERS: &str = "oci-filters-applied";

/// How often a list is written again because somebody else wrote it in between.
const ROUNDS: u32 = 4;

/// A page of a list.
struct Page {
    entries: Vec<Descriptor>,
    next: Option<Target>,
    /// Whether it has one type only, as the registry says.
    filtered: bool,
}

impl Repository {
    /// Returns the manifests that refer to a manifest, all or those of one type.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        self.referrers_of(subject, artifact_type.as_slice()).await
    }

    /// Returns those that are of one of these types; all, if there are none.
    pub(crate) async fn referrers_of(
        &self,
        subject: &Digest,
        kinds: &[&str],
    ) -> Result<Vec<Descriptor>, Error> {
        Ok(self.lists(subject, kinds).await?.into_iter().take(limits::REFERRERS).collect())
    }

    /// Asks the API, or for the fallback list; both at once where it is not known which of them the registry has.
    async fn lists(&self, subject: &Digest, kinds: &[&str]) -> Result<Vec<Descriptor>, Error> {
        let descriptors = |list: Option<ImageIndex>| {
            list.map_or(Vec::new(), |list| list.descriptors().filter(|entry| fits(entry, kinds)).collect())
        };
        let (listed, fallback) = match self.client.lists_referrers(&self.host) {
            Some(true) => (self.listed(subject, kinds).await?, None),
            Some(false) => return Ok(descriptors(self.fallback(subject, Capability::Resolve).await?)),
            None => {
                let (listed, fallback) =
                    tokio::join!(self.listed(subject, kinds), self.fallback(subject, Capability::Resolve));
                (listed?, Some(fallback))
            }
        };
        self.client.saw_listing(&self.host, listed.is_some());
        match (listed, fallback) {
            (Some(listed), _) => Ok(listed),
            (None, Some(fallback)) => Ok(descriptors(fallback?)),
            (None, None) => Ok(descriptors(self.fallback(subject, Capability::Resolve).await?)),
        }
    }

    /// Asks the API; `None` if the registry has none.
    async fn listed(&self, subject: &Digest, kinds: &[&str]) -> Result<Option<Vec<Descriptor>>, Error> {
        let filter = if let [kind] = kinds { Some(*kind) } else { None };
        let mut call = self.list_of(subject, filter);
        let Some(first) = self.page(&call, kinds).await? else { return Ok(None) };
        if first.next.is_some()
            && kinds.len() > 1
            && let Some(found) = self.of_each(subject, kinds).await?
        {
            return Ok(Some(found));
        }
        self.to_the_end(&mut call, first, kinds).await.map(Some)
    }

    /// Asks for each of these types by itself: any number of others may come before them in a list of all. `None` if the registry
    /// does not tell them apart.
    async fn of_each(&self, subject: &Digest, kinds: &[&str]) -> Result<Option<Vec<Descriptor>>, Error> {
        let mut found = Vec::new();
        for kind in kinds {
            let mut call = self.list_of(subject, Some(kind));
            // Who refuses the question has answered the one without.
            match self.page(&call, &[kind]).await {
                Ok(Some(first)) if first.filtered => {
                    found.extend(self.to_the_end(&mut call, first, &[kind]).await?);
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// Returns what is on a page of a list, and on those behind it.
    async fn to_the_end(
        &self,
        call: &mut Call,
        mut page: Page,
        kinds: &[&str],
    ) -> Result<Vec<Descriptor>, Error> {
        let mut found = page.entries;
        for _ in 1..limits::PAGES {
            let Some(next) = page.next.filter(|_| found.len() < limits::REFERRERS) else { break };
            call.target = next;
            let behind = self.page(call, kinds).await?;
            page = behind.ok_or_else(|| Error::invalid(&call.what, "a page of it is not a list"))?;
            found.append(&mut page.entries);
        }
        Ok(found)
    }

    /// Asks for a page; `None` where there is no list.
    async fn page(&self, call: &Call, kinds: &[&str]) -> Result<Option<Page>, Error> {
        let (endpoint, answer) = self.ask(Capability::Resolve, call, sizes::MANIFEST).await?;
        match (answer.status, serde_json::from_slice::<ImageIndex>(&answer.body)) {
            (StatusCode::OK, Ok(list)) => Ok(Some(Page {
                entries: list.descriptors().filter(|entry| fits(entry, kinds)).collect(),
                next: next_page(&answer),
                filtered: answer.header(FILTERS).is_some_and(|applied| applied.contains("artifactType")),
            })),
            // Not only 404: registries that do not know the path answer as they like.
            (status, _) if status.is_success() || is_unknown_path(status) => Ok(None),
            _ => Err(answer.refusal(&endpoint, &call.what)),
        }
    }

    /// Returns the request for a list: a registry filters by one type only.
    fn list_of(&self, subject: &Digest, kind: Option<&str>) -> Call {
        // Nothing in our types needs escaping except the plus sign.
        let query = kind.map_or(String::new(), |kind| format!("?artifactType={}", kind.replace('+', "%2B")));
        let what = format!("referrers of {self}@{subject}");
        let mut call = self.call(Method::GET, format!("referrers/{subject}{query}"), what);
        call.headers.insert(header::ACCEPT, HeaderValue::from_static(media_type::INDEX));
        call
    }

    /// Returns the fallback list, as an endpoint has it that can do something.
    async fn fallback(&self, subject: &Digest, capability: Capability) -> Result<Option<ImageIndex>, Error> {
        let pick = Pick::Tag(Tag::referrers(subject));
        match self.manifest_of(&pick, capability).await {
            Ok(list) => Ok(Some(list.index(&format!("referrers of {self}@{subject}"))?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enters a manifest into the fallback list. The specification has no lock; so the list is read again
    /// afterwards, and written again if another writer's version lacks the entry. A writer on another machine can
    /// still overtake us after that; pushing the same again enters it again.
    pub(crate) async fn add_fallback_referrer(
        &self,
        subject: &Digest,
        entry: &Descriptor,
    ) -> Result<(), Error> {
        let what = format!("list of referrers of {self}@{subject}");
        let _alone = self.client.0.fallback_lists.lock().await;
        for _ in 0..ROUNDS {
            // Not as a mirror has it: what it does not know yet would be overwritten.
            let list = self.fallback(subject, Capability::Push).await?;
            let mut list = list.unwrap_or_else(ImageIndex::empty);
            if !list.put(entry, |old| old.digest == entry.digest) {
                return Ok(());
            }
            let bytes =
                serde_json::to_vec(&list).map_err(|error| Error::invalid(&what, error.to_string()))?;
            let list = Manifest::verify(bytes.into(), None, Some(media_type::INDEX), &what)?;
            self.put_manifest(&list, &Pick::Tag(Tag::referrers(subject)), &what).await?;
        }
        // Seen after the last write as well?
        match self
            .fallback(subject, Capability::Push)
            .await?
            .is_some_and(|list| list.descriptors().any(|old| old.digest == entry.digest))
        {
            true => Ok(()),
            false => Err(Error::invalid(what, "others keep overwriting it")),
        }
    }
}

/// Returns what a manifest is about and how it is listed, if it is about another one: with its type and annotations, so
/// that a reader need not fetch it to choose.
pub(crate) fn referrer(manifest: &Manifest, what: &str) -> Result<Option<(Digest, Descriptor)>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct About {
        subject: Option<Descriptor>,
        artifact_type: Option<String>,
        config: Option<Config>,
        annotations: Option<BTreeMap<String, String>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        media_type: String,
    }
    let about: About = serde_json::from_slice(&manifest.bytes)
        .map_err(|error| Error::invalid(what, format!("not a manifest: {error}")))?;
    Ok(about.subject.map(|subject| {
        let mut entry = manifest.descriptor();
        entry.artifact_type = about.artifact_type.or(about.config.map(|config| config.media_type));
        entry.annotations = about.annotations.unwrap_or_default();
        (subject.digest, entry)
    }))
}

/// Says whether an entry of a list is of one of these types, or of any. A registry may ignore the filter; one that names no
/// type at all may still mean ours.
fn fits(entry: &Descriptor, kinds: &[&str]) -> bool {
    entry.artifact_type.as_deref().is_none_or(|own| kinds.is_empty() || kinds.contains(&own))
}

fn is_unknown_path(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 405 | 406 | 410 | 501)
}
