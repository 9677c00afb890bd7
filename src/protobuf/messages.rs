//! Views of the messages of xDS that are read, and encoders for those that are made here.
//!
//! A view borrows from its bytes and is parsed once. Where the bytes are a `Bytes`, its
//! `slice_ref` turns any borrowed part into an owned one without a copy. Each view's `encode`
//! writes the fields that the view has and no others: to change a message that came from a peer
//! and keep what it holds besides, use [`replace_fields`].
//!
//! Field numbers: Envoy's `discovery.proto`, `google/protobuf/any.proto`, `google/rpc/status.proto`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::WireError;
use super::wire::{
    Fields, Value, entry, len_size, put_entry, put_len, put_message, put_string, put_varint, replace_fields,
    text,
};

/// The number of `type_url` in `DiscoveryRequest`, `DiscoveryResponse` and `DeltaDiscoveryResponse`.
pub const TYPE_URL: u32 = 4;
/// The number of `type_url` in `DeltaDiscoveryRequest`.
pub const DELTA_REQUEST_TYPE_URL: u32 = 2;

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

/// What a state-of-the-world client sends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoveryRequest<'a> {
    pub version_info: &'a str,
    /// The encoded `Node`.
    pub node: Option<&'a [u8]>,
    pub resource_names: Vec<&'a str>,
    pub type_url: &'a str,
    pub response_nonce: &'a str,
    pub error_detail: Option<Status<'a>>,
    /// Encoded `ResourceLocator`s: names with parameters, which no Envoy sends yet.
    pub locators: Vec<&'a [u8]>,
}

impl<'a> DiscoveryRequest<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut request = Self::default();
        for field in Fields::of("DiscoveryRequest", message) {
            let field = field?;
            let Value::Len(bytes) = field.value else { continue };
            match field.number {
                1 => request.version_info = text("DiscoveryRequest.version_info", bytes)?,
                2 => put_once("DiscoveryRequest.node", &mut request.node, bytes)?,
                3 => request.resource_names.push(text("DiscoveryRequest.resource_names", bytes)?),
                4 => request.type_url = text("DiscoveryRequest.type_url", bytes)?,
                5 => request.response_nonce = text("DiscoveryRequest.response_nonce", bytes)?,
                6 => request.error_detail.get_or_insert_default().merge(bytes)?,
                7 => request.locators.push(bytes),
                _ => {}
            }
        }
        Ok(request)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, 1, self.version_info);
        put_optional(&mut out, 2, self.node);
        put_texts(&mut out, 3, &self.resource_names);
        put_string(&mut out, 4, self.type_url);
        put_string(&mut out, 5, self.response_nonce);
        put_status(&mut out, 6, self.error_detail.as_ref());
        put_all(&mut out, 7, &self.locators);
        out
    }
}

/// What a state-of-the-world server sends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoveryResponse<'a> {
    pub version_info: &'a str,
    /// Each is a resource or, with the type [`RESOURCE`](super::type_url::RESOURCE), one in a
    /// wrapper.
    pub resources: Vec<Any<'a>>,
    pub type_url: &'a str,
    pub nonce: &'a str,
    /// The encoded `ControlPlane`.
    pub control_plane: Option<&'a [u8]>,
}

impl<'a> DiscoveryResponse<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut response = Self::default();
        for field in Fields::of("DiscoveryResponse", message) {
            let field = field?;
            let Value::Len(bytes) = field.value else { continue };
            match field.number {
                1 => response.version_info = text("DiscoveryResponse.version_info", bytes)?,
                2 => response.resources.push(Any::decode(bytes)?),
                4 => response.type_url = text("DiscoveryResponse.type_url", bytes)?,
                5 => response.nonce = text("DiscoveryResponse.nonce", bytes)?,
                6 => put_once("DiscoveryResponse.control_plane", &mut response.control_plane, bytes)?,
                _ => {}
            }
        }
        Ok(response)
    }

    pub fn encode(&self) -> Vec<u8> {
        let resources: usize =
            self.resources.iter().map(|any| any.type_url.len() + any.value.len() + 32).sum();
        let mut out = Vec::with_capacity(resources + 256);
        put_string(&mut out, 1, self.version_info);
        for resource in &self.resources {
            put_message(&mut out, 2, |out| resource.encode_onto(out));
        }
        put_string(&mut out, 4, self.type_url);
        put_string(&mut out, 5, self.nonce);
        put_optional(&mut out, 6, self.control_plane);
        out
    }
}

/// What a Delta client sends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeltaDiscoveryRequest<'a> {
    /// The encoded `Node`.
    pub node: Option<&'a [u8]>,
    pub type_url: &'a str,
    pub subscribe: Vec<&'a str>,
    pub unsubscribe: Vec<&'a str>,
    pub initial_resource_versions: BTreeMap<&'a str, &'a str>,
    pub response_nonce: &'a str,
    pub error_detail: Option<Status<'a>>,
    /// Encoded `ResourceLocator`s: names with parameters, which no Envoy sends yet.
    pub locators_subscribe: Vec<&'a [u8]>,
    /// As [`Self::locators_subscribe`].
    pub locators_unsubscribe: Vec<&'a [u8]>,
}

