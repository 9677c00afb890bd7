//! Between the wire and the machine: discovery messages of the intercepted type in, the machine's
//! events out, and back. Both variants, both directions.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::machine::slot::{Offer, Wrapper, hash};
use super::machine::{ControlRequest, ControlResponse, EnvoyRequest, EnvoyResponse, Names, Variant};
use crate::protobuf::messages::{
    Any, DeltaDiscoveryRequest, DiscoveryRequest, Resource, Status, TypedExtensionConfig,
};
use crate::protobuf::wire::{self, Fields, Value};
use crate::protobuf::{WireError, messages, type_url};
use crate::rewrite::{self, Plan};

/// The type that is intercepted.
pub const INTERCEPTED: &str = type_url::EXTENSION_CONFIG;

/// The gRPC code in every NACK: INVALID_ARGUMENT would do, Envoy itself says INTERNAL.
const NACK_CODE: i32 = 13;

/// The longest reason in a NACK, in characters.
const REASON_LIMIT: usize = 2048;

/// What a name in a request is taken to cost beside its bytes.
const NAME_COST: usize = 64;

/// The type URL of a request from Envoy.
pub fn request_type(variant: Variant, message: &[u8]) -> Result<&str, WireError> {
    let number = match variant {
        Variant::StateOfTheWorld => messages::TYPE_URL,
        Variant::Delta => messages::DELTA_REQUEST_TYPE_URL,
    };
    messages::type_url(message, number)
}

/// The type URL of a response from the control plane.
pub fn response_type(message: &[u8]) -> Result<&str, WireError> {
    messages::type_url(message, messages::TYPE_URL)
}

/// The encoded node in a request from Envoy.
pub fn node(variant: Variant, message: &[u8]) -> Option<&[u8]> {
    let number = node_field(variant);
    Fields::of("the request", message).filter_map(Result::ok).find_map(|field| match field.value {
        Value::Len(bytes) if field.number == number => Some(bytes),
        _ => None,
    })
}

/// The request with the node in front.
pub fn prepend_node(variant: Variant, node: &[u8], message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(node.len() + message.len() + 16);
    wire::put_len(&mut out, node_field(variant), node);
    out.extend_from_slice(message);
    out.into()
}

fn node_field(variant: Variant) -> u32 {
    match variant {
        Variant::StateOfTheWorld => 2,
        Variant::Delta => 1,
    }
}

/// What the names in a request from Envoy would cost in memory, about, in bytes. Counted before any
/// is kept: a name of one byte takes dozens.
pub fn names_cost(variant: Variant, message: &[u8]) -> usize {
    let names: &[u32] = if variant == Variant::Delta { &[3, 4, 5] } else { &[3] };
    let fields = Fields::of("the request", message).filter_map(Result::ok);
    fields
        .filter(|field| names.contains(&field.number))
        .map(|field| name_cost(field.range.len()))
        .fold(0, usize::saturating_add)
}

/// See [`names_cost`].
pub fn name_cost(length: usize) -> usize {
    length.saturating_add(NAME_COST)
}

/// Reads a request from Envoy.
pub fn read_request(variant: Variant, message: &[u8]) -> Result<EnvoyRequest, WireError> {
    fn owned(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }
    let reason = |status: Status<'_>| status.message.to_owned();
    Ok(match variant {
        Variant::StateOfTheWorld => {
            let request = DiscoveryRequest::decode(message)?;
            EnvoyRequest {
                nonce: request.response_nonce.to_owned(),
                error: request.error_detail.map(reason),
                names: Names::All(owned(&request.resource_names)),
                resumes: !request.version_info.is_empty(),
            }
        }
        Variant::Delta => {
            let request = DeltaDiscoveryRequest::decode(message)?;
            EnvoyRequest {
                nonce: request.response_nonce.to_owned(),
                error: request.error_detail.map(reason),
                names: Names::Change {
                    subscribe: owned(&request.subscribe),
                    unsubscribe: owned(&request.unsubscribe),
                    held: request.initial_resource_versions.keys().map(|name| (*name).to_owned()).collect(),
                },
                resumes: false,
            }
        }
    })
}

