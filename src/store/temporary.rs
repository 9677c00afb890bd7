//! Files that are being written. They lie in `ingest/` under names that nobody looks for, each
//! locked by its writer. The lock, not the process id in the name, tells whether the writer lives:
//! ids are reused, and mean something else in another container.
//!
//! There is one lock a file, and nobody waits for one with another in hand. A writer creates
//! its file, then locks it; a sweep may come between the two, so the writer looks afterwards whether
//! the file still has its name. A sweep only ever tries a lock.

use std::io;

use super::error::{Operation, StoreError};
use super::file::File;
use super::fs::{Folder, SECRET, is_refusal};
use super::partial::is_partial;

/// How often a writer may lose its file to a sweep in the instant before it is locked.
const TRIES: usize = 16;
/// In seconds.
const MINUTE: u64 = 60;

/// A file that goes away unless it is given another name, or kept.
#[derive(Debug)]
pub(super) struct Temporary {
    folder: Folder,
    name: String,
    file: File,
    /// Whether the name stays.
    kept: bool,
}

impl Temporary {
    /// Creates a file with this mode, open for reading and writing.
    pub(super) fn create(folder: &Folder, mode: u32) -> Result<Self, StoreError> {
        for _ in 0..TRIES {
            let name = fresh_name()?;
            let file = folder.create(&name)?;
            let temporary = Self { folder: folder.clone(), name, file, kept: false };
            temporary.file.lock()?;
            if temporary.file.stat()?.st_nlink > 0 {
                temporary.file.set_mode(mode)?;
                return Ok(temporary);
            }
        }
        Err(StoreError::new(Operation::Create, folder.path(), rustix::io::Errno::NOENT))
    }

    /// The same under a name that others may know; none where somebody has it, or had it just now.
    pub(super) fn create_named(folder: &Folder, name: &str, mode: u32) -> Result<Option<Self>, StoreError> {
        let file = match folder.create(name) {
            Ok(file) => file,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // Who came between, and has the lock, has the file.
        if !file.try_lock()? || file.stat()?.st_nlink == 0 {
            return Ok(None);
        }
        let temporary = Self { folder: folder.clone(), name: name.to_owned(), file, kept: false };
        temporary.file.set_mode(mode)?;
        Ok(Some(temporary))
    }

    /// Goes on with a file of that name that nobody writes any more; none where there is none. One that
    /// was written to its end may have been given another name, and its bytes are never changed again:
    /// it is removed.
    pub(super) fn reopen(folder: &Folder, name: &str) -> Result<Option<Self>, StoreError> {
        let Some(seen) = folder.inspect(name)? else { return Ok(None) };
        if seen.mode != SECRET || !seen.only_name {
            if let Some(file) = folder.open(name)?
                && file.try_lock()?
            {
                folder.remove(name)?;
            }
            return Ok(None);
        }
        let file = folder.open_to_append(name)?;
        if !file.try_lock()? {
            return Ok(None);
        }
        // Only who has the lock can be sure.
        let stat = file.stat()?;
        if stat.st_nlink != 1 || stat.st_mode & 0o7777 != SECRET {
            return Ok(None);
        }
        Ok(Some(Self { folder: folder.clone(), name: name.to_owned(), file, kept: true }))
    }

    /// Whether the file stays under its name when this is dropped.
    pub(super) fn keep(&mut self, kept: bool) {
        self.kept = kept;
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
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.folder.remove(&self.name) {
            // The next start sweeps it.
            tracing::warn!(%error, "left an unfinished file in the store");
        }
    }
}

/// Removes what dead writers left, and says how many files that were. What can be continued has a sweep
/// of its own. `now` is the wall time, in seconds.
pub(super) fn sweep(folder: &Folder, now: u64) -> Result<usize, StoreError> {
    let mut swept = 0;
    for name in folder.names()?.into_iter().filter(|name| !is_partial(name)) {
        let dead = match folder.open(&name) {
            Ok(None) => continue,
            Ok(Some(file)) => file.try_lock()?,
            // An umask has it that the file is closed to all until its writer sets its mode, at once.
            Err(error) if is_refusal(&error) => {
                let seen = folder.inspect(&name)?;
                // Also of the future, since a clock may have been set back.
                seen.is_some_and(|seen| now.abs_diff(seen.stamp) > MINUTE)
            }
            Err(error) => return Err(error),
        };
        if dead {
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
