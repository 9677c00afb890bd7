//! The index: who asks and for which source, to the payload that was last brought for it. A hint:
//! what it says is believed only where the content bears it out, and losing it costs fetches.
//!
//! A record is one file, so that processes need no lock: the last one to write wins. Its name and
//! its content hold keyed hashes, since a source may be a URL whose query is a secret.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::file::File;
use super::fs::{Folder, OWNER_ONLY, SECRET, sync_together};
use super::key::Purpose;
use super::layout::{Place, Way};
use super::small::to_json;
use super::temporary::Temporary;
use super::{Audience, CredentialTag, PayloadDigest, Record, Sighting, Store};
use crate::digest::SourceDigest;
use crate::module::Validators;

const FORMAT: u32 = 1;
/// The longest record in bytes that is written or read.
const LIMIT: u64 = 64 << 10;

/// A record as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    /// Who asks, and a keyed hash of the source: a record that came to lie under another's name is
    /// found out.
    audience: String,
    key: String,
    payload: String,
    source: String,
    size: u64,
    resource_version: Option<String>,
    /// Seconds since 1970.
    fetched_at: u64,
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<String>,
}

/// A record, and what it is a record of.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub(super) audience: Audience,
    pub(super) record: Record,
    /// A keyed hash, see [`Store::source_hash`].
    pub(super) source: String,
}

/// What a record is found by.
struct EntryKey {
    audience: String,
    source: String,
    hash: [u8; 32],
}

impl EntryKey {
    fn new(store: &Store, audience: &Audience, source: &str) -> Self {
        Self::of(store, audience.name(), store.source_hash(source))
    }

    fn of(store: &Store, audience: String, source: String) -> Self {
        let hash = store.key().hash(Purpose::Entry, &[audience.as_bytes(), source.as_bytes()]);
        Self { audience, source, hash }
    }

    fn file_name(&self) -> String {
        format!("{}.json", hex::encode(self.hash))
    }
}

/// A record that is written and not yet in its place. Dropping it removes it.
pub struct PreparedRecord {
    store: Store,
    key: EntryKey,
    file: Temporary,
}

impl PreparedRecord {
    /// In the place of the record that there was. The folders are to be synced.
    pub(super) fn take_place(mut self) -> Result<Place, StoreError> {
        let place = Way::record(&self.key.hash).make(self.store.root())?;
        let _used = self.store.in_use()?;
        self.file.rename(&place.folder, &self.key.file_name())?;
        Ok(place)
    }
}

impl Store {
    /// What was last brought for this audience from this source, if its view is still there and
    /// whole. A record that cannot be read is a miss, counted by
    /// [`dropped_records`](Self::dropped_records) and left for the next one to replace: removing it
    /// could hit a newer one that another process has just put there.
    pub fn lookup(&self, audience: &Audience, source: &str) -> Result<Option<Record>, StoreError> {
        Ok(self.find(audience, source)?.map(|(record, _)| record))
    }

    /// The same, with the view. Who hands that out [takes](Self::take) it first.
    pub fn find(&self, audience: &Audience, source: &str) -> Result<Option<(Record, Sighting)>, StoreError> {
        let key = EntryKey::new(self, audience, source);
        let Some(folder) = Way::record(&key.hash).walk(self.root())? else { return Ok(None) };
        let record = match folder.open(&key.file_name()) {
            Ok(None) => return Ok(None),
            Ok(Some(file)) => read(file).and_then(|entry| entry.into_record(&key)),
            Err(_) => None,
        };
        let Some(record) = record else {
            self.drop_record();
            return Ok(None);
        };
        let seen = self.sight(audience, &record.payload)?;
        Ok(seen.filter(|seen| seen.stored.size == record.size).map(|seen| (record, seen)))
    }

    /// Remembers what was brought, durably, in the place of what was remembered before.
    pub fn record(&self, audience: &Audience, source: &str, record: &Record) -> Result<(), StoreError> {
        let place = self.prepare_record(audience, source, record)?.take_place()?;
        sync_together(&place.folders())
    }

    /// Writes a record, durably, and nowhere that it is looked for: it takes its place when the payload
    /// does, see [`Finished::commit_recorded`](super::Finished::commit_recorded).
    pub fn prepare_record(
        &self,
        audience: &Audience,
        source: &str,
        record: &Record,
    ) -> Result<PreparedRecord, StoreError> {
        let key = EntryKey::new(self, audience, source);
        let entry = Entry::new(&key, record);
        let bytes = to_json(&entry)?;
        if bytes.len() as u64 > LIMIT {
            return Err(StoreError::RecordTooLarge { size: bytes.len(), limit: LIMIT });
        }
        let file = Temporary::create(&Way::ingest().make(self.root())?.folder, SECRET)?;
        file.file().write_all(&bytes)?;
        file.file().sync()?;
        Ok(PreparedRecord { store: self.clone(), key, file })
    }

