//! What clients say of the layer that they want, and whether it is one of an image that can be had.
//!
//! | who | image | layer |
//! |---|---|---|
//! | CRI, nerdctl, Docker, containerd's `AppendInfoHandlerWrapper`; the transfer service of 2.1, if asked to by `exports` | `…/cri.image-ref` | `…/cri.layer-digest` |
//! | BuildKit (with a suffix of its own), ctr-remote | `…/remote/stargz.reference` | `…/remote/stargz.digest` |
//! | `floe pull --to containerd` | `…/floe.reference` | `…/floe.layer` |
//!
//! All below `containerd.io/snapshot`. Nothing of it is believed: the layer is lazy if the image has it where the chain
//! ID says, and the chain ID is made of what the image's config says that the layers are.

use std::collections::BTreeMap;

use format::{ChainId, Digest};
use store::SnapshotError;

use crate::engine::stack::Lent;

/// The chain ID of the snapshot that somebody is about to unpack.
pub(super) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// The labels of an image and its layer, the most trustworthy first.
const PAIRS: [(&str, &str); 3] = [
    ("containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/cri.layer-digest"),
    ("containerd.io/snapshot/remote/stargz.reference", "containerd.io/snapshot/remote/stargz.digest"),
    (REFERENCE, LAYER),
];

/// The image, as `floe pull` says it.
pub(crate) const REFERENCE: &str = "containerd.io/snapshot/floe.reference";

/// Its layer.
pub(crate) const LAYER: &str = "containerd.io/snapshot/floe.layer";

/// Why a layer is not lazy.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotLazy {
    /// Nobody said what it is.
    #[error("no label names the image and the layer")]
    Unlabelled,
    /// A label makes no sense.
    #[error("label {label}: {value:?} is no {what}")]
    Nonsense {
        /// The label.
        label: String,
        /// Its value.
        value: String,
        /// What it should be.
        what: &'static str,
    },
    /// The image cannot be had, or none of it be shown yet.
    #[error("opening the image: {0:#}")]
    Image(anyhow::Error),
    /// The image has no such layer with such a chain ID.
    #[error("the image has no layer {layer} with the chain ID {target:?}")]
    NoSuchLayer {
        /// The layer's blob.
        layer: Digest,
        /// The chain ID.
        target: String,
    },
    /// It stands on a layer that is not lazy.
    #[error("the layer below is not lazy")]
    Parent,
    /// It stands on something else than in the image.
    #[error("the layers below are not those of the image")]
    OtherParent,
    /// Its snapshot cannot be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl NotLazy {
    /// Returns the reason in a word, as the metrics have it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Unlabelled => "unlabelled",
            Self::Nonsense { .. } => "label",
            Self::Image(_) => "image",
            Self::NoSuchLayer { .. } => "no-layer",
            Self::Parent | Self::OtherParent => "parent",
            Self::Snapshot(_) => "store",
        }
    }
}

/// A layer that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    reference: String,
    layer: Digest,
}

impl Wish {
    /// Returns what labels say.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Result<Self, NotLazy> {
        let (reference, layer) = PAIRS
            .iter()
            .find_map(|(image, layer)| Some((find(labels, image)?, find(labels, layer)?)))
            .ok_or(NotLazy::Unlabelled)?;
        let nonsense = |(label, value): (&str, &str), what| NotLazy::Nonsense {
            label: label.to_owned(),
            value: shortened(value),
            what,
        };
        let digest = layer.1.parse().map_err(|_| nonsense(layer, "digest"))?;
        // What clients write is a registry's name, whatever it looks like.
        let name: registry::Reference = format!("docker://{}", reference.1.trim_start_matches("docker://"))
            .parse()
            .map_err(|_| nonsense(reference, "image"))?;
        Ok(Self { reference: name.to_string(), layer: digest })
    }

    /// Returns the image's name, as everything here names it.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// Returns the layer's blob.
    pub(super) fn layer(&self) -> &Digest {
        &self.layer
    }

    /// Returns which layer of the image it is.
    pub(super) fn find(&self, target: &str, image: &Lent) -> Result<usize, NotLazy> {
        let diff_ids = image.diff_ids();
        let is_it =
            |n: &usize| ChainId::of(&diff_ids[..=*n]).is_some_and(|chain| chain.to_string() == target);
        let layers = image.layers();
        let found = (0..layers.len()).filter(|n| layers[*n].blob == self.layer).find(is_it);
        found.ok_or_else(|| NotLazy::NoSuchLayer { layer: self.layer, target: shortened(target) })
    }
}

/// Returns as much of a label as is told in a log.
pub(super) fn shortened(label: &str) -> String {
    label.chars().take(256).collect()
}

/// Returns the label of this name, or the first that is made of it and a suffix.
fn find<'a>(labels: &'a BTreeMap<String, String>, name: &str) -> Option<(&'a str, &'a str)> {
    let pair = |(key, value): (&'a String, &'a String)| (key.as_str(), value.as_str());
    let suffixed = format!("{name}.");
    let first = || labels.range(suffixed.clone()..).next().filter(|(key, _)| key.starts_with(&suffixed));
    labels.get_key_value(name).or_else(first).map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| (format!("containerd.io/snapshot/{key}"), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_labels_of_all_clients_are_understood_in_their_order() {
        let [a, b] = ["a", "b"].map(|text| Digest::of(text.as_bytes()).to_string());
        let wish = |pairs: &[(&str, &str)]| {
            Wish::of(&labels(pairs)).map(|wish| (wish.reference, wish.layer.to_string()))
        };
        let cri = [("cri.image-ref", "docker.io/library/nginx:1"), ("cri.layer-digest", &*a)];
        let name = "docker://docker.io/library/nginx:1".to_owned();
        assert_eq!(wish(&cri).unwrap(), (name.clone(), a.clone()));
        let buildkit =
            [("remote/stargz.reference.x1", "registry.example/app:v1"), ("remote/stargz.digest.x1", &*b)];
        assert_eq!(wish(&buildkit).unwrap(), ("docker://registry.example/app:v1".to_owned(), b.clone()));
        assert_eq!(wish(&[cri, buildkit].concat()).unwrap(), (name, a.clone()));
        let ours = [("floe.reference", "docker://registry.example/app:v1"), ("floe.layer", &*a)];
        assert_eq!(wish(&ours).unwrap().1, a);
        assert!(matches!(wish(&cri[..1]), Err(NotLazy::Unlabelled)));
        assert!(matches!(wish(&[]), Err(NotLazy::Unlabelled)));
        for (image, layer) in [("Not An Image", &*a), ("registry.example/app:v1", "sha256:1"), ("", &*a)] {
            let odd = wish(&[("cri.image-ref", image), ("cri.layer-digest", layer)]);
            assert!(matches!(odd, Err(NotLazy::Nonsense { .. })), "{image} {layer}: {odd:?}");
        }
    }
}
