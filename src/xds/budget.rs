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
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)))
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self { whole: semaphore(bytes), part: None }
    }

    /// The same budget, of which at most `bytes` may be used through what is returned and its clones.
    pub fn part(&self, bytes: u64) -> Self {
        Self { whole: self.whole.clone(), part: Some(semaphore(bytes)) }
    }

    /// Begins to count a message.
    pub fn message(&self) -> Held {
        Held { budget: self.clone(), bytes: 0, permits: Vec::new() }
    }

    /// Bytes that nobody holds.
    pub fn available(&self) -> usize {
        self.whole.available_permits()
    }
}

/// What one message, or one queue, holds of the budget; given back on drop.
#[derive(Debug)]
pub struct Held {
    budget: Budget,
    bytes: usize,
    /// One of each semaphore that the budget has, all for as many bytes; none where nothing counts.
    permits: Vec<OwnedSemaphorePermit>,
}

impl Held {
    /// Counts `more` bytes, waiting until the budget has room. Cancel safe: nothing is counted
    /// before it returns.
    pub async fn grow(&mut self, more: usize) {
        if let Some(owed) = self.owed(more) {
            let mut permits = Vec::with_capacity(2);
            // The part's first: who waits for that holds nothing of the whole.
            for semaphore in self.budget.semaphores() {
                // The semaphores are never closed, so this never fails.
                permits.extend(semaphore.acquire_many_owned(owed).await);
            }
            self.keep(permits);
        }
        self.bytes += more;
    }

    /// Counts `more` bytes if there is room for them now, and whether there was.
    pub fn try_grow(&mut self, more: usize) -> bool {
        if let Some(owed) = self.owed(more) {
            let mut permits = Vec::with_capacity(2);
            for semaphore in self.budget.semaphores() {
                let Ok(permit) = semaphore.try_acquire_many_owned(owed) else { return false };
                permits.push(permit);
            }
            self.keep(permits);
        }
        self.bytes += more;
        true
    }

    /// Gives back `less` bytes.
    pub fn shrink(&mut self, less: usize) {
        self.bytes = self.bytes.saturating_sub(less);
        let excess = self.counted().saturating_sub(self.bytes.saturating_sub(FREE_BYTES));
        for permit in &mut self.permits {
            drop(permit.split(excess));
        }
    }

    /// Gives back everything.
    pub fn clear(&mut self) {
        self.shrink(self.bytes);
    }

    /// Bytes that are counted: all but the free part.
    pub fn counted(&self) -> usize {
        self.permits.first().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// What `more` bytes add to the counted ones.
    fn owed(&self, more: usize) -> Option<u32> {
        let owed = (self.bytes + more).saturating_sub(FREE_BYTES.max(self.bytes));
        u32::try_from(owed).ok().filter(|owed| *owed > 0)
    }

    fn keep(&mut self, permits: Vec<OwnedSemaphorePermit>) {
        if self.permits.is_empty() {
            self.permits = permits;
        } else {
            for (held, more) in self.permits.iter_mut().zip(permits) {
                held.merge(more);
            }
        }
    }
}

impl Budget {
    /// What has to have room, in the order in which it is taken.
    fn semaphores(&self) -> impl Iterator<Item = Arc<Semaphore>> + use<> {
        self.part.clone().into_iter().chain([self.whole.clone()])
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
    async fn who_spends_a_part_leaves_the_rest_to_others() {
        let budget = Budget::new(1000);
        let part = budget.part(400);
        let mut greedy = part.message();
        greedy.grow(FREE_BYTES + 400).await;
        assert!(part.message().grow(FREE_BYTES + 1).now_or_never().is_none());
        assert!(!part.message().try_grow(FREE_BYTES + 1));
        assert_eq!(budget.available(), 600, "who waits for the part holds nothing of the whole");
        assert!(budget.message().grow(FREE_BYTES + 600).now_or_never().is_some());
        greedy.shrink(100);
        assert_eq!(budget.available(), 700);
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
