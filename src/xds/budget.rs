//! The bytes in flight in the whole process: one budget that every message of every stream draws on.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What each message may hold without asking. Small messages always get through, so a few peers
/// that fill the budget cannot stop the others' acknowledgements; it is also the largest part of a
/// message that is not counted.
pub const FREE_BYTES: usize = 64 * 1024;

/// The budget, in bytes. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    /// A budget of `bytes`, at most 4 GiB.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Semaphore::new(
            usize::try_from(bytes.min(u64::from(u32::MAX))).unwrap_or(usize::MAX >> 4),
        )))
    }

    /// Begins to count a message.
    pub fn message(&self) -> Held {
        Held { budget: self.clone(), bytes: 0, permit: None }
    }

    /// Bytes that nobody holds.
    pub fn available(&self) -> usize {
        self.0.available_permits()
    }
}

/// What one message holds of the budget, given back on drop.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Counts `more` bytes, waiting until the budget has room. Cancel safe: nothing is counted
    /// before it returns.
    pub async fn grow(&mut self, more: usize) {
        let owed = (self.bytes + more).saturating_sub(FREE_BYTES.max(self.bytes));
        if let Ok(owed @ 1..) = u32::try_from(owed) {
            // The semaphore is never closed, so this only fails to compile-time doubt.
            if let Ok(permit) = self.budget.0.clone().acquire_many_owned(owed).await {
                match &mut self.permit {
                    Some(held) => held.merge(permit),
                    none => *none = Some(permit),
                }
            }
        }
        self.bytes += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_message_draws_on_the_budget_beyond_its_free_part_and_gives_it_back() {
        let budget = Budget::new(1000);
        let mut held = budget.message();
        held.grow(FREE_BYTES - 1).await;
        assert_eq!(budget.available(), 1000);
        held.grow(101).await;
        assert_eq!(budget.available(), 900);
        held.grow(300).await;
        assert_eq!(budget.available(), 600);
        drop(held);
        assert_eq!(budget.available(), 1000);
    }

    #[tokio::test]
    async fn a_small_message_passes_when_the_budget_is_spent() {
        let budget = Budget::new(10);
        let mut big = budget.message();
        big.grow(FREE_BYTES + 10).await;
        assert!(budget.message().grow(FREE_BYTES).now_or_never().is_some());
        let mut second = budget.message();
        assert!(second.grow(FREE_BYTES + 1).now_or_never().is_none());
        drop(big);
        assert!(second.grow(FREE_BYTES + 1).now_or_never().is_some());
    }
}
