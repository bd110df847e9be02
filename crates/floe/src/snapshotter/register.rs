//! Makes an image known to a containerd without its layers: `floe pull --to containerd`.
//!
//! What containerd's own pull does, in its order: a lease, so that nothing is collected meanwhile; each layer's snapshot,
//! which the snapshotter, this daemon, says is there already; config, manifest and the image index that the tag stands for into the
//! content store; the name. The blobs of layers come last, and where they are asked for only ([`super::blobs`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use containerd::services::{
    content::v1 as content, images::v1 as images, leases::v1 as leases, snapshots::v1 as snapshots,
};
use containerd::types::Descriptor;
use format::{ChainId, Digest};
use registry::Manifest;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::labels::{LAYER, REFERENCE, SNAPSHOT_REF};
use crate::daemon::grpc;
use crate::engine::Talk;
use crate::engine::stack::Lent;
use crate::exit::Hint;

/// The socket of containerd, unless said.
pub const ADDRESS: &str = "/run/containerd/containerd.sock";

/// How long a lease lives that its owner could not delete: longer than what is done under it, be it blobs over a slow line.
const LEASE: std::time::Duration = std::time::Duration::from_secs(3600);
const LEASE_OF_BLOBS: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// How long connecting to a containerd may take.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// How long one call may take: the layers are open already.
const CALL: std::time::Duration = std::time::Duration::from_secs(120);

/// A containerd, and what an image is called there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace.
    pub namespace: String,
    /// The name by which it knows the snapshotter that this daemon is.
    pub snapshotter: String,
    /// Whether it is to have the layers' blobs too.
    #[serde(default)]
    pub blobs: bool,
}

/// Makes an open image known.
pub(crate) async fn register(target: &Target, image: &Lent, talk: &Talk<'_>) -> anyhow::Result<()> {
    let name = image.reference().strip_prefix("docker://").context(Hint::new(
        "naming the image",
        "containerd knows images of registries only: docker://host/name:tag",
    ))?;
    let channel = connect(&target.address).await?;
    let mut session = Session { target, channel, lease: None };
    session.lease().await?;
    let mut registered = session.register(name, image).await;
    if target.blobs && registered.is_ok() {
        registered = session.blobs(name, image, talk).await.context("fetching the blobs of its layers");
    }
    // What was begun is left to whoever tries again; the lease, which keeps it, ends by itself.
    if registered.is_ok() || !target.blobs {
        session.end().await;
    }
    registered.with_context(|| format!("making {name} known to containerd at {}", target.address.display()))
}

/// Connects to a gRPC service at a socket.
pub async fn connect(address: &Path) -> anyhow::Result<Channel> {
    let socket = address.to_owned();
    let connector = tower::service_fn(move |_| grpc::dial(socket.clone()));
    // The name is not looked up: the connector knows where to go.
    let endpoint =
        tonic::transport::Endpoint::from_static("http://containerd").connect_timeout(CONNECT).timeout(CALL);
    endpoint.connect_with_connector(connector).await.with_context(|| {
        Hint::new(
            format!("connecting to containerd at {}", address.display()),
            "is it running? --to containerd=/path/to/its.sock names another socket",
        )
    })
}

/// A containerd that is being told, under a lease.
pub(super) struct Session<'a> {
    target: &'a Target,
    pub(super) channel: Channel,
    lease: Option<String>,
}

