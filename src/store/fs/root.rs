//! The one place where a path is opened: the folder that an operator named.

use std::path::Path;

use rustix::fs::{CWD, Mode, StatVfsMountFlags, fstatvfs, mkdirat};
use rustix::io::Errno;

use super::{Folder, PASSAGE, admit, is_refusal, open_folder, or_widened};
use crate::store::error::{Operation, StoreError};
use crate::store::observer::Observer;

/// Opens the folder that an operator named, after making it and its parents where they are missing.
/// Links in the way to it are resolved here, once; from here on none is followed.
pub(in crate::store) fn open_root(directory: &Path, observer: Observer) -> Result<Folder, StoreError> {
    let resolve =
        |error| StoreError::Io { operation: Operation::Resolve, path: directory.to_owned(), source: error };
    let wanted = std::path::absolute(directory).map_err(resolve)?;
    make_with_parents(&wanted, &observer)?;
    let path = wanted.canonicalize().map_err(resolve)?;
    if path.to_str().is_none() {
        return Err(StoreError::NotText { path });
    }
    let (root, stat) = open_folder(CWD, &path, path.clone(), &observer)?
        .ok_or_else(|| StoreError::new(Operation::OpenFolder, &path, Errno::NOENT))?;
    admit(&stat, &path)?;
    let mount = observer.run(Operation::Inspect, &path, || fstatvfs(&root.fd))?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(StoreError::ReadOnly { path });
    }
    Ok(root)
}

fn make_with_parents(path: &Path, observer: &Observer) -> Result<(), StoreError> {
    let make =
        || observer.raw(Operation::MakeFolder, path, || mkdirat(CWD, path, Mode::from_raw_mode(PASSAGE)));
    let made = match (make(), path.parent()) {
        (Err(Errno::NOENT), Some(parent)) => {
            make_with_parents(parent, observer)?;
            make()
        }
        (made, _) => made,
    };
    match made {
        // Whatever stands in its place is judged when it is opened.
        Err(Errno::EXIST) => return Ok(()),
        made => made.map_err(|errno| StoreError::new(Operation::MakeFolder, path, errno))?,
    }
    let open = || open_folder(CWD, path, path.to_owned(), observer);
    let (folder, stat) = or_widened(CWD, path, path, PASSAGE, observer, open)?
        .ok_or_else(|| StoreError::new(Operation::OpenFolder, path, Errno::NOENT))?;
    admit(&stat, path)?;
    folder.set_mode(PASSAGE)?;

    let parent = path.parent().unwrap_or(path).to_owned();
    match open_folder(&folder.fd, Path::new(".."), parent, observer) {
        Ok(Some((parent, _))) => parent.sync(),
        Ok(None) => Ok(()),
        // One that we may write to and not read. A crash may take the new folder: a few fetches.
        Err(error) if is_refusal(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
