//! The real registry behind a token server: each kind of credential, tokens that run out at any moment, and
//! tenants who share none.

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use http::header::AUTHORIZATION;
use serde_json::{Value, json};

use crate::support::agent::{Agent, Options};
use crate::support::client;
use crate::support::control_plane::Protocol;
use crate::support::control_plane::serve::Serving;
use crate::support::ecds::Ecds;
use crate::support::envoy::Xds;
use crate::support::eventually;
use crate::support::fixtures::module;
use crate::support::gate::Gate;
use crate::support::mesh::{from_istio, with_secret};
use crate::support::pulls::{Prefetched, prefetch};
use crate::support::registry::{Access, Layout, OCI_MANIFEST, Registry, docker_config};
use crate::support::resources::Kind;
use crate::support::token_server::{Asked, TokenServer};
use crate::support::world::{User, World};

const REPOSITORY: &str = "team/filter";
const MODULE: &str = "add-header-v1";
const SCOPE: &str = "repository:team/filter:pull";
const MINUTES: Duration = Duration::from_secs(300);
/// Enough for what a test does before a token is to run out, on a machine that does other things besides.
const SHORT: Duration = Duration::from_secs(4);

/// A registry with a module in `team/filter` that only tokens open; alice and bob may have them. The
/// manifest under `padded` is long in coming.
async fn behind_tokens(world: &World) -> (Registry, TokenServer) {
    let mut registry = Registry::start(world, Access::Anonymous).await;
    for tag in ["v1", "v2"] {
        registry.publish(REPOSITORY, tag, Layout::OciImage, &module(MODULE)).await;
    }
    let config = registry.publish_blob(REPOSITORY, "application/vnd.wasm.config.v0+json", b"{}").await;
    let layer = registry.publish_blob(REPOSITORY, "application/wasm", &module(MODULE)).await;
    let padded = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
        "annotations": {"test": "x".repeat(256 << 10)},
    });
    registry.publish_manifest(REPOSITORY, "padded", OCI_MANIFEST, padded.to_string().as_bytes()).await;
    let tokens = TokenServer::start(world).await;
    for (user, password) in [("alice", "open sesame"), ("bob", "open too")] {
        tokens.know(user, password, &[REPOSITORY]);
    }
    tokens.identify("alice", "alice/identity+1");
    tokens.identify("bob", "bob/identity+1");
    registry.guard(world, &tokens).await;
    (registry, tokens)
}

/// Prefetches by the node's own credential: these keys of one entry.
async fn pull(world: &World, host: &str, entry: Value, url: &str) -> Prefetched {
    let mut credential = json!({"for": [format!("{host}/team")]});
    credential.as_object_mut().unwrap().extend(entry.as_object().unwrap().clone());
    let config = json!({"version": 1, "credentials": [credential]});
    let config = world.write("config.yaml", config.to_string(), User::Agent, 0o600);
    prefetch(world, ["--config", config.to_str().unwrap(), url], &[("RUST_LOG", "trace")]).await
}

/// By alice's password.
async fn pull_as_alice(world: &World, host: &str, url: &str) -> Prefetched {
    let password = world.write("alice", "open sesame", User::Agent, 0o600);
    pull(world, host, json!({"user": "alice", "password_file": password}), url).await
}

/// The paths that were asked for by this token.
fn with_token(gate: &Gate, token: &str) -> Vec<String> {
    let proof = Some(format!("Bearer {token}"));
    let carried = gate.carried().into_iter().filter(|asked| asked.authorization == proof);
    carried.map(|asked| asked.path).collect()
}

/// What a token server was asked, in short.
fn shown(asked: &[Asked]) -> Vec<(&str, Option<&str>)> {
    assert!(asked.iter().all(|asked| asked.scope == SCOPE), "more than was needed: {asked:?}");
    asked.iter().map(|asked| (asked.method.as_str(), asked.user.as_deref())).collect()
}

