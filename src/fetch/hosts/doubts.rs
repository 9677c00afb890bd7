//! Hosts that gave other bytes for a layer than its digest says, so that the next try asks another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Endpoint;
use crate::clock::Clock;
use crate::digest::BlobDigest;

/// How long a host is not asked for what it gave wrong.
const MEMORY: Duration = Duration::from_secs(600);
const MAX_DOUBTS: usize = 1024;

/// All hosts in doubt.
#[derive(Debug)]
pub(in crate::fetch) struct Doubts {
    clock: Clock,
    until: Mutex<HashMap<(String, BlobDigest), Instant>>,
}

impl Doubts {
    pub(in crate::fetch) fn new(clock: Clock) -> Self {
        Doubts { clock, until: Mutex::default() }
    }

    pub(in crate::fetch) fn holds(&self, endpoint: &Endpoint, layer: &BlobDigest) -> bool {
        let until = lock(&self.until).get(&(endpoint.key().to_owned(), *layer)).copied();
        until.is_some_and(|until| until > self.clock.now())
    }

    fn add(&self, key: String, layer: BlobDigest) {
        let now = self.clock.now();
        let mut until = lock(&self.until);
        if until.len() >= MAX_DOUBTS {
            until.retain(|_, until| *until > now);
        }
        if until.len() < MAX_DOUBTS {
            until.insert((key, layer), now + MEMORY);
        }
    }
}

/// Who gave the bytes of one download, for when they turn out to be others.
#[derive(Debug)]
pub(in crate::fetch) struct Doubt {
    doubts: Arc<Doubts>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    layer: BlobDigest,
    /// Key and name of each host that gave some of them.
    asked: Vec<(String, String)>,
    /// How many were not asked.
    left: usize,
}

impl State {
    fn of(layer: BlobDigest) -> Self {
        State { layer, asked: Vec::new(), left: 0 }
    }
}

impl Doubt {
    pub(in crate::fetch) fn new(doubts: Arc<Doubts>, layer: BlobDigest) -> Self {
        Doubt { doubts, state: Mutex::new(State::of(layer)) }
    }

    /// What is said from now on is of another layer.
    pub(in crate::fetch) fn begin(&self, layer: BlobDigest) {
        *lock(&self.state) = State::of(layer);
    }

    /// Says who gives the bytes from now on, and how many hosts besides could.
    pub(in crate::fetch) fn asks(&self, endpoint: &Endpoint, left: usize) {
        let mut state = lock(&self.state);
        if !state.asked.iter().any(|(key, _)| key == endpoint.key()) {
            state.asked.push((endpoint.key().to_owned(), endpoint.host()));
        }
        state.left = left;
    }

    /// The bytes are other ones. Names the hosts that gave them where there is another to ask.
    pub(in crate::fetch) fn cast(&self) -> Option<String> {
        let state = lock(&self.state);
        if state.left == 0 {
            return None;
        }
        state.asked.iter().for_each(|(key, _)| self.doubts.add(key.clone(), state.layer));
        let hosts: Vec<_> = state.asked.iter().map(|(_, host)| host.as_str()).collect();
        Some(hosts.join(", "))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
