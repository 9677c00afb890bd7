//! The node's own credentials: out of files and programs, for whom the configuration says and for nobody
//! else.

use std::os::unix::fs::MetadataExt as _;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Options, command};
use crate::support::authority::Authority;
use crate::support::control_plane::Protocol;
use crate::support::ecds::Ecds;
use crate::support::fixtures::module;
use crate::support::programs::script;
use crate::support::pulls::{prefetch, wasm_plugin};
use crate::support::registry::{Access, Layout, PASSWORD, Registry, USER};
use crate::support::world::{User, World, is_root};

/// A registry with a password, and a module in it.
async fn registry(world: &World) -> (Registry, String) {
    let registry = Registry::start(world, Access::Htpasswd).await;
    registry.publish("team/filter", "v1", Layout::Artifact, &module("add-header-v1")).await;
    let url = registry.url("team/filter", "v1");
    (registry, url)
}

/// The kubelet's configuration with one provider for a registry, and the script that it is.
fn provider_for(world: &World, host: &str, text: &str) -> String {
    let bin = script(world, "a-provider", text);
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "a-provider", "matchImages": [host], "defaultCacheDuration": "12h",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        }],
    });
    let config = world.write("providers.json", config.to_string(), User::Agent, 0o600);
    format!("config: {}, bin_directory: {}", config.display(), bin.display())
}

/// What a provider prints for a registry, in shell.
fn answer(host: &str) -> String {
    let answer = json!({
        "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry", "auth": {host: {"username": USER, "password": PASSWORD}},
    });
    format!("cat > /dev/null; echo '{answer}'")
}

