//! The bytes in flight in the whole process: one budget that every message of every stream draws on.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What each message may hold without asking. Small messages always get through, so a few peers
/// that fill the budget cannot stop the others' acknowledgements; it is also the largest part of a
/// message that is not counted.
pub const FREE_BYTES: usize = 64 * 1024;

/// The budget, in bytes. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    whole: Arc<Semaphore>,
    /// What of it may be used through this one.
    part: Option<Arc<Semaphore>>,
}

fn semaphore(bytes: u64) -> Arc<Semaphore> {
    let bytes = usize::try_from(bytes.min(u64::from(u32::MAX))).unwrap_or(usize::MAX >> 4);
    Arc::new(Semaphore::new(bytes))
}

impl Budget {
    /// A budget of `bytes`, at most 4 GiB.
    pub fn new(bytes: u64) -> Self {
        Self { whole: semaphore(bytes), part: None }
    }

    /// The same budget, of which at most `bytes` may be used through what is returned and its clones.
    pub fn part(&self, bytes: u64) -> Self {
        Self { whole: self.whole.clone(), part: Some(semaphore(bytes)) }
    }

    /// Begins to count a message.
    pub fn message(&self) -> Held {
        Held { budget: self.clone(), bytes: 0, permits: [None, None] }
    }

    /// Bytes that nobody holds.
    pub fn available(&self) -> usize {
        self.whole.available_permits()
    }
}

/// What one message holds of the budget, given back on drop.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
    /// Of the part and of the whole.
    permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Held {
    /// Counts `more` bytes, waiting until the budget has room. Cancel safe: nothing is counted
    /// before it returns.
    pub async fn grow(&mut self, more: usize) {
        let owed = (self.bytes + more).saturating_sub(FREE_BYTES.max(self.bytes));
        if let Ok(owed @ 1..) = u32::try_from(owed) {
            // The semaphores are never closed, so this only fails to compile-time doubt.
            let part = match &self.budget.part {
                Some(part) => part.clone().acquire_many_owned(owed).await.ok(),
                None => None,
            };
            let whole = self.budget.whole.clone().acquire_many_owned(owed).await.ok();
            for (held, more) in self.permits.iter_mut().zip([part, whole]) {
                match (held, more) {
                    (Some(held), Some(more)) => held.merge(more),
                    (held, more) => *held = held.take().or(more),
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
    async fn who_spends_a_part_leaves_the_rest_to_others() {
        let budget = Budget::new(1000);
        let part = budget.part(400);
        let mut greedy = part.message();
        greedy.grow(FREE_BYTES + 400).await;
        assert!(part.message().grow(FREE_BYTES + 1).now_or_never().is_none());
        assert_eq!(budget.available(), 600, "who waits for the part holds nothing of the whole");
        assert!(budget.message().grow(FREE_BYTES + 600).now_or_never().is_some());
        greedy.grow(0).await;
        drop(greedy);
        assert!(part.message().grow(FREE_BYTES + 400).now_or_never().is_some());
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
