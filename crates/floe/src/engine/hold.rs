//! A mount that a client holds for a container, and what that teaches.

use std::sync::Arc;

use anyhow::Context;
use format::{Digest, IndexId};

use super::Engine;
use super::mounts::Held;
use super::open::OpenImage;
use super::profile::Profile;
use super::report::{Timings, Traffic};
use crate::daemon::protocol::{Learned, Lesson, Mounted, Ready, Told};

/// A mount that is let go when this is dropped.
pub struct Hold {
    pub(super) engine: Arc<Engine>,
    pub(super) image: Arc<OpenImage>,
    pub(super) live: Held,
    pub(super) background: bool,
    /// What had come by then.
    pub(super) before: Traffic,
}

impl Hold {
    /// Returns what the client needs to start a container.
    pub fn mounted(&self) -> anyhow::Result<Mounted> {
        let report = self.engine.report(&self.image);
        Ok(Mounted { dir: self.live.mount.dir().to_owned(), config: self.image.config_text()?, report })
    }

    /// Hears that the container is ready: keeps the profile, lets the background begin.
    pub fn ready(&self, ready: &Ready) -> Told {
        let live = &self.live.mount;
        let timings = Timings {
            report: self.engine.report(&self.image),
            running: ready.running,
            path: live.path(),
            waiting: live.waits().waited(),
            waits: live.waits().by_file(live.image()),
            traffic: self.engine.net.traffic() - self.before,
        };
        let reads = live.reads().filter(|_| ready.record);
        let lesson = reads.and_then(|reads| {
            let lesson = self.lesson(&reads);
            lesson.inspect_err(|error| tracing::warn!("no profile is kept: {error:#}")).ok()
        });
        live.end_start();
        if self.background {
            self.engine.fetch_rest(&self.image);
        }
        Told { timings, lesson }
    }

    /// Keeps what was read, and returns it.
    fn lesson(&self, reads: &[(IndexId, u32)]) -> anyhow::Result<Lesson> {
        let profile = Profile::new(self.image.layer_ids(), reads).of(self.image.diff_ids());
        let profile = String::from_utf8(profile.to_json()?)?;
        self.keep(self.image.manifest(), profile.as_bytes())?;
        Ok(Lesson { profile, meta: self.image.meta_path().to_owned() })
    }

    /// Keeps a profile that has files. Where the image is shown in place of another one, that has the same files, and is told
    /// of them unless a start of its own told more.
    pub fn learned(&self, learned: &Learned) -> anyhow::Result<()> {
        let profile = Profile::parse(learned.profile.as_bytes()).context("reading the profile")?;
        let (shown, asked) = (self.image.manifest(), self.image.asked());
        self.keep(shown, learned.profile.as_bytes())?;
        if asked == shown || profile.files().is_empty() || self.has_started(asked) {
            return Ok(());
        }
        self.keep(asked, &profile.of_files().to_json()?)
    }

    /// Says whether a start of this very image was recorded.
    fn has_started(&self, manifest: Digest) -> bool {
        let recorded = self.engine.recorded_profile(manifest);
        let recorded = recorded.and_then(|bytes| Profile::parse(&bytes).ok());
        recorded.is_some_and(|recorded| recorded.has_layers())
    }

    fn keep(&self, manifest: Digest, profile: &[u8]) -> anyhow::Result<()> {
        self.engine.store.put_profile(manifest, profile).context("keeping the profile")
    }
}
