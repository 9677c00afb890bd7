//! `wasmferry prefetch`: modules into the store, as an agent would, with the user's own credentials.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::CliError;
use super::args::{Output, PrefetchArgs};
use crate::app::{places, resolve_config, store_limits};
use crate::clock::Clock;
use crate::config::{Config, Environment};
use crate::fetch::{FileAccess, NodeCredential};
use crate::metrics::Metrics;
use crate::module::{Caller, Module, ModuleRequest, ModuleUrl, PullSecret};
use crate::resolve::{Progress, ResolveError, Resolver};
use crate::store::{Pin, Store, StoreConfig, StoreError};
use crate::upstream::directory::plugin;

/// How often a bar moves.
const FRAME: Duration = Duration::from_millis(100);

/// One module that was asked for.
struct Wanted {
    /// As the user wrote it, or as it may be shown.
    url: String,
    request: ModuleRequest,
}

/// Puts every source into the store. Prints a line for each as it ends.
pub fn prefetch(args: &PrefetchArgs, config: &Config, environment: &Environment) -> Result<(), CliError> {
    let mut config = config.clone();
    config.credentials.extend(environment.docker_config.clone().map(NodeCredential::of_user));
    let mut wanted = Vec::new();
    for (index, source) in args.sources.iter().enumerate() {
        wanted.extend(read_source(index + 1, source)?);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)?;
    let failed = runtime.block_on(fetch_all(wanted, &config, args));
    // Each has ended and been told of. What keeps idle connections is not waited for.
    runtime.shutdown_background();
    let failed = failed?;
    if failed > 0 { Err(CliError::Failed { failed }) } else { Ok(()) }
}

/// The modules that the `number`th source names: itself, or those of a file of plugins.
fn read_source(number: usize, source: &str) -> Result<Vec<Wanted>, CliError> {
    let path = PathBuf::from(source);
    let extension = path.extension().and_then(|extension| extension.to_str());
    if !source.contains("://") && matches!(extension, Some("yaml" | "yml" | "json")) {
        let plugins = plugin::parse_file(&path)?;
        let wanted = plugins.iter().map(|plugin| {
            let mut request = plugin.request();
            request.caller = Caller::Operator;
            // What a plugin's pull secret is called in a cluster is nothing to this user's files.
            if request.secret == PullSecret::Unavailable {
                request.secret = PullSecret::None;
            }
            Wanted { url: request.url.to_string(), request }
        });
        return Ok(wanted.collect());
    }
    let url: ModuleUrl = source.parse().map_err(|error| {
        // An invalid URL may be one because of what is secret in it: a password stands before an @, a
        // signature behind a ?, and anything behind a #.
        if source.contains(['?', '@', '#']) {
            return CliError::Usage(format!("source {number}: {error}"));
        }
        let hint = if path.is_absolute() { "; a file is named as file:///DIR/FILE" } else { "" };
        CliError::Usage(format!("{source}: {error}{hint}"))
    })?;
    // Query and fragment are not shown, and without them the user's own spelling is the best name.
    let shown = if source.contains(['?', '#']) { url.to_string() } else { source.to_owned() };
    let request = ModuleRequest { caller: Caller::Operator, ..ModuleRequest::new(url) };
    Ok(vec![Wanted { url: shown, request }])
}