    /// Whether this is a record that leads to nothing any more. One that cannot be read is none.
    pub(super) fn is_void_record(&self, folder: &Folder, name: &str) -> Result<bool, StoreError> {
        let Ok(Some(file)) = folder.open(name) else { return Ok(false) };
        let Some(entry) = read(file).filter(|entry| entry.format == FORMAT) else { return Ok(false) };
        let Some((audience, payload)) = entry.audience().zip(entry.payload.parse().ok()) else {
            return Ok(false);
        };
        Ok(self.find_view(&audience, &payload)?.is_none())
    }

    /// What stands for a source in the index.
    pub(super) fn source_hash(&self, source: &str) -> String {
        hex::encode(self.key().hash(Purpose::Source, &[source.as_bytes()]))
    }

    /// All records that can be read, in no order.
    pub(super) fn records(&self) -> Result<Vec<Remembered>, StoreError> {
        let Some(index) = Way::index().walk(self.root())? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for shard in index.names()? {
            let Some(folder) = index.folder(&shard, OWNER_ONLY)? else { continue };
            for name in folder.names()? {
                let entry = folder.open(&name).ok().flatten().and_then(read);
                records.extend(entry.and_then(|entry| {
                    let audience = entry.audience()?;
                    let key = EntryKey::of(self, entry.audience.clone(), entry.key.clone());
                    // One under another's name leads nowhere.
                    let record = entry.into_record(&key).filter(|_| name == key.file_name())?;
                    Some(Remembered { audience, record, source: key.source })
                }));
            }
        }
        Ok(records)
    }

    /// Where a payload came from, for people.
    pub(super) fn urls_of(&self, payload: &PayloadDigest) -> Result<Vec<String>, StoreError> {
        let records = self.records()?.into_iter().filter(|found| found.record.payload == *payload);
        // Those of credentials cannot be asked for again without them.
        let public = records.filter(|found| found.audience == Audience::Public);
        let urls: BTreeSet<_> = public.map(|found| found.record.url).collect();
        Ok(urls.into_iter().collect())
    }

    pub(super) fn drop_record(&self) {
        self.0.dropped_records.fetch_add(1, Ordering::Relaxed);
    }

    /// How many records could not be read, or were not what they were looked up for, since the
    /// store was opened.
    pub fn dropped_records(&self) -> u64 {
        self.0.dropped_records.load(Ordering::Relaxed)
    }
}

fn read(file: File) -> Option<Entry> {
    let mut bytes = Vec::new();
    file.reader().take(LIMIT + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() as u64 > LIMIT {
        return None;
    }
    serde_json::from_slice(&bytes).ok()
}

impl Entry {
    fn new(key: &EntryKey, record: &Record) -> Self {
        let fetched_at = record.fetched_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            format: FORMAT,
            audience: key.audience.clone(),
            key: key.source.clone(),
            payload: record.payload.to_string(),
            source: record.source.to_string(),
            size: record.size,
            resource_version: record.resource_version.clone(),
            fetched_at,
            url: record.url.clone(),
            etag: record.validators.etag.clone(),
            last_modified: record.validators.last_modified.clone(),
        }
    }

    fn audience(&self) -> Option<Audience> {
        match self.audience.strip_prefix("private:") {
            Some(tag) => CredentialTag::from_hex(tag).map(Audience::Private),
            None => Some(Audience::Public).filter(|_| self.audience == "public"),
        }
    }

    /// The record, if it is one for this key.
    fn into_record(self, key: &EntryKey) -> Option<Record> {
        if self.format != FORMAT || self.audience != key.audience || self.key != key.source {
            return None;
        }
        Some(Record {
            payload: self.payload.parse::<PayloadDigest>().ok()?,
            source: self.source.parse::<SourceDigest>().ok()?,
            size: self.size,
            resource_version: self.resource_version,
            fetched_at: SystemTime::checked_add(&UNIX_EPOCH, Duration::from_secs(self.fetched_at))?,
            url: self.url,
            validators: Validators { etag: self.etag, last_modified: self.last_modified },
        })
    }
}
