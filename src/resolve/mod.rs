//! From a request to a path: is the module in the store for whoever asks, and if not, fetch it,
//! check it and put it there. Owns the pull policy and sees to it that one module is fetched once,
//! however many ask. Knows nothing of xDS.

mod bring;
mod error;
mod flight;
mod lower;
mod places;
mod share;
mod stored;
mod tags;
mod turn;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::digest::{ExpectedDigest, PayloadDigest, SourceDigest};
use crate::fetch::{Credential, FetchError, Fetcher, Located};
use crate::metrics::{Metrics, result};
use crate::module::{Module, ModuleRequest, ModuleUrl, PullPolicy};
use crate::store::{Audience, Store, StoreError};
use crate::wasm::{Budgets, Limits};

pub use self::error::ResolveError;
use self::flight::Flights;
pub use self::places::Places;
use self::tags::Tags;

/// A fetch that nobody waits for any more goes on for so long: an Envoy whose stream has ended comes back
/// within that, and asks again.
const GRACE: Duration = Duration::from_secs(2);

/// How modules are fetched and checked. Can be replaced while the agent runs.
#[derive(Clone)]
pub struct ResolveConfig {
    pub fetcher: Fetcher,
    /// The limit of a whole fetch. A request's own raises it and never lowers it: the fetch is
    /// shared, and how long one of those who wait for it would is not for the others to suffer.
    pub timeout: Duration,
    /// How often who follows a tag asks where it leads. A look that is younger than half of that
    /// answers for all.
    pub tag_interval: Duration,
    pub limits: Limits,
    pub budgets: Budgets,
    /// Who has once shown that they may have a module is given it while its registry does not answer.
    pub allow_if_seen: bool,
}

/// How far a fetch is, in bytes from the source.
#[derive(Debug, Default)]
pub struct Progress {
    pub done: AtomicU64,
    /// 0 where it is not known.
    pub total: AtomicU64,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    audience: Audience,
    source: String,
    /// Who wants to be sure must not be content with what another finds in the store.
    policy: PullPolicy,
    /// Under [`PullPolicy::Always`] a newer resource version must not be content with a fetch that
    /// began for an older one.
    version: Option<String>,
}

/// What several questions may come to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Download {
    audience: Audience,
    url: String,
    manifest: SourceDigest,
    /// What the payload must be, where the manifest is not what is expected.
    payload: Option<ExpectedDigest>,
}

type Outcome = Result<Module, Arc<ResolveError>>;

/// How a flight ended.
#[derive(Debug, Clone)]
struct Landed {
    outcome: Outcome,
    /// The time that whoever started it gave it.
    limit: Duration,
}

impl Landed {
    /// Whether one who has more time had better try again.
    fn was_cut_short(&self, limit: Duration) -> bool {
        let timed_out = |error: &Arc<ResolveError>| {
            matches!(&**error, ResolveError::Fetch { source: FetchError::Timeout { .. }, .. })
        };
        self.limit < limit && self.outcome.as_ref().is_err_and(timed_out)
    }
}

/// Resolves requests. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    store: Store,
    config: RwLock<ResolveConfig>,
    clock: Clock,
    metrics: Metrics,
    questions: Flights<Question, Landed>,
    downloads: Flights<Download, Landed>,
    tags: Tags,
    places: Places,
    /// Whether it has been said that the store gives no claims.
    claims_failed: AtomicBool,
}

/// A request with what follows from its credential.
struct Asked {
    request: ModuleRequest,
    credential: Credential,
    audience: Audience,
    config: ResolveConfig,
}

