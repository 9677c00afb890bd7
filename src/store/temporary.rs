//! Files that are being written. They lie in `ingest/` under names that nobody looks for, each
//! locked by its writer. The lock, not the process id in the name, tells whether the writer lives:
//! ids are reused, and mean something else in another container.
//!
//! There is one lock a file and nobody ever holds two of them. A writer creates
//! its file, then locks it; a sweep may come between the two, so the writer looks afterwards whether
//! the file still has its name. A sweep only ever tries a lock.

use super::error::{Operation, StoreError};
use super::file::File;
use super::fs::Folder;

/// How often a writer may lose its file to a sweep in the instant before it is locked.
const TRIES: usize = 16;

/// A file that goes away unless it is given another name.
#[derive(Debug)]
pub(super) struct Temporary {
    folder: Folder,
    name: String,
    file: File,
    renamed: bool,
}

impl Temporary {
    /// Creates a file with this mode, open for reading and writing.
    pub(super) fn create(folder: &Folder, mode: u32) -> Result<Self, StoreError> {
        for _ in 0..TRIES {
            let name = fresh_name()?;
            let file = folder.create(&name)?;
            let temporary = Self { folder: folder.clone(), name, file, renamed: false };
            temporary.file.lock()?;
            if temporary.file.stat()?.st_nlink > 0 {
                temporary.file.set_mode(mode)?;
                return Ok(temporary);
            }
        }
        Err(StoreError::new(Operation::Create, folder.path(), rustix::io::Errno::NOENT))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file a lasting name; `false` where that is taken.
    pub(super) fn link(&self, to: &Folder, name: &str) -> Result<bool, StoreError> {
        self.folder.link(&self.name, to, name)
    }

    /// Gives the file a lasting name instead of this one, in the place of what has it.
    pub(super) fn rename(&mut self, to: &Folder, name: &str) -> Result<(), StoreError> {
        self.folder.rename(&self.name, to, name)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.renamed {
            return;
        }
        if let Err(error) = self.folder.remove(&self.name) {
            // The next start sweeps it.
            tracing::warn!(%error, "left an unfinished file in the store");
        }
    }
}

/// Removes what dead writers left, and says how many files that were.
pub(super) fn sweep(folder: &Folder) -> Result<usize, StoreError> {
    let mut swept = 0;
    for name in folder.names()? {
        let Some(file) = folder.open(&name)? else { continue };
        if file.try_lock()? {
            folder.remove(&name)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// A name for a file in `ingest/` that no process uses. The id in it is for people only.
pub(super) fn fresh_name() -> Result<String, StoreError> {
    Ok(format!("{}-{}", std::process::id(), hex::encode(random::<8>()?)))
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(StoreError::Random)?;
    Ok(bytes)
}
