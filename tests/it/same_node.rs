//! What an agent knows of a node outlives the node's streams.

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::mesh::{Mesh, listener};
use crate::support::registry::Access;
use crate::support::resources::{Kind, Wasm};
use crate::support::traffic::in_short;

/// An Envoy that starts again with nothing, while a tag that may have moved cannot be asked for: it gets
/// what worked for its node, from the agent's memory, and from its disk where that has started again too.
async fn a_node_that_starts_again_gets_its_last_good(variant: Variant) {
    let mut mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let filter = Wasm::remote(Kind::Http, mesh.publish("add-header-v1", "http", "latest").await);
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let outcome = async |envoy: &envoy::Envoy| in_short(&envoy::request(envoy.listener("web").await).await);
    let first = mesh.envoy(variant).await;
    first.live().await;
    assert_eq!(outcome(&first).await, "200 v1");

    mesh.publish("add-header-v2", "http", "latest").await;
    mesh.registry.stop();
    first.stop().await;
    let mut last = None;
    for agent_too in [false, true] {
        drop(last.take());
        if agent_too {
            mesh.agent.noted().await;
            mesh.agent.kill();
            mesh.agent.resume(&mesh.world).await;
        }
        let envoy = mesh.envoy(variant).await;
        envoy.live().await;
        assert_eq!(outcome(&envoy).await, "200 v1", "the agent started again: {agent_too}");
        let state = eventually("a failure", async || {
            mesh.state("filter").await.filter(|state| state["last_error"].is_string())
        })
        .await;
        assert_ne!(state["serving"], "fallback", "{state}");
        last = Some(envoy);
    }
    // Another node has no last good one.
    let xds = envoy::Xds::Unix(mesh.agent.socket.clone());
    let options = envoy::Options { node_id: "another".into(), ..envoy::Options::lds(xds, variant) };
    let another = envoy::Envoy::start(&mesh.world, &options).await;
    another.live().await;
    assert_eq!(outcome(&another).await, "403 -");

    mesh.registry.resume(&mesh.world).await;
    for envoy in [last.expect("an Envoy"), another] {
        eventually("the newest", async || (outcome(&envoy).await == "200 v2").then_some(())).await;
    }
}

#[tokio::test]
async fn a_node_that_starts_again_gets_its_last_good_by_state_of_the_world() {
    a_node_that_starts_again_gets_its_last_good(Variant::Sotw).await;
}

#[tokio::test]
async fn a_node_that_starts_again_gets_its_last_good_by_the_unified_mux() {
    a_node_that_starts_again_gets_its_last_good(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_node_that_starts_again_gets_its_last_good_by_delta() {
    a_node_that_starts_again_gets_its_last_good(Variant::Delta).await;
}
