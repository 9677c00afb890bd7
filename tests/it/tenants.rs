//! Tenants of one agent share downloads, not access: what one has brought another is given once the registry
//! has let their own credential read it, and only then.

use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use crate::support::agent::command;
use crate::support::control_plane::Protocol;
use crate::support::control_plane::serve::Serving;
use crate::support::ecds::Ecds;
use crate::support::envoy::Xds;
use crate::support::fixtures::module;
use crate::support::mesh::{from_istio, with_secret};
use crate::support::pulls::{Prefetched, cache, payloads, prefetch};
use crate::support::registry::{
    Access, Layout, Logged, OTHER, OTHER_PASSWORD, PASSWORD, Registry, USER, digest, docker_config,
};
use crate::support::resources::Kind;
use crate::support::timed::Timed;
use crate::support::world::{User, World};

/// A closed registry, and the docker configurations of those who come to it.
struct Scene {
    world: World,
    registry: Registry,
    module: Vec<u8>,
}

impl Scene {
    /// With a module in `team/filter:v1`.
    async fn new(layout: Layout) -> Scene {
        let world = World::new();
        let registry = Registry::start(&world, Access::Htpasswd).await;
        let module = module("add-header-v1");
        registry.publish("team/filter", "v1", layout, &module).await;
        let scene = Scene { world, registry, module };
        scene.know("alice", USER, PASSWORD);
        scene.know("bob", OTHER, OTHER_PASSWORD);
        scene.know("wrong", OTHER, "hunter2");
        scene.world.folder("nobody", User::Agent, 0o700);
        scene.world.write("nobody/config.json", "{\"auths\": {}}", User::Agent, 0o600);
        scene
    }

    fn know(&self, who: &str, user: &str, password: &str) {
        self.world.folder(who, User::Agent, 0o700);
        let config = docker_config(&self.registry.address().to_string(), user, password);
        self.world.write(&format!("{who}/config.json"), config, User::Agent, 0o600);
    }

    async fn pull(&self, who: &str, url: &str, proof: &str) -> Prefetched {
        let yaml = json!({
            "version": 1,
            "cache": {"directory": cache(&self.world), "proof": serde_json::from_str::<serde_json::Value>(proof).unwrap()},
        });
        let name = format!("{who}.yaml");
        let config = self.world.write(&name, yaml.to_string(), User::Agent, 0o600).display().to_string();
        let docker = self.world.path().join(who).display().to_string();
        prefetch_with(&self.world, &["--config", &config, url], &docker).await
    }

    async fn blobs(&self, method: &str) -> usize {
        let is = |logged: &&Logged| {
            logged.method == method && logged.path.contains("/blobs/") && logged.status == 200
        };
        self.registry.pulls().await.iter().filter(is).count()
    }

    async fn remove(&self) {
        let cache = cache(&self.world);
        let payload = digest(&self.module);
        let args = ["cache", "rm", "--force", "--cache-dir", cache.to_str().unwrap(), &payload];
        let output = command(&self.world, args, &[]).await;
        assert!(output.status.success(), "{output:?}");
    }
}

async fn prefetch_with(world: &World, args: &[&str], docker: &str) -> Prefetched {
    prefetch(world, args.iter().copied(), &[("DOCKER_CONFIG", docker)]).await
}

/// Proofs as they are by default, and such as are too old at once.
const DEFAULT: &str = "{}";
const ALLOWED: &str = r#"{"lasts": "0s", "when_registry_is_down": "allow_if_seen"}"#;
const DENIED: &str = r#"{"lasts": "0s", "when_registry_is_down": "deny"}"#;

#[tokio::test]
async fn a_second_tenant_gets_a_private_module_by_its_own_right_credential_and_without_a_download() {
    for layout in [Layout::Artifact, Layout::OciImage] {
        let scene = Scene::new(layout).await;
        let url = scene.registry.url("team/filter", "v1");
        let first = scene.pull("alice", &url, DEFAULT).await;
        let first = first.module(&url, &scene.module)["path"].as_str().unwrap().to_owned();
        assert_eq!((scene.blobs("GET").await, scene.blobs("HEAD").await), (1, 0));
        for who in ["wrong", "nobody"] {
            assert_eq!(scene.pull(who, &url, DEFAULT).await.error(&url).0, "unauthorized", "{who}");
        }
        let second = scene.pull("bob", &url, DEFAULT).await;
        let second = second.module(&url, &scene.module)["path"].as_str().unwrap().to_owned();
        assert_eq!((scene.blobs("GET").await, scene.blobs("HEAD").await), (1, 1), "{layout:?}");
        assert_ne!(first, second);
        let inode = |path: &str| std::fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&first), inode(&second), "one file");
        assert_eq!(std::fs::read_dir(cache(&scene.world).join("v1/private")).unwrap().count(), 2);
        // The failures of one are not the other's.
        assert_eq!(scene.pull("wrong", &url, DEFAULT).await.error(&url).0, "unauthorized");
        for who in ["alice", "bob"] {
            assert_eq!(scene.pull(who, &url, DEFAULT).await.module(&url, &scene.module)["cached"], true);
        }
        assert_eq!(payloads(&cache(&scene.world)).len(), 1);
    }
}

