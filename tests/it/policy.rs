//! When a source is asked again, what for, and by how many at once.

use serde_json::{Value, json};

use crate::support::agent::{Agent, Options};
use crate::support::bad_server::{BadServer, Reply};
use crate::support::control_plane::Protocol;
use crate::support::ecds::Ecds;
use crate::support::fixtures::{module, padded};
use crate::support::gate::Gate;
use crate::support::pulls::{Prefetched, cache, digests, payloads, prefetch, wasm_plugin};
use crate::support::registry::{Access, Layout, Logged, OCI_MANIFEST, Registry, digest, tar_gz};
use crate::support::world::{User, World};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Prefetches one plugin.
async fn pull(world: &World, plugin: &Value) -> Prefetched {
    let file = world.write("plugin.json", plugin.to_string(), User::Tests, 0o644);
    prefetch(world, [file.display().to_string()], &[]).await
}

/// A plugin as Kubernetes would hand it out in this version.
fn in_version(version: &str, url: &str, spec: Value) -> Value {
    let mut plugin = wasm_plugin("filter", url, spec);
    plugin["metadata"]["resourceVersion"] = json!(version);
    plugin
}

/// Requests for manifests and for blobs.
fn count(pulls: &[Logged]) -> (usize, usize) {
    let of = |kind: &str| pulls.iter().filter(|pull| pull.path.contains(kind)).count();
    (of("/manifests/"), of("/blobs/"))
}

/// What a registry was asked since the last time.
#[derive(Default)]
struct Asked {
    before: usize,
}

impl Asked {
    async fn now(&mut self, registry: &Registry) -> (usize, usize) {
        let pulls = registry.pulls().await;
        let news = count(&pulls[self.before..]);
        self.before = pulls.len();
        news
    }
}

#[tokio::test]
async fn always_asks_again_when_the_resource_s_version_changes_and_downloads_only_what_is_new() {
    let world = World::new();
    let mut registry = Registry::start(&world, Access::Anonymous).await;
    let (first, second) = (module("add-header-v1"), module("add-header-v2"));
    registry.publish("filter", "moving", Layout::OciImage, &first).await;
    let url = registry.url("filter", "moving");
    let always = |version: &str| in_version(version, &url, json!({"imagePullPolicy": "Always"}));
    let mut asked = Asked::default();
    let cached = |run: &Prefetched, module: &[u8]| run.module(&url, module)["cached"].clone();
    assert_eq!(
        (cached(&pull(&world, &always("1")).await, &first), asked.now(&registry).await),
        (json!(false), (1, 1))
    );
    // The same version has its answer.
    assert_eq!(
        (cached(&pull(&world, &always("1")).await, &first), asked.now(&registry).await),
        (json!(true), (0, 0))
    );
    // Another one asks; the tag has not moved, so there is nothing to download.
    assert_eq!(
        (cached(&pull(&world, &always("2")).await, &first), asked.now(&registry).await),
        (json!(true), (1, 0))
    );
    assert_eq!(
        (cached(&pull(&world, &always("2")).await, &first), asked.now(&registry).await),
        (json!(true), (0, 0))
    );
    // Now it has moved; who does not ask keeps what there is.
    registry.publish("filter", "moving", Layout::OciImage, &second).await;
    asked.now(&registry).await;
    assert_eq!(
        (cached(&pull(&world, &always("2")).await, &first), asked.now(&registry).await),
        (json!(true), (0, 0))
    );
    let if_not_present = in_version("9", &url, json!({"imagePullPolicy": "IfNotPresent"}));
    assert_eq!(
        (cached(&pull(&world, &if_not_present).await, &first), asked.now(&registry).await),
        (json!(true), (0, 0))
    );
    assert_eq!(
        (cached(&pull(&world, &always("3")).await, &second), asked.now(&registry).await),
        (json!(false), (1, 1))
    );
    assert_eq!(
        (cached(&pull(&world, &if_not_present).await, &second), asked.now(&registry).await),
        (json!(true), (0, 0))
    );

    // A version whose pull failed is not the store's: it asks again, and the one before it is served.
    registry.stop();
    let failed = pull(&world, &always("4")).await;
    assert_eq!((failed.code, failed.error(&url).0), (Some(1), "connect"));
    let failed = pull(&world, &always("4")).await;
    assert_eq!((failed.code, failed.error(&url).0), (Some(1), "connect"));
    assert_eq!(cached(&pull(&world, &always("3")).await, &second), json!(true));
    registry.resume(&world).await;
    assert_eq!(
        (cached(&pull(&world, &always("4")).await, &second), asked.now(&registry).await),
        (json!(true), (1, 0))
    );
    assert_eq!(
        (cached(&pull(&world, &always("4")).await, &second), asked.now(&registry).await),
        (json!(true), (0, 0))
    );
}

