//! Payloads where they stay, and the audiences' views of them.

use super::error::{Operation, StoreError};
use super::fs::{Folder, Found};
use super::layout::{Place, Way, view_name};
use super::temporary::{Temporary, fresh_name};
use super::{Audience, PayloadDigest, Store, Stored};

impl Store {
    /// The audience's view of a payload, where it has one and that is whole: read-only, ours, and
    /// as long as the payload itself. Anything but a regular file of ours is an error. It counts as
    /// used, and stays for at least ten minutes of the store's age.
    pub fn view(&self, audience: &Audience, payload: &PayloadDigest) -> Result<Option<Stored>, StoreError> {
        let _used = self.in_use()?;
        let found = self.find_view(audience, payload)?;
        if found.is_some() {
            self.note_use(payload);
        }
        Ok(found)
    }

    /// What [`find`](Self::find) has found, to be used. Where this process has not just said that it is in
    /// use, it may have been removed meanwhile.
    pub fn take(&self, audience: &Audience, found: Stored) -> Result<Option<Stored>, StoreError> {
        match self.is_noted(&found.payload) {
            true => Ok(Some(found)),
            false => self.view(audience, &found.payload),
        }
    }

    /// The same for who does not hand it out.
    pub(super) fn find_view(
        &self,
        audience: &Audience,
        payload: &PayloadDigest,
    ) -> Result<Option<Stored>, StoreError> {
        let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(None) };
        let Some(views) = Way::view(audience, payload).walk(self.root())? else { return Ok(None) };
        let name = view_name(payload);
        Ok(match (blobs.find(&payload.hex())?, views.find(&name)?) {
            (Found::Sound(size), Found::Sound(seen)) if size == seen => {
                Some(Stored { path: views.path().join(name), payload: *payload, size })
            }
            _ => None,
        })
    }

    /// Gives a file whose bytes are durable its place, and says which folders are to be synced for it.
    /// See [`Finished::commit`](super::Finished::commit).
    pub(super) fn place(
        &self,
        file: &mut Temporary,
        payload: &PayloadDigest,
        size: u64,
        audience: &Audience,
    ) -> Result<(Stored, [Place; 2]), StoreError> {
        let room = self.reserve(payload, size)?;
        let used = self.in_use()?;
        self.stamp_use(payload)?;
        let blob = Way::blob(payload).make(self.root())?;
        let view = Way::view(audience, payload).make(self.root())?;
        let name = view_name(payload);

        let is_new = self.place_content(file, &blob.folder, payload, size)?;
        if let Err(error) = self.place_view(&blob.folder, payload, size, &view.folder, &name) {
            if is_new {
                // Envoys open views, never this: taking it back costs another process a fetch at most.
                let _ = blob.folder.remove(&payload.hex());
            }
            return Err(error);
        }
        drop(used);
        if is_new {
            room.keep();
        }
        let stored = Stored { path: view.folder.path().join(name), payload: *payload, size };
        // Also where nothing is new: who put it there may not have come this far.
        Ok((stored, [blob, view]))
    }

    /// Says whether the store did not have the payload before.
    fn place_content(
        &self,
        file: &mut Temporary,
        blobs: &Folder,
        payload: &PayloadDigest,
        size: u64,
    ) -> Result<bool, StoreError> {
        let name = payload.hex();
        if file.link(blobs, &name)? {
            return Ok(true);
        }
        if blobs.find(&name)? != Found::Sound(size) {
            tracing::warn!(%payload, "replaced a damaged file in the store");
            file.rename(blobs, &name)?;
        }
        Ok(false)
    }

    fn place_view(
        &self,
        blobs: &Folder,
        payload: &PayloadDigest,
        size: u64,
        views: &Folder,
        name: &str,
    ) -> Result<(), StoreError> {
        let content = payload.hex();
        // A view that is another file than the content, and whole, may be open somewhere: it stays.
        if blobs.link(&content, views, name)? || views.find(name)? == Found::Sound(size) {
            return Ok(());
        }
        // By way of a second name, so that at each moment the view is one or the other.
        let ingest = Way::ingest().make(self.root())?.folder;
        let second = fresh_name()?;
        if !blobs.link(&content, &ingest, &second)? {
            return Err(StoreError::new(Operation::Link, ingest.path(), rustix::io::Errno::EXIST));
        }
        ingest.rename(&second, views, name).inspect_err(|_| {
            let _ = ingest.remove(&second);
        })
    }
}
