//! Stands between the store and the kernel: each operation on a file or folder is announced here
//! first, so that tests can count, record and fail it. In a build that is not a test it does nothing.

use std::os::fd::BorrowedFd;
use std::path::Path;
#[cfg(test)]
use std::sync::Arc;

use super::error::{Operation, StoreError};
use super::fs::Space;

/// Sees each operation before it is done.
#[derive(Clone, Debug, Default)]
pub(super) enum Observer {
    #[default]
    None,
    #[cfg(test)]
    Faults(Arc<super::tests::faults::Faults>),
}

/// A name in an open folder.
pub(super) type Name<'a> = (BorrowedFd<'a>, &'a str);

/// What was done, as far as a crash of the machine could undo it.
#[cfg_attr(not(test), expect(dead_code, reason = "tests alone write it down"))]
pub(super) enum Done<'a> {
    MakeFolder(Name<'a>),
    Create(Name<'a>, BorrowedFd<'a>),
    Write(BorrowedFd<'a>, &'a [u8]),
    Truncate(BorrowedFd<'a>, u64),
    SetMode(BorrowedFd<'a>, u32),
    Stamp(Name<'a>, u64),
    /// Of a file or a folder.
    Sync(BorrowedFd<'a>),
    Link(Name<'a>, Name<'a>),
    Rename(Name<'a>, Name<'a>),
    /// Of a file or a folder.
    Remove(Name<'a>),
}

impl Observer {
    /// Tells what was done.
    #[cfg_attr(not(test), expect(unused_variables))]
    pub(super) fn done(&self, done: Done<'_>) {
        match self {
            Self::None => {}
            #[cfg(test)]
            Self::Faults(faults) => faults.done(done),
        }
    }

    /// What is done in the operation's place, if anything.
    #[cfg_attr(not(test), expect(unused_variables))]
    fn before(&self, operation: Operation, path: &Path) -> rustix::io::Result<()> {
        match self {
            Self::None => Ok(()),
            #[cfg(test)]
            Self::Faults(faults) => faults.before(operation, path),
        }
    }

    /// How many of `length` bytes one write takes at most.
    pub(super) fn write_limit(&self, length: usize) -> usize {
        match self {
            Self::None => length,
            #[cfg(test)]
            Self::Faults(faults) => faults.write_limit(length),
        }
    }

    /// The room on the file system, or what is said to be there.
    pub(super) fn space(&self, real: Space) -> Space {
        match self {
            Self::None => real,
            #[cfg(test)]
            Self::Faults(faults) => faults.space().unwrap_or(real),
        }
    }

    /// Does it, or what the observer has in its place.
    pub(super) fn raw<T>(
        &self,
        operation: Operation,
        path: &Path,
        mut call: impl FnMut() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        rustix::io::retry_on_intr(|| {
            self.before(operation, path)?;
            call()
        })
    }

    /// The same, with the error named.
    pub(super) fn run<T>(
        &self,
        operation: Operation,
        path: &Path,
        call: impl FnMut() -> rustix::io::Result<T>,
    ) -> Result<T, StoreError> {
        self.raw(operation, path, call).map_err(|errno| StoreError::new(operation, path, errno))
    }
}
