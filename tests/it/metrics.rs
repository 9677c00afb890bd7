//! What operators see of all this, and what nobody is to see.

use http::StatusCode;

use crate::support::client;
use crate::support::envoy::{self, Envoy, Variant, Xds};
use crate::support::eventually;
use crate::support::mesh::{Mesh, from_istio, listener, with_secret};
use crate::support::registry::Access;
use crate::support::resources::Kind;

#[tokio::test]
async fn metrics_count_what_happened_and_name_nobody() {
    let mut mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let found = from_istio(Kind::Http, &mesh.publish("add-header-v1", "repository-found", "v1").await);
    let lost = from_istio(Kind::Http, &mesh.registry.url("repository-lost", "v1"));
    let names = ["resource-found", "resource-lost"];
    mesh.control_plane.set_all([
        listener("listener-web", &[], &names),
        found.resource(names[0]),
        lost.resource(names[1]),
    ]);
    let first = mesh.envoy(Variant::Delta).await;
    first.live().await;
    let options = envoy::Options {
        node_id: "node-second".into(),
        ..envoy::Options::lds(Xds::Tcp(mesh.agent.tcp), Variant::Sotw)
    };
    let second = Envoy::start(&mesh.world, &options).await;
    second.live().await;

    for (sample, expected) in [
        ("wasmferry_streams", 2),
        (r#"wasmferry_fetches_total{result="success"}"#, 1),
        (r#"wasmferry_fetches_total{result="not_found"}"#, 2),
        (r#"wasmferry_store_lookups_total{result="hit"}"#, 1),
        (r#"wasmferry_store_lookups_total{result="miss"}"#, 3),
        (r#"wasmferry_resources_total{result="fallback"}"#, 2),
        (r#"wasmferry_serving{serving="current"}"#, 2),
        (r#"wasmferry_serving{serving="fallback"}"#, 2),
        (r#"wasmferry_serving{serving="nothing"}"#, 0),
        ("wasmferry_store_modules", 1),
        ("wasmferry_fetched_bytes_total", 378),
    ] {
        assert_eq!(mesh.agent.metric(sample).await, expected, "{sample}");
    }
    let metrics = mesh.agent.health("/metrics").await;
    assert_eq!(metrics.status, StatusCode::OK);
    for name in ["resource-", "repository-", "listener-", "node-", "127.", "oci:"] {
        assert!(!metrics.text().contains(name), "{name}: {}", metrics.text());
    }
    // The operator's pages are not on the listener that a whole network may reach.
    for page in ["/state", "/"] {
        assert_eq!(mesh.agent.health(page).await.status, StatusCode::NOT_FOUND, "{page}");
        assert_eq!(mesh.agent.admin(page).await.status, StatusCode::OK, "{page}");
    }

    drop(second);
    eventually("a stream less", async || (mesh.agent.metric("wasmferry_streams").await == 1).then_some(()))
        .await;
    let health = mesh.agent.health;
    assert_eq!(mesh.agent.stop().await, Some(0));
    assert!(client::get(health, "/healthz").await.is_err());
}

#[tokio::test]
async fn state_says_of_each_resource_what_envoy_runs_and_why() {
    let mesh = Mesh::start(Access::Htpasswd, "fetch: {hold: 0s}").await;
    let url = mesh.publish("add-header-v1", "http", "v1").await;
    let secret = mesh.registry.docker_config();
    let found = with_secret(from_istio(Kind::Http, &url), &secret);
    let lost = with_secret(from_istio(Kind::Http, &mesh.registry.url("http", "v2")), &secret);
    let names = ["found", "lost"];
    mesh.control_plane.set_all([
        listener("web", &[], &names),
        found.resource(names[0]),
        lost.resource(names[1]),
    ]);
    let envoy = mesh.envoy(Variant::Delta).await;
    envoy.live().await;

    let state = mesh.agent.state().await;
    let streams = state["streams"].as_array().unwrap();
    assert_eq!(streams.len(), 1, "{state}");
    let listener = format!("unix:{}", mesh.agent.socket.display());
    assert_eq!(streams[0]["listener"], listener.as_str());
    assert_eq!((streams[0]["node"].as_str(), streams[0]["variant"].as_str()), (Some("envoy"), Some("delta")));
    assert_eq!(streams[0]["resources"].as_array().unwrap().len(), 2, "{state}");

    let found = mesh.state("found").await.unwrap();
    assert_eq!((found["serving"].as_str(), found["fetch"].as_str()), (Some("current"), Some("idle")));
    assert!(found.get("last_error").is_none(), "{found}");
    let lost = mesh.state("lost").await.unwrap();
    assert_eq!(lost["serving"], "fallback");
    assert_eq!(
        (lost["fetch"].as_str(), lost["failed_attempts"].as_u64()),
        (Some("waiting_to_retry"), Some(1))
    );
    let error = lost["last_error"].as_str().unwrap();
    assert!(error.contains(&mesh.registry.url("http", "v2")) && error.contains("was not found"), "{error}");

    drop(envoy);
    eventually("no stream", async || {
        (mesh.agent.state().await["streams"].as_array()?.is_empty()).then_some(())
    })
    .await;
}
