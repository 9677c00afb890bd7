//! The memories of all nodes: whose streams share one, how long it outlives them, and what of it is
//! on disk. What a node wants and could not get is still tried while no stream of its sees to that.
//!
//! A node is known by the listener that it came to and the id that it gives itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::machine::backoff::Backoff;
use super::machine::memory::{LastGood, Made, Memory, Remembered};
use super::machine::slot::{Failing, Hash, hash};
use super::machine::{Failure, Settings};
use super::session::RelaySettings;
use crate::clock::Clock;
use crate::module::Module;
use crate::resolve::{ResolveError, Resolver};
use crate::store::Store;

/// How long a node without a stream is remembered, by a count that runs while the agent does.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Nodes that are remembered, at most, besides those with a stream; an Envoy may give itself any id.
const MAX_IDLE: usize = 1024;
/// Changes are on disk so long after they were made, at the latest.
const WRITE_PAUSE: Duration = Duration::from_millis(200);

const FORMAT: u32 = 1;

/// What is written down of a node.
#[derive(Serialize, Deserialize)]
struct Note {
    format: u32,
    node: String,
    configs: Vec<Config>,
    #[serde(default)]
    known: Vec<Known>,
}

/// What worked under a name.

#[derive(Serialize, Deserialize)]
struct Config {
    name: String,
    path: PathBuf,
    payload: String,
    /// In hex.
    source_key: String,
    /// TypedExtensionConfig, in hex.
    body: String,
}

/// What Envoy may have under a name, and what it may take no second look at. Hashes are in hex.
#[derive(Serialize, Deserialize)]
struct Known {
    name: String,
    held: bool,
    rejected: Vec<String>,
    rejected_source: Option<String>,
    fallback_rejected: bool,
    /// And whether it is a fallback.
    unjudged: Vec<(String, bool)>,
}

/// The memories. Clones share them.
#[derive(Clone)]
pub struct Memories(Arc<Shared>);

struct Shared {
    nodes: Mutex<HashMap<String, Entry>>,
    /// Something is to be written, tried or forgotten.
    changed: Notify,
    store: Store,
    clock: Clock,
}

struct Entry {
    memory: Memory,
    streams: usize,
    idle_since: Instant,
    /// Not on disk as it is.
    unwritten: bool,
}

/// A stream's part in its node's memory; dropping it ends that.
pub struct Member {
    memories: Memories,
    subject: String,
    pub memory: Memory,
}

type Tried = (String, String, Hash, Result<Module, Arc<ResolveError>>);

impl Memories {
    /// Takes over what the store has of an earlier process. A config whose module is gone is left out.
    pub fn load(store: Store, clock: Clock) -> Self {
        let notes = store.notes().unwrap_or_else(|error| {
            tracing::warn!("cannot read what worked before this start: {error}");
            Vec::new()
        });
        let now = clock.now();
        let mut nodes = HashMap::new();
        for note in notes.iter().filter_map(|note| serde_json::from_slice::<Note>(note).ok()) {
            if note.format != FORMAT || nodes.len() >= MAX_IDLE {
                continue;
            }
            let memory = Memory::default();
            let subject = note.node.clone();
            memory.lock().restore(note.into_kept(&store), now);
            nodes.insert(subject, Entry { memory, streams: 0, idle_since: now, unwritten: false });
        }
        Self(Arc::new(Shared { nodes: Mutex::new(nodes), changed: Notify::new(), store, clock }))
    }

    /// A stream of this node begins.
    pub fn join(&self, listener: &str, node: &str) -> Member {
        let subject = subject(listener, node);
        let now = self.0.clock.now();
        let mut nodes = self.nodes();
        let entry = nodes.entry(subject.clone()).or_insert_with(|| Entry {
            memory: Memory::default(),
            streams: 0,
            idle_since: now,
            unwritten: false,
        });
        entry.streams += 1;
        Member { memories: self.clone(), subject, memory: entry.memory.clone() }
    }

