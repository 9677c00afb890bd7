//! The agent, put together: everything is opened and bound first, so that a start either fails
//! with one clear error or succeeds; then it runs until it is told to stop, and drains.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Face, Readiness, Shown};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, Fallback};
use crate::fetch::{CredentialSource, FetchConfig, Fetcher, FileAccess, Retries, provider_problems};
use crate::listen::{BindError, Bound, ListenAddress, SocketAccess, bind};
use crate::metrics::{Metrics, ReasonLabel, ServingLabel, result};
use crate::resolve::{Places, ResolveConfig, Resolver};
use crate::store::{COLLECTED, Limits, MinFree, Store, StoreConfig, StoreError};
use crate::upkeep;
use crate::upstream::Upstream;
use crate::upstream::directory::Folder;
use crate::upstream::grpc::{ConnectError, ControlPlane};
use crate::wasm;
use crate::xds::budget::Budget;
use crate::xds::leases::Leases;
use crate::xds::listener;
use crate::xds::machine::{Refresh, Settings};
use crate::xds::memories::Memories;
use crate::xds::session::{RelaySettings, Shared};
use crate::xds::state::States;

/// Only the agent's own user may ask for everything.
const ADMIN_ACCESS: SocketAccess = SocketAccess { mode: 0o600, group: None };

/// What Envoys send is little beside what they are sent: this part of the budget is enough for it, and
/// leaves the rest to the control planes whatever Envoys do.
const REQUESTS_SHARE: u64 = 4;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration is for prefetch alone: it has no listeners and no upstream")]
    NotAnAgent,
    #[error("cannot use the store: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Upstream(#[from] ConnectError),
    #[error("upstream.directory {path}: {source}")]
    Directory { path: String, source: io::Error },
}

/// An agent whose sockets are bound and whose store is open. It serves nobody yet.
pub struct App {
    config: Config,
    shared: Arc<Shared>,
    relay: watch::Sender<RelaySettings>,
    clock: Clock,
    listeners: Vec<Bound>,
    admin: Vec<(Bound, Face)>,
    shown: Arc<Shown>,
    readiness: Readiness,
    folder: Option<Folder>,
    store: Store,
    tracker: TaskTracker,
}

/// The fetcher, limits and budgets that a configuration asks for. `files` is what `file://` may
/// read: a resource less than the operator. For so long after a question it is asked `again`: an agent
/// tries anew later, and has a fallback to send meanwhile.
pub fn resolve_config(
    config: &Config,
    files: FileAccess,
    again: Duration,
    clock: &Clock,
    metrics: &Metrics,
) -> ResolveConfig {
    let providers = config.credential_providers.clone();
    let fetch = FetchConfig {
        files,
        registries: config.registries.clone(),
        containerd_hosts: config.containerd_hosts.clone(),
        proxies: config.proxies.clone(),
        max_module_bytes: config.cache.max_module_bytes,
        timeout: config.fetch.timeout,
        progress_timeout: config.fetch.progress_timeout,
        min_rate: config.fetch.min_rate,
        retries: Retries { most: config.fetch.retries, within: again },
        blocked_cidrs: config.blocked_cidrs.clone(),
        realms: config.realms.clone(),
        credentials: config.credentials.iter().cloned().chain(providers).collect(),
        programs: config.programs.clone(),
        program_timeout: config.fetch.credential_timeout,
        metrics: Some(metrics.clone()),
        ..FetchConfig::default()
    };
    ResolveConfig {
        fetcher: Fetcher::new(fetch, clock.clone()),
        timeout: config.fetch.timeout,
        tag_interval: config.fetch.tag_refresh.as_ref().map_or(Duration::ZERO, |refresh| refresh.interval),
        limits: wasm::Limits { max_module_bytes: config.cache.max_module_bytes, ..wasm::Limits::default() },
        budgets: budgets(&config.wasm),
        allow_if_seen: config.cache.proof.when_registry_is_down == config::WhenDown::AllowIfSeen,
    }
}

/// How many downloads run at once.
pub fn places(config: &Config) -> Places {
    Places::new(config.fetch.concurrency, config.fetch.downloads)
}

/// What the store may hold, and for how long.
pub fn store_limits(cache: &config::Cache) -> Limits {
    let min_free = match cache.min_free {
        config::MinFree::Bytes(bytes) => MinFree::Bytes(bytes),
        config::MinFree::Percent(percent) => MinFree::Percent(percent),
    };
    Limits {
        max_bytes: cache.max_bytes,
        min_free,
        expiry: cache.expiry,
        lease: cache.lease,
        proof: cache.proof.lasts,
    }
}

