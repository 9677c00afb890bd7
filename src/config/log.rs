//! The two choices about logs: how much, and in which shape.

use std::fmt;
use std::str::FromStr;

/// What to log and how; unset means that the environment or the terminal decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Log {
    pub level: Option<LogLevel>,
    pub format: Option<LogFormat>,
}

impl Log {
    /// For commands whose output is their result: only what goes wrong, unless more was asked for.
    pub fn quiet(self) -> Self {
        Self { level: self.level.or(Some(LogLevel::Warn)), ..self }
    }
}

/// The least severe records that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The shape of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogLevel {
    const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];
    /// All spellings.
    pub const NAMES: [&'static str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl LogFormat {
    /// All spellings.
    pub const NAMES: [&'static str; 2] = ["text", "json"];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Why a text is no level or format: what it could be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not one of {}", .0.join(", "))]
pub struct NotOneOf(&'static [&'static str]);

impl FromStr for LogLevel {
    type Err = NotOneOf;
    fn from_str(text: &str) -> Result<Self, NotOneOf> {
        Self::ALL.into_iter().find(|level| level.name() == text).ok_or(NotOneOf(&Self::NAMES))
    }
}

impl FromStr for LogFormat {
    type Err = NotOneOf;
    fn from_str(text: &str) -> Result<Self, NotOneOf> {
        [Self::Text, Self::Json].into_iter().find(|f| f.name() == text).ok_or(NotOneOf(&Self::NAMES))
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_nothing_else_is_taken() {
        for name in LogLevel::NAMES {
            assert_eq!(name.parse::<LogLevel>().unwrap().name(), name);
        }
        for name in LogFormat::NAMES {
            assert_eq!(name.parse::<LogFormat>().unwrap().name(), name);
        }
        assert_eq!("loud".parse::<LogFormat>().unwrap_err().to_string(), "not one of text, json");
        assert!("INFO".parse::<LogLevel>().is_err());
    }
}