impl Resolver {
    /// As many fetches run at once as there are places; their tasks are tracked by `tracker`.
    pub fn new(
        store: Store,
        config: ResolveConfig,
        places: Places,
        clock: Clock,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            config: RwLock::new(config),
            metrics,
            questions: Flights::new(GRACE, clock.clone(), tracker.clone()),
            // Questions alone wait for these, and have had their grace.
            downloads: Flights::new(Duration::ZERO, clock.clone(), tracker.clone()),
            tags: Tags::new(GRACE, clock.clone(), tracker),
            clock,
            places,
            claims_failed: AtomicBool::new(false),
        }))
    }

    /// Replaces the configuration for the fetches that begin from now on.
    pub fn reconfigure(&self, config: ResolveConfig) {
        *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    async fn asked(&self, request: ModuleRequest) -> Result<Asked, ResolveError> {
        let config = self.config();
        let credential = config.fetcher.credential(&request).await;
        self.asked_with(request, credential, config)
    }

    /// The same where no program has to be asked for a credential. Blocks on files.
    fn asked_at_hand(&self, request: ModuleRequest) -> Option<Asked> {
        let config = self.config();
        let credential = config.fetcher.credential_at_hand(&request).transpose()?;
        self.asked_with(request, credential, config).ok()
    }

    fn asked_with(
        &self,
        request: ModuleRequest,
        credential: Result<Credential, FetchError>,
        config: ResolveConfig,
    ) -> Result<Asked, ResolveError> {
        let credential =
            credential.map_err(|source| ResolveError::Fetch { url: request.url.to_string(), source })?;
        let audience = match credential.identity() {
            None => Audience::Public,
            Some(identity) => Audience::Private(self.0.store.fingerprint(identity)),
        };
        Ok(Asked { request, credential, audience, config })
    }

    fn config(&self) -> ResolveConfig {
        self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of each of these modules, whether the store has it and it is good under its pull policy. Where
    /// not, or where that cannot be known, [`Resolver::resolve`] says what is wrong.
    pub async fn stored(&self, requests: &[ModuleRequest]) -> Vec<Option<Module>> {
        let (resolver, wanted) = (self.clone(), requests.to_vec());
        let look_up = move || {
            let look_up = |request| {
                let asked = resolver.asked_at_hand(request)?;
                resolver.0.look_up(&asked).ok().flatten()
            };
            let found: Vec<_> = wanted.into_iter().map(look_up).collect();
            let hits = found.iter().flatten().count();
            resolver.0.metrics.lookups.get_or_create(&result("hit")).inc_by(hits as u64);
            found
        };
        tokio::task::spawn_blocking(look_up).await.unwrap_or_else(|_| vec![None; requests.len()])
    }

    /// The module, from the store or from its source. Dropping this future does not cancel a fetch
    /// that others wait for, or will within a short grace.
    pub async fn resolve(&self, request: ModuleRequest) -> Outcome {
        self.resolve_watched(request, Arc::default()).await
    }

    /// As [`Resolver::resolve`]; `progress` follows the fetch if this call is the one that starts it.
    pub async fn resolve_watched(&self, request: ModuleRequest, progress: Arc<Progress>) -> Outcome {
        let asked = Arc::new(self.asked(request).await?);
        let (request, url) = (&asked.request, asked.request.url.to_string());
        let question = Question {
            audience: asked.audience,
            source: source_key(request),
            policy: request.policy,
            version: (request.policy == PullPolicy::Always)
                .then(|| request.resource_version.clone())
                .flatten(),
        };
        let limit = asked.limit();
        loop {
            let (inner, asked, progress) = (self.0.clone(), asked.clone(), progress.clone());
            let flight = || async move { Landed { outcome: inner.run(&asked, &progress).await, limit } };
            match self.0.questions.join(question.clone(), flight).await {
                Some(landed) if landed.was_cut_short(limit) => {}
                Some(landed) => return landed.outcome,
                // A flight that is gone without an outcome has panicked.
                None => return Err(Arc::new(ResolveError::Fault { url })),
            }
        }
    }
}

/// So often a fetch is begun anew because a mirror gave other bytes.
const MAX_MIRRORS: usize = 8;

/// The source in the index: the URL and what is expected of it.
fn source_key(request: &ModuleRequest) -> String {
    match &request.expected {
        None => request.url.canonical(),
        Some(expected) => format!("{} {expected}", request.url.canonical()),
    }
}

/// The source in the index under the digest that a reference led to.
pub fn digest_key(url: &ModuleUrl, source: &SourceDigest) -> Option<String> {
    match url {
        ModuleUrl::Oci(reference) => {
            Some(format!("oci://{}/{}@{source}", reference.registry(), reference.repository()))
        }
        ModuleUrl::Layout(path, _) => Some(format!("oci-layout://{}@{source}", path.display())),
        ModuleUrl::Http(_) | ModuleUrl::File(_) => None,
    }
}

fn is_expected(expected: Option<&ExpectedDigest>, payload: &PayloadDigest, source: &SourceDigest) -> bool {
    expected.is_none_or(|digest| digest.is_payload(payload) || digest.is_source(source))
}

/// Whether the manifest that was found, or the index that led to it, is what is expected.
fn manifest_is_expected(request: &ModuleRequest, located: &Located) -> bool {
    request.expected.as_ref().is_some_and(|expected| located.matches(expected))
}

impl Inner {
    async fn run(self: &Arc<Self>, asked: &Arc<Asked>, progress: &Arc<Progress>) -> Outcome {
        let hit = self.blocking(asked, |inner, asked| inner.look_up(asked)).await?;
        let label = if hit.is_some() { "hit" } else { "miss" };
        self.metrics.lookups.get_or_create(&result(label)).inc();
        if let Some(module) = hit {
            return Ok(module);
        }
        self.fetch_counted(asked, progress).await
    }

    /// As [`Inner::fetch`], for operators to see.
    async fn fetch_counted(self: &Arc<Self>, asked: &Arc<Asked>, progress: &Arc<Progress>) -> Outcome {
        let start = self.clock.now();
        let mut counted = FetchCount { metrics: &self.metrics, label: "abandoned" };
        let mut outcome = self.fetch(asked, progress).await;
        for _ in 0..MAX_MIRRORS {
            match &outcome {
                // Whoever gave them is not asked for them again.
                Err(error) if error.is_a_mirrors() => {
                    tracing::warn!(url = %asked.request.url, "{error}; another host is asked");
                }
                _ => break,
            }
            outcome = self.fetch(asked, progress).await;
        }
        counted.label = match &outcome {
            Ok(_) => "success",
            Err(error) => error.label(),
        };
        drop(counted);
        if let Ok(module) = &outcome {
            let took = self.clock.now() - start;
            self.metrics.fetch_seconds.observe(took.as_secs_f64());
            tracing::info!(
                url = %asked.request.url, payload = %module.payload, source = %module.source,
                bytes = module.size, milliseconds = took.as_millis() as u64, downloaded = !module.cached,
                "module is in the store"
            );
        }
        outcome
    }

    /// Runs file work off the runtime's threads.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        work: impl FnOnce(&Inner, &Asked) -> Result<T, ResolveError> + Send + 'static,
    ) -> Result<T, ResolveError> {
        let (inner, its) = (self.clone(), asked.clone());
        match tokio::task::spawn_blocking(move || work(&inner, &its)).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let url = asked.request.url.to_string();
                Err(if error.is_panic() {
                    ResolveError::Fault { url }
                } else {
                    ResolveError::Shutdown { url }
                })
            }
        }
    }
}

/// A fetch, counted when it ends, be it that nobody waits for it.
struct FetchCount<'a> {
    metrics: &'a Metrics,
    label: &'static str,
}

impl Drop for FetchCount<'_> {
    fn drop(&mut self) {
        self.metrics.fetches.get_or_create(&result(self.label)).inc();
    }
}

impl Asked {
    /// How long a fetch may take.
    fn limit(&self) -> Duration {
        self.config.timeout.max(self.request.timeout.unwrap_or_default())
    }

    fn fetch_error(&self, source: FetchError) -> ResolveError {
        ResolveError::Fetch { url: self.request.url.to_string(), source }
    }

    fn store_error(&self, source: StoreError) -> ResolveError {
        ResolveError::Store { url: self.request.url.to_string(), source }
    }
}

#[cfg(test)]
mod tests;
