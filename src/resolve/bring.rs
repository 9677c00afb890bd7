//! From the source into the store: who asks the source, and what of it is shared with whom.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::places::Place;
use super::share::Shown;
use super::turn::Turn;
use super::{
    Asked, Download, Inner, Landed, Outcome, Progress, ResolveError, digest_key, manifest_is_expected,
    source_key,
};
use crate::digest::{PayloadDigest, SourceDigest};
use crate::fetch::Located;
use crate::module::{Module, ModuleUrl, Validators};

/// One download.
struct Tried {
    outcome: Result<Module, ResolveError>,
    /// Bytes that an earlier pull had left.
    from: u64,
    /// It ended within a body that cannot go on by itself.
    broke_off: bool,
}

impl Inner {
    /// Asks the source, and downloads what the store does not have.
    pub(super) async fn fetch(self: &Arc<Self>, asked: &Arc<Asked>, progress: &Arc<Progress>) -> Outcome {
        match &asked.request.url {
            ModuleUrl::Oci(_) | ModuleUrl::Layout(..) => self.fetch_image(asked, progress).await,
            ModuleUrl::Http(_) => self.fetch_url(asked, progress).await,
            ModuleUrl::File(_) => self.fetch_body(asked, progress, asked.limit(), None, None).await,
        }
    }

    /// The manifest first, which says whether the module is there already. Flights and claims are for
    /// what it names: all questions that come to it share one download, whatever their policies.
    async fn fetch_image(self: &Arc<Self>, asked: &Arc<Asked>, progress: &Arc<Progress>) -> Outcome {
        let request = &asked.request;
        if let Some(module) = self.proven(asked).await? {
            return Ok(module);
        }
        let mut place = self.place(asked).await?;
        // Waiting for a place is no fault of the source's.
        let deadline = self.clock.now() + asked.limit();
        let (module, index, is_own) = loop {
            let located = match self.locate(asked, deadline).await {
                Ok(located) => located,
                Err(error) => return self.unless_seen(asked, error).await,
            };
            let index = located.index();
            let Some((manifest, claimed)) =
                located.source().and_then(|manifest| Some((manifest, digest_key(&request.url, &manifest)?)))
            else {
                // Every image has a manifest.
                return Err(Arc::new(ResolveError::Fault { url: request.url.to_string() }));
            };
            // Another tag, or the same one unmoved, may lead to what is there already.
            let expected = manifest_is_expected(request, &located);
            let known = move |inner: &Inner, asked: &Asked| inner.known(asked, manifest, expected);
            if let Some(module) = self.blocking(asked, known).await? {
                break (module, index, false);
            }
            let download = Download {
                audience: asked.audience,
                url: request.url.canonical(),
                manifest,
                payload: request.expected.filter(|_| !expected),
            };
            let (inner, its, progress) = (self.clone(), asked.clone(), progress.clone());
            let mut is_own = false;
            let flight = || {
                is_own = true;
                async move {
                    let (outcome, turn) =
                        inner.download_in_turn(&its, located, claimed, deadline, &progress, place).await;
                    (Landed { outcome, limit: its.limit() }, give_back(turn))
                }
            };
            match self.downloads.join_to_the_end(download, flight).await {
                Some(landed) if landed.was_cut_short(asked.limit()) => place = self.place(asked).await?,
                Some(landed) => break (landed.outcome?, index, is_own),
                None => return Err(Arc::new(ResolveError::Fault { url: request.url.to_string() })),
            }
        };
        // Who has just brought it has written that down along with it. Who follows a tag is told the
        // index's digest.
        let is_written = is_own && !module.cached;
        let mut keys: Vec<_> = (!is_written).then(|| source_key(request)).into_iter().collect();
        keys.extend(index.and_then(|index| digest_key(&request.url, &index)));
        if keys.is_empty() {
            return Ok(module);
        }
        let remember = move |inner: &Inner, asked: &Asked| {
            keys.iter().for_each(|key| inner.remember(asked, key, &module));
            Ok(module)
        };
        self.blocking(asked, remember).await.map_err(Arc::new)
    }

