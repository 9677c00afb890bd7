//! What the Envoys of each node may open at any time: what each of its streams gives, what its earlier
//! streams gave, and what is remembered for its next ones. It is on disk before a path goes to Envoy, and
//! stays there until the node has moved on or has shown no sign of life for long.
//!
//! A lease that cannot be written stops nobody: it is held in memory, and tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::machine::memory::Memory;
use crate::metrics::Metrics;
use crate::store::{Lease, Store, StoreError, Unsynced, View, Views};

/// While a node has a stream, what it may open is written down anew each so many seconds of the store's
/// age.
const RENEWED: u64 = 300;
/// What was written down longer ago than this, in the same seconds, does not do for what is given now.
const FRESH: u64 = 2 * RENEWED;

/// The leases of all nodes. Clones share them.
#[derive(Clone)]
pub struct Leases(Arc<Shared>);

struct Shared {
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    store: Store,
    metrics: Metrics,
}

struct Node {
    subject: String,
    state: Mutex<State>,
    /// Held by who writes, so that no older lease takes the place of a newer one.
    writing: Mutex<()>,
}

#[derive(Default)]
struct State {
    memory: Option<Memory>,
    /// By number; a later one has a higher one.
    streams: BTreeMap<u64, Part>,
    next_stream: u64,
    /// What streams that have ended gave.
    left: BTreeMap<String, BTreeMap<View, Left>>,
    /// What is on disk; none until it was read.
    written: Option<Lease>,
    written_at: u64,
    /// Something is to be written.
    unwritten: bool,
    failing: bool,
}

/// What a stream gives, by name.
type Part = BTreeMap<String, Given>;

#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    /// Envoy has accepted a config under this name on this stream.
    settled: bool,
    views: BTreeSet<View>,
}

/// A view that no stream gives any more.
#[derive(Clone, Copy)]
struct Left {
    /// The store's age when one last did.
    sign: u64,
    /// Streams from this number on are later.
    before: u64,
}

/// A stream's part in the lease of its node. Dropping it ends the stream, and leaves its part behind.
pub struct Member {
    leases: Leases,
    node: Arc<Node>,
    stream: u64,
}

