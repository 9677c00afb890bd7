//! Where registries are asked: mirrors, containerd's folders, private authorities, forward proxies.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Options, command};
use crate::support::authority::Authority;
use crate::support::bad_server::{BadServer, Reply};
use crate::support::client;
use crate::support::control_plane::Protocol;
use crate::support::control_plane::serve::Serving;
use crate::support::ecds::Ecds;
use crate::support::envoy::Xds;
use crate::support::fixtures::module;
use crate::support::forward_proxy::ForwardProxy;
use crate::support::mesh::from_istio;
use crate::support::pulls::{Prefetched, prefetch};
use crate::support::registry::{Access, Layout, OCI_MANIFEST, Registry};
use crate::support::resources::Kind;
use crate::support::world::{User, World};

const MODULE: &str = "add-header-v1";

async fn registry(world: &World) -> Registry {
    let registry = Registry::start(world, Access::Anonymous).await;
    registry.publish("filter", "v1", Layout::OciImage, &module(MODULE)).await;
    registry
}

/// A configuration for prefetch; JSON is YAML.
fn config(world: &World, keys: &Value) -> PathBuf {
    let mut whole = json!({"version": 1});
    whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    world.write("config.yaml", whole.to_string(), User::Agent, 0o600)
}

async fn pull(world: &World, keys: Value, url: &str, env: &[(&str, &str)]) -> Prefetched {
    let config = config(world, &keys);
    let env = [&[("RUST_LOG", "wasmferry=trace")], env].concat();
    prefetch(world, ["--config", config.to_str().unwrap(), url], &env).await
}

#[tokio::test]
async fn a_registry_of_a_private_authority_wants_to_see_a_certificate() {
    let world = World::new();
    let mut registry = registry(&world).await;
    let authority = Authority::new(&world, "ca");
    let host = registry.address().to_string();
    let own = authority.pair(&world, "server", &[registry.address().ip().to_string()]);
    let client = authority.pair(&world, "client", &["client.test".to_owned()]);
    registry.secure(&world, &own, Some(&authority)).await;
    let url = registry.url("filter", "v1");
    let pair = json!({"certificate": client.certificate, "key": client.key});

    let unknown = pull(&world, json!({"registries": {&host: {}}}), &url, &[]).await;
    // Where the machine has no roots at all, that is the reason.
    assert!(["tls", "no_roots"].contains(&unknown.error(&url).0), "{unknown:?}");
    let nobody = pull(&world, json!({"registries": {&host: {"ca_file": authority.file}}}), &url, &[]).await;
    assert_eq!(nobody.code, Some(1));
    let entry = json!({"ca_file": authority.file, "client_certificate": pair});
    pull(&world, json!({"registries": {&host: entry}}), &url, &[]).await.module(&url, &module(MODULE));
}

