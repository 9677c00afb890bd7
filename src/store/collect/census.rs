//! What is in the store: each payload, with its size and its last use.

use crate::store::error::StoreError;
use crate::store::fs::OWNER_ONLY;
use crate::store::layout::Way;
use crate::store::uses::RECENT;
use crate::store::{PayloadDigest, Store};

/// A payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) payload: PayloadDigest,
    /// Bytes.
    pub(super) size: u64,
    /// In the store's age.
    pub(super) used: u64,
}

/// The folders that payloads lie in.
pub(super) fn shards(store: &Store) -> Result<Vec<String>, StoreError> {
    Way::blobs().walk(store.root())?.map_or_else(|| Ok(Vec::new()), |blobs| blobs.names())
}

/// Adds the payloads of one folder.
pub(super) fn count(store: &Store, shard: &str, entries: &mut Vec<Entry>) -> Result<(), StoreError> {
    let Some(blobs) = Way::blobs().to(shard.to_owned(), OWNER_ONLY).walk(store.root())? else {
        return Ok(());
    };
    for name in blobs.names()? {
        let Ok(payload) = PayloadDigest::from_hex(&name) else { continue };
        let size = match blobs.inspect(&name) {
            Ok(Some(found)) => found.size,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!("not counted, and never removed: {error}");
                continue;
            }
        };
        entries.push(Entry { payload, size, used: last_use(store, &payload) });
    }
    Ok(())
}

/// When it was last used. Where that is not known, or cannot be, it is now.
fn last_use(store: &Store, payload: &PayloadDigest) -> u64 {
    let age = store.age();
    match store.last_use(payload) {
        // Another process may be a little ahead of us.
        Ok(Some(used)) if used <= age.saturating_add(RECENT) => used.min(age),
        _ => {
            if let Ok(_used) = store.in_use() {
                store.note_use(payload);
            }
            age
        }
    }
}
