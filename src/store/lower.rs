//! Lower stores: other stores' folders of the same layout, as sources of content by its digest. Public views
//! alone are looked at, also where this user may read the rest: what was pulled with a credential is not for
//! whoever has heard of its digest. Their index is of no use here: its records are named by a key that only
//! their owner reads.
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

    /// Whether there are any to look into.
    pub fn has_lower(&self) -> bool {
        !self.0.lower.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What lower stores have under this digest, in the order in which they were named. One that cannot be
    /// read is left out, which is logged.
    pub fn lower(&self, payload: &PayloadDigest) -> Vec<Lower> {
        let folders = self.0.lower.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = Vec::new();
        for folder in folders {
            match self.look_for(&folder, payload) {
                Ok(lower) => found.extend(lower),
                Err(error) => tracing::warn!("cannot look into a lower store: {error}"),
            }
        }
        found
    }

    fn look_for(&self, root: &Path, payload: &PayloadDigest) -> Result<Option<Lower>, StoreError> {
        let Some(mut at) = Foreign::open(root, self.root().observer())? else { return Ok(None) };
        let (version, hex) = (Way::version_name(VERSION), payload.hex());
        for step in [version.as_str(), "public", hex.get(..2).unwrap_or_default()] {
            match at.folder(step)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(at.file(&view_name(payload))?.map(|(file, size)| {
            let path = file.path().to_owned();
            Lower { path, size, reader: Box::new(file.reader()) }
        }))
    }
}
