//! How much there is in the store, and room for what comes in.

use std::collections::VecDeque;
use std::sync::{MutexGuard, PoisonError};
use std::time::SystemTime;

use super::collect::{COLLECTED, Collection, Counted};
use super::error::StoreError;
use super::fs::Found;
use super::layout::Way;
use super::{PayloadDigest, Store};

/// So much is tried to be had at least where the file system is full, in bytes.
const AT_ONCE: u64 = 16 << 20;

/// How often room is looked for while others take what was found.
const TRIES: usize = 8;
/// So many payloads that came in last are known by name. Counting takes less time than they.
const ARRIVED: usize = 1024;

/// What is in the store, as far as this process knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    pub(super) entries: u64,
    /// None until they were first counted.
    pub(super) bytes: Option<u64>,
    /// What is about to come in, and its bytes.
    pub(super) arriving: Vec<(PayloadDigest, u64)>,
    /// What came in, so that one who counts meanwhile misses none: the last ones, of so many.
    pub(super) arrived: VecDeque<(PayloadDigest, u64)>,
    pub(super) arrivals: u64,
    pub(super) leased: u64,
    pub(super) pinned: u64,
    pub(super) collected: [u64; COLLECTED.len()],
    pub(super) counted_at: Option<SystemTime>,
    /// How many went to quarantine.
    pub(super) damaged: u64,
}

impl Usage {
    /// Those that came in after there had been so many.
    pub(super) fn arrived_after(&self, arrivals: u64) -> impl Iterator<Item = &(PayloadDigest, u64)> {
        let since = usize::try_from(self.arrivals - arrivals).unwrap_or(usize::MAX);
        self.arrived.iter().skip(self.arrived.len().saturating_sub(since))
    }

    /// What was about to come in is there, or will not come.
    fn has_come(&mut self, payload: PayloadDigest, size: u64) {
        if let Some(index) = self.arriving.iter().position(|room| *room == (payload, size)) {
            self.arriving.swap_remove(index);
        }
    }

    fn reserved(&self) -> u64 {
        self.arriving.iter().map(|(_, size)| size).sum()
    }
}

/// Room for a payload, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    store: Store,
    payload: PayloadDigest,
    size: u64,
    is_kept: bool,
}

impl Room {
    /// A payload of this size is in the store now. In one step: nobody counts it as coming too.
    pub(super) fn keep(mut self) {
        let store = self.store.clone();
        let mut usage = store.usage();
        usage.entries += 1;
        usage.bytes = usage.bytes.map(|bytes| bytes.saturating_add(self.size));
        usage.arrivals += 1;
        usage.arrived.push_back((self.payload, self.size));
        if usage.arrived.len() > ARRIVED {
            usage.arrived.pop_front();
        }
        usage.has_come(self.payload, self.size);
        self.is_kept = true;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.is_kept {
            self.store.usage().has_come(self.payload, self.size);
        }
    }
}

impl Store {
    pub(super) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.0.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who is about to write about so many bytes: removes what may be removed, if that is needed to
    /// have room for them. Whether there is room shows when they are committed.
    pub fn make_room(&self, size: u64) {
        let limits = self.limits();
        let known = self.usage().bytes;
        let is_tight = || {
            let space = self.root().space().ok();
            space.is_some_and(|space| space.free < limits.min_free.bytes(space).saturating_add(size))
        };
        if (known.is_some_and(|bytes| bytes.saturating_add(size) > limits.max_bytes) || is_tight())
            && let Err(error) = self.collect_for(size)
        {
            tracing::warn!("cannot make room in the store: {error}");
        }
    }

    /// The file system is full after so many bytes: whether something could be removed.
    pub(super) fn free_some(&self, written: u64) -> bool {
        match self.collect_for(written.max(AT_ONCE)) {
            Ok(counted) => counted.removed > 0,
            Err(error) => {
                tracing::warn!("cannot make room in the store: {error}");
                false
            }
        }
    }

    /// Room below the limit for a payload that is about to get its place. None is taken for one that is
    /// there already.
    pub(super) fn reserve(&self, payload: &PayloadDigest, size: u64) -> Result<Room, StoreError> {
        let nothing = || Room { store: self.clone(), payload: *payload, size: 0, is_kept: false };
        if let Some(blobs) = Way::blob(payload).walk(self.root())?
            && blobs.find(&payload.hex())? != Found::Nothing
        {
            return Ok(nothing());
        }
        if let Some(room) = self.take_room(payload, size) {
            return Ok(room);
        }
        let _one = self.making_room();
        let mut counted = Counted::default();
        for _ in 0..TRIES {
            counted = Collection::for_room(self, size).run()?;
            if let Some(room) = self.take_room(payload, size) {
                return Ok(room);
            }
            // Otherwise another one was quicker, or what was counted is gone or needed by now.
            if !counted.fits && (counted.removed, counted.missed) == (0, 0) {
                break;
            }
        }
        let limit = self.limits().max_bytes;
        let Counted { bytes: held, entries: modules, leased, pinned, recent, .. } = counted;
        let full = StoreError::Full { size, limit, held, modules, leased, pinned, recent };
        Err(full)
    }

    fn take_room(&self, payload: &PayloadDigest, size: u64) -> Option<Room> {
        let limit = self.limits().max_bytes;
        let mut usage = self.usage();
        usage.bytes?.checked_add(usage.reserved())?.checked_add(size).filter(|sum| *sum <= limit)?;
        usage.arriving.push((*payload, size));
        Some(Room { store: self.clone(), payload: *payload, size, is_kept: false })
    }

    fn collect_for(&self, size: u64) -> Result<Counted, StoreError> {
        let _one = self.making_room();
        Collection::for_room(self, size).run()
    }

    fn making_room(&self) -> MutexGuard<'_, ()> {
        self.0.making_room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
