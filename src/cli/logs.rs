//! Logs: to standard error, as text or JSON, at the level that flag, environment or configuration say.
//!
//! Dependencies log headers and bodies at their lower levels. So they are capped at warn, whatever
//! level is asked for: only wasmferry's own records, which hold no secret, go below that.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, filter::FilterExt as _, fmt, reload};

use super::args::LogArgs;
use crate::config::{ConfigError, Environment, Log, LogFormat, LogLevel};

/// Starts logging for this process; once.
///
/// # Errors
/// `RUST_LOG` is no filter.
pub fn start(args: LogArgs, environment: &Environment, config: &Log) -> Result<LogControl, ConfigError> {
    let terminal = io::stderr().is_terminal();
    let by_terminal = if terminal { LogFormat::Text } else { LogFormat::Json };
    let shape = Shape {
        format: args.log_format.or(config.format).unwrap_or(by_terminal),
        color: terminal && !environment.no_color,
    };
    let (subscriber, control) = build(shape, Levels::new(args, environment, config)?, io::stderr);
    // Only a second start can fail, and the first one's logs are as good.
    let _ = subscriber.try_init();
    Ok(control)
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    format: LogFormat,
    color: bool,
}

/// What may be logged by wasmferry's own code.
struct Levels {
    filter: EnvFilter,
    /// Flag or environment said so: the configuration has no say.
    fixed: bool,
}

impl Levels {
    fn new(args: LogArgs, environment: &Environment, config: &Log) -> Result<Self, ConfigError> {
        let filter = match (args.log_level, &environment.rust_log) {
            (Some(level), _) => filter_of(level),
            (None, Some(text)) => EnvFilter::builder()
                .parse(text)
                .map_err(|why| ConfigError::Setting { name: "RUST_LOG", why: why.to_string() })?,
            (None, None) => filter_of(config.level.unwrap_or(LogLevel::Info)),
        };
        Ok(Self { filter, fixed: args.log_level.is_some() || environment.rust_log.is_some() })
    }
}

fn filter_of(level: LogLevel) -> EnvFilter {
    EnvFilter::new(level.name())
}

/// Changes the level of logs that run.
#[derive(Debug, Clone)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
    fixed: bool,
}

impl LogControl {
    /// Takes over the level of a reloaded configuration, unless a flag or the environment decided it.
    pub fn follow(&self, config: &Log) {
        if !self.fixed {
            // Fails only where the logs are gone.
            let _ = self.filter.reload(filter_of(config.level.unwrap_or(LogLevel::Info)));
        }
    }
}

fn build<W>(shape: Shape, levels: Levels, writer: W) -> (impl Subscriber + Send + Sync, LogControl)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(levels.filter);
    let layer = match shape.format {
        LogFormat::Text => fmt::layer().with_ansi(shape.color).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
    };
    let subscriber = Registry::default().with(layer.with_filter(filter.and(DependenciesCapped)));
    (subscriber, LogControl { filter: handle, fixed: levels.fixed })
}

/// Lets pass what is wasmferry's own, and warnings and errors of all others.
struct DependenciesCapped;

impl<S> Filter<S> for DependenciesCapped {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        is_ours(metadata.target()) || *metadata.level() <= LevelFilter::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
}