/// Reads a response from the control plane. A resource that cannot be read is reported and its
/// neighbours are kept; only what is no message at all is an error.
pub fn read_response(variant: Variant, message: &[u8]) -> Result<ControlResponse, WireError> {
    let mut response = ControlResponse::default();
    for field in Fields::of("the discovery response", message) {
        let field = field?;
        let Value::Len(bytes) = field.value else { continue };
        match (field.number, variant) {
            (1, _) => wire::text("version", bytes)?.clone_into(&mut response.version),
            (5, _) => wire::text("nonce", bytes)?.clone_into(&mut response.nonce),
            (2, _) => {
                let mut name = String::new();
                // A copy: a slice would keep the whole message as long as this one resource.
                match read_resource(variant, &Bytes::copy_from_slice(bytes), &mut name) {
                    Ok(offer) => response.offers.push(offer),
                    Err(reason) => response.malformed.push((name, reason)),
                }
            }
            (6, Variant::Delta) => response.removed.push(wire::text("removed_resources", bytes)?.to_owned()),
            _ => {}
        }
    }
    Ok(response)
}

/// Reads one resource: an Any, an Any of a wrapper, or in Delta a Resource. `found` is its name as
/// soon as that is known.
fn read_resource(variant: Variant, bytes: &Bytes, found: &mut String) -> Result<Offer, String> {
    let text = |error: WireError| error.to_string();
    let wrapped = match variant {
        Variant::Delta => Some(bytes.clone()),
        Variant::StateOfTheWorld => {
            let any = Any::decode(bytes).map_err(text)?;
            type_url::same(any.type_url, type_url::RESOURCE).then(|| bytes.slice_ref(any.value))
        }
    };
    let (any, wrapper, name) = match (&wrapped, variant) {
        (None, _) => (Some(Any::decode(bytes).map_err(text)?), Wrapper::Bare, ""),
        (Some(wrapped), variant) => {
            let resource = Resource::decode(wrapped).map_err(text)?;
            let ours: &[u32] = if variant == Variant::Delta { &[1, 2, 3] } else { &[2] };
            let rest = Bytes::from(wire::replace_fields(wrapped, ours, &[]).map_err(text)?);
            let wrapper =
                if variant == Variant::Delta { Wrapper::Delta(rest) } else { Wrapper::Wrapped(rest) };
            (resource.resource, wrapper, resource.name)
        }
    };
    name.clone_into(found);
    let Some(any) = any else {
        let (name, source) = (found.clone(), hash(&[]));
        return Ok(Offer { name, source, body: None, plan: Plan::Untouched, wrapper });
    };
    if !type_url::same(any.type_url, INTERCEPTED) {
        return Err("its type is not that of an extension config".to_owned());
    }
    let body = bytes.slice_ref(any.value);
    if found.is_empty() {
        first_name(&body).clone_into(found);
    }
    let config = TypedExtensionConfig::decode(&body).map_err(text)?;
    // Envoy ignores a Delta resource without a name, so ours always have one.
    if found.is_empty() {
        config.name.clone_into(found);
    }
    if found.is_empty() {
        return Err("it has no name".to_owned());
    }
    let plan = rewrite::plan(any.type_url, &body).map_err(|error| error.to_string())?;
    let source = hash(&[&body, &wire::replace_fields(wrapper.rest(), &[1], &[]).map_err(text)?]);
    Ok(Offer { name: found.clone(), source, body: Some(body), plan, wrapper })
}

/// The name in an extension config of which perhaps no more than that can be read.
fn first_name(config: &[u8]) -> &str {
    let mut fields = Fields::of("TypedExtensionConfig", config).map_while(Result::ok);
    let name = fields.find_map(|field| match field.value {
        Value::Len(bytes) if field.number == 1 => std::str::from_utf8(bytes).ok(),
        _ => None,
    });
    name.unwrap_or_default()
}

