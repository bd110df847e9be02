//! OCI distribution client and the embedded registry.
//!
//! [`Client::source`] turns a [`Reference`] into a [`Source`]: an image in a registry, an OCI layout or an OCI
//! archive, with its manifest and config checked, its blobs readable by range, and the index artifacts beside it.
//! This crate knows protocols and budgets. It keeps nothing on disk for itself, and bytes of blobs leave it
//! unchecked: whoever reads a range must verify what it got.

mod about;
mod archive;
mod artifact;
mod auth;
mod blob;
mod budget;
mod challenge;
mod client;
mod config;
mod content;
mod convert;
mod copy;
mod credentials;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod hosts;
mod layout;
pub mod limits;
mod manifest;
mod names;
mod push;
mod reference;
mod referrers;
mod reply;
mod retry;
mod scratch;
mod secret;
mod server;
mod soci;
mod source;
mod tls;
mod transport;
mod urgency;

pub use about::About;
pub use artifact::{IndexArtifact, LayerIndexBlob, NewArtifact, NewLayerIndex};
pub use blob::RangeReader;
pub use budget::{Eager, HostStats, Priority};
pub use client::{Client, Pick, Repository};
pub use config::{Budgets, Config, HostConfig, Kubelet};
pub use content::Content;
pub use convert::{
    CONVERTED_FROM, Conversion, Converted, ConvertedLayer, Draft, FileOrder, Format, How, LAYER_TAIL, Open,
    Original, Originals, Recode, RecodeError, Recoded, TopLayer,
};
pub use copy::{Copied, Watch};
pub use credentials::{Handed, Login, Offer};
pub use error::{Cause, Error};
pub use layout::Layout;
pub use manifest::{
    Descriptor, DescriptorPlatform, Image, ImageIndex, ImageManifest, LayerBlob, Manifest, Platform,
    media_type,
};
pub use names::{Host, LayoutName, NameError, RepositoryName, Tag};
pub use push::Pushed;
pub use reference::{ImageName, LayoutPath, Reference, ReferenceError};
pub use scratch::scratch;
pub use secret::Secret;
pub use server::{Server, ServerConfig, ServerStats};
pub use soci::SociIndex;
pub use source::Source;
pub use urgency::Urgency;
