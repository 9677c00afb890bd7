//! Extension configs by a service of their own, `ExtensionConfigDiscoveryService`, instead of over ADS:
//! an Envoy opens a stream for each filter then.

use std::net::SocketAddr;

use crate::support::ads::Connection;
use crate::support::agent::{Agent, Options};
use crate::support::bad_server::{BadServer, Reply};
use crate::support::control_plane::doubles::Kind as ControlPlaneKind;
use crate::support::control_plane::{Accepted, ControlPlane, Protocol, Service};
use crate::support::ecds::{self, Filter};
use crate::support::envoy::{Variant, Xds, discovery_by_its_service};
use crate::support::mesh::Mesh;
use crate::support::registry::Access;
use crate::support::resources::{self, Kind, Wasm};
use crate::support::scene::{QUIET, Scene};
use crate::support::scripted::Scripted;
use crate::support::standalone::{Standalone, header, plugin};
use crate::support::traffic::Traffic;
use crate::support::world::World;
use crate::support::{eventually, fixtures, soon};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;
use prost::Message;

async fn plugins_of_a_folder_come_by_it(variant: Variant) {
    let standalone = Standalone::start().await;
    let url = standalone.url();
    let names = ["team.a", "team.b", "team.c"];
    for name in names {
        let name = &name["team.".len()..];
        standalone.write(&format!("plugins/{name}.yaml"), &plugin("team", name, &url, "one"));
    }
    let discovery = discovery_by_its_service(Kind::Http, variant);
    let envoy = standalone.envoy_with(variant, &names, discovery).await;
    let traffic = Traffic::to(envoy.listener("web").await);
    // All of them write the same header, and the answer shows the first.
    let (one, two) = (format!("200 {}", header("one")), format!("200 {}", header("two")));
    traffic.sees(&one, 20).await;
    let streams = || standalone.agent.metric("wasmferry_streams");
    assert!(streams().await >= names.len() as u64, "a stream for each filter");

    for name in names {
        let file = format!("plugins/{}.yaml", &name["team.".len()..]);
        standalone.write(&file, &plugin("team", &name["team.".len()..], &url, "two"));
        eventually("the change", async || {
            (envoy.ecds_stat(Kind::Http, name, "config_reload").await == 2).then_some(())
        })
        .await;
    }
    traffic.sees(&two, 20).await;
    traffic.saw_only(&[&one, &two]);
    for name in names {
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "config_reload").await, 2, "{name}");
        assert_eq!(envoy.ecds_stat(Kind::Http, name, "update_rejected").await, 0, "{name}");
    }
}

#[tokio::test]
async fn plugins_of_a_folder_come_by_their_own_service_in_the_state_of_the_world() {
    plugins_of_a_folder_come_by_it(Variant::Sotw).await;
}

#[tokio::test]
async fn plugins_of_a_folder_come_by_their_own_service_with_the_unified_mux() {
    plugins_of_a_folder_come_by_it(Variant::SotwUnified).await;
}

#[tokio::test]
async fn plugins_of_a_folder_come_by_their_own_service_in_delta() {
    plugins_of_a_folder_come_by_it(Variant::Delta).await;
}

/// A listener with these filters, which are asked for by their own service.
fn listener(variant: Variant, names: &[&str]) -> Any {
    let discovery = discovery_by_its_service(Kind::Http, variant);
    let slots = names.iter().map(|name| resources::http_slot(name, discovery.clone()));
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    pack_any(resources::listener("web", free, vec![], slots.collect()))
}

async fn what_a_control_plane_serves_by_it_is_rewritten(variant: Variant) {
    let mesh = Mesh::start(Access::Anonymous, "").await;
    let v1 = mesh.publish("add-header-v1", "filter", "v1").await;
    let v2 = mesh.publish("add-header-v2", "filter", "v2").await;
    let names = ["a", "b"];
    let filter = |name: &str, url: &str| Wasm::remote(Kind::Http, url).resource(name);
    mesh.control_plane.set_all(names.map(|name| filter(name, &v1)));
    mesh.control_plane.set(listener(variant, &names));
    let envoy = mesh.envoy(variant).await;
    envoy.live().await;
    let traffic = Traffic::to(envoy.listener("web").await);
    traffic.sees("200 v1", 20).await;
    // Listeners over ADS, as before.
    let services = mesh.control_plane.services();
    let alone = services.iter().filter(|service| **service == Service::ExtensionConfigs).count();
    assert!(alone == names.len() && services.contains(&Service::Aggregated), "{services:?}");

    mesh.control_plane.set_all(names.map(|name| filter(name, &v2)));
    traffic.sees("200 v2", 20).await;
    traffic.saw_only(&["200 v1", "200 v2"]);
    assert_eq!(mesh.control_plane.nacks(&resources::ecds_type()), Vec::<String>::new());
    let events = mesh.control_plane.events();
    let ecds = events.iter().filter(|(_, event)| event.type_url == resources::ecds_type());
    let by_service = |number: usize| services[number - 1] == Service::ExtensionConfigs;
    assert!(ecds.into_iter().all(|(number, _)| by_service(*number)), "{events:?}");
}

