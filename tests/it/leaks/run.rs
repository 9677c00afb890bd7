//! The parts of the run, and every way in which one of them comes by a module or does not.

use std::fs;
use std::path::Path;

use envoy_types::pb::google::protobuf::Any;
use serde_json::{Value, json};

use super::MODULE;
use super::hostile::Hostile;
use super::secrets::{Secrets, in_url};
use crate::support::agent::{Agent, Options};
use crate::support::authority::Authority;
use crate::support::control_plane::doubles::{Double, Kind as ControlPlane};
use crate::support::envoy::Xds;
use crate::support::fixtures::module;
use crate::support::forward_proxy::ForwardProxy;
use crate::support::mesh::{from_istio, with_secret};
use crate::support::programs::script;
use crate::support::registry::{Access, Layout, PASSWORD, Registry, USER, docker_config};
use crate::support::resources::{Kind, Wasm};
use crate::support::token_server::TokenServer;
use crate::support::world::{User, World};

/// A filter, and whether its module can be had.
pub struct Plugin {
    pub name: String,
    pub filter: Wasm,
    pub arrives: bool,
}

/// All that runs, in the order in which it ends.
pub struct Run {
    pub control_plane: Double,
    pub agent: Agent,
    pub closed: Registry,
    pub tokens: TokenServer,
    pub guarded: Registry,
    _secure: Registry,
    pub hostile: Hostile,
    pub proxy: ForwardProxy,
    pub secrets: Secrets,
    pub world: World,
}

impl Run {
    pub async fn prepare() -> Run {
        let world = World::new();
        let secrets = Secrets::default();
        // With a password, behind tokens, and with TLS.
        let closed = Registry::start(&world, Access::Htpasswd).await;
        let mut guarded = Registry::start(&world, Access::Anonymous).await;
        let mut secure = Registry::start(&world, Access::Anonymous).await;
        for (registry, repositories) in [
            (&closed, &["pulled", "helped", "provided"][..]),
            (&guarded, &["team/identity", "team/node", "team/node-identity", "team/token"]),
            (&secure, &["filter"]),
        ] {
            for repository in repositories {
                registry.publish(repository, "v1", Layout::OciImage, &module(MODULE)).await;
            }
        }
        let tokens = TokenServer::start(&world).await;
        tokens.know("alice", &secrets.make("pull-password"), &["team/identity"]);
        tokens.identify("alice", &secrets.make("pull-identity"));
        let of_node = ["team/node", "team/node-identity", "team/token"];
        tokens.know("node", &secrets.make("node-password"), &of_node);
        tokens.identify("node", &secrets.make("node-identity"));
        guarded.guard(&world, &tokens).await;
        let authority = Authority::new(&world, "ca");
        let server = authority.pair(&world, "server", &["secure.test".to_owned()]);
        let client = authority.pair(&world, "client", &["client.test".to_owned()]);
        secrets.add_pem(&client.key);
        secure.secure(&world, &server, Some(&authority)).await;
        let names = ["secure.test:443", "broken.test:443"].map(|name| (name.to_owned(), secure.address()));
        let proxy = ForwardProxy::start(&world, names.into()).await;
        secrets.add("hunter2");
        secrets.add("alice:hunter2");
        secrets.add("hunter3");
        secrets.add(PASSWORD);
        secrets.add(&format!("{USER}:{PASSWORD}"));
        let hostile = Hostile::start(&world, &secrets).await;

        let control_plane = Double::listen(ControlPlane::Istiod, Xds::Tcp(world.address())).await;
        let mut options = Options::upstream(control_plane.address());
        options.env.push(("RUST_LOG".into(), "trace".into()));
        options.env.push(("HTTPS_PROXY".into(), proxy.url()));
        options.env.push(("NO_PROXY".into(), "127.0.0.0/8".into()));
        let path = format!("{}:/usr/bin:/bin", world.path().join("programs").display());
        options.env.push(("PATH".into(), path));
        let agent = Agent::prepare(&world, &options);
        let run = Run {
            control_plane,
            agent,
            closed,
            tokens,
            guarded,
            _secure: secure,
            hostile,
            proxy,
            secrets,
            world,
        };
        run.configure(&json!({"certificate": client.certificate, "key": client.key}), &authority.file);
        run
    }

    pub fn write(&self, name: &str, text: &str) -> Value {
        json!(self.world.write(name, text, User::Agent, 0o600))
    }

