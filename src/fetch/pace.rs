//! Whether a server sends fast enough to be waited for.
//!
//! Only the time that is spent waiting for it counts: a slow reader is no fault of the server's. Each
//! window is judged by itself, when so much has been waited.

use std::time::{Duration, Instant};

/// How fast one body comes.
#[derive(Debug)]
pub(super) struct Pace {
    least: MinRate,
    waited: Duration,
    bytes: u64,
}

/// The least that a server must send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MinRate {
    /// Bytes a second, on average over a window; 0 asks for nothing.
    pub(super) rate: u64,
    pub(super) window: Duration,
}

/// What came in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    Enough,
    /// So many bytes, and that is too little.
    TooSlow(u64),
    Nothing,
}

impl Pace {
    pub(super) fn new(least: MinRate) -> Self {
        Pace { least, waited: Duration::ZERO, bytes: 0 }
    }

    /// When a wait that begins now has to be [judged](Pace::judge).
    pub(super) fn judged_at(&self, now: Instant) -> Option<Instant> {
        (self.least.rate > 0).then(|| now + self.least.window.saturating_sub(self.waited))
    }

    /// Counts a wait, and what came at its end.
    pub(super) fn count(&mut self, waited: Duration, bytes: usize) {
        self.waited = self.waited.saturating_add(waited);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Judges the window, which is over, and begins the next.
    pub(super) fn judge(&mut self) -> Judgement {
        let Pace { waited, bytes, least } = std::mem::replace(self, Pace::new(self.least));
        let wanted = u128::from(least.rate) * waited.as_millis();
        match bytes {
            0 => Judgement::Nothing,
            _ if u128::from(bytes) * 1000 < wanted => Judgement::TooSlow(bytes),
            _ => Judgement::Enough,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LEAST: MinRate = MinRate { rate: 100, window: Duration::from_secs(30) };

    #[test]
    fn each_window_is_judged_by_its_own_average() {
        let mut pace = Pace::new(LEAST);
        pace.count(SECOND, 3000);
        pace.count(29 * SECOND, 0);
        assert_eq!(pace.judge(), Judgement::Enough);
        // What came before helps no more.
        pace.count(30 * SECOND, 2999);
        assert_eq!(pace.judge(), Judgement::TooSlow(2999));
        pace.count(30 * SECOND, 0);
        assert_eq!(pace.judge(), Judgement::Nothing);
    }

    #[test]
    fn only_what_is_waited_uses_a_window_up() {
        let now = Instant::now();
        let mut pace = Pace::new(LEAST);
        assert_eq!(pace.judged_at(now), Some(now + 30 * SECOND));
        pace.count(12 * SECOND, 1);
        // However late it is by now.
        let later = now + 1000 * SECOND;
        assert_eq!(pace.judged_at(later), Some(later + 18 * SECOND));
        pace.count(20 * SECOND, 1);
        assert_eq!(pace.judged_at(later), Some(later));
    }

    #[test]
    fn a_rate_of_nothing_is_never_judged() {
        assert_eq!(Pace::new(MinRate { rate: 0, ..LEAST }).judged_at(Instant::now()), None);
    }
}
