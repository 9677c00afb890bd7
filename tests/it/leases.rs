//! What an Envoy was given stays, whatever else the store has to hold: Envoy reads a module's file again
//! when a listener is new.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::mesh::{Mesh, from_istio, listener};
use crate::support::pulls::{Prefetched, digests, payloads};
use crate::support::registry::{Access, Layout, digest};
use crate::support::resources::{Kind, lds_type};
use crate::support::traffic::in_short;

/// Room for three of [`sized`].
const LIMITS: &str = "max_bytes: 700KiB, min_free: 0B";

/// A module of some 200 kB, unlike those of other numbers.
fn sized(number: usize) -> Vec<u8> {
    padded(&module("add-header-v1"), 200_000 + number)
}

/// Publishes one of them, and gives its URL.
async fn publish(mesh: &Mesh, number: usize) -> String {
    let repository = format!("sized-{number}");
    mesh.registry.publish(&repository, "v1", Layout::Artifact, &sized(number)).await;
    mesh.registry.url(&repository, "v1")
}

/// By another process, which has the agent's configuration.
async fn prefetch(mesh: &Mesh, args: &[&str]) -> Prefetched {
    let config = mesh.agent.config.display().to_string();
    crate::support::pulls::prefetch(&mesh.world, ["--config", &config].iter().chain(args).copied(), &[]).await
}

/// Agents have been ready for so much longer.
fn grow_older(cache: &Path, seconds: u64) {
    let file = cache.join("v1/content/age");
    let age: u64 = fs::read_to_string(&file).unwrap().parse().unwrap();
    fs::write(&file, (age + seconds).to_string()).unwrap();
}

/// What is in the store, by the numbers of [`sized`].
fn has(mesh: &Mesh, numbers: &[usize]) {
    let modules: Vec<_> = numbers.iter().map(|number| sized(*number)).collect();
    assert_eq!(payloads(&mesh.agent.cache), digests(modules.iter().map(Vec::as_slice)));
}