#[tokio::test]
async fn without_a_policy_only_latest_and_no_tag_are_asked_for_again() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let (old, new) = (module("add-header-v1"), module("add-header-v2"));
    for tag in ["latest", "v1"] {
        registry.publish("filter", tag, Layout::Artifact, &old).await;
    }
    let pinned = registry.publish("filter", "other", Layout::OciImage, &old).await;
    let no_tag = registry.url("filter", "latest").trim_end_matches(":latest").to_owned();
    let sources =
        [registry.url("filter", "latest"), registry.url("filter", "v1"), registry.url("filter", &pinned)];
    for url in &sources {
        assert_eq!(pull(&world, &in_version("1", url, json!({}))).await.code, Some(0));
    }
    for tag in ["latest", "v1", "other"] {
        registry.publish("filter", tag, Layout::Artifact, &new).await;
    }
    let [latest, v1, pinned] = &sources;
    let of = async |url: &str, shown: &str, module: &[u8]| {
        pull(&world, &in_version("2", url, json!({}))).await.module(shown, module)["cached"].clone()
    };
    assert_eq!(of(latest, latest, &new).await, json!(false));
    assert_eq!(of(&no_tag, latest, &new).await, json!(true));
    assert_eq!(of(v1, v1, &old).await, json!(true));
    assert_eq!(of(pinned, pinned, &old).await, json!(true));
}

#[tokio::test]
async fn the_digest_of_manifest_index_or_module_may_be_expected_of_an_image_and_is_remembered() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module = module("add-header-v1");
    let manifest = registry.publish("filter", "image", Layout::OciImage, &module).await;
    let size = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": registry.publish_blob("filter", "application/vnd.oci.image.config.v1+json", b"{}").await,
        "layers": [registry.publish_blob(
            "filter",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &tar_gz(&[("plugin.wasm", &module)]),
        ).await],
    });
    let size = size.to_string().len();
    let child = json!({
        "mediaType": OCI_MANIFEST, "digest": manifest, "size": size,
        "platform": {"os": "wasip1", "architecture": "wasm"},
    });
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]});
    let index = registry.publish_manifest("filter", "v1", OCI_INDEX, index.to_string().as_bytes()).await;
    let url = registry.url("filter", "v1");

    let expecting = |digest: &str| json!({"sha256": digest.trim_start_matches("sha256:")});
    let mut asked = Asked { before: registry.pulls().await.len() };
    for (digest, expected) in [(&index, (2, 1)), (&manifest, (2, 0)), (&digest(&module), (2, 0))] {
        let run = pull(&world, &wasm_plugin("filter", &url, expecting(digest))).await;
        assert_eq!(run.code, Some(0), "{run:#?}");
        assert_eq!(run.module(&url, &module)["source_digest"], manifest);
        assert_eq!(asked.now(&registry).await, expected, "{digest}");
        let again = pull(&world, &wasm_plugin("filter", &url, expecting(digest))).await;
        assert_eq!(again.module(&url, &module)["cached"], true, "{digest}");
        assert_eq!(asked.now(&registry).await, (0, 0), "{digest}");
    }
    // The configuration and the layer are blobs of this image too, and neither is what is meant.
    let layer = crate::support::registry::digest(&tar_gz(&[("plugin.wasm", &module)]));
    let run = pull(&world, &wasm_plugin("filter", &url, expecting(&layer))).await;
    assert_eq!((run.code, run.error(&url).0), (Some(1), "digest_mismatch"));
}