/// Waits until the registry no longer takes the token that was given last.
async fn run_out(registry: &Registry, tokens: &TokenServer) {
    let token = tokens.asked().last().unwrap().token.clone().unwrap();
    eventually("the end of a token", async || {
        let mut request = client::request(http::Method::GET, "/v2/team/filter/manifests/v1", "");
        request.headers_mut().insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        let answer = client::send(registry.address(), request).await.ok()?;
        (answer.status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_of_the_nodes_own_credentials_gets_a_token_for_what_is_pulled_and_no_more() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    let (host, url) = (registry.address().to_string(), registry.url(REPOSITORY, "v1"));
    let write = |name: &str, text: &str| world.write(name, format!("{text}\n"), User::Agent, 0o600);
    let identity = json!({"auths": {&host: {"identitytoken": "bob/identity+1"}}}).to_string();
    for (entry, asked) in [
        (json!({"user": "bob", "password_file": write("bob", "open too")}), vec![("GET", Some("bob"))]),
        (
            json!({"identity_token_file": write("identity", "alice/identity+1")}),
            vec![("POST", Some("alice"))],
        ),
        (json!({"docker_config": write("docker.json", &identity)}), vec![("POST", Some("bob"))]),
        // Used as it is: nobody is asked.
        (json!({"token_file": write("token", &tokens.token("bob", REPOSITORY))}), vec![]),
    ] {
        let before = tokens.asked().len();
        let pulled = pull(&world, &host, entry.clone(), &url).await;
        pulled.module(&url, &module(MODULE));
        assert_eq!(shown(&tokens.asked()[before..]), asked, "{entry}: {}", pulled.stderr);
    }
}

#[tokio::test]
async fn one_who_is_not_let_in_is_told_which_registry_and_shown_no_secret() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    tokens.know("carol", "open as well", &["other/filter"]);
    let (host, url) = (registry.address().to_string(), registry.url(REPOSITORY, "v1"));
    let write = |text: &str| world.write("secret", text, User::Agent, 0o600);
    let wrong =
        |secret: &str, entry: &dyn Fn(&Value) -> Value| (secret.to_owned(), entry(&json!(write(secret))));
    let stale = tokens.token("bob", "other/filter");
    for (make, asked) in [
        (wrong("hunter2", &|file| json!({"user": "alice", "password_file": file})), vec![("GET", None)]),
        (wrong("hunter3", &|file| json!({"identity_token_file": file})), vec![("POST", None)]),
        (wrong(&stale, &|file| json!({"token_file": file})), vec![]),
        // Let in, but not to this repository: she gets a token, and with the next one it is no better.
        (
            wrong("open as well", &|file| json!({"user": "carol", "password_file": file})),
            vec![("GET", Some("carol")), ("GET", Some("carol"))],
        ),
    ] {
        let (secret, entry) = make;
        write(&secret);
        let before = tokens.asked().len();
        let refused = pull(&world, &host, entry, &url).await;
        let (reason, text) = refused.error(&url);
        assert!(reason == "unauthorized" && text.contains(&host), "{text}");
        assert!(!format!("{refused:?}").contains(&secret), "{refused:?}");
        assert_eq!(shown(&tokens.asked()[before..]), asked, "{text}");
    }
}

/// With a secret of each tenant's in their resource.
#[tokio::test]
async fn tenants_are_let_in_by_tokens_of_their_own_and_by_nobody_elses() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    let host = gate.address().to_string();
    let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
    let options = Options::upstream(control_plane.address()).with("fetch: {hold: 0s}");
    let agent = Agent::start(&world, &options).await;
    let identity = json!({"auths": {&host: {"identitytoken": "alice/identity+1"}}}).to_string();
    let tenants = [
        ("alice", docker_config(&host, "alice", "open sesame"), true),
        ("alice-by-identity", identity, true),
        ("bob", docker_config(&host, "bob", "open too"), true),
        ("mallory", docker_config(&host, "bob", "guessed"), false),
        ("nobody", String::new(), false),
    ];
    for tag in ["v1", "v2"] {
        let filter = from_istio(Kind::Http, &format!("oci://{host}/{REPOSITORY}:{tag}"));
        for (name, secret, may) in &tenants {
            let name = format!("{name}-{tag}");
            let filter = if secret.is_empty() { filter.clone() } else { with_secret(filter.clone(), secret) };
            control_plane.set(filter.resource(&name));
            let mut client = Ecds::subscribe(agent.tcp, Protocol::Delta, std::slice::from_ref(&name)).await;
            match may {
                true => {
                    let path = client.module(&name).await;
                    assert_eq!(std::fs::read(path).unwrap(), module(MODULE), "{name}");
                }
                false => client.denied(&name).await,
            }
        }
    }
    // The three who may have one each, which serves for the second tag too.
    let asked = tokens.asked();
    let users = |user: &str| asked.iter().filter(|asked| asked.user.as_deref() == Some(user)).count();
    assert_eq!((users("alice"), users("bob")), (2, 1), "{asked:?}");
    // By none of them was more asked for than its own tenant's: each manifest, and the layer once.
    for given in asked.iter().filter_map(|asked| asked.token.as_deref()) {
        let by = with_token(&gate, given);
        let tags = ["v1", "v2"].map(|tag| by.iter().filter(|path| path.ends_with(tag)).count());
        let layers = by.iter().filter(|path| path.contains("/blobs/")).count();
        assert_eq!((tags, layers, by.len()), ([1, 1], 1, 3), "{by:?}");
    }
    // Nothing else was sent to prove anything.
    let proofs: BTreeSet<_> = gate.carried().into_iter().filter_map(|asked| asked.authorization).collect();
    assert_eq!(proofs.len(), 3, "{proofs:?}");
    // The first downloads; the others show that they might.
    let blobs = registry.pulls().await;
    let blobs = blobs.iter().filter(|pull| pull.path.contains("/blobs/") && pull.status == 200);
    let methods: Vec<_> = blobs.map(|pull| pull.method.as_str()).collect();
    assert_eq!(methods.iter().filter(|method| **method == "GET").count(), 1, "{methods:?}");
}

#[tokio::test]
async fn a_token_that_runs_out_before_the_layer_is_asked_for_is_renewed_once() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    let (host, url) = (gate.address().to_string(), format!("oci://{}/{REPOSITORY}:padded", gate.address()));
    // What the server tells is believed until the registry says otherwise.
    tokens.lifetime(Some(MINUTES), SHORT);
    gate.hold_after(64 << 10);
    let (pulled, ()) = tokio::join!(pull_as_alice(&world, &host, &url), async {
        gate.held().await;
        run_out(&registry, &tokens).await;
        tokens.lifetime(Some(MINUTES), MINUTES);
        gate.open();
    });
    pulled.module(&url, &module(MODULE));
    assert_eq!(shown(&tokens.asked()), [("GET", Some("alice")); 2]);
    let statuses = layer_statuses(&registry).await;
    assert_eq!(statuses, [401, 200]);
}