#[tokio::test]
async fn the_registry_itself_is_asked_where_its_mirrors_are_down_or_know_nothing() {
    let world = World::new();
    let (mut down, empty) = (registry(&world).await, Registry::start(&world, Access::Anonymous).await);
    down.stop();
    let origin = registry(&world).await;
    let mirrors = [&down, &empty].map(|mirror| json!({"url": format!("http://{}", mirror.address())}));
    let entry = json!({"mirrors": mirrors, "plain_http": true});
    let url = origin.url("filter", "v1");
    let keys = json!({"registries": {origin.address().to_string(): entry}});
    let pulled = pull(&world, keys, &url, &[]).await;
    pulled.module(&url, &module(MODULE));
    assert!(pulled.stderr.contains("the next host is asked: cannot connect to"), "{}", pulled.stderr);
    let asked = empty.pulls().await;
    assert!(
        asked.iter().any(|asked| asked.path.contains("/manifests/v1?ns=") && asked.status == 404),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_mirrors_image_is_used_while_the_registry_is_down() {
    let world = World::new();
    let (mirror, mut origin) = (registry(&world).await, Registry::start(&world, Access::Anonymous).await);
    origin.stop();
    let mirrors = json!([{"url": format!("http://{}", mirror.address())}]);
    let keys = json!({"registries": {origin.address().to_string(): {"mirrors": mirrors}}});
    let url = origin.url("filter", "v1");
    pull(&world, keys, &url, &[]).await.module(&url, &module(MODULE));
}

#[tokio::test]
async fn other_bytes_of_a_mirror_cost_a_second_download_and_never_reach_the_store() {
    let world = World::new();
    let origin = registry(&world).await;
    let liar = BadServer::start(&world).await;
    let ask = http::Request::get("/v2/filter/manifests/v1").header("accept", OCI_MANIFEST);
    let manifest = client::send(origin.address(), ask.body(Default::default()).unwrap()).await.unwrap().body;
    liar.handle(move |seen| match seen.path.split('?').next() {
        Some(path) if path.contains("/manifests/") => {
            Some(Reply::ok(manifest.to_vec()).header("content-type", OCI_MANIFEST))
        }
        Some(path) if path.contains("/blobs/") => Some(Reply::ok(b"something else")),
        _ => None,
    });
    let mirrors = json!([{"url": format!("http://{}", liar.address())}]);
    let keys =
        json!({"registries": {origin.address().to_string(): {"mirrors": mirrors, "plain_http": true}}});
    let url = origin.url("filter", "v1");
    pull(&world, keys, &url, &[]).await.module(&url, &module(MODULE));
    let blobs = liar.seen().iter().filter(|seen| seen.path.contains("/blobs/")).count();
    assert_eq!(blobs, 1, "{:?}", liar.seen().len());
}

#[tokio::test]
async fn a_nodes_containerd_folders_are_used_as_they_are() {
    let world = World::new();
    let mut mirror = registry(&world).await;
    let authority = Authority::new(&world, "ca");
    let own = authority.pair(&world, "server", &[mirror.address().ip().to_string()]);
    mirror.secure(&world, &own, None).await;
    let folder = world.folder("certs.d/registry.test_5000_", User::Agent, 0o755);
    std::fs::copy(&authority.file, folder.join("mirror.crt")).unwrap();
    let hosts = format!(
        "server = \"https://registry.test:5000\"\n\n[host.\"https://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  \
         ca = \"mirror.crt\"\n",
        mirror.address()
    );
    world.write("certs.d/registry.test_5000_/hosts.toml", hosts, User::Agent, 0o644);
    let folders = json!({"containerd_hosts": [world.path().join("certs.d")]});
    let url = "oci://registry.test:5000/filter:v1";
    pull(&world, folders.clone(), url, &[]).await.module(url, &module(MODULE));

    // The next pull sees what is there then.
    world.write("certs.d/registry.test_5000_/hosts.toml", "server = 7", User::Agent, 0o644);
    let url = "oci://registry.test:5000/filter:v2";
    let broken = pull(&world, folders, url, &[]).await;
    let (reason, text) = broken.error(url);
    assert!(reason == "hosts" && text.contains("hosts.toml line 1: server should be a text"), "{text}");
}

/// The registry's certificate and its authority, our own certificate and `hosts.toml`, all replaced under an
/// agent that runs.
#[tokio::test]
async fn what_a_host_is_reached_by_is_read_anew_for_each_pull_of_a_running_agent() {
    let world = World::new();
    let mut registry = registry(&world).await;
    for tag in ["v2", "v3"] {
        registry.publish("filter", tag, Layout::OciImage, &module(MODULE)).await;
    }
    let host = registry.address().to_string();
    let names = [registry.address().ip().to_string()];
    let old = Authority::new(&world, "ca");
    let client = old.pair(&world, "client", &["client.test".to_owned()]);
    let own = old.pair(&world, "server", &names);
    registry.secure(&world, &own, Some(&old)).await;

    let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
    let entry = json!({
        "ca_file": old.file, "client_certificate": {"certificate": client.certificate, "key": client.key},
    });
    let more = format!(
        "fetch: {{hold: 0s}}\nregistries: {}\ncontainerd_hosts: [{}]",
        json!({&host: entry}),
        world.folder("certs.d", User::Agent, 0o755).display()
    );
    let agent = Agent::start(&world, &Options::upstream(control_plane.address()).with(&more)).await;
    world.folder("certs.d/registry.test", User::Agent, 0o755);
    let lead_to = |server: &str| {
        let pair = json!([[client.certificate, client.key]]);
        let text = format!("server = \"https://{server}\"\nca = {}\nclient = {pair}\n", json!(old.file));
        world.write("certs.d/registry.test/hosts.toml", text, User::Agent, 0o644);
    };
    let ask = async |tag: &str, registry: &str| {
        let name = format!("{tag} of {registry}");
        control_plane.set(from_istio(Kind::Http, &format!("oci://{registry}/filter:{tag}")).resource(&name));
        (Ecds::subscribe(agent.tcp, Protocol::Delta, std::slice::from_ref(&name)).await, name)
    };
    let gets = async |tag: &str, registry: &str| {
        let (mut envoy, name) = ask(tag, registry).await;
        assert_eq!(std::fs::read(envoy.module(&name).await).unwrap(), module(MODULE));
    };

    // Where nobody listens, and then where the registry does.
    lead_to(&world.address().to_string());
    let (mut envoy, name) = ask("v1", "registry.test").await;
    envoy.denied(&name).await;
    lead_to(&host);
    gets("v2", "registry.test").await;
    gets("v1", &host).await;

    // All certificates are of another authority, first the registry's and then the agent's files.
    let new = Authority::new(&world, "new-ca");
    let own = new.pair(&world, "new-server", &names);
    registry.secure(&world, &own, Some(&new)).await;
    for registry in ["registry.test", &host] {
        let (mut envoy, name) = ask("v3", registry).await;
        envoy.denied(&name).await;
    }
    let next = new.pair(&world, "new-client", &["client.test".to_owned()]);
    for (from, to) in [(&new.file, "ca.pem"), (&next.certificate, "client.pem"), (&next.key, "client.key")] {
        world.write(to, std::fs::read(from).unwrap(), User::Agent, 0o600);
    }
    for registry in ["registry.test", &host] {
        let name = format!("v3 of {registry}");
        let mut envoy = Ecds::subscribe(agent.tcp, Protocol::Delta, std::slice::from_ref(&name)).await;
        assert_eq!(std::fs::read(envoy.module(&name).await).unwrap(), module(MODULE));
    }
}

#[tokio::test]
async fn a_forward_proxy_leads_to_registries_with_and_without_tls_and_its_password_stays_out_of_sight() {
    let world = World::new();
    let (plain, mut secure) = (registry(&world).await, registry(&world).await);
    let authority = Authority::new(&world, "ca");
    let own = authority.pair(&world, "server", &["secure.test".to_owned()]);
    secure.secure(&world, &own, None).await;
    let names =
        [("plain.test:80".to_owned(), plain.address()), ("secure.test:443".to_owned(), secure.address())];
    let proxy = ForwardProxy::start(&world, names.into()).await;
    let keys = json!({"registries": {
        "plain.test": {"plain_http": true},
        "secure.test": {"ca_file": authority.file},
    }});
    let (good, wrong) = (proxy.url(), proxy.wrong_url());
    let mut said = String::new();
    for (url, env) in [
        ("oci://plain.test/filter:v1", [("http_proxy", good.as_str())]),
        ("oci://secure.test/filter:v1", [("HTTPS_PROXY", good.as_str())]),
    ] {
        let pulled = pull(&world, keys.clone(), url, &env).await;
        pulled.module(url, &module(MODULE));
        said += &pulled.stderr;
    }
    assert!(proxy.seen().contains(&"CONNECT secure.test:443 HTTP/1.1".to_owned()), "{:?}", proxy.seen());
    let url = "oci://secure.test/filter:v3";
    let refused = pull(&world, keys.clone(), url, &[("HTTPS_PROXY", wrong.as_str())]).await;
    assert_eq!(refused.error(url).0, "proxy");
    let connections = proxy.seen().len();
    let env = [("HTTPS_PROXY", good.as_str()), ("NO_PROXY", ".test")];
    assert_eq!(pull(&world, keys.clone(), url, &env).await.error(url).0, "dns");
    assert_eq!(proxy.seen().len(), connections);

    let config = config(&world, &keys);
    let args = ["check", "--config", config.to_str().unwrap()];
    let check = command(&world, args, &[("HTTPS_PROXY", good.as_str())]).await;
    let check = String::from_utf8(check.stdout).unwrap();
    assert!(check.contains("only addresses that stand in a URL can be checked"), "{check}");
    said += &check;
    said += &format!("{refused:?}");
    assert!(!said.contains("hunter2") && !said.contains("hunter3"), "{said}");
}

#[tokio::test]
async fn istios_variables_hold_where_the_file_says_nothing() {
    let world = World::new();
    let mut registry = registry(&world).await;
    let authority = Authority::new(&world, "ca");
    // For another name: nobody checks it.
    let own = authority.pair(&world, "server", &["other.test".to_owned()]);
    registry.secure(&world, &own, None).await;
    let (url, host) = (registry.url("filter", "v1"), registry.address().to_string());
    let insecure = [("WASM_INSECURE_REGISTRIES", host.as_str())];
    let strict = pull(&world, json!({"registries": {&host: {}}}), &url, &insecure).await;
    assert_eq!(strict.code, Some(1), "the file wins");
    pull(&world, json!({}), &url, &insecure).await.module(&url, &module(MODULE));

    let config = config(&world, &json!({"cache": {"expiry": "3h"}}));
    let args = ["check", "--config", config.to_str().unwrap()];
    let env = [("WASM_MODULE_EXPIRY", "2h"), ("WASM_HTTP_REQUEST_TIMEOUT", "1m30s")];
    let check = command(&world, args, &env).await;
    let check = String::from_utf8(check.stdout).unwrap();
    assert!(
        check.contains("WASM_MODULE_EXPIRY: without effect, since the file sets cache.expiry"),
        "{check}"
    );
    assert!(check.contains("WASM_HTTP_REQUEST_TIMEOUT: fetch.timeout: 90s"), "{check}");
    assert!(!check.contains("WASM_PURGE_INTERVAL") && !check.contains("WASM_INSECURE_REGISTRIES"), "{check}");
    assert!(check.contains("each for 3h after its last use") && check.contains("each within 90s"), "{check}");
}

/// Somebody who moves here with Istio's variables learns of each what has become of it.
#[tokio::test]
async fn check_says_of_each_of_istios_variables_what_it_does_or_that_it_does_nothing() {
    let world = World::new();
    let config = config(&world, &json!({"cache": {"expiry": "3h"}}));
    let env = [
        ("WASM_INSECURE_REGISTRIES", "dev.test"),
        ("WASM_HTTP_REQUEST_TIMEOUT", "1m30s"),
        ("WASM_HTTP_REQUEST_MAX_RETRIES", "7"),
        ("WASM_MODULE_EXPIRY", "2h"),
        ("WASM_PURGE_INTERVAL", "10m"),
        ("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", "1048576"),
        ("BLOCKED_CIDRS_IN_WASM_FETCH", "10.0.0.0/8"),
    ];
    let check = command(&world, ["check", "--config", config.to_str().unwrap()], &env).await;
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    let check = String::from_utf8(check.stdout).unwrap();
    let told = |name: &str| check.lines().filter(|line| line.contains(name)).count();
    for (name, _) in env {
        assert_eq!(told(name), 1, "{name}: {check}");
    }
    for name in ["WASM_PURGE_INTERVAL", "WASM_MODULE_EXPIRY"] {
        assert!(check.contains(&format!("{name}: without effect")), "{check}");
    }
    assert!(check.contains("WASM_INSECURE_REGISTRIES: dev.test"), "{check}");
    assert!(check.contains("ISTIO_WASM_MAX_BINARY_SIZE_BYTES: cache.max_module_bytes: 1MiB"), "{check}");
    assert!(check.contains("BLOCKED_CIDRS_IN_WASM_FETCH: added to blocked_cidrs: 10.0.0.0/8"), "{check}");
}