fn budgets(wanted: &config::WasmBudgets) -> wasm::Budgets {
    let mut budgets = wasm::Budgets::default();
    let set = |budget: &mut u32, wanted: Option<u64>| {
        if let Some(wanted) = wanted {
            *budget = u32::try_from(wanted).unwrap_or(u32::MAX);
        }
    };
    set(&mut budgets.types, wanted.types);
    set(&mut budgets.params, wanted.params);
    set(&mut budgets.imports, wanted.imports);
    set(&mut budgets.functions, wanted.functions);
    set(&mut budgets.function_body_bytes, wanted.function_body_bytes);
    budgets
}

fn relay_settings(config: &Config) -> RelaySettings {
    let refresh = config.fetch.tag_refresh.clone();
    let refresh =
        refresh.map(|refresh| Refresh { interval: refresh.interval, registries: refresh.registries });
    RelaySettings {
        queue_bytes: usize::try_from(config.relay.queue_bytes).unwrap_or(usize::MAX),
        machine: Settings {
            hold: config.fetch.hold,
            refresh,
            falls_back_unseen: config.fetch.fallback == Fallback::Policy,
            nack_fetch_failures: config.fetch.nack_fetch_failures,
            ..Settings::default()
        },
    }
}

impl App {
    /// Opens and binds everything that the configuration names.
    pub async fn build(config: Config, clock: Clock) -> Result<Self, StartError> {
        let agent = config.agent.as_ref().ok_or(StartError::NotAnAgent)?;
        let (metrics, registry) = Metrics::new();
        let tracker = TaskTracker::new();
        let readiness = Readiness::default();
        let store = Store::open(&StoreConfig { directory: config.cache.directory.clone() }, clock.clone())?;
        store.limit(store_limits(&config.cache));
        store.look_into(config.cache.lower.clone());
        if store.is_in_memory()? {
            tracing::warn!(
                directory = %store.directory().display(),
                "the store is on tmpfs: what it holds counts as this machine's or pod's memory, and is gone \
                 with it"
            );
        }
        let (upstream, folder) = match &agent.upstream {
            config::Upstream::Grpc(address) => (Upstream::Grpc(Box::new(ControlPlane::new(address)?)), None),
            config::Upstream::Directory(path) => {
                let folder = Folder::open(path.clone(), clock.clone())
                    .await
                    .map_err(|source| StartError::Directory { path: path.display().to_string(), source })?;
                (Upstream::Directory(folder.snapshots()), Some(folder))
            }
        };
        let mut listeners = Vec::new();
        for listener in &agent.listeners {
            let access =
                SocketAccess { mode: listener.mode, group: listener.group.map(|group| group.as_raw()) };
            listeners.push(bind(&listener.address, access).await?);
        }
        let mut admin = Vec::new();
        if let Some(health) = &config.health {
            admin.push((bind(&ListenAddress::Tcp(health.listen), ADMIN_ACCESS).await?, Face::Health));
        }
        if let Some(page) = &config.admin {
            admin.push((bind(&page.listen, ADMIN_ACCESS).await?, Face::Admin));
        }
        warn_of_providers(&config).await;
        let files = FileAccess::Below(config.sources.file.clone());
        let resolver = Resolver::new(
            store.clone(),
            resolve_config(&config, files, config.fetch.hold, &clock, &metrics),
            places(&config),
            clock.clone(),
            metrics.clone(),
            tracker.clone(),
        );
        let (relay, settings) = watch::channel(relay_settings(&config));
        let budget = Budget::new(config.relay.in_flight_bytes);
        let states = States::new(clock.clone());
        let shown = Arc::new(Shown {
            registry,
            readiness: readiness.clone(),
            states: states.clone(),
            refresh: refresh(&metrics, &budget, &store, &states, folder.as_ref()),
        });
        let shared = Arc::new(Shared {
            upstream,
            resolver,
            settings,
            requests_budget: budget.part(config.relay.in_flight_bytes / REQUESTS_SHARE),
            budget,
            clock: clock.clone(),
            leases: Leases::new(store.clone(), metrics.clone()),
            metrics,
            states,
            memories: Memories::load(store.clone(), clock.clone()),
            shutdown: CancellationToken::new(),
        });
        Ok(Self { config, shared, relay, clock, listeners, admin, shown, readiness, folder, store, tracker })
    }

    /// Where Envoys can connect, with the real ports, in the configuration's order.
    pub fn listeners(&self) -> impl Iterator<Item = &ListenAddress> {
        self.listeners.iter().map(|bound| &bound.address)
    }