#[tokio::test]
async fn a_credential_that_the_registry_no_longer_takes_has_shown_nothing() {
    let mut scene = Scene::new(Layout::OciImage).await;
    let url = scene.registry.url("team/filter", "v1");
    for who in ["alice", "bob"] {
        scene.pull(who, &url, DEFAULT).await.module(&url, &scene.module);
    }
    // What bob was given is gone, and is there for alice.
    scene.remove().await;
    scene.pull("alice", &url, DEFAULT).await.module(&url, &scene.module);
    scene.registry.shut_out_other(&scene.world).await;
    assert_eq!(scene.pull("bob", &url, ALLOWED).await.error(&url).0, "unauthorized");
    // Nor does it count when nobody can be asked any more.
    scene.registry.stop();
    for proof in [ALLOWED, DEFAULT] {
        assert_eq!(scene.pull("bob", &url, proof).await.error(&url).0, "connect");
    }
    assert_eq!(scene.pull("alice", &url, DENIED).await.module(&url, &scene.module)["cached"], true);
}

#[tokio::test]
async fn while_the_registry_is_stopped_only_who_has_shown_it_before_is_let_in_and_only_where_allowed() {
    let mut scene = Scene::new(Layout::OciImage).await;
    let url = scene.registry.url("team/filter", "v1");
    for who in ["alice", "bob"] {
        scene.pull(who, &url, DEFAULT).await.module(&url, &scene.module);
    }
    scene.remove().await;
    scene.pull("alice", &url, DEFAULT).await.module(&url, &scene.module);
    scene.registry.stop();
    for (who, proof) in [("bob", DENIED), ("wrong", ALLOWED), ("nobody", ALLOWED)] {
        assert_eq!(scene.pull(who, &url, proof).await.error(&url).0, "connect", "{who} {proof}");
    }
    assert_eq!(scene.pull("bob", &url, ALLOWED).await.module(&url, &scene.module)["cached"], true);
    // Now it is there, whatever is allowed.
    assert_eq!(scene.pull("bob", &url, DENIED).await.module(&url, &scene.module)["cached"], true);
}

#[tokio::test]
async fn streams_of_two_tenants_get_paths_of_their_own_and_one_with_a_wrong_secret_none() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Htpasswd).await;
    let module = module("add-header-v1");
    registry.publish("team/filter", "v1", Layout::OciImage, &module).await;
    let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
    let agent = Timed::start(&world, control_plane.address(), "fetch: {hold: 0s}").await;
    let filter = from_istio(Kind::Http, &registry.url("team/filter", "v1"));
    let named = |name: &str, user: &str, password: &str| {
        let secret = docker_config(&registry.address().to_string(), user, password);
        with_secret(filter.clone(), &secret).resource(name)
    };
    control_plane.set(named("alice", USER, PASSWORD));
    let mut alice = Ecds::subscribe(agent.tcp, Protocol::Delta, &["alice".into()]).await;
    let first = alice.module("alice").await;
    control_plane.set(named("wrong", OTHER, "hunter2"));
    control_plane.set(named("bob", OTHER, OTHER_PASSWORD));
    let mut wrong = Ecds::subscribe(agent.tcp, Protocol::Sotw, &["wrong".into()]).await;
    wrong.denied("wrong").await;
    let mut bob = Ecds::subscribe(agent.tcp, Protocol::Sotw, &["bob".into()]).await;
    let second = bob.module("bob").await;
    assert_ne!(first, second);
    for path in [first, second] {
        assert_eq!(std::fs::read(path).unwrap(), module);
    }
    let blobs = |method: &str, pulls: &[Logged]| {
        let is =
            |pull: &&Logged| pull.method == method && pull.path.contains("/blobs/") && pull.status == 200;
        pulls.iter().filter(is).count()
    };
    let pulls = registry.pulls().await;
    assert_eq!((blobs("GET", &pulls), blobs("HEAD", &pulls)), (1, 1), "{pulls:?}");
}
