//! gRPC at a Unix socket: one that we make, or one that a service manager keeps.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tonic::transport::server::Router;

use super::server;

/// How long calls under way are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(3);

/// Threads that read and write messages; what takes its time has others.
const THREADS: usize = 2;

/// Connects to somebody else's socket, for a channel.
pub async fn dial(socket: PathBuf) -> std::io::Result<hyper_util::rt::TokioIo<tokio::net::UnixStream>> {
    tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new)
}

/// Where clients connect to.
pub enum At<'a> {
    /// A socket to be made.
    Path(&'a Path),
    /// One that a service manager has made, and keeps while no daemon runs.
    Given(UnixListener),
}

/// A socket that is listened at; calls wait until they are served.
pub struct Socket {
    listener: UnixListener,
    what: &'static str,
    /// The socket that was made, and which file it was.
    made: Option<(PathBuf, Option<(u64, u64)>)>,
}

impl Socket {
    /// Listens; `what` says for what.
    pub fn listen(at: At<'_>, what: &'static str) -> anyhow::Result<Self> {
        let (listener, made) = match at {
            At::Path(socket) => {
                let listener = listen(socket)?;
                tracing::info!(socket = %socket.display(), "serving {what}");
                (listener, Some((socket.to_owned(), server::identity(socket))))
            }
            At::Given(listener) => {
                listener.set_nonblocking(true).context("preparing the service manager's socket")?;
                tracing::info!("serving {what} at the service manager's socket");
                (listener, None)
            }
        };
        Ok(Self { listener, what, made })
    }

    /// Serves there; the services are made where they run.
    pub fn serve(self, services: impl FnOnce() -> Router) -> anyhow::Result<Serving> {
        let Self { listener, what, made } = self;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name(what)
            .enable_all()
            .build()
            .with_context(|| format!("starting the threads for {what}"))?;
        let (listener, services) = {
            let _inside = runtime.enter();
            (tokio::net::UnixListener::from_std(listener).context("preparing the socket")?, services())
        };
        let (end, ended) = tokio::sync::oneshot::channel();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let served = services.serve_with_incoming_shutdown(incoming, async {
            let _ = ended.await; // also when nobody can end it any more
        });
        let served = runtime.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "serving {what}");
            }
        });
        Ok(Serving { made, runtime, end, served })
    }
}

/// Services while they are served.
pub struct Serving {
    made: Option<(PathBuf, Option<(u64, u64)>)>,
    runtime: tokio::runtime::Runtime,
    end: tokio::sync::oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Serving {
    /// Ends; a call that goes on, it may be as long as a pull, has nobody to answer to.
    pub fn stop(self) {
        // What somebody else has put in its place is theirs.
        if let Some((socket, made)) = &self.made
            && server::identity(socket) == *made
        {
            let _ = std::fs::remove_file(socket); // it would only refuse connections
        }
        // What has been asked is answered, unless it takes too long.
        let _ = self.end.send(()); // it may have failed
        let _ = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.served).await });
        self.runtime.shutdown_background();
    }
}

fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    server::is_free(socket)?;
    server::listen(socket)
}
