//! Extension configs between a scripted Envoy and a control plane whose ledger checks every version and
//! nonce: what each side is told, and what it is never told.

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use prost::{Message, Name};

use crate::support::ads::{Connection, Stream};
use crate::support::agent::{Agent, Options};
use crate::support::control_plane::script::Script;
use crate::support::control_plane::{ControlPlane, Protocol};
use crate::support::envoy::Xds;
use crate::support::resources::{self, Kind, Wasm};
use crate::support::world::{User, World};

/// What an Envoy sees of a response, whatever the protocol.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    version: String,
    nonce: String,
    resources: Vec<Any>,
    removed: Vec<String>,
}

impl Seen {
    fn names(&self) -> Vec<String> {
        self.resources.iter().map(resources::name_of).collect()
    }
}

/// An Envoy that asks for extension configs, and names its node once.
struct Envoy {
    protocol: Protocol,
    stream: Stream,
    said_node: bool,
    names: Vec<String>,
    accepted: String,
    nonce: String,
}

impl Envoy {
    async fn open(connection: &mut Connection, protocol: Protocol) -> Envoy {
        let stream = connection.stream(protocol).await;
        Envoy {
            protocol,
            stream,
            said_node: false,
            names: Vec::new(),
            accepted: String::new(),
            nonce: String::new(),
        }
    }

    /// One for each protocol, since what Envoy rejected stays rejected on every stream of its node.
    fn node(&self) -> &'static str {
        match self.protocol {
            Protocol::Sotw => "scripted-sotw",
            Protocol::Delta => "scripted-delta",
        }
    }

    /// Any request; state of the world takes its names from `self.names`.
    async fn say(&mut self, type_url: &str, add: &[&str], answers: bool, error: Option<&str>) {
        let node = (!std::mem::replace(&mut self.said_node, true))
            .then(|| Node { id: self.node().into(), ..Node::default() });
        let error_detail =
            error.map(|message| rpc::Status { code: 13, message: message.into(), details: Vec::new() });
        let is_ecds = type_url == resources::ecds_type();
        let request = match self.protocol {
            Protocol::Sotw => DiscoveryRequest {
                node,
                version_info: if is_ecds { self.accepted.clone() } else { String::new() },
                resource_names: if is_ecds { self.names.clone() } else { Vec::new() },
                type_url: type_url.into(),
                response_nonce: if is_ecds { self.nonce.clone() } else { String::new() },
                error_detail,
                ..DiscoveryRequest::default()
            }
            .encode_to_vec(),
            Protocol::Delta => DeltaDiscoveryRequest {
                node,
                type_url: type_url.into(),
                resource_names_subscribe: add.iter().map(|name| (*name).into()).collect(),
                response_nonce: if answers { self.nonce.clone() } else { String::new() },
                error_detail,
                ..DeltaDiscoveryRequest::default()
            }
            .encode_to_vec(),
        };
        self.stream.send(request).await;
    }

    async fn subscribe(&mut self, names: &[&str]) {
        self.names.extend(names.iter().map(|name| (*name).to_owned()));
        self.say(&resources::ecds_type(), names, false, None).await;
    }

    async fn response(&mut self) -> Seen {
        let bytes = self.stream.message().await;
        let seen = match self.protocol {
            Protocol::Sotw => {
                let response = DiscoveryResponse::decode(bytes).unwrap();
                assert_eq!(response.type_url, resources::ecds_type());
                Seen {
                    version: response.version_info,
                    nonce: response.nonce,
                    resources: response.resources,
                    removed: Vec::new(),
                }
            }
            Protocol::Delta => {
                let response = DeltaDiscoveryResponse::decode(bytes).unwrap();
                assert_eq!(response.type_url, resources::ecds_type());
                for resource in &response.resources {
                    let named = resources::name_of(resource.resource.as_ref().unwrap());
                    assert_eq!(resource.name, named, "Envoy ignores a resource without a name");
                    assert!(!resource.version.is_empty());
                }
                Seen {
                    version: response.system_version_info,
                    nonce: response.nonce,
                    resources: response.resources.into_iter().filter_map(|r| r.resource).collect(),
                    removed: response.removed_resources,
                }
            }
        };
        self.nonce.clone_from(&seen.nonce);
        seen
    }

    async fn ack(&mut self, seen: &Seen) {
        self.accepted.clone_from(&seen.version);
        self.say(&resources::ecds_type(), &[], true, None).await;
    }

    async fn nack(&mut self, reason: &str) {
        self.say(&resources::ecds_type(), &[], true, Some(reason)).await;
    }
}