#[tokio::test]
async fn of_http_only_the_module_s_own_digest_may_be_expected() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let module = module("add-header-v1");
    let body = tar_gz(&[("plugin.wasm", &module)]);
    let url = server.put("/filter.tar.gz", Reply::ok(body.clone()));
    let expecting = |bytes: &[u8]| json!({"sha256": digest(bytes).trim_start_matches("sha256:")});

    let run = pull(&world, &wasm_plugin("filter", &url, expecting(&body))).await;
    assert_eq!((run.code, run.error(&url).0), (Some(1), "digest_mismatch"));
    assert_eq!(payloads(&cache(&world)), digests([]));
    let run = pull(&world, &wasm_plugin("filter", &url, expecting(&module))).await;
    assert_eq!(run.module(&url, &module)["source_digest"], digest(&body));
}

#[tokio::test]
async fn one_tag_under_two_expected_digests_is_two_questions() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let (first, second) = (module("add-header-v1"), module("add-header-v2"));
    let url = registry.url("filter", "v1");
    let expecting = |module: &[u8]| {
        wasm_plugin("filter", &url, json!({"sha256": digest(module).trim_start_matches("sha256:")}))
    };
    registry.publish("filter", "v1", Layout::OciImage, &first).await;
    pull(&world, &expecting(&first)).await.module(&url, &first);
    let wrong = pull(&world, &expecting(&second)).await;
    assert_eq!(wrong.error(&url).0, "digest_mismatch");
    registry.publish("filter", "v1", Layout::OciImage, &second).await;
    pull(&world, &expecting(&second)).await.module(&url, &second);
    // The one who expects the old one is served still, with no request that would only fail.
    let mut asked = Asked { before: registry.pulls().await.len() };
    assert_eq!(pull(&world, &expecting(&first)).await.module(&url, &first)["cached"], true);
    assert_eq!(asked.now(&registry).await, (0, 0));
    assert_eq!(payloads(&cache(&world)), digests([first.as_slice(), &second]));
}

/// Ten plugins of one image in ten versions, asked for by ten streams at once.
#[tokio::test]
async fn one_module_is_downloaded_once_however_many_streams_and_plugins_ask_for_it_at_once() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    let module = padded(&module("add-header-v1"), 400_000);
    registry.publish("filter", "latest", Layout::Artifact, &module).await;
    // Manifests pass, and a part of the layer.
    gate.hold_after(100_000);
    let plugins = world.folder("plugins", User::Agent, 0o755);
    let url = format!("oci://{}/filter:latest", gate.address());
    let mut names = Vec::new();
    for number in 0..10 {
        let mut plugin = wasm_plugin(&format!("filter-{number}"), &url, json!({}));
        plugin["metadata"]["resourceVersion"] = json!(format!("{number}"));
        world.write(&format!("plugins/{number}.yaml"), plugin.to_string(), User::Agent, 0o644);
        names.push(format!("default.filter-{number}"));
    }
    let agent = Agent::start(&world, &Options::directory(&plugins)).await;
    let mut envoys = Vec::new();
    for number in 0..10 {
        let protocol = if number % 2 == 0 { Protocol::Sotw } else { Protocol::Delta };
        envoys.push(Ecds::subscribe(agent.tcp, protocol, &names).await);
    }
    gate.held().await;
    gate.open();
    for envoy in &mut envoys {
        for name in &names {
            assert_eq!(std::fs::read(envoy.module(name).await).unwrap(), module);
        }
    }
    let (manifests, blobs) = count(&registry.pulls().await);
    assert_eq!(blobs, 1);
    // Each version asks for itself, whoever it is that asks.
    assert!(manifests <= 10, "{manifests}");
}
