//! The commands. Owns what a person or a script meets: arguments, output, exit codes, logs.

pub mod args;
pub mod cache;
pub mod check;
pub mod health;
pub mod logs;
pub mod prefetch;
pub mod push;
pub mod run;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, Command, ConfigArg};
use self::cache::CacheError;
use self::push::PushError;
use crate::app::StartError;
use crate::clock::Clock;
use crate::config::{ConfigError, Environment, Loader, Log, Overrides};
use crate::store::StoreError;
use crate::upstream::directory::PluginError;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments do not fit together or do not fit the configuration.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Health(#[from] health::NotReady),
    /// The results cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot use the store: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Each was reported as it failed.
    #[error("{failed} of the modules could not be had")]
    Failed { failed: usize },
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl CliError {
    /// 2 for wrong usage or configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::Plugin(_) => 2,
            Self::Push(PushError::NotOci { .. } | PushError::Digest { .. }) => 2,
            // What is configured cannot be had here and now: nothing was started.
            Self::Start(_) => 2,
            Self::Health(_) | Self::Output(_) | Self::Runtime(_) => 1,
            Self::Store(_) | Self::Failed { .. } | Self::Push(_) | Self::Cache(_) => 1,
        }
    }
}

/// Runs the command that `args` name, the program's own name first.
pub fn main(args: impl IntoIterator<Item = OsString>, environment: &Environment) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help and the version are asked for, and exit with 0; clap knows where each is printed.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli, environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without standard error the exit code has to do.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(cli: Cli, environment: &Environment) -> Result<(), CliError> {
    match cli.command {
        Command::Check(args) => check(args.config, environment),
        Command::Health(args) => health(args.config, environment),
        Command::Run(args) => {
            let loader = Loader::new(args.config.file, environment, Overrides::default());
            let control = logs::start(cli.log, environment, &loader.load_agent()?.log)?;
            run::run(loader, &control)
        }
        Command::Prefetch(args) => {
            let overrides = Overrides {
                cache_directory: args.cache_dir.clone(),
                concurrency: args.concurrency.map(usize::from),
            };
            let config = Loader::new(args.config.file.clone(), environment, overrides).load()?;
            logs::start(cli.log, environment, &config.log.quiet())?;
            prefetch::prefetch(&args, &config, environment)
        }
        Command::Cache(args) => {
            let store = args.command.store();
            let overrides = Overrides { cache_directory: store.cache_dir.clone(), ..Overrides::default() };
            let config = Loader::new(store.config.file.clone(), environment, overrides).load()?;
            logs::start(cli.log, environment, &config.log.quiet())?;
            cache::run(&args, &config, environment)
        }
        Command::Push(args) => {
            logs::start(cli.log, environment, &Log::default().quiet())?;
            push::run(args, environment)
        }
    }
}

fn check(config: ConfigArg, environment: &Environment) -> Result<(), CliError> {
    let loader = Loader::new(config.file, environment, Overrides::default());
    let file = loader.file().ok_or(ConfigError::NoFile)?;
    let report = check::Report::new(file, &loader.load()?);
    write!(io::stdout(), "{report}").map_err(CliError::Output)
}

fn health(config: ConfigArg, environment: &Environment) -> Result<(), CliError> {
    let loader = Loader::new(config.file, environment, Overrides::default());
    let target = health::Target::of(&loader.load_agent()?).ok_or_else(|| {
        CliError::Usage(
            "neither health.listen nor admin.listen is an address to ask (port 0 is none)".to_owned(),
        )
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    runtime.block_on(health::ask(&target, &Clock::System))?;
    writeln!(io::stdout(), "ready: {target}").map_err(CliError::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<(), CliError> {
        let cli = Cli::try_parse_from(["wasmferry"].iter().chain(args)).unwrap();
        dispatch(cli, &Environment { cache_directory: Some("/c".into()), ..Environment::default() })
    }

    fn code(args: &[&str]) -> String {
        let args = ["wasmferry"].iter().chain(args).map(OsString::from);
        format!("{:?}", main(args, &Environment::default()))
    }

    #[test]
    fn wrong_usage_exits_with_2_and_help_with_0() {
        assert_eq!(code(&["serve"]), format!("{:?}", ExitCode::from(2)));
        assert_eq!(code(&["--version"]), format!("{:?}", ExitCode::SUCCESS));
    }

    #[test]
    fn an_invalid_configuration_exits_with_2_whichever_command_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, "version: 1\nlisteners: []\n").unwrap();
        for command in ["check", "health"] {
            let error = run(&[command, "--config", file.to_str().unwrap()]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().starts_with(&format!("{}:", file.display())), "{error}");
            assert!(matches!(run(&[command]), Err(CliError::Config(ConfigError::NoFile))));
        }
    }

    #[test]
    fn health_of_an_agent_that_offers_none_is_wrong_usage() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let agent = "version: 1\nlisteners: [{address: unix:/a}]\nupstream: {directory: /p}\n";
        std::fs::write(&file, agent).unwrap();
        let error = run(&["health", "--config", file.to_str().unwrap()]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}
