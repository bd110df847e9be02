//! The segments of a layer that is being streamed for the first time: nothing of it is shown before its proof.
//!
//! They are written under `tmp/` and given their place by one rename when blob and diffID have passed. A pull
//! that fails, or a process that dies, leaves nothing. Committing does not sync: the layer is then in the same
//! position as one that was filled lazily in this era, and [`crate::ReadThrough::complete`] seals it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use format::layer::Layer;
use format::proof::Proved;

use crate::claim::FillError;
use crate::error::StoreError;
use crate::guard;
use crate::record::{self, Kind};
use crate::segments::{Content, OpenLayer};
use crate::standing::{self, Proof, STATE, Standing};
use crate::store::{Pin, Store};

/// Segments without a name yet; dropping it removes them.
#[derive(Debug)]
pub struct Staging {
    store: Arc<Store>,
    dir: PathBuf,
    lens: BTreeMap<u32, u64>,
}

impl Store {
    /// Begins to stage a layer.
    pub fn stage(self: &Arc<Self>) -> Result<Staging, StoreError> {
        let dir = self.temporary();
        self.disk().create_dir(&dir).map_err(|error| StoreError::io("creating", &self.path(&dir), error))?;
        Ok(Staging { store: Arc::clone(self), dir, lens: BTreeMap::new() })
    }
}

impl Staging {
    /// Appends bytes to a segment. Its padding is written like any byte, so that it is as long as it must be.
    pub fn write(&mut self, segment: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join(segment.to_string());
        let disk = self.store.disk();
        let written = match self.lens.get(&segment) {
            None => disk.create(&path).map(|file| (file, 0)),
            Some(len) => disk.open_append(&path).map(|file| (file, *len)),
        }
        .and_then(|(file, end)| disk.append(&file, end, bytes).map(|()| end));
        let end = written.map_err(|error| StoreError::io("writing", &self.store.path(&path), error))?;
        self.lens.insert(segment, end + bytes.len() as u64);
        Ok(())
    }

    /// Gives the segments of a proved layer their place; the pin keeps them from `gc` until a reference does.
    pub fn commit(self, layer: &Arc<Layer>, proved: Proved) -> Result<Pin, StoreError> {
        if proved.index() != layer.id() {
            let what = format!("the proof is of {}, the layer is {}", proved.index(), layer.id());
            return Err(StoreError::damaged(&self.store.path(&self.dir), what));
        }
        self.commit_as(Arc::<Layer>::clone(layer))
    }

    /// Gives proved segments their place.
    pub(crate) fn commit_as(mut self, content: Arc<dyn Content>) -> Result<Pin, StoreError> {
        let store = Arc::clone(&self.store);
        let id = content.id();
        self.is_complete(content.as_ref())?;
        let closed = guard::read(&store.closed);
        if *closed {
            return Err(StoreError::Closed { root: store.root().to_owned() });
        }
        let state = self.dir.join(STATE);
        let bytes = standing::state(store.era(), Standing::PROVED, standing::new_generation());
        let bytes = record::encode(Kind::Layer, &bytes);
        let disk = store.disk();
        disk.create(&state)
            .and_then(|file| disk.append(&file, 0, &bytes))
            .map_err(|error| StoreError::io("writing", &store.path(&state), error))?;
        let pin = Pin::new(&store, id);
        let place = standing::directory(id);
        let placed = {
            // Nobody else makes this directory meanwhile. Held across one rename.
            let _open = guard::lock(&store.open);
            disk.rename(&self.dir, &place)
        };
        drop(closed);
        match placed {
            Ok(()) => self.lens.clear(),
            // Some of the layer is here, and may be mounted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                self.fill_in(OpenLayer::open(&store, content)?.as_ref())?;
            }
            Err(error) => return Err(StoreError::io("naming", &store.path(&place), error)),
        }
        Ok(pin)
    }

    fn is_complete(&self, content: &dyn Content) -> Result<(), StoreError> {
        let wrong = (0..content.segments()).find(|n| self.lens.get(n) != Some(&content.len(*n)));
        let extra = self.lens.keys().find(|n| **n >= content.segments()).copied();
        match wrong.or(extra) {
            None => Ok(()),
            Some(n) => Err(StoreError::damaged(
                &self.store.path(&self.dir.join(n.to_string())),
                format!("it has {:?} bytes, the index of the layer says otherwise", self.lens.get(&n)),
            )),
        }
    }

    /// Writes what an open layer lacks, like any fill. Our bytes are proved, so what is there must be the same; if
    /// its proof has failed before, then because the disk had changed a byte.
    fn fill_in(&self, layer: &OpenLayer) -> Result<(), StoreError> {
        let mut all = true;
        // Nobody may seal the layer between the end of a bad segment and the sync of the one that takes its place.
        let _one = guard::lock(&layer.completing);
        if let Proof::Refused { .. } = layer.standing().proof {
            layer.update(|standing| standing.proof = Proof::Open)?;
        }
        for segment in 0..layer.segments() {
            let path = self.dir.join(segment.to_string());
            let failed = |error| StoreError::io("writing", &self.store.path(&path), error);
            let len = self.lens.get(&segment).copied().unwrap_or_default();
            let bytes = crate::fs::read_whole(self.store.disk(), &path, len).map_err(failed)?;
            layer.scrub(segment)?;
            match layer.fill(segment, &bytes) {
                Ok(()) => {}
                // Somebody proved it false meanwhile: the rest of the layer is good, this one stays missing.
                Err(FillError::Refused) => {
                    tracing::warn!(layer = %layer.id(), segment, "a segment cannot be written over what is there");
                    all = false;
                }
                Err(FillError::Closed) => {
                    return Err(StoreError::Closed { root: self.store.root().to_owned() });
                }
                Err(FillError::Io(error)) => return Err(failed(error)),
            }
        }
        if !all {
            return Ok(());
        }
        layer.update(|standing| (standing.proof, standing.doubt) = (Proof::Proved, None))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.store.discard(&self.dir);
    }
}
