//! What outlives a stream: of each name that a node asked for, what worked, what Envoy rejected, and
//! what is wanted and could not be had. Streams of one node on one listener share it.
//!
//! Nothing here is offered by itself: it is used for a name that the control plane offers on the stream.
//! A name is forgotten when the last stream that wants it says that it no longer does, and otherwise some
//! time after the last such stream has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Variant;
use super::slot::{Failing, Hash};
use crate::digest::PayloadDigest;
use crate::discovery::{Discoveries, Seen};
use crate::module::ModuleRequest;

/// Rejected configs that are remembered of one name, and unjudged ones: the latest.
pub const MAX_HASHES: usize = 16;

/// The memory of one node. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Node>>);

/// What is remembered of a node.
#[derive(Debug, Default)]
pub struct Node {
    names: BTreeMap<String, Remembered>,
    /// Counts its streams, so that each has a number of its own.
    streams: u64,
    /// What its listeners and clusters say of extension configs. In Delta they are not sent again on
    /// the next stream.
    discoveries: Discoveries,
    /// Counts its changes, so that other streams of the node learn of them.
    discovered: u64,
    /// Counts rejections, so that other streams of the node learn of them.
    rejections: u64,
    /// Whether what is worth keeping on disk is other than it was when this was last asked.
    changed: bool,
}

/// What is remembered of one resource.
#[derive(Debug, Clone, Default)]
pub struct Remembered {
    /// Envoy accepted something under this name, and no fallback, or may have before there was a memory.
    pub held: bool,
    pub last_good: Option<LastGood>,
    /// What Envoy rejected when it came alone, oldest first, until it is accepted. One Envoy may look at it
    /// again while another still remembers.
    pub rejected: Vec<Hash>,
    /// The offer that the last of them was made from.
    pub rejected_source: Option<Hash>,
    pub fallback_rejected: bool,
    /// What was sent and not judged, on any stream, and whether it is a fallback; oldest first.
    pub unjudged: Vec<(Hash, bool)>,
    /// The module that is wanted, while it is not there.
    pub wanted: Option<Wanted>,
    /// The streams that it was offered or rejected on, while they want it.
    streams: BTreeSet<u64>,
    /// When a stream ended that wanted it, or the process began that found it on disk: its Envoy may come
    /// back, and remembers too.
    left: Option<Instant>,
}

impl Remembered {
    /// Whether Envoy may have something under this name that is better than a fallback.
    pub fn may_be_held(&self) -> bool {
        self.held || self.unjudged.iter().any(|(_, is_fallback)| !is_fallback)
    }

    /// Whether the next process has to know of it.
    fn is_worth_keeping(&self) -> bool {
        let doubts = !self.rejected.is_empty() || !self.unjudged.is_empty() || self.fallback_rejected;
        self.held || self.last_good.is_some() || doubts
    }
}

/// A config with local code that Envoy accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastGood {
    /// TypedExtensionConfig.
    pub body: Bytes,
    pub made: Made,
}

/// What a config was made with. Where the first two are the same, it says the same to Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// See [`Remote`](crate::rewrite::Remote).
    pub source_key: [u8; 32],
    pub payload: PayloadDigest,
    /// The module's file, which the config names.
    pub path: Arc<Path>,
}

impl Made {
    pub fn is_as_good_as(&self, other: &Self) -> bool {
        (self.source_key, self.payload) == (other.source_key, other.payload)
    }
}

/// A module that is wanted and not there.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The offer that names it.
    pub source: Hash,
    pub request: ModuleRequest,
    /// None while the first fetch is under way.
    pub failing: Option<Failing>,
    /// When it is tried again.
    pub next: Instant,
}

