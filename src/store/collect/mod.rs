//! Garbage collection: what is neither leased nor pinned nor was used just now goes, least recently
//! used first, while the store holds more than it may, while its file system has less room than it
//! should, and when nobody has used it for long.
//!
//! A collection is made of small steps, between which others use the store: it reads the leases and
//! pins, counts the payloads, and then removes a few at a time, alone in the store (`lock.rs`). Whoever
//! has begun to need one since then has said so by its last use, which is looked at again there.
//!
//! Of a payload the views go first and its bytes last, so that whatever is interrupted is a payload
//! that nobody sees; what is left of it is found by a sweep (`sweep.rs`).

mod census;
mod sweep;

pub(super) use self::sweep::Sweep;

use std::collections::{BTreeSet, HashSet};

use self::census::Entry;
use crate::store::error::StoreError;
use crate::store::fs::PASSAGE;
use crate::store::layout::{Way, view_name};
use crate::store::lease::Leased;
use crate::store::uses::RECENT;
use crate::store::{Audience, PayloadDigest, Store};

/// Why payloads are removed, as the metric calls it.
pub const COLLECTED: [&str; 3] = ["max_bytes", "min_free", "expiry"];

/// How many leases one step reads.
const LEASES_A_STEP: usize = 64;
/// How many payloads, or other files, are removed while nobody else may use the store.
const REMOVED_A_STEP: usize = 16;

/// Index into [`COLLECTED`].
type Reason = usize;
const MAX_BYTES: Reason = 0;
const MIN_FREE: Reason = 1;
const EXPIRY: Reason = 2;

/// What a collection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// To know how much there is.
    Count,
    /// All limits; and what is left of what was interrupted, where `sweeps`.
    Limits { sweeps: bool },
    /// Room for so many bytes.
    Room(u64),
}

/// What comes next.
#[derive(Debug)]
enum State {
    Begin,
    Leases(Vec<String>),
    Census(Vec<String>),
    Choose,
    Remove(Vec<Doomed>),
    Sweep(sweep::Sweep),
    Done,
}

/// A payload that is to go, as it was when it was counted.
#[derive(Debug)]
struct Doomed {
    entry: Entry,
    reason: Reason,
}

impl From<&Doomed> for Collected {
    fn from(Doomed { entry, reason }: &Doomed) -> Self {
        Self {
            payload: entry.payload,
            size: entry.size,
            reason: COLLECTED.get(*reason).copied().unwrap_or_default(),
        }
    }
}

/// A payload that was removed, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collected {
    pub payload: PayloadDigest,
    /// Bytes.
    pub size: u64,
    /// One of [`COLLECTED`].
    pub reason: &'static str,
}

/// What a collection has found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) leased: u64,
    pub(super) pinned: u64,
    /// Neither, and used too short a time ago.
    pub(super) recent: u64,
    pub(super) removed: u64,
    /// Were to be removed, and were needed or gone.
    pub(super) missed: u64,
    /// What it is to make room for fits, once all has gone that may.
    pub(super) fits: bool,
}

/// A collection under way.
#[derive(Debug)]
pub struct Collection {
    store: Store,
    goal: Goal,
    state: State,
    leased: Leased,
    pinned: BTreeSet<PayloadDigest>,
    ended_leases: Vec<String>,
    entries: Vec<Entry>,
    /// Of this process, when it began to count.
    arrivals: u64,
    removals: [u64; COLLECTED.len()],
    counted: Counted,
    /// Nothing is removed.
    dry: bool,
    collected: Vec<Collected>,
}

impl Collection {
    /// One that only says what the limits would have go.
    pub fn plan(store: &Store) -> Self {
        Self { dry: true, ..Self::of(store, false) }
    }

    /// What has gone, or what would.
    pub fn collected(&self) -> &[Collected] {
        &self.collected
    }

    /// One that removes nothing.
    pub fn count(store: &Store) -> Self {
        Self::new(store, Goal::Count)
    }

    /// One that holds the store to its limits; and one that also looks for what interrupted ones have
    /// left, which takes longer.
    pub fn of(store: &Store, sweeps: bool) -> Self {
        Self::new(store, Goal::Limits { sweeps })
    }

    pub(super) fn for_room(store: &Store, size: u64) -> Self {
        Self::new(store, Goal::Room(size))
    }

    fn new(store: &Store, goal: Goal) -> Self {
        Self {
            store: store.clone(),
            goal,
            state: State::Begin,
            leased: Leased::default(),
            pinned: BTreeSet::new(),
            ended_leases: Vec::new(),
            entries: Vec::new(),
            arrivals: 0,
            removals: Default::default(),
            counted: Counted::default(),
            dry: false,
            collected: Vec::new(),
        }
    }

    /// Does a little; whether there is more to do. Blocks for some milliseconds. After an error nothing
    /// more is removed.
    pub fn step(&mut self) -> Result<bool, StoreError> {
        let done = self.advance();
        if done.is_err() {
            self.state = State::Done;
        }
        done.map(|()| !matches!(self.state, State::Done))
    }

