//! How many may fetch from one server at once. Each server has places of its own, so that one that
//! stands still delays no module of another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

/// The places of all servers that somebody waits for.
#[derive(Debug)]
pub struct Places {
    at_once: usize,
    by_server: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Places {
    /// So many a server, and one at the least.
    pub fn new(at_once: usize) -> Self {
        Self { at_once: at_once.max(1), by_server: Mutex::default() }
    }

    /// The places of one server. They last as long as somebody has or waits for one of them.
    pub fn of(&self, server: &str) -> Arc<Semaphore> {
        let mut by_server = self.by_server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = by_server.get(server).and_then(Weak::upgrade) {
            return places;
        }
        by_server.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.at_once));
        by_server.insert(server.to_owned(), Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_places_last_as_long_as_one_of_them_is_taken() {
        let places = Places::new(2);
        let taken = places.of("a").try_acquire_owned().unwrap();
        let other = places.of("a").try_acquire_owned().unwrap();
        assert!(places.of("a").try_acquire_owned().is_err());
        assert!(places.of("b").try_acquire_owned().is_ok());
        drop((taken, other));
        assert_eq!(places.of("a").available_permits(), 2);
        drop(places.of("c"));
        assert_eq!(places.by_server.lock().unwrap().len(), 1);
    }
}
