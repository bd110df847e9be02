//! The gRPC service `containerd.services.snapshots.v1`, on a Unix socket.
//!
//! Every call is for the snapshotter that it names, and sees its snapshots only. Calls may take as long as a pull: each runs on a
//! thread of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use containerd::filter::Filters;
use containerd::services::snapshots::v1 as api;
use containerd::types;
use store::{NewSnapshot, Snapshot, SnapshotError, SnapshotKind, StoreError};
use tonic::{Code, Request, Response, Status};

use super::labels::SNAPSHOT_REF;
use super::{Failure, Mount, STAY, Snapshotter};
use crate::daemon::grpc::{self, At, Socket};
use crate::engine::Engine;

/// Snapshots in one message of a list.
const PAGE: usize = 100;

/// The service while it is served.
pub struct Serving {
    snapshotter: Arc<Snapshotter>,
    grpc: grpc::Serving,
}

impl Serving {
    /// Ends the service.
    pub fn stop(self) -> Arc<Snapshotter> {
        self.grpc.stop();
        self.snapshotter.end();
        self.snapshotter
    }
}

/// Serves snapshots at a socket.
pub fn serve(engine: &Arc<Engine>, at: At<'_>) -> anyhow::Result<Serving> {
    let run = crate::daemon::run_dir(engine.root())?;
    for dir in [engine.root(), &run] {
        // overlayfs takes them for the end of a directory, and of an option.
        if dir.to_str().is_none_or(|dir| dir.contains([':', ',', '\\'])) {
            bail!(
                "{} cannot be part of an overlay: no colon, comma or backslash may be in it",
                dir.display()
            );
        }
    }
    let socket = Socket::listen(at, "snapshots")?;
    let snapshotter = Snapshotter::new(engine, &run)?;
    let service = api::snapshots_server::SnapshotsServer::new(Service(snapshotter.clone()));
    let services = || tonic::transport::Server::builder().add_service(service);
    Ok(Serving { grpc: socket.serve(services)?, snapshotter })
}

struct Service(Arc<Snapshotter>);

impl Service {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshotter) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let snapshotter = self.0.clone();
        let done = tokio::task::spawn_blocking(move || work(&snapshotter)).await;
        let done = done.map_err(|_| Status::internal("the daemon failed; its log says more"))?;
        done.map(Response::new).map_err(status)
    }
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| {
            let labels = asked.labels.into_iter().collect();
            let new = named(&asked.snapshotter, &asked.key, &asked.parent, &labels);
            let mounts = messages(snapshotter.create(&new, SnapshotKind::Active)?);
            Ok(api::PrepareSnapshotResponse { mounts })
        })
        .await
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| {
            let labels = asked.labels.into_iter().collect();
            let new = named(&asked.snapshotter, &asked.key, &asked.parent, &labels);
            let mounts = messages(snapshotter.create(&new, SnapshotKind::View)?);
            Ok(api::ViewSnapshotResponse { mounts })
        })
        .await
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| {
            let snapshot = snapshotter.snapshots().get(&asked.snapshotter, &asked.key)?;
            Ok(api::MountsResponse { mounts: messages(snapshotter.mounts_of(&snapshot)?) })
        })
        .await
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| {
            let labels = asked.labels.into_iter().collect();
            let new = named(&asked.snapshotter, &asked.name, &asked.parent, &labels);
            snapshotter.commit(&new, &asked.key)
        })
        .await
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| snapshotter.remove(&asked.snapshotter, &asked.key)).await
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| {
            let snapshot = snapshotter.snapshots().get(&asked.snapshotter, &asked.key)?;
            Ok(api::StatSnapshotResponse { info: Some(info(&snapshot)) })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let asked = request.into_inner();
        let wanted = asked.info.ok_or_else(|| Status::invalid_argument("no snapshot is named"))?;
        let paths = asked.update_mask.map_or_else(Vec::new, |mask| mask.paths);
        if let Some(path) = paths.iter().find(|path| *path != "labels" && !path.starts_with("labels.")) {
            return Err(Status::invalid_argument(format!("{path:?} of a snapshot cannot be changed")));
        }
        self.run(move |snapshotter| {
            let changed = snapshotter.snapshots().label(&asked.snapshotter, &wanted.name, |labels| {
                relabel(labels, &paths, wanted.labels);
            })?;
            Ok(api::UpdateSnapshotResponse { info: Some(info(&changed)) })
        })
        .await
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let asked = request.into_inner();
        let filters =
            Filters::parse(&asked.filters).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let listed = self.run(move |snapshotter| {
            let mut found = snapshotter.snapshots().list(&asked.snapshotter);
            found.retain(|snapshot| passes(&filters, snapshot));
            Ok(found)
        });
        let found = listed.await?.into_inner();
        let page =
            |page: &[Snapshot]| Ok(api::ListSnapshotsResponse { info: page.iter().map(info).collect() });
        let pages: Vec<_> = found.chunks(PAGE).map(page).collect();
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let asked = request.into_inner();
        self.run(move |snapshotter| {
            let usage = snapshotter.usage(&asked.snapshotter, &asked.key)?;
            let number = |n| i64::try_from(n).unwrap_or(i64::MAX);
            Ok(api::UsageResponse { size: number(usage.bytes), inodes: number(usage.inodes) })
        })
        .await
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        self.run(|snapshotter| {
            snapshotter.snapshots().clean_up();
            Ok(())
        })
        .await
    }
}