    /// Where health and the admin page are, with the real ports.
    pub fn admin(&self) -> impl Iterator<Item = (&ListenAddress, Face)> {
        self.admin.iter().map(|(bound, face)| (&bound.address, *face))
    }

    /// Runs until `stop` is ready, taking over what `reloads` brings; then drains. False where
    /// something was still running at the end of `shutdown.timeout`.
    pub async fn run(
        mut self,
        mut reloads: impl AsyncFnMut() -> Result<Config, ConfigError>,
        stop: impl Future<Output = &'static str>,
    ) -> bool {
        // Apart from all others: health is to be seen while they drain.
        let (operators, operators_end) = (TaskTracker::new(), CancellationToken::new());
        for (bound, face) in std::mem::take(&mut self.admin) {
            tracing::info!(address = %bound.address, ?face, "listening for operators");
            let (shown, clock, until) = (self.shown.clone(), self.clock.clone(), operators_end.clone());
            operators.spawn(admin::serve(bound, face, shown, clock, operators.clone(), until));
        }
        for bound in std::mem::take(&mut self.listeners) {
            tracing::info!(address = %bound.address, "listening for Envoys");
            self.tracker.spawn(listener::serve(bound, self.shared.clone(), self.tracker.clone()));
        }
        if let Some(folder) = self.folder.take() {
            let until = self.shared.shutdown.clone();
            self.tracker.spawn(async move {
                if let Err(error) = folder.run(until).await {
                    tracing::error!("the watch of the plugin directory failed: {error}");
                }
            });
        }
        let memories = self.shared.memories.clone();
        self.tracker.spawn(memories.keep(
            self.shared.resolver.clone(),
            self.shared.settings.clone(),
            self.shared.shutdown.clone(),
        ));
        self.tracker.spawn(upkeep::run(
            self.store.clone(),
            self.shared.leases.clone(),
            self.clock.clone(),
            self.shared.shutdown.clone(),
        ));
        self.tracker.spawn(upkeep::verify(
            self.store.clone(),
            self.shared.resolver.clone(),
            self.clock.clone(),
            self.shared.shutdown.clone(),
        ));
        self.readiness.ready();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
        let mut stop = std::pin::pin!(stop);
        let reason = loop {
            tokio::select! {
                reason = &mut stop => break reason,
                reloaded = reloads() => self.reload(reloaded).await,
            }
        };
        self.readiness.draining();
        tracing::info!(reason, "draining");
        let timeout = self.config.shutdown.timeout;
        let drained = drain(&self.shared.shutdown, &self.tracker, &self.clock, timeout).await;
        if !drained {
            let left = self.tracker.len();
            tracing::warn!(left, "shutdown.timeout has passed; what still runs is cut off");
        }
        // These end as soon as they are told.
        drain(&operators_end, &operators, &self.clock, timeout).await;
        tracing::info!("stopped");
        drained
    }

    async fn reload(&mut self, reloaded: Result<Config, ConfigError>) {
        let count = |what| self.shared.metrics.reloads.get_or_create(&result(what)).inc();
        let config = match reloaded {
            Ok(config) => config,
            Err(error) => {
                count("invalid");
                tracing::error!("the new configuration is not valid, the old one stays: {error}");
                return;
            }
        };
        count("applied");
        let changes = config.changes_from(&self.config);
        if !changes.restart.is_empty() {
            tracing::warn!(keys = changes.restart.join(", "), "these changes wait for a restart");
        }
        let files = FileAccess::Below(config.sources.file.clone());
        let again = config.fetch.hold;
        let fetching = resolve_config(&config, files, again, &self.clock, &self.shared.metrics);
        self.shared.resolver.reconfigure(fetching);
        warn_of_providers(&config).await;
        self.relay.send_replace(relay_settings(&config));
        self.store.limit(store_limits(&config.cache));
        self.store.look_into(config.cache.lower.clone());
        tracing::info!(changed = changes.now.join(", "), "the configuration was reloaded");
        // What waits for a restart keeps its old value, so that it is named again next time.
        self.config = config.with_fixed_of(&self.config);
    }
}

/// Says at once what would only fail when it is needed. It is no reason not to start: the node may put it
/// right, and what needs no provider works.
async fn warn_of_providers(config: &Config) {
    let Some(CredentialSource::Providers { config, bin_directory }) =
        config.credential_providers.as_ref().map(|providers| providers.source.clone())
    else {
        return;
    };
    let look = tokio::task::spawn_blocking(move || provider_problems(&config, &bin_directory));
    // A panic in it has been printed.
    for problem in look.await.unwrap_or_default() {
        tracing::warn!("credential_providers: {problem}");
    }
}

