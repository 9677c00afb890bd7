//! The command line: what may stand on it, and the help that says so. Must not do anything.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::cache::args::CacheArgs;
use crate::config::{LogFormat, LogLevel};

/// Brings WebAssembly modules to Envoy: pulls, verifies, stores and serves them by xDS.
#[derive(Debug, Parser)]
#[command(
    name = "wasmferry",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.\n\n\
                  Example:\n  wasmferry run --config /etc/wasmferry/config.yaml"
)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(RunArgs),
    Prefetch(PrefetchArgs),
    Push(PushArgs),
    Check(CheckArgs),
    Health(HealthArgs),
    Cache(CacheArgs),
}

/// How to log, for every command; wins over the environment and the configuration.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct LogArgs {
    /// Shape of the logs on standard error [default: text on a terminal, json otherwise]
    #[arg(
        long, global = true, value_name = "FORMAT",
        value_parser = PossibleValuesParser::new(LogFormat::NAMES).try_map(|name| name.parse::<LogFormat>())
    )]
    pub log_format: Option<LogFormat>,
    /// Least severe records to log [default: RUST_LOG, else log.level of the configuration, else info]
    #[arg(
        long, global = true, value_name = "LEVEL",
        value_parser = PossibleValuesParser::new(LogLevel::NAMES).try_map(|name| name.parse::<LogLevel>())
    )]
    pub log_level: Option<LogLevel>,
}

/// Runs the agent between Envoy and its control plane.
///
/// It runs until SIGTERM or SIGINT, then lets what is under way end within shutdown.timeout. SIGHUP
/// and a change of the file reload the configuration: what can change while it runs does, the rest is
/// named in a warning, and a file that is not valid changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry run --config /etc/wasmferry/config.yaml")]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArg,
}

/// Pulls modules into the store, as an agent would.
///
/// Credentials come from the docker configuration of the user: config.json in DOCKER_CONFIG, else in
/// ~/.docker. Exits 0 when all modules are in the store, 1 when any failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmferry prefetch oci://registry.example/filters/auth:v1\n  \
    wasmferry prefetch --cache-dir /var/lib/wasmferry --output json plugins.yaml\n\n\
    Output with --output json, one object a line:\n  \
    {\"url\", \"payload_digest\", \"source_digest\", \"path\", \"size\", \"cached\"}\n  \
    {\"url\", \"error\", \"reason\"}")]
pub struct PrefetchArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Where the store is [default: cache.directory, else the user's cache directory]
    #[arg(long, value_name = "DIR", value_parser = absolute())]
    pub cache_dir: Option<PathBuf>,
    /// Keep these modules in the store whatever it may hold, until they are unpinned
    #[arg(long)]
    pub pin: bool,
    /// What to print on standard output
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Downloads at once, be it from one server [default: fetch.downloads, of these fetch.concurrency from
    /// one server]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub concurrency: Option<u8>,
    /// Module URLs (oci://, http://, https://, file://; without a scheme: oci), or files of WasmPlugin
    /// documents (.yaml, .yml, .json)
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
}

/// How the results of a command are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON object a line
    Json,
}

/// Publishes a module to a registry and prints the digest of its manifest.
///
/// Credentials come from the docker configuration of the user, as for prefetch.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmferry push filter.wasm oci://registry.example/filters/auth:v1\n  \
    wasmferry push --layout image filter.wasm oci://localhost:5000/auth:v1")]
pub struct PushArgs {
    /// The module, a .wasm file
    pub file: PathBuf,
    /// Where to publish it: oci://HOST/REPOSITORY:TAG
    // A text, since clap would repeat one that holds a password.
    #[arg(value_name = "oci://HOST/REPO:TAG")]
    pub destination: String,
    /// How to package it
    #[arg(long, value_enum, default_value_t)]
    pub layout: Layout,
    /// Speak HTTP without TLS to this registry; a registry on loopback needs no permission
    #[arg(long)]
    pub plain_http: bool,
}

/// How a module is packaged in a registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// A CNCF Wasm artifact: the module itself is the layer
    #[default]
    Artifact,
    /// An OCI image with one tar+gzip layer that holds plugin.wasm
    Image,
    /// The same as a docker image, schema 2
    Docker,
}

/// Validates a configuration and says what it would do.
///
/// Starts nothing and connects to nothing. Exits 2 when the configuration is not valid.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry check --config /etc/wasmferry/config.yaml")]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArg,
}