fn named<'a>(
    owner: &'a str,
    name: &'a str,
    parent: &'a str,
    labels: &'a BTreeMap<String, String>,
) -> NewSnapshot<'a> {
    NewSnapshot { owner, name, parent: Some(parent).filter(|parent| !parent.is_empty()), labels }
}

/// Changes labels as a field mask says: all of them, or single ones, of which those without value go. Some stay as they are.
fn relabel(labels: &mut BTreeMap<String, String>, paths: &[String], wanted: HashMap<String, String>) {
    let stay = STAY.map(|label| (label, labels.get(label).cloned()));
    change(labels, paths, wanted);
    for (label, value) in stay {
        match value {
            Some(value) => drop(labels.insert(label.to_owned(), value)),
            None => drop(labels.remove(label)),
        }
    }
}

fn change(labels: &mut BTreeMap<String, String>, paths: &[String], wanted: HashMap<String, String>) {
    if paths.is_empty() || paths.iter().any(|path| path == "labels") {
        *labels = wanted.into_iter().collect();
        return;
    }
    for key in paths.iter().filter_map(|path| path.strip_prefix("labels.")) {
        match wanted.get(key).filter(|value| !value.is_empty()) {
            Some(value) => drop(labels.insert(key.to_owned(), value.clone())),
            None => drop(labels.remove(key)),
        }
    }
}

fn passes(filters: &Filters, snapshot: &Snapshot) -> bool {
    filters.pass(|path| match path {
        [field] if field == "name" => Some(snapshot.name.as_str()),
        [field] if field == "parent" => Some(snapshot.parent.as_deref().unwrap_or_default()),
        [field] if field == "kind" => Some(match snapshot.kind {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        }),
        // As containerd has it: a key may have dots of its own.
        [field, key @ ..] if field == "labels" => match key.join(".") {
            key if key == SNAPSHOT_REF => snapshot.lazy.as_ref().map(|_| snapshot.name.as_str()),
            key => snapshot.labels.get(&key).map(String::as_str),
        },
        _ => None,
    })
}

fn info(snapshot: &Snapshot) -> api::Info {
    let kind = match snapshot.kind {
        SnapshotKind::View => api::Kind::View,
        SnapshotKind::Active => api::Kind::Active,
        SnapshotKind::Committed => api::Kind::Committed,
    };
    let mut labels: HashMap<_, _> = snapshot.labels.clone().into_iter().collect();
    // By this label containerd finds what stands for a layer: that is a lazy one of this name, whatever was noted since.
    labels.remove(SNAPSHOT_REF);
    labels.extend(snapshot.lazy.as_ref().map(|_| (SNAPSHOT_REF.to_owned(), snapshot.name.clone())));
    api::Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(snapshot.created)),
        updated_at: Some(timestamp(snapshot.updated)),
        labels,
    }
}

fn timestamp(since: Duration) -> prost_types::Timestamp {
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0); // below 10^9
    prost_types::Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos }
}

fn messages(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let message = |Mount { kind, source, options }| types::Mount {
        r#type: kind.to_owned(),
        source,
        target: String::new(),
        options,
    };
    mounts.into_iter().map(message).collect()
}

/// Returns the answer by which containerd knows what went wrong.
fn status(failure: Failure) -> Status {
    let code = match &failure {
        Failure::Snapshot(SnapshotError::NotFound(_)) => Code::NotFound,
        Failure::Snapshot(SnapshotError::Exists(_)) => Code::AlreadyExists,
        Failure::Snapshot(SnapshotError::Unfit { .. }) => Code::FailedPrecondition,
        Failure::Snapshot(SnapshotError::Invalid(_)) => Code::InvalidArgument,
        Failure::Snapshot(SnapshotError::Store(StoreError::Full { .. })) => Code::ResourceExhausted,
        Failure::Snapshot(SnapshotError::Store(_)) => Code::Internal,
        Failure::Mount { .. } => Code::Unavailable,
    };
    Status::new(code, format!("{:#}", anyhow::Error::new(failure)))
}