impl Session<'_> {
    async fn lease(&mut self) -> anyhow::Result<()> {
        let id = format!("floe-{}-{}", std::process::id(), nanos());
        let lives = if self.target.blobs { LEASE_OF_BLOBS } else { LEASE };
        let expire = crate::engine::publish::moment(std::time::SystemTime::now() + lives);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]);
        let asked = self.request(leases::CreateRequest { id: id.clone(), labels })?;
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        client.create(asked).await.context("taking a lease of containerd's")?;
        self.lease = Some(id);
        Ok(())
    }

    /// Lets the lease go; it expires by itself where that fails.
    async fn end(&mut self) {
        let Some(id) = self.lease.take() else { return };
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let Ok(asked) = self.request(leases::DeleteRequest { id, sync: false }) else { return };
        if let Err(error) = client.delete(asked).await {
            tracing::warn!(%error, "letting a lease of containerd's go");
        }
    }

    async fn register(&self, name: &str, image: &Lent) -> anyhow::Result<()> {
        let layers = image.layers();
        let diff_ids = image.diff_ids();
        let mut parent = String::new();
        for (n, layer) in layers.iter().enumerate() {
            let chain = ChainId::of(&diff_ids[..=n]).context("an image has a layer")?.to_string();
            let labels = [(SNAPSHOT_REF, &*chain), (REFERENCE, name), (LAYER, &layer.blob.to_string())];
            self.snapshot(&chain, &parent, &labels).await?;
            parent = chain;
        }
        let (config, manifest) = (image.config(), image.manifest_bytes());
        let config_digest = Digest::of(config);
        let keeps = (format!("containerd.io/gc.ref.snapshot.{}", self.target.snapshotter), parent);
        self.blob(config, Some(keeps).into_iter().filter(|(_, top)| !top.is_empty()))
            .await
            .context("storing the config")?;
        let refers = layers.iter().enumerate().map(|(n, layer)| (format!("l.{n}"), layer.blob));
        let refers = std::iter::once(("config".to_owned(), config_digest)).chain(refers);
        let refers =
            refers.map(|(what, digest)| (format!("containerd.io/gc.ref.content.{what}"), digest.to_string()));
        self.blob(manifest, refers.chain([source(name)])).await.context("storing the manifest")?;
        let Some(indexes) = image.indexes() else {
            if self.target.blobs {
                bail!(
                    "the registry does not say what {name} stands for: its blobs cannot be asked for either"
                );
            }
            // What the tag stands for could not be asked, so a name that is there says more than the manifest.
            return self.name(name, image.manifest_descriptor(), false).await;
        };
        for index in indexes.iter().rev() {
            let refers = index.children().into_iter().enumerate();
            // All of them, as containerd has it: what is fetched later is kept too, and it minds none that is missing.
            let refers = refers
                .map(|(n, child)| (format!("containerd.io/gc.ref.content.m.{n}"), child.digest.to_string()));
            self.blob(&index.bytes, refers.chain([source(name)])).await.context("storing the image index")?;
        }
        let outermost = indexes.first().map(Manifest::descriptor);
        self.name(name, outermost.as_ref().unwrap_or(image.manifest_descriptor()), true).await
    }

    /// Has a layer's snapshot made.
    async fn snapshot(&self, chain: &str, parent: &str, labels: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut client = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let key = format!("floe-pull-{}-{} {chain}", std::process::id(), nanos());
        let snapshotter = self.target.snapshotter.clone();
        let asked = self.request(snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        })?;
        match client.prepare(asked).await {
            Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
            Err(status) if status.code() == Code::InvalidArgument || status.code() == Code::NotFound => {
                return Err(anyhow::Error::new(status).context(Hint::new(
                    format!("asking containerd's snapshotter {snapshotter:?}"),
                    "its configuration must name this daemon's socket under [proxy_plugins]",
                )));
            }
            Err(status) => return Err(status).context("preparing the snapshot of a layer"),
            Ok(_) => {}
        }
        let gone = client.remove(
            self.request(snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key })?,
        );
        let _ = gone.await; // its lease goes, and it with it
        bail!(anyhow::anyhow!("{snapshotter:?} made an ordinary snapshot of {chain}").context(Hint::new(
            "having a layer made lazily",
            "is that snapshotter this daemon? its log says why the layer is not lazy"
        )))
    }

    async fn blob(&self, bytes: &[u8], labels: impl Iterator<Item = (String, String)>) -> anyhow::Result<()> {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        let digest = Digest::of(bytes).to_string();
        let labels: HashMap<_, _> = labels.collect();
        let length = i64::try_from(bytes.len()).context("measuring a blob")?;
        let write = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: format!("floe-{digest}"),
            total: length,
            expected: digest.clone(),
            offset: 0,
            data: bytes.to_vec(),
            labels: labels.clone(),
        };
        let written: Result<(), Status> = async {
            let mut answers = client.write(self.request(tokio_stream::iter([write]))?).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        }
        .await;
        match written {
            Err(status) if status.code() == Code::AlreadyExists => {}
            written => return Ok(written?),
        }
        Ok(self.label(digest, labels).await?)
    }

    /// Adds labels to what is in the content store.
    pub(super) async fn label(&self, digest: String, labels: HashMap<String, String>) -> Result<(), Status> {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        let mask = labels.keys().map(|key| format!("labels.{key}")).collect();
        let update = content::UpdateRequest {
            info: Some(content::Info { digest, labels, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: mask }),
        };
        client.update(self.request(update)?).await.map(|_| ())
    }

    async fn name(&self, name: &str, descriptor: &registry::Descriptor, replace: bool) -> anyhow::Result<()> {
        let mut client = images::images_client::ImagesClient::new(self.channel.clone());
        let named = images::Image {
            name: name.to_owned(),
            target: Some(Descriptor {
                media_type: descriptor.media_type.clone(),
                digest: descriptor.digest.to_string(),
                size: i64::try_from(descriptor.size).context("measuring the manifest")?,
                annotations: HashMap::new(),
            }),
            ..Default::default()
        };
        let create = images::CreateImageRequest { image: Some(named.clone()), ..Default::default() };
        match client.create(self.request(create)?).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists && !replace => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let mask = prost_types::FieldMask { paths: vec!["target".into()] };
                let update = images::UpdateImageRequest {
                    image: Some(named),
                    update_mask: Some(mask),
                    ..Default::default()
                };
                client.update(self.request(update)?).await.context("changing what the name means")?;
                Ok(())
            }
            Err(status) => Err(status).context("naming the image"),
        }
    }

    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let header =
            |text: &str| text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is no header")));
        request.metadata_mut().insert("containerd-namespace", header(&self.target.namespace)?);
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", header(lease)?);
        }
        Ok(request)
    }
}

/// Returns the label that says where content of an image came from: who pushes it there has nothing to send.
pub(super) fn source(name: &str) -> (String, String) {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    let repository = repository.split(['@', ':']).next().unwrap_or(repository);
    (format!("containerd.io/distribution.source.{host}"), repository.to_owned())
}

fn nanos() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos()
}