/// In the middle of the layer: it goes on where it broke, by a token of its own.
#[tokio::test]
async fn a_token_that_runs_out_in_the_middle_of_the_layer_is_renewed_once_and_the_rest_fetched() {
    let world = World::new();
    let mut registry = Registry::start(&world, Access::Anonymous).await;
    let large = large_module();
    registry.publish(REPOSITORY, "v1", Layout::Artifact, &large).await;
    let tokens = TokenServer::start(&world).await;
    tokens.know("alice", "open sesame", &[REPOSITORY]);
    registry.guard(&world, &tokens).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    let (host, url) = (gate.address().to_string(), format!("oci://{}/{REPOSITORY}:v1", gate.address()));
    tokens.lifetime(Some(MINUTES), SHORT);
    gate.hold_after(512 << 10);
    let (pulled, ()) = tokio::join!(pull_as_alice(&world, &host, &url), async {
        gate.held().await;
        run_out(&registry, &tokens).await;
        tokens.lifetime(Some(MINUTES), MINUTES);
        gate.cut();
        gate.open();
    });
    pulled.module(&url, &large);
    assert_eq!(shown(&tokens.asked()), [("GET", Some("alice")); 2]);
    assert_eq!(layer_statuses(&registry).await, [200, 401, 206], "{}", pulled.stderr);
}

