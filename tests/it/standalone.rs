//! Without a control plane: a folder of `WasmPlugin` files is what Envoy gets.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::envoy::{self, Variant};
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::registry::Layout;
use crate::support::resources::Kind;
use crate::support::standalone::{Standalone, header, plugin};
use crate::support::traffic::Traffic;
use crate::support::world::User;

async fn every_name_of_a_plugin_is_served(variant: Variant) {
    let standalone = Standalone::start().await;
    let url = standalone.url();
    let file = [
        plugin("team", "auth", &url, "auth"),
        // Nobody asks for it, so nobody misses its module.
        plugin("team", "unasked", &standalone.registry.url("unasked", "v1"), "unasked"),
    ];
    standalone.write("plugins/team.yaml", &file.join("---\n"));
    standalone.write("plugins/plain.yml", &plugin("", "plain", &url, "plain").replace(", namespace: ", ""));
    let names = [
        "team.auth",
        "extenstions.istio.io/wasmplugin/team.auth",
        "extensions.istio.io/wasmplugin/team.auth",
        "extensions.istio.io/trafficextension/team.auth~istio-translated-wasmplugin",
        "default.plain",
    ];
    let envoy = standalone.envoy(variant, &names).await;
    let answer = envoy::request(envoy.listener("web").await).await.unwrap();
    let mut headers: Vec<_> = answer.headers.get_all("x-wasmferry-demo").iter().collect();
    headers.sort();
    let (auth, plain) = (header("auth"), header("plain"));
    assert_eq!(headers, [&auth, &auth, &auth, &auth, &plain]);
    let pulls = standalone.registry.pulls().await;
    assert!(!pulls.iter().any(|pull| pull.path.contains("unasked")), "{pulls:?}");
    assert!(!envoy.config_dump().await.to_string().contains("unasked"));
}

#[tokio::test]
async fn every_name_of_a_plugin_is_served_by_state_of_the_world() {
    every_name_of_a_plugin_is_served(Variant::Sotw).await;
}

#[tokio::test]
async fn every_name_of_a_plugin_is_served_by_the_unified_mux() {
    every_name_of_a_plugin_is_served(Variant::SotwUnified).await;
}

#[tokio::test]
async fn every_name_of_a_plugin_is_served_by_delta() {
    every_name_of_a_plugin_is_served(Variant::Delta).await;
}

/// Changes of every kind to the file, under load.
async fn a_changed_file_reaches_envoy(variant: Variant) {
    let standalone = Standalone::start().await;
    let url = standalone.url();
    let is = |text: &str| format!("200 {}", header(text));
    let (one, two, three) = (is("one"), is("two"), is("three"));
    standalone.write("plugins/auth.yaml", &plugin("team", "auth", &url, "one"));
    let envoy = standalone.envoy(variant, &["team.auth"]).await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees(&one, 20).await;

    standalone.write("plugins/auth.yaml", &plugin("team", "auth", &url, "two"));
    traffic.sees(&two, 20).await;

    let broken = plugin("team", "auth", &url, "broken").replace("pluginConfig", "pluginConfiguration");
    standalone.write("plugins/auth.yaml", &broken);
    let problems = async || standalone.agent.metric("wasmferry_plugin_problems").await;
    eventually("a problem", async || (problems().await == 1).then_some(())).await;
    for part in ["plugins/auth.yaml:6", "spec.pluginConfiguration", "is not a known field"] {
        assert!(standalone.agent.log().contains(part), "{part}: {}", standalone.agent.log());
    }
    traffic.sees(&two, 50).await;

    standalone.write("plugins/auth.yaml", &plugin("team", "auth", &url, "three"));
    traffic.sees(&three, 20).await;
    assert_eq!(problems().await, 0);

    // Another module altogether.
    standalone.registry.publish("other", "v2", Layout::Artifact, &module("add-header-v2")).await;
    let other = plugin("team", "auth", &standalone.registry.url("other", "v2"), "four");
    standalone.write("plugins/auth.yaml", &other);
    traffic.sees("200 v2", 20).await;
    traffic.saw_only(&[&one, &two, &three, "200 v2"]);
    envoy.reloaded(Kind::Http, "team.auth", 4).await;
}

#[tokio::test]
async fn a_changed_file_reaches_envoy_without_a_failed_request_by_state_of_the_world() {
    a_changed_file_reaches_envoy(Variant::Sotw).await;
}

#[tokio::test]
async fn a_changed_file_reaches_envoy_without_a_failed_request_by_the_unified_mux() {
    a_changed_file_reaches_envoy(Variant::SotwUnified).await;
}

#[tokio::test]
async fn a_changed_file_reaches_envoy_without_a_failed_request_by_delta() {
    a_changed_file_reaches_envoy(Variant::Delta).await;
}

/// The kubelet's way with a volume: the files are links through `..data`, which it swaps.
#[tokio::test]
async fn the_swapped_link_of_a_config_map_reaches_envoy() {
    let standalone = Standalone::start().await;
    let volume = standalone.world.path().join("plugins");
    let publish = |version: &str| {
        standalone.world.folder(&format!("plugins/..{version}"), User::Tests, 0o755);
        let file = format!("plugins/..{version}/auth.yaml");
        standalone.write(&file, &plugin("team", "auth", &standalone.url(), version));
        symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    publish("one");
    symlink(Path::new("..data/auth.yaml"), volume.join("auth.yaml")).unwrap();
    let envoy = standalone.envoy(Variant::Delta, &["team.auth"]).await;
    let traffic = Traffic::to(envoy.listener("web").await);
    let (one, two) = (format!("200 {}", header("one")), format!("200 {}", header("two")));
    traffic.sees(&one, 20).await;
    publish("two");
    std::fs::remove_dir_all(volume.join("..one")).unwrap();
    traffic.sees(&two, 20).await;
    traffic.saw_only(&[&one, &two]);
}
