//! What the layers of repositories turned out to hold, whoever brought them. A hint that saves the next one
//! who may read a layer its download: of a digest alone nobody can tell what is packed in it.
//!
//! It is written by who has had all of a layer from that very repository. So a registry of somebody else's
//! that says it has a layer, whose digest somebody has heard of, leads to nothing.
//!
//! None is synced: one that is lost costs a download, and one that is torn is no record.

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::fs::Folder;
use super::key::Purpose;
use super::layout::Way;
use super::small::{read_small, to_json};
use super::{PayloadDigest, Store};

const FORMAT: u32 = 1;
/// The longest record in bytes that is read.
const LIMIT: u64 = 4 << 10;

/// A record as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    /// Its own name: one that came to lie under another's is found out.
    layer: String,
    payload: String,
}

impl Store {
    /// Remembers what a layer holds. `layer` says which, in which repository, and how it is packed.
    pub fn remember_layer(&self, layer: &str, payload: &PayloadDigest) -> Result<(), StoreError> {
        let hash = self.layer_hash(layer);
        let name = hex::encode(hash);
        let entry = Entry { format: FORMAT, layer: name.clone(), payload: payload.to_string() };
        let bytes = to_json(&entry)?;
        drop(self.place_small(&Way::layer(&hash), &name, &bytes, || Ok(()))?);
        Ok(())
    }

    /// The payload that a layer holds, where the store has it. It says nothing of who may have it.
    pub fn payload_of_layer(&self, layer: &str) -> Result<Option<PayloadDigest>, StoreError> {
        let hash = self.layer_hash(layer);
        let Some(folder) = Way::layer(&hash).walk(self.root())? else { return Ok(None) };
        match read(&folder, &hex::encode(hash)) {
            Ok(None) => Ok(None),
            Ok(Some(Some(payload))) => Ok(Some(payload).filter(|payload| self.has(payload))),
            Ok(Some(None)) | Err(_) => {
                self.drop_record();
                Ok(None)
            }
        }
    }

    /// Whether this is a record of what is no longer there, or none at all.
    pub(super) fn is_void_layer(&self, folder: &Folder, name: &str) -> bool {
        !matches!(read(folder, name), Ok(Some(Some(payload))) if self.has(&payload))
    }

    /// Whether something lies where the payload would, whatever it is worth.
    pub(super) fn has(&self, payload: &PayloadDigest) -> bool {
        let blobs = Way::blob(payload).walk(self.root()).ok().flatten();
        blobs.is_some_and(|blobs| !matches!(blobs.inspect(&payload.hex()), Ok(None)))
    }

    fn layer_hash(&self, layer: &str) -> [u8; 32] {
        self.key().hash(Purpose::Layer, &[layer.as_bytes()])
    }
}

/// None inside where it cannot be understood.
fn read(folder: &Folder, name: &str) -> Result<Option<Option<PayloadDigest>>, StoreError> {
    let Some(bytes) = read_small(folder, name, LIMIT)? else { return Ok(None) };
    let entry = serde_json::from_slice::<Entry>(&bytes).ok();
    let entry = entry.filter(|entry| entry.format == FORMAT && entry.layer == name);
    Ok(Some(entry.and_then(|entry| entry.payload.parse().ok())))
}
