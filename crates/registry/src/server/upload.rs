//! Blobs on their way in: each upload is a file, its running digest and how far it has come.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use format::{Digest, DigestHasher};
use ring::rand::{SecureRandom, SystemRandom};

use super::request::UploadId;
use crate::error::Error;
use crate::names::RepositoryName;

/// Uploads at once. Each holds a file open.
const UPLOADS: usize = 512;

/// After this time without a request an upload is given up.
const IDLE: Duration = Duration::from_secs(3600);

/// All uploads.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Held for a look-up only.
    open: Mutex<HashMap<UploadId, Arc<Upload>>>,
}

/// One upload.
#[derive(Debug)]
pub(super) struct Upload {
    repository: RepositoryName,
    path: PathBuf,
    /// Bytes taken so far; also readable while a request writes.
    len: AtomicU64,
    used: Mutex<Instant>,
    /// Whoever writes holds it, across waits for the network: two requests must not write at once. The second
    /// waits a little and is then refused.
    pub(super) sink: Arc<tokio::sync::Mutex<Sink>>,
}

/// The writing end.
pub(super) struct Sink {
    file: File,
    hasher: DigestHasher,
    len: u64,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Uploads {
    /// Begins an upload in a directory; `None` if there are too many.
    pub(super) fn begin(&self, dir: PathBuf, repository: &RepositoryName) -> Result<Option<UploadId>, Error> {
        self.sweep();
        if self.lock().len() >= UPLOADS {
            return Ok(None);
        }
        let mut random = [0; 16];
        let failed = || std::io::Error::other("no randomness");
        SystemRandom::new().fill(&mut random).map_err(|_| Error::io("naming an upload", failed()))?;
        let id = UploadId::new(random);
        let path = dir.join(id.as_str());
        let file = File::create_new(&path)
            .map_err(|error| Error::io(format!("creating {}", path.display()), error))?;
        let upload = Upload {
            repository: repository.clone(),
            path,
            len: AtomicU64::new(0),
            used: Mutex::new(Instant::now()),
            sink: Arc::new(tokio::sync::Mutex::new(Sink { file, hasher: DigestHasher::new(), len: 0 })),
        };
        self.lock().insert(id.clone(), Arc::new(upload));
        Ok(Some(id))
    }

    /// Returns an upload of this repository.
    pub(super) fn get(&self, repository: &RepositoryName, id: &UploadId) -> Option<Arc<Upload>> {
        let upload = self.lock().get(id).filter(|upload| upload.repository == *repository).cloned()?;
        *upload.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Some(upload)
    }

    /// Forgets an upload; what was written goes with it unless it was renamed.
    pub(super) fn end(&self, id: &UploadId) {
        if let Some(upload) = self.lock().remove(id) {
            let _ = std::fs::remove_file(&upload.path); // renamed, or emptied at the next start
        }
    }

    fn sweep(&self) {
        let idle =
            |upload: &Upload| upload.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > IDLE;
        let old: Vec<UploadId> =
            self.lock().iter().filter(|(_, upload)| idle(upload)).map(|(id, _)| id.clone()).collect();
        old.iter().for_each(|id| self.end(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Upload>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    pub(super) fn len(&self) -> u64 {
        self.len.load(Relaxed)
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Adds bytes. Blocks.
    pub(super) fn write(&self, sink: &mut Sink, bytes: &[u8]) -> Result<(), Error> {
        sink.file
            .write_all(bytes)
            .map_err(|error| Error::io(format!("writing {}", self.path.display()), error))?;
        sink.hasher.update(bytes);
        sink.len += bytes.len() as u64;
        self.len.store(sink.len, Relaxed);
        Ok(())
    }

    /// Makes all that was written durable and returns its digest. Blocks.
    pub(super) fn seal(&self, sink: &mut Sink) -> Result<Digest, Error> {
        sink.file.sync_all().map_err(|error| Error::io(format!("writing {}", self.path.display()), error))?;
        Ok(sink.hasher.clone().finish())
    }
}
