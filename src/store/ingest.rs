//! The one writer: bytes come in, are hashed as they stream to a file that nobody sees, and become
//! a module in the store only when they are committed.

use std::io::{self, Read, Seek, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::error::{Operation, StoreError};
use super::follow::{Following, Progress};
use super::fs::{READ_ONLY, joined, sync_together};
use super::index::PreparedRecord;
use super::layout::{Place, Way};
use super::temporary::Temporary;
use super::{Audience, PayloadDigest, Store, Stored};
use crate::digest::Hasher;

/// Bytes from which on a hash is worth a thread, and how many writes may wait for that one.
const WORTH_A_THREAD: u64 = 256 * 1024;
const WRITES_AHEAD: usize = 2;

/// A payload that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    file: Temporary,
    hash: Hashing,
    size: u64,
    broken: bool,
    progress: Progress,
    /// Whether what there is of it stays for the next pull.
    resumable: bool,
}

/// Who hashes what is written.
#[derive(Debug)]
enum Hashing {
    /// The writer; `for_now` until it is worth a thread.
    Here { hash: Hasher, for_now: bool },
    /// A thread that ends with the channel.
    Beside { writes: SyncSender<Vec<u8>>, thread: JoinHandle<Hasher> },
}

/// A payload that has been written and hashed and is not yet in the store. Dropping it removes it.
#[derive(Debug)]
pub struct Finished {
    store: Store,
    file: Temporary,
    payload: PayloadDigest,
    size: u64,
    sync: Option<JoinHandle<Result<(), StoreError>>>,
}

impl Store {
    /// Begins to write a payload. How large it may get is the caller's to limit.
    pub fn ingest(&self) -> Result<Ingest, StoreError> {
        let folder = Way::ingest().make(self.root())?.folder;
        // The mode goes to disk with the bytes: it is never set later.
        let file = Temporary::create(&folder, READ_ONLY)?;
        Ok(Ingest { resumable: false, ..Ingest::resumed(self, file, Hasher::default(), 0) })
    }
}

/// The errors hold a [`StoreError`]: [`StoreError::from_io`] takes it out.
impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.file.file().write(bytes) {
            Err(StoreError::NoSpace { .. }) if self.store.free_some(self.size) => {
                self.file.file().write(bytes)
            }
            written => written,
        };
        let written = written.inspect_err(|_| {
            self.broken = true;
            self.file.keep(false);
        })?;
        // The kernel may take less than it was given.
        self.size = self.size.saturating_add(written as u64);
        self.hash.update(bytes.get(..written).unwrap_or(bytes), self.size);
        self.progress.written(self.size);
        self.file.keep(self.resumable && !self.broken);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ingest {
    /// One that goes on behind the first `size` bytes.
    pub(super) fn resumed(store: &Store, file: Temporary, hash: Hasher, size: u64) -> Self {
        let progress = Progress::default();
        progress.written(size);
        let hash = Hashing::Here { hash, for_now: false };
        Self { store: store.clone(), file, hash, size, broken: false, progress, resumable: true }
    }

    /// Bytes that have been written, by an earlier pull too.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Leaves nothing for the next pull: what there is cannot become what was promised.
    pub fn discard(mut self) {
        self.resumable = false;
        self.file.keep(false);
    }

    /// Reads the payload from its start while it is written: waits for what is not there yet, ends
    /// where the payload does, and fails where the writing does.
    pub fn follow(&self) -> Result<Following, StoreError> {
        Ok(self.progress.follow(self.file.file().duplicate()?.reader()))
    }

    /// Has what is written hashed beside the writing, unless it stays small: for writers who have enough to
    /// do. It takes the memory of a few writes.
    pub fn hash_beside(&mut self) {
        if let Hashing::Here { for_now, .. } = &mut self.hash {
            // With one processor, two threads take longer.
            *for_now = thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
        }
    }

    /// Ends the writing. An ingest of which a write has failed is refused: what it holds hashes
    /// well and is not what was meant.
    pub fn finish(mut self) -> Result<Finished, StoreError> {
        self.file.keep(false);
        if self.broken {
            return Err(StoreError::Broken);
        }
        if self.resumable {
            // From here on it is never continued, and the mode goes to disk with the bytes.
            self.file.file().set_mode(READ_ONLY)?;
        }
        self.progress.finish();
        let hash = joined(self.hash.finish(), Operation::Write, self.file.file().path())?;
        let payload = PayloadDigest::from_bytes(hash);
        Ok(Finished { store: self.store, file: self.file, payload, size: self.size, sync: None })
    }
}

