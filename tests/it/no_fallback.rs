//! Listeners in which the failure policy's filter has no place: those that do not list its type, and
//! those that bring a filter of their own for the meantime.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;
use prost::Name;

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::registry::{Access, Layout, Registry};
use crate::support::resources::{self, Kind};
use crate::support::traffic::in_short;

/// A listener with one filter, discovered like this.
fn with(name: &str, discovery: ExtensionConfigSource) -> Any {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    pack_any(resources::listener(name, free, vec![], vec![resources::http_slot(name, discovery)]))
}

/// Their registry is away, then there. A filter that Envoy refuses would show in its own counter, and in
/// a neighbour that never warms.
async fn no_fallback_is_sent(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let mut away = Registry::start(&mesh.world, Access::Anonymous).await;
    away.publish("http", "v1", Layout::Artifact, &module("add-header-v1")).await;
    let late = from_istio(Kind::Http, &away.url("http", "v1"));
    away.stop();
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let v2 = from_istio(Kind::Http, &mesh.publish("add-header-v2", "http", "v2").await);
    let own = ExtensionConfigSource {
        default_config: Some(pack_any(Rbac::default())),
        apply_default_config_without_warming: true,
        ..resources::discovery(Kind::Http)
    };
    mesh.control_plane.set_all([
        listener("neighbour", &[], &["neighbour"]),
        v1.resource("neighbour"),
        with("own", own),
        late.resource("own"),
    ]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let outcome = async |name: &str| in_short(&envoy::request(envoy.listener(name).await).await);
    let held_back = async |name: &str| {
        let state = eventually("a second failure", async || {
            mesh.state(name).await.filter(|state| state["failed_attempts"].as_u64() >= Some(2))
        })
        .await;
        assert_eq!(state["serving"], "nothing", "{state}");
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_success").await, 0, "{name}");
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_rejected").await, 0, "{name}");
    };
    held_back("own").await;
    assert_eq!(outcome("own").await, "200 -", "the listener's own");

    let wasm_only =
        ExtensionConfigSource { type_urls: vec![Wasm::type_url()], ..resources::discovery(Kind::Http) };
    mesh.control_plane.set_all([with("wasm-only", wasm_only), late.resource("wasm-only")]);
    held_back("wasm-only").await;
    mesh.control_plane.set(v2.resource("neighbour"));
    eventually("a neighbour's update", async || (outcome("neighbour").await == "200 v2").then_some(())).await;

    away.resume(&mesh.world).await;
    for name in ["own", "wasm-only"] {
        eventually(name, async || (outcome(name).await == "200 v1").then_some(())).await;
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_rejected").await, 0, "{name}");
    }
    assert_eq!(mesh.control_plane.nacks(&resources::ecds_type()), [""; 0]);
    assert_eq!(mesh.control_plane.nacks(&resources::lds_type()), [""; 0]);
}

#[tokio::test]
async fn no_fallback_is_sent_where_a_listener_has_no_place_for_it_by_state_of_the_world() {
    no_fallback_is_sent(Variant::Sotw).await;
}

#[tokio::test]
async fn no_fallback_is_sent_where_a_listener_has_no_place_for_it_by_the_unified_mux() {
    no_fallback_is_sent(Variant::SotwUnified).await;
}

#[tokio::test]
async fn no_fallback_is_sent_where_a_listener_has_no_place_for_it_by_delta() {
    no_fallback_is_sent(Variant::Delta).await;
}