impl Memory {
    pub fn lock(&self) -> MutexGuard<'_, Node> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    pub fn get(&self, name: &str) -> Option<&Remembered> {
        self.names.get(name)
    }

    /// What is remembered of this name, from now on.
    pub fn entry(&mut self, name: &str) -> &mut Remembered {
        if !self.names.contains_key(name) {
            self.names.insert(name.to_owned(), Remembered::default());
        }
        self.names.entry(name.to_owned()).or_default()
    }

    /// A stream of the node begins; its number.
    pub fn join(&mut self) -> u64 {
        self.streams += 1;
        self.streams
    }

    /// What is remembered of this name, which this stream wants.
    pub fn used(&mut self, name: &str, stream: u64) -> &mut Remembered {
        let remembered = self.entry(name);
        remembered.streams.insert(stream);
        remembered
    }

    /// The control plane has removed this name on this stream: what worked under it is out of date. Another
    /// Envoy of the node may still remember what it rejected.
    pub fn removed(&mut self, name: &str, stream: u64) {
        self.expired(name);
        self.forget(name, stream);
    }

    /// This stream no longer wants this name. Another Envoy of the node, as in a hot restart, may go on
    /// with it.
    pub fn forget(&mut self, name: &str, stream: u64) {
        let Some(remembered) = self.names.get_mut(name) else { return };
        remembered.streams.remove(&stream);
        if remembered.streams.is_empty() {
            remembered.wanted = None;
            self.forget_unless(name, |remembered| remembered.left.is_some());
        }
    }

    /// This stream has ended: what it wants is for others to see to.
    pub fn leave(&mut self, stream: u64, now: Instant) {
        for remembered in self.names.values_mut() {
            if remembered.streams.remove(&stream) {
                remembered.left = Some(now);
            }
        }
    }

    /// Forgets the names that no stream wants and none has left for so long.
    pub fn age(&mut self, limit: Duration, now: Instant) {
        let mut aged = Vec::new();
        for (name, remembered) in &mut self.names {
            if remembered.left.take_if(|left| *left + limit <= now).is_some() {
                aged.push(name.clone());
            }
        }
        for name in aged {
            self.forget_unless(&name, |remembered| !remembered.streams.is_empty());
        }
    }

    /// When the name was left that has been alone for the longest.
    pub fn left_first(&self) -> Option<Instant> {
        self.names.values().filter_map(|remembered| remembered.left).min()
    }

    fn forget_unless(&mut self, name: &str, kept: impl Fn(&Remembered) -> bool) {
        if let Some(remembered) = self.names.get(name).filter(|remembered| !kept(remembered)) {
            self.changed |= remembered.is_worth_keeping();
            self.names.remove(name);
        }
    }

    /// What was wanted under this name has expired: nothing is left of it but what Envoy remembers too.
    pub fn expired(&mut self, name: &str) {
        let Some(remembered) = self.names.get_mut(name) else { return };
        self.changed |= remembered.is_worth_keeping();
        (remembered.last_good, remembered.held, remembered.wanted) = (None, false, None);
    }

    /// Envoy has looked at this and takes it.
    pub fn judged(&mut self, name: &str, hash: Hash) {
        let remembered = self.entry(name);
        let doubts = remembered.unjudged.len() + remembered.rejected.len();
        remembered.unjudged.retain(|(unjudged, _)| *unjudged != hash);
        remembered.rejected.retain(|rejected| *rejected != hash);
        self.changed |= doubts != remembered.unjudged.len() + remembered.rejected.len();
    }

    /// Envoy accepted something, with a look at it or without.
    pub fn accepted(&mut self, name: &str, is_fallback: bool, good: Option<LastGood>) {
        let remembered = self.entry(name);
        let news = !remembered.held && !is_fallback;
        remembered.held |= !is_fallback;
        if good.is_some() && remembered.last_good != good {
            remembered.last_good = good;
            self.changed = true;
        }
        self.changed |= news;
    }

    /// An Envoy says that it may have something under this name, and nobody knows otherwise.
    pub fn holds(&mut self, name: &str, stream: u64) {
        let remembered = self.used(name, stream);
        let known = std::mem::replace(&mut remembered.held, true);
        self.changed |= !known;
    }

    /// This was sent for the first time.
    pub fn sent(&mut self, name: &str, hash: Hash, is_fallback: bool) {
        let unjudged = &mut self.entry(name).unjudged;
        unjudged.retain(|(unjudged, _)| *unjudged != hash);
        if unjudged.len() == MAX_HASHES {
            unjudged.remove(0);
        }
        unjudged.push((hash, is_fallback));
        self.changed = true;
    }

    /// Envoy rejected this, which came alone and was made from the offer `source`.
    pub fn rejected(&mut self, name: &str, hash: Hash, source: Option<Hash>, is_fallback: bool) {
        let remembered = self.entry(name);
        remembered.rejected_source = source;
        remembered.unjudged.retain(|(unjudged, _)| *unjudged != hash);
        remembered.fallback_rejected |= is_fallback;
        remembered.rejected.retain(|rejected| *rejected != hash);
        if remembered.rejected.len() == MAX_HASHES {
            remembered.rejected.remove(0);
        }
        remembered.rejected.push(hash);
        self.rejections += 1;
        self.changed = true;
    }

    /// How many rejections there have been.
    pub fn rejections(&self) -> u64 {
        self.rejections
    }

    /// A response of another type passed by on a stream: reads what it says of extension configs, and
    /// gives the names of which that is news.
    pub fn read(&mut self, variant: Variant, type_url: &str, response: &[u8]) -> BTreeSet<Arc<str>> {
        let changed = match variant {
            Variant::StateOfTheWorld => self.discoveries.read_response(type_url, response),
            Variant::Delta => self.discoveries.read_delta_response(type_url, response),
        };
        self.discovered += u64::from(!changed.is_empty());
        changed
    }

    /// Whether Envoy takes a fallback under this name, as far as its listeners and clusters say it.
    pub fn fallback(&self, name: &str) -> Seen {
        self.discoveries.fallback(name)
    }

    /// How often what is known of listeners and clusters has changed.
    pub fn discovered(&self) -> u64 {
        self.discovered
    }

    /// Whether what is worth keeping on disk has changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is worth keeping on disk, by name.
    pub fn kept(&self) -> impl Iterator<Item = (&str, &Remembered)> {
        let kept = self.names.iter().filter(|(_, remembered)| remembered.is_worth_keeping());
        kept.map(|(name, remembered)| (&**name, remembered))
    }

    /// The last good configs, by name.
    pub fn last_good(&self) -> impl Iterator<Item = (&str, &LastGood)> {
        self.names.iter().filter_map(|(name, remembered)| Some((&**name, remembered.last_good.as_ref()?)))
    }

    /// Takes over what an earlier process kept: all but what is wanted, which is for the next stream to say.
    pub fn restore(&mut self, kept: impl IntoIterator<Item = (String, Remembered)>, now: Instant) {
        for (name, mut remembered) in kept {
            remembered.rejected.truncate(MAX_HASHES);
            remembered.unjudged.truncate(MAX_HASHES);
            (remembered.wanted, remembered.streams) = (None, BTreeSet::new());
            remembered.left = Some(now);
            self.names.entry(name).or_insert(remembered);
        }
    }

    /// What is wanted, not there, and seen to by no stream, by name.
    pub fn unattended(&mut self) -> impl Iterator<Item = (&str, &mut Wanted)> {
        let names = self.names.iter_mut().filter(|(_, remembered)| remembered.streams.is_empty());
        names.filter_map(|(name, remembered)| Some((&**name, remembered.wanted.as_mut()?)))
    }

    /// No module is wanted under this name any more: it is there, or something else is wanted.
    pub fn wants_none(&mut self, name: &str) {
        if let Some(remembered) = self.names.get_mut(name) {
            remembered.wanted = None;
        }
    }
}
