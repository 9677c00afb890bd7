//! Lies are found: payloads are hashed again, before one is handed out whose file no [seal](super::seal)
//! knows, and all of them, a little at a time, after a start or for `wasmferry cache verify`.
//!
//! A file whose bytes are not what its name says goes to `quarantine/`, with all its views, whoever has a
//! lease on it: an Envoy that runs the module has its own copy of it in memory, and one that opens it now
//! had better find nothing. Then the records that led to it are void, and whoever asks next has it fetched.
//!
//! Files are hashed with no lock in hand. Moving one away is done alone, and only where it is still the file
//! that was hashed.

use std::cmp::Reverse;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::collect::Sweep;
use super::error::{Operation, StoreError};
use super::file::Reader;
use super::fs::{Identity, OWNER_ONLY, PASSAGE};
use super::layout::{Way, view_name};
use super::partial::seconds;
use super::{Audience, CredentialTag, PayloadDigest, Store};
use crate::digest::Hasher;

/// How much one step reads, in bytes.
const STEP: usize = 1 << 20;
/// What was hashed so short a time ago, by whichever process, is not hashed again after a start.
const FRESH: Duration = Duration::from_secs(3600);
/// What stays in quarantine: the newest files, so many with so many bytes in all, for so many seconds by the
/// wall clock. One that jumps costs evidence.
const MAX_COUNT: usize = 16;
const MAX_BYTES: u64 = 1 << 30;
const MAX_AGE: u64 = 7 * 24 * 3600;

/// A payload whose file had other bytes than its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub payload: PayloadDigest,
    /// Bytes of the damaged file.
    pub size: u64,
    /// What it had; none where it could not be read.
    pub found: Option<PayloadDigest>,
    /// Where it was.
    pub path: PathBuf,
    /// Where it came from, as far as the index knows. Holds no secret.
    pub urls: Vec<String>,
}

/// What the bytes of a payload turned out to be.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing is there, or something else by now.
    Gone,
    /// With what it looked like.
    Whole(Identity),
    /// It is in quarantine.
    Damaged(Damage),
}

/// A payload that is being hashed.
#[derive(Debug)]
struct Check {
    payload: PayloadDigest,
    before: Identity,
    reader: Reader,
    hash: Hasher,
    buffer: Vec<u8>,
    failure: Option<StoreError>,
}

/// All payloads, hashed one after the other.
#[derive(Debug)]
pub struct Verification {
    store: Store,
    skips_fresh: bool,
    shards: Option<Vec<String>>,
    payloads: Vec<PayloadDigest>,
    check: Option<Check>,
    views: Option<Vec<Audience>>,
    verified: Verified,
}

/// What a [`Verification`] has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Payloads whose bytes are right.
    pub whole: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Payloads that are in quarantine now.
    pub damaged: Vec<Damage>,
    /// What could not be looked at, and why.
    pub failed: Vec<String>,
}

impl Check {
    /// None where there is nothing to hash.
    fn begin(store: &Store, payload: &PayloadDigest) -> Result<Option<Self>, StoreError> {
        let Some(blobs) = Way::blob(payload).walk(store.root())? else { return Ok(None) };
        let Some(file) = blobs.open(&payload.hex())? else { return Ok(None) };
        let before = file.identity()?;
        let (reader, hash, buffer) = (file.reader(), Hasher::default(), vec![0; STEP]);
        Ok(Some(Self { payload: *payload, before, reader, hash, buffer, failure: None }))
    }

    /// Hashes on; 0 at the end, and where it cannot be read.
    fn read(&mut self) -> usize {
        match self.reader.read(&mut self.buffer) {
            Ok(read) => {
                self.hash.update(self.buffer.get(..read).unwrap_or_default());
                read
            }
            Err(error) => {
                self.failure = Some(StoreError::from_io(error));
                0
            }
        }
    }

    fn end(self, store: &Store) -> Result<Verdict, StoreError> {
        let found = match &self.failure {
            None => Some(PayloadDigest::from_bytes(self.hash.finish())),
            // The disk has lost it.
            Some(StoreError::Io { operation: Operation::Read, .. }) => None,
            Some(_) => return self.failure.map_or(Ok(Verdict::Gone), Err),
        };
        if found == Some(self.payload) {
            // Where it changed meanwhile, another one is to look.
            if self.reader.file().identity()? == self.before {
                store.seal(&self.payload, &self.before);
            }
            return Ok(Verdict::Whole(self.before));
        }
        let reason = self.failure.map(|error| error.to_string());
        store.quarantine(&self.payload, &self.before, found, reason)
    }
}