/// Asks a running agent whether it is ready, for images without a shell.
///
/// Asks /readyz at health.listen of the configuration, or at admin.listen where health is not set.
/// Exits 0 when the agent is ready, 1 when it is not or does not answer within 3 seconds.
#[derive(Debug, Args)]
#[command(after_help = "Example, in a Kubernetes container:\n  \
    readinessProbe: {exec: {command: [/wasmferry, health, --config, /etc/wasmferry/config.yaml]}}")]
pub struct HealthArgs {
    #[command(flatten)]
    pub config: ConfigArg,
}

#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArg {
    /// Configuration file [default: the environment's WASMFERRY_CONFIG]
    // Not clap's own `env`: only `config` reads the environment.
    #[arg(long = "config", value_name = "FILE", value_parser = absolute())]
    pub file: Option<PathBuf>,
}

/// A path, made absolute, so that it stays the same wherever it is used.
pub(super) fn absolute() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path| -> io::Result<PathBuf> {
        // Refused by name: an unset variable in a script is what mostly gives it.
        if path == OsStr::new("") {
            return Err(io::Error::other("a path must not be empty"));
        }
        std::path::absolute(path)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        let cli = Cli::try_parse_from(std::iter::once("wasmferry").chain(line.split_whitespace()));
        cli.map(|cli| cli.command).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_has_an_example() {
        let cache = ["ls", "verify", "gc", "rm", "pin", "unpin", "export", "import"];
        let cache = cache.map(|command| format!("cache {command}"));
        let others = ["", "run", "prefetch", "push", "check", "health", "cache"].map(str::to_owned);
        for command in others.into_iter().chain(cache) {
            let args = ["wasmferry"].into_iter().chain(command.split_whitespace()).chain(["--help"]);
            let help = Cli::try_parse_from(args).unwrap_err().to_string();
            assert!(help.contains("Example") && help.contains("Options:"), "{command}: {help}");
            assert!(help.contains("--log-format") && help.contains("--log-level"), "{command}: {help}");
        }
    }

    #[test]
    fn prefetch_takes_sources_and_limits() {
        let Ok(Command::Prefetch(args)) = parse(
            "prefetch --config c.yaml --cache-dir d --output json --concurrency 64 oci://a/b:v1 p.yaml",
        ) else {
            panic!("prefetch")
        };
        let here = std::env::current_dir().unwrap();
        assert_eq!(args.config.file, Some(here.join("c.yaml")));
        assert_eq!(args.cache_dir, Some(here.join("d")));
        assert_eq!((args.output, args.concurrency), (Output::Json, Some(64)));
        assert_eq!(args.sources, ["oci://a/b:v1", "p.yaml"]);
    }

    #[test]
    fn push_has_an_artifact_as_its_default() {
        let layout = |line: &str| match parse(line) {
            Ok(Command::Push(args)) => args.layout,
            other => panic!("{other:?}"),
        };
        assert_eq!(layout("push a.wasm oci://h/r:t"), Layout::Artifact);
        assert_eq!(layout("push a.wasm oci://h/r:t --layout image"), Layout::Image);
        assert_eq!(layout("push a.wasm oci://h/r:t --layout docker"), Layout::Docker);
    }

    #[test]
    fn log_flags_stand_before_or_behind_the_command() {
        for line in ["--log-format json --log-level debug check", "check --log-format json --log-level debug"]
        {
            let cli = Cli::try_parse_from(std::iter::once("wasmferry").chain(line.split(' '))).unwrap();
            assert_eq!(
                (cli.log.log_format, cli.log.log_level),
                (Some(LogFormat::Json), Some(LogLevel::Debug))
            );
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        use ErrorKind::*;
        for (line, kind) in [
            ("", DisplayHelpOnMissingArgumentOrSubcommand),
            ("serve", InvalidSubcommand),
            ("run extra", UnknownArgument),
            ("run --port 1", UnknownArgument),
            ("prefetch", MissingRequiredArgument),
            ("prefetch --output xml a", InvalidValue),
            ("prefetch --concurrency 0 a", ValueValidation),
            ("prefetch --concurrency 65 a", ValueValidation),
            ("prefetch --cache-dir= a", ValueValidation),
            ("push a.wasm", MissingRequiredArgument),
            ("push a.wasm oci://h/r:t --layout tar", InvalidValue),
            ("check --log-format xml", InvalidValue),
            ("check --log-level loud", InvalidValue),
        ] {
            assert_eq!(parse(line).unwrap_err(), kind, "{line}");
        }
    }
}
