//! What Envoy runs while a module cannot be had, and that nothing which works is taken away.

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::wasm::v3::FailurePolicy;
use envoy_types::util::pack_any;

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::registry::Access;
use crate::support::resources::{self, Kind};
use crate::support::traffic::{InFlight, Traffic, in_short};

/// Four filters whose registry is away, then is there.
async fn the_failure_policy_stands_in(variant: Variant) {
    let mut mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 100ms}").await;
    let http = mesh.publish("add-header-v1", "http", "v1").await;
    let network = mesh.publish("network", "network", "v1").await;
    mesh.registry.stop();
    for (kind, url) in [(Kind::Http, &http), (Kind::Network, &network)] {
        for (policy, name) in [(FailurePolicy::FailClosed, "deny"), (FailurePolicy::FailOpen, "allow")] {
            let mut filter = from_istio(kind, url);
            filter.failure_policy = policy;
            let name = format!("{name}-{kind:?}");
            let slots = [name.as_str()];
            let listener = match kind {
                Kind::Http => listener(&name, &[], &slots),
                Kind::Network => listener(&name, &slots, &[]),
            };
            mesh.control_plane.set_all([listener, filter.resource(&name)]);
        }
    }

    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let outcome = async |name: &str| in_short(&envoy::request(envoy.listener(name).await).await);
    assert_eq!(outcome("deny-Http").await, "403 -");
    assert_eq!(outcome("allow-Http").await, "200 -");
    assert!(outcome("deny-Network").await.starts_with("broken"));
    assert_eq!(outcome("allow-Network").await, "200 -");
    // As Istio marks them, so that an operator knows whose they are.
    let dump = envoy.config_dump().await.to_string();
    for mark in ["wasm-default-deny", "wasm-default-allow"] {
        assert_eq!(dump.matches(mark).count(), 2, "{mark}: {dump}");
    }

    // Where the rest of what Envoy says only answers.
    let questions = || {
        let events = mesh.control_plane.events();
        events.into_iter().filter(|(_, event)| event.answer.is_none()).count()
    };
    let asked = questions();
    mesh.registry.resume(&mesh.world).await;
    for name in ["deny-Http", "allow-Http"] {
        eventually(name, async || (outcome(name).await == "200 v1").then_some(())).await;
    }
    let connections = "wasmcustom.wasmferry_demo_connections";
    for name in ["deny-Network", "allow-Network"] {
        let before = envoy.stat(connections).await;
        eventually(name, async || {
            let passed = outcome(name).await == "200 -";
            (passed && envoy.stat(connections).await > before).then_some(())
        })
        .await;
    }
    assert_eq!(questions(), asked, "nobody had to ask for it");
    assert!(!envoy.config_dump().await.to_string().contains("wasm-default"));
    for (kind, name) in [(Kind::Http, "deny-Http"), (Kind::Network, "allow-Network")] {
        assert_eq!(envoy.ecds_stat(kind, name, "update_rejected").await, 0);
    }
}

#[tokio::test]
async fn the_failure_policy_stands_in_until_the_module_comes_by_state_of_the_world() {
    the_failure_policy_stands_in(Variant::Sotw).await;
}

#[tokio::test]
async fn the_failure_policy_stands_in_until_the_module_comes_by_the_unified_mux() {
    the_failure_policy_stands_in(Variant::SotwUnified).await;
}

#[tokio::test]
async fn the_failure_policy_stands_in_until_the_module_comes_by_delta() {
    the_failure_policy_stands_in(Variant::Delta).await;
}