impl Store {
    /// Hashes a payload, and moves it to quarantine where it is not what its name says. One at a time: who
    /// waits finds it sealed.
    pub(super) fn check(&self, payload: &PayloadDigest) -> Result<Verdict, StoreError> {
        let _one = self.checking();
        let Some(mut check) = Check::begin(self, payload)? else { return Ok(Verdict::Gone) };
        if self.is_sealed(payload, &check.before) {
            return Ok(Verdict::Whole(check.before));
        }
        while check.read() > 0 {}
        check.end(self)
    }

    /// For who is about to rely on a payload being there already, if it is: what it looks like, where it is
    /// right. A damaged one is gone by then.
    pub(super) fn settle(&self, payload: &PayloadDigest) -> Result<Option<Identity>, StoreError> {
        let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(None) };
        let Some(file) = blobs.sound(&payload.hex())? else { return Ok(None) };
        if self.is_sealed(payload, &file) {
            return Ok(Some(file));
        }
        match self.check(payload)? {
            Verdict::Whole(file) => Ok(Some(file)),
            Verdict::Gone | Verdict::Damaged(_) => Ok(None),
        }
    }

    fn quarantine(
        &self,
        payload: &PayloadDigest,
        hashed: &Identity,
        found: Option<PayloadDigest>,
        reason: Option<String>,
    ) -> Result<Verdict, StoreError> {
        let urls = self.urls_of(payload).unwrap_or_default();
        let place = Way::quarantine().make(self.root())?;
        let now = seconds(self.clock());
        let path = {
            let _alone = self.alone(true)?;
            let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(Verdict::Gone) };
            if !blobs.identify(&payload.hex())?.is_some_and(|there| there.is_file(hashed)) {
                return Ok(Verdict::Gone);
            }
            self.remove_views(payload, true)?;
            blobs.rename(&payload.hex(), &place.folder, &format!("{}-{now}", payload.hex()))?;
            self.remove_traces(payload)?;
            blobs.path().join(payload.hex())
        };
        {
            let mut usage = self.usage();
            usage.damaged += 1;
            usage.entries = usage.entries.saturating_sub(1);
            usage.bytes = usage.bytes.map(|bytes| bytes.saturating_sub(hashed.size));
        }
        let shown = found.map(|found| found.to_string()).or(reason).unwrap_or_default();
        tracing::error!(
            %payload, path = %path.display(), found = shown,
            "a module in the store is damaged: it is in content/quarantine, and who asks for it next has it \
             fetched again"
        );
        if let Err(error) = self.sweep_quarantine().and_then(|()| self.sweep_records()) {
            tracing::warn!("cannot sweep what a damaged module leaves: {error}");
        }
        Ok(Verdict::Damaged(Damage { payload: *payload, size: hashed.size, found, path, urls }))
    }

    /// Holds the quarantine to its bounds.
    pub(super) fn sweep_quarantine(&self) -> Result<(), StoreError> {
        let Some(folder) = Way::quarantine().walk(self.root())? else { return Ok(()) };
        let now = seconds(self.clock());
        let mut files = Vec::new();
        for name in folder.names()? {
            // What is no name of ours is not ours.
            let Some((hex, since)) = name.split_once('-') else { continue };
            let (Ok(_), Ok(since)) = (PayloadDigest::from_hex(hex), since.parse::<u64>()) else { continue };
            if let Ok(Some(file)) = folder.inspect(&name) {
                files.push((since, file.size, name));
            }
        }
        files.sort_unstable_by_key(|(since, ..)| Reverse(*since));
        let (mut count, mut bytes) = (0, 0u64);
        for (since, size, name) in files {
            if count < MAX_COUNT && bytes.saturating_add(size) <= MAX_BYTES && now.abs_diff(since) <= MAX_AGE
            {
                count += 1;
                bytes += size;
            } else {
                folder.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes the records that lead to nothing any more.
    pub(super) fn sweep_records(&self) -> Result<(), StoreError> {
        let mut sweep = Sweep::new(self, false)?;
        while sweep.step(self, |_| false)? {}
        Ok(())
    }

    fn checking(&self) -> MutexGuard<'_, ()> {
        self.0.checking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verification {
    /// Of everything, for who wants to be sure.
    pub fn of_all(store: &Store) -> Self {
        Self::new(store, false)
    }

    /// Of what nobody has hashed for an hour.
    pub fn of_unchecked(store: &Store) -> Self {
        Self::new(store, true)
    }

    fn new(store: &Store, skips_fresh: bool) -> Self {
        Self {
            store: store.clone(),
            skips_fresh,
            shards: None,
            payloads: Vec::new(),
            check: None,
            views: None,
            verified: Verified::default(),
        }
    }

    /// What was found so far.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    #[cfg(test)]
    pub(super) fn is_reading(&self) -> bool {
        self.check.is_some()
    }

    /// Does a little, and says how many bytes it read; none when all is done.
    pub fn step(&mut self) -> Result<Option<u64>, StoreError> {
        if let Some(mut check) = self.check.take() {
            let read = check.read() as u64;
            self.verified.bytes += read;
            if read > 0 {
                self.check = Some(check);
            } else {
                let payload = check.payload;
                let verdict = check.end(&self.store);
                self.note(&payload, verdict);
            }
            return Ok(Some(read));
        }
        if let Some(payload) = self.payloads.pop() {
            match self.is_fresh(&payload).and_then(|is_fresh| match is_fresh {
                true => Ok(None),
                false => Check::begin(&self.store, &payload),
            }) {
                Ok(check) => self.check = check,
                Err(error) => self.verified.failed.push(error.to_string()),
            }
            return Ok(Some(0));
        }
        if self.shards.is_none() {
            let blobs = Way::blobs().walk(self.store.root())?;
            self.shards = Some(blobs.map(|blobs| blobs.names()).transpose()?.unwrap_or_default());
        }
        if let Some(shard) = self.shards.as_mut().and_then(Vec::pop) {
            match self.list(&shard) {
                Ok(payloads) => self.payloads = payloads,
                Err(error) => self.verified.failed.push(error.to_string()),
            }
            return Ok(Some(0));
        }
        self.look_at_views()
    }

    fn note(&mut self, payload: &PayloadDigest, verdict: Result<Verdict, StoreError>) {
        match verdict {
            Ok(Verdict::Whole(_)) => self.verified.whole += 1,
            Ok(Verdict::Damaged(damage)) => self.verified.damaged.push(damage),
            Ok(Verdict::Gone) => {}
            Err(error) => self.verified.failed.push(format!("{payload}: {error}")),
        }
    }

    fn is_fresh(&self, payload: &PayloadDigest) -> Result<bool, StoreError> {
        if !self.skips_fresh {
            return Ok(false);
        }
        let Some(blobs) = Way::blob(payload).walk(self.store.root())? else { return Ok(false) };
        let Some(file) = blobs.sound(&payload.hex())? else { return Ok(false) };
        let since = self.store.verified_at(payload, &file);
        // One of the future is of another clock.
        let age = since.and_then(|since: SystemTime| self.store.clock().wall().duration_since(since).ok());
        Ok(age.is_some_and(|age| age < FRESH))
    }

    fn list(&self, shard: &str) -> Result<Vec<PayloadDigest>, StoreError> {
        let folder = Way::blobs().to(shard.to_owned(), OWNER_ONLY).walk(self.store.root())?;
        let names = folder.map(|folder| folder.names()).transpose()?.unwrap_or_default();
        Ok(names.iter().filter_map(|name| PayloadDigest::from_hex(name).ok()).collect())
    }

    /// The views of one audience after the other: they are to be what was hashed.
    fn look_at_views(&mut self) -> Result<Option<u64>, StoreError> {
        if self.views.is_none() {
            let private = Way::private().walk(self.store.root())?;
            let tags = private.map(|private| private.names()).transpose()?.unwrap_or_default();
            let tags = tags.iter().filter_map(|tag| CredentialTag::from_hex(tag));
            self.views = Some(tags.map(Audience::Private).chain([Audience::Public]).collect());
        }
        let Some(audience) = self.views.as_mut().and_then(Vec::pop) else { return Ok(None) };
        if let Err(error) = self.look_at(&audience) {
            self.verified.failed.push(error.to_string());
        }
        Ok(Some(0))
    }

    fn look_at(&mut self, audience: &Audience) -> Result<(), StoreError> {
        let folders = match audience {
            Audience::Private(tag) => vec![Way::private().to(tag.hex(), PASSAGE)],
            Audience::Public => {
                let public = Way::public().walk(self.store.root())?;
                let names = public.map(|public| public.names()).transpose()?.unwrap_or_default();
                names.into_iter().map(|name| Way::public().to(name, PASSAGE)).collect()
            }
        };
        for way in folders {
            let Some(views) = way.walk(self.store.root())? else { continue };
            for name in views.names()? {
                let hex = name.strip_suffix(".wasm").unwrap_or_default();
                let Ok(payload) = PayloadDigest::from_hex(hex) else { continue };
                let Some(blobs) = Way::blob(&payload).walk(self.store.root())? else { continue };
                let Some(blob) = blobs.sound(hex)? else { continue };
                match views.identify(&view_name(&payload)) {
                    Ok(Some(view)) if !view.is_file(&blob) => self.store.link_again(audience, &payload)?,
                    Ok(_) => {}
                    Err(error) => self.verified.failed.push(error.to_string()),
                }
            }
        }
        Ok(())
    }
}
