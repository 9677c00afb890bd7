//! From a request to a path: is the module in the store for whoever asks, and if not, fetch it,
//! check it and put it there. Owns the pull policy and sees to it that one module is fetched once,
//! however many ask. Knows nothing of xDS.

mod error;
mod flight;

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::digest::{ExpectedDigest, SourceDigest};
use crate::fetch::{Body, Credential, FetchError, Fetcher};
use crate::metrics::{Metrics, result};
use crate::module::{Module, ModuleRequest, ModuleUrl, PullPolicy};
use crate::store::{Audience, Record, Store, StoreError, Stored};
use crate::wasm::{self, Budgets, Limits, UnpackError};

pub use self::error::ResolveError;
use self::flight::Flights;

/// How modules are fetched and checked. Can be replaced while the agent runs.
#[derive(Clone)]
pub struct ResolveConfig {
    pub fetcher: Fetcher,
    /// The limit of a whole fetch where the request gives none.
    pub timeout: Duration,
    pub limits: Limits,
    pub budgets: Budgets,
}

/// How far a fetch is, in bytes from the source.
#[derive(Debug, Default)]
pub struct Progress {
    pub done: AtomicU64,
    /// 0 where it is not known.
    pub total: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FlightKey {
    audience: Audience,
    source: String,
    /// Under [`PullPolicy::Always`] a newer resource version must not be content with a fetch that
    /// began for an older one.
    version: Option<String>,
}

type Outcome = Result<Module, Arc<ResolveError>>;

/// Resolves requests. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    store: Store,
    config: RwLock<ResolveConfig>,
    clock: Clock,
    metrics: Metrics,
    flights: Flights<FlightKey, Outcome>,
    /// Fetches at once.
    places: Semaphore,
}

/// A request with what follows from its credential.
struct Asked {
    request: ModuleRequest,
    credential: Credential,
    audience: Audience,
    config: ResolveConfig,
}

