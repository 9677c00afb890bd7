//! The files in agent-config/, which people copy: each bootstrap is one that Envoy takes, and each pair
//! does what it says.

use std::path::{Path, PathBuf};

use crate::support::agent::Agent;
use crate::support::control_plane::serve::Serving;
use crate::support::envoy::{self, Envoy, Xds};
use crate::support::fixtures::module;
use crate::support::mesh::{from_istio, listener};
use crate::support::process::Program;
use crate::support::registry::{Access, Layout, Registry};
use crate::support::resources::Kind;
use crate::support::traffic::in_short;
use crate::support::world::{User, World, envoy_group, tool};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("agent-config")
}

/// A file with these parts replaced, each of which has to be in it.
fn with(file: &str, replaced: &[(&str, String)]) -> String {
    let mut text = std::fs::read_to_string(folder().join(file)).unwrap();
    for (old, new) in replaced {
        assert!(text.contains(old), "{file} lacks {old}");
        text = text.replace(old, new);
    }
    text
}

#[tokio::test]
async fn every_bootstrap_is_one_that_envoy_takes() {
    let world = World::new();
    let mut bootstraps = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".envoy.yaml") {
            let bootstrap = world.write(&name, with(&name, &[]), User::Envoy, 0o400);
            let args = ["--mode", "validate", "--config-path", bootstrap.to_str().unwrap()];
            let envoy = Program {
                name: name.clone(),
                path: tool("envoy"),
                user: User::Envoy,
                args: args.map(Into::into).into(),
                env: Vec::new(),
            };
            let output = envoy.run(&world).await;
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {log}");
            // Deprecated fields and the like.
            assert!(!log.contains("[warning]"), "{name}: {log}");
            bootstraps.push(name);
        }
    }
    bootstraps.sort();
    assert_eq!(bootstraps, ["node.envoy.yaml", "sidecar.envoy.yaml", "standalone.envoy.yaml"]);
}

/// The commented `api_config_source` of the standalone pair, in the place of `ads`.
fn by_its_own_service() -> String {
    let file = with("standalone.envoy.yaml", &[]);
    let start = file.find("#     api_config_source:").expect("the other form");
    let lines = file[start..].lines().map_while(|line| line.strip_prefix("#     "));
    let indent = " ".repeat(24);
    lines.collect::<Vec<_>>().join(&format!("\n{indent}"))
}

/// Starts the agent of a pair, with paths and addresses of this world.
async fn agent(world: &World, name: &str, replaced: &[(&str, String)]) -> Agent {
    let mut agent = Agent::configured(world, name, |agent| {
        let health = if name == "standalone" { "127.0.0.1:15074" } else { "[::]:15074" };
        let common = [
            ("/run/wasmferry", agent.socket.parent().unwrap().display().to_string()),
            ("/var/lib/wasmferry", agent.cache.display().to_string()),
            ("\"1337\"", format!("\"{}\"", envoy_group())),
            (health, agent.health.to_string()),
        ];
        with(&format!("{name}.yaml"), &[common.as_slice(), replaced].concat())
    });
    agent.resume(world).await;
    agent
}

/// Starts the Envoy of a pair in the same way.
async fn envoy(world: &World, name: &str, agent: &Agent, replaced: &[(&str, String)]) -> Envoy {
    let common = [
        ("/run/wasmferry", agent.socket.parent().unwrap().display().to_string()),
        ("port_value: 15000", "port_value: 0".to_owned()),
    ];
    let bootstrap = with(&format!("{name}.envoy.yaml"), &[common.as_slice(), replaced].concat());
    let args = ["--disable-hot-restart".to_owned()];
    let envoy = Envoy::run(world, &format!("{name}-envoy"), ".yaml", bootstrap.as_bytes(), &args).await;
    envoy.live().await;
    envoy
}

#[tokio::test]
async fn the_standalone_pair_serves_its_plugin() {
    the_standalone_pair_serves_it(&[]).await;
}

#[tokio::test]
async fn so_it_does_by_the_other_form_that_is_shown() {
    let ads_config = with("standalone.envoy.yaml", &[]);
    let start = ads_config.find("dynamic_resources:").unwrap();
    let end = ads_config.find("static_resources:").unwrap();
    let without = (&ads_config[start..end], String::new());
    the_standalone_pair_serves_it(&[
        without,
        ("                        ads: {}", format!("{}{}", " ".repeat(24), by_its_own_service())),
    ])
    .await;
}

async fn the_standalone_pair_serves_it(bootstrap: &[(&str, String)]) {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    registry.publish("filters/add-header", "v1", Layout::OciImage, &module("add-header-v1")).await;
    let plugins = world.folder("plugins", User::Tests, 0o755);
    let url = ("oci://registry.example/filters/add-header:v1", registry.url("filters/add-header", "v1"));
    let plugin = with("plugins/add-header.yaml", &[url]);
    world.write("plugins/add-header.yaml", plugin, User::Tests, 0o644);

    let agent =
        agent(&world, "standalone", &[("/etc/wasmferry/plugins", plugins.display().to_string())]).await;
    // Any server that answers does for an application.
    let application = registry.address();
    let address = format!("address: {}, port_value: {}", application.ip(), application.port());
    // In this order: the application's own port may be 10000.
    let replaced =
        [("port_value: 10000", "port_value: 0".into()), ("address: 127.0.0.1, port_value: 8080", address)];
    let replaced = [&replaced[..], bootstrap].concat();
    let envoy = envoy(&world, "standalone", &agent, &replaced).await;
    assert_eq!(in_short(&envoy::request(envoy.listener("web").await).await), "200 v1");
}

/// The pairs that need a control plane.
async fn a_relaying_pair_serves_its_control_planes_filter(name: &str) {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    registry.publish("filter", "v1", Layout::OciImage, &module("add-header-v1")).await;
    let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
    let filter = from_istio(Kind::Http, &registry.url("filter", "v1"));
    control_plane.set_all([listener("web", &[], &["filter"]), filter.resource("filter")]);
    let Xds::Tcp(address) = control_plane.address() else { panic!("{:?}", control_plane.address()) };

    let agent = agent(&world, name, &[("127.0.0.1:15012", address.to_string())]).await;
    let envoy = envoy(&world, name, &agent, &[]).await;
    assert_eq!(in_short(&envoy::request(envoy.listener("web").await).await), "200 v1");
}

#[tokio::test]
async fn the_sidecar_pair_serves_its_control_planes_filter() {
    a_relaying_pair_serves_its_control_planes_filter("sidecar").await;
}

#[tokio::test]
async fn the_node_pair_serves_its_control_planes_filter() {
    a_relaying_pair_serves_its_control_planes_filter("node").await;
}