#[tokio::test]
async fn filters_that_a_control_plane_serves_alone_are_rewritten_in_the_state_of_the_world() {
    what_a_control_plane_serves_by_it_is_rewritten(Variant::Sotw).await;
}

#[tokio::test]
async fn filters_that_a_control_plane_serves_alone_are_rewritten_with_the_unified_mux() {
    what_a_control_plane_serves_by_it_is_rewritten(Variant::SotwUnified).await;
}

#[tokio::test]
async fn filters_that_a_control_plane_serves_alone_are_rewritten_in_delta() {
    what_a_control_plane_serves_by_it_is_rewritten(Variant::Delta).await;
}

/// An agent between a control plane and whoever connects.
struct Bench {
    control_plane: ControlPlane,
    agent: Agent,
    // Last, for what runs in it is dropped before it.
    world: World,
}

impl Bench {
    async fn new() -> Bench {
        let world = World::new();
        let control_plane = ControlPlane::tcp(world.address()).await;
        let agent = Agent::start(&world, &Options::upstream(control_plane.address())).await;
        Bench { control_plane, agent, world }
    }

    async fn connect(&self) -> Connection {
        Connection::open(&Xds::Unix(self.agent.socket.clone())).await
    }
}

async fn request(stream: &mut Accepted) -> Vec<u8> {
    let request = soon("a request to the control plane", stream.request()).await;
    request.expect("a stream that works").expect("a stream that goes on").to_vec()
}

#[tokio::test]
async fn the_method_that_was_called_is_called_upstream_with_its_metadata() {
    let mut bench = Bench::new().await;
    for service in Service::BOTH {
        for protocol in Protocol::BOTH {
            let mut connection = bench.connect().await;
            let metadata = [("authorization", "Bearer of-envoy")];
            let _envoy = connection.stream_of(service, protocol, &metadata).await;
            let upstream = bench.control_plane.accept().await;
            assert_eq!((upstream.service, upstream.protocol), (service, protocol));
            assert_eq!(upstream.metadata.get("authorization").unwrap(), "Bearer of-envoy");
        }
    }
}