    /// Writes, tries and forgets what is due, until shutdown.
    pub async fn keep(
        self,
        resolver: Resolver,
        settings: watch::Receiver<RelaySettings>,
        shutdown: CancellationToken,
    ) {
        let mut keeper = Keeper {
            memories: self,
            resolver,
            settings,
            backoff: Backoff::new(u64::from(std::process::id())),
            trying: HashSet::new(),
            tries: JoinSet::new(),
        };
        loop {
            let next = keeper.due();
            let shared = keeper.memories.0.clone();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = shared.changed.notified() => {
                    // What changes together is written together.
                    let pause = shared.clock.sleep(WRITE_PAUSE);
                    if shutdown.run_until_cancelled(pause).await.is_none() {
                        break;
                    }
                }
                Some(Ok(tried)) = keeper.tries.join_next(), if !keeper.tries.is_empty() => keeper.tried(tried),
                () = sleep_until(&shared.clock, next) => {}
            }
            keeper.memories.forget().await;
            keeper.memories.write().await;
            keeper.try_what_is_due();
        }
        keeper.memories.write().await;
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has changed.
    async fn write(&self) {
        let mut unwritten = Vec::new();
        for (subject, entry) in self.nodes().iter_mut() {
            if std::mem::take(&mut entry.unwritten) {
                unwritten.push((subject.clone(), entry.memory.clone()));
            }
        }
        if unwritten.is_empty() {
            return;
        }
        let store = self.0.store.clone();
        let write = move || {
            for (subject, memory) in unwritten {
                let note = serde_json::to_vec(&Note::of(&subject, &memory)).unwrap_or_default();
                if let Err(error) = store.write_note(&subject, &note) {
                    tracing::warn!("cannot write down what works for a node: {error}");
                }
            }
        };
        // Nobody waits for the outcome, and a panic in it has been printed.
        let _ = tokio::task::spawn_blocking(write).await;
    }

    /// Forgets the nodes that have been away too long, and the longest away of too many; of the others the
    /// names that no stream has wanted for as long.
    async fn forget(&self) {
        let now = self.0.clock.now();
        let kept: BTreeSet<String> = {
            let mut nodes = self.nodes();
            let before = nodes.len();
            for entry in nodes.values_mut().filter(|entry| entry.streams > 0) {
                let mut memory = entry.memory.lock();
                memory.age(REMEMBERED, now);
                entry.unwritten |= memory.take_changed();
            }
            nodes.retain(|_, entry| entry.streams > 0 || now < entry.idle_since + REMEMBERED);
            let mut idle: Vec<_> = nodes
                .iter()
                .filter(|(_, entry)| entry.streams == 0)
                .map(|(subject, entry)| (entry.idle_since, subject.clone()))
                .collect();
            if idle.len() > MAX_IDLE {
                idle.sort_unstable();
                for (_, subject) in idle.drain(..idle.len() - MAX_IDLE) {
                    nodes.remove(&subject);
                }
            }
            if nodes.len() == before {
                return;
            }
            nodes.keys().cloned().collect()
        };
        let store = self.0.store.clone();
        let forget = move || {
            if let Err(error) = store.retain_notes(&kept) {
                tracing::warn!("cannot remove what was written down of nodes that are gone: {error}");
            }
        };
        let _ = tokio::task::spawn_blocking(forget).await;
    }
}

/// What a node is called on disk, before that is hashed with the store's key.
pub(super) fn subject(listener: &str, node: &str) -> String {
    hex::encode(hash(&[listener.as_bytes(), node.as_bytes()]))
}

impl Note {
    fn of(subject: &str, memory: &Memory) -> Self {
        let memory = memory.lock();
        let (mut configs, mut known) = (Vec::new(), Vec::new());
        for (name, remembered) in memory.kept() {
            configs.extend(remembered.last_good.as_ref().map(|good| Config::of(name, good)));
            known.push(Known::of(name, remembered));
        }
        Self { format: FORMAT, node: subject.to_owned(), configs, known }
    }

    /// What can be read of it, and is still of use.
    fn into_kept(self, store: &Store) -> BTreeMap<String, Remembered> {
        let known = self.known.into_iter().filter_map(Known::into_remembered);
        let mut kept: BTreeMap<String, Remembered> = known.collect();
        for (name, good) in self.configs.into_iter().filter_map(|config| config.into_last_good(store)) {
            let remembered = kept.entry(name).or_default();
            (remembered.held, remembered.last_good) = (true, Some(good));
        }
        kept
    }
}

impl Config {
    fn of(name: &str, good: &LastGood) -> Self {
        Self {
            name: name.to_owned(),
            path: good.made.path.to_path_buf(),
            payload: good.made.payload.to_string(),
            source_key: hex::encode(good.made.source_key),
            body: hex::encode(&good.body),
        }
    }

    fn into_last_good(self, store: &Store) -> Option<(String, LastGood)> {
        let body = Bytes::from(hex::decode(self.body).ok()?);
        let source_key = hex::decode(self.source_key).ok()?.try_into().ok()?;
        let made = Made { source_key, payload: self.payload.parse().ok()?, path: self.path.into() };
        let view = store.view_at(&made.path)?;
        let stored = store.view(&view.audience, &view.payload).unwrap_or_else(|error| {
            tracing::warn!("cannot look at what worked before this start: {error}");
            None
        });
        stored.map(|_| (self.name, LastGood { body, made }))
    }
}