async fn envoy_reads_its_module_again(variant: Variant) {
    let mut mesh = Mesh::start_with(Access::Anonymous, |options| options.with_cache(LIMITS)).await;
    let filter = from_istio(Kind::Http, &publish(&mesh, 0).await);
    let mut others = Vec::new();
    for number in 1..=5 {
        others.push(publish(&mesh, number).await);
    }
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let answer = async |name: &str| in_short(&envoy::request(envoy.listener(name).await).await);
    assert_eq!(answer("web").await, "200 v1");

    // Under pressure, as long as all else was used just now.
    assert_eq!(prefetch(&mesh, &[&others[0], &others[1]]).await.code, Some(0));
    let full = prefetch(&mesh, &[&others[2]]).await;
    let (reason, text) = full.error(&others[2]);
    assert_eq!((full.code, reason), (Some(1), "store_full"), "{text}");
    assert!(text.contains("of these 1 are leased by Envoys, 0 pinned and 2 used within"), "{text}");
    has(&mesh, &[0, 1, 2]);

    // Hours later, by what is on disk alone, since the agent is away.
    mesh.agent.kill();
    grow_older(&mesh.agent.cache, 7200);
    let run = prefetch(&mesh, &[&others[2], &others[3]]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    has(&mesh, &[0, 3, 4]);

    // The agent comes back, and nobody could bring the module again.
    mesh.registry.stop();
    let accepted = envoy.ecds_stat(Kind::Http, "filter", "update_success").await;
    mesh.agent.resume(&mesh.world).await;
    eventually("the same config, accepted again", async || {
        (envoy.ecds_stat(Kind::Http, "filter", "update_success").await > accepted).then_some(())
    })
    .await;
    mesh.control_plane.set(listener("again", &[], &["filter"]));
    eventually("the new listener", async || (answer("again").await == "200 v1").then_some(())).await;
    assert_eq!(mesh.control_plane.nacks(&lds_type()), [] as [String; 0]);
    mesh.registry.resume(&mesh.world).await;

    // That it looked at the file.
    fs::remove_dir_all(mesh.agent.cache.join("v1/public")).unwrap();
    mesh.control_plane.set(listener("last", &[], &["filter"]));
    eventually("a rejection", async || {
        let nacks = mesh.control_plane.nacks(&lds_type());
        nacks.iter().any(|nack| nack.contains("Invalid path")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn envoy_reads_its_module_again_by_state_of_the_world() {
    envoy_reads_its_module_again(Variant::Sotw).await;
}

#[tokio::test]
async fn envoy_reads_its_module_again_by_the_unified_mux() {
    envoy_reads_its_module_again(Variant::SotwUnified).await;
}

#[tokio::test]
async fn envoy_reads_its_module_again_by_delta() {
    envoy_reads_its_module_again(Variant::Delta).await;
}

#[tokio::test]
async fn a_module_that_the_node_has_moved_on_from_makes_room() {
    let mut mesh = Mesh::start_with(Access::Anonymous, |options| options.with_cache(LIMITS)).await;
    let (old, new) = (publish(&mesh, 0).await, publish(&mesh, 1).await);
    let (third, fourth) = (publish(&mesh, 2).await, publish(&mesh, 3).await);
    mesh.control_plane
        .set_all([listener("web", &[], &["filter"]), from_istio(Kind::Http, &old).resource("filter")]);
    let envoy = mesh.envoy(Variant::Delta).await;
    envoy.live().await;
    let accepted = async |more: u64| {
        eventually("an accepted config", async || {
            (envoy.ecds_stat(Kind::Http, "filter", "update_success").await >= more).then_some(())
        })
        .await;
    };
    mesh.control_plane.set(from_istio(Kind::Http, &new).resource("filter"));
    accepted(2).await;
    // What it has accepted is written down with what it is sent next, or when the agent ends.
    assert_eq!(mesh.agent.stop().await, Some(0));
    grow_older(&mesh.agent.cache, 7200);
    assert_eq!(prefetch(&mesh, &["--pin", &third]).await.code, Some(0));
    grow_older(&mesh.agent.cache, 7200);
    let run = prefetch(&mesh, &[&fourth]).await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    has(&mesh, &[1, 2, 3]);
    // Of which two have to stay.
    grow_older(&mesh.agent.cache, 7200);
    assert_eq!(prefetch(&mesh, &[&old]).await.code, Some(0));
    has(&mesh, &[0, 1, 2]);
}

#[tokio::test]
async fn a_lease_names_what_the_node_was_given_and_the_metrics_count_it() {
    let mesh = Mesh::start_with(Access::Anonymous, |options| options.with_cache(LIMITS)).await;
    let filter = from_istio(Kind::Http, &publish(&mesh, 0).await);
    mesh.control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let envoy = mesh.envoy(Variant::SotwUnified).await;
    envoy.live().await;
    let leases = mesh.agent.cache.join("v1/content/leases");
    let [lease] = &fs::read_dir(&leases).unwrap().collect::<Vec<_>>()[..] else { panic!("one node") };
    let lease: Value = serde_json::from_slice(&fs::read(lease.as_ref().unwrap().path()).unwrap()).unwrap();
    let view = format!("public/{}", digest(&sized(0)).trim_start_matches("sha256:"));
    let sign = &lease["names"]["filter"][&view];
    assert!(sign.as_u64().is_some_and(|age| age < 300), "{lease}");
    assert_eq!(lease["names"], json!({ "filter": { view: sign } }));
    assert_eq!(prefetch(&mesh, &["--pin", &mesh.registry.url("sized-0", "v1")]).await.code, Some(0));

    // A new agent counts what is there.
    let mut mesh = mesh;
    mesh.agent.kill();
    mesh.agent.resume(&mesh.world).await;
    let size = sized(0).len() as u64;
    eventually("a count", async || (mesh.agent.metric("wasmferry_store_bytes").await == size).then_some(()))
        .await;
    for gauge in
        ["wasmferry_store_modules", "wasmferry_store_leased_modules", "wasmferry_store_pinned_modules"]
    {
        assert_eq!(mesh.agent.metric(gauge).await, 1, "{gauge}");
    }
    let removed = mesh.agent.metric(r#"wasmferry_store_collected_modules_total{reason="expiry"}"#).await;
    assert_eq!((removed, mesh.agent.metric("wasmferry_store_lease_failures_total").await), (0, 0));
}
