//! Pins: payloads that stay until somebody says otherwise.

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::layout::Way;
use super::small::{read_small, to_json};
use super::{PayloadDigest, Store};

const FORMAT: u32 = 1;
/// The longest pin in bytes that is read.
const LIMIT: u64 = 64 << 10;

/// A payload that stays. Its texts are for people, and must hold no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub payload: PayloadDigest,
    /// Where it came from.
    pub url: String,
    /// Who wants it to stay.
    pub who: String,
}

/// A pin as it lies on disk, under the payload's name.
#[derive(Default, Serialize, Deserialize)]
struct Entry {
    format: u32,
    url: String,
    who: String,
}

impl Store {
    /// Keeps a payload until it is unpinned, durably, in the place of what was written of an earlier pin.
    pub fn pin(&self, pin: &Pin) -> Result<(), StoreError> {
        let entry = Entry { format: FORMAT, url: pin.url.clone(), who: pin.who.clone() };
        let bytes = to_json(&entry)?;
        self.write_small(&Way::pins(), &pin.payload.hex(), &bytes, || {
            // Who is about to remove it looks at this, and not at the pins again.
            self.note_use(&pin.payload);
            Ok(())
        })
    }

    /// Lets a payload go when its time comes; whether it was pinned.
    pub fn unpin(&self, payload: &PayloadDigest) -> Result<bool, StoreError> {
        let Some(folder) = Way::pins().walk(self.root())? else { return Ok(false) };
        let is_pinned = folder.inspect(&payload.hex())?.is_some();
        folder.remove(&payload.hex())?;
        folder.sync()?;
        Ok(is_pinned)
    }

    /// All pins, by payload. One whose texts cannot be read counts as any, without them.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        let Some(folder) = Way::pins().walk(self.root())? else { return Ok(Vec::new()) };
        let mut names = folder.names()?;
        names.sort_unstable();
        let payloads = names.iter().filter_map(|name| Some((name, PayloadDigest::from_hex(name).ok()?)));
        let pin = |(name, payload): (&String, PayloadDigest)| {
            let read = read_small(&folder, name, LIMIT).ok().flatten();
            let entry = read.and_then(|bytes| serde_json::from_slice::<Entry>(&bytes).ok());
            let Entry { url, who, .. } = entry.filter(|entry| entry.format == FORMAT).unwrap_or_default();
            Pin { payload, url, who }
        };
        Ok(payloads.map(pin).collect())
    }
}