impl Leases {
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { nodes: Mutex::default(), store, metrics }))
    }

    /// A stream of this node begins. What its memory keeps to be given again is part of the lease.
    pub fn join(&self, listener: &str, node: &str, memory: Option<Memory>) -> Member {
        let subject = super::memories::subject(listener, node);
        let mut nodes = self.nodes();
        let node = nodes.entry(subject.clone()).or_insert_with(|| {
            Arc::new(Node { subject, state: Mutex::default(), writing: Mutex::default() })
        });
        let node = node.clone();
        // While the list is locked, so that nobody takes the node off it.
        let stream = {
            let mut state = node.state();
            state.memory = memory.or(state.memory.take());
            state.next_stream += 1;
            let stream = state.next_stream;
            state.streams.insert(stream, Part::new());
            stream
        };
        Member { leases: self.clone(), node, stream }
    }

    /// Writes what is due, and forgets the nodes that are gone. To be called once a minute, and at the
    /// end.
    pub async fn renew(&self) {
        let age = self.0.store.age();
        let due: Vec<_> = {
            let mut nodes = self.nodes();
            // What is on disk is enough for them.
            nodes.retain(|_, node| {
                let stays = !node.is_idle() || Arc::strong_count(node) > 1;
                if !stays {
                    self.0.store.hold(&node.subject, BTreeSet::new());
                }
                stays
            });
            nodes.values().filter(|node| node.is_due(age)).cloned().collect()
        };
        let leases = self.clone();
        let write = move || due.iter().for_each(|node| leases.sync(node, leases.write(node)));
        // Nobody waits for the outcome, and a panic in it has been printed.
        let _ = tokio::task::spawn_blocking(write).await;
    }

    /// Writes the lease of a node, unless it is on disk as it is. What was written is to be synced.
    fn write(&self, node: &Node) -> Option<Unsynced> {
        let _one = node.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let store = &self.0.store;
        // Each time: an agent that overlaps with this one may serve the same node.
        match store.lease(&node.subject) {
            Ok(lease) => node.state().restore(lease),
            Err(error) => {
                self.failed(node, &error);
                return None;
            }
        }
        let age = store.age();
        let (lease, known) = {
            let mut state = node.state();
            state.settle();
            state.unwritten = false;
            (state.lease(store, age), state.written.clone().unwrap_or_default())
        };
        store.hold(&node.subject, lease.payloads());
        // A minute before it is due: it is looked at once a minute.
        if known.says_the_same(&lease, RENEWED - 60) {
            return None;
        }
        match store.write_lease(&node.subject, &lease) {
            Ok(unsynced) => {
                let mut state = node.state();
                (state.written, state.written_at, state.failing) = (Some(lease), age, false);
                Some(unsynced)
            }
            Err(error) => {
                // Other processes see at least that these are in use.
                let _ = store.note_uses(&lease.payloads());
                self.failed(node, &error);
                None
            }
        }
    }

    /// Makes durable what was written.
    fn sync(&self, node: &Node, unsynced: Option<Unsynced>) {
        if let Some(Err(error)) = unsynced.map(Unsynced::sync) {
            self.failed(node, &error);
        }
    }

    fn failed(&self, node: &Node, error: &StoreError) {
        let mut state = node.state();
        state.unwritten = true;
        if !std::mem::replace(&mut state.failing, true) {
            self.0.metrics.lease_failures.inc();
            tracing::warn!("cannot write down what a node may open, and keep it in memory: {error}");
        }
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<String, Arc<Node>>> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        let state = self.state();
        state.streams.is_empty() && !state.unwritten
    }

    fn is_due(&self, age: u64) -> bool {
        let state = self.state();
        let is_old = age.saturating_sub(state.written_at) >= RENEWED;
        state.unwritten || (is_old && !state.streams.is_empty())
    }
}

impl State {
    /// Takes over what is on disk. What this process did not write is an earlier one's, or that of another
    /// agent, whose streams are none of ours.
    fn restore(&mut self, lease: Lease) {
        let before = if self.written.is_some() { self.next_stream + 1 } else { 0 };
        for (name, views) in &lease.names {
            for (view, sign) in views {
                if self.written.as_ref().is_some_and(|written| written.has(name, view, 0)) {
                    let known = self.left.get_mut(name).and_then(|left| left.get_mut(view));
                    known.into_iter().for_each(|left| left.sign = left.sign.max(*sign));
                } else {
                    let left = self.left.entry(name.clone()).or_default();
                    left.entry(*view).or_insert(Left { sign: *sign, before });
                }
            }
        }
        if self.written.is_none() {
            let signs = lease.names.values().flat_map(Views::values);
            self.written_at = signs.copied().max().unwrap_or_default();
        }
        self.written = Some(lease);
    }

    /// A stream gives something else; whether all of it is on disk, be it under another name.
    fn give(&mut self, stream: u64, part: Part, age: u64) -> bool {
        let before = self.streams.insert(stream, part).unwrap_or_default();
        let Self { streams, left, written, .. } = self;
        let Some(part) = streams.get(&stream) else { return false };
        // What Envoy no longer wants, or the control plane has taken away.
        for name in before.keys().filter(|name| !part.contains_key(*name)) {
            let earlier = left.get_mut(name);
            earlier.into_iter().for_each(|views| views.retain(|_, left| left.before > stream));
        }
        let Some(written) = written else { return false };
        let since = age.saturating_sub(FRESH);
        let mut views =
            part.iter().flat_map(|(name, given)| given.views.iter().map(move |view| (name, view)));
        if views.clone().all(|(name, view)| written.has(name, view, since)) {
            return true;
        }
        // What is on disk under another name stays as well; under this one it will be in a minute.
        let fresh = written.names.values().flatten().filter(|(_, sign)| **sign >= since);
        let fresh: BTreeSet<&View> = fresh.map(|(view, _)| view).collect();
        views.all(|(_, view)| fresh.contains(view))
    }

