//! The folders of other versions of the format. What holds between versions, now and later: whoever uses
//! a version's folder has a shared lock on it, and what Envoys may still open of it has a file in its
//! `content/leases`. So a later version can tell whether an earlier one is done with, and knows no more of
//! it than that.

use super::error::{Operation, StoreError};
use super::fs::{Folder, PASSAGE};
use super::layout::{VERSION, Way};

/// How deep folders of a version lie in each other; more is nothing of ours.
const MAX_DEPTH: usize = 8;
/// How often the folder may be swept by a later version just when it is made.
const TRIES: usize = 16;

/// Makes this version's folder where it is missing, and keeps later versions from sweeping it for as long
/// as what this returns lives.
pub(super) fn enter(root: &Folder) -> Result<Folder, StoreError> {
    for _ in 0..TRIES {
        let folder = Way::version().make(root)?.folder;
        if folder.try_lock(true)? && folder.is_there()? {
            return Ok(folder);
        }
        std::thread::yield_now();
    }
    Err(StoreError::new(
        Operation::Lock,
        &root.path().join(Way::version_name(VERSION)),
        rustix::io::Errno::WOULDBLOCK,
    ))
}

/// Sweeps the folders of earlier versions that nobody needs, and says what is left alone.
pub(super) fn look_at_others(root: &Folder) -> Result<(), StoreError> {
    for name in root.names()? {
        let Some(version) = name.strip_prefix('v').and_then(|number| number.parse::<u32>().ok()) else {
            continue;
        };
        let path = root.path().join(&name);
        let path = path.display();
        if version > VERSION || Way::version_name(version) != name {
            tracing::warn!(
                %path,
                "the store has a folder of a newer format than this version of wasmferry knows: it is left \
                 alone, and takes room until a newer one uses or somebody removes it"
            );
        } else if version < VERSION {
            match sweep(root, &name) {
                Ok(None) => tracing::info!(%path, "removed a folder of an older format from the store"),
                Ok(Some(reason)) => {
                    tracing::warn!(%path, "left alone a folder of an older format in the store: {reason}");
                }
                Err(error) => {
                    tracing::warn!(%path, "left alone a folder of an older format in the store: {error}");
                }
            }
        }
    }
    Ok(())
}

/// Removes an earlier version's folder; gives the reason why not.
fn sweep(root: &Folder, name: &str) -> Result<Option<&'static str>, StoreError> {
    let Some(folder) = root.folder(name, PASSAGE)? else { return Ok(None) };
    if !folder.try_lock(false)? {
        return Ok(Some("a process uses it"));
    }
    if let Some(leases) = Way::leases_of(name).walk(root)?
        && !leases.names()?.is_empty()
    {
        return Ok(Some("Envoys may still open modules in it"));
    }
    empty(&folder, MAX_DEPTH)?;
    let is_gone = root.remove_folder(name)?;
    root.sync()?;
    Ok((!is_gone).then_some("there is something in it that is not the store's"))
}

/// Removes all that is in a folder, and follows nothing out of it.
fn empty(folder: &Folder, depth: usize) -> Result<(), StoreError> {
    for name in folder.names()? {
        match folder.folder(&name, 0o777) {
            Ok(Some(inner)) if depth > 0 => {
                empty(&inner, depth - 1)?;
                folder.remove_folder(&name)?;
            }
            Ok(_) => {}
            // Of a link, the link.
            Err(StoreError::NotAFolder { .. } | StoreError::Link { .. }) => folder.remove(&name)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
