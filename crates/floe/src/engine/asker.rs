//! For whom a layer is wanted: what the rule of trust goes by.

use registry::Reference;
use store::RefName;

use super::open::Purpose;
use crate::trust::Asked;

/// For which reference a layer is wanted.
pub(super) struct Question<'a> {
    pub(super) asked: Asked<'a>,
    /// The canonical reference.
    pub(super) name: &'a str,
    /// Whether the layer will be shared with images that nobody here is asked about.
    pub(super) shared: bool,
    /// Whether it is shared by the digest of its blob, not by what its tar is.
    pub(super) by_blob: bool,
    /// Whether it is to be proved.
    pub(super) proving: bool,
}

/// Who asks, and where.
pub(super) struct Asker {
    host: String,
    repository: String,
    tag: Option<String>,
    name: String,
    by_digest: bool,
    shared: bool,
    by_blob: bool,
    proving: bool,
}

impl Asker {
    pub(super) fn of(reference: &Reference, purpose: Purpose) -> Self {
        let (host, repository, tag) = whose(reference);
        // What is lent is shared with whoever else names the layer, so the tag it came by makes nothing good.
        let shared = matches!(purpose, Purpose::Lend | Purpose::Apart);
        let by_blob = purpose == Purpose::Apart;
        let by_digest = shared || reference.digest().is_some();
        Self {
            host,
            repository,
            tag,
            name: reference.to_string(),
            by_digest,
            shared,
            by_blob,
            proving: !purpose.takes_tables(),
        }
    }

    pub(super) fn question(&self) -> Question<'_> {
        let Self { host, repository, tag, name, by_digest, shared, by_blob, proving } = self;
        let asked = Asked { host, repository, tag: tag.as_deref(), by_digest: *by_digest };
        Question { asked, name, shared: *shared, by_blob: *by_blob, proving: *proving }
    }
}

/// Returns registry host, full repository name, and the tag; a local layout is its own host.
fn whose(reference: &Reference) -> (String, String, Option<String>) {
    match reference {
        Reference::Registry(image) => {
            let host = image.host().to_string();
            let repository = format!("{host}/{}", image.repository());
            (host, repository, image.tag().map(ToString::to_string))
        }
        local => {
            let path = local.path().map(|path| path.display().to_string()).unwrap_or_default();
            (path.clone(), path, None)
        }
    }
}

/// Says whether a reference of the store names an image of a repository.
pub(super) fn is_in(name: &RefName, repository: &str) -> bool {
    name.as_str().parse().is_ok_and(|reference| whose(&reference).1 == repository)
}
