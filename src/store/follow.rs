//! Reading a payload while it is written, so that a look at it costs no time of its own.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::file::Reader;

/// How far the writing is, told by the writer. Dropping it unfinished ends the followers with an error.
#[derive(Debug, Default)]
pub(super) struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    written: Mutex<Written>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default)]
struct Written {
    /// Bytes.
    size: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    GivenUp,
}

/// A reader of what is being written. It blocks, so it has no place on a thread of the async runtime.
#[derive(Debug)]
pub struct Following {
    file: Reader,
    position: u64,
    shared: Arc<Shared>,
}

impl Progress {
    pub(super) fn follow(&self, file: Reader) -> Following {
        Following { file, position: 0, shared: self.0.clone() }
    }

    /// So many bytes are in the file.
    pub(super) fn written(&self, size: u64) {
        self.0.change(|written| written.size = size);
    }

    /// What is in the file is all.
    pub(super) fn finish(&self) {
        self.0.change(|written| written.end = Some(End::Finished));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.change(|written| {
            written.end.get_or_insert(End::GivenUp);
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until there is something at `position`, or all has been written; the size by then.
    fn wait_beyond(&self, position: u64) -> io::Result<u64> {
        let waits = |written: &mut Written| written.end.is_none() && written.size <= position;
        let written = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        match written.end {
            Some(End::GivenUp) => Err(io::Error::other("it was never written to its end")),
            Some(End::Finished) | None => Ok(written.size),
        }
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.shared.wait_beyond(self.position)?.saturating_sub(self.position);
        let most = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        self.file.seek(SeekFrom::Start(self.position))?;
        let read = self.file.read(buffer)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

/// Seeking from the end waits for it.
impl Seek for Following {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.shared.wait_beyond(u64::MAX)?.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
