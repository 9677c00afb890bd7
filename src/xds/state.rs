//! What every stream is doing with its resources, for whoever asks. Written by the sessions after
//! each change, read by the admin page; holds no secret and no config.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::machine::Serving;
use super::machine::slot::{Fetching, Slot};

/// One resource on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceState {
    pub name: String,
    /// How many versions the control plane has offered on this stream, counted over all resources.
    pub generation: u64,
    pub serving: &'static str,
    pub fetch: &'static str,
    /// Failed attempts in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl ResourceState {
    /// What can be told of a slot.
    pub fn of(name: &str, slot: &Slot) -> Self {
        let serving = match slot.serving() {
            Serving::Nothing => "nothing",
            Serving::Fallback => "fallback",
            Serving::Current => "current",
            Serving::LastGood => "last_good",
        };
        let fetch = match slot.fetching {
            Fetching::Idle => "idle",
            Fetching::Running => "running",
            Fetching::Waiting(_) => "waiting_to_retry",
        };
        Self {
            name: name.to_owned(),
            generation: slot.generation,
            serving,
            fetch,
            failed_attempts: slot.failing.as_ref().map(|failing| failing.attempts),
            last_error: slot.failing.as_ref().map(|failing| failing.last.message.clone()),
        }
    }
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamState {
    pub listener: String,
    pub node: String,
    pub variant: &'static str,
    pub resources: Vec<ResourceState>,
}

/// The states of all streams. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct States(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    streams: Mutex<BTreeMap<u64, StreamState>>,
}

/// One stream's entry; dropping it removes the entry.
#[derive(Debug)]
pub struct Entry {
    states: States,
    id: u64,
}

impl States {
    /// Adds a stream.
    pub fn enter(&self) -> Entry {
        Entry { states: self.clone(), id: self.0.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// All streams, oldest first.
    pub fn all(&self) -> Vec<StreamState> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Entry {
    /// A number that no other stream of this process has.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn publish(&self, state: StreamState) {
        self.states.0.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id, state);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.states.0.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