    /// Does all of it.
    pub(super) fn run(mut self) -> Result<Counted, StoreError> {
        while self.step()? {}
        Ok(self.counted)
    }

    fn advance(&mut self) -> Result<(), StoreError> {
        let state = std::mem::replace(&mut self.state, State::Done);
        self.state = match state {
            State::Begin => {
                let usage = self.store.usage().clone();
                (self.arrivals, self.removals) = (usage.arrivals, usage.collected);
                State::Leases(self.store.lease_names()?)
            }
            State::Leases(mut names) => {
                let rest = names.split_off(LEASES_A_STEP.min(names.len()));
                self.ended_leases.extend(self.store.read_leases(&names, &mut self.leased)?);
                match rest.is_empty() {
                    false => State::Leases(rest),
                    true => {
                        self.pinned = self.store.pins()?.into_iter().map(|pin| pin.payload).collect();
                        State::Census(census::shards(&self.store)?)
                    }
                }
            }
            State::Census(mut shards) => match shards.pop() {
                Some(shard) => {
                    census::count(&self.store, &shard, &mut self.entries)?;
                    State::Census(shards)
                }
                None => State::Choose,
            },
            State::Choose => {
                let doomed = self.choose()?;
                match self.goal {
                    Goal::Count => State::Done,
                    _ if self.dry => {
                        self.collected = doomed.iter().map(Collected::from).collect();
                        State::Done
                    }
                    _ => State::Remove(doomed),
                }
            }
            State::Remove(mut doomed) => {
                let is_left = matches!(self.goal, Goal::Limits { .. }) && !self.ended_leases.is_empty();
                if doomed.is_empty() && !is_left {
                    match self.goal {
                        Goal::Limits { sweeps } if sweeps || self.counted.removed > 0 => {
                            State::Sweep(sweep::Sweep::new(&self.store, sweeps)?)
                        }
                        _ => State::Done,
                    }
                } else {
                    let rest = doomed.split_off(REMOVED_A_STEP.min(doomed.len()));
                    self.remove(&doomed)?;
                    State::Remove(rest)
                }
            }
            State::Sweep(mut sweep) => {
                let kept = |payload: &PayloadDigest| {
                    self.leased.everything
                        || self.leased.payloads.contains(payload)
                        || self.pinned.contains(payload)
                        || self.store.holds().values().any(|held| held.contains(payload))
                };
                match sweep.step(&self.store, kept)? {
                    true => State::Sweep(sweep),
                    false => State::Done,
                }
            }
            State::Done => State::Done,
        };
        Ok(())
    }

    /// What is to go, in the order of its last use.
    fn choose(&mut self) -> Result<Vec<Doomed>, StoreError> {
        let (age, limits) = (self.store.age(), self.store.limits());
        let holds: BTreeSet<PayloadDigest> = self.store.holds().values().flatten().copied().collect();
        let mut counted = Counted::default();
        let mut free_to_go = Vec::new();
        let mut counted_ones = HashSet::with_capacity(self.entries.len());
        for entry in std::mem::take(&mut self.entries) {
            counted.entries += 1;
            counted.bytes += entry.size;
            counted_ones.insert(entry.payload);
            let is_leased = self.leased.everything
                || self.leased.payloads.contains(&entry.payload)
                || holds.contains(&entry.payload);
            let is_pinned = self.pinned.contains(&entry.payload);
            counted.leased += u64::from(is_leased);
            counted.pinned += u64::from(is_pinned);
            if is_leased || is_pinned {
                continue;
            }
            if age.saturating_sub(entry.used) < RECENT {
                counted.recent += 1;
                continue;
            }
            free_to_go.push(entry);
        }
        self.counted = counted;
        let uncounted = self.publish(&counted_ones);
        free_to_go.sort_unstable_by_key(|entry| (entry.used, entry.payload));

        let coming = if let Goal::Room(size) = self.goal { size } else { 0 };
        let space = self.store.root().space()?;
        let mut held = counted.bytes.saturating_add(coming).saturating_add(uncounted);
        let mut free = space.free;
        let least = limits.min_free.bytes(space).saturating_add(coming);
        // Nothing goes for the sake of what does not fit anyway.
        let reachable = held.saturating_sub(free_to_go.iter().map(|entry| entry.size).sum());
        let fits = coming == 0 || reachable <= limits.max_bytes;
        self.counted.fits = fits;
        let mut doomed = Vec::new();
        for entry in free_to_go {
            let expired = age.saturating_sub(entry.used) >= limits.expiry.as_secs();
            let reason = match self.goal {
                _ if held > limits.max_bytes && fits => MAX_BYTES,
                _ if free < least => MIN_FREE,
                Goal::Limits { .. } if expired => EXPIRY,
                _ => break,
            };
            held = held.saturating_sub(entry.size);
            free = free.saturating_add(entry.size);
            doomed.push(Doomed { entry, reason });
        }
        Ok(doomed)
    }