/// Fetches them all; how many failed.
async fn fetch_all(wanted: Vec<Wanted>, config: &Config, args: &PrefetchArgs) -> Result<usize, CliError> {
    let output = args.output;
    let clock = Clock::System;
    let store = Store::open(&StoreConfig { directory: config.cache.directory.clone() }, clock.clone())?;
    store.limit(store_limits(&config.cache));
    store.look_into(config.cache.lower.clone());
    let (metrics, _registry) = Metrics::new();
    let tracker = TaskTracker::new();
    let resolver = Resolver::new(
        store.clone(),
        // Whoever types a command may read what they name, and has nobody who tries again later.
        resolve_config(config, FileAccess::Any, config.fetch.timeout, &clock, &metrics),
        places(config),
        clock.clone(),
        metrics,
        tracker.clone(),
    );
    let bars = Bars::new(output == Output::Text && io::stderr().is_terminal());
    let mut fetches = JoinSet::new();
    for Wanted { url, request } in wanted {
        let (resolver, clock) = (resolver.clone(), clock.clone());
        let bar = bars.add(&request.url);
        fetches.spawn(async move {
            let progress = Arc::new(Progress::default());
            let mut fetch = std::pin::pin!(resolver.resolve_watched(request, progress.clone()));
            let outcome = loop {
                tokio::select! {
                    outcome = &mut fetch => break outcome,
                    () = clock.sleep(FRAME) => bar.follow(&progress),
                }
            };
            bar.finish();
            (url, outcome)
        });
    }
    let mut failed = 0;
    while let Some(ended) = fetches.join_next().await {
        let Ok((url, outcome)) = ended else {
            failed += 1;
            continue;
        };
        let pinned = match &outcome {
            Ok(module) if args.pin => pin(&store, module, &url).await,
            _ => Ok(()),
        };
        failed += usize::from(outcome.is_err() || pinned.is_err());
        bars.suspend(|| print(output, &url, &outcome)).map_err(CliError::Output)?;
        if let Err(error) = pinned {
            tracing::error!(url, "cannot pin the module: {error}");
        }
    }
    tracker.close();
    tracker.wait().await;
    Ok(failed)
}

/// Keeps a module until it is unpinned.
async fn pin(store: &Store, module: &Module, url: &str) -> Result<(), StoreError> {
    let pin = Pin { payload: module.payload, url: url.to_owned(), who: "prefetch".to_owned() };
    let store = store.clone();
    match tokio::task::spawn_blocking(move || store.pin(&pin)).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn print(output: Output, url: &str, outcome: &Result<Module, Arc<ResolveError>>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match (output, outcome) {
        (Output::Json, Ok(module)) => {
            let line = json!({
                "url": url,
                "payload_digest": module.payload.to_string(),
                "source_digest": module.source.to_string(),
                "path": module.path,
                "size": module.size,
                "cached": module.cached,
            });
            writeln!(stdout, "{line}")
        }
        (Output::Json, Err(error)) => {
            writeln!(stdout, "{}", json!({ "url": url, "error": error.to_string(), "reason": error.label() }))
        }
        (Output::Text, Ok(module)) => {
            let how = if module.cached { "in the store already" } else { "fetched" };
            writeln!(stdout, "{url}: {how}, {} bytes, {}", module.size, module.payload)?;
            writeln!(stdout, "  {}", module.path.display())
        }
        (Output::Text, Err(error)) => writeln!(io::stderr().lock(), "{error}"),
    }
}

/// The progress bars, where there is a terminal to draw them on.
struct Bars(Option<MultiProgress>);

/// One module's bar.
struct Bar(Option<ProgressBar>);

impl Bars {
    fn new(visible: bool) -> Self {
        Self(visible.then(MultiProgress::new))
    }

    fn add(&self, url: &ModuleUrl) -> Bar {
        Bar(self.0.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            let template = "{msg:30!} {bar:30} {bytes:>10} / {total_bytes:10} {bytes_per_sec}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(url.short_name());
            bar
        }))
    }

    /// Prints without a bar in the way.
    fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }
}

impl Bar {
    fn follow(&self, progress: &Progress) {
        if let Some(bar) = &self.0 {
            let total = progress.total.load(Ordering::Relaxed);
            if total > 0 {
                bar.set_length(total);
            }
            bar.set_position(progress.done.load(Ordering::Relaxed));
        }
    }

    fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_url_is_named_without_what_may_be_secret_in_it() {
        for source in [
            "https://me:hunter2@h/x.wasm",
            "https://me:hun?hunter2@h/x.wasm",
            "me:hunter2@h/x",
            "hunter2://h/x?",
            "https://h:99999/x?sig=hunter2@",
            "https://h:99999/x#hunter2",
        ] {
            let Err(error) = read_source(1, source) else { panic!("{source} is read") };
            assert!(!error.to_string().contains("hun"), "{error}");
        }
        let Err(error) = read_source(1, "ftp://h/x") else { panic!("it is read") };
        assert!(error.to_string().starts_with("ftp://h/x: "), "{error}");
    }
}
