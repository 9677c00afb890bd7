//! wasmferry stands between an Envoy and its control plane and brings Envoy its Wasm modules.
//!
//! Modules, bottom-up; each uses only those above it in this list:

pub mod clock;
pub mod digest;
pub mod fetch;
pub mod module;
pub mod secret;
pub mod wasm;