impl Hashing {
    /// Takes in what was written, with which the payload has this size.
    fn update(&mut self, bytes: &[u8], size: u64) {
        match self {
            Self::Here { hash, for_now } => {
                hash.update(bytes);
                if *for_now && size >= WORTH_A_THREAD {
                    *for_now = false;
                    // Where no thread is to be had, the writer goes on.
                    if let Ok(beside) = Self::beside(hash.clone()) {
                        *self = beside;
                    }
                }
            }
            // A thread that has died is found at the end.
            Self::Beside { writes, .. } => drop(writes.send(bytes.to_vec())),
        }
    }

    /// A thread that goes on with this.
    fn beside(mut hash: Hasher) -> io::Result<Self> {
        let (writes, written) = sync_channel::<Vec<u8>>(WRITES_AHEAD);
        let hash_on = move || {
            written.iter().for_each(|bytes| hash.update(&bytes));
            hash
        };
        let thread = thread::Builder::new().name("module-hash".to_owned()).spawn(hash_on)?;
        Ok(Self::Beside { writes, thread })
    }

    /// The digest of it all, unless the thread has died.
    fn finish(self) -> thread::Result<Result<[u8; 32], StoreError>> {
        let hash = match self {
            Self::Here { hash, .. } => hash,
            Self::Beside { writes, thread } => {
                drop(writes);
                thread.join()?
            }
        };
        Ok(Ok(hash.finish()))
    }
}

impl Finished {
    /// The digest of what was written.
    pub fn payload(&self) -> PayloadDigest {
        self.payload
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads what was written, from its start.
    pub fn reader(&self) -> Result<impl Read + Seek + Send + use<>, StoreError> {
        Ok(self.file.file().duplicate()?.reader())
    }

    /// Begins to make the bytes durable in another thread, for callers who have something to do
    /// before they [`commit`](Self::commit), which waits for it.
    pub fn start_sync(&mut self) {
        if self.sync.is_some() {
            return;
        }
        // Where no handle or thread is to be had, the commit does it.
        self.sync = self.file.file().duplicate().ok().and_then(|file| {
            thread::Builder::new().name("store-sync".to_owned()).spawn(move || file.sync()).ok()
        });
    }

    /// Puts the payload into the store, durably, and gives the audience its view of it. What lies
    /// there already is used and this copy of it removed.
    ///
    /// After an error nothing of this payload is visible, with one exception: where names could not
    /// be made durable they stay, since another process may have handed them out by then. What they
    /// name is whole and its bytes are on disk.
    pub fn commit(self, audience: &Audience) -> Result<Stored, StoreError> {
        self.commit_recorded(audience, Vec::new())
    }

    /// The same, with what the index is to remember of it. A record that cannot take its place is
    /// missing, and that is all.
    pub fn commit_recorded(
        mut self,
        audience: &Audience,
        records: Vec<PreparedRecord>,
    ) -> Result<Stored, StoreError> {
        match self.sync.take() {
            Some(thread) => joined(thread.join(), Operation::Sync, self.file.file().path())?,
            None => self.file.file().sync()?,
        }
        // Who finds it there already relies on what is there.
        let settled = self.store.settle(&self.payload)?;
        let (stored, places) = self.store.place(&mut self.file, &self.payload, self.size, audience)?;
        sync_places(places.into(), records)?;
        let ours = self.file.file().identity().ok();
        // Its name in `ingest` goes first, which changes what the seal is to say.
        drop(self.file);
        self.store.seal_what_is(&self.payload, [ours, settled]);
        Ok(stored)
    }
}

/// Gives records their places, where they can have them, and makes those and the others durable.
pub(super) fn sync_places(mut places: Vec<Place>, records: Vec<PreparedRecord>) -> Result<(), StoreError> {
    for record in records {
        match record.take_place() {
            Ok(place) => places.push(place),
            Err(error) => tracing::warn!("cannot write an index record: {error}"),
        }
    }
    sync_together(&places.iter().flat_map(Place::folders).collect::<Vec<_>>())
}
