//! Tags that move: where a tag leads now, which its registry is asked from time to time. One look for
//! all who follow a tag with the same credential; until it is too old to tell, it answers for later ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;

use super::flight::Flights;
use super::{Asked, Inner, Outcome, ResolveError, Resolver, digest_key, source_key};
use crate::clock::Clock;
use crate::digest::SourceDigest;
use crate::metrics::result;
use crate::module::{Module, ModuleRequest};
use crate::store::Audience;

/// Who follows which tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Tag {
    audience: Audience,
    url: String,
}

/// What a look at a tag found.
#[derive(Debug, Clone)]
struct Look {
    at: Instant,
    /// None where the registry did not say.
    digest: Option<SourceDigest>,
    outcome: Outcome,
}

impl Look {
    /// Whether the module itself cannot be used: its bytes are those that the digest covers, and stay so.
    fn found_unusable(&self) -> bool {
        self.outcome.as_ref().is_err_and(|error| error.is_of_the_module())
    }
}

/// The looks that are under way, and the last ones.
#[derive(Debug)]
pub(super) struct Tags {
    flights: Flights<Tag, Outcome>,
    last: Mutex<HashMap<Tag, Look>>,
}

impl Tags {
    /// See [`Flights::new`].
    pub(super) fn new(grace: Duration, clock: Clock, tracker: TaskTracker) -> Self {
        Self { flights: Flights::new(grace, clock, tracker), last: Mutex::default() }
    }

    fn last(&self, tag: &Tag) -> Option<Look> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(tag).cloned()
    }

    /// Remembers a look, and none that is older than `keep`.
    fn remember(&self, tag: Tag, look: Look, keep: Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, other| look.at.saturating_duration_since(other.at) < keep);
        last.insert(tag, look);
    }
}

impl Resolver {
    /// Whether the tag of a request leads to another manifest than `known`: its module, fetched and
    /// checked as any, which the index gives from now on; none where it does not, or where a digest
    /// pins the request, of which nobody is asked. A failure leaves everything as it was.
    pub async fn refresh(
        &self,
        request: ModuleRequest,
        known: SourceDigest,
    ) -> Result<Option<Module>, Arc<ResolveError>> {
        if request.tag_registry().is_none() {
            return Ok(None);
        }
        let asked = Arc::new(self.asked(request).await?);
        let tag = Tag { audience: asked.audience, url: asked.request.url.canonical() };
        let (inner, its, whose) = (self.0.clone(), asked.clone(), tag.clone());
        let flight = || async move { inner.look(&its, whose, known).await };
        match self.0.tags.flights.join(tag, flight).await {
            Some(outcome) => Ok(Some(outcome?).filter(|module| module.source != known)),
            None => Err(Arc::new(ResolveError::Fault { url: asked.request.url.to_string() })),
        }
    }
}

impl Inner {
    /// Looks at a tag, unless somebody just has. `known` is where it led, as far as who asks knows.
    async fn look(self: &Arc<Self>, asked: &Arc<Asked>, tag: Tag, known: SourceDigest) -> Outcome {
        let fresh = asked.config.tag_interval / 2;
        let last = self.tags.last(&tag);
        let now = self.clock.now();
        if let Some(last) = last.as_ref().filter(|last| now.saturating_duration_since(last.at) < fresh) {
            return last.outcome.clone();
        }
        let mut look = match self.tag_digest(asked).await {
            Err(error) => Look { at: now, digest: None, outcome: Err(Arc::new(error)) },
            Ok(digest) => match last.filter(|last| last.digest == Some(digest) && last.found_unusable()) {
                // Its bytes would be the same again.
                Some(last) => last,
                None => {
                    let outcome = self.led_to(asked, digest, known).await;
                    let look = Look { at: now, digest: Some(digest), outcome };
                    if let Err(error) = look.outcome.as_ref()
                        && look.found_unusable()
                    {
                        let url = &asked.request.url;
                        tracing::warn!(%url, old = %known, new = %digest, "the tag moved to what cannot be used: {error}");
                    }
                    look
                }
            },
        };
        look.at = self.clock.now();
        if let Err(error) = &look.outcome {
            self.metrics.tag_refreshes.get_or_create(&result(error.label())).inc();
            tracing::debug!(url = %asked.request.url, "cannot follow the tag: {error}");
        }
        let outcome = look.outcome.clone();
        // Longer than anybody waits for the next one, so that what is unusable is found so once.
        self.tags.remember(tag, look, asked.config.tag_interval * 4);
        outcome
    }

    /// The digest that the registry gives for the tag.
    async fn tag_digest(self: &Arc<Self>, asked: &Arc<Asked>) -> Result<SourceDigest, ResolveError> {
        let _place = self.place(asked).await?;
        let deadline = self.clock.now() + asked.limit();
        let digest = asked.config.fetcher.tag_digest(&asked.request, &asked.credential, deadline).await;
        let digest = match digest {
            Ok(digest) => digest,
            Err(error) => return Err(self.refused(asked, error).await),
        };
        // Nobody comes here with a request that follows no tag.
        digest.ok_or_else(|| ResolveError::Fault { url: asked.request.url.to_string() })
    }

    /// The module that the tag leads to, from the store or from the registry, and notes where it did not
    /// lead there before.
    async fn led_to(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        digest: SourceDigest,
        known: SourceDigest,
    ) -> Outcome {
        let (before, found) =
            self.blocking(asked, move |inner, asked| inner.look_up_tag(asked, digest)).await?;
        let module = match found {
            Some(module) => module,
            None => self.fetch_counted(asked, &Arc::default()).await?,
        };
        let old = before.unwrap_or(known);
        let moved = module.source != old;
        let label = if moved { "moved" } else { "unchanged" };
        self.metrics.tag_refreshes.get_or_create(&result(label)).inc();
        if moved {
            tracing::info!(url = %asked.request.url, %old, new = %module.source, "the tag moved");
        }
        Ok(module)
    }

    /// Where the index says that the tag led, and the module that the digest leads to, if that is known;
    /// then the tag does so too from now on.
    fn look_up_tag(
        &self,
        asked: &Asked,
        digest: SourceDigest,
    ) -> Result<(Option<SourceDigest>, Option<Module>), ResolveError> {
        let key = source_key(&asked.request);
        let found = self.find(asked, &key)?;
        let before = found.as_ref().map(|(record, _)| record.source);
        if let Some((record, stored)) = found.filter(|(record, _)| record.source == digest)
            && let Some(module) = self.take(asked, &record, stored)?
        {
            return Ok((before, Some(module)));
        }
        // A manifest that was there before, or an index.
        let Some((record, stored)) =
            digest_key(&asked.request.url, &digest).map(|key| self.find(asked, &key)).transpose()?.flatten()
        else {
            return Ok((before, None));
        };
        let module = self.take(asked, &record, stored)?;
        if let Some(module) = module.as_ref().filter(|module| before != Some(module.source)) {
            self.remember(asked, &key, module);
        }
        Ok((before, module))
    }
}
