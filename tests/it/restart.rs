//! The agent goes and comes back: killed in the middle of a pull, or stopped with its registry away.

use std::path::Path;

use crate::support::envoy::{self, Envoy, Variant, Xds};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::gate::Gate;
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::pulls::unfinished;
use crate::support::registry::{Access, Layout};
use crate::support::resources::{Kind, Wasm};
use crate::support::traffic::{Traffic, in_short};

#[tokio::test]
async fn an_agent_that_is_killed_in_mid_pull_asks_for_the_rest_and_leaves_nothing_behind() {
    let mut mesh = Mesh::start(Access::Anonymous, "").await;
    let large = padded(&module("add-header-v1"), 300_000);
    mesh.registry.publish("http", "v1", Layout::Artifact, &large).await;
    let gate = Gate::in_front_of(mesh.registry.address(), &mesh.world).await;
    gate.hold_after(100_000);
    let filter = from_istio(Kind::Http, &format!("oci://{}/http:v1", gate.address()));
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let envoy = mesh.envoy(Variant::Delta).await;
    gate.held().await;
    let ingest = mesh.agent.cache.join("v1/content/ingest");
    // It is written in pieces of 64 KiB.
    let is_there = || bytes_below(&ingest) >= 64 * 1024;
    eventually("half a module on disk", async || is_there().then_some(())).await;

    mesh.agent.kill();
    assert!(is_there(), "nobody could have cleaned up");
    assert_eq!(files_below(&mesh.agent.cache.join("v1/public")), 0, "half a module is no module");
    assert!(!envoy.is_live().await);
    gate.open();
    mesh.agent.resume(&mesh.world).await;

    envoy.live().await;
    assert_eq!(in_short(&envoy::request(envoy.listener("web").await).await), "200 v1");
    assert_eq!(unfinished(&mesh.agent.cache), Vec::<String>::new());
    assert_eq!(files_below(&mesh.agent.cache.join("v1/content/blobs")), 1);
    let pulls = mesh.registry.pulls().await;
    let blobs: Vec<u16> =
        pulls.iter().filter(|pull| pull.path.contains("/blobs/")).map(|pull| pull.status).collect();
    assert_eq!(blobs, [200, 206], "{pulls:?}");
    let resumes = mesh.agent.metric("wasmferry_fetch_resumes_total{result=\"leftover\"}").await;
    let saved = mesh.agent.metric("wasmferry_fetch_saved_bytes_total").await;
    let fetched = mesh.agent.metric("wasmferry_fetched_bytes_total").await;
    assert_eq!((resumes, saved + fetched), (1, large.len() as u64));
    assert!(saved > 0);
}

/// Under load, with the registry stopped while the agent is away: asked to stop, then killed.
async fn a_restart_is_served_from_disk(variant: Variant) {
    let mut mesh = Mesh::start(Access::Anonymous, "").await;
    let filter = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let gate = from_istio(Kind::Network, &mesh.publish("network", "network", "v1").await);
    mesh.control_plane.set_all([
        listener("web", &["gate"], &["filter"]),
        filter.resource("filter"),
        gate.resource("gate"),
    ]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees("200 v1", 20).await;
    let filters = [(Kind::Http, "filter"), (Kind::Network, "gate")];
    let pulls = mesh.registry.pulls().await;

    mesh.registry.stop();
    for killed in [false, true] {
        let mut updates = Vec::new();
        for (kind, name) in filters {
            updates.push(envoy.ecds_stat(kind, name, "update_success").await);
        }
        match killed {
            false => assert_eq!(mesh.agent.stop().await, Some(0)),
            true => mesh.agent.kill(),
        }
        traffic.sees("200 v1", 20).await;
        mesh.agent.resume(&mesh.world).await;
        for ((kind, name), before) in filters.into_iter().zip(updates) {
            eventually("the same config, sent and accepted again", async || {
                (envoy.ecds_stat(kind, name, "update_success").await > before).then_some(())
            })
            .await;
        }
    }
    traffic.sees("200 v1", 100).await;
    traffic.saw_only(&["200 v1"]);
    for (kind, name) in filters {
        assert_eq!(envoy.ecds_stat(kind, name, "config_reload").await, 1, "{name}");
        assert_eq!(envoy.ecds_stat(kind, name, "update_rejected").await, 0, "{name}");
    }

    // An Envoy that knows nothing yet gets the same.
    let xds = Xds::Tcp(mesh.agent.tcp);
    let options = envoy::Options { node_id: "another".into(), ..envoy::Options::lds(xds, variant) };
    let another = Envoy::start(&mesh.world, &options).await;
    another.live().await;
    assert_eq!(in_short(&envoy::request(another.listener("web").await).await), "200 v1");
    assert_eq!(mesh.agent.metric(r#"wasmferry_store_lookups_total{result="hit"}"#).await, 4);
    assert!(!mesh.agent.health("/metrics").await.text().contains("wasmferry_fetches_total{"));
    mesh.registry.resume(&mesh.world).await;
    assert_eq!(mesh.registry.pulls().await, pulls, "the registry was not asked again");
}

#[tokio::test]
async fn a_restart_is_served_from_disk_by_state_of_the_world() {
    a_restart_is_served_from_disk(Variant::Sotw).await;
}

#[tokio::test]
async fn a_restart_is_served_from_disk_by_the_unified_mux() {
    a_restart_is_served_from_disk(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_restart_is_served_from_disk_by_delta() {
    a_restart_is_served_from_disk(Variant::Delta).await;
}

/// What has to be asked for again, such as a tag that may have moved, while nobody answers.
async fn a_restart_takes_nothing_away(variant: Variant) {
    let mut mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let filter = Wasm::remote(Kind::Http, mesh.publish("add-header-v1", "http", "latest").await);
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees("200 v1", 20).await;

    mesh.publish("add-header-v2", "http", "latest").await;
    mesh.registry.stop();
    mesh.agent.kill();
    mesh.agent.resume(&mesh.world).await;
    eventually("a failure", async || {
        mesh.state("filter").await.filter(|state| state["last_error"].is_string())
    })
    .await;
    traffic.sees("200 v1", 100).await;
    traffic.saw_only(&["200 v1"]);

    mesh.registry.resume(&mesh.world).await;
    traffic.sees("200 v2", 20).await;
    traffic.saw_only(&["200 v1", "200 v2"]);
}

#[tokio::test]
async fn a_restart_with_the_registry_away_takes_nothing_away_by_state_of_the_world() {
    a_restart_takes_nothing_away(Variant::Sotw).await;
}

#[tokio::test]
async fn a_restart_with_the_registry_away_takes_nothing_away_by_the_unified_mux() {
    a_restart_takes_nothing_away(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_restart_with_the_registry_away_takes_nothing_away_by_delta() {
    a_restart_takes_nothing_away(Variant::Delta).await;
}

fn files(folder: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(
            |path| if path.is_dir() { files(&path) } else { vec![path.metadata().map_or(0, |m| m.len())] },
        )
        .collect()
}

fn files_below(folder: &Path) -> usize {
    files(folder).len()
}

fn bytes_below(folder: &Path) -> u64 {
    files(folder).iter().sum()
}