#[tokio::test]
async fn while_a_first_fetch_is_held_envoy_waits_and_answers_nobody() {
    let mut mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 1h}").await;
    let filter = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    mesh.registry.stop();
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let envoy = mesh.envoy(Variant::Delta).await;
    let state = eventually("a second failure", async || {
        mesh.state("filter").await.filter(|state| state["failed_attempts"].as_u64() >= Some(2))
    })
    .await;
    assert_eq!(state["serving"], "nothing", "{state}");
    assert!(!envoy.is_live().await);

    mesh.registry.resume(&mesh.world).await;
    envoy.live().await;
    assert_eq!(in_short(&envoy::request(envoy.listener("web").await).await), "200 v1");
    assert_eq!(envoy.ecds_stat(Kind::Http, "filter", "config_reload").await, 1, "no fallback in between");
}

/// A reference that leads nowhere, then one that does: under load, and with 2,000 requests in flight.
async fn a_broken_update_changes_nothing(variant: Variant) {
    const IN_FLIGHT: usize = 2_000;
    let mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let v2 = from_istio(Kind::Http, &mesh.publish("add-header-v2", "http", "v2").await);
    let broken = from_istio(Kind::Http, &mesh.registry.url("http", "v3"));
    let filters =
        vec![resources::http_slot("filter", resources::discovery(Kind::Http)), resources::whole_requests()];
    let web = pack_any(resources::listener("web", mesh.world.address(), vec![], filters));
    mesh.control_plane.set_all([web, v1.resource("filter")]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let address = envoy.listener("web").await;
    let in_flight = InFlight::to(address, IN_FLIGHT).await;
    eventually("all requests in flight", async || {
        (envoy.stat("http.web.downstream_rq_active").await == IN_FLIGHT as u64).then_some(())
    })
    .await;
    let traffic = Traffic::to(address);
    traffic.sees("200 v1", 20).await;

    mesh.control_plane.set(broken.resource("filter"));
    let state = eventually("a failure", async || {
        mesh.state("filter").await.filter(|state| state["last_error"].is_string())
    })
    .await;
    assert_eq!(state["serving"], "last_good", "{state}");
    traffic.sees("200 v1", 200).await;
    assert_eq!(in_flight.finish().await, [("200 v1".to_owned(), IN_FLIGHT)].into());
    assert_eq!(envoy.ecds_stat(Kind::Http, "filter", "config_reload").await, 1);

    mesh.control_plane.set(v2.resource("filter"));
    traffic.sees("200 v2", 20).await;
    traffic.saw_only(&["200 v1", "200 v2"]);
    let state = mesh.state("filter").await.unwrap();
    assert_eq!((state["serving"].as_str(), state.get("last_error")), (Some("current"), None));
}

#[tokio::test]
async fn a_broken_update_changes_nothing_by_state_of_the_world() {
    a_broken_update_changes_nothing(Variant::Sotw).await;
}

#[tokio::test]
async fn a_broken_update_changes_nothing_by_the_unified_mux() {
    a_broken_update_changes_nothing(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_broken_update_changes_nothing_by_delta() {
    a_broken_update_changes_nothing(Variant::Delta).await;
}

/// One listener for each module that Envoy could not load, and two whose modules are sound.
async fn what_envoy_would_reject_is_held_back(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let bad = [
        ("component", "component"),
        ("empty", "empty"),
        ("html", "HTML"),
        ("no-abi", "proxy_abi_version"),
        ("precompiled", "native code"),
        ("truncated", "ends"),
        ("unknown-import", "import"),
    ];
    for (fixture, _) in bad {
        let filter = from_istio(Kind::Http, &mesh.publish(fixture, fixture, "v1").await);
        mesh.control_plane.set_all([listener(fixture, &[], &[fixture]), filter.resource(fixture)]);
    }
    // First and last of all by name.
    let good = ["a-neighbour", "z-neighbour"];
    let filter = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    for name in good {
        mesh.control_plane.set_all([listener(name, &[], &[name]), filter.resource(name)]);
    }

    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    for name in good {
        assert_eq!(in_short(&envoy::request(envoy.listener(name).await).await), "200 v1", "{name}");
    }
    for (name, reason) in bad {
        assert_eq!(in_short(&envoy::request(envoy.listener(name).await).await), "403 -", "{name}");
        let state = mesh.state(name).await.unwrap();
        let error = state["last_error"].as_str().unwrap();
        assert!(error.contains(reason), "{name}: {error}");
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_rejected").await, 0, "{name}");
    }
    assert!(!envoy.log().contains("Unable to create Wasm plugin"), "Envoy was given a bad module");
    assert_eq!(mesh.control_plane.nacks(&resources::ecds_type()), [""; 0]);
}

#[tokio::test]
async fn what_envoy_would_reject_is_held_back_by_state_of_the_world() {
    what_envoy_would_reject_is_held_back(Variant::Sotw).await;
}

#[tokio::test]
async fn what_envoy_would_reject_is_held_back_by_the_unified_mux() {
    what_envoy_would_reject_is_held_back(Variant::SotwUnified).await;
}

#[tokio::test]
async fn what_envoy_would_reject_is_held_back_by_delta() {
    what_envoy_would_reject_is_held_back(Variant::Delta).await;
}

/// A module that nobody can tell to be bad without running it: as an update, and as a first one.
async fn what_envoy_does_reject_leaves_the_last_good_one(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "").await;
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let v2 = from_istio(Kind::Http, &mesh.publish("add-header-v2", "http", "v2").await);
    let refuses = from_istio(Kind::Http, &mesh.publish("fails-configure", "refuses", "v1").await);
    let address = mesh.world.address();
    let web = |more: Option<HttpFilter>| {
        let filter = resources::http_slot("filter", resources::discovery(Kind::Http));
        pack_any(resources::listener("web", address, vec![], [filter].into_iter().chain(more).collect()))
    };
    mesh.control_plane.set_all([web(None), v1.resource("filter")]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let traffic = Traffic::to(address);
    traffic.sees("200 v1", 20).await;

    mesh.control_plane.set(refuses.resource("filter"));
    eventually("a rejection that is mended", async || {
        let rejected = envoy.ecds_stat(Kind::Http, "filter", "update_rejected").await;
        let accepted = envoy.ecds_stat(Kind::Http, "filter", "update_success").await;
        (rejected == 1 && accepted == 2).then_some(())
    })
    .await;
    assert_eq!(mesh.state("filter").await.unwrap()["serving"], "last_good");
    traffic.sees("200 v1", 100).await;

    // Envoy takes the last config that it was offered for the one to use in listeners, changed and new.
    mesh.control_plane.set(web(Some(resources::whole_requests())));
    eventually("a changed listener", async || {
        (envoy.stat("listener_manager.listener_modified").await == 1).then_some(())
    })
    .await;
    mesh.control_plane.set_all([listener("another", &[], &["filter", "cold"]), refuses.resource("cold")]);
    let another = envoy.listener("another").await;
    envoy.answers("the failure policy", another, |answer| answer.status == 403).await;
    mesh.control_plane.set(v1.resource("cold"));
    envoy
        .answers("both", another, |answer| answer.headers.get_all("x-wasmferry-demo").iter().eq(["v1"; 2]))
        .await;
    assert_eq!(mesh.control_plane.nacks(&resources::lds_type()), [""; 0]);

    mesh.control_plane.set(v2.resource("filter"));
    traffic.sees("200 v2", 20).await;
    traffic.saw_only(&["200 v1", "200 v2"]);
}

#[tokio::test]
async fn what_envoy_does_reject_leaves_the_last_good_one_by_state_of_the_world() {
    what_envoy_does_reject_leaves_the_last_good_one(Variant::Sotw).await;
}

#[tokio::test]
async fn what_envoy_does_reject_leaves_the_last_good_one_by_the_unified_mux() {
    what_envoy_does_reject_leaves_the_last_good_one(Variant::SotwUnified).await;
}

#[tokio::test]
async fn what_envoy_does_reject_leaves_the_last_good_one_by_delta() {
    what_envoy_does_reject_leaves_the_last_good_one(Variant::Delta).await;
}
