//! The same against a real Envoy under load: updates whose modules are not there, and streams that the
//! control plane ends at random, fail no request.

use std::time::Duration;

use crate::support::control_plane::Protocol;
use crate::support::control_plane::doubles::Kind;
use crate::support::envoy::Variant;
use crate::support::eventually;
use crate::support::mesh::listener;
use crate::support::resources;
use crate::support::scene::Scene;
use crate::support::traffic::Traffic;

async fn no_request_fails(variant: Variant) {
    let protocol = if variant == Variant::Delta { Protocol::Delta } else { Protocol::Sotw };
    for kind in Kind::BOTH {
        println!("{kind:?}");
        let scene = Scene::new(kind, protocol).await;
        scene.publish_fixture("/v1", "add-header-v1");
        scene.publish_fixture("/v2", "add-header-v2");
        let hanging = scene.publish_held("/hanging");
        scene.double.set(listener("web", &[], &["filter"]));
        scene.double.set(scene.filter("filter", "v1", "/v1"));
        let envoy = scene.real_envoy(variant).await;
        envoy.live().await;
        let traffic = Traffic::to(envoy.listener("web").await);
        traffic.sees("200 v1", 20).await;
        let reloads = async || envoy.ecds_stat(resources::Kind::Http, "filter", "config_reload").await;
        assert_eq!(reloads().await, 1);

        scene.double.set(scene.filter("filter", "nowhere", "/nowhere"));
        scene.fetched("/nowhere", 1).await;
        scene.double.close_at_random(0x5eed, Duration::from_millis(100)..Duration::from_millis(400));
        scene.double.set(scene.filter("filter", "hanging", "/hanging"));
        scene.fetched("/hanging", 1).await;
        traffic.sees("200 v1", 100).await;
        let streams = || scene.double.said().iter().map(|(number, _)| *number).max();
        eventually("a second stream and a third", async || (streams() >= Some(3)).then_some(())).await;
        assert_eq!(reloads().await, 1, "what runs keeps running");
        scene.double.set(scene.filter("filter", "v2", "/v2"));
        traffic.sees("200 v2", 20).await;
        scene.double.close_no_more();
        hanging.add_permits(9);
        traffic.sees("200 v2", 50).await;
        traffic.saw_only(&["200 v1", "200 v2"]);
        assert_eq!(reloads().await, 2);
        assert_eq!(envoy.ecds_stat(resources::Kind::Http, "filter", "update_rejected").await, 0);
        assert_eq!(scene.double.nacks(&resources::ecds_type()), Vec::<String>::new());
    }
}

#[tokio::test]
async fn updates_that_cannot_be_had_and_streams_that_end_fail_no_request_by_state_of_the_world() {
    no_request_fails(Variant::Sotw).await;
}

#[tokio::test]
async fn updates_that_cannot_be_had_and_streams_that_end_fail_no_request_by_the_unified_mux() {
    no_request_fails(Variant::SotwUnified).await;
}

#[tokio::test]
async fn updates_that_cannot_be_had_and_streams_that_end_fail_no_request_by_delta() {
    no_request_fails(Variant::Delta).await;
}
