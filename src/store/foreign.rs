//! Folders that are not ours: another store's, on a mount that may be read-only, of whatever owner and mode.
//! They are only ever read. One name at a time, refusing links at each, like all else; what must be able to
//! be passed through and need not be listed.
//!
//! What is read here was written by nobody whom we trust: whoever reads it hashes it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::error::{Operation, StoreError};
use super::file::File;
use super::fs::open_file;
use super::observer::Observer;

/// To pass through: a folder that cannot be listed can be opened so.
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open folder of somebody's.
#[derive(Debug)]
pub(super) struct Foreign {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    observer: Observer,
}

impl Foreign {
    /// A folder that the operator named, which may be reached through links; none where there is none.
    pub(super) fn open(path: &Path, observer: &Observer) -> Result<Option<Self>, StoreError> {
        // The last name may be a link too: it is the operator's own.
        let flags = PASS.difference(OFlags::NOFOLLOW);
        let open = || openat(CWD, path, flags, Mode::empty());
        Self::opened(observer.raw(Operation::OpenFolder, path, open), path.to_owned(), observer)
    }

    /// A folder in this one, where there is one.
    pub(super) fn folder(&self, name: &str) -> Result<Option<Self>, StoreError> {
        let path = self.path.join(name);
        let open = || openat(&self.fd, name, PASS, Mode::empty());
        Self::opened(self.observer.raw(Operation::OpenFolder, &path, open), path, &self.observer)
    }

    fn opened(
        fd: rustix::io::Result<OwnedFd>,
        path: PathBuf,
        observer: &Observer,
    ) -> Result<Option<Self>, StoreError> {
        match fd {
            Ok(fd) => Ok(Some(Self { fd: Arc::new(fd), path, observer: observer.clone() })),
            Err(Errno::NOENT) => Ok(None),
            // Of a link the kernel says that it is no folder.
            Err(Errno::NOTDIR | Errno::LOOP) => Err(StoreError::NotAFolder { path }),
            Err(errno) => Err(StoreError::new(Operation::OpenFolder, &path, errno)),
        }
    }

    /// A regular file in this one, for reading, where there is one; and its size in bytes.
    pub(super) fn file(&self, name: &str) -> Result<Option<(File, u64)>, StoreError> {
        let opened = open_file(&self.fd, name, self.path.join(name), OFlags::RDONLY, &self.observer)?;
        Ok(opened.map(|(file, stat)| (file, u64::try_from(stat.st_size).unwrap_or_default())))
    }
}
