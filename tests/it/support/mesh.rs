//! The usual parts around an agent: a control plane above it, a registry beside it, Envoys below.

use std::net::SocketAddr;

use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;

use super::agent::{self, Agent};
use super::control_plane::serve::Serving;
use super::envoy::{self, Envoy, Variant, Xds};
use super::fixtures;
use super::registry::{Access, Layout, Registry};
use super::resources::{self, Kind, Wasm};
use super::world::World;

/// Declared in the order in which it ends. Envoys are the tests' own, declared after it.
pub struct Mesh {
    pub control_plane: Serving,
    pub agent: Agent,
    pub registry: Registry,
    pub world: World,
}

impl Mesh {
    /// With more lines for the agent's configuration.
    pub async fn start(access: Access, yaml: &str) -> Mesh {
        Mesh::start_in(access, yaml, &[]).await
    }

    /// With more for the agent's environment as well.
    pub async fn start_in(access: Access, yaml: &str, env: &[(&str, &str)]) -> Mesh {
        Mesh::start_with(access, |options| {
            let env = env.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            agent::Options { env, ..options.with(yaml) }
        })
        .await
    }

    /// With other options for the agent.
    pub async fn start_with(access: Access, set: impl FnOnce(agent::Options) -> agent::Options) -> Mesh {
        let world = World::new();
        let registry = Registry::start(&world, access).await;
        let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
        let options = set(agent::Options::upstream(control_plane.address()));
        let agent = Agent::start(&world, &options).await;
        Mesh { control_plane, agent, registry, world }
    }

    /// Publishes a fixture as an artifact and gives its URL.
    pub async fn publish(&self, fixture: &str, repository: &str, tag: &str) -> String {
        let module = fixtures::module(fixture);
        self.registry.publish(repository, tag, Layout::Artifact, &module).await;
        self.registry.url(repository, tag)
    }

    /// An Envoy that gets everything over ADS, on the agent's unix socket.
    pub async fn envoy(&self, variant: Variant) -> Envoy {
        let xds = Xds::Unix(self.agent.socket.clone());
        Envoy::start(&self.world, &envoy::Options::lds(xds, variant)).await
    }

    /// What the agent says of a resource: on its oldest stream that has it.
    pub async fn state(&self, resource: &str) -> Option<serde_json::Value> {
        let state = self.agent.state().await;
        let streams = state["streams"].as_array()?.iter();
        let resources = streams.flat_map(|stream| stream["resources"].as_array().into_iter().flatten());
        resources.into_iter().find(|state| state["name"] == resource).cloned()
    }
}

/// A listener on a free port, which answers 200 and `ok` behind discovered filters, as a resource.
pub fn listener(name: &str, network: &[&str], http: &[&str]) -> Any {
    let network =
        network.iter().map(|name| resources::network_slot(name, resources::discovery(Kind::Network)));
    let http = http.iter().map(|name| resources::http_slot(name, resources::discovery(Kind::Http)));
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    pack_any(resources::listener(name, free, network.collect(), http.collect()))
}

/// A Wasm filter as istiod sends it: with the keys by which it talks to the agent, and one variable
/// that is the plugin's own.
pub fn from_istio(kind: Kind, url: &str) -> Wasm {
    let mut wasm = Wasm::remote(kind, url);
    wasm.env = [
        ("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", "4711"),
        ("ISTIO_META_WASM_IMAGE_PULL_POLICY", "IfNotPresent"),
        ("TEAM", "of-the-plugin"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    wasm
}

/// The same with a pull secret.
pub fn with_secret(mut wasm: Wasm, secret: &str) -> Wasm {
    wasm.env.push(("ISTIO_META_WASM_IMAGE_PULL_SECRET".into(), secret.into()));
    wasm
}
