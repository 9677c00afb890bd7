//! The library, driven as the agent does, for processes of tests that are no agents.

use std::time::Duration;

use tokio_util::task::TaskTracker;
use wasmferry::clock::Clock;
use wasmferry::fetch::{FetchConfig, Fetcher};
use wasmferry::metrics::Metrics;
use wasmferry::resolve::{Places, ResolveConfig, Resolver};
use wasmferry::store::Store;
use wasmferry::wasm::{Budgets, Limits};

/// Resolves requests with what this store has, and with what their sources give.
pub fn resolver(store: Store) -> Resolver {
    let config = ResolveConfig {
        fetcher: Fetcher::new(FetchConfig::default(), Clock::System),
        timeout: Duration::from_secs(120),
        tag_interval: Duration::ZERO,
        limits: Limits::default(),
        budgets: Budgets::default(),
        allow_if_seen: true,
    };
    Resolver::new(store, config, Places::new(8, 64), Clock::System, Metrics::new().0, TaskTracker::new())
}
