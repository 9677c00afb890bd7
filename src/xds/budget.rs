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
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(bytes)))
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

/// What one message, or one queue, holds of the budget; given back on drop.
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
        if let Some(owed) = self.owed(more) {
            // The semaphore is never closed, so this never fails.
            if let Ok(permit) = self.budget.0.clone().acquire_many_owned(owed).await {
                self.keep(permit);
            }
        }
        self.bytes += more;
    }

    /// Counts `more` bytes if there is room for them now, and whether there was.
    pub fn try_grow(&mut self, more: usize) -> bool {
        if let Some(owed) = self.owed(more) {
            let Ok(permit) = self.budget.0.clone().try_acquire_many_owned(owed) else { return false };
            self.keep(permit);
        }
        self.bytes += more;
        true
    }

    /// Gives back `less` bytes.
    pub fn shrink(&mut self, less: usize) {
        self.bytes = self.bytes.saturating_sub(less);
        let excess = self.counted().saturating_sub(self.bytes.saturating_sub(FREE_BYTES));
        drop(self.permit.as_mut().and_then(|permit| permit.split(excess)));
    }

    /// Gives back everything.
    pub fn clear(&mut self) {
        self.shrink(self.bytes);
    }

    /// Bytes that are counted: all but the free part.
    pub fn counted(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// What `more` bytes add to the counted ones.
    fn owed(&self, more: usize) -> Option<u32> {
        let owed = (self.bytes + more).saturating_sub(FREE_BYTES.max(self.bytes));
        u32::try_from(owed).ok().filter(|owed| *owed > 0)
    }

    fn keep(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
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

    #[test]
    fn what_shrinks_gives_back_and_what_has_no_room_counts_nothing() {
        let budget = Budget::new(1000);
        let mut held = budget.message();
        assert!(held.try_grow(FREE_BYTES + 1000));
        assert!(!held.try_grow(1));
        assert_eq!((held.counted(), budget.available()), (1000, 0));
        held.shrink(400);
        assert_eq!(budget.available(), 400);
        assert!(held.try_grow(400));
        held.clear();
        assert_eq!((held.counted(), budget.available()), (0, 1000));
    }

    #[test]
    fn a_budget_may_be_larger_than_a_single_claim() {
        assert_eq!(Budget::new(64 << 30).available(), 64 << 30);
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
