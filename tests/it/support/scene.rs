//! One agent between a scripted Envoy and a double of a control plane, with a server of modules beside it.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use futures_util::FutureExt as _;
use tokio::sync::Semaphore;

use super::agent::{Agent, Options};
use super::bad_server::{BadServer, Fault, Reply};
use super::control_plane::doubles::{Double, Kind};
use super::control_plane::{Protocol, Service};
use super::envoy::{self, Envoy, Variant, Xds};
use super::resources::{self, Wasm};
use super::scripted::Scripted;
use super::world::World;
use super::{eventually, fixtures};

/// So long nothing happens where nothing is to happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// Declared in the order in which it ends.
pub struct Scene {
    pub kind: Kind,
    /// By which a scripted Envoy asks.
    pub service: Service,
    pub protocol: Protocol,
    pub double: Double,
    pub agent: Agent,
    pub server: BadServer,
    pub world: World,
}

/// Plays a scene against both control planes, in both variants, all at once. What fails names which.
///
/// The agent falls back soon after a first failure, so that a fallback in the wrong place is seen.
pub async fn against_both(play: impl AsyncFn(&mut Scene)) {
    against_both_by(&[Service::Aggregated], play).await;
}

/// The same over aggregated discovery and over that of extension configs alone. The agent calls the
/// method that it was called by.
pub async fn against_both_by_each_service(play: impl AsyncFn(&mut Scene)) {
    against_both_by(&Service::BOTH, play).await;
}

async fn against_both_by(services: &[Service], play: impl AsyncFn(&mut Scene)) {
    let play = &play;
    let scenes = Kind::BOTH.into_iter().flat_map(|kind| Protocol::BOTH.map(|protocol| (kind, protocol)));
    let scenes = scenes.flat_map(|(kind, protocol)| services.iter().map(move |by| (kind, protocol, *by)));
    let scenes = scenes.map(|(kind, protocol, service)| async move {
        let mut scene = Scene { service, ..Scene::new(kind, protocol).await };
        let played = std::panic::AssertUnwindSafe(async {
            play(&mut scene).await;
            // Where a client has broken a rule, here at the latest.
            let services = scene.double.services();
            assert!(services.iter().all(|called| *called == service), "{services:?}");
        });
        if let Err(panic) = played.catch_unwind().await {
            let broken = scene.double.broken_rule().unwrap_or_default();
            eprintln!("in a scene with {kind:?} by {service:?}, {protocol:?}; {broken}");
            std::panic::resume_unwind(panic);
        }
    });
    futures_util::future::join_all(scenes).await;
}

impl Scene {
    pub async fn new(kind: Kind, protocol: Protocol) -> Scene {
        let world = World::new();
        let server = BadServer::start(&world).await;
        let double = Double::listen(kind, Xds::Tcp(world.address())).await;
        let options = Options::upstream(double.address()).with("fetch: {hold: 100ms}");
        let agent = Agent::start(&world, &options).await;
        let service = Service::Aggregated;
        Scene { kind, service, protocol, double, agent, server, world }
    }

    /// An Envoy that has said nothing yet.
    pub async fn envoy(&self) -> Scripted {
        Scripted::connect(&Xds::Unix(self.agent.socket.clone()), self.service, self.protocol).await
    }

    /// Waits until the agent has heard all that its only Envoy said.
    pub async fn heard(&self, envoy: &Scripted) {
        let heard = || self.agent.metric("wasmferry_messages_total{from=\"envoy\",intercepted=\"true\"}");
        eventually("the last request at the agent", async || (heard().await >= envoy.said).then_some(()))
            .await;
    }

    /// A real Envoy that gets everything over ADS.
    pub async fn real_envoy(&self, variant: Variant) -> Envoy {
        let agent = Xds::Unix(self.agent.socket.clone());
        Envoy::start(&self.world, &envoy::Options::lds(agent, variant)).await
    }

    /// A filter whose module is at this path of the server, told from others by its label.
    pub fn filter(&self, name: &str, label: &str, path: &str) -> Any {
        let mut filter = Wasm::remote(resources::Kind::Http, self.server.url(path));
        filter.configuration = label.into();
        filter.resource(name)
    }

    /// Puts a module on the server, one of its own for each path.
    pub fn publish(&self, path: &str) {
        self.server.put(path, Reply::ok(module(path)));
    }

    /// Puts this very fixture there.
    pub fn publish_fixture(&self, path: &str, fixture: &str) {
        self.server.put(path, Reply::ok(fixtures::module(fixture)));
    }

    /// Takes a module away.
    pub fn unpublish(&self, path: &str) {
        self.server.put(path, Reply::status(404));
    }

    /// The same as [`Scene::publish`], but the module comes only when it is let go.
    pub fn publish_held(&self, path: &str) -> Arc<Semaphore> {
        let permits = Arc::new(Semaphore::new(0));
        self.server.put(path, Reply::ok(module(path)).fault(Fault::Held(permits.clone())));
        permits
    }

    /// How often this path was asked for.
    pub fn fetches(&self, path: &str) -> usize {
        self.server.seen().iter().filter(|seen| seen.path == path).count()
    }

    /// Waits until this path was asked for so often.
    pub async fn fetched(&self, path: &str, times: usize) {
        eventually(&format!("{times} requests for {path}"), async || {
            (self.fetches(path) >= times).then_some(())
        })
        .await;
    }
}

/// A module that no other path has: with a custom section that is named after it, and empty.
fn module(path: &str) -> Vec<u8> {
    let name = path.as_bytes();
    let length = u8::try_from(name.len()).expect("a short path");
    [&fixtures::module("add-header-v1"), &[0, length + 1, length][..], name].concat()
}
