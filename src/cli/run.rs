//! `wasmferry run`: the agent, from its configuration until a signal.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use super::logs::LogControl;
use crate::app::App;
use crate::clock::Clock;
use crate::config::Loader;

/// More threads would wait for each other: what takes time is the network and the disk.
const MAX_THREADS: usize = 4;

/// How long file work that is under way may hold up the end of the process.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Runs the agent. Returns when it was told to stop and has drained.
pub fn run(loader: Loader, logs: &LogControl) -> Result<(), CliError> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let outcome = runtime.block_on(async {
        // Before anything is opened, so that no signal finds it half made.
        let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
        let (config, mut watch) = loader.watch(Clock::System)?;
        let app = App::build(config, Clock::System).await?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let reloads = async || {
            let reloaded = watch.next().await;
            if let Ok(config) = &reloaded {
                logs.follow(&config.log);
            }
            reloaded
        };
        app.run(reloads, stop).await;
        Ok(())
    });
    runtime.shutdown_timeout(LAST_CALL);
    outcome
}
