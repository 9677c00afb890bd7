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

    /// Asks for a filter whose module is there, and gives the time from the control plane's answer to
    /// its arrival at Envoy with a local path in it.
    pub async fn deliver(&mut self, url: &str) -> Duration {
        let (ecds, name) = (resources::ecds_type(), format!("filter-{}", self.delivered));
        let request = DeltaDiscoveryRequest {
            node: (self.delivered == 0).then(|| Node { id: "bench".into(), ..Node::default() }),
            type_url: ecds.clone(),
            resource_names_subscribe: vec![name.clone()],
            ..DeltaDiscoveryRequest::default()
        };
        self.delivered += 1;
        self.envoy.send(request.encode_to_vec().into()).await;
        while !self.control_plane.event_of(&ecds).await.names.contains(&name) {}

        let resource = Wasm::remote(Kind::Http, url).resource(&name);
        let start = Instant::now();
        self.control_plane.send(&ecds, &name, vec![resource]).await.expect("a stream that goes on");
        let response = soon("a filter", self.envoy.receive()).await;
        let took = start.elapsed();

        let response = DeltaDiscoveryResponse::decode(response).expect("a DeltaDiscoveryResponse");
        let [resource] = response.resources.as_slice() else { panic!("one resource: {response:?}") };
        let local = self.agent.cache.to_str().expect("a path in UTF-8").as_bytes();
        let config = &resource.resource.as_ref().expect("a resource's body").value;
        assert!(config.windows(local.len()).any(|part| part == local), "a fallback: {resource:?}");
        let ack = DeltaDiscoveryRequest {
            type_url: ecds,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.envoy.send(ack.encode_to_vec().into()).await;
        took
    }
}
