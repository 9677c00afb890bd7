//! The store's one way to the file system. Everything starts at a root that is opened once and goes
//! down one name at a time, refusing links at each, so that nothing outside the root can be reached
//! whatever lies below it. This needs nothing of the kernel that a container may be denied. Every call
//! passes an [`Observer`].
//!
//! Names come from the store's own code: none holds a `/` or is `..`. What is at which name, and
//! what it is good for, is not known here.

mod entry;
mod root;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT,
    chmodat, fchmod, flock, fstat, fstatfs, fstatvfs, fsync, linkat, mkdirat, openat, renameat, statat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

pub(super) use self::entry::{Found, Identity, Inspected, Space};
pub(super) use self::root::open_root;
use super::error::{Operation, StoreError};
use super::file::File;
use super::observer::{Done, Name, Observer};

/// Folders for their owner alone.
pub(super) const OWNER_ONLY: u32 = 0o700;
/// Folders that others may pass through to a name they know, and not list.
pub(super) const PASSAGE: u32 = 0o711;
/// Files that nobody writes to any more.
pub(super) const READ_ONLY: u32 = 0o444;
/// Files for their owner alone.
pub(super) const SECRET: u32 = 0o600;

const WRITE_BY_OTHERS: u32 = 0o022;
/// The magic numbers of tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without blocking, so that a named pipe in a file's place cannot hold us.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// An open folder. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    observer: Observer,
}

/// Opens a folder that was made with `mode`, where an umask has taken even its owner's rights away too.
fn or_widened<T>(
    below: impl AsFd,
    name: &Path,
    path: &Path,
    mode: u32,
    observer: &Observer,
    open: impl Fn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let refused = match open() {
        Err(error) if is_refusal(&error) => error,
        opened => return opened,
    };
    // Whoever may not read it may still name it, and its owner may change its mode: by way of a handle, so
    // that it is this folder and no other.
    let flags = FOLDER | OFlags::PATH;
    let handle = observer
        .run(Operation::OpenFolder, path, || openat(&below, name, flags, Mode::empty()))
        .map_err(|_| refused)?;
    let stat = observer.run(Operation::Inspect, path, || fstat(&handle))?;
    owned(&stat, path)?;
    let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let widen = || chmodat(CWD, itself.as_str(), Mode::from_raw_mode(mode), AtFlags::empty());
    observer.run(Operation::SetMode, path, widen)?;
    open()
}

/// Whether the mode of something of ours does not let us open it.
pub(super) fn is_refusal(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

/// `None` where nothing is at that path.
fn open_folder(
    below: impl AsFd,
    name: &Path,
    path: PathBuf,
    observer: &Observer,
) -> Result<Option<(Folder, Stat)>, StoreError> {
    let open = || openat(&below, name, FOLDER | OFlags::RDONLY, Mode::empty());
    let fd = match observer.raw(Operation::OpenFolder, &path, open) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        // The kernel says the same of a link and of a file.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let stat = || statat(&below, name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = observer.run(Operation::Inspect, &path, stat)?;
            return Err(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => StoreError::Link { path },
                _ => StoreError::NotAFolder { path },
            });
        }
        Err(errno) => return Err(StoreError::new(Operation::OpenFolder, &path, errno)),
    };
    let stat = observer.run(Operation::Inspect, &path, || fstat(&fd))?;
    Ok(Some((Folder { fd: Arc::new(fd), path, observer: observer.clone() }, stat)))
}

