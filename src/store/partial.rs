//! What an interrupted pull leaves in `ingest/` for the next one: the beginning of a payload whose digest
//! and size were promised, under a keyed hash of who pulled it and of that digest. Only who shows the same
//! credential goes on with it, and never without asking the source for something: the last byte is always
//! asked for again, so that the source has its say about every pull.
//!
//! Nothing of it was synced, and nothing says that it is right. It is hashed again before it is continued,
//! and the digest of the whole decides. One that has a second name is a module already, and is not
//! written to.

use std::cmp::Reverse;
use std::io::Read as _;
use std::time::UNIX_EPOCH;

use super::error::StoreError;
use super::fs::{Folder, Inspected, SECRET};
use super::ingest::Ingest;
use super::key::Purpose;
use super::layout::Way;
use super::temporary::Temporary;
use super::{Audience, Store};
use crate::clock::Clock;
use crate::digest::{BlobDigest, Hasher};

/// How the names of such files begin. What else is being written has a digit there.
const PREFIX: &str = "part-";
/// How long one waits for somebody to go on with it, in seconds. By the wall clock: one that jumps costs a
/// download.
const MAX_AGE: u64 = 24 * 60 * 60;
/// How many there are at the most, and with how many bytes in all; the newest ones stay.
const MAX_COUNT: usize = 16;
const MAX_BYTES: u64 = 1 << 30;

impl Store {
    /// Begins to write the payload with this digest and size in bytes, or goes on with what an earlier
    /// pull of the same audience left of it: [`Ingest::size`] says from where. Unless it is finished or
    /// [discarded](Ingest::discard), what it has stays for the next pull.
    pub fn resume(&self, audience: &Audience, digest: &BlobDigest, size: u64) -> Result<Ingest, StoreError> {
        let folder = Way::ingest().make(self.root())?.folder;
        let name = audience.name();
        let hash = self.key().hash(Purpose::Partial, &[name.as_bytes(), digest.as_bytes()]);
        let name = format!("{PREFIX}{}", hex::encode(hash));
        match Temporary::reopen(&folder, &name) {
            Ok(Some(file)) => match take_over(&file, size) {
                Ok((hash, at)) => return Ok(Ingest::resumed(self, file, hash, at)),
                Err(error) => tracing::debug!(%error, "cannot go on with what an earlier pull left"),
            },
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "cannot go on with what an earlier pull left"),
        }
        // What is left meanwhile has the same bounds as at a start.
        if let Err(error) = sweep(&folder, seconds(&self.0.clock)) {
            tracing::debug!(%error, "cannot sweep what earlier pulls left");
        }
        // Somebody may be at it right now, who is then the one to leave something.
        match Temporary::create_named(&folder, &name, SECRET)? {
            Some(file) => Ok(Ingest::resumed(self, file, Hasher::default(), 0)),
            None => self.ingest(),
        }
    }
}

/// Hashes what there is, and cuts it off where the source is to be asked from.
fn take_over(file: &Temporary, size: u64) -> Result<(Hasher, u64), StoreError> {
    let file = file.file();
    let stat = file.stat()?;
    let there = u64::try_from(stat.st_size).unwrap_or(0);
    let keep = there.min(size.saturating_sub(1));
    if keep < there {
        file.truncate(keep)?;
    }
    let mut hash = Hasher::default();
    let mut reader = file.duplicate()?.reader().take(keep);
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(StoreError::from_io)?;
        if read == 0 {
            break;
        }
        hash.update(buffer.get(..read).unwrap_or_default());
        at += read as u64;
    }
    Ok((hash, at))
}

/// The wall time, in seconds.
pub(super) fn seconds(clock: &Clock) -> u64 {
    clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether a name is of such a file.
pub(super) fn is_partial(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Removes those that are too old or too many; says how many. Those that are being written stay.
/// `now` is the wall time, in seconds.
pub(super) fn sweep(folder: &Folder, now: u64) -> Result<usize, StoreError> {
    let mut found = Vec::new();
    for name in folder.names()?.into_iter().filter(|name| is_partial(name)) {
        if let Some(seen) = folder.inspect(&name)? {
            found.push((seen, name));
        }
    }
    found.sort_by_key(|(seen, _)| Reverse(seen.stamp));
    let (mut count, mut bytes, mut swept) = (0, 0u64, 0);
    for (Inspected { stamp, size, mode, only_name }, name) in found {
        let is_old = now.abs_diff(stamp) > MAX_AGE;
        let fits = count < MAX_COUNT && bytes.saturating_add(size) <= MAX_BYTES;
        if mode == SECRET && only_name && !is_old && fits {
            count += 1;
            bytes += size;
        } else if let Some(file) = folder.open(&name)?
            && file.try_lock()?
        {
            folder.remove(&name)?;
            swept += 1;
        }
    }
    Ok(swept)
}