#[tokio::test]
async fn tokens_that_say_how_soon_they_run_out_are_got_anew_before() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    let (host, url) = (gate.address().to_string(), format!("oci://{}/{REPOSITORY}:v1", gate.address()));
    // Shorter than what is left for a request that is under way.
    tokens.lifetime(Some(Duration::from_secs(5)), MINUTES);
    pull_as_alice(&world, &host, &url).await.module(&url, &module(MODULE));
    let given: Vec<_> = tokens.asked().into_iter().filter_map(|asked| asked.token).collect();
    let used = given.iter().map(|token| with_token(&gate, token));
    let used: Vec<Vec<bool>> =
        used.map(|paths| paths.iter().map(|path| path.contains("/blobs/")).collect()).collect();
    assert_eq!(used, [vec![false], vec![true]], "one for the manifest and one for the layer");
}

#[tokio::test]
async fn where_every_token_is_refused_there_is_one_renewal_and_no_more() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    let (host, url) = (registry.address().to_string(), registry.url(REPOSITORY, "v1"));
    tokens.lifetime(None, Duration::ZERO);
    let refused = pull_as_alice(&world, &host, &url).await;
    assert_eq!(refused.error(&url).0, "unauthorized");
    assert_eq!(shown(&tokens.asked()), [("GET", Some("alice")); 2]);
    let statuses: Vec<_> = registry.pulls().await.iter().map(|pull| pull.status).collect();
    assert_eq!(statuses, [401; 3]);
}

/// Password and identity token, by an agent that runs all the while.
#[tokio::test]
async fn rotated_files_are_used_for_the_next_pull_of_a_running_agent() {
    let world = World::new();
    let (registry, tokens) = behind_tokens(&world).await;
    let host = registry.address().to_string();
    let password = world.write("password", "outdated", User::Agent, 0o600);
    let identity = world.write("identity", "outdated", User::Agent, 0o600);
    let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
    let (by_password, by_identity) = (world.address(), world.address());
    let mut agent = Agent::prepare(&world, &Options::upstream(control_plane.address()));
    let Xds::Tcp(upstream) = control_plane.address() else { panic!("a TCP address") };
    let config = json!({
        "version": 1,
        "listeners": [{"address": by_password}, {"address": by_identity}],
        "upstream": {"address": format!("http://{upstream}")},
        "cache": {"directory": agent.cache}, "health": {"listen": agent.health}, "fetch": {"hold": "0s"},
        "credentials": [
            {"for": [&host], "listeners": [by_password], "user": "alice", "password_file": password},
            {"for": [&host], "listeners": [by_identity], "identity_token_file": identity},
        ],
    });
    world.write("wasmferry.yaml", config.to_string(), User::Agent, 0o600);
    agent.resume(&world).await;
    for (round, tag) in [("refused", "v1"), ("first", "v1"), ("second", "v2")] {
        if round != "refused" {
            // As people do it: the server takes the new one, then the file has it.
            let new = format!("the {round} one");
            tokens.know("alice", &new, &[REPOSITORY]);
            tokens.identify("alice", &new);
            for name in ["password", "identity"] {
                world.write(name, &new, User::Agent, 0o600);
            }
        }
        control_plane.set(from_istio(Kind::Http, &registry.url(REPOSITORY, tag)).resource(round));
        for listener in [by_password, by_identity] {
            let mut client = Ecds::subscribe(listener, Protocol::Delta, &[round.into()]).await;
            match round {
                "refused" => client.denied(round).await,
                _ => {
                    let path = client.module(round).await;
                    assert_eq!(std::fs::read(path).unwrap(), module(MODULE));
                }
            }
        }
    }
}

/// The statuses of all requests for the layer, in their order.
async fn layer_statuses(registry: &Registry) -> Vec<u16> {
    let pulls = registry.pulls().await;
    pulls.iter().filter(|pull| pull.path.contains("/blobs/")).map(|pull| pull.status).collect()
}

/// A megabyte in a custom section that nothing compresses.
fn large_module() -> Vec<u8> {
    let noise: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let section = wasm_encoder::CustomSection { name: "noise".into(), data: noise.into() };
    let mut whole = module(MODULE);
    wasm_encoder::Section::append_to(&section, &mut whole);
    whole
}