/// Bytes of an unknown field, with a secret in them.
fn unknown_field(text: &str) -> Vec<u8> {
    [&[0xfa, 0x3f, text.len() as u8], text.as_bytes()].concat()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// An agent, and the control plane behind it.
struct Bench {
    control_plane: ControlPlane,
    agent: Agent,
    world: World,
}

impl Bench {
    async fn new() -> Bench {
        let world = World::new();
        let control_plane = ControlPlane::tcp(world.address()).await;
        let modules = world.folder("modules", User::Agent, 0o755);
        let module = include_bytes!("../../fixtures/modules/add-header-v1.wasm");
        world.write("modules/filter.wasm", module, User::Agent, 0o644);
        let sources = format!("sources: {{file: [\"{}\"]}}", modules.display());
        let options = Options::upstream(control_plane.address()).with(&sources);
        let agent = Agent::start(&world, &options).await;
        Bench { control_plane, agent, world }
    }

    async fn connection(&self) -> Connection {
        Connection::open(&Xds::Unix(self.agent.socket.clone())).await
    }

    /// A filter whose module the agent can have.
    fn filter(&self, name: &str) -> Any {
        let module = self.world.path().join("modules/filter.wasm");
        Wasm::remote(Kind::Http, format!("file://{}", module.display())).resource(name)
    }
}

#[tokio::test]
async fn every_version_and_nonce_is_of_its_own_side_and_rejections_go_up_by_name() {
    let ecds = resources::ecds_type();
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = bench.connection().await;
        let mut envoy = Envoy::open(&mut connection, protocol).await;
        envoy.subscribe(&["a", "b"]).await;
        let mut script = Script::from(bench.control_plane.accept().await);
        let asked = script.event_of(&ecds).await;
        assert_eq!((asked.answer, asked.version.as_str()), (None, ""));
        assert_eq!(asked.names, ["a".to_owned(), "b".to_owned()].into());

        let first = [resources::allow_all(Kind::Http, "a"), resources::allow_all(Kind::Http, "b")];
        let nonce = script.send(&ecds, "v1", first.to_vec()).await.unwrap();
        let seen = envoy.response().await;
        assert_eq!(seen.resources, first, "what is no Wasm is what it was");
        assert!(seen.version != "v1" && !seen.nonce.is_empty() && seen.nonce != nonce, "{seen:?}");
        envoy.ack(&seen).await;
        let ack = script.event_of(&ecds).await;
        assert!(ack.is_ack() && ack.answer.unwrap().nonce == nonce);

        // One that Envoy will not have.
        let second = [resources::deny_all(Kind::Http, "a"), resources::allow_all(Kind::Http, "b")];
        let nonce = script.send(&ecds, "v2", second.to_vec()).await.unwrap();
        let seen = envoy.response().await;
        assert!(seen.resources.contains(&second[0]));
        envoy.nack("cannot: the secret is 1234").await;
        let nack = script.event_of(&ecds).await;
        assert_eq!(nack.answer.as_ref().unwrap().nonce, nonce);
        let reason = nack.nack().expect("a NACK");
        assert!(
            reason.contains("\"a\"") && !reason.contains("\"b\"") && !reason.contains("1234"),
            "{reason}"
        );
        if protocol == Protocol::Sotw {
            assert_eq!(nack.version, "v1", "the last that was accepted");
        }
        // What was accepted repairs what the rejected one left in Envoy.
        let seen = envoy.response().await;
        assert!(seen.resources.contains(&first[0]) && !seen.resources.contains(&second[0]), "{seen:?}");
        envoy.ack(&seen).await;

        // Another name, on the running stream.
        envoy.subscribe(&["c"]).await;
        let asked = script.event_of(&ecds).await;
        assert_eq!(asked.answer, None);
        assert_eq!(asked.names.len(), 3);
        let all = [&first[..], &[resources::allow_all(Kind::Network, "c")]].concat();
        script.send(&ecds, "v3", all).await.unwrap();
        let seen = envoy.response().await;
        assert!(seen.names().contains(&"c".to_owned()));
        envoy.ack(&seen).await;
        assert!(script.event_of(&ecds).await.is_ack());
        script.ledger().settled().unwrap();
        if protocol == Protocol::Delta {
            script.remove(&ecds, "v4", &["c"]).await.unwrap();
            let seen = envoy.response().await;
            assert_eq!((seen.removed.as_slice(), seen.resources.len()), (&["c".to_owned()][..], 0));
            envoy.ack(&seen).await;
            assert!(script.event_of(&ecds).await.is_ack());
        }
    }
}

