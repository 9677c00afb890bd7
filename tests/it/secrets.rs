//! Pull secrets that change while a resource is wanted.

use std::path::Path;

use serde_json::json;

use crate::support::control_plane::Protocol;
use crate::support::control_plane::serve::Serving;
use crate::support::ecds::Ecds;
use crate::support::envoy::{self, Variant, Xds};
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::mesh::{Mesh, from_istio, listener, with_secret};
use crate::support::registry::{Access, Layout, PASSWORD, Registry, USER, docker_config};
use crate::support::resources::{Kind, Wasm};
use crate::support::timed::Timed;
use crate::support::traffic::in_short;
use crate::support::world::World;

/// A secret that the registry takes as well, and that is another one: its first login is refused.
fn rotated(registry: &Registry, repository: &str) -> String {
    let host = registry.address().to_string();
    let login = |password: &str| json!({"username": USER, "password": password});
    json!({"auths": {format!("{host}/{repository}"): login("forgotten"), host: login(PASSWORD)}}).to_string()
}

/// The views that are for one credential each.
fn private_views(cache: &Path) -> usize {
    std::fs::read_dir(cache.join("v1/private")).map_or(0, Iterator::count)
}

async fn a_rotation_reloads_nothing(variant: Variant) {
    let mesh = Mesh::start(Access::Htpasswd, "").await;
    let plain = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let with = |plain: &Wasm, secret: &str| with_secret(plain.clone(), secret).resource("filter");
    let old = mesh.registry.docker_config();
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), with(&plain, &old)]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let web = envoy.listener("web").await;
    assert_eq!(private_views(&mesh.agent.cache), 1);

    let new = rotated(&mesh.registry, "http");
    mesh.control_plane.set(with(&plain, &new));
    eventually("the module by the new secret", async || {
        let state = mesh.state("filter").await?;
        let there = state["generation"] == 2 && state["serving"] == "current" && state["fetch"] == "idle";
        there.then_some(())
    })
    .await;
    assert_eq!(private_views(&mesh.agent.cache), 2, "it had to show that it may");
    let pulls = mesh.registry.pulls().await;
    let blobs = pulls.iter().filter(|pull| pull.path.contains("/blobs/") && pull.status == 200);
    let methods: Vec<_> = blobs.map(|pull| pull.method.as_str()).collect();
    assert_eq!(methods, ["GET", "HEAD"], "{pulls:?}");
    assert_eq!(in_short(&envoy::request(web).await), "200 v1");
    envoy.reloaded(Kind::Http, "filter", 1).await;

    // What changes for Envoy still reaches it, and nothing else has on the way.
    let changed = Wasm { configuration: "changed".into(), ..plain };
    mesh.control_plane.set(with(&changed, &new));
    eventually("the changed config", async || {
        (envoy.ecds_stat(Kind::Http, "filter", "config_reload").await == 2).then_some(())
    })
    .await;
    assert_eq!(envoy.ecds_stat(Kind::Http, "filter", "update_rejected").await, 0);
}

#[tokio::test]
async fn a_new_secret_for_the_same_module_reloads_nothing_in_envoy_in_delta() {
    a_rotation_reloads_nothing(Variant::Delta).await;
}

#[tokio::test]
async fn a_new_secret_for_the_same_module_reloads_nothing_in_envoy_in_the_state_of_the_world() {
    a_rotation_reloads_nothing(Variant::Sotw).await;
}

/// By a clock that stands still: no retry can become due.
#[tokio::test]
async fn the_right_secret_is_tried_at_once() {
    for protocol in Protocol::BOTH {
        let world = World::new();
        let registry = Registry::start(&world, Access::Htpasswd).await;
        registry.publish("http", "v1", Layout::Artifact, &module("add-header-v1")).await;
        let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
        let agent = Timed::start(&world, control_plane.address(), "fetch: {hold: 0s}").await;
        let filter = from_istio(Kind::Http, &registry.url("http", "v1"));
        let wrong = docker_config(&registry.address().to_string(), USER, "guessed");
        control_plane.set(with_secret(filter.clone(), &wrong).resource("filter"));
        let mut client = Ecds::subscribe(agent.tcp, protocol, &["filter".into()]).await;
        client.denied("filter").await;
        control_plane.set(with_secret(filter, &registry.docker_config()).resource("filter"));
        let path = client.module("filter").await;
        assert_eq!(std::fs::read(path).unwrap(), module("add-header-v1"));
    }
}
