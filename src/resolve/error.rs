//! Why a module cannot be had.

use std::time::Duration;

use crate::causes::with_causes;
use crate::digest::{ExpectedDigest, PayloadDigest, SourceDigest};
use crate::fetch::FetchError;
use crate::store::StoreError;
use crate::wasm::{ModuleError, UnpackError};

/// Why a request for a module failed. The text names the module and never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("{}", about(url, source))]
    Fetch { url: String, source: FetchError },
    #[error("{url}: cannot take the module out: {}", with_causes(source))]
    Unpack { url: String, source: UnpackError },
    #[error("{url}: Envoy would not take the module: {}", with_causes(source))]
    Module { url: String, source: ModuleError },
    #[error("{url}: expected {expected}, but the module is {payload} and its source {found}")]
    Unexpected { url: String, expected: ExpectedDigest, payload: PayloadDigest, found: SourceDigest },
    #[error("{url}: the store failed: {}", with_causes(source))]
    Store { url: String, source: StoreError },
    #[error("{url}: a fault in wasmferry ended the fetch; please report it")]
    Fault { url: String },
    #[error("{url}: the agent is shutting down")]
    Shutdown { url: String },
}

/// The failed fetch in one line. Nearly all its reasons name the module themselves.
fn about(url: &str, source: &FetchError) -> String {
    let reason = with_causes(source);
    if reason.contains(url) { reason } else { format!("{url}: {reason}") }
}

impl ResolveError {
    /// The reason in one word, for metrics and `prefetch --output json`.
    pub fn label(&self) -> &'static str {
        match self {
            ResolveError::Fetch { source, .. } => source.label(),
            ResolveError::Unpack { source, .. } => source.label(),
            ResolveError::Module { source, .. } => source.label(),
            ResolveError::Unexpected { .. } => "digest_mismatch",
            ResolveError::Store { source, .. } => source.label(),
            ResolveError::Fault { .. } => "fault",
            ResolveError::Shutdown { .. } => "shutdown",
        }
    }

    /// Whether another try can only help once something changes at the source.
    pub fn is_permanent(&self) -> bool {
        match self {
            ResolveError::Fetch { source, .. } => source.is_permanent(),
            ResolveError::Unpack { .. } | ResolveError::Module { .. } | ResolveError::Unexpected { .. } => {
                true
            }
            ResolveError::Store { .. } | ResolveError::Fault { .. } | ResolveError::Shutdown { .. } => false,
        }
    }

    /// Whether it is the module's own bytes that cannot be used, or what they are packed in.
    pub fn is_of_the_module(&self) -> bool {
        matches!(self, ResolveError::Unpack { .. } | ResolveError::Module { .. })
    }

    /// Whether the bytes that came are not those that were promised.
    pub fn is_of_other_bytes(&self) -> bool {
        matches!(
            self,
            ResolveError::Fetch {
                source: FetchError::DigestMismatch { .. } | FetchError::SizeMismatch { .. },
                ..
            }
        )
    }

    /// Whether a mirror gave other bytes than were promised, where another host may have them.
    pub fn is_a_mirrors(&self) -> bool {
        matches!(self, ResolveError::Fetch { source: FetchError::Mirror { .. }, .. })
    }

    /// How long the source asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ResolveError::Fetch { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}
