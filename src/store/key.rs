//! The store's key: random bytes that no other store has. With it, credentials and sources become
//! names on disk that tell nobody what they were made of.

use std::fmt;
use std::io::Read as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::error::StoreError;
use super::fs::{Folder, SECRET};
use super::temporary::{Temporary, random};

/// The key's length.
const BYTES: usize = 32;
const NAME: &str = "key";

/// What a keyed hash stands for, so that one kind never passes for another.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Credential,
    Source,
    Entry,
    Note,
    Claim,
    Partial,
    Lease,
    Layer,
    Proof,
}

pub(super) struct Key(Zeroizing<[u8; BYTES]>);

impl Key {
    /// Reads the key, or makes one where there is none. Of several processes that do so at once one
    /// wins, and all return the winner's. Its name lasts once `content` has been synced.
    pub(super) fn load(content: &Folder, ingest: &Folder) -> Result<Self, StoreError> {
        if let Some(key) = Self::read(content)? {
            return Ok(key);
        }
        let fresh = Temporary::create(ingest, SECRET)?;
        fresh.file().write_all(&*Zeroizing::new(random::<BYTES>()?))?;
        fresh.file().sync()?;
        fresh.link(content, NAME)?;
        Self::read(content)?
            .ok_or_else(|| StoreError::Key { path: content.path().join(NAME), expected: BYTES })
    }

    fn read(content: &Folder) -> Result<Option<Self>, StoreError> {
        let Some(file) = content.open(NAME)? else { return Ok(None) };
        let path = file.path().to_owned();
        let mode = file.stat()?.st_mode & 0o7777;
        if mode & !SECRET != 0 {
            return Err(StoreError::Mode { path, mode, expected: SECRET });
        }
        // One byte more than there may be, to see that it ends.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES + 1));
        file.reader().take(BYTES as u64 + 1).read_to_end(&mut bytes).map_err(StoreError::from_io)?;
        match bytes.as_slice().try_into() {
            Ok(key) => Ok(Some(Self(Zeroizing::new(key)))),
            Err(_) => Err(StoreError::Key { path, expected: BYTES }),
        }
    }

    /// HMAC-SHA256 of the parts, each with its length before it.
    pub(super) fn hash(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; 32] {
        // HMAC fills a key up to its block with zeros.
        let mut block = Zeroizing::new([0; 64]);
        for (to, from) in block.iter_mut().zip(self.0.iter()) {
            *to = *from;
        }
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        mac.update(match purpose {
            Purpose::Credential => b"wasmferry v1 credential\0",
            Purpose::Source => b"wasmferry v1 source\0",
            Purpose::Entry => b"wasmferry v1 entry\0",
            Purpose::Note => b"wasmferry v1 note\0",
            Purpose::Claim => b"wasmferry v1 claim\0",
            Purpose::Partial => b"wasmferry v1 partial\0",
            Purpose::Lease => b"wasmferry v1 lease\0",
            Purpose::Layer => b"wasmferry v1 layer\0",
            Purpose::Proof => b"wasmferry v1 proof\0",
        });
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}
