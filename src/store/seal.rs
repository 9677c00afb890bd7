//! Seals: of each payload, what its file looked like when its bytes were last known to be right. As long as
//! it looks the same (inode, device, size, times of the last write and of the last change), nobody has
//! written to it, and it is handed out without being hashed again. A backup that was restored, or a folder
//! that was moved to another disk, fits no seal; nor does a file that got another name since.
//!
//! Hints, on the safe side: a seal that is lost, torn or old costs a hash. So none is synced. What a disk
//! does to bytes behind the file system's back no seal shows: `verify.rs` looks for that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::fs::{Identity, SECRET};
use super::layout::Way;
use super::partial::seconds;
use super::small::{read_small, to_json};
use super::temporary::Temporary;
use super::{PayloadDigest, Store};

const FORMAT: u32 = 1;
/// The longest seal in bytes that is read.
const LIMIT: u64 = 4 << 10;
/// So many files this process knows to be right without a look at their seals; then it begins again.
const KNOWN: usize = 16 << 10;

/// A seal as it lies on disk, under the payload's name.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    file: Identity,
    /// When the bytes were hashed, in seconds since 1970.
    verified: u64,
}

impl Store {
    /// Whether this file of a payload is known to have the right bytes.
    pub(super) fn is_sealed(&self, payload: &PayloadDigest, file: &Identity) -> bool {
        if self.is_known_whole(payload, file) {
            return true;
        }
        let is_sealed = self.read_seal(payload).is_some_and(|entry| entry.file == *file);
        if is_sealed {
            self.know_whole(payload, file);
        }
        is_sealed
    }

    /// Whether this process knows so.
    pub(super) fn is_known_whole(&self, payload: &PayloadDigest, file: &Identity) -> bool {
        self.whole().get(payload) == Some(file)
    }

    /// When its bytes were last hashed, where nobody has written to them since, by wall time.
    pub(super) fn verified_at(&self, payload: &PayloadDigest, file: &Identity) -> Option<SystemTime> {
        let entry = self.read_seal(payload).filter(|entry| entry.file == *file)?;
        UNIX_EPOCH.checked_add(Duration::from_secs(entry.verified))
    }

    /// Seals the file of a payload, whose bytes were hashed just now.
    pub(super) fn seal(&self, payload: &PayloadDigest, file: &Identity) {
        self.write_seal(payload, file, seconds(self.clock()));
    }

    /// Seals the file that a payload has, if it is one of these, whose bytes are right. It may have got
    /// other names since.
    pub(super) fn seal_what_is(&self, payload: &PayloadDigest, right: [Option<Identity>; 2]) {
        let there = || Way::blob(payload).walk(self.root()).ok()??.sound(&payload.hex()).ok()?;
        let Some(file) = there().filter(|file| right.iter().flatten().any(|of| of.has_bytes_of(file))) else {
            return;
        };
        let known = self.read_seal(payload).filter(|entry| entry.file.has_bytes_of(&file));
        if known.as_ref().is_none_or(|entry| entry.file != file) {
            let verified = known.map_or_else(|| seconds(self.clock()), |entry| entry.verified);
            self.write_seal(payload, &file, verified);
        }
    }

    /// Forgets that its bytes were right.
    pub(super) fn unseal(&self, payload: &PayloadDigest) -> Result<(), StoreError> {
        self.whole().remove(payload);
        match Way::seal(payload).walk(self.root())? {
            Some(folder) => folder.remove(&payload.hex()),
            None => Ok(()),
        }
    }

    fn know_whole(&self, payload: &PayloadDigest, file: &Identity) {
        let mut whole = self.whole();
        if whole.len() >= KNOWN {
            whole.clear();
        }
        whole.insert(*payload, *file);
    }

    fn read_seal(&self, payload: &PayloadDigest) -> Option<Entry> {
        let folder = Way::seal(payload).walk(self.root()).ok()??;
        let bytes = read_small(&folder, &payload.hex(), LIMIT).ok()??;
        serde_json::from_slice::<Entry>(&bytes).ok().filter(|entry| entry.format == FORMAT)
    }

    fn write_seal(&self, payload: &PayloadDigest, file: &Identity, verified: u64) {
        self.know_whole(payload, file);
        let write = || -> Result<(), StoreError> {
            let entry = Entry { format: FORMAT, file: *file, verified };
            let bytes = to_json(&entry)?;
            let folder = match Way::seal(payload).walk(self.root())? {
                Some(folder) => folder,
                None => Way::seal(payload).make(self.root())?.folder,
            };
            let mut file = Temporary::create(&Way::ingest().make(self.root())?.folder, SECRET)?;
            file.file().write_all(&bytes)?;
            file.rename(&folder, &payload.hex())
        };
        if let Err(error) = write() {
            tracing::debug!(%payload, "cannot write down that it is whole: {error}");
        }
    }
}
