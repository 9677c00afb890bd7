//! Lower stores: other stores' folders of the same layout, as sources of content by its digest. Public views
//! are looked for first, since they are all that another user's store lets anybody read, then the content
//! itself. Their index is of no use here: its records are named by a key that only their owner reads.
//!
//! Nothing is ever linked from them, since another owner could write to it, and nothing there is written.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::error::StoreError;
use super::foreign::Foreign;
use super::layout::{VERSION, Way, view_name};
use super::{PayloadDigest, Store};

/// What another store has under a payload's digest. Whether it is that shows when it was hashed.
pub struct Lower {
    /// For people.
    pub path: PathBuf,
    /// Bytes, when it was opened.
    pub size: u64,
    pub reader: Box<dyn Read + Send>,
}

impl Store {
    /// Looks into these folders from now on.
    pub fn look_into(&self, lower: Vec<PathBuf>) {
        *self.0.lower.write().unwrap_or_else(PoisonError::into_inner) = lower;
    }

    /// What lower stores have under this digest, in the order in which they were named. One that cannot be
    /// read is left out, which is logged.
    pub fn lower(&self, payload: &PayloadDigest) -> Vec<Lower> {
        let folders = self.0.lower.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = Vec::new();
        for folder in folders {
            let (hex, view) = (payload.hex(), view_name(payload));
            let first = hex.get(..2).unwrap_or_default();
            for (way, name) in [(&["public", first][..], &view), (&["content", "blobs", first], &hex)] {
                match self.look_for(&folder, way, name) {
                    Ok(Some(lower)) => {
                        found.push(lower);
                        break;
                    }
                    Ok(None) => {}
                    // Of another user's store, what is behind its first folder.
                    Err(error) if super::fs::is_refusal(&error) => {
                        tracing::debug!("cannot look into a lower store: {error}");
                    }
                    Err(error) => tracing::warn!("cannot look into a lower store: {error}"),
                }
            }
        }
        found
    }

    fn look_for(&self, root: &Path, way: &[&str], name: &str) -> Result<Option<Lower>, StoreError> {
        let Some(mut at) = Foreign::open(root, self.root().observer())? else { return Ok(None) };
        for step in [Way::version_name(VERSION).as_str()].iter().chain(way) {
            match at.folder(step)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(at.file(name)?.map(|(file, size)| {
            let path = file.path().to_owned();
            Lower { path, size, reader: Box::new(file.reader()) }
        }))
    }
}
