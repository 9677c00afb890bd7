//! An agent between an Envoy's stream and a control plane, through which filters are delivered.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message as _;

use crate::envoy_side::Stream;
use crate::support::agent::Agent;
use crate::support::control_plane::script::Script;
use crate::support::control_plane::{ControlPlane, Protocol};
use crate::support::envoy::Xds;
use crate::support::resources::{self, Kind, Wasm};
use crate::support::soon;
use crate::support::world::World;

pub struct Filters {
    pub agent: Agent,
    envoy: Stream,
    control_plane: Script,
    _listener: ControlPlane,
    delivered: usize,
}

impl Filters {
    pub async fn start(world: &World) -> Filters {
        let upstream = Xds::Tcp(world.address());
        let mut listener = ControlPlane::listen(upstream.clone()).await;
        let agent = Agent::start(world, &crate::agent(&upstream)).await;
        let envoy = Stream::open(&Xds::Unix(agent.socket.clone()), Protocol::Delta).await;
        let control_plane = Script::from(listener.accept().await);
        Filters { agent, envoy, control_plane, _listener: listener, delivered: 0 }
    }

    /// Asks for filters whose modules are there, one for each, and gives the time from the control plane's
    /// answer to the arrival of the last one at Envoy with a local path in it.
    pub async fn deliver(&mut self, urls: &[&str]) -> Duration {
        let ecds = resources::ecds_type();
        let numbers = self.delivered..self.delivered + urls.len();
        let names: Vec<String> = numbers.map(|number| format!("filter-{number}")).collect();
        let request = DeltaDiscoveryRequest {
            node: (self.delivered == 0).then(|| Node { id: "bench".into(), ..Node::default() }),
            type_url: ecds.clone(),
            resource_names_subscribe: names.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.delivered += urls.len();
        self.envoy.send(request.encode_to_vec().into()).await;
        let last = names.last().expect("something to ask for");
        while !self.control_plane.event_of(&ecds).await.names.contains(last) {}

        let resources =
            names.iter().zip(urls).map(|(name, url)| Wasm::remote(Kind::Http, *url).resource(name));
        let (resources, mut missing) = (resources.collect(), urls.len());
        let start = Instant::now();
        self.control_plane.send(&ecds, last, resources).await.expect("a stream that goes on");
        while missing > 0 {
            let response = soon("filters", self.envoy.receive()).await;
            missing -= self.accept(&response).await;
        }
        start.elapsed()
    }

    /// Accepts a response, and gives how many filters came in it.
    async fn accept(&self, response: &[u8]) -> usize {
        let response = DeltaDiscoveryResponse::decode(response).expect("a DeltaDiscoveryResponse");
        let local = self.agent.cache.to_str().expect("a path in UTF-8").as_bytes();
        for resource in &response.resources {
            let config = &resource.resource.as_ref().expect("a resource's body").value;
            assert!(config.windows(local.len()).any(|part| part == local), "a fallback: {resource:?}");
        }
        let ack = DeltaDiscoveryRequest {
            type_url: resources::ecds_type(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.envoy.send(ack.encode_to_vec().into()).await;
        response.resources.len()
    }
}
