//! From a file to a [`Config`], for commands that run once and for the watch that reads it again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::reader::Problems;
use super::variables::{FileKeys, Variables};
use super::{Config, ConfigError, Environment, MAX_FILE_BYTES, Problem, Watch, schema};
use crate::clock::Clock;
use crate::fetch::ProgramEnvironment;
use crate::yaml::{Malformed, Node};

/// What the command line says; it wins over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `cache.directory`
    pub cache_directory: Option<PathBuf>,
    /// `fetch.concurrency` and `fetch.downloads`: of one server, and of all together
    pub concurrency: Option<usize>,
}

/// Knows where a configuration comes from, and reads it as often as asked.
#[derive(Debug, Clone)]
pub struct Loader {
    file: Option<PathBuf>,
    environment: Environment,
    overrides: Overrides,
    programs: ProgramEnvironment,
}

impl Loader {
    /// `file` is what `--config` names; without it, the environment's file, if any, is read.
    pub fn new(file: Option<PathBuf>, environment: &Environment, overrides: Overrides) -> Self {
        Self {
            file: file.or_else(|| environment.config_file.clone()),
            environment: environment.clone(),
            overrides,
            programs: environment.programs.clone(),
        }
    }

    /// The file that is read, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the file; without one, there are the defaults. Blocks on the file.
    pub fn load(&self) -> Result<Config, ConfigError> {
        match &self.file {
            Some(file) => self.parse(file, &read(file)?),
            None => self.parse(Path::new("(no file)"), "version: 1"),
        }
    }

    /// Reads the file, which has to be there and to be an agent's. Blocks on the file.
    pub fn load_agent(&self) -> Result<Config, ConfigError> {
        let file = self.required_file()?;
        self.parse_agent(file, &read(file)?)
    }

    /// Reads the file as [`Loader::load_agent`] does, and again whenever it changes or the process is
    /// sent SIGHUP. Needs a tokio runtime; from here on SIGHUP no longer ends the process.
    pub fn watch(self, clock: Clock) -> Result<(Config, Watch), ConfigError> {
        Watch::start(self, clock)
    }

    pub(super) fn required_file(&self) -> Result<&Path, ConfigError> {
        self.file.as_deref().ok_or(ConfigError::NoFile)
    }

    pub(super) fn parse_agent(&self, file: &Path, text: &str) -> Result<Config, ConfigError> {
        let config = self.parse(file, text)?;
        match config.agent {
            Some(_) => Ok(config),
            None => Err(ConfigError::NotAnAgent { file: file.to_owned() }),
        }
    }

    pub(super) fn parse(&self, file: &Path, text: &str) -> Result<Config, ConfigError> {
        let invalid = |problems| ConfigError::Invalid { file: file.to_owned(), problems };
        let root = Node::parse(text).map_err(|error| invalid(vec![Problem::from(error)]))?;
        let mut variables = Variables::read(&self.environment)?;
        if let Some(directory) = &self.overrides.cache_directory {
            variables.defaults.cache_directory = Some(directory.clone());
        }
        let keys = FileKeys::of(&root);
        let problems = Problems::default();
        let config = schema::read(root, &variables.defaults, &problems);
        let problems = problems.into_vec();
        match config {
            Some(config) if problems.is_empty() => {
                let mut config = Config { programs: self.programs.clone(), ..config };
                variables.complete(&mut config, &keys);
                Ok(self.overrides.apply(config))
            }
            _ => Err(invalid(problems)),
        }
    }
}

impl Overrides {
    fn apply(&self, mut config: Config) -> Config {
        if let Some(directory) = &self.cache_directory {
            config.cache.directory.clone_from(directory);
        }
        if let Some(concurrency) = self.concurrency {
            config.fetch.concurrency = concurrency;
            config.fetch.downloads = concurrency;
        }
        config
    }
}

impl From<Malformed> for Problem {
    fn from(error: Malformed) -> Self {
        Self { line: error.line, key: error.key.unwrap_or_default(), value: None, why: error.why }
    }
}

pub(super) fn read(file: &Path) -> Result<String, ConfigError> {
    let bytes = || -> io::Result<String> {
        let mut text = String::new();
        File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other("larger than 1 MiB"));
        }
        Ok(text)
    };
    bytes().map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })
}
