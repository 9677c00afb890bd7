//! A stream on which the test is the control plane, line by line, while every request is checked.

use std::collections::VecDeque;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::ledger::{Event, Ledger};
use super::{Accepted, Ended, Protocol, Service};
use crate::support::{resources, soon};

/// One stream with its [`Ledger`].
pub struct Script {
    stream: Accepted,
    ledger: Ledger,
    nonces: u32,
    /// Read, and passed over by [`Script::event_of`].
    passed_over: VecDeque<Event>,
}

impl From<Accepted> for Script {
    fn from(stream: Accepted) -> Script {
        Script { stream, ledger: Ledger::default(), nonces: 0, passed_over: VecDeque::new() }
    }
}

impl Script {
    pub fn service(&self) -> Service {
        self.stream.service
    }

    pub fn protocol(&self) -> Protocol {
        self.stream.protocol
    }

    /// What came with the stream.
    pub fn metadata(&self) -> &MetadataMap {
        &self.stream.metadata
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The next request, of any type.
    ///
    /// # Panics
    /// Where it breaks the protocol, or the stream ends.
    pub async fn event(&mut self) -> Event {
        if let Some(event) = self.passed_over.pop_front() {
            return event;
        }
        soon("a request to the control plane", self.next()).await.expect("a stream that goes on")
    }

    /// The next request for this type; those of others keep for later.
    pub async fn event_of(&mut self, type_url: &str) -> Event {
        if let Some(position) = self.passed_over.iter().position(|event| event.type_url == type_url)
            && let Some(event) = self.passed_over.remove(position)
        {
            return event;
        }
        loop {
            let event =
                soon("a request to the control plane", self.next()).await.expect("a stream that goes on");
            if event.type_url == type_url {
                return event;
            }
            self.passed_over.push_back(event);
        }
    }

    /// The next request as it comes, or `None` where the stream has ended. May be cancelled.
    ///
    /// # Panics
    /// Where it breaks the protocol.
    pub async fn next(&mut self) -> Option<Event> {
        // A stream that breaks has ended, too.
        let request = self.stream.request().await.ok().flatten()?;
        let event = match self.stream.protocol {
            Protocol::Sotw => {
                let request = DiscoveryRequest::decode(request).expect("a DiscoveryRequest");
                self.ledger.sotw(&request).map_err(|violation| (violation, format!("{request:?}")))
            }
            Protocol::Delta => {
                let request = DeltaDiscoveryRequest::decode(request).expect("a DeltaDiscoveryRequest");
                self.ledger.delta(&request).map_err(|violation| (violation, format!("{request:?}")))
            }
        };
        match event {
            Ok(event) => Some(event),
            Err((violation, request)) => panic!("{violation}, in {request}"),
        }
    }

    /// Sends resources, each under the name in it, and gives the nonce.
    pub async fn send(
        &mut self,
        type_url: &str,
        version: &str,
        resources: Vec<Any>,
    ) -> Result<String, Ended> {
        self.send_with(type_url, version, resources, Vec::new()).await
    }

    /// Delta: takes resources away.
    pub async fn remove(&mut self, type_url: &str, version: &str, names: &[&str]) -> Result<String, Ended> {
        assert_eq!(self.stream.protocol, Protocol::Delta, "state of the world has no removals");
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.send_with(type_url, version, Vec::new(), names).await
    }

    pub(super) async fn send_with(
        &mut self,
        type_url: &str,
        version: &str,
        resources: Vec<Any>,
        removed_resources: Vec<String>,
    ) -> Result<String, Ended> {
        self.nonces += 1;
        let nonce = format!("nonce-{}", self.nonces);
        let response = match self.stream.protocol {
            Protocol::Sotw => DiscoveryResponse {
                version_info: version.into(),
                resources,
                type_url: type_url.into(),
                nonce: nonce.clone(),
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
            Protocol::Delta => DeltaDiscoveryResponse {
                system_version_info: version.into(),
                resources: resources
                    .into_iter()
                    .map(|resource| Resource {
                        name: resources::name_of(&resource),
                        version: version.into(),
                        resource: Some(resource),
                        ..Resource::default()
                    })
                    .collect(),
                type_url: type_url.into(),
                removed_resources,
                nonce: nonce.clone(),
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec(),
        };
        self.send_bytes(type_url, version, &nonce, response).await?;
        Ok(nonce)
    }

    /// Sends a response that the test has made itself, with what it says written down.
    pub async fn send_bytes(
        &mut self,
        type_url: &str,
        version: &str,
        nonce: &str,
        response: impl Into<Bytes>,
    ) -> Result<(), Ended> {
        self.ledger.sent(type_url, version, nonce);
        self.stream.respond(response).await
    }

    /// Ends the stream with this status.
    pub async fn end(self, status: Status) {
        self.stream.end(status).await;
    }
}