/// Refuses what is not ours, or not ours alone to write.
fn admit(stat: &Stat, path: &Path) -> Result<(), StoreError> {
    owned(stat, path)?;
    if stat.st_mode & WRITE_BY_OTHERS != 0 {
        return Err(StoreError::WritableByOthers { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

fn owned(stat: &Stat, path: &Path) -> Result<(), StoreError> {
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid == user {
        return Ok(());
    }
    Err(StoreError::NotOurs { path: path.to_owned(), owner: stat.st_uid, user })
}

impl Folder {
    /// The absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn observer(&self) -> &Observer {
        &self.observer
    }

    fn name<'a>(&'a self, name: &'a str) -> Name<'a> {
        (self.fd.as_fd(), name)
    }

    /// Opens a folder in this one, where there is one. It must be ours, and no wider than `mode`.
    pub(super) fn folder(&self, name: &str, mode: u32) -> Result<Option<Folder>, StoreError> {
        Ok(self.folder_and_mode(name, mode)?.map(|(folder, _)| folder))
    }

    /// Opens a folder in this one and makes it first where it is missing.
    pub(super) fn make_folder(&self, name: &str, mode: u32) -> Result<Folder, StoreError> {
        let path = self.path.join(name);
        let open = || {
            or_widened(&self.fd, Path::new(name), &path, mode, &self.observer, || {
                self.folder_and_mode(name, mode)
            })
        };
        let (folder, found) = match open()? {
            Some(found) => found,
            None => {
                let make = || mkdirat(&self.fd, name, Mode::from_raw_mode(mode));
                match self.observer.raw(Operation::MakeFolder, &path, make) {
                    Ok(()) => self.observer.done(Done::MakeFolder(self.name(name))),
                    // Another process was as quick.
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(StoreError::new(Operation::MakeFolder, &path, errno)),
                }
                open()?.ok_or_else(|| StoreError::new(Operation::OpenFolder, &path, Errno::NOENT))?
            }
        };
        // What the umask took away, and what a set-group-id parent added.
        if found != mode {
            folder.set_mode(mode)?;
        }
        Ok(folder)
    }

    fn folder_and_mode(&self, name: &str, mode: u32) -> Result<Option<(Folder, u32)>, StoreError> {
        let path = self.path.join(name);
        let Some((folder, stat)) = open_folder(&self.fd, Path::new(name), path, &self.observer)? else {
            return Ok(None);
        };
        admit(&stat, &folder.path)?;
        let found = stat.st_mode & 0o7777;
        if found & 0o777 & !mode != 0 {
            return Err(StoreError::Mode { path: folder.path, mode: found, expected: mode });
        }
        Ok(Some((folder, found)))
    }

    fn set_mode(&self, mode: u32) -> Result<(), StoreError> {
        let set = || fchmod(&self.fd, Mode::from_raw_mode(mode));
        self.observer.run(Operation::SetMode, &self.path, set)?;
        self.observer.done(Done::SetMode(self.fd.as_fd(), mode));
        Ok(())
    }

    /// Takes the folder's lock, or a share of it, unless others have what speaks against that. It is
    /// given back when the last clone of this is dropped.
    pub(super) fn try_lock(&self, shared: bool) -> Result<bool, StoreError> {
        let operation = match shared {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match self.observer.raw(Operation::Lock, &self.path, || flock(&self.fd, operation)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(StoreError::new(Operation::Lock, &self.path, errno)),
        }
    }

    /// Whether it has not been removed since it was opened.
    pub(super) fn is_there(&self) -> Result<bool, StoreError> {
        Ok(self.observer.run(Operation::Inspect, &self.path, || fstat(&self.fd))?.st_nlink > 0)
    }

    /// Makes the names in this folder durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.observer.run(Operation::SyncFolder, &self.path, || fsync(&self.fd))?;
        self.observer.done(Done::Sync(self.fd.as_fd()));
        Ok(())
    }

    /// The names in this folder, except those that are not UTF-8: they are not the store's.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        self.observer.run(Operation::List, &self.path, || {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.fd)? {
                match entry?.file_name().to_str() {
                    Ok("." | "..") | Err(_) => {}
                    Ok(name) => names.push(name.to_owned()),
                }
            }
            Ok(names)
        })
    }

    /// Creates a file that can be read and written. The caller sets its mode: the umask has a say
    /// in the one that it has now.
    pub(super) fn create(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path.join(name);
        let flags = FILE | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let create = || openat(&self.fd, name, flags, Mode::from_raw_mode(SECRET));
        let fd = self.observer.run(Operation::Create, &path, create)?;
        self.observer.done(Done::Create(self.name(name), fd.as_fd()));
        Ok(File::new(fd, path, self.observer.clone()))
    }

    /// Opens a file for reading, where there is one. It must be regular and ours.
    pub(super) fn open(&self, name: &str) -> Result<Option<File>, StoreError> {
        let opened = open_file(&self.fd, name, self.path.join(name), OFlags::RDONLY, &self.observer)?;
        let Some((file, stat)) = opened else { return Ok(None) };
        owned(&stat, file.path())?;
        Ok(Some(file))
    }

    /// Opens a file of ours for reading, and for writing at its end.
    pub(super) fn open_to_append(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path.join(name);
        let flags = OFlags::RDWR | OFlags::APPEND;
        let (file, stat) = open_file(&self.fd, name, path.clone(), flags, &self.observer)?
            .ok_or_else(|| StoreError::new(Operation::Open, &path, Errno::NOENT))?;
        owned(&stat, file.path())?;
        Ok(file)
    }

    /// Looks at a file without opening it, where there is one. It must be regular and ours.
    pub(super) fn inspect(&self, name: &str) -> Result<Option<Inspected>, StoreError> {
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        Ok(Some(Inspected {
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            only_name: stat.st_nlink == 1,
            mode: stat.st_mode & 0o7777,
            stamp: u64::try_from(stat.st_mtime).unwrap_or_default(),
        }))
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        let path = self.path.join(name);
        let inspect = || statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = match self.observer.raw(Operation::Inspect, &path, inspect) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(StoreError::new(Operation::Inspect, &path, errno)),
        };
        regular(&stat, &path)?;
        owned(&stat, &path)?;
        Ok(Some(stat))
    }

    /// Looks at a name without opening it. Anything but a regular file of ours is an error.
    pub(super) fn find(&self, name: &str) -> Result<Found, StoreError> {
        let Some(stat) = self.stat(name)? else { return Ok(Found::Nothing) };
        Ok(match u64::try_from(stat.st_size) {
            Ok(size) if stat.st_mode & 0o7777 == READ_ONLY => Found::Sound(size),
            _ => Found::Unsound,
        })
    }

    /// Which file is at a name, where it is a sound one.
    pub(super) fn sound(&self, name: &str) -> Result<Option<Identity>, StoreError> {
        let stat = self.stat(name)?.filter(|stat| stat.st_mode & 0o7777 == READ_ONLY);
        Ok(stat.map(|stat| Identity::of(&stat)))
    }

    /// Which file is at a name, whatever its mode is.
    pub(super) fn identify(&self, name: &str) -> Result<Option<Identity>, StoreError> {
        Ok(self.stat(name)?.map(|stat| Identity::of(&stat)))
    }

    /// Whether what lies here is kept in memory, and gone with the machine's or the pod's.
    pub(super) fn is_in_memory(&self) -> Result<bool, StoreError> {
        let system = self.observer.run(Operation::Inspect, &self.path, || fstatfs(&self.fd))?;
        Ok(IN_MEMORY.contains(&u64::try_from(system.f_type).unwrap_or_default()))
    }

    /// Opens a file for its lock, and makes it first where it is missing.
    pub(super) fn open_lock(&self, name: &str) -> Result<File, StoreError> {
        loop {
            if let Some(file) = self.open(name)? {
                return Ok(file);
            }
            match self.create(name) {
                Ok(file) => return file.set_mode(SECRET).map(|()| file),
                // Another process was as quick.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets a file's time to so many seconds, which need not be those of any clock; `false` where there
    /// is no such file.
    pub(super) fn stamp(&self, name: &str, seconds: u64) -> Result<bool, StoreError> {
        let path = self.path.join(name);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 },
        };
        let stamp = || utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW);
        match self.observer.raw(Operation::Stamp, &path, stamp) {
            Ok(()) => {
                self.observer.done(Done::Stamp(self.name(name), seconds));
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(StoreError::new(Operation::Stamp, &path, errno)),
        }
    }

    /// The room on the file system that this folder is on.
    pub(super) fn space(&self) -> Result<Space, StoreError> {
        let mount = self.observer.run(Operation::Inspect, &self.path, || fstatvfs(&self.fd))?;
        let bytes = |blocks: u64| blocks.saturating_mul(mount.f_frsize);
        Ok(self.observer.space(Space { free: bytes(mount.f_bavail), total: bytes(mount.f_blocks) }))
    }

    /// Gives a file a second name; `false` where that name is taken.
    pub(super) fn link(&self, name: &str, to: &Folder, new: &str) -> Result<bool, StoreError> {
        let path = to.path.join(new);
        let link = || linkat(&self.fd, name, &to.fd, new, AtFlags::empty());
        match self.observer.raw(Operation::Link, &path, link) {
            Ok(()) => {
                self.observer.done(Done::Link(self.name(name), to.name(new)));
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(StoreError::new(Operation::Link, &path, errno)),
        }
    }

    /// Moves a file to another name, in the place of what is there.
    pub(super) fn rename(&self, name: &str, to: &Folder, new: &str) -> Result<(), StoreError> {
        let path = to.path.join(new);
        self.observer.run(Operation::Rename, &path, || renameat(&self.fd, name, &to.fd, new))?;
        self.observer.done(Done::Rename(self.name(name), to.name(new)));
        Ok(())
    }

    /// Removes a name of a file. One that is gone already is as good.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path.join(name);
        match self.observer.raw(Operation::Remove, &path, || unlinkat(&self.fd, name, AtFlags::empty())) {
            Ok(()) => {
                self.observer.done(Done::Remove(self.name(name)));
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(StoreError::new(Operation::Remove, &path, errno)),
        }
    }

    /// Removes a folder in this one; `false` where there is something in it.
    pub(super) fn remove_folder(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.path.join(name);
        match self.observer.raw(Operation::Remove, &path, || unlinkat(&self.fd, name, AtFlags::REMOVEDIR)) {
            Ok(()) => {
                self.observer.done(Done::Remove(self.name(name)));
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(StoreError::new(Operation::Remove, &path, errno)),
        }
    }
}

/// Syncs several folders, each once, at the same time: they mostly wait for one and the same flush of
/// the disk.
pub(super) fn sync_together(folders: &[&Folder]) -> Result<(), StoreError> {
    let folders: BTreeMap<_, _> = folders.iter().map(|folder| (&folder.path, *folder)).collect();
    let folders: Vec<_> = folders.into_values().collect();
    let Some((first, others)) = folders.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let spawn = |folder: &'_ &Folder| {
            let folder = Folder::clone(folder);
            std::thread::Builder::new().spawn_scoped(scope, move || folder.sync())
        };
        let others: Vec<_> = others.iter().map(|folder| (folder, spawn(folder))).collect();
        let mut result = first.sync();
        for (folder, thread) in others {
            result = result.and(match thread {
                Ok(thread) => joined(thread.join(), Operation::SyncFolder, &folder.path),
                // No thread to be had: one after the other, then.
                Err(_) => folder.sync(),
            });
        }
        result
    })
}