#[tokio::test]
async fn each_source_of_credentials_pulls_a_private_module() {
    let world = World::new();
    let (registry, url) = registry(&world).await;
    let host = registry.address().to_string();
    let write = |name: &str, text: &str| world.write(name, text, User::Agent, 0o600).display().to_string();
    let password = write("password", &format!("{PASSWORD}\n"));
    let docker = write("docker.json", &registry.docker_config());
    let helped = write("helped.json", r#"{"credsStore":"of-the-test"}"#);
    let secrets = world.folder("secrets", User::Agent, 0o700);
    world.folder("secrets/pull", User::Agent, 0o700);
    write("secrets/pull/.dockerconfigjson", &registry.docker_config());
    let reply = json!({"ServerURL": host, "Username": USER, "Secret": PASSWORD});
    let helpers =
        script(&world, "docker-credential-of-the-test", &format!("cat > /dev/null; echo '{reply}'"));
    let providers = provider_for(&world, &host, &answer(&host));
    let path = format!("{}:/usr/bin:/bin", helpers.display());
    for (name, yaml, expected) in [
        ("none", String::new(), 1),
        ("other", format!("credentials: [{{for: [r.io], user: {USER}, password_file: {password}}}]"), 1),
        (
            "password",
            format!("credentials: [{{for: ['{host}/team'], user: {USER}, password_file: {password}}}]"),
            0,
        ),
        ("docker", format!("credentials: [{{for: all, docker_config: {docker}}}]"), 0),
        ("secrets", format!("credentials: [{{for: all, kubernetes_secrets: {}}}]", secrets.display()), 0),
        ("helper", format!("credentials: [{{for: all, docker_config: {helped}}}]"), 0),
        ("providers", format!("credential_providers: {{{providers}}}"), 0),
    ] {
        let store = world.folder(&format!("store-{name}"), User::Agent, 0o711);
        let text = format!("version: 1\ncache: {{directory: {}}}\n{yaml}\n", store.display());
        let config = write(&format!("{name}.yaml"), &text);
        let env = [("PATH", path.as_str()), ("RUST_LOG", "trace")];
        let run = command(&world, ["prefetch", "--config", config.as_str(), url.as_str()], &env).await;
        let said =
            format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert_eq!(run.status.code(), Some(expected), "{name}: {said}");
        assert!(!said.contains(PASSWORD), "{name}: {said}");
    }
}

#[tokio::test]
async fn a_program_that_cannot_help_is_named_and_what_it_prints_is_not_repeated() {
    let world = World::new();
    let (registry, url) = registry(&world).await;
    let host = registry.address().to_string();
    for (index, (text, why)) in [
        ("echo hunter2; echo hunter2 >&2; exit 3", "it exited with 3"),
        ("head -c 1000000 /dev/zero", "it wrote too much"),
        ("sleep 600 & sleep 600", "it took too long"),
        ("echo hunter2", "CredentialProviderResponse"),
    ]
    .into_iter()
    .enumerate()
    {
        let providers = provider_for(&world, &host, text);
        let store = world.folder(&format!("store-{index}"), User::Agent, 0o711);
        let text = format!(
            "version: 1\ncache: {{directory: {}}}\nfetch: {{credential_timeout: 1s}}\n\
             credential_providers: {{{providers}}}\n",
            store.display()
        );
        let config = world.write("c.yaml", text, User::Agent, 0o600).display().to_string();
        let env = [("RUST_LOG", "trace"), ("PATH", "/usr/bin:/bin")];
        let run = command(&world, ["prefetch", "--config", config.as_str(), url.as_str()], &env).await;
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{said}");
        assert!(said.contains("a-provider") && said.contains(&host) && said.contains(why), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// As a file is that only root may read, to an agent that runs as somebody else.
#[tokio::test]
async fn a_file_that_is_not_for_the_agent_is_named_with_the_reason_and_nobody_is_asked_without_it() {
    let world = World::new();
    let (registry, url) = registry(&world).await;
    let host = registry.address().to_string();
    let mode = if is_root() { 0o400 } else { 0o000 };
    let closed = |name: &str| world.write(name, "hunter2", User::Tests, mode);
    let file = closed("file");
    world.folder("secrets", User::Agent, 0o755);
    let secret = closed("secrets/pull.dockerconfigjson");
    world.folder(&format!("certs.d/{host}"), User::Agent, 0o755);
    let hosts = closed(&format!("certs.d/{host}/hosts.toml"));
    let programs = world.folder("programs", User::Agent, 0o755);
    let open = Authority::new(&world, "ca").file;
    let of = |extra: Value| {
        let mut entry = json!({"for": [&host]});
        entry.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"credentials": [entry]})
    };
    let access = |extra: Value| json!({"registries": {&host: extra}});
    for (keys, named) in [
        (of(json!({"user": USER, "password_file": file})), &file),
        (of(json!({"token_file": file})), &file),
        (of(json!({"identity_token_file": file})), &file),
        (of(json!({"docker_config": file})), &file),
        (of(json!({"kubernetes_secrets": world.path().join("secrets")})), &secret),
        (json!({"credential_providers": {"config": file, "bin_directory": programs}}), &file),
        (access(json!({"ca_file": file})), &file),
        (access(json!({"ca_file": open, "client_certificate": {"certificate": open, "key": file}})), &file),
        (json!({"containerd_hosts": [world.path().join("certs.d")]}), &hosts),
    ] {
        let mut whole = json!({"version": 1});
        whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let config = world.write("config.yaml", whole.to_string(), User::Agent, 0o600);
        let before = registry.pulls().await.len();
        let refused = prefetch(&world, ["--config", config.to_str().unwrap(), &url], &[]).await;
        let (_, text) = refused.error(&url);
        let path = named.display().to_string();
        assert!(text.contains(&path) && text.contains("Permission denied"), "{keys}: {text}");
        assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
        assert_eq!(registry.pulls().await.len(), before, "{keys}");
    }
}

/// By a password in a file, and by a provider.
#[tokio::test]
async fn a_listener_that_is_not_named_is_given_nothing() {
    for by_provider in [false, true] {
        let world = World::new();
        let (registry, url) = registry(&world).await;
        let host = registry.address().to_string();
        let (named, other) = (world.address(), world.address());
        let password = world.write("password", PASSWORD, User::Agent, 0o600);
        let own = match by_provider {
            true => format!(
                "credential_providers: {{{}, listeners: ['{named}']}}",
                provider_for(&world, &host, &answer(&host))
            ),
            false => format!(
                "credentials: [{{for: ['{host}'], listeners: ['{named}'], user: {USER}, password_file: {}}}]",
                password.display()
            ),
        };
        let plugins = world.folder("plugins", User::Agent, 0o755);
        let plugin = wasm_plugin("private", &url, json!({}));
        world.write("plugins/p.yaml", plugin.to_string(), User::Agent, 0o644);
        // A secret of its own, with nothing for this registry: the node's is not used in its place.
        let secret = json!({"auths": {"other.example": {"username": USER, "password": "hunter2"}}});
        world.write("plugins/mine.dockerconfigjson", secret.to_string(), User::Agent, 0o600);
        let plugin = wasm_plugin("secret", &url, json!({"imagePullSecret": "mine"}));
        world.write("plugins/s.yaml", plugin.to_string(), User::Agent, 0o644);
        let mut options = Options::directory(&plugins);
        options.env.extend(
            [("RUST_LOG", "trace"), ("PATH", "/usr/bin:/bin")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let mut agent = Agent::prepare(&world, &options);
        let text = format!(
            "version: 1\nlisteners: [{{address: '{named}'}}, {{address: '{other}'}}]\n\
             upstream: {{directory: {}}}\ncache: {{directory: {}}}\nhealth: {{listen: '{}'}}\n\
             fetch: {{hold: 0s}}\n{own}\n",
            plugins.display(),
            agent.cache.display(),
            agent.health
        );
        world.write("wasmferry.yaml", text, User::Agent, 0o600);
        agent.resume(&world).await;
        let private = "default.private".to_owned();
        for protocol in Protocol::BOTH {
            let mut outsider = Ecds::subscribe(other, protocol, std::slice::from_ref(&private)).await;
            outsider.denied(&private).await;
            let mut owner = Ecds::subscribe(named, protocol, std::slice::from_ref(&private)).await;
            assert_eq!(std::fs::read(owner.module(&private).await).unwrap(), module("add-header-v1"));
            // Nor does it now that the module is there.
            let mut outsider = Ecds::subscribe(other, protocol, std::slice::from_ref(&private)).await;
            outsider.denied(&private).await;
            let mut bringer = Ecds::subscribe(named, protocol, &["default.secret".into()]).await;
            bringer.denied("default.secret").await;
        }
        let log = agent.log();
        assert!(log.contains("has nothing for"), "{log}");
        for secret in [PASSWORD, "hunter2"] {
            assert!(!log.contains(secret), "{log}");
        }
        if by_provider {
            assert_eq!(agent.metric(r#"wasmferry_credentials_total{result="success"}"#).await, 1);
        }
    }
}

#[tokio::test]
async fn an_agents_memory_is_its_own() {
    let world = World::new();
    let plugins = world.folder("plugins", User::Agent, 0o755);
    let mut agent = Agent::start(&world, &Options::directory(&plugins)).await;
    // Of a process that is not dumpable, these belong to root, whoever it runs as.
    for file in ["environ", "mem", "maps"] {
        let found = std::fs::metadata(format!("/proc/{}/{file}", agent.process().pid())).unwrap();
        assert_eq!((found.uid(), found.gid()), (0, 0), "{file}");
    }
}