/// A request for a name, and a response that has it, both of this type.
fn messages(protocol: Protocol, type_url: &str, resource: Any) -> (Vec<u8>, Vec<u8>) {
    let (type_url, node) = (type_url.to_owned(), Some(Node { id: "scripted".into(), ..Node::default() }));
    match protocol {
        Protocol::Sotw => (
            DiscoveryRequest {
                node,
                type_url: type_url.clone(),
                resource_names: vec!["a".into()],
                ..DiscoveryRequest::default()
            }
            .encode_to_vec(),
            DiscoveryResponse {
                type_url,
                version_info: "1".into(),
                nonce: "n".into(),
                resources: vec![resource],
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
        ),
        Protocol::Delta => (
            DeltaDiscoveryRequest {
                node,
                type_url: type_url.clone(),
                resource_names_subscribe: vec!["a".into()],
                ..DeltaDiscoveryRequest::default()
            }
            .encode_to_vec(),
            DeltaDiscoveryResponse {
                type_url,
                nonce: "n".into(),
                resources: vec![Resource {
                    name: "a".into(),
                    version: "1".into(),
                    resource: Some(resource),
                    ..Resource::default()
                }],
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec(),
        ),
    }
}

/// The type of a request.
fn type_of(protocol: Protocol, request: &[u8]) -> String {
    match protocol {
        Protocol::Sotw => DiscoveryRequest::decode(request).expect("a DiscoveryRequest").type_url,
        Protocol::Delta => DeltaDiscoveryRequest::decode(request).expect("a DeltaDiscoveryRequest").type_url,
    }
}

/// The type of a response and what is in its only resource.
fn only_resource(protocol: Protocol, response: &[u8]) -> (String, (String, Filter)) {
    match protocol {
        Protocol::Sotw => {
            let response = DiscoveryResponse::decode(response).expect("a DiscoveryResponse");
            assert_eq!(response.resources.len(), 1);
            (response.type_url, ecds::read(&response.resources[0]))
        }
        Protocol::Delta => {
            let response = DeltaDiscoveryResponse::decode(response).expect("a DeltaDiscoveryResponse");
            assert_eq!(response.resources.len(), 1);
            let resource = response.resources[0].resource.as_ref().expect("a resource");
            (response.type_url, ecds::read(resource))
        }
    }
}

#[tokio::test]
async fn a_type_that_is_not_named_is_that_of_extension_configs() {
    let mut bench = Bench::new().await;
    let server = BadServer::start(&bench.world).await;
    server.put("/module", Reply::ok(fixtures::module("add-header-v1")));
    let filter = Wasm::remote(Kind::Http, server.url("/module")).resource("a");
    for protocol in Protocol::BOTH {
        let (asked, answer) = messages(protocol, "", filter.clone());
        let mut connection = bench.connect().await;
        let mut envoy = connection.stream_of(Service::ExtensionConfigs, protocol, &[]).await;
        let mut upstream = bench.control_plane.accept().await;
        envoy.send(&asked).await;
        assert_eq!(type_of(protocol, &request(&mut upstream).await), resources::ecds_type());
        upstream.respond(answer.clone()).await.unwrap();
        let (type_url, (name, filter)) = only_resource(protocol, &envoy.message().await);
        assert_eq!((type_url, name.as_str()), (resources::ecds_type(), "a"));
        assert!(matches!(filter, Filter::Module(_)), "{filter:?}");

        // Over ADS it is any type, of which nothing is known.
        let mut envoy = connection.stream_of(Service::Aggregated, protocol, &[]).await;
        let mut upstream = bench.control_plane.accept().await;
        envoy.send(&asked).await;
        assert_eq!(request(&mut upstream).await, asked);
        upstream.respond(answer.clone()).await.unwrap();
        assert_eq!(envoy.message().await, answer);
    }
}

#[tokio::test]
async fn what_is_of_another_type_passes_as_the_bytes_that_it_is() {
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        // What would be rewritten in an extension config.
        let filter = Wasm::remote(Kind::Http, "oci://registry.example/filter:v1").resource("a");
        let (asked, answer) = messages(protocol, &resources::cds_type(), filter);
        let mut connection = bench.connect().await;
        let mut envoy = connection.stream_of(Service::ExtensionConfigs, protocol, &[]).await;
        let mut upstream = bench.control_plane.accept().await;
        envoy.send(&asked).await;
        assert_eq!(request(&mut upstream).await, asked);
        upstream.respond(answer.clone()).await.unwrap();
        assert_eq!(envoy.message().await, answer);
    }
}

#[tokio::test]
async fn what_a_listener_said_over_ads_holds_for_the_filters_that_come_by_their_own_service() {
    for kind in ControlPlaneKind::BOTH {
        for protocol in Protocol::BOTH {
            println!("{kind:?} by {protocol:?}");
            let scene = Scene::new(kind, protocol).await;
            let mut discovery = resources::discovery(Kind::Http);
            // Without RBAC, so that Envoy would reject it.
            discovery.type_urls.truncate(1);
            let free = SocketAddr::from(([127, 0, 0, 1], 0));
            let slot = resources::http_slot("a", discovery);
            scene.double.set(pack_any(resources::listener("web", free, vec![], vec![slot])));
            scene.double.set(scene.filter("a", "a", "/nowhere"));
            let agent = Xds::Unix(scene.agent.socket.clone());
            let mut by_ads = Scripted::connect(&agent, Service::Aggregated, protocol).await;
            by_ads.ask(&resources::lds_type()).await;
            let listeners = by_ads.receive().await;
            by_ads.accept(&listeners).await;
            // Twice: a stream of its own that has ended takes nothing away.
            for number in 1..=2 {
                let mut alone = Scripted::connect(&agent, Service::ExtensionConfigs, protocol).await;
                alone.subscribe(&["a"]).await;
                scene.double.settled(&resources::ecds_type(), number).await;
                scene.fetched("/nowhere", 1).await;
                alone.silence(QUIET).await;
            }
            scene.publish("/fix");
            scene.double.set(scene.filter("a", "fix", "/fix"));
            let mut alone = Scripted::connect(&agent, Service::ExtensionConfigs, protocol).await;
            alone.subscribe(&["a"]).await;
            alone.runs(&[("a", "fix")]).await;
        }
    }
}
