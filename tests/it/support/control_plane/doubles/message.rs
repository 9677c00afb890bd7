//! Requests and responses, the same in both variants.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::super::Protocol;
use super::{Offer, Offered};

/// A request of either variant.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) nonce: String,
    pub(super) is_nack: bool,
    /// State of the world.
    pub(super) version: String,
    pub(super) names: BTreeSet<String>,
    /// Delta.
    pub(super) subscribe: BTreeSet<String>,
    pub(super) unsubscribe: BTreeSet<String>,
    pub(super) initial: BTreeMap<String, String>,
}

/// A response of either variant.
#[derive(Debug, Clone, Default)]
pub struct Response {
    pub type_url: String,
    pub nonce: String,
    pub version: String,
    /// By name, with the version in Delta.
    pub resources: BTreeMap<String, (String, Any)>,
    /// Delta.
    pub removed: Vec<String>,
}

impl Response {
    /// Those of these names that are offered, each with a version that is made of its revision.
    pub(super) fn of(
        offered: &Offered,
        names: impl Fn(&str) -> bool,
        version: impl Fn(&Offer) -> String,
    ) -> Response {
        let chosen = offered.resources.iter().filter(|(name, _)| names(name));
        let chosen =
            chosen.map(|(name, offer)| (name.clone(), (version(offer), offer.resource.clone()))).collect();
        Response { version: offered.version.to_string(), resources: chosen, ..Response::default() }
    }

    pub(super) fn encode(&self, protocol: Protocol) -> Vec<u8> {
        let resources = self.resources.clone().into_iter();
        match protocol {
            Protocol::Sotw => DiscoveryResponse {
                version_info: self.version.clone(),
                resources: resources.map(|(_, (_, resource))| resource).collect(),
                type_url: self.type_url.clone(),
                nonce: self.nonce.clone(),
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
            Protocol::Delta => {
                let wrap = |(name, (version, resource))| Resource {
                    name,
                    version,
                    resource: Some(resource),
                    ..Resource::default()
                };
                DeltaDiscoveryResponse {
                    system_version_info: self.version.clone(),
                    resources: resources.map(wrap).collect(),
                    type_url: self.type_url.clone(),
                    removed_resources: self.removed.clone(),
                    nonce: self.nonce.clone(),
                    ..DeltaDiscoveryResponse::default()
                }
                .encode_to_vec()
            }
        }
    }
}

impl From<&DiscoveryRequest> for Request {
    fn from(request: &DiscoveryRequest) -> Request {
        Request {
            nonce: request.response_nonce.clone(),
            is_nack: request.error_detail.is_some(),
            version: request.version_info.clone(),
            names: request.resource_names.iter().cloned().collect(),
            ..Request::default()
        }
    }
}

impl From<&DeltaDiscoveryRequest> for Request {
    fn from(request: &DeltaDiscoveryRequest) -> Request {
        Request {
            nonce: request.response_nonce.clone(),
            is_nack: request.error_detail.is_some(),
            subscribe: request.resource_names_subscribe.iter().cloned().collect(),
            unsubscribe: request.resource_names_unsubscribe.iter().cloned().collect(),
            initial: request.initial_resource_versions.clone().into_iter().collect(),
            ..Request::default()
        }
    }
}
