//! Views of the messages of xDS that are read, and encoders for those that are made here.
//!
//! A view borrows from its bytes and is parsed once. Where the bytes are a `Bytes`, its
//! `slice_ref` turns any borrowed part into an owned one without a copy. Each view's `encode`
//! writes the fields that the view has and no others: to change a message that came from a peer
//! and keep what it holds besides, use [`replace_fields`](super::wire::replace_fields).
//!
//! Field numbers: Envoy's `discovery.proto`, `google/protobuf/any.proto`, `google/rpc/status.proto`.

mod delta;
mod sotw;

use std::time::Duration;

use super::WireError;
use super::wire::{Fields, Value, put_len, put_message, put_string, put_varint, text};
pub use delta::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, encode_resource};
pub use sotw::{DiscoveryRequest, DiscoveryResponse};

/// The number of `type_url` in `DiscoveryRequest`, `DiscoveryResponse` and `DeltaDiscoveryResponse`.
pub const TYPE_URL: u32 = 4;
/// The number of `type_url` in `DeltaDiscoveryRequest`.
pub const DELTA_REQUEST_TYPE_URL: u32 = 2;
/// The number of `ttl` in `Resource`.
pub const RESOURCE_TTL: u32 = 6;

/// A discovery message's type URL, found without parsing the rest: fields are skipped by their
/// length and nothing is allocated. Empty where there is none; the last one counts.
pub fn type_url(message: &[u8], number: u32) -> Result<&str, WireError> {
    let mut found: &[u8] = &[];
    for field in Fields::of("the discovery message", message) {
        let field = field?;
        if let Value::Len(bytes) = field.value
            && field.number == number
        {
            found = bytes;
        }
    }
    text("type_url", found)
}

/// `google.protobuf.Any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Any<'a> {
    pub type_url: &'a str,
    pub value: &'a [u8],
}

impl<'a> Any<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut any = Self::default();
        any.merge(message)?;
        Ok(any)
    }

    fn merge(&mut self, message: &'a [u8]) -> Result<(), WireError> {
        for field in Fields::of("google.protobuf.Any", message) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Len(bytes)) => self.type_url = text("Any.type_url", bytes)?,
                (2, Value::Len(bytes)) => self.value = bytes,
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the fields onto `out`.
    pub fn encode_onto(&self, out: &mut Vec<u8>) {
        put_string(out, 1, self.type_url);
        if !self.value.is_empty() {
            put_len(out, 2, self.value);
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.type_url.len() + self.value.len() + 16);
        self.encode_onto(&mut out);
        out
    }
}

/// `google.rpc.Status`, without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status<'a> {
    /// A gRPC status code.
    pub code: i32,
    pub message: &'a str,
}

impl<'a> Status<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut status = Self::default();
        status.merge(message)?;
        Ok(status)
    }

    fn merge(&mut self, message: &'a [u8]) -> Result<(), WireError> {
        for field in Fields::of("google.rpc.Status", message) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Varint(code)) => self.code = code as i32,
                (2, Value::Len(bytes)) => self.message = text("Status.message", bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the fields onto `out`.
    pub fn encode_onto(&self, out: &mut Vec<u8>) {
        // A negative enum or int32 is ten bytes on the wire: its sign goes through 64 bits.
        put_varint(out, 1, i64::from(self.code) as u64);
        put_string(out, 2, self.message);
    }
}

/// `envoy.config.core.v3.TypedExtensionConfig`, the resource of ECDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TypedExtensionConfig<'a> {
    pub name: &'a str,
    pub typed_config: Option<Any<'a>>,
}

impl<'a> TypedExtensionConfig<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut config = Self::default();
        for field in Fields::of("TypedExtensionConfig", message) {
            let field = field?;
            match (field.number, field.value) {
                (1, Value::Len(bytes)) => config.name = text("TypedExtensionConfig.name", bytes)?,
                (2, Value::Len(bytes)) => config.typed_config.get_or_insert_default().merge(bytes)?,
                _ => {}
            }
        }
        Ok(config)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, 1, self.name);
        if let Some(any) = &self.typed_config {
            put_message(&mut out, 2, |out| any.encode_onto(out));
        }
        out
    }
}

/// The id in an encoded `envoy.config.core.v3.Node`; empty where there is none.
pub fn node_id(node: &[u8]) -> Result<&str, WireError> {
    let mut id = "";
    for field in Fields::of("Node", node) {
        let field = field?;
        if let (1, Value::Len(bytes)) = (field.number, field.value) {
            id = text("Node.id", bytes)?;
        }
    }
    Ok(id)
}

/// An encoded `google.protobuf.Duration`. `None` where it is negative, or out of the range that
/// Envoy takes for a time-out or a TTL (2^32 seconds).
pub fn duration(message: &[u8]) -> Result<Option<Duration>, WireError> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::of("google.protobuf.Duration", message) {
        let field = field?;
        match (field.number, field.value) {
            (1, Value::Varint(value)) => seconds = value as i64,
            (2, Value::Varint(value)) => nanos = value as i32,
            _ => {}
        }
    }
    Ok(whole_duration(seconds, nanos))
}

/// See [`duration`].
pub(crate) fn whole_duration(seconds: i64, nanos: i32) -> Option<Duration> {
    let seconds = u32::try_from(seconds).ok()?;
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds.into(), nanos))
}

fn put_once<'a>(field: &'static str, slot: &mut Option<&'a [u8]>, bytes: &'a [u8]) -> Result<(), WireError> {
    match slot.replace(bytes) {
        None => Ok(()),
        Some(_) => Err(WireError::Repeated { field }),
    }
}

fn put_optional(out: &mut Vec<u8>, number: u32, message: Option<&[u8]>) {
    if let Some(message) = message {
        put_len(out, number, message);
    }
}

fn put_all(out: &mut Vec<u8>, number: u32, messages: &[&[u8]]) {
    for message in messages {
        put_len(out, number, message);
    }
}

fn put_texts(out: &mut Vec<u8>, number: u32, texts: &[&str]) {
    for text in texts {
        put_len(out, number, text.as_bytes());
    }
}

fn put_status(out: &mut Vec<u8>, number: u32, status: Option<&Status<'_>>) {
    if let Some(status) = status {
        put_message(out, number, |out| status.encode_onto(out));
    }
}
