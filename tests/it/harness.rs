//! The harness itself: that the parts are real, and that what watches them sees what they do.

use std::os::unix::fs::MetadataExt;

use envoy_types::util::pack_any;
use http::StatusCode;
use tonic::Status;

use crate::support::control_plane::script::Script;
use crate::support::control_plane::serve::Serving;
use crate::support::control_plane::{ControlPlane, Protocol};
use crate::support::envoy::{self, Envoy, Variant, Xds};
use crate::support::gate::Gate;
use crate::support::process::Program;
use crate::support::registry::{self, Access, Layout, Registry};
use crate::support::resources::{self, Kind};
use crate::support::world::{User, World, is_root};
use crate::support::{client, eventually};

/// A listener with one discovered HTTP filter, all of it over ADS: allowed, then denied, then broken.
async fn a_real_envoy_takes_its_configuration(variant: Variant, unix: bool) {
    let world = World::new();
    let xds = match unix {
        true => Xds::Unix(world.folder("run", User::Tests, 0o755).join("xds.sock")),
        false => Xds::Tcp(world.address()),
    };
    let control_plane = Serving::listen(xds.clone()).await;
    let filter = resources::http_slot("filter", resources::discovery(Kind::Http));
    let gate = resources::network_slot("gate", resources::discovery(Kind::Network));
    let listener = resources::listener("web", world.address(), vec![gate], vec![filter]);
    control_plane.set_all([
        pack_any(listener),
        resources::allow_all(Kind::Network, "gate"),
        resources::allow_all(Kind::Http, "filter"),
    ]);

    let mut envoy = Envoy::start(&world, &envoy::Options::lds(xds, variant)).await;
    envoy.live().await;
    let address = envoy.listener("web").await;
    let answer = envoy::request(address).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "ok"));

    control_plane.set(resources::deny_all(Kind::Http, "filter"));
    envoy.answers("a denied request", address, |answer| answer.status == StatusCode::FORBIDDEN).await;
    // Counted when the last worker has it.
    eventually("two reloads", async || {
        (envoy.ecds_stat(Kind::Http, "filter", "config_reload").await == 2).then_some(())
    })
    .await;

    // A module that is not there: Envoy keeps what it has, and says why.
    let missing = world.path().join("missing.wasm");
    control_plane.set(resources::Wasm::local(Kind::Http, &missing).resource("filter"));
    let nack = control_plane.event("a NACK", |event| event.nack().is_some()).await;
    assert!(nack.nack().unwrap().contains("missing.wasm"), "{nack:?}");
    assert_eq!(envoy::request(address).await.unwrap().status, StatusCode::FORBIDDEN);
    assert_eq!(envoy.ecds_stat(Kind::Http, "filter", "update_rejected").await, 1);

    control_plane.set(resources::deny_all(Kind::Network, "gate"));
    eventually("a closed connection", async || envoy::request(address).await.err()).await;
    assert_eq!(control_plane.streams(), 1);

    let process = format!("/proc/{}", envoy.process().pid());
    if is_root() {
        assert_eq!(std::fs::metadata(&process).unwrap().uid(), 1337);
    }
    drop(envoy);
    assert!(!std::path::Path::new(&process).exists(), "an Envoy that outlives its test");
}

#[tokio::test]
async fn a_real_envoy_takes_its_configuration_by_state_of_the_world() {
    a_real_envoy_takes_its_configuration(Variant::Sotw, true).await;
}

#[tokio::test]
async fn a_real_envoy_takes_its_configuration_by_the_unified_mux() {
    a_real_envoy_takes_its_configuration(Variant::SotwUnified, false).await;
}

#[tokio::test]
async fn a_real_envoy_takes_its_configuration_by_delta() {
    a_real_envoy_takes_its_configuration(Variant::Delta, true).await;
}

