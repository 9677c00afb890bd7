//! An Envoy that starts with nothing, while registries are up, slow and away.

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::gate::Gate;
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::registry::{Access, Layout, Registry};
use crate::support::resources::Kind;
use crate::support::traffic::in_short;

/// What is there comes at once, what is away gets its failure policy after the hold, and a download in
/// progress is waited for: nobody is denied while it lasts.
async fn a_cold_start(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 1s}").await;
    let gate = Gate::in_front_of(mesh.registry.address(), &mesh.world).await;
    gate.hold_after(100_000);
    let mut away = Registry::start(&mesh.world, Access::Anonymous).await;
    let v1 = module("add-header-v1");
    away.publish("http", "v1", Layout::Artifact, &v1).await;
    away.stop();
    mesh.registry.publish("http", "v1", Layout::Artifact, &padded(&v1, 300_000)).await;
    let up = mesh.publish("add-header-v2", "http", "v2").await;
    let slow = format!("oci://{}/http:v1", gate.address());
    for (name, url) in [("up", up.as_str()), ("slow", &slow), ("down", &away.url("http", "v1"))] {
        let filter = from_istio(Kind::Http, url);
        mesh.control_plane.set_all([listener(name, &[], &[name]), filter.resource(name)]);
    }

    let envoy = mesh.envoy(variant).await;
    let serving = async |name: &str, what: &str| {
        eventually(&format!("{name}: {what}"), async || {
            mesh.state(name).await.filter(|state| state["serving"] == what)
        })
        .await
    };
    serving("up", "current").await;
    gate.held().await;
    // That this is there says that the hold of all three is over.
    serving("down", "fallback").await;
    assert_eq!(serving("slow", "nothing").await["fetch"], "running");
    assert_eq!(envoy.ecds_stat(Kind::Http, "slow", "update_success").await, 0, "nothing stands in for it");
    assert!(!envoy.is_live().await);

    gate.open();
    envoy.live().await;
    let outcome = async |name: &str| in_short(&envoy::request(envoy.listener(name).await).await);
    assert_eq!(outcome("up").await, "200 v2");
    assert_eq!(outcome("slow").await, "200 v1");
    assert_eq!(outcome("down").await, "403 -");

    away.resume(&mesh.world).await;
    eventually("the filter whose registry was away", async || {
        (outcome("down").await == "200 v1").then_some(())
    })
    .await;
    for (name, reloads) in [("up", 1), ("slow", 1), ("down", 2)] {
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "config_reload").await, reloads, "{name}");
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_rejected").await, 0, "{name}");
    }
}

#[tokio::test]
async fn a_cold_start_waits_for_slow_downloads_and_denies_only_what_failed_by_state_of_the_world() {
    a_cold_start(Variant::Sotw).await;
}

#[tokio::test]
async fn a_cold_start_waits_for_slow_downloads_and_denies_only_what_failed_by_the_unified_mux() {
    a_cold_start(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_cold_start_waits_for_slow_downloads_and_denies_only_what_failed_by_delta() {
    a_cold_start(Variant::Delta).await;
}