#[tokio::test]
async fn the_node_is_in_the_first_message_upstream_whichever_that_is() {
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = bench.connection().await;
        let mut envoy = Envoy::open(&mut connection, protocol).await;
        // With the node in it; it asks for nothing and goes no further.
        envoy.subscribe(&[]).await;
        envoy.say(&resources::lds_type(), &[], false, None).await;
        let mut script = Script::from(bench.control_plane.accept().await);
        // The ledger refuses a first message without a node.
        assert_eq!(script.event().await.type_url, resources::lds_type());
        envoy.subscribe(&["a"]).await;
        let asked = script.event().await;
        assert_eq!((asked.type_url, asked.names), (resources::ecds_type(), ["a".to_owned()].into()));
        let state = bench.agent.admin("/state").await.text();
        assert!(state.contains(envoy.node()), "{state}");
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_is_rejected_by_name_and_never_quoted() {
    let ecds = resources::ecds_type();
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = bench.connection().await;
        let mut envoy = Envoy::open(&mut connection, protocol).await;
        envoy.subscribe(&["good", "broken", "foreign"]).await;
        let mut script = Script::from(bench.control_plane.accept().await);
        script.event_of(&ecds).await;

        let good = resources::allow_all(Kind::Http, "good");
        // Breaks off in the middle, after its name.
        let mut broken = bench.filter("broken");
        broken.value.extend(unknown_field("hunter2"));
        broken.value.truncate(broken.value.len() - 1);
        let mut foreign = resources::allow_all(Kind::Http, "foreign");
        foreign.type_url = "type.googleapis.com/hunter2".into();
        let named = [("good", &good), ("broken", &broken), ("foreign", &foreign)];
        let response = match protocol {
            Protocol::Sotw => DiscoveryResponse {
                version_info: "v1".into(),
                resources: named.iter().map(|(_, resource)| (*resource).clone()).collect(),
                type_url: ecds.clone(),
                nonce: "n1".into(),
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
            Protocol::Delta => DeltaDiscoveryResponse {
                resources: named
                    .iter()
                    .map(|(name, resource)| Resource {
                        name: (*name).into(),
                        version: "v1".into(),
                        resource: Some((*resource).clone()),
                        ..Resource::default()
                    })
                    .collect(),
                type_url: ecds.clone(),
                nonce: "n1".into(),
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec(),
        };
        script.send_bytes(&ecds, "v1", "n1", response).await.unwrap();
        let nack = script.event_of(&ecds).await;
        assert_eq!(nack.version, "", "nothing was accepted");
        let reason = nack.nack().expect("a NACK");
        assert!(reason.contains("resource \"broken\": "), "{reason}");
        if protocol == Protocol::Delta {
            assert!(reason.contains("resource \"foreign\": "), "{reason}");
        }
        assert!(!reason.contains("hunter2") && !reason.contains("file://"), "{reason}");
        let seen = envoy.response().await;
        assert_eq!(seen.resources, std::slice::from_ref(&good), "its neighbour is delivered");
        envoy.ack(&seen).await;

        // Whole again.
        script.send(&ecds, "v2", vec![good, resources::allow_all(Kind::Http, "broken")]).await.unwrap();
        let seen = envoy.response().await;
        assert!(seen.names().contains(&"broken".to_owned()));
        envoy.ack(&seen).await;
        assert!(script.event_of(&ecds).await.is_ack());
        script.ledger().settled().unwrap();
        let log = bench.agent.process().stderr();
        assert!(log.contains("the control plane sent a bad resource") && !log.contains("hunter2"), "{log}");
    }
}

#[tokio::test]
async fn a_rewritten_resource_keeps_what_nobody_knows_and_is_the_same_for_each_envoy_and_after_a_restart() {
    let ecds = resources::ecds_type();
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut filter = bench.filter("a");
        filter.value.extend(unknown_field("from the future"));
        let mut seen = Vec::new();
        for round in 0..3 {
            if round == 2 {
                assert_eq!(bench.agent.stop().await, Some(0));
                bench.agent.resume(&bench.world).await;
            }
            let mut connection = bench.connection().await;
            let mut envoy = Envoy::open(&mut connection, protocol).await;
            envoy.subscribe(&["a"]).await;
            let mut script = Script::from(bench.control_plane.accept().await);
            script.event_of(&ecds).await;
            script.send(&ecds, "v1", vec![filter.clone()]).await.unwrap();
            // Which is taken before the module is there.
            assert!(script.event_of(&ecds).await.is_ack());
            let response = envoy.response().await;
            envoy.ack(&response).await;
            // Whose answer was lost would get another name of the same file: what comes after it shows
            // that it was not.
            envoy.say("type.googleapis.com/envoy.config.cluster.v3.Cluster", &["*"], false, None).await;
            script.event().await;
            seen.push(response);
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0], seen[2], "after a restart");
        let rewritten = &seen[0].resources[0].value;
        assert!(rewritten.ends_with(&unknown_field("from the future")));
        assert!(!contains(rewritten, b"file://"));
        // The very resource, with the file's name where the URL was.
        let cache = bench.agent.cache.join("v1").display().to_string();
        let config = Wasm::local(Kind::Http, &bench.agent.cache.join(local_path(rewritten, &cache)));
        let mut expected = config.resource("a").value;
        expected.extend(unknown_field("from the future"));
        assert_eq!(*rewritten, expected);
    }
}

