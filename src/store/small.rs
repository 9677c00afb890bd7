//! Small files that are written whole: each write takes the place of the file in one step and is
//! durable before it does.

use std::io::Read as _;

use super::Store;
use super::error::StoreError;
use super::fs::{Folder, SECRET, sync_together};
use super::layout::Way;
use super::temporary::Temporary;

impl Store {
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
