//! Bounds on what comes from registries and configuration, each with its reason.
//!
//! Sizes of manifests, configs and layers are in `format::limits`, because other sources have them too.

use std::time::Duration;

/// Longest host with port, in bytes: a DNS name has at most 253.
pub const HOST: usize = 260;

/// Longest repository name, in bytes: what every registry accepts.
pub const REPOSITORY: usize = 255;

/// Longest tag, in bytes (distribution spec).
pub const TAG: usize = 128;

/// Longest name in an OCI layout, in bytes: a whole reference fits.
pub const LAYOUT_NAME: usize = 1024;

/// Longest reference as typed, in bytes: a path and a name.
pub const REFERENCE: usize = 8192;

/// One configuration file (`config.json`, `hosts.toml`, a PEM bundle), in bytes. The whole set of public
/// roots is 220 KB.
pub const CONFIG_FILE: u64 = 4 << 20;

/// What a credential helper may print, in bytes.
pub const HELPER_OUTPUT: u64 = 256 << 10;

/// How long a credential is used that does not say how long it is good: then somebody may have logged in anew.
pub const CREDENTIAL_LIFE: Duration = Duration::from_secs(300);

/// Credentials of pods that are kept: of more repositories than any node's pods are of.
pub const HANDED: usize = 1024;

/// Longest of them, in bytes. Tokens of clouds have 3 KB.
pub const CREDENTIAL: usize = 16 << 10;

/// How long a credential helper may take: some ask a cloud, none should ask a person.
pub const HELPER_TIME: Duration = Duration::from_secs(30);

/// Answer of a token endpoint, in bytes. The largest tokens seen have 3 KB.
pub const TOKEN: u64 = 256 << 10;

/// Tokens remembered. One per repository and action; a node uses some hundreds.
pub const TOKENS: usize = 4096;

/// Shortest life of a token, whatever the answer says (distribution's token spec: 60 s where it is silent).
pub const TOKEN_LIFE: Duration = Duration::from_secs(60);

/// Blobs whose redirect is remembered. Forgetting one costs a request.
pub const ROUTES: usize = 8192;

/// Redirects followed in one request. Registries use one, those behind a mirror two.
pub const REDIRECTS: u32 = 5;

/// Body of an error answer that is read for its message, in bytes.
pub const ERROR_BODY: u64 = 16 << 10;

/// Nested image indexes. One level is the rule, two have been seen.
pub const INDEX_DEPTH: u32 = 4;

/// Pages of one list (tags, referrers).
pub const PAGES: u32 = 64;

/// Tags of one repository.
pub const TAGS: usize = 200_000;

/// How long a registry that has shown no referrers API, or one, is taken at its word: it may be upgraded.
pub const LISTING: std::time::Duration = std::time::Duration::from_secs(3600);

/// Descriptors of one referrers list that are looked at.
pub const REFERRERS: usize = 1000;

/// Index artifacts of one image that are fetched to choose from: each costs a request.
pub const CANDIDATES: usize = 16;

/// Images of Nydus about one image that are looked at: each costs a config.
pub const NYDUS_IMAGES: usize = 3;

/// Manifests that are copied with one image: its platforms, and what is about any of them. Windows images of every
/// build have some dozens, each with an attestation and signatures.
pub const COPY_MANIFESTS: usize = 4096;

/// All of these together, in bytes: they wait in memory until the blobs are there. A manifest has some kilobytes.
pub const COPY_BYTES: u64 = 64 << 20;

/// Blobs on their way at once when an image is copied: enough to fill a line, and each has a piece of an upload in
/// memory.
pub const COPY_BLOBS: usize = 4;

/// How long the end of a conversion waits for the note of what was made of layers. Without it the next one makes them again, if
/// this one does not come to its end.
pub const NOTE: Duration = Duration::from_secs(20);

/// What a layer that was made before says of its files, in bytes, packed: half a million files. It waits in memory until all layers are
/// there.
pub const TREE_BYTES: u64 = 64 << 20;

/// Layers that are written anew at once when an image is converted: each has a file, and some tens of megabytes in memory.
pub const CONVERT_LAYERS: usize = 4;

/// Signatures of one index artifact.
pub const SIGNATURES: usize = 64;

/// Progress after which a transfer's retries count from zero again, in bytes. Without it a long range over a
/// bad link would fail; with 0 a server that gives one byte a time would be asked forever.
pub const PROGRESS: u64 = 64 << 10;

/// Longest wait that a `Retry-After` can ask for. Longer than the deadline of a read, it is a refusal.
pub const RETRY_AFTER: Duration = Duration::from_secs(300);

/// Piece of a chunked upload, in bytes. Smaller blobs go in one request.
pub const UPLOAD_PIECE: u64 = 8 << 20;

/// Members of an OCI archive: each layer of each image is one.
pub const ARCHIVE_MEMBERS: u64 = 1 << 20;

/// Length of a pax header or long name in an OCI archive that is read, in bytes.
pub const ARCHIVE_HEADER: u64 = 64 << 10;

/// Piece in which local blobs are read and the embedded registry answers, in bytes.
pub const PIECE: u64 = 256 << 10;
