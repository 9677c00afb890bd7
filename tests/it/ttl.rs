//! Resources that the control plane lets Envoy keep for a while only, and a real Envoy that drops them when
//! that has passed.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
use envoy_types::pb::google::protobuf::{self, Any};
use envoy_types::util::pack_any;
use prost::Message as _;
use tokio::time::Instant;

use crate::support::agent::{Agent, Options};
use crate::support::bad_server::{BadServer, Reply};
use crate::support::control_plane::script::Script;
use crate::support::control_plane::{ControlPlane, Protocol};
use crate::support::envoy::{self, Envoy, Variant, Xds};
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::resources::{self, Kind, Wasm};
use crate::support::traffic::Traffic;
use crate::support::world::World;

/// How long Envoy may keep it. Envoy counts in whole seconds.
const TTL: Duration = Duration::from_secs(3);

/// A response with one resource and its TTL; a heartbeat has none.
fn response(protocol: Protocol, version: &str, nonce: &str, resource: Option<Any>) -> Vec<u8> {
    let resource = Resource {
        name: "filter".into(),
        version: version.into(),
        resource,
        ttl: Some(protobuf::Duration { seconds: TTL.as_secs() as i64, nanos: 0 }),
        ..Resource::default()
    };
    let (version, nonce, type_url) = (version.into(), nonce.into(), resources::ecds_type());
    match protocol {
        Protocol::Sotw => DiscoveryResponse {
            version_info: version,
            resources: vec![pack_any(resource)],
            type_url,
            nonce,
            ..DiscoveryResponse::default()
        }
        .encode_to_vec(),
        Protocol::Delta => DeltaDiscoveryResponse {
            system_version_info: version,
            resources: vec![resource],
            type_url,
            nonce,
            ..DeltaDiscoveryResponse::default()
        }
        .encode_to_vec(),
    }
}

async fn envoy_keeps_a_filter_for_as_long_as_the_control_plane_says(variant: Variant) {
    let protocol = if variant == Variant::Delta { Protocol::Delta } else { Protocol::Sotw };
    let world = World::new();
    let server = BadServer::start(&world).await;
    let url = server.put("/filter.wasm", Reply::ok(module("add-header-v1")));
    let upstream = Xds::Tcp(world.address());
    let mut control_plane = ControlPlane::listen(upstream.clone()).await;
    let agent = Agent::start(&world, &Options::upstream(&upstream)).await;
    let filter = resources::http_slot("filter", resources::discovery(Kind::Http));
    let listener = resources::listener("web", world.address(), vec![], vec![filter]);
    let options = envoy::Options::with_listener(Xds::Unix(agent.socket.clone()), variant, listener);
    let envoy = Envoy::start(&world, &options).await;

    let mut script = Script::from(control_plane.accept().await);
    let ecds = resources::ecds_type();
    script.event_of(&ecds).await;
    let resource = Wasm::remote(Kind::Http, &url).resource("filter");
    script.send_bytes(&ecds, "1", "first", response(protocol, "1", "first", Some(resource))).await.unwrap();
    assert!(script.event_of(&ecds).await.is_ack());
    envoy.live().await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees("200 v1", 20).await;

    // Twice as long as it may be kept without.
    let until = Instant::now() + 2 * TTL;
    let mut beats = 0;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        beats += 1;
        let nonce = format!("beat-{beats}");
        script.send_bytes(&ecds, "1", &nonce, response(protocol, "1", &nonce, None)).await.unwrap();
        assert!(script.event_of(&ecds).await.is_ack());
    }
    traffic.saw_only(&["200 v1"]);
    assert_eq!(envoy.ecds_stat(Kind::Http, "filter", "config_reload").await, 1, "no heartbeat reloads it");

    let expired = r#"wasmferry_resources_total{result="expired"}"#;
    assert_eq!(agent.metric(expired).await, 0);
    eventually("a filter that is gone", async || {
        traffic.outcomes().keys().any(|outcome| outcome != "200 v1").then_some(())
    })
    .await;
    eventually("a resource that expired", async || (agent.metric(expired).await == 1).then_some(())).await;
    assert!(Instant::now() >= until, "{:?}", traffic.outcomes());
}

#[tokio::test]
async fn envoy_keeps_a_filter_for_as_long_as_the_control_plane_says_by_state_of_the_world() {
    envoy_keeps_a_filter_for_as_long_as_the_control_plane_says(Variant::Sotw).await;
}

#[tokio::test]
async fn envoy_keeps_a_filter_for_as_long_as_the_control_plane_says_by_the_unified_mux() {
    envoy_keeps_a_filter_for_as_long_as_the_control_plane_says(Variant::SotwUnified).await;
}

#[tokio::test]
async fn envoy_keeps_a_filter_for_as_long_as_the_control_plane_says_by_delta() {
    envoy_keeps_a_filter_for_as_long_as_the_control_plane_says(Variant::Delta).await;
}