impl Known {
    fn of(name: &str, remembered: &Remembered) -> Self {
        let unjudged = remembered.unjudged.iter().map(|(hash, fallback)| (hex::encode(hash), *fallback));
        Self {
            name: name.to_owned(),
            held: remembered.held,
            rejected: remembered.rejected.iter().map(hex::encode).collect(),
            rejected_source: remembered.rejected_source.map(hex::encode),
            fallback_rejected: remembered.fallback_rejected,
            unjudged: unjudged.collect(),
        }
    }

    fn into_remembered(self) -> Option<(String, Remembered)> {
        let hash = |text: &String| Hash::try_from(hex::decode(text).ok()?).ok();
        let unjudged = self.unjudged.iter().map(|(text, fallback)| Some((hash(text)?, *fallback)));
        let mut remembered = Remembered::default();
        remembered.held = self.held;
        remembered.rejected = self.rejected.iter().map(hash).collect::<Option<_>>()?;
        remembered.rejected_source = self.rejected_source.as_ref().and_then(hash);
        remembered.fallback_rejected = self.fallback_rejected;
        remembered.unjudged = unjudged.collect::<Option<_>>()?;
        Some((self.name, remembered))
    }
}

impl Member {
    /// Sees to it that what has changed is written.
    pub fn save(&self) {
        if !self.memory.lock().take_changed() {
            return;
        }
        if let Some(entry) = self.memories.nodes().get_mut(&self.subject) {
            entry.unwritten = true;
        }
        self.memories.0.changed.notify_one();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.save();
        if let Some(entry) = self.memories.nodes().get_mut(&self.subject) {
            entry.streams = entry.streams.saturating_sub(1);
            entry.idle_since = self.memories.0.clock.now();
        }
        self.memories.0.changed.notify_one();
    }
}

/// The task that looks after the memories.
struct Keeper {
    memories: Memories,
    resolver: Resolver,
    settings: watch::Receiver<RelaySettings>,
    backoff: Backoff,
    /// Node and name of what is being tried.
    trying: HashSet<(String, String)>,
    tries: JoinSet<Tried>,
}

impl Keeper {
    /// When there is something to do.
    fn due(&self) -> Option<Instant> {
        let mut due = None;
        for (subject, entry) in self.memories.nodes().iter() {
            let trying = |name: &str| self.trying.contains(&(subject.clone(), name.to_owned()));
            let mut memory = entry.memory.lock();
            let tries = memory.unattended().filter(|(name, _)| !trying(name)).map(|(_, wanted)| wanted.next);
            due = tries.chain(due).min();
            let left = if entry.streams == 0 { Some(entry.idle_since) } else { memory.left_first() };
            due = left.map(|left| left + REMEMBERED).into_iter().chain(due).min();
        }
        due
    }

    fn try_what_is_due(&mut self) {
        let now = self.memories.0.clock.now();
        for (subject, entry) in self.memories.nodes().iter() {
            for (name, wanted) in entry.memory.lock().unattended().filter(|(_, wanted)| wanted.next <= now) {
                let key = (subject.clone(), name.to_owned());
                if !self.trying.insert(key.clone()) {
                    continue;
                }
                let (resolver, request, source) =
                    (self.resolver.clone(), wanted.request.clone(), wanted.source);
                let (subject, name) = key;
                self.tries.spawn(async move { (subject, name, source, resolver.resolve(request).await) });
            }
        }
    }

    fn tried(&mut self, (subject, name, source, outcome): Tried) {
        self.trying.remove(&(subject.clone(), name.clone()));
        let now = self.memories.0.clock.now();
        let settings: Settings = self.settings.borrow().machine.clone();
        let nodes = self.memories.nodes();
        let Some(entry) = nodes.get(&subject) else { return };
        let mut memory = entry.memory.lock();
        // A stream of the node has taken over, perhaps with another config.
        let wanted = memory.unattended().find(|(wanted, _)| *wanted == name).map(|(_, wanted)| wanted);
        let Some(wanted) = wanted.filter(|wanted| wanted.source == source) else { return };
        match outcome {
            Ok(_) => memory.wants_none(&name),
            Err(error) => {
                let failure = Failure::of(&error);
                let earlier = wanted.failing.as_ref().map_or(0, |failing| failing.attempts);
                let since = wanted.failing.as_ref().map_or(now, |failing| failing.since);
                wanted.next = now + self.backoff.pause(&settings, earlier, &failure);
                let attempts = earlier.saturating_add(1);
                wanted.failing = Some(Failing { since, attempts, last: failure });
            }
        }
    }
}

async fn sleep_until(clock: &Clock, deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => clock.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
