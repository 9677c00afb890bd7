//! Which folder holds what, and with which mode. The tree is drawn in the module's own page.

use std::borrow::Cow;

use super::error::StoreError;
use super::fs::{Folder, OWNER_ONLY, PASSAGE};
use super::{Audience, PayloadDigest};

/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// The way from the root to a folder: names with the modes that those folders have.
#[derive(Debug)]
pub(super) struct Way(Vec<(Cow<'static, str>, u32)>);

/// A folder, and the one that it is in.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: Folder,
    pub(super) folder: Folder,
}

impl Place {
    /// The folders to sync, so that a name in this one lasts.
    pub(super) fn folders(&self) -> [&Folder; 2] {
        [&self.folder, &self.parent]
    }
}

impl Way {
    /// The format's version. Another version lives in a folder of its own.
    pub(super) fn version() -> Self {
        Self(vec![(Cow::Owned(Self::version_name(VERSION)), PASSAGE)])
    }

    pub(super) fn version_name(version: u32) -> String {
        format!("v{version}")
    }

    /// In the folder of whatever version: what Envoys may still open of it.
    pub(super) fn leases_of(version: &str) -> Self {
        let version = Self(vec![(Cow::Owned(version.to_owned()), PASSAGE)]);
        version.to("content", OWNER_ONLY).to("leases", OWNER_ONLY)
    }

    /// What only the agent reads.
    pub(super) fn content() -> Self {
        Self::version().to("content", OWNER_ONLY)
    }

    /// Files that are being written.
    pub(super) fn ingest() -> Self {
        Self::content().to("ingest", OWNER_ONLY)
    }

    /// What is being brought, and by whom.
    pub(super) fn flights() -> Self {
        Self::content().to("flights", OWNER_ONLY)
    }

    /// All payloads.
    pub(super) fn blobs() -> Self {
        Self::content().to("blobs", OWNER_ONLY)
    }

    /// The payloads that begin like this one.
    pub(super) fn blob(payload: &PayloadDigest) -> Self {
        Self::blobs().to(first_byte(payload.as_bytes()), OWNER_ONLY)
    }

    /// All records.
    pub(super) fn index() -> Self {
        Self::content().to("index", OWNER_ONLY)
    }

    /// The records whose key begins like this one.
    pub(super) fn record(key: &[u8; 32]) -> Self {
        Self::index().to(first_byte(key), OWNER_ONLY)
    }

    /// What is known of the layers of repositories.
    pub(super) fn layers() -> Self {
        Self::content().to("layers", OWNER_ONLY)
    }

    /// The same of the layers whose keyed hash begins like this one.
    pub(super) fn layer(hash: &[u8; 32]) -> Self {
        Self::layers().to(first_byte(hash), OWNER_ONLY)
    }

    /// What credentials have shown, a folder for each of them and each repository.
    pub(super) fn proofs() -> Self {
        Self::content().to("proofs", OWNER_ONLY)
    }

    /// What is written down for the next start.
    pub(super) fn notes() -> Self {
        Self::content().to("notes", OWNER_ONLY)
    }

    /// What the streams of nodes were last given.
    pub(super) fn leases() -> Self {
        Self::content().to("leases", OWNER_ONLY)
    }

    /// What is to stay.
    pub(super) fn pins() -> Self {
        Self::content().to("pins", OWNER_ONLY)
    }

    /// The last uses of all payloads.
    pub(super) fn uses() -> Self {
        Self::content().to("uses", OWNER_ONLY)
    }

    /// The last uses of the payloads that begin like this one.
    pub(super) fn used(payload: &PayloadDigest) -> Self {
        Self::uses().to(first_byte(payload.as_bytes()), OWNER_ONLY)
    }

    /// What the files of all payloads looked like when they were whole.
    pub(super) fn seals() -> Self {
        Self::content().to("seals", OWNER_ONLY)
    }

    /// The same of the payloads that begin like this one.
    pub(super) fn seal(payload: &PayloadDigest) -> Self {
        Self::seals().to(first_byte(payload.as_bytes()), OWNER_ONLY)
    }

    /// Files whose bytes were wrong.
    pub(super) fn quarantine() -> Self {
        Self::content().to("quarantine", OWNER_ONLY)
    }

    /// The views of what anybody may have.
    pub(super) fn public() -> Self {
        Self::version().to("public", PASSAGE)
    }

    /// The views of what only those with a credential may have.
    pub(super) fn private() -> Self {
        Self::version().to("private", PASSAGE)
    }

    /// The audience's view of a payload.
    pub(super) fn view(audience: &Audience, payload: &PayloadDigest) -> Self {
        match audience {
            Audience::Public => Self::public().to(first_byte(payload.as_bytes()), PASSAGE),
            Audience::Private(tag) => Self::private().to(tag.hex(), PASSAGE),
        }
    }

    pub(super) fn to(mut self, name: impl Into<Cow<'static, str>>, mode: u32) -> Self {
        self.0.push((name.into(), mode));
        self
    }

    /// Goes there, if all of the way exists.
    pub(super) fn walk(&self, root: &Folder) -> Result<Option<Folder>, StoreError> {
        let mut at = root.clone();
        for (name, mode) in &self.0 {
            match at.folder(name, *mode)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Goes there, and makes what is missing of the way.
    pub(super) fn make(&self, root: &Folder) -> Result<Place, StoreError> {
        let mut place = Place { parent: root.clone(), folder: root.clone() };
        for (name, mode) in &self.0 {
            let next = place.folder.make_folder(name, *mode)?;
            place = Place { parent: place.folder, folder: next };
        }
        Ok(place)
    }
}

/// The name of a payload's file in its audience's folder.
pub(super) fn view_name(payload: &PayloadDigest) -> String {
    format!("{}.wasm", payload.hex())
}

fn first_byte(bytes: &[u8; 32]) -> String {
    hex::encode([bytes[0]])
}
