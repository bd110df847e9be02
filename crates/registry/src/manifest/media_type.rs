//! Media types by what they say.

/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer: a plain tar.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A layer, compressed with gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A layer, compressed with zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The empty JSON object, as the config of an artifact.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What an index artifact of Floe is.
pub const FLOE_INDEX: &str = "application/vnd.floe.index.v1";
/// An encoded layer index.
pub const FLOE_LAYER_INDEX: &str = "application/vnd.floe.layer.index.v1";
/// A start-up profile.
pub const FLOE_PROFILE: &str = "application/vnd.floe.profile.v1+json";
/// A signature over the index artifact's facts.
pub const FLOE_SIGNATURE: &str = "application/vnd.floe.signature.v1";
/// What a conversion has come to, as the config of an artifact.
pub const FLOE_CONVERSION: &str = "application/vnd.floe.conversion.v1+json";
/// A layer that is an EROFS file system, as containerd calls it since 2.3.
pub const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";
/// How the types of these begin in whatever version, and packed or not.
const EROFS_LAYERS: &str = "application/vnd.erofs.layer.";
/// How they end for containerd 2.1 and 2.2.
const EROFS_LAYERS_BEFORE: &str = ".erofs";

/// Says whether a layer is an EROFS file system, in whatever packing.
pub fn is_erofs(media_type: &str) -> bool {
    let plain = media_type.split('+').next().unwrap_or_default();
    plain.starts_with(EROFS_LAYERS) || plain.ends_with(EROFS_LAYERS_BEFORE)
}

/// Says whether something is packed besides; what is not a tar is then no file system before it is unpacked.
pub fn is_packed(media_type: &str) -> bool {
    media_type.contains('+')
}
/// An image that needs a client of Nydus, as artifact type.
pub const NYDUS_IMAGE: &str = "application/vnd.nydus.image.manifest.v1+json";
/// The same as a feature of a platform, as older tools have it.
pub const NYDUS_FEATURE: &str = "nydus.remoteimage.v1";
/// The config of such an image, as its tools may call it.
pub const NYDUS_CONFIG: &str = "application/vnd.nydus.image.config.v1+json";
/// A layer of such an image: chunks, and no tar.
pub const NYDUS_BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
