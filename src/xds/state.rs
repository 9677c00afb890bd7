//! What every stream is doing with its resources, for whoever asks. Written by the sessions after
//! each change, read by the admin page; holds no secret and no config.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use serde::Serialize;

use super::machine::Serving;
use super::machine::slot::{Candidate, Fetching, Slot};
use crate::clock::Clock;

/// One resource on one stream. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceState {
    pub name: String,
    /// How many versions the control plane has offered on this stream, counted over all resources.
    pub generation: u64,
    /// Where the module is that the control plane wants; none where it wants none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    pub serving: &'static str,
    /// The version of what was last sent to Envoy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// The version of what Envoy accepted last, or an earlier stream's did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<String>,
    /// Whether the failure policy's filter may stand in.
    pub fallback_allowed: bool,
    /// The versions that Envoy rejected and that are not offered again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<String>,
    pub fetch: &'static str,
    /// Failed attempts in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl ResourceState {
    /// What can be told of a slot.
    pub fn of(name: &str, slot: &Slot, clock: &Clock) -> Self {
        let serving = match slot.serving() {
            Serving::Nothing => "nothing",
            Serving::Fallback => "fallback",
            Serving::Current => "current",
            Serving::LastGood => "last_good",
        };
        let (fetch, next_try) = match slot.fetching {
            Fetching::Idle => ("idle", None),
            Fetching::Running => ("running", None),
            Fetching::Waiting(at) => ("waiting_to_retry", Some(at)),
        };
        let failing = slot.failing.as_ref();
        let version = |candidate: &Candidate| hex::encode(candidate.hash);
        Self {
            name: name.to_owned(),
            generation: slot.generation,
            wanted: slot.wanted().map(ToString::to_string),
            serving,
            held: slot.held().map(version),
            last_good: slot.works().map(version),
            fallback_allowed: slot.allows_fallback(),
            rejected: slot.rejections().iter().map(hex::encode).collect(),
            fetch,
            failed_attempts: failing.map(|failing| failing.attempts),
            failing_since: failing.map(|failing| unix_seconds(failing.since, clock)),
            next_try: next_try.map(|at| unix_seconds(at, clock)),
            last_error: failing.map(|failing| failing.last.message.clone()),
        }
    }
}

/// When that is, by the clock on the wall as it is now.
fn unix_seconds(at: Instant, clock: &Clock) -> u64 {
    let (now, wall) = (clock.now(), clock.wall());
    let at = match at.checked_duration_since(now) {
        Some(ahead) => wall.checked_add(ahead),
        None => wall.checked_sub(now.saturating_duration_since(at)),
    };
    at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default().as_secs()
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
