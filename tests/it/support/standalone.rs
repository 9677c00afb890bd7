//! An agent without a control plane: on a folder of plugin files.

use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;

use super::agent::{self, Agent};
use super::envoy::{self, Envoy, Variant, Xds};
use super::fixtures::module;
use super::registry::{Access, Layout, Registry};
use super::resources::{self, Kind};
use super::world::{User, World};

/// A plugin whose module writes its configuration into the header.
pub fn plugin(namespace: &str, name: &str, url: &str, header: &str) -> String {
    format!(
        "apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  url: {url}
  pluginConfig: {{header: {header}}}
"
    )
}

/// What Envoy puts into the header then.
pub fn header(header: &str) -> String {
    format!(r#"{{"header":"{header}"}}"#)
}

/// An agent on a folder, and the registry that its plugins name.
pub struct Standalone {
    pub agent: Agent,
    pub registry: Registry,
    pub world: World,
}

impl Standalone {
    pub async fn start() -> Standalone {
        let world = World::new();
        let registry = Registry::start(&world, Access::Anonymous).await;
        registry.publish("configured", "v1", Layout::OciImage, &module("configured-header")).await;
        let plugins = world.folder("plugins", User::Tests, 0o755);
        let agent = Agent::start(&world, &agent::Options::directory(&plugins)).await;
        Standalone { agent, registry, world }
    }

    pub fn url(&self) -> String {
        self.registry.url("configured", "v1")
    }

    /// In one step, as editors do it.
    pub fn write(&self, file: &str, content: &str) {
        self.world.write(file, content, User::Tests, 0o644);
    }

    /// An Envoy whose only listener, in its bootstrap, has these HTTP filters, asked for over ADS.
    pub async fn envoy(&self, variant: Variant, names: &[&str]) -> Envoy {
        self.envoy_with(variant, names, resources::discovery(Kind::Http)).await
    }

    /// The same with filters that are asked for in this way.
    pub async fn envoy_with(
        &self,
        variant: Variant,
        names: &[&str],
        discovery: ExtensionConfigSource,
    ) -> Envoy {
        let slot = |name: &&str| resources::http_slot(name, discovery.clone());
        let http = names.iter().map(slot).collect();
        let listener = resources::listener("web", self.world.address(), vec![], http);
        let xds = Xds::Unix(self.agent.socket.clone());
        let envoy = Envoy::start(&self.world, &envoy::Options::with_listener(xds, variant, listener)).await;
        envoy.live().await;
        envoy
    }
}