/// Writes a response to Envoy.
pub fn write_response(variant: Variant, response: &EnvoyResponse) -> Bytes {
    let size: usize = response.resources.iter().map(|resource| resource.len() + 16).sum();
    let mut out = Vec::with_capacity(size + 256);
    wire::put_string(&mut out, 1, &response.version);
    for resource in &response.resources {
        wire::put_len(&mut out, 2, resource);
    }
    wire::put_string(&mut out, 4, INTERCEPTED);
    wire::put_string(&mut out, 5, &response.nonce);
    if variant == Variant::Delta {
        for name in &response.removed {
            wire::put_len(&mut out, 6, name.as_bytes());
        }
    }
    out.into()
}

/// Writes a request to the control plane, with the node where this is the stream's first message.
pub fn write_request(variant: Variant, request: &ControlRequest, node: Option<&[u8]>) -> Bytes {
    let mut out = Vec::new();
    if let Some(node) = node {
        wire::put_len(&mut out, node_field(variant), node);
    }
    let put_names = |out: &mut Vec<u8>, number, names: &[String]| {
        for name in names {
            wire::put_len(out, number, name.as_bytes());
        }
    };
    let error = request.error.as_deref().map(|reason| {
        let mut status = Vec::new();
        Status { code: NACK_CODE, message: shortened(reason) }.encode_onto(&mut status);
        status
    });
    let (nonce, detail) = match variant {
        Variant::StateOfTheWorld => {
            wire::put_string(&mut out, 1, &request.version);
            put_names(&mut out, 3, &request.names);
            wire::put_string(&mut out, 4, INTERCEPTED);
            (5, 6)
        }
        Variant::Delta => {
            wire::put_string(&mut out, 2, INTERCEPTED);
            put_names(&mut out, 3, &request.subscribe);
            put_names(&mut out, 4, &request.unsubscribe);
            for name in &request.initial {
                wire::put_entry(&mut out, 5, name, "");
            }
            (6, 7)
        }
    };
    wire::put_string(&mut out, nonce, &request.nonce);
    if let Some(status) = error {
        wire::put_len(&mut out, detail, &status);
    }
    out.into()
}

fn shortened(reason: &str) -> &str {
    let end = (0..=REASON_LIMIT.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(version: &str, text: &str) -> Vec<u8> {
        let mut config = Vec::new();
        wire::put_string(&mut config, 1, "a");
        wire::put_message(&mut config, 2, |any| {
            wire::put_string(any, 1, type_url::STRING_VALUE);
            wire::put_len(any, 2, text.as_bytes());
        });
        let any = Any { type_url: INTERCEPTED, value: &config };
        messages::encode_resource("a", version, &any)
    }

    fn response(resources: &[Vec<u8>]) -> Bytes {
        let mut out = Vec::new();
        for resource in resources {
            wire::put_len(&mut out, 2, resource);
        }
        out.into()
    }

    #[test]
    fn what_is_kept_of_a_resource_does_not_keep_the_response() {
        let message = response(&[resource("1", "x"), resource("1", &"y".repeat(1 << 20))]);
        let mut read = read_response(Variant::Delta, &message).unwrap();
        read.offers.truncate(1);
        assert!(message.try_into_mut().is_ok(), "nobody else holds the bytes");
    }

    #[test]
    fn a_resource_with_another_version_alone_is_no_other_resource() {
        let source = |version, text| {
            let message = response(&[resource(version, text)]);
            read_response(Variant::Delta, &message).unwrap().offers.remove(0).source
        };
        assert_eq!(source("1", "x"), source("2", "x"));
        assert_ne!(source("1", "x"), source("1", "y"));
    }

    #[test]
    fn names_are_counted_before_they_are_kept() {
        let mut request = Vec::new();
        for _ in 0..1000 {
            wire::put_len(&mut request, 3, b"x");
        }
        for variant in [Variant::StateOfTheWorld, Variant::Delta] {
            assert!((64_000..80_000).contains(&names_cost(variant, &request)));
        }
    }

    #[test]
    fn a_long_reason_is_cut_to_its_limit_in_bytes() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&format!("x{}", "é".repeat(REASON_LIMIT))).len(), REASON_LIMIT - 1);
    }
}
