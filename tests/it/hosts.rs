//! Where registries are asked: mirrors, containerd's folders, private authorities, forward proxies.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::agent::command;
use crate::support::authority::Authority;
use crate::support::bad_server::{BadServer, Reply};
use crate::support::client;
use crate::support::fixtures::module;
use crate::support::forward_proxy::ForwardProxy;
use crate::support::pulls::{Prefetched, prefetch};
use crate::support::registry::{Access, Layout, OCI_MANIFEST, Registry};
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
    assert!(check.contains("each for 3h after its last use") && check.contains("each within 90s"), "{check}");
}
