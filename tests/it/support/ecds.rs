//! A client of the agent that asks for extension configs, takes what comes and accepts it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::core::v3::{Node, TypedExtensionConfig, async_data_source, data_source};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::envoy::extensions::wasm::v3::plugin_config::Vm;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::control_plane::Protocol;
use super::{eventually, resources, soon};

/// One stream.
pub struct Ecds {
    stream: Stream,
    names: Vec<String>,
    /// What came last under each name.
    latest: BTreeMap<String, Filter>,
    responses: usize,
}

enum Stream {
    Sotw(mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>),
    Delta(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>),
}

/// What stands in a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Wasm with its code in this file.
    Module(PathBuf),
    Allow,
    Deny,
}

impl Ecds {
    /// Asks for these names.
    pub async fn subscribe(agent: SocketAddr, protocol: Protocol, names: &[String]) -> Ecds {
        let connect =
            async || AggregatedDiscoveryServiceClient::connect(format!("http://{agent}")).await.ok();
        let mut client = eventually("a connection to the agent", connect).await;
        let stream = match protocol {
            Protocol::Sotw => {
                let (requests, outgoing) = mpsc::channel(8);
                let first = DiscoveryRequest { node: node(), resource_names: names.to_vec(), ..sotw() };
                requests.send(first).await.expect("a stream");
                let stream = client.stream_aggregated_resources(ReceiverStream::new(outgoing));
                Stream::Sotw(requests, soon("a stream", stream).await.expect("a stream").into_inner())
            }
            Protocol::Delta => {
                let (requests, outgoing) = mpsc::channel(8);
                let first = DeltaDiscoveryRequest {
                    node: node(),
                    resource_names_subscribe: names.to_vec(),
                    ..delta()
                };
                requests.send(first).await.expect("a stream");
                let stream = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
                Stream::Delta(requests, soon("a stream", stream).await.expect("a stream").into_inner())
            }
        };
        Ecds { stream, names: names.to_vec(), latest: BTreeMap::new(), responses: 0 }
    }

    /// Waits until a module stands under a name, and gives its path.
    pub async fn module(&mut self, name: &str) -> PathBuf {
        loop {
            if let Some(Filter::Module(path)) = self.latest.get(name) {
                return path.clone();
            }
            self.take().await;
        }
    }

    /// Waits until another module than this one stands under a name, and gives its path.
    pub async fn other_module(&mut self, name: &str, than: &Path) -> PathBuf {
        loop {
            let path = self.module(name).await;
            if path != than {
                return path;
            }
            self.take().await;
        }
    }

    /// How many responses have come.
    pub fn responses(&self) -> usize {
        self.responses
    }

    /// Waits until the filter that nothing passes stands under a name.
    pub async fn denied(&mut self, name: &str) {
        while self.latest.get(name) != Some(&Filter::Deny) {
            self.take().await;
        }
    }

    /// Takes one response.
    async fn take(&mut self) {
        let resources: Vec<Any> = match &mut self.stream {
            Stream::Sotw(requests, responses) => {
                let response =
                    soon("a response", responses.message()).await.expect("no error").expect("no end");
                let ack = DiscoveryRequest {
                    resource_names: self.names.clone(),
                    version_info: response.version_info,
                    response_nonce: response.nonce,
                    ..sotw()
                };
                requests.send(ack).await.expect("a stream");
                response.resources
            }
            Stream::Delta(requests, responses) => {
                let response =
                    soon("a response", responses.message()).await.expect("no error").expect("no end");
                let ack = DeltaDiscoveryRequest { response_nonce: response.nonce, ..delta() };
                requests.send(ack).await.expect("a stream");
                response.resources.into_iter().filter_map(|resource| resource.resource).collect()
            }
        };
        self.responses += 1;
        self.latest.extend(resources.iter().map(read));
    }
}

fn node() -> Option<Node> {
    Some(Node { id: "client".into(), ..Node::default() })
}

fn sotw() -> DiscoveryRequest {
    DiscoveryRequest { type_url: resources::ecds_type(), ..DiscoveryRequest::default() }
}

fn delta() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: resources::ecds_type(), ..DeltaDiscoveryRequest::default() }
}

/// The name of a resource and what stands in it.
pub fn read(resource: &Any) -> (String, Filter) {
    let config = TypedExtensionConfig::decode(resource.value.as_slice()).expect("an extension config");
    let filter = config.typed_config.expect("a filter");
    let filter = if filter.type_url == Wasm::type_url() {
        Filter::Module(local_file(&filter.value).expect("code in a file"))
    } else if filter.type_url == Rbac::type_url() {
        match Rbac::decode(filter.value.as_slice()).expect("RBAC").rules {
            None => Filter::Allow,
            // Allows what matches a policy, and has none.
            Some(rules) => {
                assert!(rules.action == i32::from(Action::Allow) && rules.policies.is_empty());
                Filter::Deny
            }
        }
    } else {
        panic!("{} is no filter that the tests know", filter.type_url)
    };
    (config.name, filter)
}

fn local_file(wasm: &[u8]) -> Option<PathBuf> {
    let Some(Vm::VmConfig(vm)) = Wasm::decode(wasm).expect("Wasm").config?.vm else { return None };
    let async_data_source::Specifier::Local(source) = vm.code?.specifier? else { return None };
    match source.specifier? {
        data_source::Specifier::Filename(path) => Some(path.into()),
        _ => None,
    }
}
