//! How much the store may hold, and for how long.

use std::sync::PoisonError;
use std::time::Duration;

use super::Store;
use super::fs::Space;

/// What is collected, and what is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of all payloads, in bytes. What does not fit is refused.
    pub max_bytes: u64,
    /// What the store leaves of its file system, as far as it can.
    pub min_free: MinFree,
    /// How long a payload that nobody uses stays, in the store's age.
    pub expiry: Duration,
    /// How long a lease lasts after its last sign of life, in the store's age.
    pub lease: Duration,
    /// How long nobody has to show again what they may read, in the store's age.
    pub proof: Duration,
}

/// Room on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    Bytes(u64),
    /// Of all of it; 100 at the most.
    Percent(u8),
}

impl Default for Limits {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { max_bytes: 10 << 30, min_free: MinFree::Percent(5), expiry: day, lease: day, proof: day }
    }
}

impl MinFree {
    pub(super) fn bytes(self, space: Space) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => space.total / 100 * u64::from(percent.min(100)),
        }
    }
}

impl Store {
    /// Holds to other limits from now on.
    pub fn limit(&self, limits: Limits) {
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// How long a lease lasts after its last sign of life, in seconds of the store's age.
    pub fn lease_seconds(&self) -> u64 {
        self.limits().lease.as_secs()
    }

    pub(super) fn limits(&self) -> Limits {
        *self.0.limits.read().unwrap_or_else(PoisonError::into_inner)
    }
}
