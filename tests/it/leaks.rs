//! A whole run at trace level, with secrets of every kind, against peers that repeat what they are told: nothing
//! that it writes holds one of them.

mod hostile;
mod secrets;

use std::fs;
use std::path::Path;

use envoy_types::pb::google::protobuf::Any;
use serde_json::{Value, json};

use self::hostile::Hostile;
use self::secrets::{Secrets, in_url};
use crate::support::agent::{Agent, Options, command};
use crate::support::authority::Authority;
use crate::support::control_plane::doubles::{Double, Kind as ControlPlane};
use crate::support::control_plane::{Protocol, Service};
use crate::support::envoy::Xds;
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::forward_proxy::ForwardProxy;
use crate::support::mesh::{from_istio, with_secret};
use crate::support::programs::script;
use crate::support::pulls::tree;
use crate::support::registry::{Access, Layout, PASSWORD, Registry, USER, docker_config};
use crate::support::resources::{self, Kind, Wasm};
use crate::support::scripted::Scripted;
use crate::support::search::Search;
use crate::support::token_server::TokenServer;
use crate::support::world::{User, World};

const MODULE: &str = "add-header-v1";

/// A filter, and whether its module can be had.
struct Plugin {
    name: String,
    filter: Wasm,
    arrives: bool,
}

/// All that runs, in the order in which it ends.
struct Run {
    control_plane: Double,
    agent: Agent,
    closed: Registry,
    tokens: TokenServer,
    guarded: Registry,
    _secure: Registry,
    hostile: Hostile,
    proxy: ForwardProxy,
    secrets: Secrets,
    world: World,
}

/// What was written, and where.
#[derive(Default)]
struct Written(Vec<(String, Vec<u8>)>);

impl Written {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    /// Runs a command and gives its exit code.
    async fn command(&mut self, world: &World, args: &[&str], env: &[(&str, &str)]) -> Option<i32> {
        let output = command(world, args.iter().copied(), env).await;
        for (stream, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
            self.add(format!("{stream} of {}", args[0]), bytes);
        }
        output.status.code()
    }

    /// Every page of a running agent.
    async fn pages(&mut self, agent: &Agent) {
        for path in ["/", "/healthz", "/readyz", "/metrics", "/state", "/nothing"] {
            self.add(format!("the health listener's {path}"), agent.health(path).await.body);
            self.add(format!("the administrator's {path}"), agent.admin(path).await.body);
        }
    }

    /// All files below a folder: their names and what is in them.
    fn folder(&mut self, folder: &Path) {
        for (name, entry) in tree(folder) {
            self.add(format!("the name of {name}"), name.as_bytes());
            if !entry.folder {
                self.add(format!("the file {name}"), fs::read(folder.join(&name)).unwrap());
            }
        }
    }

    fn all(&self, place: &str) -> String {
        let of_place = self.0.iter().filter(|(at, _)| at.contains(place));
        of_place.map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect()
    }
}

