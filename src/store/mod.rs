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
//!       layers/HH/HEX       0600 which payload a repository's layer holds; HEX a keyed hash of the two
//!       proofs/HEX/HEX      0600 what a credential was shown to read in a repository; keyed hashes of them
//!       ingest/PID-RANDOM        what is being written, locked by its writer
//!       ingest/part-HEX     0600 the same where it can be continued; stays for the next pull
//!       flights/HEX         0600 what is being brought, locked by who does; HEX a keyed hash
//!       notes/HEX.json      0600 what the agent wrote down for its next start
//!       leases/HEX.json     0600 what a node was given; HEX a keyed hash of which
//!       pins/HEX            0600 a payload that stays
//!       uses/HH/HEX         0600 empty; its time is the last use of a payload, in the store's age
//!       seals/HH/HEX        0600 what a payload's file looked like when it was last known to be whole
//!       quarantine/HEX-TIME 0444 what turned out to have other bytes than its name says
//!       age                 0600 seconds during which an agent was ready
//!       age.lock            0600 locked by the agent that counts them
//!       lock                0600 shared by those who use something, and not by those who remove it
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
//! appear in one step, the loser of a race uses the winner's file, and what is removed (`collect/`) is
//! removed while nobody uses the store. The locks and their order are in `lock.rs`; files in `ingest`
//! (`temporary.rs`) and in `flights` (`claim.rs`) have their own, and all share one on the version's folder
//! (`versions.rs`). A folder that somebody removes from under a running process is made again.

mod age;
mod claim;
mod collect;
mod content;
mod error;
mod file;
mod follow;
mod foreign;
mod fs;
mod index;
mod ingest;
mod inventory;
mod key;
mod layers;
mod layout;
mod lease;
mod limits;
mod lock;
mod lower;
mod notes;
mod observer;
mod partial;
mod pins;
mod proofs;
mod room;
mod seal;
mod small;
mod temporary;
#[cfg(test)]
mod tests;
mod uses;
mod verify;
mod versions;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

pub use self::claim::Claim;
pub use self::collect::{COLLECTED, Collected, Collection};
pub use self::content::Sighting;
pub use self::error::{Operation, StoreError};
pub use self::follow::Following;
pub use self::index::PreparedRecord;
pub use self::ingest::{Finished, Ingest};
pub use self::inventory::{Holding, Remembering, Removal};
pub use self::lease::{Lease, View, Views};
pub use self::limits::{Limits, MinFree};
pub use self::lower::Lower;
pub use self::notes::NOTE_LIMIT;
pub use self::pins::Pin;
pub use self::proofs::Proof;
pub use self::small::Unsynced;
pub use self::verify::{Damage, Verification, Verified};

use self::age::Aging;
use self::fs::{Folder, Identity, sync_together};
use self::key::{Key, Purpose};
use self::layout::Way;
use self::lease::Holds;
use self::observer::Observer;
use self::room::Usage;
use self::uses::Noted;
use crate::clock::Clock;
use crate::digest::{PayloadDigest, SourceDigest};
use crate::module::Validators;

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
    clock: Clock,
    limits: RwLock<Limits>,
    /// Where other stores are.
    lower: RwLock<Vec<PathBuf>>,
    aging: Mutex<Aging>,
    noted: Mutex<Noted>,
    /// What this process keeps for its streams.
    holds: Mutex<Holds>,
    usage: Mutex<Usage>,
    /// Files that this process knows to have the right bytes.
    whole: Mutex<HashMap<PayloadDigest, Identity>>,
    /// One thread at a time hashes a payload again.
    checking: Mutex<()>,
    /// One thread at a time makes room for what comes in.
    making_room: Mutex<()>,
    dropped_records: AtomicU64,
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
    /// Empty for what no http server gave any with.
    pub validators: Validators,
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
    /// Payloads: those found when they were last counted, and those put there by this process since.
    pub entries: u64,
    /// Theirs; 0 until they were first counted.
    pub bytes: u64,
    /// How many of them were leased and pinned when they were last counted.
    pub leased: u64,
    pub pinned: u64,
    /// How many this process has removed, for each of the reasons of [`COLLECTED`].
    pub collected: [u64; COLLECTED.len()],
    /// When they were last counted, by wall time.
    pub counted_at: Option<SystemTime>,
    pub dropped_records: u64,
    /// How many this process has found damaged and put into quarantine.
    pub damaged: u64,
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
        let store = Self(Arc::new(Inner {
            root,
            key,
            clock,
            limits: RwLock::default(),
            lower: RwLock::default(),
            aging: Mutex::default(),
            noted: Mutex::default(),
            holds: Mutex::default(),
            usage: Mutex::new(Usage { entries, ..Usage::default() }),
            whole: Mutex::default(),
            checking: Mutex::default(),
            making_room: Mutex::default(),
            dropped_records: AtomicU64::new(0),
            _version: version,
        }));
        store.load_age()?;
        store.sweep_quarantine()?;
        Ok(store)
    }

    /// What stands for a credential in this store.
    pub fn fingerprint(&self, credential: &[u8]) -> CredentialTag {
        CredentialTag(self.key().hash(Purpose::Credential, &[credential]))
    }

    /// Counts for the metrics; reads no disk.
    pub fn stats(&self) -> Stats {
        let usage = self.usage().clone();
        Stats {
            entries: usage.entries,
            bytes: usage.bytes.unwrap_or_default(),
            leased: usage.leased,
            pinned: usage.pinned,
            collected: usage.collected,
            counted_at: usage.counted_at,
            dropped_records: self.dropped_records(),
            damaged: usage.damaged,
        }
    }

    /// The absolute path of the store's folder, all links resolved.
    pub fn directory(&self) -> &Path {
        self.0.root.path()
    }

    /// Whether it lies in memory, of which it takes what it holds, and ends with the machine or the pod.
    pub fn is_in_memory(&self) -> Result<bool, StoreError> {
        self.root().is_in_memory()
    }

    fn whole(&self) -> MutexGuard<'_, HashMap<PayloadDigest, Identity>> {
        self.0.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> &Folder {
        &self.0.root
    }

    fn key(&self) -> &Key {
        &self.0.key
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
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

    fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok().map(|()| Self(bytes))
    }
}

impl fmt::Debug for CredentialTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialTag({})", self.hex())
    }
}
