//! The protobuf wire format, and the few xDS messages that are read or made here.
//!
//! There is no decoding and encoding of whole messages: generated code drops fields that it does
//! not know, and what passes through must leave as it came. Views borrow from the bytes they were
//! read from, and changes are splices of those bytes.
//!
//! Knows nothing of streams, resources' meaning, or Wasm.

mod error;
pub mod messages;
pub mod type_url;
pub mod wire;

pub use error::{Fault, WireError};

#[cfg(test)]
mod tests;
