//! What the store did to the file system, in order, with what it told its callers in between.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, fstat, statat};

use super::disk::Disk;
use super::promises::{Told, Value};
use crate::store::observer::{Done, Name};

/// What the kernel calls a file or folder. One that is made may be called as one that is gone.
pub(super) type Inode = u64;

/// A name in a folder.
pub(super) type Place = (Inode, String);

/// One thing that happened, and had an effect.
#[derive(Clone, Debug)]
pub(in crate::store) enum Event {
    MakeFolder(Place, Inode, u32),
    Create(Place, Inode, u32),
    Write(Inode, Vec<u8>),
    Truncate(Inode, u64),
    SetMode(Inode, u32),
    Stamp(Place, u64),
    Sync(Inode),
    Link(Place, Place),
    Rename(Place, Place),
    Remove(Place),
    /// By now all is on disk, as it is there.
    Flushed(Box<Disk>),
    /// The store was asked for something, and until it is done both the old and the new are right.
    Asked(Told, Value),
    /// It said that it is done.
    Promised(Told, Value),
}

impl Event {
    pub(in crate::store) fn of(done: Done<'_>) -> Self {
        match done {
            Done::MakeFolder(at) => {
                let made = statat(at.0, at.1, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                Self::MakeFolder(place(at), made.st_ino, made.st_mode & 0o7777)
            }
            Done::Create(at, file) => {
                let made = fstat(file).unwrap();
                Self::Create(place(at), made.st_ino, made.st_mode & 0o7777)
            }
            Done::Write(file, bytes) => Self::Write(inode(file), bytes.to_vec()),
            Done::Truncate(file, size) => Self::Truncate(inode(file), size),
            Done::SetMode(of, mode) => Self::SetMode(inode(of), mode),
            Done::Stamp(at, seconds) => Self::Stamp(place(at), seconds),
            Done::Sync(of) => Self::Sync(inode(of)),
            Done::Link(from, to) => Self::Link(place(from), place(to)),
            Done::Rename(from, to) => Self::Rename(place(from), place(to)),
            Done::Remove(at) => Self::Remove(place(at)),
        }
    }
}

impl Event {
    /// Whether all that a crash may leave before it is among what it may leave after it.
    pub(super) fn only_adds(&self) -> bool {
        match self {
            Self::MakeFolder(..)
            | Self::Create(..)
            | Self::Link(..)
            | Self::Rename(..)
            | Self::Remove(..) => true,
            Self::SetMode(..) | Self::Stamp(..) => true,
            Self::Write(..) | Self::Truncate(..) | Self::Sync(_) | Self::Flushed(_) => false,
            Self::Asked(..) | Self::Promised(..) => false,
        }
    }
}

fn place((folder, name): Name<'_>) -> Place {
    (inode(folder), name.to_owned())
}

fn inode(of: impl AsFd) -> Inode {
    fstat(of).unwrap().st_ino
}
