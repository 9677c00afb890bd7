//! Notices that the configuration was changed, or that SIGHUP asks for it again, and reads it.
//!
//! It polls the file's content: that needs no events of the file system, which a network mount or an
//! exhausted inotify does not give, and sees a ConfigMap's swapped link like any other change.

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::load::{self, Loader};
use super::{Config, ConfigError};
use crate::clock::Clock;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// A watched configuration file.
#[derive(Debug)]
pub struct Watch {
    loader: Loader,
    clock: Clock,
    hangup: Signal,
    seen: Seen,
    due: Instant,
    /// SIGHUP came and is not answered yet.
    asked: bool,
}

/// What was in the file when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Content([u8; 32]),
    Unreadable,
}

impl Watch {
    pub(super) fn start(loader: Loader, clock: Clock) -> Result<(Config, Self), ConfigError> {
        // First, so that no SIGHUP is missed or deadly once the file was read.
        let hangup = signal(SignalKind::hangup())
            .map_err(|e| ConfigError::Setting { name: "SIGHUP", why: format!("cannot be handled: {e}") })?;
        let (seen, config) = look(&loader);
        let due = clock.now() + PERIOD;
        Ok((config?, Self { loader, clock, hangup, seen, due, asked: false }))
    }

    /// Waits until the file has other content than last time, or SIGHUP comes, and gives what is in
    /// it now: always an agent's configuration. An error is given once, not again while the file stays
    /// as it is. Nothing is lost when this is dropped before it ends.
    pub async fn next(&mut self) -> Result<Config, ConfigError> {
        loop {
            if !self.asked {
                tokio::select! {
                    // `None`: no more signals can come, so the clock alone decides.
                    Some(()) = self.hangup.recv() => self.asked = true,
                    () = self.clock.sleep_until(self.due) => {}
                }
            }
            let loader = self.loader.clone();
            let looked = tokio::task::spawn_blocking(move || look(&loader)).await;
            self.due = self.clock.now() + PERIOD;
            // Only a runtime that is shutting down leaves blocking work undone.
            let Ok((seen, config)) = looked else { continue };
            let changed = std::mem::replace(&mut self.seen, seen) != seen;
            if std::mem::take(&mut self.asked) || changed {
                return config;
            }
        }
    }
}

/// Reads the file, and tells its content apart from any other.
fn look(loader: &Loader) -> (Seen, Result<Config, ConfigError>) {
    let text = match loader.required_file() {
        Ok(file) => load::read(file).map(|text| (file, text)),
        Err(error) => Err(error),
    };
    match text {
        Ok((file, text)) => (Seen::Content(Sha256::digest(&text).into()), loader.parse_agent(file, &text)),
        Err(error) => (Seen::Unreadable, Err(error)),
    }
}
