//! One flight per key: whoever asks while one is under way waits for it. It goes on when they leave, as
//! long as anybody waits, and for a short while after.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;

/// Where those who wait for a flight hear of its outcome.
type Landing<T> = watch::Sender<Option<T>>;

/// The flights that are under way.
#[derive(Debug)]
pub struct Flights<K, T> {
    landings: Arc<Mutex<HashMap<K, Arc<Landing<T>>>>>,
    grace: Duration,
    clock: Clock,
    tracker: TaskTracker,
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// None yet; their tasks are tracked by `tracker`. One that nobody waits for goes on for `grace`, so
    /// that whoever comes back meanwhile finds it.
    pub fn new(grace: Duration, clock: Clock, tracker: TaskTracker) -> Self {
        Self { landings: Arc::default(), grace, clock, tracker }
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
                    under_way.get().subscribe()
                }
                Entry::Vacant(free) => {
                    let landing = Arc::new(Landing::new(None));
                    let outcome = landing.subscribe();
                    free.insert(landing.clone());
                    let listed = Listed { landings: self.landings.clone(), key, landing };
                    let (flight, grace, clock) = (flight(), self.grace, self.clock.clone());
                    self.tracker.spawn(async move {
                        tokio::select! {
                            biased;
                            (outcome, rest) = flight => {
                                listed.landing.send_replace(Some(outcome));
                                rest.await;
                            }
                            () = listed.is_unwanted(grace, &clock) => {}
                        }
                    });
                    outcome
                }
            }
        };
        let landed = landing.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

/// A flight's entry in the list; taken off it however the flight ends.
struct Listed<K: Eq + Hash, T> {
    landings: Arc<Mutex<HashMap<K, Arc<Landing<T>>>>>,
    key: K,
    landing: Arc<Landing<T>>,
}

impl<K: Eq + Hash, T> Listed<K, T> {
    /// Waits until nobody has waited for the flight at both ends of `grace`. It is off the list then.
    async fn is_unwanted(&self, grace: Duration, clock: &Clock) {
        loop {
            self.landing.closed().await;
            clock.sleep(grace).await;
            let mut landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody joins while the list is locked.
            if self.landing.receiver_count() == 0 {
                landings.remove(&self.key);
                return;
            }
        }
    }
}

impl<K: Eq + Hash, T> Drop for Listed<K, T> {
    fn drop(&mut self) {
        let mut landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
        // Where it was taken off before, there may be another by now.
        if landings.get(&self.key).is_some_and(|listed| Arc::ptr_eq(listed, &self.landing)) {
            landings.remove(&self.key);
        }
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
    use std::time::SystemTime;

    use tokio::sync::{Notify, oneshot};

    use super::*;
    use crate::clock::ManualClock;

    const GRACE: Duration = Duration::from_secs(2);

    fn flights() -> Arc<Flights<&'static str, usize>> {
        timed_flights().0
    }

    fn timed_flights() -> (Arc<Flights<&'static str, usize>>, ManualClock) {
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        (Arc::new(Flights::new(GRACE, Clock::Manual(manual.clone()), TaskTracker::new())), manual)
    }

    /// Lets all tasks run as far as they can.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    /// Asks, and leaves when the flight is under way.
    async fn ask_and_leave(
        flights: &Flights<&'static str, usize>,
        flight: impl Future<Output = usize> + Send + 'static,
    ) {
        let asking = flights.join("module", || flight);
        tokio::select! {
            biased;
            outcome = asking => panic!("{outcome:?}"),
            () = settle() => {}
        }
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
        settle().await;
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
    async fn a_flight_that_nobody_waits_for_ends_after_the_grace_with_all_that_it_holds() {
        let ((flights, clock), (held, mut given_back)) = (timed_flights(), oneshot::channel::<()>());
        let hangs = async move {
            let _held = held;
            std::future::pending().await
        };
        ask_and_leave(&flights, hangs).await;
        settle().await;
        clock.advance(GRACE - Duration::from_millis(1));
        settle().await;
        assert!(given_back.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        clock.advance(Duration::from_millis(1));
        assert!(given_back.await.is_err());
        assert!(flights.is_empty());
        assert_eq!(flights.join("module", || async { 2 }).await, Some(2));
    }

    #[tokio::test]
    async fn one_who_comes_within_the_grace_finds_the_flight_and_leaves_it_another_grace() {
        let ((flights, clock), land) = (timed_flights(), Arc::new(Notify::new()));
        let landed = land.clone();
        ask_and_leave(&flights, async move {
            landed.notified().await;
            7
        })
        .await;
        settle().await;
        let again = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join("module", || async { unreachable!("one is under way") }).await }
        });
        settle().await;
        for _ in 0..3 {
            clock.advance(GRACE);
            settle().await;
        }
        again.abort();
        assert!(again.await.unwrap_err().is_cancelled());
        settle().await;
        clock.advance(GRACE / 2);
        settle().await;
        let last = flights.join("module", || async { unreachable!("one is under way") });
        land.notify_one();
        assert_eq!(last.await, Some(7));
    }

    #[tokio::test]
    async fn the_rest_of_a_flight_is_done_though_nobody_waits() {
        let ((flights, clock), rest) = (timed_flights(), Arc::new(Notify::new()));
        let (begun, done) = (rest.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = done.clone();
        let flight = || async move {
            let rest = async move {
                begun.notified().await;
                counted.fetch_add(1, Ordering::SeqCst);
            };
            (1, rest)
        };
        assert_eq!(flights.join_to_the_end("module", flight).await, Some(1));
        settle().await;
        clock.advance(GRACE * 10);
        settle().await;
        rest.notify_one();
        while !flights.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(done.load(Ordering::SeqCst), 1);
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
