//! Tries: what is asked again after a fault that may pass by itself within moments, how often, and when.
//!
//! One question has one set of [`Tries`], be it asked of one host or of several in turn: all that may have
//! the answer are asked once before any is asked again. A try begins anew, with a connection of its own to
//! an address that was looked up for it.

use std::time::{Duration, Instant};

use super::Shared;
use super::error::FetchError;
use crate::metrics::ReasonLabel;

/// The pause before the first of them; doubled for each later one, and spread at random.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often and for how long something is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Of each question, besides the first try.
    pub most: u32,
    /// None begins later than this after the question was first asked; a server that asks to be left alone
    /// for longer is not asked again.
    pub within: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Retries { most: 2, within: Duration::from_secs(5) }
    }
}

/// The tries for one question.
#[derive(Debug)]
pub struct Tries {
    /// When no other one begins any more.
    until: Instant,
    made: u32,
}

impl Tries {
    /// The first try begins now.
    pub(super) fn new(shared: &Shared, deadline: Instant) -> Self {
        Tries { until: deadline.min(shared.clock.now() + shared.config.retries.within), made: 0 }
    }

    /// Waits for the time of the next try; false, at once, where there is none.
    pub(super) async fn again(&mut self, shared: &Shared, because: &FetchError) -> bool {
        if !because.may_pass_soon() || self.made >= shared.config.retries.most {
            return false;
        }
        let pause = because.retry_after().unwrap_or_default().max(pause(self.made));
        let next = shared.clock.now() + pause;
        if next >= self.until {
            return false;
        }
        self.made += 1;
        if let Some(metrics) = &shared.config.metrics {
            metrics.fetch_retries.get_or_create(&ReasonLabel { reason: because.label() }).inc();
        }
        tracing::info!(milliseconds = pause.as_millis() as u64, "asked again after a pause: {because}");
        shared.clock.sleep_until(next).await;
        true
    }
}

/// Between half of what is due after so many others and all of it: those that failed together do not come
/// back together.
fn pause(made: u32) -> Duration {
    let due = FIRST_PAUSE.saturating_mul(1 << made.min(16)).min(LONGEST_PAUSE);
    // Without randomness, all of it.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    due / 2 + (due / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_and_differ() {
        for (made, most) in [(0, 200), (1, 400), (2, 800), (3, 1000), (40, 1000)] {
            let most = Duration::from_millis(most);
            let pauses: Vec<_> = (0..50).map(|_| pause(made)).collect();
            assert!(pauses.iter().all(|pause| (most / 2..=most).contains(pause)), "{made}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{made}");
        }
    }
}
