//! The layers of a conversion, a few at once: made before, or written anew and sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use format::Digest;
use tokio::sync::Semaphore;

use super::image::{Images, stays};
use super::note::Note;
use super::prior::Prior;
use super::rewrite::{CONVERTED_FROM, ORDERED_BY};
use super::{Conversion, FileOrder, How, Recoded, Sums, Work, formats, stream};
use crate::content::Content;
use crate::error::Error;
use crate::limits;
use crate::manifest::LayerBlob;
use crate::push::Pushed;

/// What has become of a layer.
#[derive(Debug)]
pub(super) enum Made {
    /// There is another one instead.
    Another(Box<LayerBlob>, How),
    /// It stays, and why.
    Same(String),
}

/// Layers that are to be made.
pub(super) struct Layers<'a> {
    work: &'a Work,
    prior: Prior,
    note: &'a Note<'a>,
    images: &'a Images,
    /// How many are made at once.
    at_once: usize,
    /// On how many threads each.
    threads: usize,
    /// One for each blob that the target takes at once.
    putting: Semaphore,
    /// Held for a look only, as are the next.
    waiting: Mutex<VecDeque<LayerBlob>>,
    done: Mutex<BTreeMap<Digest, Made>>,
    sums: Mutex<Sums>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(work: &'a Work, prior: Prior, note: &'a Note<'a>, images: &'a Images) -> Self {
        let mut wanted = images.wanted().to_vec();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = wanted.len().min(cores).clamp(1, limits::CONVERT_LAYERS);
        // What was made before first, so that the note has lost what is gone when it is written; then the largest: begun last
        // it would be waited for alone.
        let made_of =
            |layer: &LayerBlob| prior.made_of(&layer.digest, work.recode.order(&layer.diff_id).as_ref());
        wanted.sort_by_cached_key(|layer| (made_of(layer).is_none(), std::cmp::Reverse(layer.size)));
        // Who is killed before it is looked at has it noted all the same.
        for layer in &wanted {
            if let Some(made) = made_of(layer) {
                note.add(layer.digest, made, How::Reused);
            }
        }
        Self {
            work,
            prior,
            note,
            images,
            at_once,
            threads: (cores / at_once).max(1),
            putting: Semaphore::new(work.target.takes_at_once()),
            waiting: Mutex::new(wanted.into()),
            done: Mutex::default(),
            sums: Mutex::default(),
        }
    }

    /// Makes all of them; the first that fails ends it. What cannot be made stays, and has not been sent.
    pub(super) async fn make(self) -> Result<(BTreeMap<Digest, Made>, Sums), Error> {
        let some = |n: usize| {
            let own = &self;
            async move { if n < own.at_once { own.make_some().await } else { Ok(()) } }
        };
        const { assert!(limits::CONVERT_LAYERS == 4, "as many as are joined here") };
        tokio::try_join!(some(0), some(1), some(2), some(3))?;
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((done, self.sums.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn make_some(&self) -> Result<(), Error> {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(layer) = next else { return Ok(()) };
            let order = self.work.recode.order(&layer.diff_id);
            let made = match self.kept(&layer, order.as_ref()) {
                Some(made) => made,
                None => match self.reused(&layer, order.as_ref()).await? {
                    Some(made) => made,
                    None => {
                        self.note.lacks(&layer.digest);
                        self.recoded(&layer, order).await?
                    }
                },
            };
            if let Made::Another(made, how) = &made {
                self.note.add(layer.digest, made, *how);
            }
            self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.digest, made);
        }
    }

    /// Says that a layer stays, if it has the order already.
    fn kept(&self, layer: &LayerBlob, order: Option<&Digest>) -> Option<Made> {
        let Conversion { format, order: how, .. } = self.work.conversion;
        let why = (how == FileOrder::ByRecoder).then(|| format.has_in_order(layer, order)).flatten()?;
        Some(Made::Same(why))
    }

    /// Returns what was made of a layer before in the same order, if that is still there.
    async fn reused(&self, layer: &LayerBlob, order: Option<&Digest>) -> Result<Option<Made>, Error> {
        let Some(made) = self.prior.made_of(&layer.digest, order) else { return Ok(None) };
        let Work { target, conversion, recode, .. } = self.work;
        if !target.has(made).await? {
            return Ok(None);
        }
        if conversion.format.has_top() && !stream::recall(recode, target, made).await? {
            return Ok(None);
        }
        self.put(layer, made.size, Pushed::Existed);
        Ok(Some(Made::Another(Box::new(made.clone()), How::Reused)))
    }

    async fn recoded(&self, layer: &LayerBlob, order: Option<Digest>) -> Result<Made, Error> {
        let Work { source, target, conversion, recode, watch } = self.work;
        let (recode, dir, below) = (recode.clone(), target.scratch(), self.images.below(layer));
        let made = match below {
            Some(layers) => {
                let total = layers.iter().map(|layer| layer.size).sum();
                let passed = |done| watch.passed(&layer.digest, done, total);
                stream::together(recode, (source, layers), self.threads, &dir, passed).await?
            }
            None => {
                let reader = source.read_range(&layer.digest, layer.size, 0..layer.size, stream::PRIORITY);
                let passed = |done| watch.passed(&layer.digest, done, layer.size);
                stream::recode(recode, layer, self.threads, reader, &dir, passed).await?
            }
        };
        let (Recoded { digest, size, diff_id, annotations }, file) = match made {
            Ok(made) => made,
            // Before anything else of the image is made for nothing.
            Err(why)
                if conversion.format.has_top() || below.is_some() || layer.is_nydus() || layer.is_erofs() =>
            {
                return Err(stays(&layer.digest, why));
            }
            Err(why) => return Ok(Made::Same(why)),
        };
        let content = Content::of_file(file, digest, size);
        let how = {
            let _one = self.putting.acquire().await.ok(); // the semaphore is never closed
            target.put(&content, source).await?
        };
        self.put(layer, size, how);
        let mut all = formats::lasting(&layer.annotations);
        all.extend(annotations);
        all.extend(conversion.format.annotations());
        all.insert(CONVERTED_FROM.into(), layer.digest.to_string());
        all.extend(order.map(|order| (ORDERED_BY.to_owned(), order.to_string())));
        let media_type = conversion.format.media_type().to_owned();
        let made = LayerBlob { digest, size, media_type, diff_id, annotations: all };
        Ok(Made::Another(Box::new(made), How::Recoded))
    }

    fn put(&self, layer: &LayerBlob, size: u64, how: Pushed) {
        self.work.watch.arrived(&layer.digest, layer.size, how);
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).count(size, how);
    }
}