impl Run {
    async fn prepare() -> Run {
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
        tokens.know("alice", &secrets.new("pull-password"), &["team/identity"]);
        tokens.identify("alice", &secrets.new("pull-identity"));
        let of_node = ["team/node", "team/node-identity", "team/token"];
        tokens.know("node", &secrets.new("node-password"), &of_node);
        tokens.identify("node", &secrets.new("node-identity"));
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

    fn write(&self, name: &str, text: &str) -> Value {
        json!(self.world.write(name, text, User::Agent, 0o600))
    }

    /// Every source of credentials that there is, some of which fail.
    fn configure(&self, client: &Value, ca_file: &Path) {
        let Run { world, secrets, agent, .. } = self;
        let (closed, guarded) = (self.closed.address().to_string(), self.guarded.address().to_string());
        let hostile = self.hostile.address().to_string();
        let reply = json!({"ServerURL": closed, "Username": USER, "Secret": PASSWORD});
        script(world, "docker-credential-works", &format!("cat > /dev/null; echo '{reply}'"));
        let says = secrets.new("said-by-a-program");
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
                "env": [{"name": "SECRET", "value": secrets.new("a-programs-environment")}],
            })
        };
        let providers = json!({
            "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
            "providers": [
                provider("works", &format!("{closed}/provided"), &secrets.new("a-programs-argument")),
                provider("fails", &format!("{hostile}/provided"), &secrets.new("a-programs-argument")),
            ],
        });
        let broken =
            format!(r#"{{"auths": {{"{hostile}": {{"auth": "{}"#, secrets.new("broken-docker-config"));
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
                   "password_file": self.write("echoed", &secrets.new("echoed-to-the-node"))}),
        ];
        let folder = world.folder("certs.d/toml.test", User::Agent, 0o755);
        let (name, value) = (secrets.new("broken-hosts-toml"), secrets.new("header-in-hosts-toml"));
        let toml = format!(
            "server = 'http://{hostile}'\n[header]\n  x-key = '{value}'\n  x-other = ['{name}', 7]\n"
        );
        fs::write(folder.join("hosts.toml"), toml).unwrap();
        let Xds::Tcp(upstream) = self.control_plane.address() else { panic!("a TCP address") };
        let key = self
            .write("broken.key", &format!("-----BEGIN PRIVATE KEY-----\n{}\n", secrets.new("broken-key")));
        let headers = json!({"x-api-key": secrets.new("header-of-a-registry")});
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
    fn plugins(&self) -> Vec<Plugin> {
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
        let wrong = docker_config(&closed_host, USER, &secrets.new("wrong-password"));
        let elsewhere = docker_config("elsewhere.test", USER, &secrets.new("for-elsewhere"));
        let unreadable = format!(r#"{{"auths": {{"x": {{"auth": "{}"#, secrets.new("unreadable-secret"));
        let undecodable = json!({"auths": {&closed_host: {"auth": secrets.new("undecodable-secret")}}});
        let url = closed.url("pulled", "v1");
        add("basic", true, &url, Some(closed.docker_config()));
        add("basic-wrong", false, &url, Some(wrong));
        add("secret-for-elsewhere", false, &url, Some(elsewhere));
        add("secret-unreadable", false, &url, Some(unreadable));
        add("secret-undecodable", false, &url, Some(undecodable.to_string()));
        let url = guarded.url("team/identity", "v1");
        add("identity", true, &url, Some(identity(&guarded_host, &secrets.get("pull-identity"))));
        add("identity-wrong", false, &url, Some(identity(&guarded_host, &secrets.new("wrong-identity"))));
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
            let url = format!("{}?token={}", hostile.url(path), secrets.new("query-of-a-url"));
            add(path.trim_start_matches('/'), arrives, &url, None);
        }
        let mut other_bytes = from_istio(
            Kind::Http,
            &format!("{}?{}", hostile.url("/file.wasm"), secrets.new("query-of-a-pin")),
        );
        other_bytes.sha256 = "0".repeat(64);
        plugins.push(Plugin { name: "other-bytes".into(), filter: other_bytes, arrives: false });
        plugins
    }
}