fn is_ours(target: &str) -> bool {
    target.strip_prefix("wasmferry").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn flag(level: LogLevel) -> LogArgs {
        LogArgs { log_level: Some(level), log_format: None }
    }

    fn rust_log(text: &str) -> Environment {
        Environment { rust_log: Some(text.to_owned()), ..Environment::default() }
    }

    fn level(level: LogLevel) -> Log {
        Log { level: Some(level), format: None }
    }

    /// What is written of what `log` logs.
    fn written(format: LogFormat, levels: Levels, log: impl FnOnce(&LogControl)) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let (subscriber, control) = build(Shape { format, color: false }, levels, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || log(&control));
        captured.text()
    }

    fn text(levels: Levels, log: impl FnOnce(&LogControl)) -> String {
        written(LogFormat::Text, levels, log)
    }

    #[test]
    fn dependencies_say_nothing_below_warn_whatever_rust_log_says() {
        for filter in [
            "trace",
            "wasmferry=error,hyper=trace,h2=trace",
            "trace,hyper=debug,rustls=info,reqwest::connect=trace",
        ] {
            let levels = Levels::new(LogArgs::default(), &rust_log(filter), &Log::default()).unwrap();
            let text = text(levels, |_| {
                tracing::debug!(target: "hyper", "authorization: hunter2");
                tracing::trace!(target: "h2::codec", "hunter2");
                tracing::info!(target: "rustls", "hunter2");
                tracing::debug!(target: "oci_client", "hunter2");
                tracing::trace!(target: "reqwest::connect", "hunter2");
                tracing::info!(target: "tonic", "hunter2");
                tracing::debug!(target: "wasmferry_lookalike", "hunter2");
                let span = tracing::info_span!(target: "tonic", "call", header = "hunter2");
                span.in_scope(|| tracing::error!(target: "wasmferry", "inside"));
            });
            assert!(!text.contains("hunter2"), "{filter}: {text}");
            assert!(text.contains("inside"), "{filter}: {text}");
        }
    }

    #[test]
    fn our_own_records_and_others_warnings_follow_the_level() {
        let text = text(
            Levels::new(flag(LogLevel::Trace), &Environment::default(), &Log::default()).unwrap(),
            |_| {
                tracing::trace!(target: "wasmferry", "ours-trace");
                tracing::debug!(target: "wasmferry::fetch", "ours-debug");
                tracing::warn!(target: "hyper", "theirs-warn");
            },
        );
        for record in ["ours-trace", "ours-debug", "theirs-warn"] {
            assert!(text.contains(record), "{text}");
        }
    }

    #[test]
    fn the_flag_wins_over_rust_log_and_that_over_the_configuration() {
        let shows_debug = |args, environment: &Environment, config: &Log| {
            let levels = Levels::new(args, environment, config).unwrap();
            text(levels, |_| tracing::debug!(target: "wasmferry", "seen")).contains("seen")
        };
        let none = Environment::default();
        assert!(!shows_debug(LogArgs::default(), &none, &Log::default()), "info is the default");
        assert!(shows_debug(LogArgs::default(), &none, &level(LogLevel::Debug)));
        assert!(!shows_debug(LogArgs::default(), &rust_log("info"), &level(LogLevel::Debug)));
        assert!(shows_debug(flag(LogLevel::Debug), &rust_log("info"), &level(LogLevel::Off)));
    }

    #[test]
    fn a_reloaded_level_is_followed_unless_a_flag_decided() {
        let records = |args| {
            text(Levels::new(args, &Environment::default(), &Log::default()).unwrap(), |control| {
                tracing::debug!(target: "wasmferry", "before");
                control.follow(&level(LogLevel::Debug));
                tracing::debug!(target: "wasmferry", "after");
                control.follow(&level(LogLevel::Off));
                tracing::error!(target: "wasmferry", "silent");
            })
        };
        let text = records(LogArgs::default());
        assert!(!text.contains("before") && text.contains("after") && !text.contains("silent"), "{text}");
        let text = records(flag(LogLevel::Info));
        assert!(!text.contains("after") && text.contains("silent"), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let levels = Levels::new(LogArgs::default(), &Environment::default(), &Log::default()).unwrap();
        let text = written(LogFormat::Json, levels, |_| {
            tracing::info!(target: "wasmferry", listener = "unix:/a", "listening\non");
            tracing::warn!(target: "wasmferry", "second");
        });
        let records: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0]["message"], "listening\non");
        assert_eq!(records[0]["listener"], "unix:/a");
        assert_eq!(records[1]["level"], "WARN");
    }

    #[test]
    fn a_rust_log_that_is_no_filter_is_refused() {
        let levels = Levels::new(LogArgs::default(), &rust_log("wasmferry=loud"), &Log::default());
        let error = levels.err().unwrap();
        assert!(error.to_string().starts_with("RUST_LOG: "), "{error}");
    }
}
