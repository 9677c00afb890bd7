//! Payloads where they stay, and the audiences' views of them.

use super::error::{Operation, StoreError};
use super::fs::{Folder, Found, Identity};
use super::index::PreparedRecord;
use super::ingest::sync_places;
use super::layout::{Place, Way, view_name};
use super::temporary::{Temporary, fresh_name};
use super::verify::Verdict;
use super::{Audience, PayloadDigest, Store, Stored};

/// How often a view may come to be another file while it is looked at.
const TRIES: usize = 4;

/// A view, with the files that it and the content are.
struct Seen {
    stored: Stored,
    blob: Identity,
    view: Identity,
}

/// A view that was seen, which is to be [taken](Store::take) before it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub(super) stored: Stored,
    /// Nobody is about to remove it, and its bytes are what they were when they were hashed.
    is_ready: bool,
}

impl Store {
    /// The audience's view of a payload, where it has one and that is whole: read-only, ours, and of
    /// the bytes that its name says, as far as its [seal](super::seal) tells; without one that fits it is
    /// hashed first. Anything but a regular file of ours is an error. It counts as used, and stays for at
    /// least ten minutes of the store's age. One that is damaged goes to quarantine, and is a miss.
    pub fn view(&self, audience: &Audience, payload: &PayloadDigest) -> Result<Option<Stored>, StoreError> {
        for _ in 0..TRIES {
            let seen = {
                let _used = self.in_use()?;
                let seen = self.see_view(audience, payload)?;
                if seen.is_some() {
                    self.note_use(payload);
                }
                seen
            };
            let Some(Seen { stored, blob, view }) = seen else { return Ok(None) };
            if !self.is_sealed(payload, &blob) && !matches!(self.check(payload)?, Verdict::Whole(_)) {
                return Ok(None);
            }
            if view.is_file(&blob) {
                return Ok(Some(stored));
            }
            // Nobody has looked at these bytes.
            self.link_again(audience, payload)?;
        }
        Ok(None)
    }

    /// What [`find`](Self::find) has found, to be used. Where this process has not just said that it is in
    /// use, it may have been removed meanwhile, and where it has not looked at its bytes, be damaged.
    pub fn take(&self, audience: &Audience, found: Sighting) -> Result<Option<Stored>, StoreError> {
        match found.is_ready {
            true => Ok(Some(found.stored)),
            false => self.view(audience, &found.stored.payload),
        }
    }

    /// A view, for who does not hand it out as it is.
    pub(super) fn sight(
        &self,
        audience: &Audience,
        payload: &PayloadDigest,
    ) -> Result<Option<Sighting>, StoreError> {
        let seen = self.see_view(audience, payload)?;
        Ok(seen.map(|Seen { stored, blob, view }| {
            let is_ready =
                view.is_file(&blob) && self.is_noted(payload) && self.is_known_whole(payload, &blob);
            Sighting { stored, is_ready }
        }))
    }

    /// The same for who does not hand it out, and with nothing known of its bytes.
    pub(super) fn find_view(
        &self,
        audience: &Audience,
        payload: &PayloadDigest,
    ) -> Result<Option<Stored>, StoreError> {
        Ok(self.see_view(audience, payload)?.map(|seen| seen.stored))
    }

    fn see_view(&self, audience: &Audience, payload: &PayloadDigest) -> Result<Option<Seen>, StoreError> {
        let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(None) };
        let Some(views) = Way::view(audience, payload).walk(self.root())? else { return Ok(None) };
        let name = view_name(payload);
        Ok(match (blobs.sound(&payload.hex())?, views.sound(&name)?) {
            (Some(blob), Some(view)) if blob.size == view.size => {
                let stored = Stored { path: views.path().join(name), payload: *payload, size: blob.size };
                Some(Seen { stored, blob, view })
            }
            _ => None,
        })
    }

    /// Gives the audience its view of a payload that another one has brought, where that is there and whole,
    /// and it takes the place of all that the index said: `records` are made of its size in bytes. Durable
    /// by then, and used. That the audience may have it is the caller's to know.
    pub fn share(
        &self,
        audience: &Audience,
        payload: &PayloadDigest,
        records: impl FnOnce(u64) -> Vec<PreparedRecord>,
    ) -> Result<Option<Stored>, StoreError> {
        let Some(whole) = self.settle(payload)? else { return Ok(None) };
        let records = records(whole.size);
        let (stored, view) = {
            let _used = self.in_use()?;
            let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(None) };
            // It may have gone meanwhile, or be another file.
            if !blobs.sound(&payload.hex())?.is_some_and(|there| there.has_bytes_of(&whole)) {
                return Ok(None);
            }
            self.stamp_use(payload)?;
            let view = Way::view(audience, payload).make(self.root())?;
            let name = view_name(payload);
            self.place_view(&blobs, payload, whole.size, &view.folder, &name)?;
            (Stored { path: view.folder.path().join(name), payload: *payload, size: whole.size }, view)
        };
        sync_places(vec![view], records)?;
        // It has one name more.
        self.seal_what_is(payload, [Some(whole), None]);
        Ok(Some(stored))
    }

    /// Has a view that is a copy of the content, as one that was restored from a backup may be, be the
    /// content itself.
    pub(super) fn link_again(&self, audience: &Audience, payload: &PayloadDigest) -> Result<(), StoreError> {
        let known = {
            let _used = self.in_use()?;
            let Some(blobs) = Way::blob(payload).walk(self.root())? else { return Ok(()) };
            let Some(views) = Way::view(audience, payload).walk(self.root())? else { return Ok(()) };
            let Some(known) = blobs.sound(&payload.hex())? else { return Ok(()) };
            self.put_in_place_of(&blobs, payload, &views, &view_name(payload))?;
            self.is_sealed(payload, &known).then_some(known)
        };
        self.seal_what_is(payload, [known, None]);
        Ok(())
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
        if blobs.link(&content, views, name)? {
            return Ok(());
        }
        // Of another file nobody knows the bytes. Whoever has it open keeps it.
        if let (Some(view), Some(blob)) = (views.sound(name)?, blobs.sound(&content)?)
            && view.is_file(&blob)
            && view.size == size
        {
            return Ok(());
        }
        self.put_in_place_of(blobs, payload, views, name)
    }

    /// By way of a second name, so that at each moment the view is one or the other.
    fn put_in_place_of(
        &self,
        blobs: &Folder,
        payload: &PayloadDigest,
        views: &Folder,
        name: &str,
    ) -> Result<(), StoreError> {
        let content = payload.hex();
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
