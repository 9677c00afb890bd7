//! How long to wait after a failed fetch.

use std::time::Duration;

use super::{Failure, Settings};

/// Spreads retries in time. A small generator: quality does not matter, being without state outside
/// the machine does.
#[derive(Debug)]
pub struct Backoff(u64);

impl Backoff {
    /// `seed` only makes one unlike the others.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The pause after a failure that had `earlier` ones before it: doubled each time, the cap after a
    /// permanent fault, and never less than the source asked for.
    pub fn pause(&mut self, settings: &Settings, earlier: u32, failure: &Failure) -> Duration {
        let doubled = settings.retry_first.saturating_mul(1 << earlier.min(16));
        let cap = settings.retry_cap;
        let pause = self.spread(if failure.permanent { cap } else { doubled.min(cap) });
        pause.max(failure.retry_after.unwrap_or_default())
    }

    /// Between half of `pause` and all of it.
    pub fn spread(&mut self, pause: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let share = 50 + u32::try_from(self.0 % 51).unwrap_or(0);
        pause * share / 100
    }
}