/// Brings up to date what nobody counts as it happens.
fn refresh(
    metrics: &Metrics,
    budget: &Budget,
    store: &Store,
    states: &States,
    folder: Option<&Folder>,
) -> Box<dyn Fn() + Send + Sync> {
    let (metrics, budget, store, states) = (metrics.clone(), budget.clone(), store.clone(), states.clone());
    let snapshots = folder.map(Folder::snapshots);
    let whole = budget.available();
    Box::new(move || {
        metrics.bytes_in_flight.set(whole.saturating_sub(budget.available()) as u64);
        let stats = store.stats();
        metrics.store_modules.set(i64::try_from(stats.entries).unwrap_or(i64::MAX));
        metrics.store_dropped_records.set(i64::try_from(stats.dropped_records).unwrap_or(i64::MAX));
        for (serving, count) in states.serving() {
            metrics.serving.get_or_create(&ServingLabel { serving }).set(count);
        }
        metrics.store_bytes.set(stats.bytes);
        metrics.store_leased.set(stats.leased);
        metrics.store_pinned.set(stats.pinned);
        metrics.store_damaged.inc_by(stats.damaged.saturating_sub(metrics.store_damaged.get()));
        for (reason, count) in COLLECTED.into_iter().zip(stats.collected) {
            let collected = metrics.store_collected.get_or_create(&ReasonLabel { reason });
            collected.inc_by(count.saturating_sub(collected.get()));
        }
        let since_1970 = stats.counted_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        metrics.store_collection_time.set(since_1970.unwrap_or_default().as_secs());
        if let Some(snapshots) = &snapshots {
            let problems = snapshots.borrow().problems().len();
            metrics.plugin_problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
        }
    })
}

/// No new streams, and those that run end. Whether all did within `timeout`.
async fn drain(
    shutdown: &CancellationToken,
    tracker: &TaskTracker,
    clock: &Clock,
    timeout: Duration,
) -> bool {
    shutdown.cancel();
    tracker.close();
    clock.timeout_at(clock.now() + timeout, tracker.wait()).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::clock::ManualClock;
    use crate::config::{Environment, Loader, Overrides};

    #[tokio::test]
    async fn a_drain_ends_with_the_last_task_whatever_time_is_left() {
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        tracker.spawn(shutdown.clone().cancelled_owned());
        let clock = Clock::Manual(ManualClock::new(SystemTime::UNIX_EPOCH));
        assert!(drain(&shutdown, &tracker, &clock, Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_holds_a_drain_up_to_its_deadline_and_no_longer() {
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        tracker.spawn(std::future::pending::<()>());
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        let clock = Clock::Manual(manual.clone());
        let mut drained = std::pin::pin!(drain(&shutdown, &tracker, &clock, Duration::from_secs(10)));
        assert_eq!(drained.as_mut().now_or_never(), None);
        manual.advance(Duration::from_millis(9_999));
        assert_eq!(drained.as_mut().now_or_never(), None);
        manual.advance(Duration::from_millis(1));
        assert_eq!(drained.now_or_never(), Some(false));
    }

    /// The status line of the answer to `GET /readyz`.
    async fn readyz(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }

    #[tokio::test]
    async fn health_says_that_the_agent_drains_for_as_long_as_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let text = format!(
            "version: 1\nlisteners: [{{address: '127.0.0.1:0'}}]\nupstream: {{directory: {0}}}\n\
             cache: {{directory: {0}/store}}\nhealth: {{listen: '127.0.0.1:0'}}\n",
            folder.path().display()
        );
        std::fs::write(&file, text).unwrap();
        let loader = Loader::new(Some(file), &Environment::default(), Overrides::default());
        let app = App::build(loader.load().unwrap(), Clock::System).await.unwrap();
        let Some((&ListenAddress::Tcp(health), _)) = app.admin().next() else { panic!("no health") };
        let (stop, stopped) = oneshot::channel();
        // What runs until the end of the test is what the drain waits for.
        let (last, ended) = oneshot::channel::<()>();
        app.tracker.spawn(ended);
        let run = tokio::spawn(app.run(std::future::pending, async move { stopped.await.unwrap() }));
        assert_eq!(readyz(health).await.unwrap(), "HTTP/1.1 200 OK");
        stop.send("the test").unwrap();
        while readyz(health).await.expect("health answers during the drain") == "HTTP/1.1 200 OK" {}
        assert_eq!(readyz(health).await.unwrap(), "HTTP/1.1 503 Service Unavailable");
        last.send(()).unwrap();
        assert!(run.await.unwrap(), "everything ended in time");
        readyz(health).await.expect_err("the socket is gone with the agent");
    }
}