impl Resolver {
    /// At most `concurrency` fetches run at once; their tasks are tracked by `tracker`.
    pub fn new(
        store: Store,
        config: ResolveConfig,
        concurrency: usize,
        clock: Clock,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Self {
        let (config, places) = (RwLock::new(config), Semaphore::new(concurrency.max(1)));
        Self(Arc::new(Inner { store, config, clock, metrics, flights: Flights::new(tracker), places }))
    }

    /// Replaces the configuration for the fetches that begin from now on.
    pub fn reconfigure(&self, config: ResolveConfig) {
        *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The module, from the store or from its source. Dropping this future does not cancel a fetch
    /// that others wait for, or will.
    pub async fn resolve(&self, request: ModuleRequest) -> Outcome {
        self.resolve_watched(request, Arc::default()).await
    }

    /// As [`Resolver::resolve`]; `progress` follows the fetch if this call is the one that starts it.
    pub async fn resolve_watched(&self, request: ModuleRequest, progress: Arc<Progress>) -> Outcome {
        let config = self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let url = request.url.to_string();
        let credential = config
            .fetcher
            .credential(&request)
            .map_err(|source| ResolveError::Fetch { url: url.clone(), source })?;
        let audience = match credential.identity() {
            None => Audience::Public,
            Some(identity) => Audience::Private(self.0.store.fingerprint(&identity)),
        };
        let key = FlightKey {
            audience,
            source: source_key(&request),
            version: (request.policy == PullPolicy::Always)
                .then(|| request.resource_version.clone())
                .flatten(),
        };
        let asked = Asked { request, credential, audience, config };
        let inner = self.0.clone();
        let flight = || async move { inner.run(asked, &progress).await.map_err(Arc::new) };
        let landed = self.0.flights.join(key, flight).await;
        // A flight that is gone without an outcome has panicked.
        landed.unwrap_or_else(|| Err(Arc::new(ResolveError::Fault { url })))
    }
}

/// The source in the index: the URL and what is expected of it.
fn source_key(request: &ModuleRequest) -> String {
    match &request.expected {
        None => request.url.canonical(),
        Some(expected) => format!("{} {expected}", request.url.canonical()),
    }
}

/// The source in the index under the digest that a reference led to.
fn digest_key(url: &ModuleUrl, source: &SourceDigest) -> Option<String> {
    match url {
        ModuleUrl::Oci(reference) => {
            Some(format!("oci://{}/{}@{source}", reference.registry(), reference.repository()))
        }
        ModuleUrl::Http(_) | ModuleUrl::File(_) => None,
    }
}

fn is_expected(expected: Option<&ExpectedDigest>, record: &Record) -> bool {
    expected.is_none_or(|digest| digest.is_payload(&record.payload) || digest.is_source(&record.source))
}

impl Inner {
    async fn run(self: Arc<Self>, asked: Asked, progress: &Arc<Progress>) -> Result<Module, ResolveError> {
        let asked = Arc::new(asked);
        let hit = self.blocking(&asked, |inner, asked| inner.look_up(asked)).await?;
        let label = if hit.is_some() { "hit" } else { "miss" };
        self.metrics.lookups.get_or_create(&result(label)).inc();
        if let Some(module) = hit {
            return Ok(module);
        }
        let url = asked.request.url.to_string();
        let Ok(_place) = self.places.acquire().await else { return Err(ResolveError::Shutdown { url }) };
        let start = self.clock.now();
        let outcome = self.fetch(&asked, progress, start).await;
        let label = match &outcome {
            Ok(_) => "success",
            Err(error) => error.label(),
        };
        self.metrics.fetches.get_or_create(&result(label)).inc();
        if let Ok(module) = &outcome {
            let took = self.clock.now() - start;
            self.metrics.fetch_seconds.observe(took.as_secs_f64());
            tracing::info!(
                url, payload = %module.payload, source = %module.source, bytes = module.size,
                milliseconds = took.as_millis() as u64, downloaded = !module.cached, "module is in the store"
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

    /// What the store has that serves this request under its policy.
    fn look_up(&self, asked: &Asked) -> Result<Option<Module>, ResolveError> {
        let request = &asked.request;
        let mut keys = vec![source_key(request)];
        if request.expected.is_some() {
            keys.push(request.url.canonical());
        }
        for key in keys {
            let Some(record) = self.record(asked, &key)? else { continue };
            let current = match request.policy {
                PullPolicy::IfNotPresent => true,
                PullPolicy::Always => {
                    record.resource_version.is_some() && record.resource_version == request.resource_version
                }
            };
            if current
                && is_expected(request.expected.as_ref(), &record)
                && let Some(module) = self.module(asked, &record)?
            {
                return Ok(Some(module));
            }
        }
        Ok(None)
    }

    fn record(&self, asked: &Asked, key: &str) -> Result<Option<Record>, ResolveError> {
        self.store.lookup(&asked.audience, key).map_err(|source| asked.store_error(source))
    }

    fn module(&self, asked: &Asked, record: &Record) -> Result<Option<Module>, ResolveError> {
        let view = self.store.view(&asked.audience, &record.payload);
        let stored = view.map_err(|source| asked.store_error(source))?;
        Ok(stored.map(|stored| Module {
            path: stored.path,
            payload: stored.payload,
            source: record.source,
            size: stored.size,
            cached: true,
        }))
    }

    async fn fetch(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        progress: &Arc<Progress>,
        start: Instant,
    ) -> Result<Module, ResolveError> {
        let (fetcher, request) = (&asked.config.fetcher, &asked.request);
        let deadline = start + request.timeout.unwrap_or(asked.config.timeout);
        let located = fetcher
            .locate(request, &asked.credential, deadline)
            .await
            .map_err(|source| asked.fetch_error(source))?;
        if let Some(source) = located.source() {
            // Another tag, or the same one unmoved, may lead to what is there already.
            let known = self.blocking(asked, move |inner, asked| inner.known_digest(asked, source)).await?;
            if let Some(module) = known {
                return Ok(module);
            }
        }
        progress.total.store(located.size().unwrap_or(0), Ordering::Relaxed);
        let matches = request.expected.as_ref().is_some_and(|expected| located.matches(expected));
        let located_source = located.source();
        let body = fetcher.open(located, deadline).await.map_err(|source| asked.fetch_error(source))?;
        let progress = progress.clone();
        let module =
            self.blocking(asked, move |inner, asked| inner.take_in(asked, body, matches, &progress)).await?;
        self.metrics.fetched_bytes.inc_by(module.size);
        if let Some(key) = located_source.and_then(|source| digest_key(&request.url, &source)) {
            // Only saves a later download, so nobody waits for it.
            let record = self.new_record(asked, &module);
            let (inner, asked) = (self.clone(), asked.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.store.record(&asked.audience, &key, &record) {
                    tracing::warn!(url = %asked.request.url, "cannot write an index record: {error}");
                }
            });
        }
        Ok(module)
    }

    /// The module that this manifest led to before, now recorded under what was asked for.
    fn known_digest(&self, asked: &Asked, source: SourceDigest) -> Result<Option<Module>, ResolveError> {
        let Some(key) = digest_key(&asked.request.url, &source) else { return Ok(None) };
        let Some(record) = self.record(asked, &key)? else { return Ok(None) };
        if !is_expected(asked.request.expected.as_ref(), &record) {
            return Ok(None);
        }
        let Some(module) = self.module(asked, &record)? else { return Ok(None) };
        self.write_record(asked, &module)?;
        Ok(Some(module))
    }

    /// Streams the body into the store. What any digest covers has been read and compared before
    /// the module becomes visible.
    fn take_in(
        &self,
        asked: &Asked,
        body: Body,
        source_is_expected: bool,
        progress: &Progress,
    ) -> Result<Module, ResolveError> {
        let url = || asked.request.url.to_string();
        let mut ingest = self.store.ingest().map_err(|source| asked.store_error(source))?;
        let packaging = body.packaging();
        let mut body = Counted { body, progress };
        wasm::unpack(&mut body, packaging, &asked.config.limits, &mut ingest).map_err(
            |error| match error {
                UnpackError::Read(source) => asked.fetch_error(FetchError::from_io(source)),
                UnpackError::Write(source) => asked.store_error(StoreError::from_io(source)),
                source => ResolveError::Unpack { url: url(), source },
            },
        )?;
        let mut finished = ingest.finish().map_err(|source| asked.store_error(source))?;
        // The disk works while the module is checked.
        finished.start_sync();
        let payload = finished.payload();
        let source = body.body.finish(&payload).map_err(|source| asked.fetch_error(source))?;
        if let Some(expected) = asked.request.expected
            && !expected.is_payload(&payload)
            && !source_is_expected
        {
            return Err(ResolveError::Unexpected { url: url(), expected, payload, found: source });
        }
        let reader = finished.reader().map_err(|source| asked.store_error(source))?;
        wasm::check(reader, &asked.config.budgets)
            .map_err(|source| ResolveError::Module { url: url(), source })?;
        let Stored { path, payload, size } =
            finished.commit(&asked.audience).map_err(|source| asked.store_error(source))?;
        let module = Module { path, payload, source, size, cached: false };
        self.write_record(asked, &module)?;
        Ok(module)
    }

    fn write_record(&self, asked: &Asked, module: &Module) -> Result<(), ResolveError> {
        let key = source_key(&asked.request);
        let record = self.new_record(asked, module);
        self.store.record(&asked.audience, &key, &record).map_err(|source| asked.store_error(source))
    }

    fn new_record(&self, asked: &Asked, module: &Module) -> Record {
        Record {
            payload: module.payload,
            source: module.source,
            size: module.size,
            resource_version: asked.request.resource_version.clone(),
            fetched_at: self.clock.wall(),
            url: asked.request.url.to_string(),
        }
    }
}

impl Asked {
    fn fetch_error(&self, source: FetchError) -> ResolveError {
        ResolveError::Fetch { url: self.request.url.to_string(), source }
    }

    fn store_error(&self, source: StoreError) -> ResolveError {
        ResolveError::Store { url: self.request.url.to_string(), source }
    }
}

/// Tells [`Progress`] what has been read.
struct Counted<'a> {
    body: Body,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read(buffer)?;
        self.progress.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
