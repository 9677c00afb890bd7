//! Why a configuration is refused: one line a problem, `FILE:LINE: key: value: why`.

use std::fmt;
use std::path::PathBuf;

/// Why there is no configuration to run with. `Display` is one or more whole lines, one a problem,
/// and never holds a value that may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A command that needs a file was given none.
    #[error("no configuration: give --config FILE or set WASMFERRY_CONFIG")]
    NoFile,
    /// The file cannot be read, is no UTF-8 or is larger than [`super::MAX_FILE_BYTES`].
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    /// The file can be read, and something in it is wrong. Never empty.
    #[error("{}", Lines(file, problems))]
    Invalid { file: PathBuf, problems: Vec<Problem> },
    /// The file is for `prefetch` alone, and an agent was asked for.
    #[error("{}: neither `listeners` nor `upstream` is set: an agent needs both", file.display())]
    NotAnAgent { file: PathBuf },
    /// An environment variable holds something else than it may, or a signal cannot be handled.
    #[error("{name}: {why}")]
    Setting { name: &'static str, why: String },
}

impl ConfigError {
    /// For the metrics of reloads.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoFile => "no_file",
            Self::Unreadable { .. } => "unreadable",
            Self::Invalid { .. } => "invalid",
            Self::NotAnAgent { .. } => "not_an_agent",
            Self::Setting { .. } => "setting",
        }
    }
}

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; none where something is missing as a whole.
    pub line: Option<u64>,
    /// The dotted path of the key, as in `listeners[0].mode`; empty where the text is no YAML.
    pub key: String,
    /// The value as it may be shown.
    pub value: Option<String>,
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, "{value}: ")?;
        }
        f.write_str(&self.why)
    }
}

struct Lines<'a>(&'a PathBuf, &'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.1.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:", self.0.display())?;
            if let Some(line) = problem.line {
                write!(f, "{line}:")?;
            }
            write!(f, " {problem}")?;
        }
        Ok(())
    }
}