    /// Downloads what the manifest names, unless another flight or process has since it was looked for.
    async fn download_in_turn(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        located: Located,
        claimed: String,
        deadline: Instant,
        progress: &Arc<Progress>,
        place: Place,
    ) -> (Outcome, Option<Turn>) {
        let mut place = Some(place);
        let (manifest, expected) = (located.source(), manifest_is_expected(&asked.request, &located));
        let known = move |inner: &Inner, asked: &Asked| match manifest {
            Some(manifest) => inner.known(asked, manifest, expected),
            None => Ok(None),
        };
        let (turn, found) = match self.turn(asked, claimed, deadline, &mut place, known).await {
            Ok(turn) => turn,
            Err(error) => return (Err(Arc::new(error)), None),
        };
        let outcome = match found {
            Some(module) => Ok(module),
            None => {
                let began = self.clock.now();
                let place = match place {
                    Some(place) => Ok(place),
                    None => self.place(asked).await,
                };
                let deadline = deadline + (self.clock.now() - began);
                match place {
                    Ok(place) => self.download(asked, located, deadline, progress, place).await,
                    Err(error) => Err(Arc::new(error)),
                }
            }
        };
        (outcome, Some(turn))
    }

    /// A URL says nothing of what is behind it before all of that has come: who asks for it at the same
    /// time takes what another process brought meanwhile.
    async fn fetch_url(self: &Arc<Self>, asked: &Arc<Asked>, progress: &Arc<Progress>) -> Outcome {
        let deadline = self.clock.now() + asked.limit();
        let before = self.blocking(asked, |inner, asked| inner.record(asked, &source_key(&asked.request)));
        let before = before.await?;
        let known = before.as_ref().map(|record| record.validators.clone());
        let brought = move |inner: &Inner, asked: &Asked| inner.brought_since(asked, before.as_ref());
        let what = asked.request.url.canonical();
        let (turn, found) = self.turn(asked, what, deadline, &mut None, brought).await?;
        match found {
            Some(module) => Ok(module),
            None => {
                let left = deadline.saturating_duration_since(self.clock.now());
                self.fetch_body(asked, progress, left, Some(turn), known).await
            }
        }
    }

    /// Downloads what has no manifest, unless it is `known` to its server as what the store has, and keeps
    /// its turn until the store has it and the index too.
    async fn fetch_body(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        progress: &Arc<Progress>,
        limit: Duration,
        turn: Option<Turn>,
        known: Option<Validators>,
    ) -> Outcome {
        let place = self.place(asked).await?;
        let deadline = self.clock.now() + limit;
        let known = known.unwrap_or_default();
        let fetcher = &asked.config.fetcher;
        let changed = fetcher.locate_changed(&asked.request, &asked.credential, &known, deadline).await;
        let located = match changed.map_err(|source| asked.fetch_error(source))? {
            Some(located) => located,
            None => {
                let unchanged = move |inner: &Inner, asked: &Asked| inner.unchanged(asked, &known);
                match self.blocking(asked, unchanged).await? {
                    Some(module) => return Ok(module),
                    None => self.locate(asked, deadline).await?,
                }
            }
        };
        let module = self.download(asked, located, deadline, progress, place).await?;
        let remember = move |inner: &Inner, asked: &Asked| {
            if asked.request.expected.is_some() {
                // What is there is what is there, also for who expects nothing.
                inner.remember(asked, &asked.request.url.canonical(), &module);
            }
            drop(turn);
            Ok(module)
        };
        self.blocking(asked, remember).await.map_err(Arc::new)
    }

    async fn locate(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        deadline: Instant,
    ) -> Result<Located, ResolveError> {
        match asked.config.fetcher.locate(&asked.request, &asked.credential, deadline).await {
            Ok(located) => Ok(located),
            Err(error) => Err(self.refused(asked, error).await),
        }
    }

    /// A place among those who fetch from the same server.
    pub(super) async fn place(&self, asked: &Asked) -> Result<Place, ResolveError> {
        let place = self.places.take(asked.request.url.server()).await;
        place.ok_or_else(|| ResolveError::Shutdown { url: asked.request.url.to_string() })
    }

