//! Envoy's hot restart: for a while two Envoys of one node are on the agent, and neither goes without.

use std::sync::atomic::{AtomicU32, Ordering};

use envoy_types::util::pack_any;
use prost::Message;

use crate::support::envoy::{self, Envoy, Variant, Xds};
use crate::support::eventually;
use crate::support::gate::Gate;
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::registry::Access;
use crate::support::resources::{self, Kind};
use crate::support::traffic::Traffic;

/// One of the two: under names of its own in this world, one id for the control plane.
async fn epoch(mesh: &Mesh, variant: Variant, base_id: u32, epoch: u32) -> Envoy {
    let options = envoy::Options::lds(Xds::Unix(mesh.agent.socket.clone()), variant);
    let args = format!("--base-id {base_id} --restart-epoch {epoch} --parent-shutdown-time-s 2");
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    let bootstrap = options.bootstrap().encode_to_vec();
    Envoy::run(&mesh.world, &format!("epoch-{epoch}"), ".pb", &bootstrap, &args).await
}

/// What Envoys of one machine must not share: of this process, and of this call.
fn base_id() -> u32 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    std::process::id() * 8 + CALLS.fetch_add(1, Ordering::Relaxed)
}

/// Under load. The child waits for a filter that the parent never asked for, and while it does both get
/// an update; then it takes over, and the parent ends.
async fn a_hot_restart_fails_no_request(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "").await;
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let v2 = from_istio(Kind::Http, &mesh.publish("add-header-v2", "http", "v2").await);
    let address = mesh.world.address();
    let slot = resources::http_slot("filter", resources::discovery(Kind::Http));
    let web = pack_any(resources::listener("web", address, vec![], vec![slot]));
    mesh.control_plane.set_all([web, v1.resource("filter")]);
    let base_id = base_id();
    let mut parent = epoch(&mesh, variant, base_id, 0).await;
    parent.live().await;
    let traffic = Traffic::to(address);
    traffic.sees("200 v1", 20).await;

    let gate = Gate::in_front_of(mesh.registry.address(), &mesh.world).await;
    gate.hold_after(0);
    let network = mesh.publish("network", "network", "v1").await;
    let late = network.replace(&mesh.registry.address().to_string(), &gate.address().to_string());
    mesh.control_plane
        .set_all([listener("late", &["late"], &[]), from_istio(Kind::Network, &late).resource("late")]);
    let child = epoch(&mesh, variant, base_id, 1).await;
    let serving = async |what: &str| {
        let state = mesh.agent.state().await;
        let streams = state["streams"].as_array().unwrap().clone();
        let resources = streams.iter().flat_map(|stream| stream["resources"].as_array().unwrap());
        resources.filter(|state| state["name"] == "filter" && state["serving"] == what).count()
    };
    eventually("both with the filter", async || (serving("current").await == 2).then_some(())).await;
    mesh.control_plane.set(v2.resource("filter"));
    // Which the parent answers.
    assert!(!child.is_live().await);
    traffic.sees("200 v2", 20).await;
    assert!(!child.is_live().await);

    gate.open();
    child.live().await;
    assert!(parent.process().end().await.success());
    eventually("one stream", async || (serving("current").await == 1).then_some(())).await;
    traffic.sees("200 v2", 100).await;
    traffic.saw_only(&["200 v1", "200 v2"]);
    assert_eq!(child.ecds_stat(Kind::Http, "filter", "update_rejected").await, 0);
    assert_eq!(mesh.control_plane.streams(), 2);
    let pulls = mesh.registry.pulls().await;
    let blobs = pulls.iter().filter(|pull| pull.path.contains("/blobs/")).count();
    assert_eq!(blobs, 3, "each module once for both: {pulls:?}");
}

#[tokio::test]
async fn a_hot_restart_fails_no_request_by_state_of_the_world() {
    a_hot_restart_fails_no_request(Variant::Sotw).await;
}

#[tokio::test]
async fn a_hot_restart_fails_no_request_by_the_unified_mux() {
    a_hot_restart_fails_no_request(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_hot_restart_fails_no_request_by_delta() {
    a_hot_restart_fails_no_request(Variant::Delta).await;
}
