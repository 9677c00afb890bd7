//! The store: modules on disk, each once under the SHA-256 of its own bytes, and views of them for
//! those who may have them. Synchronous: callers on a runtime use its blocking threads. It knows
//! neither the network nor Wasm.
//!
//! ```text
//! DIRECTORY/                     ours, written by nobody else
//!   v1/                     0711 the format's version, locked by all who use it; newer ones are left alone
//!     content/              0700
//!       blobs/HH/HEX        0444 each payload once; HEX its SHA-256, HH the first two digits
//!       index/HH/HEX.json   0600 one record; HEX a keyed hash of who asks and for what
//!       ingest/PID-RANDOM        what is being written, locked by its writer
//!       ingest/part-HEX     0600 the same where it can be continued; stays for the next pull
//!       flights/HEX         0600 what is being brought, locked by who does; HEX a keyed hash
//!       notes/HEX.json      0600 what the agent wrote down for its next start
//!       key                 0600 32 random bytes
//!     public/HH/HEX.wasm    0444 view for everybody: a hard link into blobs
//!     private/TAG/HEX.wasm  0444 view for one credential; TAG a keyed hash of it
//! ```
//!
//! Folders outside of `content` have mode 0711: an Envoy of another user opens the path that it was
//! given and cannot list what others were given.
//!
//! A payload is written to `ingest`, hashed as it streams, synced, linked into `blobs`, linked into
//! the view, and the folders are synced. A name outside of `ingest` thus never stands for less than
//! the whole module. Any number of processes and threads of one user may do this at once: names
//! appear in one step, the loser of a race uses the winner's file, and the only locks are those on
//! files in `ingest` (`temporary.rs`) and in `flights` (`claim.rs`), and one that all share on the
//! version's folder (`versions.rs`). A folder that somebody removes from under a running process
//! is made again.

mod claim;
mod content;
mod error;
mod file;
mod follow;
mod fs;
mod index;
mod ingest;
mod key;
mod layout;
mod notes;
mod observer;
mod partial;
mod temporary;
#[cfg(test)]
mod tests;
mod versions;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

pub use self::claim::Claim;
pub use self::error::{Operation, StoreError};
pub use self::follow::Following;
pub use self::index::PreparedRecord;
pub use self::ingest::{Finished, Ingest};
pub use self::notes::NOTE_LIMIT;

use self::fs::{Folder, sync_together};
use self::key::{Key, Purpose};
use self::layout::Way;
use self::observer::Observer;
use crate::clock::Clock;
use crate::digest::{PayloadDigest, SourceDigest};

/// Where the store is.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Made with its parents where it is missing. May be reached through links; nothing below it may.
    pub directory: PathBuf,
}

/// An open store. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Folder,
    key: Key,
    entries: AtomicU64,
    dropped_records: AtomicU64,
    clock: Clock,
    /// Locked for as long as the store is open.
    _version: Folder,
}

/// Stands for a credential: a keyed hash, which only this store makes and which leads back to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialTag([u8; 32]);

/// Who may have a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Audience {
    /// Everybody: it was fetched without a credential.
    Public,
    /// Those who show the credential that it was fetched with.
    Private(CredentialTag),
}

/// What the index remembers of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub payload: PayloadDigest,
    /// What the source served: the manifest's digest, or the body's.
    pub source: SourceDigest,
    /// Bytes of the payload.
    pub size: u64,
    pub resource_version: Option<String>,
    /// Wall time, kept to the second.
    pub fetched_at: SystemTime,
    /// For people. Must hold no secret: the caller leaves queries out.
    pub url: String,
}

/// A module in the store, as one audience sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Absolute, and UTF-8.
    pub path: PathBuf,
    pub payload: PayloadDigest,
    /// Bytes.
    pub size: u64,
}

/// Counts for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Payloads: those found when the store was opened, and those put there by this process since.
    pub entries: u64,
    pub dropped_records: u64,
}

impl Store {
    /// Opens the store, makes what is missing of it, and removes what dead processes left in
    /// `ingest`. Refuses a folder that is another user's, that others may write to, that is on a
    /// read-only file system, or in which a link stands for a folder.
    pub fn open(config: &StoreConfig, clock: Clock) -> Result<Self, StoreError> {
        Self::open_observed(config, clock, Observer::default())
    }

    fn open_observed(config: &StoreConfig, clock: Clock, observer: Observer) -> Result<Self, StoreError> {
        let started = clock.now();
        let root = fs::open_root(&config.directory, observer)?;
        let version = versions::enter(&root)?;
        versions::look_at_others(&root)?;
        let content = Way::content().make(&root)?;
        let blobs = Way::blobs().make(&root)?.folder;
        let ingest = Way::ingest().make(&root)?.folder;
        for way in [Way::index(), Way::public(), Way::private()] {
            way.make(&root)?;
        }
        let now = partial::seconds(&clock);
        let mut swept = temporary::sweep(&ingest, now)? + partial::sweep(&ingest, now)?;
        if let Some(flights) = Way::flights().walk(&root)? {
            swept += temporary::sweep(&flights, now)?;
        }
        let key = Key::load(&content.folder, &ingest)?;
        sync_together(&[&root, &content.parent, &content.folder])?;
        let mut entries = 0;
        for name in blobs.names()? {
            let folder = blobs.folder(&name, fs::OWNER_ONLY)?;
            entries += folder.map(|folder| folder.names()).transpose()?.unwrap_or_default().len() as u64;
        }
        let took = clock.now().saturating_duration_since(started);
        tracing::debug!(directory = %root.path().display(), entries, swept, ?took, "opened the store");
        let (entries, dropped_records) = (AtomicU64::new(entries), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { root, key, entries, dropped_records, clock, _version: version })))
    }

    /// What stands for a credential in this store.
    pub fn fingerprint(&self, credential: &[u8]) -> CredentialTag {
        CredentialTag(self.key().hash(Purpose::Credential, &[credential]))
    }

    /// Counts for the metrics; reads no disk.
    pub fn stats(&self) -> Stats {
        Stats { entries: self.0.entries.load(Ordering::Relaxed), dropped_records: self.dropped_records() }
    }

    /// The absolute path of the store's folder, all links resolved.
    pub fn directory(&self) -> &Path {
        self.0.root.path()
    }

    fn root(&self) -> &Folder {
        &self.0.root
    }

    fn key(&self) -> &Key {
        &self.0.key
    }
}

impl Audience {
    /// What stands for it in a keyed hash.
    fn name(&self) -> String {
        match self {
            Audience::Public => "public".to_owned(),
            Audience::Private(tag) => format!("private:{}", tag.hex()),
        }
    }
}

impl CredentialTag {
    /// 64 lower-case hex digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for CredentialTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialTag({})", self.hex())
    }
}
