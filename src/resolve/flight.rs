//! One flight per key: whoever asks while one is under way waits for it, and it goes on when they
//! leave.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

type Landing<T> = watch::Receiver<Option<T>>;

/// The flights that are under way.
#[derive(Debug)]
pub struct Flights<K, T> {
    landings: Arc<Mutex<HashMap<K, Landing<T>>>>,
    tracker: TaskTracker,
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// None yet; their tasks are tracked by `tracker`.
    pub fn new(tracker: TaskTracker) -> Self {
        Self { landings: Arc::default(), tracker }
    }

    /// The outcome of the flight for `key`: of the one under way, or of `flight`. None where the
    /// flight was dropped before it ended, as at the end of the process. Who waits for another's
    /// flight holds nothing of their own meanwhile.
    pub async fn join<F>(&self, key: K, flight: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let with_no_rest = || {
            let flight = flight();
            async move { (flight.await, std::future::ready(())) }
        };
        self.join_to_the_end(key, with_no_rest).await
    }

    /// As [`Flights::join`], for a flight that gives its outcome and what it has yet to do: nobody
    /// waits for that, and until it is done whoever asks gets the same outcome.
    pub async fn join_to_the_end<F, Rest>(&self, key: K, flight: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = (T, Rest)> + Send + 'static,
        Rest: Future + Send + 'static,
    {
        let mut landing = {
            let mut landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
            match landings.entry(key.clone()) {
                Entry::Occupied(under_way) => {
                    drop(flight);
                    under_way.get().clone()
                }
                Entry::Vacant(free) => {
                    let (land, landing) = watch::channel(None);
                    free.insert(landing.clone());
                    let (flight, landings) = (flight(), self.landings.clone());
                    self.tracker.spawn(async move {
                        let _gone = Gone { landings, key };
                        let (outcome, rest) = flight.await;
                        land.send_replace(Some(outcome));
                        rest.await;
                    });
                    landing
                }
            }
        };
        let landed = landing.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

/// Takes a flight off the list however it ends.
struct Gone<K: Eq + Hash, T> {
    landings: Arc<Mutex<HashMap<K, Landing<T>>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Gone<K, T> {
    fn drop(&mut self) {
        self.landings.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
impl<K, T> Flights<K, T> {
    fn is_empty(&self) -> bool {
        self.landings.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    fn flights() -> Arc<Flights<&'static str, usize>> {
        Arc::new(Flights::new(TaskTracker::new()))
    }

    #[tokio::test]
    async fn all_who_ask_at_once_share_one_flight() {
        let (flights, started, land) = (flights(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (flights, started, land) = (flights.clone(), started.clone(), land.clone());
            asking.spawn(async move {
                let flight = || async move {
                    let number = started.fetch_add(1, Ordering::SeqCst);
                    land.notified().await;
                    number
                };
                flights.join("module", flight).await
            });
        }
        while started.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        land.notify_one();
        assert!(asking.join_all().await.into_iter().all(|outcome| outcome == Some(0)));
        assert_eq!(started.load(Ordering::SeqCst), 1);
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn one_who_leaves_does_not_cancel_it_for_the_others() {
        let (flights, land) = (flights(), Arc::new(Notify::new()));
        let first = tokio::spawn({
            let (flights, land) = (flights.clone(), land.clone());
            async move {
                flights
                    .join("module", || async move {
                        land.notified().await;
                        7
                    })
                    .await
            }
        });
        while flights.is_empty() {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let second = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join("module", || async { unreachable!("one is under way") }).await }
        });
        tokio::task::yield_now().await;
        land.notify_one();
        assert_eq!(second.await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn nobody_waits_for_the_rest_of_a_flight_and_nobody_starts_another_before_it_is_done() {
        let (flights, rest) = (flights(), Arc::new(Notify::new()));
        let done = rest.clone();
        let flight = || async move { (1, async move { done.notified().await }) };
        assert_eq!(flights.join_to_the_end("module", flight).await, Some(1));
        assert_eq!(flights.join("module", || async { unreachable!("one is under way") }).await, Some(1));
        rest.notify_one();
        while !flights.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(flights.join("module", || async { 2 }).await, Some(2));
    }

    #[tokio::test]
    async fn a_flight_that_panics_ends_for_all_who_wait_and_the_next_one_starts_anew() {
        let flights = flights();
        assert_eq!(flights.join("module", || async { panic!("a fault") }).await, None);
        assert_eq!(flights.join("module", || async { 1 }).await, Some(1));
    }
}
