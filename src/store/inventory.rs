//! What is in the store, for people; and removing one thing by hand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::time::SystemTime;

use super::error::StoreError;
use super::fs::OWNER_ONLY;
use super::index::Remembered;
use super::layout::Way;
use super::lease::Leased;
use super::{Audience, PayloadDigest, Pin, Record, Store};

/// A record of the index, and where it came from, as far as the index tells.
pub type Remembering = Remembered;

/// A payload and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub payload: PayloadDigest,
    /// Bytes.
    pub size: u64,
    /// Where it came from, each with whether that took a credential. Holds no secret.
    pub sources: BTreeSet<(String, bool)>,
    /// Seconds of the store's age since its last use.
    pub unused: Option<u64>,
    /// How many nodes have a lease on it.
    pub leased_by: usize,
    pub pin: Option<Pin>,
    /// When its bytes were last hashed.
    pub verified: Option<SystemTime>,
}

/// What became of one that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// There is none.
    Missing,
    /// So many nodes may open it at any time.
    Leased(usize),
    Pinned,
    /// So many bytes are gone.
    Removed(u64),
}

impl Remembering {
    /// Whether it is a record of this source.
    pub fn is_of(&self, store: &Store, source: &str) -> bool {
        self.source == store.source_hash(source)
    }

    /// Whether it took a credential.
    pub fn is_private(&self) -> bool {
        self.audience != Audience::Public
    }

    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl Store {
    /// All payloads, by digest.
    pub fn inventory(&self) -> Result<Vec<Holding>, StoreError> {
        let mut sources: HashMap<PayloadDigest, BTreeSet<(String, bool)>> = HashMap::new();
        for found in self.records()? {
            let private = found.is_private();
            sources.entry(found.record.payload).or_default().insert((found.record.url, private));
        }
        let mut pins: BTreeMap<_, _> = self.pins()?.into_iter().map(|pin| (pin.payload, pin)).collect();
        let (leases, on_everything) = self.count_leases()?;
        let age = self.age();
        let mut holdings = Vec::new();
        let Some(blobs) = Way::blobs().walk(self.root())? else { return Ok(holdings) };
        for shard in blobs.names()? {
            let Some(folder) = blobs.folder(&shard, OWNER_ONLY)? else { continue };
            for name in folder.names()? {
                let Ok(payload) = PayloadDigest::from_hex(&name) else { continue };
                let Some(file) = folder.identify(&name)? else { continue };
                holdings.push(Holding {
                    payload,
                    size: file.size,
                    sources: sources.remove(&payload).unwrap_or_default(),
                    unused: self.last_use(&payload)?.map(|used| age.saturating_sub(used)),
                    leased_by: on_everything + leases.get(&payload).copied().unwrap_or_default(),
                    pin: pins.remove(&payload),
                    verified: self.verified_at(&payload, &file),
                });
            }
        }
        holdings.sort_unstable_by_key(|holding| holding.payload);
        Ok(holdings)
    }

    /// All records of the index that can be read.
    pub fn remembered(&self) -> Result<Vec<Remembering>, StoreError> {
        self.records()
    }

    /// The payload of that digest: whether it is there, and its bytes, which are right as far as its seal
    /// tells. It counts as used.
    pub fn read_payload(
        &self,
        payload: &PayloadDigest,
    ) -> Result<Option<(u64, impl Read + Send + use<>)>, StoreError> {
        {
            let _used = self.in_use()?;
            self.note_use(payload);
        }
        let Some(file) = self.settle(payload)? else { return Ok(None) };
        let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(None) };
        Ok(blobs.open(&payload.hex())?.map(|opened| (file.size, opened.reader())))
    }

    /// Removes a payload, its views and the records that lead to it. One that is leased or pinned goes only
    /// where `force`, its pin with it.
    pub fn remove(&self, payload: &PayloadDigest, force: bool) -> Result<Removal, StoreError> {
        if force {
            self.unpin(payload)?;
        }
        let size = {
            // Whoever leases or pins it does so before or afterwards.
            let _alone = self.alone(true)?;
            let blobs = Way::blob(payload).walk(self.root())?;
            let file = blobs.map(|blobs| blobs.identify(&payload.hex())).transpose()?.flatten();
            let Some(file) = file else { return Ok(Removal::Missing) };
            match self.leases_on(payload)? {
                0 => {}
                leased_by if !force => return Ok(Removal::Leased(leased_by)),
                _ => {}
            }
            if !force && self.pins()?.iter().any(|pin| pin.payload == *payload) {
                return Ok(Removal::Pinned);
            }
            self.remove_payload(payload)?;
            file.size
        };
        self.sweep_records()?;
        Ok(Removal::Removed(size))
    }

    /// Of each payload, how many nodes have a lease on it; and how many have one on everything.
    fn count_leases(&self) -> Result<(HashMap<PayloadDigest, usize>, usize), StoreError> {
        let (mut counts, mut everything) = (HashMap::new(), 0);
        for name in self.lease_names()? {
            let mut leased = Leased::default();
            self.read_leases(std::slice::from_ref(&name), &mut leased)?;
            everything += usize::from(leased.everything);
            for payload in leased.payloads {
                *counts.entry(payload).or_default() += 1;
            }
        }
        Ok((counts, everything))
    }
}