    /// A stream ends, and leaves behind what it gave.
    fn leave(&mut self, stream: u64, age: u64) {
        let part = self.streams.remove(&stream).unwrap_or_default();
        let left = Left { sign: age, before: self.next_stream + 1 };
        for (name, given) in part {
            let views = self.left.entry(name).or_default();
            views.extend(given.views.into_iter().map(|view| (view, left)));
        }
    }

    /// Where Envoy has accepted something on a later stream, the node has moved on.
    fn settle(&mut self) {
        let Self { streams, left, .. } = self;
        for (stream, part) in streams {
            for (name, _) in part.iter().filter(|(_, given)| given.settled) {
                let earlier = left.get_mut(name);
                earlier.into_iter().for_each(|views| views.retain(|_, left| left.before > *stream));
            }
        }
        left.retain(|_, views| !views.is_empty());
    }

    /// All that the node may open.
    fn lease(&mut self, store: &Store, age: u64) -> Lease {
        let lasts = store.lease_seconds();
        let is_on = |left: &Left| left.sign.saturating_add(lasts) > age;
        self.left.values_mut().for_each(|views| views.retain(|_, left| is_on(left)));
        let mut names: BTreeMap<String, Views> = BTreeMap::new();
        for (name, views) in &self.left {
            let views = views.iter().map(|(view, left)| (*view, left.sign));
            names.entry(name.clone()).or_default().extend(views);
        }
        for (name, given) in self.streams.values().flatten() {
            let views = given.views.iter().map(|view| (*view, age));
            names.entry(name.clone()).or_default().extend(views);
        }
        if let Some(memory) = &self.memory {
            for (name, good) in memory.lock().last_good() {
                let view = store.view_at(&good.made.path).map(|view| (view, age));
                names.entry(name.to_owned()).or_default().extend(view);
            }
        }
        names.retain(|_, views| !views.is_empty());
        self.written.clone().unwrap_or_default().followed_by(names)
    }
}

impl Member {
    /// From now on Envoy may open these, by name, and these alone of what this stream gave it; and
    /// whether it has accepted a config under that name. Where it is to be told of them `now`, this is to
    /// be awaited before: then they are on disk, or cannot be written. None where they are on disk.
    pub fn give<'a, Paths: Iterator<Item = &'a Path>>(
        &self,
        given: impl Iterator<Item = (&'a str, bool, Paths)>,
        now: bool,
    ) -> Option<oneshot::Receiver<()>> {
        let store = &self.leases.0.store;
        let given = given.map(|(name, settled, paths)| {
            let views = paths.filter_map(|path| store.view_at(path)).collect();
            (name.to_owned(), Given { settled, views })
        });
        let part: Part = given.collect();
        let mut state = self.node.state();
        state.unwritten |= state.streams.get(&self.stream) != Some(&part);
        let is_on_disk = state.give(self.stream, part, store.age());
        let payloads = state.streams.values().flat_map(Part::values).flat_map(|given| &given.views);
        let payloads = payloads.chain(state.left.values().flat_map(BTreeMap::keys));
        let payloads = payloads.map(|view| view.payload).collect();
        drop(state);
        store.hold(&self.node.subject, payloads);
        if is_on_disk || !now {
            return None;
        }
        let (leases, node) = (self.leases.clone(), self.node.clone());
        let (written, is_written) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let unsynced = leases.write(&node);
            // Whoever waited may be gone.
            let _ = written.send(());
            leases.sync(&node, unsynced);
        });
        Some(is_written)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let age = self.leases.0.store.age();
        self.node.state().leave(self.stream, age);
    }
}

#[cfg(test)]
mod tests;
