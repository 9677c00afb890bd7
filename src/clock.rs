//! Time, injected: everything that waits, ages or stamps asks a [`Clock`], so that tests can move it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// Where time comes from. Cheap to clone; clones of a manual clock move together.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clocks.
    System,
    /// A clock that moves only when told to.
    Manual(ManualClock),
}

/// A clock for tests: stands still until it is advanced.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Manual>);

#[derive(Debug)]
struct Manual {
    start: Instant,
    /// When nothing had elapsed.
    wall: Mutex<SystemTime>,
    elapsed: watch::Sender<Duration>,
}

impl ManualClock {
    /// A clock that starts at this wall time.
    pub fn new(wall: SystemTime) -> Self {
        let elapsed = watch::Sender::new(Duration::ZERO);
        Self(Arc::new(Manual { start: Instant::now(), wall: Mutex::new(wall), elapsed }))
    }

    /// Sets the wall clock, and the monotonic one goes on as it was.
    pub fn jump(&self, wall: SystemTime) {
        *self.0.wall.lock().unwrap_or_else(PoisonError::into_inner) = wall - self.elapsed();
    }

    /// Moves both the monotonic and the wall clock forward, and wakes who sleeps.
    pub fn advance(&self, by: Duration) {
        self.0.elapsed.send_modify(|elapsed| *elapsed += by);
    }

    fn elapsed(&self) -> Duration {
        *self.0.elapsed.borrow()
    }
}

impl Clock {
    /// Monotonic time: for deadlines, backoff and ages within one process.
    pub fn now(&self) -> Instant {
        match self {
            Clock::System => Instant::now(),
            Clock::Manual(clock) => clock.0.start + clock.elapsed(),
        }
    }

    /// Wall time: for stamps that people read. Never for decisions, since it jumps.
    pub fn wall(&self) -> SystemTime {
        match self {
            Clock::System => SystemTime::now(),
            Clock::Manual(clock) => {
                *clock.0.wall.lock().unwrap_or_else(PoisonError::into_inner) + clock.elapsed()
            }
        }
    }

    /// Waits until [`Clock::now`] has reached `deadline`.
    pub async fn sleep_until(&self, deadline: Instant) {
        match self {
            Clock::System => tokio::time::sleep_until(deadline.into()).await,
            Clock::Manual(clock) => {
                let mut elapsed = clock.0.elapsed.subscribe();
                let reached = |elapsed: &Duration| clock.0.start + *elapsed >= deadline;
                // The sender lives in `clock`, so waiting cannot fail while we hold it.
                let _ = elapsed.wait_for(reached).await;
            }
        }
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// Runs `future`, at most until `deadline`.
    pub async fn timeout_at<F: Future>(&self, deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
        tokio::select! {
            biased;
            output = future => Ok(output),
            () = self.sleep_until(deadline) => Err(Elapsed),
        }
    }
}

/// The deadline passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_wakes_a_sleeper_only_when_advanced() {
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        let clock = Clock::Manual(manual.clone());
        let start = clock.now();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(60)).await }
        });
        // Let it begin, so that its deadline counts from the start.
        tokio::task::yield_now().await;
        manual.advance(Duration::from_secs(59));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        manual.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.now() - start, Duration::from_secs(60));
    }
}
