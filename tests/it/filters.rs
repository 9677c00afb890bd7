//! What wasmferry is for: a real Envoy runs filters that come out of a real registry.

use std::path::Path;

use http::StatusCode;

use crate::support::envoy::{self, Envoy, Variant};
use crate::support::mesh::{Mesh, from_istio, listener, with_secret};
use crate::support::registry::{Access, PASSWORD, Registry, USER, docker_config};
use crate::support::resources::{self, Kind};
use crate::support::traffic::in_short;

const HTTP: &str = "extensions.istio.io/wasmplugin/team.http";
const NETWORK: &str = "extensions.istio.io/wasmplugin/team.network";
/// Nobody's password.
const GUESS: &str = "close sesame";

/// Two Envoys, one on each kind of socket, with the same HTTP and network filter.
async fn filters_from_the_registry_run(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "").await;
    let http = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let network = from_istio(Kind::Network, &mesh.publish("network", "network", "v1").await);
    mesh.control_plane.set_all([
        listener("web", &[NETWORK], &[HTTP]),
        http.resource(HTTP),
        network.resource(NETWORK),
    ]);

    for (number, xds) in mesh.agent.xds().into_iter().enumerate() {
        let options = envoy::Options {
            node_id: format!("envoy-{number}"),
            metadata: vec![("authorization".into(), format!("Bearer of-{number}"))],
            ..envoy::Options::lds(xds, variant)
        };
        let envoy = Envoy::start(&mesh.world, &options).await;
        envoy.live().await;
        let answer = envoy::request(envoy.listener("web").await).await;
        assert_eq!(in_short(&answer), "200 v1");
        assert_eq!(envoy.stat("wasmcustom.wasmferry_demo_connections").await, 1);

        // What Envoy was given: the same filters, with files for URLs and nothing of the agent's.
        let dump = envoy.config_dump().await.to_string();
        assert!(!dump.contains("ISTIO_META_"), "the agent's keys reached Envoy: {dump}");
        assert!(!dump.contains("oci://"), "{dump}");
        assert_eq!(dump.matches("of-the-plugin").count(), 2, "the plugins' own variable: {dump}");
        let public = mesh.agent.cache.join("v1/public");
        assert_eq!(dump.matches(public.to_str().unwrap()).count(), 2, "{dump}");
        for (kind, name) in [(Kind::Http, HTTP), (Kind::Network, NETWORK)] {
            assert_eq!(envoy.ecds_stat(kind, name, "config_reload").await, 1, "{name}");
            assert_eq!(envoy.ecds_stat(kind, name, "update_rejected").await, 0, "{name}");
        }
        assert_eq!(mesh.control_plane.streams(), number + 1);
    }

    // The second Envoy's modules were there already.
    let pulls = mesh.registry.pulls().await;
    let blobs = pulls.iter().filter(|pull| pull.path.contains("/blobs/")).count();
    assert_eq!((blobs, pulls.len()), (2, 4), "a manifest and a blob for each: {pulls:?}");
    assert_eq!(mesh.control_plane.nacks(&resources::ecds_type()), [""; 0]);
    assert_eq!(mesh.control_plane.nacks(&resources::lds_type()), [""; 0]);
}

#[tokio::test]
async fn filters_from_the_registry_run_by_state_of_the_world() {
    filters_from_the_registry_run(Variant::Sotw).await;
}

#[tokio::test]
async fn filters_from_the_registry_run_by_the_unified_mux() {
    filters_from_the_registry_run(Variant::SotwUnified).await;
}

#[tokio::test]
async fn filters_from_the_registry_run_by_delta() {
    filters_from_the_registry_run(Variant::Delta).await;
}

#[tokio::test]
async fn a_private_filter_runs_with_its_pull_secret_and_with_no_other() {
    let mesh = Mesh::start_in(Access::Htpasswd, "fetch: {hold: 0s}", &[("RUST_LOG", "trace")]).await;
    // One that needs no secret, by which it shows when somebody tries without.
    let open = Registry::start(&mesh.world, Access::Anonymous).await;
    let private = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let public = from_istio(Kind::Http, &open.url("http", "v1"));
    let wrong = docker_config(&mesh.registry.address().to_string(), USER, GUESS);
    let right = with_secret(private.clone(), &mesh.registry.docker_config());
    mesh.control_plane.set_all([listener("right", &[], &["right"]), right.resource("right")]);
    let envoy = mesh.envoy(Variant::Delta).await;
    envoy.live().await;
    assert_eq!(in_short(&envoy::request(envoy.listener("right").await).await), "200 v1");

    // That the module is on disk by now lets nobody else in.
    let others = [
        ("wrong", with_secret(private.clone(), &wrong), "not authorised"),
        ("none", private.clone(), "not authorised"),
        ("empty", with_secret(private, ""), "the pull secret of this module is not available"),
        ("empty-for-open", with_secret(public, ""), "the pull secret of this module is not available"),
    ];
    for (name, filter, reason) in others {
        mesh.control_plane.set_all([listener(name, &[], &[name]), filter.resource(name)]);
        let address = envoy.listener(name).await;
        envoy.answers(name, address, |answer| answer.status == StatusCode::FORBIDDEN).await;
        let state = mesh.state(name).await.unwrap();
        assert_eq!(state["serving"], "fallback", "{state}");
        assert!(state["last_error"].as_str().unwrap().contains(reason), "{state}");
    }
    assert_eq!(open.pulls().await, [], "an empty secret is not the same as none");

    let private = mesh.agent.cache.join("v1/private");
    let dump = envoy.config_dump().await.to_string();
    assert!(dump.contains(private.to_str().unwrap()), "a view of its own: {dump}");
    let told = [
        ("Envoy's configuration", dump),
        ("Envoy's log", envoy.log()),
        ("the agent's log", mesh.agent.log()),
        ("metrics", mesh.agent.health("/metrics").await.text()),
        ("state", mesh.agent.admin("/state").await.text()),
        ("what the control plane heard", format!("{:?}", mesh.control_plane.events())),
        ("the store", content(&mesh.agent.cache)),
    ];
    for (place, text) in told {
        assert!(!text.is_empty(), "{place} was not looked at");
        for secret in [PASSWORD, GUESS, &auth_of(&mesh.registry.docker_config()), &auth_of(&wrong)] {
            assert!(!text.contains(secret), "{secret} is in {place}: {text}");
        }
    }
}

/// The password of a docker config with one entry, as it stands there and goes over the wire.
fn auth_of(docker_config: &str) -> String {
    let config: serde_json::Value = serde_json::from_str(docker_config).unwrap();
    let entry = config["auths"].as_object().unwrap().values().next().unwrap();
    entry["auth"].as_str().unwrap().to_owned()
}

/// All paths and bytes below a folder.
fn content(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        text.push_str(&format!("{}\n", entry.display()));
        match entry.is_dir() {
            true => text.push_str(&content(&entry)),
            false => text.push_str(&String::from_utf8_lossy(&std::fs::read(&entry).unwrap())),
        }
    }
    text
}
