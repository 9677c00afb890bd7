//! What collections leave behind: records of what is gone, proofs that have served their time, and, where
//! one was interrupted, views and last uses and seals without a payload.

use super::REMOVED_A_STEP;
use crate::store::error::StoreError;
use crate::store::fs::{Folder, OWNER_ONLY, PASSAGE};
use crate::store::layout::Way;
use crate::store::{PayloadDigest, Store};

/// What lies in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Records,
    PublicViews,
    PrivateViews,
    Uses,
    Seals,
    Layers,
    Proofs,
}

impl Kind {
    fn way(self) -> Way {
        match self {
            Self::Records => Way::index(),
            Self::PublicViews => Way::public(),
            Self::PrivateViews => Way::private(),
            Self::Uses => Way::uses(),
            Self::Seals => Way::seals(),
            Self::Layers => Way::layers(),
            Self::Proofs => Way::proofs(),
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Records | Self::Uses | Self::Seals | Self::Layers | Self::Proofs => OWNER_ONLY,
            Self::PublicViews | Self::PrivateViews => PASSAGE,
        }
    }
}

/// A sweep under way: the folders that have not been looked at, and what was found in the last one.
#[derive(Debug)]
pub(in crate::store) struct Sweep {
    folders: Vec<(Kind, String)>,
    found: Vec<(Kind, String, String)>,
}

impl Sweep {
    /// Of records, or of all.
    pub(in crate::store) fn new(store: &Store, all: bool) -> Result<Self, StoreError> {
        let mut folders = Vec::new();
        let kinds: &[Kind] = match all {
            true => &[
                Kind::Records,
                Kind::PublicViews,
                Kind::PrivateViews,
                Kind::Uses,
                Kind::Seals,
                Kind::Layers,
                Kind::Proofs,
            ],
            false => &[Kind::Records, Kind::Layers],
        };
        for kind in kinds {
            if let Some(folder) = kind.way().walk(store.root())? {
                folders.extend(folder.names()?.into_iter().map(|name| (*kind, name)));
            }
        }
        Ok(Self { folders, found: Vec::new() })
    }

    /// Looks at one folder, or removes a few files, none of a payload that is `kept`; whether there is
    /// more to do.
    pub(in crate::store) fn step(
        &mut self,
        store: &Store,
        kept: impl Fn(&PayloadDigest) -> bool,
    ) -> Result<bool, StoreError> {
        if !self.found.is_empty() {
            let some = self.found.split_off(self.found.len().saturating_sub(REMOVED_A_STEP));
            if let Some(_alone) = store.alone(false)? {
                for (kind, folder, name) in some {
                    remove(store, kind, &folder, &name, &kept)?;
                }
            }
            return Ok(true);
        }
        let Some((kind, folder)) = self.folders.pop() else { return Ok(false) };
        if let Some(opened) = open(store, kind, &folder)? {
            for name in opened.names()? {
                if is_left(store, kind, &opened, &name, &kept)? {
                    self.found.push((kind, folder.clone(), name));
                }
            }
        }
        Ok(true)
    }
}

fn open(store: &Store, kind: Kind, folder: &str) -> Result<Option<Folder>, StoreError> {
    kind.way().to(folder.to_owned(), kind.mode()).walk(store.root())
}

/// Whether that is all that is left of something.
fn is_left(
    store: &Store,
    kind: Kind,
    folder: &Folder,
    name: &str,
    kept: impl Fn(&PayloadDigest) -> bool,
) -> Result<bool, StoreError> {
    let hex = match kind {
        Kind::Records => return store.is_void_record(folder, name),
        Kind::Layers => return Ok(store.is_void_layer(folder, name)),
        Kind::Proofs => return Ok(store.is_void_proof(folder, name)),
        Kind::PublicViews | Kind::PrivateViews => name.strip_suffix(".wasm").unwrap_or_default(),
        Kind::Uses | Kind::Seals => name,
    };
    let Ok(payload) = PayloadDigest::from_hex(hex) else { return Ok(false) };
    if kept(&payload) {
        return Ok(false);
    }
    let blobs = Way::blob(&payload).walk(store.root())?;
    let blob = blobs.map(|blobs| blobs.inspect(hex)).transpose()?.flatten();
    Ok(blob.is_none())
}

/// Removes it, if it is still so. Nobody else uses the store at the moment.
fn remove(
    store: &Store,
    kind: Kind,
    folder: &str,
    name: &str,
    kept: impl Fn(&PayloadDigest) -> bool,
) -> Result<(), StoreError> {
    let Some(opened) = open(store, kind, folder)? else { return Ok(()) };
    if is_left(store, kind, &opened, name, kept)? {
        opened.remove(name)?;
    }
    if let Kind::PrivateViews | Kind::Proofs = kind
        && let Some(all) = kind.way().walk(store.root())?
    {
        // Where something is left in it, it stays.
        all.remove_folder(folder)?;
    }
    Ok(())
}
