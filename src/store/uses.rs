//! When a payload was last used: the time of an empty file, in the store's own age. Never that of the
//! payload itself, which tells whether somebody has touched it.
//!
//! Hints, and on the safe side: what has no such file was used just now.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use super::error::StoreError;
use super::fs::SECRET;
use super::layout::Way;
use super::{PayloadDigest, Store};

/// What was used so short a time ago, in seconds of age, is not written down again. Much less than
/// [`RECENT`].
const AGAIN: u64 = 60;

/// What was used within so many seconds of age is never removed: who was given its path has had no time
/// yet to have it leased.
pub(super) const RECENT: u64 = 600;

/// Payloads of which this process remembers when it wrote down their last use, at most.
const REMEMBERED: usize = 4096;

/// When this process last wrote down, or saw, that payloads are used, in seconds of age.
#[derive(Debug, Default)]
pub(super) struct Noted(HashMap<PayloadDigest, u64>);

impl Noted {
    fn has(&self, payload: &PayloadDigest, age: u64) -> bool {
        self.0.get(payload).is_some_and(|noted| *noted <= age && age - noted < AGAIN)
    }

    fn add(&mut self, payload: &PayloadDigest, age: u64) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(payload) {
            self.0.retain(|_, noted| *noted <= age && age - *noted < AGAIN);
        }
        if self.0.len() < REMEMBERED {
            self.0.insert(*payload, age);
        }
    }
}

impl Store {
    /// Writes down that a payload is used. Call it with a share of the lock. Where it cannot be written
    /// down, what is there stays, which is logged alone: a store that cannot be written to removes
    /// nothing either.
    pub(super) fn note_use(&self, payload: &PayloadDigest) {
        if self.is_noted(payload) {
            return;
        }
        if let Err(error) = self.stamp_use(payload) {
            tracing::debug!(%payload, "cannot write down that it is used: {error}");
        }
    }

    /// Whether this process has just written that down, so that nobody removes it for a while.
    pub(super) fn is_noted(&self, payload: &PayloadDigest) -> bool {
        self.noted().has(payload, self.age())
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, whatever is remembered, for who can do without the payload.
    pub(super) fn stamp_use(&self, payload: &PayloadDigest) -> Result<(), StoreError> {
        let (name, age) = (payload.hex(), self.age());
        let folder = match Way::used(payload).walk(self.root())? {
            Some(folder) => folder,
            None => Way::used(payload).make(self.root())?.folder,
        };
        let known = folder.inspect(&name)?;
        if let Some(known) = known
            && known.stamp <= age
            && age - known.stamp < AGAIN
        {
            self.noted().add(payload, known.stamp);
            return Ok(());
        }
        if known.is_none() {
            match folder.create(&name) {
                Ok(file) => file.set_mode(SECRET)?,
                // Another process was as quick.
                Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        folder.stamp(&name, age)?;
        self.noted().add(payload, age);
        Ok(())
    }

    /// When a payload was last used, in seconds of age, where that is known.
    pub(super) fn last_use(&self, payload: &PayloadDigest) -> Result<Option<u64>, StoreError> {
        let Some(folder) = Way::used(payload).walk(self.root())? else { return Ok(None) };
        Ok(folder.inspect(&payload.hex())?.map(|known| known.stamp))
    }
}
