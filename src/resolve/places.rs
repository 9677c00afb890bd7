//! How many fetches run at once: so many in all, and fewer from one server, so that one that hangs leaves
//! places to the others' modules. Who waits, waits in turn. What the store has needs no place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of a process.
#[derive(Debug)]
pub struct Places {
    of_each: usize,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    all: Arc<Semaphore>,
}

/// The right to fetch, given back on drop.
#[derive(Debug)]
pub struct Place {
    _one_of_host: OwnedSemaphorePermit,
    _one_of_all: OwnedSemaphorePermit,
}

impl Places {
    /// At most `of_each` fetches at once from one server, and `in_all` from all together.
    pub fn new(of_each: usize, in_all: usize) -> Self {
        let bounded = |places: usize| places.clamp(1, Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(bounded(in_all)));
        Self { of_each: bounded(of_each), hosts: Mutex::default(), all }
    }

    /// Waits for a place, those of one server in turn. None where there will be none any more.
    pub async fn take(&self, host: &str) -> Option<Place> {
        // The host's first, so that whoever waits for that holds none of the others' places.
        let of_host = self.of_host(host).acquire_owned().await.ok()?;
        let of_all = self.all.clone().acquire_owned().await.ok()?;
        Some(Place { _one_of_host: of_host, _one_of_all: of_all })
    }

    fn of_host(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // Hosts come and go with resources: those that nobody fetches from or waits for are forgotten.
        hosts.retain(|_, places| Arc::strong_count(places) > 1);
        hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.of_each))).clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_host_that_hangs_leaves_room_for_the_others() {
        let places = Places::new(2, 3);
        let mut hanging: Vec<Place> =
            (0..2).map(|_| places.take("dead").now_or_never().unwrap().unwrap()).collect();
        let mut third = Box::pin(places.take("dead"));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(places.take("alive").now_or_never().is_some());
        hanging.pop();
        assert!(third.now_or_never().is_some());
    }

    #[test]
    fn there_is_a_limit_for_all_hosts_together_and_nothing_is_kept_of_those_that_are_gone() {
        let places = Places::new(1, 8);
        let held: Vec<Place> =
            (0..8).map(|host| places.take(&host.to_string()).now_or_never().unwrap().unwrap()).collect();
        assert!(places.take("one more").now_or_never().is_none());
        drop(held);
        assert!(places.take("one more").now_or_never().is_some());
        assert_eq!(places.hosts.lock().unwrap().len(), 1);
    }
}
