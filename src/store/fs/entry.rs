//! What lies at a name, and which file it is.

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

/// What lies at a name.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Found {
    Nothing,
    /// A read-only file of ours with this many bytes.
    Sound(u64),
    /// A file of ours that somebody may have written to.
    Unsound,
}

/// A regular file of ours, unopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Inspected {
    /// Bytes.
    pub(in crate::store) size: u64,
    /// Whether it has no other name.
    pub(in crate::store) only_name: bool,
    pub(in crate::store) mode: u32,
    /// When it was last written to, in seconds since 1970, or what [`Folder::stamp`] gave it.
    pub(in crate::store) stamp: u64,
}

/// Which file it is, and in which state: what any write to it changes, and any copy of it does not have.
/// Another name for it changes it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Identity {
    device: u64,
    inode: u64,
    /// Bytes.
    pub(in crate::store) size: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Identity {
    pub(in crate::store) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether it is the same file, written to or not.
    pub(in crate::store) fn is_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether it is the same file with the same bytes, perhaps under other names.
    pub(in crate::store) fn has_bytes_of(&self, other: &Self) -> bool {
        self.is_file(other) && (self.size, self.modified) == (other.size, other.modified)
    }
}

/// The room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Space {
    /// For those without privileges.
    pub(in crate::store) free: u64,
    pub(in crate::store) total: u64,
}
