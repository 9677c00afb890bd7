//! The Delta variant of the protocol.

use std::collections::BTreeMap;

use super::{Any, Status, put_all, put_once, put_optional, put_status, put_texts};
use crate::protobuf::WireError;
use crate::protobuf::wire::{
    Fields, Value, entry, len_size, put_entry, put_len, put_message, put_string, replace_fields, text,
};

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
    /// The encoded `google.protobuf.Duration`; see [`duration`](super::duration).
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