    /// Every source of credentials that there is, some of which fail.
    pub fn configure(&self, client: &Value, ca_file: &Path) {
        let Run { world, secrets, agent, .. } = self;
        let (closed, guarded) = (self.closed.address().to_string(), self.guarded.address().to_string());
        let hostile = self.hostile.address().to_string();
        let reply = json!({"ServerURL": closed, "Username": USER, "Secret": PASSWORD});
        script(world, "docker-credential-works", &format!("cat > /dev/null; echo '{reply}'"));
        let says = secrets.make("said-by-a-program");
        script(world, "docker-credential-fails", &format!("echo '{says}'; echo '{says}' >&2; exit 3"));
        let helpers = json!({"credHelpers": {&closed: "works", &hostile: "fails"}});
        let answer = json!({
            "kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": "Registry", "auth": {&closed: {"username": USER, "password": PASSWORD}},
        });
        let programs = script(world, "works", &format!("cat > /dev/null; echo '{answer}'"));
        script(world, "fails", &format!("echo '{says}'; echo '{says}' >&2; exit 4"));
        let provider = |name: &str, images: &str, argument: &str| {
            json!({
                "name": name, "matchImages": [images], "defaultCacheDuration": "12h", "args": [argument],
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "env": [{"name": "SECRET", "value": secrets.make("a-programs-environment")}],
            })
        };
        let providers = json!({
            "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
            "providers": [
                provider("works", &format!("{closed}/provided"), &secrets.make("a-programs-argument")),
                provider("fails", &format!("{hostile}/provided"), &secrets.make("a-programs-argument")),
            ],
        });
        let broken =
            format!(r#"{{"auths": {{"{hostile}": {{"auth": "{}"#, secrets.make("broken-docker-config"));
        let listener = json!([agent.tcp]);
        let with = |extra: Value| {
            let mut entry = json!({"listeners": listener});
            entry.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            entry
        };
        let entries = [
            json!({"for": [format!("{guarded}/team/node")], "user": "node",
                   "password_file": self.write("node-password", &secrets.get("node-password"))}),
            json!({"for": [format!("{guarded}/team/node-identity")],
                   "identity_token_file": self.write("node-identity", &secrets.get("node-identity"))}),
            json!({"for": [format!("{guarded}/team/token")],
                   "token_file": self.write("node-token", &self.tokens.token("node", "team/token"))}),
            json!({"for": [format!("{closed}/helped"), format!("{hostile}/helped")],
                   "docker_config": self.write("helped.json", &helpers.to_string())}),
            json!({"for": [format!("{hostile}/broken")], "docker_config": self.write("broken.json", &broken)}),
            json!({"for": [format!("{hostile}/echo-node")], "user": "node",
                   "password_file": self.write("echoed", &secrets.make("echoed-to-the-node"))}),
        ];
        let folder = world.folder("certs.d/toml.test", User::Agent, 0o755);
        let (name, value) = (secrets.make("broken-hosts-toml"), secrets.make("header-in-hosts-toml"));
        let toml = format!(
            "server = 'http://{hostile}'\n[header]\n  x-key = '{value}'\n  x-other = ['{name}', 7]\n"
        );
        fs::write(folder.join("hosts.toml"), toml).unwrap();
        let Xds::Tcp(upstream) = self.control_plane.address() else { panic!("a TCP address") };
        let key = self
            .write("broken.key", &format!("-----BEGIN PRIVATE KEY-----\n{}\n", secrets.make("broken-key")));
        let headers = json!({"x-api-key": secrets.make("header-of-a-registry")});
        let config = json!({
            "version": 1,
            "listeners": [{"address": agent.tcp}, {"address": format!("unix:{}", agent.socket.display())}],
            "upstream": {"address": format!("http://{upstream}")},
            "cache": {"directory": agent.cache}, "health": {"listen": agent.health},
            "admin": {"listen": format!("unix:{}", agent.admin.display())},
            "fetch": {"hold": "2s", "nack_fetch_failures": true},
            "credentials": entries.map(with),
            "credential_providers": with(json!({
                "config": self.write("providers.json", &providers.to_string()), "bin_directory": programs,
            })),
            "registries": {
                "secure.test": {"ca_file": ca_file, "client_certificate": client, "headers": headers},
                "broken.test": {"ca_file": ca_file, "headers": headers,
                                "client_certificate": {"certificate": client["certificate"], "key": key}},
                &hostile: {"plain_http": true, "headers": headers},
            },
            "containerd_hosts": [world.path().join("certs.d")],
        });
        world.write("wasmferry.yaml", config.to_string(), User::Agent, 0o600);
    }

    /// Every way in which a module is had or not, with secrets on it.
    pub fn plugins(&self) -> Vec<Plugin> {
        let Run { secrets, closed, guarded, hostile, .. } = self;
        let (closed_host, guarded_host) = (closed.address().to_string(), guarded.address().to_string());
        let identity =
            |host: &str, token: &str| json!({"auths": {host: {"identitytoken": token}}}).to_string();
        let mut plugins = Vec::new();
        let mut add = |name: &str, arrives: bool, url: &str, secret: Option<String>| {
            let filter = from_istio(Kind::Http, url);
            let filter = match &secret {
                Some(secret) => with_secret(filter, secret),
                None => filter,
            };
            plugins.push(Plugin { name: name.to_owned(), filter, arrives });
        };
        let wrong = docker_config(&closed_host, USER, &secrets.make("wrong-password"));
        let elsewhere = docker_config("elsewhere.test", USER, &secrets.make("for-elsewhere"));
        let unreadable = format!(r#"{{"auths": {{"x": {{"auth": "{}"#, secrets.make("unreadable-secret"));
        let undecodable = json!({"auths": {&closed_host: {"auth": secrets.make("undecodable-secret")}}});
        let url = closed.url("pulled", "v1");
        add("basic", true, &url, Some(closed.docker_config()));
        add("basic-wrong", false, &url, Some(wrong));
        add("secret-for-elsewhere", false, &url, Some(elsewhere));
        add("secret-unreadable", false, &url, Some(unreadable));
        add("secret-undecodable", false, &url, Some(undecodable.to_string()));
        let url = guarded.url("team/identity", "v1");
        add("identity", true, &url, Some(identity(&guarded_host, &secrets.get("pull-identity"))));
        add("identity-wrong", false, &url, Some(identity(&guarded_host, &secrets.make("wrong-identity"))));
        let password = secrets.get("pull-password");
        add("password-for-tokens", true, &url, Some(docker_config(&guarded_host, "alice", &password)));
        let token = self.tokens.token("alice", "team/identity");
        let registry_token = json!({"auths": {&guarded_host: {"registrytoken": token}}}).to_string();
        add("registry-token", true, &url, Some(registry_token));
        for (name, repository) in [
            ("node-password", "team/node"),
            ("node-identity", "team/node-identity"),
            ("node-token", "team/token"),
        ] {
            add(name, true, &guarded.url(repository, "v1"), None);
        }
        add("helped", true, &closed.url("helped", "v1"), None);
        add("provided", true, &closed.url("provided", "v1"), None);
        for repository in ["helped", "provided", "broken", "echo-node"] {
            add(&format!("{repository}-in-vain"), false, &hostile.image(repository), None);
        }
        add("client-certificate", true, "oci://secure.test/filter:v1", None);
        add("client-key-broken", false, "oci://broken.test/filter:v1", None);
        add("hosts-toml-broken", false, "oci://toml.test/filter:v1", None);
        add("proxy-in-vain", false, "oci://nowhere.test/filter:v1", None);
        for (repository, arrives) in Hostile::REPOSITORIES {
            let secret =
                docker_config(&hostile.address().to_string(), "carol", &secrets.get("shown-to-the-hostile"));
            add(repository, arrives, &hostile.image(repository), Some(secret));
        }
        for (path, arrives) in Hostile::FILES {
            let url = format!("{}?token={}", hostile.url(path), secrets.make("query-of-a-url"));
            add(path.trim_start_matches('/'), arrives, &url, None);
        }
        let mut other_bytes = from_istio(
            Kind::Http,
            &format!("{}?{}", hostile.url("/file.wasm"), secrets.make("query-of-a-pin")),
        );
        other_bytes.sha256 = "0".repeat(64);
        plugins.push(Plugin { name: "other-bytes".into(), filter: other_bytes, arrives: false });
        plugins
    }
}

/// Bytes that are no extension config, and filters with a URL that is none, all with a secret in them.
pub fn unreadable(secrets: &Secrets) -> Vec<(String, Any)> {
    let secret = docker_config("x.test", "carol", &secrets.make("in-an-unreadable-resource"));
    let url = in_url(&secrets.make("in-a-url"));
    let filter = |name: &str, url: &str| {
        (name.to_owned(), with_secret(from_istio(Kind::Http, url), &secret).resource(name))
    };
    let mut cut = filter("cut", "oci://x.test/filter:v1");
    cut.1.value.truncate(cut.1.value.len() - 7);
    vec![
        cut,
        filter("no-url", ""),
        filter("user-in-url", &format!("http://carol:{url}@x.test/file.wasm")),
        filter("scheme", &format!("ftp://carol:{url}@x.test/{url}?{url}")),
    ]
}
