//! Tags that move in the registry: what runs follows them, where that is asked for.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::control_plane::Protocol;
use crate::support::control_plane::serve::Serving;
use crate::support::ecds::Ecds;
use crate::support::envoy::{self, Variant, Xds};
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::mesh::{Mesh, from_istio, listener, with_secret};
use crate::support::registry::{Access, Layout, Registry};
use crate::support::resources::Kind;
use crate::support::timed::Timed;
use crate::support::traffic::in_short;
use crate::support::world::World;

const FOLLOWED: &str = "followed";
const PINNED: &str = "pinned";
/// So little time at once that no limit of a fetch passes.
const STEP: Duration = Duration::from_secs(1);

/// A registry with a password, two resources of which one is pinned by its manifest's digest, and an
/// agent whose clock the test moves.
struct Place {
    agent: Timed,
    control_plane: Serving,
    registry: Registry,
    world: World,
}

impl Place {
    async fn new(more: &str) -> Place {
        let world = World::new();
        let registry = Registry::start(&world, Access::Htpasswd).await;
        let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
        let agent = Timed::start(&world, control_plane.address(), more).await;
        let place = Place { agent, control_plane, registry, world };
        let manifest = place.publish(PINNED, "add-header-v1").await;
        place.publish(FOLLOWED, "add-header-v1").await;
        let resource = |name: &str, reference: &str| {
            let filter = from_istio(Kind::Http, &place.registry.url(name, reference));
            with_secret(filter, &place.registry.docker_config()).resource(name)
        };
        place.control_plane.set_all([resource(FOLLOWED, "v1"), resource(PINNED, &manifest)]);
        place
    }

    async fn publish(&self, repository: &str, fixture: &str) -> String {
        self.registry.publish(repository, "v1", Layout::Artifact, &module(fixture)).await
    }

    /// A client that has both modules.
    async fn client(&self, protocol: Protocol) -> (Ecds, PathBuf) {
        let mut client = Ecds::subscribe(self.agent.tcp, protocol, &[FOLLOWED.into(), PINNED.into()]).await;
        client.module(PINNED).await;
        let path = client.module(FOLLOWED).await;
        (client, path)
    }

    /// Passes time until so many more looks have ended like this.
    async fn looks(&self, result: &str, more: u64) {
        let sample = format!("wasmferry_tag_refreshes_total{{result=\"{result}\"}}");
        let wanted = self.agent.metric(&sample).await + more;
        eventually("looks at the tag", async || {
            self.agent.clock.advance(STEP);
            (self.agent.metric(&sample).await >= wanted).then_some(())
        })
        .await;
    }

    /// HEADs for a repository's manifests.
    async fn heads(&self, repository: &str) -> usize {
        let pulls = self.registry.pulls().await;
        let manifests = format!("/v2/{repository}/manifests/");
        pulls.iter().filter(|pull| pull.method == "HEAD" && pull.path.starts_with(&manifests)).count()
    }
}

#[tokio::test]
async fn a_tag_that_moves_is_delivered_without_the_control_plane_whatever_the_registry_does_meanwhile() {
    let mut place = Place::new("fetch: {tag_refresh: {interval: 10s}}").await;
    let mut clients = Vec::new();
    for protocol in Protocol::BOTH {
        clients.push(place.client(protocol).await);
    }
    let events = place.control_plane.events().len();

    place.looks("unchanged", 2).await;
    place.publish(FOLLOWED, "add-header-v2").await;
    for (client, path) in &mut clients {
        let before = client.responses();
        let moved = client.other_module(FOLLOWED, path);
        *path = place.agent.passes_by(STEP, "the tag's new module", moved).await;
        assert_eq!(std::fs::read(&path).unwrap(), module("add-header-v2"));
        assert_eq!(client.responses(), before + 1);
    }

    place.registry.stop();
    place.looks("connect", 3).await;
    place.registry.resume(&place.world).await;
    place.looks("unchanged", 1).await;
    place.publish(FOLLOWED, "add-header-v1").await;
    for (client, path) in &mut clients {
        let before = client.responses();
        let moved = client.other_module(FOLLOWED, path);
        *path = place.agent.passes_by(STEP, "the tag's old module", moved).await;
        assert_eq!(std::fs::read(&path).unwrap(), module("add-header-v1"));
        // No response came while nothing moved.
        assert_eq!(client.responses(), before + 1);
    }
    assert!(place.heads(FOLLOWED).await > 3);
    assert_eq!(place.heads(PINNED).await, 0, "a digest does not move");
    assert_eq!(place.control_plane.events().len(), events, "the control plane had no part in it");
}

#[tokio::test]
async fn no_tag_is_looked_at_by_default_or_of_another_registry() {
    for more in ["", "fetch: {tag_refresh: {interval: 10s, registries: [other.example]}}"] {
        let place = Place::new(more).await;
        let (mut client, path) = place.client(Protocol::Delta).await;
        let pulls = place.registry.pulls().await.len();
        for _ in 0..20 {
            place.agent.clock.advance(Duration::from_secs(3600));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!((place.heads(FOLLOWED).await, place.registry.pulls().await.len()), (0, pulls), "{more}");
        assert_eq!(client.module(FOLLOWED).await, path);
    }
}

#[tokio::test]
async fn a_reload_has_a_running_envoy_follow_a_tag() {
    let mut mesh = Mesh::start(Access::Anonymous, "").await;
    let filter = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let envoy = mesh.envoy(Variant::Delta).await;
    envoy.live().await;
    let web = envoy.listener("web").await;
    mesh.publish("add-header-v2", "http", "v1").await;

    let config = std::fs::read_to_string(&mesh.agent.config).unwrap();
    std::fs::write(&mesh.agent.config, format!("{config}\nfetch: {{tag_refresh: {{interval: 10s}}}}\n"))
        .unwrap();
    mesh.agent.process().signal(Signal::HUP);
    let served = async || in_short(&envoy::request(web).await);
    eventually("the tag's new module", async || (served().await == "200 v2").then_some(())).await;
    envoy.reloaded(Kind::Http, "filter", 2).await;
    assert_eq!(mesh.agent.metric("wasmferry_tag_refreshes_total{result=\"moved\"}").await, 1);
    let line = eventually("a line of the log", async || {
        mesh.agent.log().lines().find(|line| line.contains("the tag moved")).map(str::to_owned)
    })
    .await;
    assert!(line.contains("old") && line.contains("new") && line.contains("sha256:"), "{line}");
}
