//! A mount that a client holds for a container, and what that teaches.

use std::sync::Arc;

use anyhow::Context;
use format::IndexId;

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
        self.keep(&profile)?;
        Ok(Lesson { profile, meta: self.image.meta_path().to_owned() })
    }

    /// Keeps a profile that has files.
    pub fn learned(&self, learned: &Learned) -> anyhow::Result<()> {
        Profile::parse(learned.profile.as_bytes()).context("reading the profile")?;
        self.keep(&learned.profile)
    }

    fn keep(&self, profile: &str) -> anyhow::Result<()> {
        let kept = self.engine.store.put_profile(self.image.manifest(), profile.as_bytes());
        kept.context("keeping the profile")
    }
}