    /// What was counted is known from now on. Gives the bytes of what came in too late to be counted, or
    /// is about to.
    fn publish(&self, counted: &HashSet<PayloadDigest>) -> u64 {
        let counted_at = Some(self.store.clock().wall());
        let mut usage = self.store.usage();
        let is_counted = |of: &&(PayloadDigest, u64)| counted.contains(&of.0);
        let sum =
            |of: Vec<&(PayloadDigest, u64)>| (of.len() as u64, of.iter().map(|(_, size)| size).sum::<u64>());
        let missed = sum(usage.arrived_after(self.arrivals).filter(|of| !is_counted(of)).collect());
        // What is there and has not been said to be is counted when it is: once, however many bring it.
        let early: HashSet<_> =
            usage.arriving.iter().filter(is_counted).filter(|of| !usage.arrived.contains(of)).collect();
        let early = sum(early.into_iter().collect());
        let coming = sum(usage.arriving.iter().filter(|of| !is_counted(of)).collect());
        // Where another thread has removed something meanwhile, nobody knows what of that was counted.
        if usage.collected == self.removals || usage.bytes.is_none() {
            usage.entries = (self.counted.entries + missed.0).saturating_sub(early.0);
            usage.bytes = Some((self.counted.bytes + missed.1).saturating_sub(early.1));
        }
        (usage.leased, usage.pinned) = (self.counted.leased, self.counted.pinned);
        usage.counted_at = counted_at;
        missed.1 + coming.1
    }

    /// Removes a few that nobody has begun to need.
    fn remove(&mut self, doomed: &[Doomed]) -> Result<(), StoreError> {
        let some = REMOVED_A_STEP.min(self.ended_leases.len());
        let ended: Vec<_> = self.ended_leases.drain(..some).collect();
        // Otherwise the next collection finds them again.
        let Some(_alone) = self.store.alone(matches!(self.goal, Goal::Room(_)))? else { return Ok(()) };
        self.store.remove_ended_leases(&ended)?;
        for doomed in doomed {
            let Doomed { entry, reason } = doomed;
            let used = self.store.last_use(&entry.payload).ok().flatten();
            let is_held = self.store.holds().values().any(|held| held.contains(&entry.payload));
            if is_held || used != Some(entry.used) {
                self.counted.missed += 1;
                continue;
            }
            {
                // Before it is gone: who counts meanwhile may count too much by that, and not too little.
                let mut usage = self.store.usage();
                usage.collected[*reason] += 1;
                usage.entries = usage.entries.saturating_sub(1);
                usage.bytes = usage.bytes.map(|bytes| bytes.saturating_sub(entry.size));
            }
            self.store.remove_payload(&entry.payload)?;
            tracing::info!(
                payload = %entry.payload, bytes = entry.size, reason = COLLECTED[*reason],
                "removed a module from the store"
            );
            self.counted.removed += 1;
            self.collected.push(doomed.into());
            self.counted.entries = self.counted.entries.saturating_sub(1);
            self.counted.bytes = self.counted.bytes.saturating_sub(entry.size);
        }
        Ok(())
    }
}

impl Store {
    /// Removes a payload: its views, its bytes, and what is known of it. Nobody else uses the store at the
    /// moment.
    pub(super) fn remove_payload(&self, payload: &PayloadDigest) -> Result<(), StoreError> {
        let hex = payload.hex();
        let blobs = Way::blob(payload).walk(self.root())?;
        // Those of credentials are looked for only where there are any.
        self.remove_views(payload, false)?;
        let found = blobs.as_ref().map(|blobs| blobs.inspect(&hex)).transpose()?.flatten();
        if found.is_none_or(|found| !found.only_name) {
            self.remove_views(payload, true)?;
        }
        if let Some(blobs) = blobs {
            blobs.remove(&hex)?;
        }
        self.remove_traces(payload)
    }

    /// Removes the views of a payload, those of credentials only where `private`.
    pub(super) fn remove_views(&self, payload: &PayloadDigest, private: bool) -> Result<(), StoreError> {
        let name = view_name(payload);
        if let Some(views) = Way::view(&Audience::Public, payload).walk(self.root())? {
            views.remove(&name)?;
        }
        if private && let Some(private) = Way::private().walk(self.root())? {
            for tag in private.names()? {
                if let Some(views) = private.folder(&tag, PASSAGE)? {
                    views.remove(&name)?;
                    // Where another module is left in it, it stays.
                    private.remove_folder(&tag)?;
                }
            }
        }
        Ok(())
    }

    /// Removes what is known of a payload: its last use, and its seal.
    pub(super) fn remove_traces(&self, payload: &PayloadDigest) -> Result<(), StoreError> {
        if let Some(uses) = Way::used(payload).walk(self.root())? {
            uses.remove(&payload.hex())?;
        }
        self.unseal(payload)
    }
}
