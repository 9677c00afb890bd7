//! Small files that are written whole: each write takes the place of the file in one step, and is
//! durable before it does, or is made so afterwards.

use std::io::Read as _;

use serde::Serialize;

use super::Store;
use super::error::StoreError;
use super::file::File;
use super::fs::{Folder, SECRET, sync_together};
use super::layout::{Place, Way};
use super::temporary::Temporary;

/// A small file that has its place, and will have it after a crash of the machine once it is synced.
#[must_use]
#[derive(Debug)]
pub struct Unsynced {
    file: File,
    place: Place,
}

impl Unsynced {
    /// Makes it durable.
    pub fn sync(self) -> Result<(), StoreError> {
        self.file.sync()?;
        sync_together(&self.place.folders())
    }
}

impl Store {
    /// As [`write_small`](Self::write_small), for whoever cannot wait for the disk. What a crash of the
    /// machine leaves of it before it is synced may be anything.
    pub(super) fn place_small(
        &self,
        way: &Way,
        name: &str,
        bytes: &[u8],
        first: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Unsynced, StoreError> {
        let mut file = Temporary::create(&Way::ingest().make(self.root())?.folder, SECRET)?;
        file.file().write_all(bytes)?;
        let written = file.file().duplicate()?;
        let place = way.make(self.root())?;
        let _used = self.in_use()?;
        first()?;
        file.rename(&place.folder, name)?;
        Ok(Unsynced { file: written, place })
    }

    /// Writes a file for its owner alone and gives it its place by `name`, which is done after `first`.
    pub(super) fn write_small(
        &self,
        way: &Way,
        name: &str,
        bytes: &[u8],
        first: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut file = Temporary::create(&Way::ingest().make(self.root())?.folder, SECRET)?;
        file.file().write_all(bytes)?;
        file.file().sync()?;
        let place = way.make(self.root())?;
        {
            let _used = self.in_use()?;
            first()?;
            file.rename(&place.folder, name)?;
        }
        sync_together(&[&place.folder, &place.parent])
    }
}

/// An entry as it is written.
pub(super) fn to_json(entry: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(entry).map_err(|error| StoreError::from_io(error.into()))
}

/// What is in a file, where there is one and it is no longer than `limit` bytes. A longer one is empty.
pub(super) fn read_small(folder: &Folder, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(file) = folder.open(name)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.reader().take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(StoreError::from_io)?;
    if bytes.len() as u64 > limit {
        bytes.clear();
    }
    Ok(Some(bytes))
}
