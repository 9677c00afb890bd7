//! One stream's side of the control plane: ECDS requests in, responses out, in both variants of
//! the protocol. No socket, no clock, no task.
//!
//! Asks the snapshot for resources and knows nothing of files. Its peer may be Envoy itself.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::encode::{self, ResourceName};
use super::snapshot::Snapshot;
use crate::protobuf::messages::{
    self, Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    Status,
};
use crate::protobuf::{WireError, type_url};

/// The variant of xDS that a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    StateOfTheWorld,
    Delta,
}

/// What one stream has asked for and been given.
#[derive(Debug)]
pub struct Session {
    variant: Variant,
    /// Whether a request has come: only the first one tells what the client holds.
    started: bool,
    subscribed: BTreeSet<String>,
    /// The version of each subscribed resource that was sent last, accepted or not: what was
    /// rejected is not sent again until it changes.
    sent: BTreeMap<String, String>,
    /// The number of responses; the last one's nonce.
    responses: u64,
    verdict: Verdict,
    other_types_noted: bool,
}

/// What became of the last response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pending,
    Accepted,
    Rejected,
}

/// A resource as it would be sent now.
struct Offer {
    config: Vec<u8>,
    version: String,
}

impl Session {
    /// The session of a new stream.
    pub fn new(variant: Variant) -> Self {
        Self {
            variant,
            started: false,
            subscribed: BTreeSet::new(),
            sent: BTreeMap::new(),
            responses: 0,
            verdict: Verdict::Pending,
            other_types_noted: false,
        }
    }

    /// Takes a `DiscoveryRequest` or `DeltaDiscoveryRequest` as it is on the wire. The answer, if
    /// it calls for one, is a whole response. A malformed request should end the stream.
    pub fn on_request(&mut self, request: &[u8], snapshot: &Snapshot) -> Result<Option<Bytes>, WireError> {
        match self.variant {
            Variant::StateOfTheWorld => {
                let request = DiscoveryRequest::decode(request)?;
                Ok(if self.is_ours(request.type_url) { self.on_sotw(&request, snapshot) } else { None })
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest::decode(request)?;
                Ok(if self.is_ours(request.type_url) { self.on_delta(&request, snapshot) } else { None })
            }
        }
    }