    /// Downloads and checks. Where it went on with what an earlier pull left, and that was not the
    /// beginning of what was promised, it is downloaded once more from its start; and a few times more where
    /// it broke off and cannot go on.
    async fn download(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        mut located: Located,
        deadline: Instant,
        progress: &Arc<Progress>,
        _place: Place,
    ) -> Outcome {
        if let Some(module) = self.from_another_view(asked, &mut located, deadline).await? {
            return Ok(module);
        }
        if let Some(module) = self.from_below(asked, &located).await? {
            return Ok(module);
        }
        let fetcher = &asked.config.fetcher;
        let (mut tries, mut was_damaged) = (fetcher.tries(deadline), false);
        loop {
            let again = located.again();
            let Tried { outcome, from, broke_off } =
                self.download_once(asked, located, deadline, progress).await;
            match &outcome {
                Err(error) if from > 0 && !was_damaged && error.is_of_other_bytes() => {
                    was_damaged = true;
                    tracing::warn!(url = %asked.request.url, "what an earlier pull left was damaged: {error}");
                }
                Err(ResolveError::Fetch { source, .. })
                    if broke_off && fetcher.again(&mut tries, source).await => {}
                _ => return outcome.map_err(Arc::new),
            }
            located = again;
        }
    }

    /// What a lower store has, where it is known what the module must be: by the layer that is the module,
    /// or by what is expected.
    async fn from_below(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        located: &Located,
    ) -> Result<Option<Module>, ResolveError> {
        if !self.store.has_lower() {
            return Ok(None);
        }
        let layer = located.raw_layer().map(|(layer, _)| PayloadDigest::from_bytes(*layer.as_bytes()));
        let expected = asked.request.expected.filter(|_| !manifest_is_expected(&asked.request, located));
        let expected = expected.map(|expected| PayloadDigest::from_bytes(*expected.as_bytes()));
        let payload = match (layer, expected) {
            // They contradict each other, which the source is to be heard about.
            (Some(layer), Some(expected)) if layer != expected => None,
            (layer, expected) => layer.or(expected),
        };
        let is_file = matches!(asked.request.url, ModuleUrl::File(_));
        let Some(payload) = payload.filter(|_| !is_file) else { return Ok(None) };
        // Without a manifest, the source is what would have been served: the module.
        let source = located.source().unwrap_or(SourceDigest::from_bytes(*payload.as_bytes()));
        let bring = move |inner: &Inner, asked: &Asked| inner.bring_from_below(asked, payload, source);
        self.blocking(asked, bring).await
    }

    async fn download_once(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        located: Located,
        deadline: Instant,
        progress: &Arc<Progress>,
    ) -> Tried {
        let (expected, layer) = (manifest_is_expected(&asked.request, &located), located.raw_layer());
        let shown = Shown::of(&asked.request, &located);
        // About as much as comes over the wire, where that is known.
        let total = located.size().unwrap_or(0);
        progress.total.store(total, Ordering::Relaxed);
        let begin = move |inner: &Inner, asked: &Asked| {
            let ingest = inner.begin(asked, layer)?;
            inner.store.make_room(total.saturating_sub(ingest.size()));
            Ok(ingest)
        };
        let ingest = match self.blocking(asked, begin).await {
            Ok(ingest) => ingest,
            Err(error) => return Tried { outcome: Err(error), from: 0, broke_off: false },
        };
        let from = ingest.size();
        progress.done.store(from, Ordering::Relaxed);
        let body = match asked.config.fetcher.open_from(located, from, deadline).await {
            Ok(body) => body,
            Err(error) => {
                let outcome = Err(self.refused(asked, error).await);
                return Tried { outcome, from, broke_off: false };
            }
        };
        let can_go_on = body.can_go_on();
        // Whoever reads blocks, and does not end with this future; what they read does.
        let _ends_with_this = body.interrupt_on_drop();
        let progress = progress.clone();
        let take_in = move |inner: &Inner, asked: &Asked| {
            let (module, topmost) = inner.take_in(asked, body, ingest, expected, &progress)?;
            if let Some(shown) = shown {
                inner.remember_shown(asked, &shown, &module.payload, topmost);
            }
            Ok(module)
        };
        let outcome = self.blocking(asked, take_in).await;
        if let Ok(module) = &outcome {
            self.metrics.fetched_bytes.inc_by(module.size.saturating_sub(from));
        }
        Tried { broke_off: outcome.is_err() && !can_go_on, outcome, from }
    }
}

/// Ends a turn off the runtime's threads: a file goes with it.
async fn give_back(turn: Option<Turn>) {
    // It fails where the agent ends, and the kernel gives it back.
    let _ = tokio::task::spawn_blocking(move || drop(turn)).await;
}