/// The result of a thread that did this with a file or a folder. One that died has done nothing.
pub(super) fn joined<T>(
    joined: std::thread::Result<Result<T, StoreError>>,
    operation: Operation,
    path: &Path,
) -> Result<T, StoreError> {
    joined.unwrap_or_else(|_| {
        let source = io::Error::other("the thread that did it died");
        Err(StoreError::Io { operation, path: path.to_owned(), source })
    })
}

/// Opens a file below a folder, where there is one, without waiting for whoever holds it. It must be regular.
pub(super) fn open_file(
    below: impl AsFd,
    name: &str,
    path: PathBuf,
    flags: OFlags,
    observer: &Observer,
) -> Result<Option<(File, Stat)>, StoreError> {
    let open = || openat(&below, name, FILE | flags, Mode::empty());
    let fd = match observer.raw(Operation::Open, &path, open) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(StoreError::new(Operation::Open, &path, errno)),
    };
    let file = File::new(fd, path, observer.clone());
    let stat = file.stat()?;
    regular(&stat, file.path())?;
    Ok(Some((file, stat)))
}

fn regular(stat: &Stat, path: &Path) -> Result<(), StoreError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(StoreError::Link { path: path.to_owned() }),
        _ => Err(StoreError::NotAFile { path: path.to_owned() }),
    }
}