    /// What a new snapshot changes for this stream, as a whole response.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot) -> Option<Bytes> {
        match self.variant {
            Variant::StateOfTheWorld => self.answer_sotw(snapshot, false),
            Variant::Delta => self.answer_delta(snapshot),
        }
    }

    fn is_ours(&mut self, type_url: &str) -> bool {
        let ours = type_url::same(type_url, type_url::EXTENSION_CONFIG);
        if !ours && !std::mem::replace(&mut self.other_types_noted, true) {
            tracing::debug!(type_url, "a directory of plugins serves extension configs alone");
        }
        ours
    }

    fn on_sotw(&mut self, request: &DiscoveryRequest<'_>, snapshot: &Snapshot) -> Option<Bytes> {
        let nonce = request.response_nonce;
        let answers_last = self.responses > 0 && nonce == self.nonce();
        // What answers an older response is followed by an answer to the newest one. A nonce from
        // before this stream answers nothing.
        if self.responses > 0 && !nonce.is_empty() && !answers_last {
            return None;
        }
        let subscribed = names(&request.resource_names);
        // Two subscriptions of an Envoy to one name look like a second acknowledgement; only an
        // answer ends the warming of the second one.
        let again = answers_last
            && self.verdict == Verdict::Accepted
            && request.error_detail.is_none()
            && subscribed == self.subscribed;
        if answers_last {
            self.judge(request.error_detail.as_ref());
        }
        self.sent.retain(|name, _| subscribed.contains(name));
        self.subscribed = subscribed;
        self.answer_sotw(snapshot, again)
    }

    /// All that is subscribed and exists, if anything of it is new to the client or `again`. A
    /// name that is missing from it is unchanged for Envoy, never removed.
    fn answer_sotw(&mut self, snapshot: &Snapshot, again: bool) -> Option<Bytes> {
        let offers = self.offers(snapshot);
        // A plugin that is gone and comes back is sent again.
        self.sent.retain(|name, _| offers.contains_key(name));
        let news = offers.iter().any(|(name, offer)| self.sent.get(name) != Some(&offer.version));
        if offers.is_empty() || !(news || again) {
            return None;
        }
        self.sent = offers.iter().map(|(name, offer)| (name.clone(), offer.version.clone())).collect();
        self.begin_response();
        let nonce = self.nonce();
        let versions: String =
            offers.iter().map(|(name, offer)| format!("{name} {}\n", offer.version)).collect();
        let response = DiscoveryResponse {
            version_info: &snapshot.version(versions.as_bytes()),
            resources: offers.values().map(Offer::any).collect(),
            type_url: type_url::EXTENSION_CONFIG,
            nonce: &nonce,
            control_plane: None,
        };
        Some(response.encode().into())
    }

    fn on_delta(&mut self, request: &DeltaDiscoveryRequest<'_>, snapshot: &Snapshot) -> Option<Bytes> {
        if self.responses > 0 && request.response_nonce == self.nonce() {
            self.judge(request.error_detail.as_ref());
        }
        let first = !std::mem::replace(&mut self.started, true);
        for name in names(&request.subscribe) {
            match request.initial_resource_versions.get(name.as_str()) {
                Some(version) if first => self.sent.insert(name.clone(), (*version).to_owned()),
                // Subscribing again means that it wants to be sent again.
                _ => self.sent.remove(&name),
            };
            self.subscribed.insert(name);
        }
        for name in names(&request.unsubscribe) {
            self.subscribed.remove(&name);
            self.sent.remove(&name);
        }
        self.answer_delta(snapshot)
    }

    fn answer_delta(&mut self, snapshot: &Snapshot) -> Option<Bytes> {
        let mut offers = self.offers(snapshot);
        // Envoy answers 500 once a resource is removed, so only what it has (of us) and what is
        // really gone: where a file could not be read yet, its plugins may still come.
        let gone: Vec<String> = match snapshot.is_complete() {
            true => self.sent.keys().filter(|name| !offers.contains_key(*name)).cloned().collect(),
            false => Vec::new(),
        };
        offers.retain(|name, offer| self.sent.get(name) != Some(&offer.version));
        if offers.is_empty() && gone.is_empty() {
            return None;
        }
        for name in &gone {
            self.sent.remove(name);
        }
        self.sent.extend(offers.iter().map(|(name, offer)| (name.clone(), offer.version.clone())));
        self.begin_response();
        let nonce = self.nonce();
        let encoded: Vec<_> = offers
            .iter()
            .map(|(name, offer)| messages::encode_resource(name, &offer.version, &offer.any()))
            .collect();
        let response = DeltaDiscoveryResponse {
            system_version_info: &snapshot.generation().to_string(),
            // What was encoded just now can be decoded.
            resources: encoded.iter().filter_map(|resource| Resource::decode(resource).ok()).collect(),
            type_url: type_url::EXTENSION_CONFIG,
            nonce: &nonce,
            removed_resources: gone.iter().map(String::as_str).collect(),
            control_plane: None,
        };
        Some(response.encode().into())
    }

    /// The subscribed resources that exist.
    fn offers(&self, snapshot: &Snapshot) -> BTreeMap<String, Offer> {
        let offer = |name: &String| {
            let resource_name = ResourceName::new(name);
            let config = encode::extension_config(snapshot.plugin(resource_name.plugin)?, resource_name);
            Some((name.clone(), Offer { version: snapshot.version(&config), config }))
        };
        self.subscribed.iter().filter_map(offer).collect()
    }

    fn judge(&mut self, error: Option<&Status<'_>>) {
        self.verdict = match error {
            None => Verdict::Accepted,
            Some(status) => {
                let reason: String = status.message.chars().take(512).collect();
                tracing::warn!(code = status.code, ?reason, "extension configs were rejected");
                Verdict::Rejected
            }
        };
    }

    fn begin_response(&mut self) {
        self.responses += 1;
        self.verdict = Verdict::Pending;
    }

    fn nonce(&self) -> String {
        self.responses.to_string()
    }
}

impl Offer {
    fn any(&self) -> Any<'_> {
        Any { type_url: type_url::EXTENSION_CONFIG, value: &self.config }
    }
}

/// A set of names. ECDS has no wildcard: Envoy always asks by name.
fn names(names: &[&str]) -> BTreeSet<String> {
    if names.contains(&"*") {
        tracing::debug!("a wildcard subscription to extension configs is ignored");
    }
    names.iter().filter(|name| **name != "*").map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests;