#[tokio::test]
async fn a_script_sees_what_envoy_says_and_ends_its_stream() {
    for (variant, protocol) in [(Variant::Sotw, Protocol::Sotw), (Variant::Delta, Protocol::Delta)] {
        let world = World::new();
        let xds = Xds::Tcp(world.address());
        let mut control_plane = ControlPlane::listen(xds.clone()).await;
        let filter = resources::http_slot("filter", resources::discovery(Kind::Http));
        let listener = resources::listener("web", world.address(), vec![], vec![filter]);
        let options = envoy::Options {
            metadata: vec![("authorization".into(), "Bearer of-envoy".into())],
            ..envoy::Options::with_listener(xds, variant, listener)
        };
        let envoy = Envoy::start(&world, &options).await;

        let mut first = Script::from(control_plane.accept().await);
        assert_eq!(first.protocol(), protocol);
        assert_eq!(first.metadata().get("authorization").unwrap(), "Bearer of-envoy");
        let ecds = resources::ecds_type();
        assert_eq!(first.event_of(&ecds).await.names, ["filter".to_owned()].into());
        let nonce = first.send(&ecds, "7", vec![resources::deny_all(Kind::Http, "filter")]).await.unwrap();
        let ack = first.event_of(&ecds).await;
        assert!(ack.is_ack() && ack.answer.unwrap().nonce == nonce);
        first.ledger().settled().unwrap();
        first.end(Status::unavailable("every half hour")).await;

        let mut second = Script::from(control_plane.accept().await);
        let again = second.event_of(&ecds).await;
        match protocol {
            Protocol::Sotw => assert_eq!(again.version, "7"),
            Protocol::Delta => assert_eq!(again.initial_versions, [("filter".into(), "7".into())].into()),
        }
        let address = envoy.listener("web").await;
        assert_eq!(envoy::request(address).await.unwrap().status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn agent_and_envoy_are_two_users_who_meet_in_a_group() {
    let world = World::new();
    let id = async |user: User| {
        let args = vec!["-c".into(), "id -u; id -G".into()];
        let shell = Program { name: "id".into(), path: "/bin/sh".into(), user, args, env: Vec::new() };
        let output = shell.run(&world).await;
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (agent, envoy) = (id(User::Agent).await, id(User::Envoy).await);
    if is_root() {
        assert_eq!((agent, envoy), (["1338", "1338", "1337"].map(Into::into).into(), vec!["1337".into(); 2]));
    } else {
        assert_eq!(agent, envoy);
    }
}

#[tokio::test]
async fn a_real_registry_keeps_what_is_published_and_lets_nobody_else_in() {
    let world = World::new();
    let mut registry = Registry::start(&world, Access::Htpasswd).await;
    let digest = registry.publish("team/filter", "v1", Layout::OciImage, b"not a module").await;

    let manifest = format!("/v2/team/filter/manifests/{digest}");
    let anonymous = client::get(registry.address(), &manifest).await.unwrap();
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    assert!(anonymous.header("www-authenticate").starts_with("Basic"));

    registry.stop();
    assert!(client::get(registry.address(), &manifest).await.is_err());
    registry.resume(&world).await;
    let auth = serde_json::from_str::<serde_json::Value>(&registry.docker_config()).unwrap();
    let auth = auth["auths"][registry.address().to_string()]["auth"].as_str().unwrap().to_owned();
    let mut request = client::request(http::Method::GET, &manifest, "");
    request.headers_mut().insert("authorization", format!("Basic {auth}").parse().unwrap());
    request.headers_mut().insert("accept", registry::OCI_MANIFEST.parse().unwrap());
    let read = client::send(registry.address(), request).await.unwrap();
    assert_eq!((read.status, registry::digest(&read.body)), (StatusCode::OK, digest));

    let pulls = registry.pulls().await;
    let seen: Vec<(&str, u16)> = pulls.iter().map(|pull| (pull.path.as_str(), pull.status)).collect();
    assert_eq!(seen, [(manifest.as_str(), 401), (manifest.as_str(), 200)]);
}

#[tokio::test]
async fn every_layout_is_taken_by_a_real_registry_without_a_password() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    for layout in Layout::ALL {
        let tag = format!("{layout:?}");
        let digest = registry.publish("filter", &tag, layout, b"not a module").await;
        let manifest = format!("/v2/filter/manifests/{tag}");
        let mut request = client::request(http::Method::GET, &manifest, "");
        let accept = format!("{}, {}", registry::OCI_MANIFEST, registry::DOCKER_MANIFEST);
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let read = client::send(registry.address(), request).await.unwrap();
        assert_eq!(read.header("docker-content-digest"), digest, "{layout:?}");
    }
}

#[tokio::test]
async fn a_gate_holds_an_answer_in_its_middle_and_lets_it_go() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let module: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let blob = registry.publish_blob("filter", "application/wasm", &module).await;
    let gate = Gate::in_front_of(registry.address(), &world).await;
    gate.hold_after(100_000);

    let path = format!("/v2/filter/blobs/{}", blob["digest"].as_str().unwrap());
    let pull = tokio::spawn({
        let address = gate.address();
        async move { client::get(address, &path).await }
    });
    gate.held().await;
    assert!(!pull.is_finished());
    gate.open();
    assert_eq!(pull.await.unwrap().unwrap().body, module);
}
