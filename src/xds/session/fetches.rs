//! The fetches that a stream waits for, each for one generation of a name. Knows nothing of where modules
//! come from.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::{AbortHandle, JoinSet};

/// Whose it is: a name, and a generation of it.
pub type Whose = (String, u64);

/// What has become of fetches: one that has ended, or several of which the store may have had some.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended<T, R> {
    Fetched(Whose, T),
    /// What was not there is given back.
    LookedUp(Vec<(Whose, Result<T, R>)>),
}

/// Ends them when it is dropped.
#[derive(Debug)]
pub struct Fetches<T, R> {
    tasks: JoinSet<Ended<T, R>>,
    waits: BTreeMap<Whose, AbortHandle>,
}

impl<T: Send + 'static, R: Send + 'static> Fetches<T, R> {
    /// None yet.
    pub fn new() -> Self {
        Self { tasks: JoinSet::new(), waits: BTreeMap::new() }
    }

    /// Begins to wait for this one.
    pub fn wait_for(&mut self, whose: Whose, fetch: impl Future<Output = T> + Send + 'static) {
        let wait = self.tasks.spawn({
            let whose = whose.clone();
            async move { Ended::Fetched(whose, fetch.await) }
        });
        self.waits.insert(whose, wait);
    }

    /// Begins to look up several, which takes no time to speak of.
    pub fn look_up(&mut self, lookup: impl Future<Output = Vec<(Whose, Result<T, R>)>> + Send + 'static) {
        self.tasks.spawn(async move { Ended::LookedUp(lookup.await) });
    }

    /// Waits no longer for any other than these.
    pub fn keep<'a>(&mut self, wanted: impl Iterator<Item = (&'a str, u64)>) {
        if self.waits.is_empty() {
            return;
        }
        let wanted: BTreeSet<_> = wanted.collect();
        self.waits.retain(|(name, generation), wait| {
            let is_wanted = wanted.contains(&(name.as_str(), *generation));
            if !is_wanted {
                wait.abort();
            }
            is_wanted
        });
    }

    /// The next to end, for as long as that takes. Cancel safe.
    pub async fn next(&mut self) -> Ended<T, R> {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(ended)) => return self.ended(ended),
                // It is waited for no longer.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Another that has ended by now.
    pub fn try_next(&mut self) -> Option<Ended<T, R>> {
        loop {
            if let Ok(ended) = self.tasks.try_join_next()? {
                return Some(self.ended(ended));
            }
        }
    }

    fn ended(&mut self, ended: Ended<T, R>) -> Ended<T, R> {
        if let Ended::Fetched(whose, _) = &ended {
            self.waits.remove(whose);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A fetch that tells when it is let go of.
    fn hanging() -> (impl Future<Output = u8> + Send + 'static, oneshot::Receiver<()>) {
        let (held, gone) = oneshot::channel();
        let hanging = async move {
            let _held = held;
            std::future::pending().await
        };
        (hanging, gone)
    }

    #[tokio::test]
    async fn what_is_superseded_or_gone_is_waited_for_no_longer() {
        let mut fetches: Fetches<u8, ()> = Fetches::new();
        let (superseded, its_end) = hanging();
        let (removed, other_end) = hanging();
        let (kept, mut kept_end) = hanging();
        fetches.wait_for(("a".to_owned(), 1), superseded);
        fetches.wait_for(("b".to_owned(), 2), removed);
        fetches.wait_for(("c".to_owned(), 3), kept);
        fetches.wait_for(("a".to_owned(), 4), async { 4 });
        fetches.keep([("a", 4), ("c", 3)].into_iter());
        assert!(its_end.await.is_err() && other_end.await.is_err());
        assert_eq!(fetches.next().await, Ended::Fetched(("a".to_owned(), 4), 4));
        assert_eq!(kept_end.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(fetches.try_next(), None);
        assert_eq!(fetches.tasks.len(), 1, "nothing is left of those");
    }

    #[tokio::test]
    async fn a_fetch_that_is_tried_again_is_waited_for_again() {
        let mut fetches: Fetches<u8, ()> = Fetches::new();
        for outcome in [1, 2] {
            fetches.wait_for(("a".to_owned(), 7), async move { outcome });
            fetches.keep([("a", 7)].into_iter());
            assert_eq!(fetches.next().await, Ended::Fetched(("a".to_owned(), 7), outcome));
            assert!(fetches.waits.is_empty(), "none is under way until the next try");
        }
    }
}
