//! What can be wrong with a folder of plugins. Messages name file, line and field; they quote no
//! value but those of enumerations, since a plugin's configuration may hold secrets.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::fields::Fault;

/// Why a file of plugins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("{}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    /// Over [`MAX_FILE_BYTES`](super::plugin::MAX_FILE_BYTES).
    #[error("{0}")]
    TooLarge(Problem),
    /// Zero bytes: most likely someone is writing it just now.
    #[error("{0}")]
    Empty(Problem),
    /// Not YAML, or not what a `WasmPlugin` may hold.
    #[error("{0}")]
    Invalid(Problem),
}

impl PluginError {
    pub(super) fn invalid(file: &Path, fault: Fault) -> Self {
        PluginError::Invalid(Problem {
            file: file.to_owned(),
            line: fault.line,
            field: fault.field,
            why: fault.why,
        })
    }

    /// Short name for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            PluginError::Unreadable { .. } => "unreadable",
            PluginError::TooLarge(_) => "too_large",
            PluginError::Empty(_) => "empty",
            PluginError::Invalid(_) => "invalid",
        }
    }
}

/// Something in the folder that is not served as it stands there, for a log line or an admin page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, or the folder itself.
    pub file: PathBuf,
    /// From 1.
    pub line: Option<u64>,
    /// As in `spec.vmConfig.env[0].name`.
    pub field: Option<String>,
    pub why: String,
}

impl Problem {
    pub(super) fn of_file(file: &Path, why: impl Into<String>) -> Self {
        Problem { file: file.to_owned(), line: None, field: None, why: why.into() }
    }
}

impl From<PluginError> for Problem {
    fn from(error: PluginError) -> Self {
        match error {
            PluginError::Unreadable { file, source } => Problem::of_file(&file, source.to_string()),
            PluginError::TooLarge(problem) | PluginError::Empty(problem) | PluginError::Invalid(problem) => {
                problem
            }
        }
    }
}

/// `FILE:LINE: FIELD: WHY`, as compilers print it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.why)
    }
}
