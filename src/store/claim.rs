//! Claims: which of the processes that share the store brings something. A claim is the lock of a file in
//! `flights/`, named by a keyed hash of who asks and for what; the kernel gives it back when its process
//! ends, however that ends. It is only ever tried, so nobody waits in here, and none holds two.
//!
//! The file goes with the claim. Whoever opened it before finds, once they have the lock, that it has no
//! name any more, and begins again.

use std::io;

use super::error::StoreError;
use super::file::File;
use super::fs::{Folder, SECRET};
use super::key::Purpose;
use super::layout::Way;
use super::{Audience, Store};

/// How often the file may go away, or come to be, between two looks at it.
const TRIES: usize = 16;

/// The right to bring something, among all processes. Given back on drop.
#[derive(Debug)]
pub struct Claim {
    folder: Folder,
    name: String,
    _locked: File,
}

impl Store {
    /// Takes the claim to bring `what` for this audience; none where another has it, be it in this
    /// process. What a claim is worth is between those who take it: the store's own files need none.
    pub fn claim(&self, audience: &Audience, what: &str) -> Result<Option<Claim>, StoreError> {
        let folder = Way::flights().make(self.root())?.folder;
        let audience = audience.name();
        let hash = self.key().hash(Purpose::Claim, &[audience.as_bytes(), what.as_bytes()]);
        let name = hex::encode(hash);
        for _ in 0..TRIES {
            let file = match folder.open(&name)? {
                Some(file) => file,
                None => match folder.create(&name) {
                    Ok(file) => {
                        file.set_mode(SECRET)?;
                        file
                    }
                    Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            if !file.try_lock()? {
                return Ok(None);
            }
            if file.stat()?.st_nlink > 0 {
                return Ok(Some(Claim { folder, name, _locked: file }));
            }
        }
        // Others come and go all the time.
        Ok(None)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // By name while the lock is held: nobody else removes or replaces it meanwhile.
        if let Err(error) = self.folder.remove(&self.name) {
            // The next who takes it, or the next start, removes it.
            tracing::debug!(%error, "left a claim's file in the store");
        }
    }
}