/// The path in an encoded resource that begins like this and ends in `.wasm`.
fn local_path(resource: &[u8], begin: &str) -> String {
    let start = resource.windows(begin.len()).position(|window| window == begin.as_bytes()).expect("a path");
    let path = &resource[start..];
    let end = path.windows(5).position(|window| window == b".wasm").expect("its end") + 5;
    String::from_utf8(path[..end].to_vec()).unwrap()
}

#[tokio::test]
async fn a_wrapper_in_state_of_the_world_is_kept_around_what_was_in_it() {
    let ecds = resources::ecds_type();
    let mut bench = Bench::new().await;
    let mut connection = bench.connection().await;
    let mut envoy = Envoy::open(&mut connection, Protocol::Sotw).await;
    envoy.subscribe(&["a"]).await;
    let mut script = Script::from(bench.control_plane.accept().await);
    script.event_of(&ecds).await;
    let wrapper = |resource: Any| Resource {
        name: "a".into(),
        version: "r1".into(),
        resource: Some(resource),
        ..Resource::default()
    };
    let wrapped = Any { type_url: Resource::type_url(), value: wrapper(bench.filter("a")).encode_to_vec() };
    script
        .send_bytes(
            &ecds,
            "v1",
            "n1",
            DiscoveryResponse {
                version_info: "v1".into(),
                resources: vec![wrapped],
                type_url: ecds.clone(),
                nonce: "n1".into(),
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
        )
        .await
        .unwrap();
    let bytes = envoy.stream.message().await;
    let response = DiscoveryResponse::decode(bytes).unwrap();
    let [resource] = &response.resources[..] else { panic!("{response:?}") };
    assert_eq!(resource.type_url, Resource::type_url());
    let inner = Resource::decode(&resource.value[..]).unwrap();
    let config = inner.resource.clone().unwrap();
    assert_eq!(inner, wrapper(config.clone()));
    assert!(contains(&config.value, b".wasm") && !contains(&config.value, b"file://"));
}

#[tokio::test]
async fn an_xdstp_name_is_taken_by_the_letter() {
    const NAME: &str = "xdstp://authority/envoy.config.core.v3.TypedExtensionConfig/a/b?env=x&zone=%2F1";
    let ecds = resources::ecds_type();
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = bench.connection().await;
        let mut envoy = Envoy::open(&mut connection, protocol).await;
        envoy.subscribe(&[NAME]).await;
        let mut script = Script::from(bench.control_plane.accept().await);
        assert_eq!(script.event_of(&ecds).await.names, [NAME.to_owned()].into());
        // The same parameters in another order are another name, which nobody has asked for.
        let other = NAME.replace("env=x&zone=%2F1", "zone=%2F1&env=x");
        let filters = vec![bench.filter(NAME), bench.filter(&other)];
        script.send(&ecds, "v1", filters).await.unwrap();
        let seen = envoy.response().await;
        assert_eq!(seen.names(), [NAME]);
        envoy.ack(&seen).await;
        assert!(script.event_of(&ecds).await.is_ack());
        let state = bench.agent.admin("/state").await.text();
        assert!(state.contains(NAME) && !state.contains(&other), "{state}");
    }
}
