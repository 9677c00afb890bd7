//! Proofs: which credential has shown to a registry that it may read something, what that was, and when, in
//! the store's own age. For as long as the operator says, nobody has to show it again; and an older one tells
//! whom to trust while the registry is down.
//!
//! All proofs of one credential in one repository lie in one folder, so that a registry that refuses it there
//! ends them together. Names are keyed hashes. None is synced, since one that is lost costs a question and one
//! that is torn is none; that they are gone is, since a credential that was refused must not come back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::age::PLAUSIBLE;
use super::error::StoreError;
use super::fs::{Folder, OWNER_ONLY};
use super::key::Purpose;
use super::layout::Way;
use super::small::{read_small, to_json};
use super::uses::RECENT;
use super::{Audience, PayloadDigest, Store};
use crate::digest::SourceDigest;

const FORMAT: u32 = 1;
/// The longest proof in bytes that is read.
const LIMIT: u64 = 4 << 10;
/// So long one stays for the days on which its registry is down, while the payload is there.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a credential has shown that it may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What it led to.
    pub payload: PayloadDigest,
    /// The manifest that led there.
    pub source: SourceDigest,
    /// How long ago that was, in the store's age.
    pub ago: Duration,
    /// Whether that is shorter than a proof [lasts](super::Limits::proof).
    pub is_fresh: bool,
}

/// A proof as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    /// Its own name: one that came to lie under another's is found out.
    proof: String,
    payload: String,
    source: String,
    /// Seconds of the store's age.
    shown: u64,
}

impl Store {
    /// Writes down that whoever shows this audience's credential was let read `name` in `repository`, so long
    /// `ago`, and what it led to.
    pub fn prove(
        &self,
        audience: &Audience,
        repository: &str,
        name: &str,
        (payload, source): (&PayloadDigest, &SourceDigest),
        ago: Duration,
    ) -> Result<(), StoreError> {
        let (way, name) = self.proof_place(audience, repository, name);
        let entry = Entry {
            format: FORMAT,
            proof: name.clone(),
            payload: payload.to_string(),
            source: source.to_string(),
            shown: self.age().saturating_sub(ago.as_secs()),
        };
        let bytes = to_json(&entry)?;
        drop(self.place_small(&way, &name, &bytes, || Ok(()))?);
        Ok(())
    }

    /// What is written down of that. One that cannot be read is none, and counted as a dropped record.
    pub fn proof(
        &self,
        audience: &Audience,
        repository: &str,
        name: &str,
    ) -> Result<Option<Proof>, StoreError> {
        let (way, name) = self.proof_place(audience, repository, name);
        let Some(folder) = way.walk(self.root())? else { return Ok(None) };
        match self.read_proof(&folder, &name) {
            Ok(None) => Ok(None),
            Ok(Some(Some(proof))) => Ok(Some(proof)),
            Ok(Some(None)) | Err(_) => {
                self.drop_record();
                Ok(None)
            }
        }
    }

    /// Ends all proofs of this audience in a repository, for good: it was refused there.
    pub fn end_proofs(&self, audience: &Audience, repository: &str) -> Result<(), StoreError> {
        let folder_name = self.proof_folder(audience, repository);
        let Some(proofs) = Way::proofs().walk(self.root())? else { return Ok(()) };
        let Some(folder) = proofs.folder(&folder_name, OWNER_ONLY)? else { return Ok(()) };
        for name in folder.names()? {
            folder.remove(&name)?;
        }
        folder.sync()
    }

    /// Whether a proof has served its time, or is none at all.
    pub(super) fn is_void_proof(&self, folder: &Folder, name: &str) -> bool {
        let Ok(Some(Some(proof))) = self.read_proof(folder, name) else { return true };
        !proof.is_fresh && (proof.ago >= KEPT || !self.has(&proof.payload))
    }

    /// None inside where it cannot be understood.
    fn read_proof(&self, folder: &Folder, name: &str) -> Result<Option<Option<Proof>>, StoreError> {
        let Some(bytes) = read_small(folder, name, LIMIT)? else { return Ok(None) };
        let entry = serde_json::from_slice::<Entry>(&bytes).ok();
        let entry = entry.filter(|entry| entry.format == FORMAT && entry.proof == name);
        // Another process may be a little ahead of us.
        let known = self.age().saturating_add(RECENT).min(PLAUSIBLE);
        let proof = entry.filter(|entry| entry.shown <= known).and_then(|entry| {
            let ago = Duration::from_secs(self.age().saturating_sub(entry.shown));
            Some(Proof {
                payload: entry.payload.parse().ok()?,
                source: entry.source.parse().ok()?,
                ago,
                is_fresh: ago < self.limits().proof,
            })
        });
        Ok(Some(proof))
    }

    fn proof_place(&self, audience: &Audience, repository: &str, name: &str) -> (Way, String) {
        let parts = [audience.name(), repository.to_owned(), name.to_owned()];
        let hash = self.key().hash(Purpose::Proof, &parts.each_ref().map(String::as_bytes));
        (Way::proofs().to(self.proof_folder(audience, repository), OWNER_ONLY), hex::encode(hash))
    }

    fn proof_folder(&self, audience: &Audience, repository: &str) -> String {
        let parts = [audience.name(), repository.to_owned()];
        hex::encode(self.key().hash(Purpose::Proof, &parts.each_ref().map(String::as_bytes)))
    }
}
