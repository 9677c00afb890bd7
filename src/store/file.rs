//! An open file of the store: written once, by whoever created it, then only read.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, Stat, fchmod, flock, fstat, fsync, ftruncate};
use rustix::io::Errno;

use super::error::{Operation, StoreError};
use super::fs::Identity;
use super::observer::{Done, Observer};

/// An open regular file of ours.
#[derive(Debug)]
pub(super) struct File {
    fd: OwnedFd,
    path: PathBuf,
    observer: Observer,
}

impl File {
    pub(super) fn new(fd: OwnedFd, path: PathBuf, observer: Observer) -> Self {
        Self { fd, path, observer }
    }

    /// The absolute path by which it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle of the same opening.
    pub(super) fn duplicate(&self) -> Result<File, StoreError> {
        let fd = self.run(Operation::Open, || rustix::io::fcntl_dupfd_cloexec(&self.fd, 0))?;
        Ok(File::new(fd, self.path.clone(), self.observer.clone()))
    }

    pub(super) fn set_mode(&self, mode: u32) -> Result<(), StoreError> {
        self.run(Operation::SetMode, || fchmod(&self.fd, Mode::from_raw_mode(mode)))?;
        self.observer.done(Done::SetMode(self.fd.as_fd(), mode));
        Ok(())
    }

    /// Waits for the file's lock. It is given back when every handle of this opening is closed, so
    /// by the end of the process too, however it ends.
    pub(super) fn lock(&self) -> Result<(), StoreError> {
        self.run(Operation::Lock, || flock(&self.fd, FlockOperation::LockExclusive))
    }

    /// Waits for a share of the file's lock.
    pub(super) fn lock_shared(&self) -> Result<(), StoreError> {
        self.run(Operation::Lock, || flock(&self.fd, FlockOperation::LockShared))
    }

    /// Takes the file's lock unless another opening has it.
    pub(super) fn try_lock(&self) -> Result<bool, StoreError> {
        let lock = || flock(&self.fd, FlockOperation::NonBlockingLockExclusive);
        match self.observer.raw(Operation::Lock, &self.path, lock) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(StoreError::new(Operation::Lock, &self.path, errno)),
        }
    }

    /// Type, owner, mode, size, number of names.
    pub(super) fn stat(&self) -> Result<Stat, StoreError> {
        self.run(Operation::Inspect, || fstat(&self.fd))
    }

    /// Which file it is, and in which state.
    pub(super) fn identity(&self) -> Result<Identity, StoreError> {
        Ok(Identity::of(&self.stat()?))
    }

    /// Appends some of the bytes and says how many.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<usize, StoreError> {
        let limit = self.observer.write_limit(bytes.len());
        let bytes = bytes.get(..limit).unwrap_or(bytes);
        let written = self.run(Operation::Write, || rustix::io::write(&self.fd, bytes))?;
        self.observer.done(Done::Write(self.fd.as_fd(), bytes.get(..written).unwrap_or(bytes)));
        Ok(written)
    }

    /// Appends all of the bytes.
    pub(super) fn write_all(&self, bytes: &[u8]) -> Result<(), StoreError> {
        Write::write_all(&mut &*self, bytes).map_err(StoreError::from_io)
    }

    /// Cuts off what follows the first `size` bytes.
    pub(super) fn truncate(&self, size: u64) -> Result<(), StoreError> {
        self.run(Operation::Truncate, || ftruncate(&self.fd, size))?;
        self.observer.done(Done::Truncate(self.fd.as_fd(), size));
        Ok(())
    }

    /// Makes the bytes durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.run(Operation::Sync, || fsync(&self.fd))?;
        self.observer.done(Done::Sync(self.fd.as_fd()));
        Ok(())
    }

    /// Reads it from the start, whatever position other handles are at.
    pub(super) fn reader(self) -> Reader {
        Reader { file: self, position: 0 }
    }

    fn run<T>(
        &self,
        operation: Operation,
        call: impl FnMut() -> rustix::io::Result<T>,
    ) -> Result<T, StoreError> {
        self.observer.run(operation, &self.path, call)
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(File::write(self, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file at a position of its own.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    position: u64,
}

impl Reader {
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { file, position } = self;
        let read = file.run(Operation::Read, || rustix::io::pread(&file.fd, &mut *buffer, *position))?;
        *position = position.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => {
                u64::try_from(self.file.stat()?.st_size).ok().and_then(|size| size.checked_add_signed(by))
            }
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
