//! The state-of-the-world variant of the protocol.

use super::{Any, Status, put_all, put_once, put_optional, put_status, put_texts};
use crate::protobuf::WireError;
use crate::protobuf::wire::{Fields, Value, put_message, put_string, text};

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
    /// Each is a resource or, with the type [`RESOURCE`](crate::protobuf::type_url::RESOURCE), one in a
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
