//! A resource as the control plane offers it.

use std::time::Duration;

use bytes::Bytes;

use super::Hash;
use crate::protobuf::messages::{self, RESOURCE_TTL};
use crate::protobuf::wire::{self, Fields, Value};
use crate::rewrite::Plan;

/// One resource as the control plane offers it.
#[derive(Debug)]
pub struct Offer {
    pub name: String,
    /// Hash of all that it says but for its version, so that a resend is told from a change.
    pub source: Hash,
    /// The TypedExtensionConfig as it came. None for a bare heartbeat.
    pub body: Option<Bytes>,
    pub plan: Plan,
    pub wrapper: Wrapper,
}

impl Offer {
    /// A heartbeat carries no resource.
    pub fn is_heartbeat(&self) -> bool {
        self.body.is_none()
    }

    /// A resend extends a TTL, also where it says nothing new.
    pub fn extends_ttl(&self) -> bool {
        self.is_heartbeat() || self.wrapper.ttl().is_some()
    }
}

/// What a resource comes wrapped in, and goes out in again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrapper {
    /// State of the world: an Any.
    Bare,
    /// State of the world: an Any of a `discovery.v3.Resource`; its fields but `resource`.
    Wrapped(Bytes),
    /// Delta: the fields of the Resource but `name`, `version` and `resource`.
    Delta(Bytes),
}

impl Wrapper {
    /// The fields that were kept.
    pub fn rest(&self) -> &[u8] {
        match self {
            Wrapper::Bare => &[],
            Wrapper::Wrapped(rest) | Wrapper::Delta(rest) => rest,
        }
    }

    /// How long Envoy may keep the resource, where it has a TTL.
    pub fn ttl(&self) -> Option<Duration> {
        let fields = Fields::of("Resource", self.rest()).filter_map(Result::ok);
        let ttl = fields.filter_map(|field| match field.value {
            Value::Len(bytes) if field.number == RESOURCE_TTL => Some(bytes),
            _ => None,
        });
        messages::duration(ttl.last()?).ok().flatten()
    }

    /// The fields that were kept, with this TTL.
    pub fn rest_with_ttl(&self, ttl: Duration) -> Vec<u8> {
        let mut field = Vec::new();
        wire::put_message(&mut field, RESOURCE_TTL, |message| {
            wire::put_varint(message, 1, ttl.as_secs());
            wire::put_varint(message, 2, ttl.subsec_nanos().into());
        });
        self.rest_with(&field)
    }

    fn rest_with(&self, ttl: &[u8]) -> Vec<u8> {
        // What cannot be read was refused when it came.
        wire::replace_fields(self.rest(), &[RESOURCE_TTL], ttl).unwrap_or_else(|_| self.rest().to_vec())
    }

    /// The same without a TTL.
    pub(super) fn without_ttl(&self) -> Self {
        match self {
            Wrapper::Wrapped(_) if self.ttl().is_some() => Wrapper::Wrapped(self.rest_with(&[]).into()),
            Wrapper::Delta(_) if self.ttl().is_some() => Wrapper::Delta(self.rest_with(&[]).into()),
            _ => self.clone(),
        }
    }
}
