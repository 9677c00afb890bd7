//! What every stream is doing with its resources, for whoever asks. The sessions keep their machines
//! here; what is shown of them holds no secret and no config.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use serde::Serialize;

use super::machine::slot::{Candidate, Fetching, Slot};
use super::machine::{Machine, Serving, Variant};
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
        let serving = label(slot.serving());
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

fn label(serving: Serving) -> &'static str {
    match serving {
        Serving::Nothing => "nothing",
        Serving::Fallback => "fallback",
        Serving::Current => "current",
        Serving::LastGood => "last_good",
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

/// A stream as its session works on it. The one place where its state is kept: whoever shows it looks here.
pub struct Stream {
    listener: Arc<str>,
    variant: Variant,
    /// As Envoy names itself, once it has.
    node: OnceLock<String>,
    machine: Mutex<Machine>,
}

impl Stream {
    fn state(&self, clock: &Clock) -> StreamState {
        let machine = self.machine();
        StreamState {
            listener: self.listener.to_string(),
            node: self.node.get().cloned().unwrap_or_default(),
            variant: match self.variant {
                Variant::StateOfTheWorld => "state_of_the_world",
                Variant::Delta => "delta",
            },
            resources: machine.slots().map(|(name, slot)| ResourceState::of(name, slot, clock)).collect(),
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All streams. Clones share them.
#[derive(Clone)]
pub struct States(Arc<Shared>);

struct Shared {
    clock: Clock,
    next: AtomicU64,
    streams: Mutex<BTreeMap<u64, Arc<Stream>>>,
}

/// One stream among all; dropping it removes the stream.
pub struct Entry {
    states: States,
    id: u64,
    stream: Arc<Stream>,
}

impl States {
    /// No stream yet. The clock tells the times that are shown.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Shared { clock, next: AtomicU64::new(0), streams: Mutex::default() }))
    }

    /// Adds a stream. `machine` is given a number that no other stream of this process has.
    pub fn enter(&self, listener: Arc<str>, variant: Variant, machine: impl FnOnce(u64) -> Machine) -> Entry {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let machine = Mutex::new(machine(id));
        let stream = Arc::new(Stream { listener, variant, node: OnceLock::new(), machine });
        self.streams().insert(id, stream.clone());
        Entry { states: self.clone(), id, stream }
    }

    /// All streams, oldest first.
    pub fn all(&self) -> Vec<StreamState> {
        let streams: Vec<_> = self.streams().values().cloned().collect();
        streams.iter().map(|stream| stream.state(&self.0.clock)).collect()
    }

    /// How many resources there are on open streams, by what Envoy was given.
    pub fn serving(&self) -> BTreeMap<&'static str, i64> {
        let all = [Serving::Nothing, Serving::Fallback, Serving::Current, Serving::LastGood];
        let mut counts: BTreeMap<_, _> = all.into_iter().map(|serving| (label(serving), 0)).collect();
        let streams: Vec<_> = self.streams().values().cloned().collect();
        for stream in streams {
            for (_, slot) in stream.machine().slots() {
                *counts.entry(label(slot.serving())).or_default() += 1;
            }
        }
        counts
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Stream>>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The stream's machine. Held by whoever works on it, and for as long as it takes to show it.
    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        self.stream.machine()
    }

    /// Envoy has named itself.
    pub fn named(&self, node: &str) {
        self.stream.node.get_or_init(|| node.to_owned());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.states.streams().remove(&self.id);
    }
}
