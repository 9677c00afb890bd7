//! What is counted. Labels come from closed sets: never a resource's name, a URL or anything else
//! that a peer chooses.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// One label called `result`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    pub result: &'static str,
}

/// One label called `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

/// Whose message it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MessageLabels {
    /// `envoy` or `control_plane`.
    pub from: &'static str,
    /// Whether it was intercepted or passed on as it came.
    pub intercepted: &'static str,
}

/// What Envoys are served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServingLabel {
    /// `current`, `last_good`, `fallback` or `nothing`.
    pub serving: &'static str,
}

/// All metrics of a process. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Envoy streams that are open.
    pub streams: Gauge,
    /// Envoy streams that have ended, by reason.
    pub stream_ends: Family<ResultLabel, Counter>,
    pub messages: Family<MessageLabels, Counter>,
    /// What became of resources: `delivered`, `fallback`, `rejected`, `malformed`, `recovered`, `expired`.
    pub resources: Family<ResultLabel, Counter>,
    /// Resources on open streams, by what Envoy was given.
    pub serving: Family<ServingLabel, Gauge>,
    /// Lookups in the store: `hit` or `miss`.
    pub lookups: Family<ResultLabel, Counter>,
    /// Fetches, by `success`, the error's label, or `abandoned` where nobody waited any more.
    pub fetches: Family<ResultLabel, Counter>,
    /// Looks at tags, each for all who follow it: `unchanged`, `moved` or the error's label.
    pub tag_refreshes: Family<ResultLabel, Counter>,
    /// Runs of programs that give credentials, and files of the node's own credentials that cannot be used:
    /// `success`, `none`, or what went wrong: `file`, `start`, `timeout`, `output`, `exit`, `answer`.
    pub credentials: Family<ResultLabel, Counter>,
    /// Waits for another process's download: `shared`, `taken_over` or `timeout`.
    pub fetch_waits: Family<ResultLabel, Counter>,
    /// Downloads that went on where they or an earlier one broke off: `connection`, `leftover`.
    pub fetch_resumes: Family<ResultLabel, Counter>,
    /// Bytes that did not have to come again for it.
    pub fetch_saved_bytes: Counter,
    /// What was asked again within a fetch, by the label of the error because of which.
    pub fetch_retries: Family<ReasonLabel, Counter>,
    pub fetch_seconds: Histogram,
    /// Module bytes that were fetched.
    pub fetched_bytes: Counter,
    /// Modules in the store.
    pub store_modules: Gauge,
    /// Index records that could not be read and were dropped.
    pub store_dropped_records: Gauge,
    /// Bytes of the modules in the store.
    pub store_bytes: Gauge<u64, AtomicU64>,
    /// Modules that Envoys may open at any time.
    pub store_leased: Gauge<u64, AtomicU64>,
    pub store_pinned: Gauge<u64, AtomicU64>,
    /// Modules that were removed: `max_bytes`, `min_free`, `expiry`.
    pub store_collected: Family<ReasonLabel, Counter>,
    /// Modules of the store whose bytes turned out to be wrong.
    pub store_damaged: Counter,
    /// Modules that another store had: `used`, `refused`.
    pub lower_modules: Family<ResultLabel, Counter>,
    /// Modules that the store had for others, by what shows that who asks may have them: `asked`,
    /// `remembered`, `seen`; or `refused`, `unanswered`.
    pub shared_modules: Family<ResultLabel, Counter>,
    /// When the modules in the store were last counted, and perhaps some removed, in seconds since 1970.
    pub store_collection_time: Gauge<u64, AtomicU64>,
    /// Leases that could not be written.
    pub lease_failures: Counter,
    /// Reloads of the configuration: `applied`, `invalid`.
    pub reloads: Family<ResultLabel, Counter>,
    /// Plugin files of a directory upstream that cannot be used.
    pub plugin_problems: Gauge<i64, std::sync::atomic::AtomicI64>,
    /// Bytes of messages in flight that are counted.
    pub bytes_in_flight: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn new() -> (Self, Registry) {
        let mut registry = Registry::with_prefix("wasmferry");
        let metrics = Self {
            streams: Gauge::default(),
            stream_ends: Family::default(),
            messages: Family::default(),
            resources: Family::default(),
            serving: Family::default(),
            lookups: Family::default(),
            fetches: Family::default(),
            tag_refreshes: Family::default(),
            credentials: Family::default(),
            fetch_waits: Family::default(),
            fetch_resumes: Family::default(),
            fetch_saved_bytes: Counter::default(),
            fetch_retries: Family::default(),
            fetch_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 15)),
            fetched_bytes: Counter::default(),
            store_modules: Gauge::default(),
            store_dropped_records: Gauge::default(),
            store_bytes: Gauge::default(),
            store_leased: Gauge::default(),
            store_pinned: Gauge::default(),
            store_collected: Family::default(),
            store_damaged: Counter::default(),
            lower_modules: Family::default(),
            shared_modules: Family::default(),
            store_collection_time: Gauge::default(),
            lease_failures: Counter::default(),
            reloads: Family::default(),
            plugin_problems: Gauge::default(),
            bytes_in_flight: Gauge::default(),
        };
        let m = &metrics;
        registry.register(
            "build",
            "The running version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register("streams", "Envoy streams that are open", m.streams.clone());
        registry.register("stream_ends", "Envoy streams that have ended", m.stream_ends.clone());
        registry.register("messages", "xDS messages received", m.messages.clone());
        registry.register("resources", "What became of intercepted resources", m.resources.clone());
        registry.register(
            "serving",
            "Intercepted resources on open streams, by what Envoy was given",
            m.serving.clone(),
        );
        registry.register("store_lookups", "Lookups of modules in the store", m.lookups.clone());
        registry.register("fetches", "Fetches of modules from their sources", m.fetches.clone());
        registry.register(
            "tag_refreshes",
            "Looks at tags, to see whether they moved",
            m.tag_refreshes.clone(),
        );
        registry.register(
            "credentials",
            "Runs of credential programs, and credential files that cannot be used",
            m.credentials.clone(),
        );
        registry.register("fetch_waits", "Waits for a download of another process", m.fetch_waits.clone());
        registry.register(
            "fetch_resumes",
            "Downloads that went on where one had broken off",
            m.fetch_resumes.clone(),
        );
        registry.register_with_unit(
            "fetch_saved",
            "Bytes that did not have to come again",
            Unit::Bytes,
            m.fetch_saved_bytes.clone(),
        );
        registry.register("fetch_retries", "What was asked again within a fetch", m.fetch_retries.clone());
        registry.register_with_unit(
            "fetch_duration",
            "From the first request to the module in the store",
            Unit::Seconds,
            m.fetch_seconds.clone(),
        );
        registry.register_with_unit(
            "fetched",
            "Module bytes that were fetched",
            Unit::Bytes,
            m.fetched_bytes.clone(),
        );
        registry.register("store_modules", "Modules in the store", m.store_modules.clone());
        registry.register(
            "store_dropped_records",
            "Index records that could not be read",
            m.store_dropped_records.clone(),
        );
        registry.register_with_unit(
            "store",
            "Bytes of the modules in the store",
            Unit::Bytes,
            m.store_bytes.clone(),
        );
        registry.register("store_leased_modules", "Modules that Envoys may open", m.store_leased.clone());
        registry.register("store_pinned_modules", "Modules that are pinned", m.store_pinned.clone());
        registry.register("store_collected_modules", "Modules that were removed", m.store_collected.clone());
        registry.register(
            "store_damaged_modules",
            "Modules that were found damaged",
            m.store_damaged.clone(),
        );
        registry.register("store_lower_modules", "Modules that another store had", m.lower_modules.clone());
        registry.register(
            "store_shared_modules",
            "Modules that the store had for others",
            m.shared_modules.clone(),
        );
        registry.register_with_unit(
            "store_collection_time",
            "When the store was last looked through, since 1970",
            Unit::Seconds,
            m.store_collection_time.clone(),
        );
        registry.register(
            "store_lease_failures",
            "Leases that could not be written",
            m.lease_failures.clone(),
        );
        registry.register("config_reloads", "Reloads of the configuration", m.reloads.clone());
        registry.register(
            "plugin_problems",
            "Problems in the plugin files of the directory",
            m.plugin_problems.clone(),
        );
        registry.register_with_unit(
            "in_flight",
            "Message bytes in flight that are counted",
            Unit::Bytes,
            m.bytes_in_flight.clone(),
        );
        (metrics, registry)
    }
}

/// A label for a family with one label.
pub fn result(result: &'static str) -> ResultLabel {
    ResultLabel { result }
}