impl<'a> DeltaDiscoveryRequest<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut request = Self::default();
        for field in Fields::of("DeltaDiscoveryRequest", message) {
            let field = field?;
            let Value::Len(bytes) = field.value else { continue };
            match field.number {
                1 => put_once("DeltaDiscoveryRequest.node", &mut request.node, bytes)?,
                2 => request.type_url = text("DeltaDiscoveryRequest.type_url", bytes)?,
                3 => {
                    let name = text("DeltaDiscoveryRequest.resource_names_subscribe", bytes)?;
                    request.subscribe.push(name);
                }
                4 => {
                    let name = text("DeltaDiscoveryRequest.resource_names_unsubscribe", bytes)?;
                    request.unsubscribe.push(name);
                }
                5 => {
                    let field = "DeltaDiscoveryRequest.initial_resource_versions";
                    let (name, version) = entry(field, bytes)?;
                    request.initial_resource_versions.insert(text(field, name)?, text(field, version)?);
                }
                6 => request.response_nonce = text("DeltaDiscoveryRequest.response_nonce", bytes)?,
                7 => request.error_detail.get_or_insert_default().merge(bytes)?,
                8 => request.locators_subscribe.push(bytes),
                9 => request.locators_unsubscribe.push(bytes),
                _ => {}
            }
        }
        Ok(request)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_optional(&mut out, 1, self.node);
        put_string(&mut out, 2, self.type_url);
        put_texts(&mut out, 3, &self.subscribe);
        put_texts(&mut out, 4, &self.unsubscribe);
        for (name, version) in &self.initial_resource_versions {
            put_entry(&mut out, 5, name, version);
        }
        put_string(&mut out, 6, self.response_nonce);
        put_status(&mut out, 7, self.error_detail.as_ref());
        put_all(&mut out, 8, &self.locators_subscribe);
        put_all(&mut out, 9, &self.locators_unsubscribe);
        out
    }
}

/// What a Delta server sends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeltaDiscoveryResponse<'a> {
    pub system_version_info: &'a str,
    /// Encoded as the [`Resource::raw`] bytes of each.
    pub resources: Vec<Resource<'a>>,
    pub type_url: &'a str,
    pub nonce: &'a str,
    pub removed_resources: Vec<&'a str>,
    /// The encoded `ControlPlane`.
    pub control_plane: Option<&'a [u8]>,
}

impl<'a> DeltaDiscoveryResponse<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut response = Self::default();
        for field in Fields::of("DeltaDiscoveryResponse", message) {
            let field = field?;
            let Value::Len(bytes) = field.value else { continue };
            match field.number {
                1 => {
                    response.system_version_info = text("DeltaDiscoveryResponse.system_version_info", bytes)?;
                }
                2 => response.resources.push(Resource::decode(bytes)?),
                4 => response.type_url = text("DeltaDiscoveryResponse.type_url", bytes)?,
                5 => response.nonce = text("DeltaDiscoveryResponse.nonce", bytes)?,
                6 => {
                    let name = text("DeltaDiscoveryResponse.removed_resources", bytes)?;
                    response.removed_resources.push(name);
                }
                7 => put_once("DeltaDiscoveryResponse.control_plane", &mut response.control_plane, bytes)?,
                _ => {}
            }
        }
        Ok(response)
    }

    pub fn encode(&self) -> Vec<u8> {
        let resources: usize = self.resources.iter().map(|resource| len_size(2, resource.raw.len())).sum();
        let mut out = Vec::with_capacity(resources + 256);
        put_string(&mut out, 1, self.system_version_info);
        for resource in &self.resources {
            put_len(&mut out, 2, resource.raw);
        }
        put_string(&mut out, 4, self.type_url);
        put_string(&mut out, 5, self.nonce);
        put_texts(&mut out, 6, &self.removed_resources);
        put_optional(&mut out, 7, self.control_plane);
        out
    }
}

/// `envoy.service.discovery.v3.Resource`: what Delta carries, and what a state-of-the-world
/// response may wrap a resource in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource<'a> {
    pub name: &'a str,
    pub version: &'a str,
    /// A heartbeat, which only extends a TTL, has none.
    pub resource: Option<Any<'a>>,
    pub aliases: Vec<&'a str>,
    /// The encoded `google.protobuf.Duration`; see [`duration`].
    pub ttl: Option<&'a [u8]>,
    /// The encoded `CacheControl`.
    pub cache_control: Option<&'a [u8]>,
    /// Private, so that it always agrees with the fields that were read from it.
    raw: &'a [u8],
}

impl<'a> Resource<'a> {
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let mut resource = Self {
            name: "",
            version: "",
            resource: None,
            aliases: Vec::new(),
            ttl: None,
            cache_control: None,
            raw: message,
        };
        for field in Fields::of("Resource", message) {
            let field = field?;
            let Value::Len(bytes) = field.value else { continue };
            match field.number {
                1 => resource.version = text("Resource.version", bytes)?,
                2 => resource.resource.get_or_insert_default().merge(bytes)?,
                3 => resource.name = text("Resource.name", bytes)?,
                4 => resource.aliases.push(text("Resource.aliases", bytes)?),
                6 => put_once("Resource.ttl", &mut resource.ttl, bytes)?,
                7 => put_once("Resource.cache_control", &mut resource.cache_control, bytes)?,
                _ => {}
            }
        }
        Ok(resource)
    }

    /// The whole message as it came, with the fields that are not known here.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The message with another version and body; aliases, TTL and all else stay as they came.
    pub fn replaced(&self, version: &str, resource: &Any<'_>) -> Result<Vec<u8>, WireError> {
        let mut changed = Vec::with_capacity(resource.type_url.len() + resource.value.len() + 64);
        put_string(&mut changed, 1, version);
        put_message(&mut changed, 2, |out| resource.encode_onto(out));
        replace_fields(self.raw, &[1, 2], &changed)
    }
}

/// A `Resource` of the agent's own.
pub fn encode_resource(name: &str, version: &str, resource: &Any<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(resource.type_url.len() + resource.value.len() + 128);
    put_string(&mut out, 1, version);
    put_message(&mut out, 2, |out| resource.encode_onto(out));
    put_string(&mut out, 3, name);
    out
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
