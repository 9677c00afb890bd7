//! The lock between those who use the store and those who remove something from it: `content/lock`.
//!
//! Whoever looks a payload up, gives it a place or writes a lease shares it for that moment, and says
//! in it that the payload is in use (`uses.rs`). Who removes has it alone, for a few payloads at a time,
//! and looks at their last uses again. So a payload is seen by one who wants it, or removed, and never
//! both.
//!
//! The order: a file in `ingest/`, then this one. Whoever has it waits for no other lock. Nothing is
//! synced under it.

use super::Store;
use super::error::StoreError;
use super::file::File;
use super::layout::Way;

const NAME: &str = "lock";
/// How often one who removes in the background asks for the lock before it gives up for now.
const TRIES: usize = 1_000;

/// The lock, or a share of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Locked(#[expect(dead_code, reason = "closing it gives the lock back")] File);

impl Store {
    /// Keeps everything in its place for a moment.
    pub(super) fn in_use(&self) -> Result<Locked, StoreError> {
        let file = self.lock_file()?;
        file.lock_shared()?;
        Ok(Locked(file))
    }

    /// Keeps everybody else from using the store for a moment. Who can do without gets none where it
    /// is in use all the time.
    pub(super) fn alone(&self, patient: bool) -> Result<Option<Locked>, StoreError> {
        let file = self.lock_file()?;
        if patient {
            file.lock()?;
            return Ok(Some(Locked(file)));
        }
        for _ in 0..TRIES {
            if file.try_lock()? {
                return Ok(Some(Locked(file)));
            }
            std::thread::yield_now();
        }
        Ok(None)
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        let content = match Way::content().walk(self.root())? {
            Some(content) => content,
            None => Way::content().make(self.root())?.folder,
        };
        content.open_lock(NAME)
    }
}
