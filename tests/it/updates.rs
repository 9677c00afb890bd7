//! Updates whose modules come late, in another order, or not at all, and a real Envoy that runs the
//! newest one that is to be had.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::gate::Gate;
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::pulls::{digests, payloads};
use crate::support::registry::{Access, Layout};
use crate::support::resources::Kind;
use crate::support::traffic::{Traffic, in_short};

/// How long the registry is away, at the least.
const AWAY: Duration = Duration::from_secs(20);

/// The registry is away for many attempts, then there. Nobody asks again but the agent.
async fn an_update_arrives_when_its_registry_is_back(variant: Variant) {
    let mut mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s}").await;
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let v2 = from_istio(Kind::Http, &mesh.publish("add-header-v2", "http", "v2").await);
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), v1.resource("filter")]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees("200 v1", 20).await;

    mesh.registry.stop();
    let back = Instant::now() + AWAY;
    mesh.control_plane.set(v2.resource("filter"));
    let state = eventually("a third failure", async || {
        mesh.state("filter").await.filter(|state| state["failed_attempts"].as_u64() >= Some(3))
    })
    .await;
    assert_eq!(state["serving"], "last_good", "{state}");
    tokio::time::sleep_until(back).await;
    traffic.saw_only(&["200 v1"]);

    // The rest of what is said only answers.
    let questions = || {
        let events = mesh.control_plane.events();
        events.into_iter().filter(|(_, event)| event.answer.is_none()).count()
    };
    let asked = questions();
    mesh.registry.resume(&mesh.world).await;
    traffic.sees("200 v2", 20).await;
    traffic.saw_only(&["200 v1", "200 v2"]);
    assert_eq!(questions(), asked, "nobody had to ask for it");
    envoy.reloaded(Kind::Http, "filter", 2).await;
    assert_eq!(mesh.state("filter").await.unwrap()["serving"], "current");
}

#[tokio::test]
async fn an_update_arrives_when_its_registry_is_back_by_state_of_the_world() {
    an_update_arrives_when_its_registry_is_back(Variant::Sotw).await;
}

#[tokio::test]
async fn an_update_arrives_when_its_registry_is_back_by_the_unified_mux() {
    an_update_arrives_when_its_registry_is_back(Variant::SotwUnified).await;
}

#[tokio::test]
async fn an_update_arrives_when_its_registry_is_back_by_delta() {
    an_update_arrives_when_its_registry_is_back(Variant::Delta).await;
}

/// Two in a row, of which the first takes longer to download.
async fn an_update_that_was_overtaken_is_never_run(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "").await;
    let first = module("add-header-v1");
    let overtaken = padded(&module("add-header-v2"), 300_000);
    let newest = module("configured-header");
    let gate = Gate::in_front_of(mesh.registry.address(), &mesh.world).await;
    gate.hold_after(100_000);
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    mesh.registry.publish("http", "v2", Layout::Artifact, &overtaken).await;
    let v2 = from_istio(Kind::Http, &format!("oci://{}/http:v2", gate.address()));
    let mut v3 = from_istio(Kind::Http, &mesh.publish("configured-header", "http", "v3").await);
    v3.configuration = "v3".into();
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), v1.resource("filter")]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees("200 v1", 20).await;

    mesh.control_plane.set(v2.resource("filter"));
    gate.held().await;
    mesh.control_plane.set(v3.resource("filter"));
    traffic.sees("200 v3", 20).await;

    gate.open();
    let all = digests([first.as_slice(), &overtaken, &newest]);
    let log = || mesh.agent.log().matches("module is in the store").count();
    eventually("the download that was overtaken", async || (log() == 3).then_some(())).await;
    assert_eq!(payloads(&mesh.agent.cache), all, "it is kept");
    traffic.sees("200 v3", 100).await;
    traffic.saw_only(&["200 v1", "200 v3"]);
    envoy.reloaded(Kind::Http, "filter", 2).await;
    assert_eq!(envoy.ecds_stat(Kind::Http, "filter", "update_rejected").await, 0);
}

#[tokio::test]
async fn an_update_that_was_overtaken_is_never_run_by_state_of_the_world() {
    an_update_that_was_overtaken_is_never_run(Variant::Sotw).await;
}

#[tokio::test]
async fn an_update_that_was_overtaken_is_never_run_by_the_unified_mux() {
    an_update_that_was_overtaken_is_never_run(Variant::SotwUnified).await;
}

#[tokio::test]
async fn an_update_that_was_overtaken_is_never_run_by_delta() {
    an_update_that_was_overtaken_is_never_run(Variant::Delta).await;
}

/// One of three comes from a registry that takes connections and says nothing: its neighbours come and
/// are updated meanwhile, and its failure policy stands in when the fetch is given up.
async fn a_registry_that_never_answers_delays_nobody_else(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "fetch: {hold: 0s, progress_timeout: 10s}").await;
    let silent = Gate::in_front_of(mesh.registry.address(), &mesh.world).await;
    silent.hold_after(0);
    let v1 = from_istio(Kind::Http, &mesh.publish("add-header-v1", "http", "v1").await);
    let v2 = from_istio(Kind::Http, &mesh.publish("add-header-v2", "http", "v2").await);
    let never = from_istio(Kind::Http, &format!("oci://{}/http:v1", silent.address()));
    for (name, filter) in [("a", &v1), ("b", &never), ("c", &v1)] {
        mesh.control_plane.set_all([listener(name, &[], &[name]), filter.resource(name)]);
    }
    let envoy = mesh.envoy(variant).await;
    let current = async |name: &str, generation: u64| {
        let what = format!("{name} of generation {generation}");
        eventually(&what, async || {
            let state = mesh.state(name).await?;
            (state["serving"] == "current" && state["generation"].as_u64() >= Some(generation)).then_some(())
        })
        .await;
    };
    current("a", 1).await;
    current("c", 1).await;
    // Generations are counted over all resources.
    mesh.control_plane.set(v2.resource("a"));
    current("a", 4).await;
    let state = mesh.state("b").await.unwrap();
    assert_eq!((&state["serving"], &state["fetch"]), (&json!("nothing"), &json!("running")), "{state}");
    assert_eq!(envoy.ecds_stat(Kind::Http, "b", "update_success").await, 0);
    assert!(!envoy.is_live().await, "the download may still succeed");

    envoy.live().await;
    let outcome = async |name: &str| in_short(&envoy::request(envoy.listener(name).await).await);
    assert_eq!(outcome("a").await, "200 v2");
    assert_eq!(outcome("b").await, "403 -");
    assert_eq!(outcome("c").await, "200 v1");
    mesh.control_plane.set(v2.resource("c"));
    eventually("an update", async || (outcome("c").await == "200 v2").then_some(())).await;
    assert_eq!(outcome("b").await, "403 -");
    for name in ["a", "b", "c"] {
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_rejected").await, 0, "{name}");
    }
}

#[tokio::test]
async fn a_registry_that_never_answers_delays_nobody_else_by_state_of_the_world() {
    a_registry_that_never_answers_delays_nobody_else(Variant::Sotw).await;
}

#[tokio::test]
async fn a_registry_that_never_answers_delays_nobody_else_by_the_unified_mux() {
    a_registry_that_never_answers_delays_nobody_else(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_registry_that_never_answers_delays_nobody_else_by_delta() {
    a_registry_that_never_answers_delays_nobody_else(Variant::Delta).await;
}