/// Bytes that are no extension config, and filters with a URL that is none, all with a secret in them.
fn unreadable(secrets: &Secrets) -> Vec<(String, Any)> {
    let secret = docker_config("x.test", "carol", &secrets.new("in-an-unreadable-resource"));
    let url = in_url(&secrets.new("in-a-url"));
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

#[tokio::test]
async fn nothing_that_a_whole_run_writes_shows_a_secret() {
    let mut run = Run::prepare().await;
    let plugins = run.plugins();
    let unreadable = unreadable(&run.secrets);
    run.agent.resume(&run.world).await;
    let mut written = Written::default();

    // To an Envoy on the listener that may use the node's own credentials; some at a time, since a NACK has
    // room for so many errors.
    let mut envoy = Scripted::connect(&Xds::Tcp(run.agent.tcp), Service::Aggregated, Protocol::Delta).await;
    for some in plugins.chunks(8) {
        run.control_plane.set_all(some.iter().map(|plugin| plugin.filter.resource(&plugin.name)));
        envoy.subscribe(&some.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>()).await;
        let settled = |envoy: &Scripted, plugin: &Plugin| match plugin.arrives {
            true => envoy.label(&plugin.name).is_some(),
            false => envoy.held.contains_key(&plugin.name),
        };
        envoy.until(|envoy| some.iter().all(|plugin| settled(envoy, plugin))).await;
    }
    let came = plugins.iter().filter(|plugin| !plugin.arrives && envoy.label(&plugin.name).is_some());
    assert_eq!(came.map(|plugin| &plugin.name).collect::<Vec<_>>(), Vec::<&String>::new());
    written.pages(&run.agent).await;

    // What is told the control plane at once.
    let unread: Vec<String> = unreadable.iter().map(|(name, _)| name.clone()).collect();
    let unread: Vec<&str> = unread.iter().map(String::as_str).collect();
    run.control_plane.set_named(unreadable);
    envoy.subscribe(&unread).await;
    eventually("a NACK of them all", async || {
        let nacks = run.control_plane.nacks(&resources::ecds_type());
        nacks.iter().any(|nack| unread.iter().all(|name| nack.contains(&format!("{name:?}")))).then_some(())
    })
    .await;

    // To another that may not, by the other protocol.
    let unix = Xds::Unix(run.agent.socket.clone());
    let mut outsider = Scripted::connect(&unix, Service::Aggregated, Protocol::Sotw).await;
    outsider.subscribe(&["node-password", "basic"]).await;
    outsider.until(|envoy| envoy.held.len() == 2).await;
    assert_eq!((outsider.label("node-password"), outsider.label("basic")), (None, Some("")));

    // A secret that is replaced by a wrong one, and a config that Envoy rejects.
    let replaced = docker_config(&run.closed.address().to_string(), USER, &run.secrets.new("replaced"));
    let mut basic = from_istio(Kind::Http, &run.closed.url("pulled", "v2"));
    basic.configuration = "again".into();
    run.control_plane.set(with_secret(basic.clone(), &replaced).resource("basic"));
    run.control_plane.set(resources::deny_all(Kind::Http, "identity"));
    envoy.until(|envoy| envoy.label("identity").is_none()).await;
    let mut rejected = plugins.iter().find(|plugin| plugin.name == "identity").unwrap().filter.clone();
    rejected.configuration = "rejected".into();
    run.control_plane.set(rejected.resource("identity"));
    loop {
        let received = envoy.receive().await;
        if received.configs.contains_key("identity") {
            envoy.reject(&received, "identity", "no thanks").await;
            break;
        }
        envoy.accept(&received).await;
    }
    written.pages(&run.agent).await;

    // By another process over the same store.
    run.agent.noted().await;
    assert_eq!(run.agent.stop().await, Some(0));
    written.folder(&run.agent.cache);
    run.agent.resume(&run.world).await;
    let mut second = Scripted::connect(&Xds::Tcp(run.agent.tcp), Service::Aggregated, Protocol::Sotw).await;
    let names: Vec<&str> = plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    second.subscribe(&names).await;
    second.until(|envoy| envoy.held.contains_key("node-password")).await;
    written.pages(&run.agent).await;
    written.add("the agent's log", run.agent.log());
    assert_eq!(run.agent.stop().await, Some(0));
    written.folder(&run.agent.cache);
    for (name, envoy) in [("first", envoy), ("other", outsider), ("second", second)] {
        for message in envoy.messages {
            written.add(format!("sent to the {name} Envoy"), message.to_vec());
        }
    }
    written.add(
        "said to the control plane",
        format!("{:?}", run.control_plane.requests(&resources::ecds_type())),
    );
    run.commands(&mut written).await;

    // The run was what it should be.
    let said = written.all("said to the control plane");
    let log = written.all("the agent's log");
    for plugin in plugins.iter().filter(|plugin| !plugin.arrives) {
        let is_told = |line: &str| line.contains("cannot get the module") && line.contains(&plugin.name);
        assert!(log.lines().any(is_told), "nothing is told of {}", plugin.name);
    }
    for part in
        ["was not found", "not authorised", "access to", "does not have the digest", "gave nothing for"]
    {
        assert!(said.contains(part), "no NACK says {part:?}");
    }
    assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
    for place in
        ["stdout of", "stderr of", "'s /state", "'s /metrics", "the file v1/content/notes", "sent to the"]
    {
        assert!(!written.all(place).is_empty(), "nothing in {place}");
    }
    let shown = run.hostile.shown().join("\n") + &run.hostile.paths().join("\n");
    for name in
        ["echoed-to-the-node", "shown-to-the-hostile", "token-of-the-hostile", "signature-of-the-hostile"]
    {
        let search = Search::of([run.secrets.get(name), format!("node:{}", run.secrets.get(name))]);
        assert!(search.find(shown.as_bytes()).is_some(), "{name} was never sent");
    }
    assert!(run.proxy.seen().iter().any(|line| line.starts_with("CONNECT secure.test")));

    // And in all of it there is none.
    let tokens = run.tokens.asked().into_iter().filter_map(|asked| asked.token);
    let search = Search::of(run.secrets.all().into_iter().chain(tokens));
    let leaks =
        written.0.iter().filter_map(|(place, bytes)| Some(format!("{place}: {}", search.find(bytes)?)));
    let leaks: Vec<_> = leaks.collect();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n\n"));
}

impl Run {
    /// What is typed, and goes well or wrong.
    async fn commands(&self, written: &mut Written) {
        let Run { world, secrets, agent, .. } = self;
        let config = agent.config.display().to_string();
        let proxy = self.proxy.url();
        let wrong_proxy = self.proxy.wrong_url();
        let path = format!("{}:/usr/bin:/bin", world.path().join("programs").display());
        let env = [("HTTPS_PROXY", proxy.as_str()), ("NO_PROXY", "127.0.0.0/8"), ("PATH", path.as_str())];
        assert_eq!(written.command(world, &["check", "--config", &config], &env).await, Some(0));

        let store = world.folder("other-cache", User::Agent, 0o711).display().to_string();
        let signed = format!("{}?token={}", self.hostile.url("/file.wasm"), secrets.get("query-of-a-url"));
        let fragment = format!("{}#{}", self.hostile.url("/missing.wasm"), secrets.new("fragment-of-a-url"));
        let sources = [
            self.guarded.url("team/node", "v1"),
            self.guarded.url("team/token", "v1"),
            self.closed.url("helped", "v1"),
            self.closed.url("provided", "v1"),
            "oci://secure.test/filter:v1".to_owned(),
            "oci://nowhere.test/filter:v1".to_owned(),
            self.hostile.image("echo-node"),
            self.hostile.image("provided"),
            self.hostile.image("broken"),
            signed,
            fragment,
        ];
        for (output, format, env) in
            [("json", "text", env), ("text", "json", [("HTTPS_PROXY", wrong_proxy.as_str()), env[1], env[2]])]
        {
            let mut args =
                vec!["prefetch", "--log-level", "trace", "--log-format", format, "--output", output];
            args.extend(["--config", &config, "--cache-dir", &store]);
            args.extend(sources.iter().map(String::as_str));
            assert_eq!(written.command(world, &args, &env).await, Some(1));
        }
        let user = format!("oci://carol:{}@{}/x:v1", secrets.new("user-of-an-image"), self.closed.address());
        assert_ne!(written.command(world, &["prefetch", "--cache-dir", &store, &user], &env).await, Some(0));
        for args in [
            vec!["cache", "ls", "--output", "json", "--cache-dir", &store],
            vec!["cache", "ls", "--cache-dir", &store],
            vec!["cache", "verify", "--cache-dir", &store],
        ] {
            assert_eq!(written.command(world, &args, &[("RUST_LOG", "trace")]).await, Some(0), "{args:?}");
        }
        written.folder(Path::new(&store));

        let file = world.write("filter.wasm", module(MODULE), User::Agent, 0o644).display().to_string();
        for (name, password, code) in
            [("right", PASSWORD.to_owned(), 0), ("wrong", secrets.new("wrong-push"), 1)]
        {
            let folder = world.folder(name, User::Agent, 0o700).display().to_string();
            let docker = docker_config(&self.closed.address().to_string(), USER, &password);
            self.write(&format!("{name}/config.json"), &docker);
            let args = ["push", "--log-level", "trace", &file, &self.closed.url("pushed", "v1")];
            let env = [("DOCKER_CONFIG", folder.as_str())];
            assert_eq!(written.command(world, &args, &env).await, Some(code), "{name}");
        }
        let args = ["push", &file, &user];
        assert_ne!(written.command(world, &args, &[]).await, Some(0));

        // What is no configuration.
        let (header, mirror) = (secrets.new("unsendable-header"), secrets.new("user-of-a-mirror"));
        for (keys, env) in [
            (json!({"registries": {"r.io": {"headers": {"x-key": format!("{header}\n")}}}}), vec![]),
            (
                json!({"registries": {"r.io": {"mirrors": [{"url": format!("https://c:{mirror}@r.io/{mirror}")}]}}}),
                vec![],
            ),
            (json!({"credentials": [{"for": [format!("carol:{mirror}@r.io")], "password": mirror}]}), vec![]),
            (
                json!({}),
                vec![("HTTPS_PROXY", format!("ht!tp://carol:{}@proxy", secrets.new("unread-proxy")))],
            ),
            (
                json!({}),
                vec![(
                    "HTTP_PROXY",
                    format!("ftp://carol:{}@proxy", secrets.new("ftp-proxy").replace('/', "%2F")),
                )],
            ),
        ] {
            let mut whole = json!({"version": 1});
            whole.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            let file =
                world.write("broken.yaml", whole.to_string(), User::Agent, 0o600).display().to_string();
            let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
            for command in ["check", "run"] {
                let args = [command, "--log-level", "trace", "--config", &file];
                assert_eq!(written.command(world, &args, &env).await, Some(2), "{keys}");
            }
        }
    }
}

#[test]
fn a_secret_is_found_in_whatever_form_it_was_written() {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    let search = Search::of(["in-a-test/of+a~run\""]);
    let found = |text: &str| search.find(text.as_bytes()).is_some();
    for around in ["", "a", "ab", "abc", "abcd"] {
        let whole = format!("{around}in-a-test/of+a~run\"{around}");
        for text in [
            whole.clone(),
            BASE64_STANDARD.encode(&whole),
            BASE64_URL_SAFE_NO_PAD.encode(&whole),
            url::form_urlencoded::byte_serialize(whole.as_bytes()).collect(),
            json!(whole).to_string(),
            hex::encode(&whole),
            format!("{:?}", whole.as_bytes()),
            crate::support::registry::digest(b"in-a-test/of+a~run\""),
        ] {
            assert!(found(&text), "{text}");
        }
    }
    assert!(!found("in-a-test/of+a") && !found(""));
}
