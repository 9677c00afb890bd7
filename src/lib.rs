//! wasmferry stands between an Envoy and its control plane and brings Envoy its Wasm modules.
//!
//! Modules, bottom-up; each uses only those above it in this list:

pub mod cli;
pub mod clock;
pub mod digest;
pub mod module;
pub mod protobuf;
pub mod rewrite;
pub mod secret;
pub mod upstream;
