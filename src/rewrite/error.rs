//! Why a resource cannot be read, and why a request in it cannot be met. Both go to the control
//! plane and into logs: they name fields and keys, and never repeat what is in them.

use crate::module::InvalidUrl;
use crate::protobuf::WireError;

/// A resource that must be rejected (NACKed to the control plane): it cannot be decoded, or Envoy
/// would reject it whatever the module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    #[error("the resource cannot be decoded: {0}")]
    Wire(#[from] WireError),
    #[error("the resource is not an envoy.config.core.v3.TypedExtensionConfig")]
    NotExtensionConfig,
    #[error("the resource has no name")]
    NoName,
    #[error("the resource has no typed_config")]
    NoTypedConfig,
    #[error("the Wasm filter has neither remote nor local code (config.vm_config.code)")]
    NoCode,
    /// In a `TypedStruct` a field holds a value of another type than it should.
    #[error("in the TypedStruct, {field} is not {expected}")]
    Shape { field: &'static str, expected: &'static str },
    /// A `TypedStruct` has no order, so neither of two can win.
    #[error("in the TypedStruct, {field} is given twice, as {first} and as {second}")]
    Ambiguous { field: &'static str, first: &'static str, second: &'static str },
    #[error("the path of the module is not valid UTF-8, so no resource can hold it")]
    Path,
}

impl RewriteError {
    /// Short name for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            RewriteError::Wire(_) => "malformed",
            RewriteError::NotExtensionConfig => "not_extension_config",
            RewriteError::NoName => "no_name",
            RewriteError::NoTypedConfig => "no_typed_config",
            RewriteError::NoCode => "no_code",
            RewriteError::Shape { .. } => "wrong_shape",
            RewriteError::Ambiguous { .. } => "ambiguous",
            RewriteError::Path => "path",
        }
    }
}

/// A resource that can be read, but whose module can never be had as it asks for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    #[error("code.remote.http_uri.uri: {0}")]
    Url(#[from] InvalidUrl),
    #[error("code.remote.sha256 is not 64 hex digits")]
    Sha256,
    #[error("code.remote.http_uri.timeout is negative, too large or no duration")]
    Timeout,
    #[error("ISTIO_META_WASM_IMAGE_PULL_POLICY is neither IfNotPresent nor Always")]
    PullPolicy,
}

impl InvalidRequest {
    /// Short name for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            InvalidRequest::Url(_) => "invalid_url",
            InvalidRequest::Sha256 => "invalid_sha256",
            InvalidRequest::Timeout => "invalid_timeout",
            InvalidRequest::PullPolicy => "invalid_pull_policy",
        }
    }
}
