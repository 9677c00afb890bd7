//! A resource as it can be sent to Envoy.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::Wrapper;
use crate::xds::machine::memory::Made;

/// Identifies what is sent to Envoy by its bytes: a resource is news when its hash is.
pub type Hash = [u8; 16];

/// A form of the resource that can be sent to Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Of the body alone: what it comes wrapped in is nothing to Envoy's memory of what it rejected.
    pub hash: Hash,
    /// TypedExtensionConfig.
    pub body: Bytes,
    /// Without a TTL, which is for the newest offer to say whatever goes out under its name.
    pub wrapper: Wrapper,
    pub fallback: bool,
    /// 0 for what an earlier stream left.
    pub(super) generation: u64,
    /// Where it names a module's file.
    pub(super) made: Option<Made>,
}

impl Candidate {
    pub(super) fn new(body: Bytes, wrapper: &Wrapper, fallback: bool, generation: u64) -> Self {
        let wrapper = wrapper.without_ttl();
        Self { hash: hash(&[&body]), body, wrapper, fallback, generation, made: None }
    }

    pub(super) fn with(mut self, made: &Made) -> Self {
        self.made = Some(made.clone());
        self
    }

    pub(super) fn path(&self) -> Option<&Arc<Path>> {
        self.made.as_ref().map(|made| &made.path)
    }
}

/// The first 16 bytes of the SHA-256 of the parts, each preceded by its length.
pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(&hasher.finalize()[..16]);
    hash
}
