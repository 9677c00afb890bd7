//! Digests. What a digest covers is part of its type, so that the digest of a manifest can never
//! stand where the digest of a module's own bytes is meant.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256};

/// SHA-256 of bytes as they come. By ring, which TLS brings along: without SHA instructions, as on
/// many a cloud's machines, it is about twice as fast as sha2, and hashing is most of what a pull
/// costs.
#[derive(Clone)]
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The 32 bytes of the digest.
    pub fn finish(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        bytes
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// Why a text is no digest. Algorithms other than SHA-256 are refused: everything that carries
/// Wasm today uses it, and a weaker one must not be let in by a peer's choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 digest: expected `sha256:` and 64 lower-case hex digits")]
pub struct InvalidDigest;

fn parse_hex(hex: &str) -> Result<[u8; 32], InvalidDigest> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if hex.len() != 64 || !hex.bytes().all(lower) {
        return Err(InvalidDigest);
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).map_err(|_| InvalidDigest)?;
    Ok(bytes)
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The digest with these 32 bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Hashes bytes that are already in memory.
            pub fn of(bytes: &[u8]) -> Self {
                let mut hasher = Hasher::default();
                hasher.update(bytes);
                Self(hasher.finish())
            }

            /// The 32 bytes of the digest.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 lower-case hex digits, without the algorithm.
            pub fn hex(&self) -> String {
                hex::encode(self.0)
            }

            /// Reads 64 lower-case hex digits, without the algorithm.
            pub fn from_hex(hex: &str) -> Result<Self, InvalidDigest> {
                parse_hex(hex).map(Self)
            }
        }

        /// `sha256:HEX`, as OCI writes it.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;
            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                text.strip_prefix("sha256:").ok_or(InvalidDigest).and_then(Self::from_hex)
            }
        }
    };
}

digest_type! {
    /// SHA-256 of a module's own bytes, the key of the store.
    PayloadDigest
}
digest_type! {
    /// SHA-256 of what a source served: an OCI manifest, or the body of an HTTP answer or a file
    /// before anything was unpacked from it.
    SourceDigest
}
digest_type! {
    /// The digest that whoever asks expects: the payload's or, for OCI, the manifest's. It checks
    /// a source and is never a key of the store.
    ExpectedDigest
}
digest_type! {
    /// SHA-256 of a blob as a registry keeps it (an OCI layer, compressed or not).
    BlobDigest
}

impl ExpectedDigest {
    /// Whether these are the bytes that were expected.
    pub fn is_payload(&self, payload: &PayloadDigest) -> bool {
        self.0 == payload.0
    }

    /// Whether this is the manifest that was expected.
    pub fn is_source(&self, source: &SourceDigest) -> bool {
        self.0 == source.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_what_it_prints() {
        let digest = PayloadDigest::of(b"wasm");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(PayloadDigest::from_hex(&digest.hex()), Ok(digest));
    }

    #[test]
    fn bytes_that_come_in_pieces_hash_as_the_whole() {
        let mut hasher = Hasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        // FIPS 180-2, B.1
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(PayloadDigest::from_bytes(hasher.finish()).hex(), expected);
        assert_eq!(SourceDigest::of(b"abc").hex(), expected);
    }

    #[test]
    fn a_digest_that_could_be_a_path_is_refused() {
        for text in [
            "sha256:../../etc/passwd",
            "sha256:",
            "sha512:00",
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:{}", "0".repeat(63)),
            &format!("sha256:{}/", "0".repeat(64)),
        ] {
            assert_eq!(text.parse::<SourceDigest>(), Err(InvalidDigest), "{text}");
        }
    }
}
