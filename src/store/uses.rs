//! When a payload was last used: the time of an empty file, in the store's own age. Never that of the
//! payload itself, which tells whether somebody has touched it.
//!
//! Hints, and on the safe side: what has no such file was used just now.

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

impl Store {
    /// Writes down that a payload is used. Call it with a share of the lock. Where it cannot be written
    /// down, what is there stays, which is logged alone: a store that cannot be written to removes
    /// nothing either.
    pub(super) fn note_use(&self, payload: &PayloadDigest) {
        if let Err(error) = self.stamp_use(payload) {
            tracing::debug!(%payload, "cannot write down that it is used: {error}");
        }
    }

    /// The same, for who can do without the payload.
    pub(super) fn stamp_use(&self, payload: &PayloadDigest) -> Result<(), StoreError> {
        let (name, age) = (payload.hex(), self.age());
        let folder = match Way::used(payload).walk(self.root())? {
            Some(folder) => folder,
            None => Way::used(payload).make(self.root())?.folder,
        };
        let known = folder.inspect(&name)?;
        if known.is_some_and(|known| known.stamp <= age && age - known.stamp < AGAIN) {
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
        folder.stamp(&name, age).map(|_| ())
    }

    /// When a payload was last used, in seconds of age, where that is known.
    pub(super) fn last_use(&self, payload: &PayloadDigest) -> Result<Option<u64>, StoreError> {
        let Some(folder) = Way::used(payload).walk(self.root())? else { return Ok(None) };
        Ok(folder.inspect(&payload.hex())?.map(|known| known.stamp))
    }
}
