//! Many extension configs at once: how long those take whose modules are in the store, and what a
//! message of another type notices of modules that do not come.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wasmferry::protobuf::wire::{self, Fields, Value};

use crate::envoy_side::Stream;
use crate::module;
use crate::relay::{self, CLUSTERS};
use crate::support::agent::Agent;
use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::control_plane::script::Script;
use crate::support::control_plane::{Accepted, ControlPlane, Protocol};
use crate::support::envoy::Xds;
use crate::support::eventually;
use crate::support::resources::{self, Kind, Wasm};
use crate::support::world::World;
use crate::table::{Report, Samples};

/// Resources in one response of the control plane, and bytes of the module of each.
const RESOURCES: usize = 200;
const MODULE: usize = 64 << 10;
const DELIVERED: Duration = Duration::from_millis(20);

/// Fetches that hang, and how often a small message goes there and back in a round.
const HANGING: usize = 50;
const TRIPS: u32 = 800;
const SLOWER: f64 = 1.2;

const ROUNDS: usize = 11;

pub async fn bench(report: &mut Report) {
    report.table(&format!("{RESOURCES} extension configs, modules in the store"), &["to Envoy, all of them"]);
    for protocol in Protocol::BOTH {
        let took = rewritten(protocol).await;
        report.row(&format!("{protocol:?}"), &[&took]);
        let limit = DELIVERED.as_secs_f64();
        report.goal(&format!("all of them by {protocol:?}"), &took, took.median(), limit, "20 ms");
    }
    beside_hanging(report).await;
}

/// From the response of the control plane with a change of every resource to the last one's arrival. Both
/// peers do as little as they can: what is measured is the agent.
async fn rewritten(protocol: Protocol) -> Samples {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let mut module = module::module(MODULE);
    for number in 0..RESOURCES {
        module::tag(&mut module, number as u64);
        server.put(&path(number), Reply::ok(module.clone()));
    }
    let upstream = Xds::Tcp(world.address());
    let mut listener = ControlPlane::listen(upstream.clone()).await;
    let agent = Agent::start(&world, &crate::agent(&upstream)).await;
    let mut envoy = Terse::subscribe(&Xds::Unix(agent.socket.clone()), protocol).await;
    let mut control_plane = Script::from(listener.accept().await);
    control_plane.event().await;

    let mut samples = Samples::default();
    // The first round brings the modules into the store.
    for round in 0..=ROUNDS {
        let label = format!("the-label-of-round-{round}");
        let resources = (0..RESOURCES).map(|number| {
            let mut filter = Wasm::remote(Kind::Http, server.url(&path(number)));
            filter.configuration.clone_from(&label);
            (name(number), filter.resource(&name(number)))
        });
        let response = response(protocol, &label, resources);
        let start = Instant::now();
        let sent = control_plane.send_bytes(&resources::ecds_type(), &label, &label, response).await;
        sent.expect("a stream that goes on");
        envoy.runs_all(&label).await;
        if round > 0 {
            samples.push(start.elapsed());
        }
        assert!(control_plane.event().await.is_ack());
    }
    assert_eq!(server.seen().len(), RESOURCES, "all but the first round's came from the store");
    samples
}

/// A response with these resources, encoded.
fn response(protocol: Protocol, version: &str, resources: impl Iterator<Item = (String, Any)>) -> Vec<u8> {
    let mut response = Vec::new();
    wire::put_string(&mut response, 1, version);
    for (name, any) in resources {
        match protocol {
            Protocol::Sotw => wire::put_len(&mut response, 2, &any.encode_to_vec()),
            Protocol::Delta => wire::put_message(&mut response, 2, |resource| {
                wire::put_string(resource, 1, version);
                wire::put_len(resource, 2, &any.encode_to_vec());
                wire::put_string(resource, 3, &name);
            }),
        }
    }
    wire::put_string(&mut response, 4, &resources::ecds_type());
    wire::put_string(&mut response, 5, version);
    response
}

/// An Envoy that accepts everything, and looks at no more than it must.
struct Terse {
    stream: Stream,
    protocol: Protocol,
    /// What each of its answers says besides the nonce.
    request: Vec<u8>,
}

impl Terse {
    async fn subscribe(agent: &Xds, protocol: Protocol) -> Terse {
        let stream = Stream::open(agent, protocol).await;
        let mut request = Vec::new();
        let mut first = Vec::new();
        let type_url = match protocol {
            Protocol::Sotw => {
                (0..RESOURCES).for_each(|number| wire::put_string(&mut request, 3, &name(number)));
                wire::put_message(&mut first, 2, |node| wire::put_string(node, 1, "bench"));
                4
            }
            Protocol::Delta => {
                wire::put_message(&mut first, 1, |node| wire::put_string(node, 1, "bench"));
                (0..RESOURCES).for_each(|number| wire::put_string(&mut first, 3, &name(number)));
                2
            }
        };
        wire::put_string(&mut request, type_url, &resources::ecds_type());
        first.extend_from_slice(&request);
        stream.send(first.into()).await;
        Terse { stream, protocol, request }
    }

    /// Accepts responses until all resources have this label.
    async fn runs_all(&mut self, label: &str) {
        let mut labelled = BTreeSet::new();
        while labelled.len() < RESOURCES {
            let response = self.stream.receive().await;
            let mut ack = self.request.clone();
            for field in Fields::of("response", &response) {
                let field = field.expect("a field");
                match (field.number, field.value) {
                    (2, Value::Len(resource)) if contains(resource, label) => {
                        labelled.insert(self.name_of(resource));
                    }
                    (1, Value::Len(version)) if self.protocol == Protocol::Sotw => {
                        wire::put_len(&mut ack, 1, version);
                    }
                    (5, Value::Len(nonce)) => {
                        let number = if self.protocol == Protocol::Sotw { 5 } else { 6 };
                        wire::put_len(&mut ack, number, nonce);
                    }
                    _ => {}
                }
            }
            self.stream.send(ack.into()).await;
        }
    }

    /// The name in a resource: that of the TypedExtensionConfig in the Any, or the Resource's own.
    fn name_of(&self, resource: &[u8]) -> Vec<u8> {
        match self.protocol {
            Protocol::Sotw => part(part(resource, 2), 1).to_vec(),
            Protocol::Delta => part(resource, 3).to_vec(),
        }
    }
}

fn part(message: &[u8], number: u32) -> &[u8] {
    let mut fields = Fields::of("resource", message).map(|field| field.expect("a field"));
    fields
        .find_map(|field| match field.value {
            Value::Len(bytes) if field.number == number => Some(bytes),
            _ => None,
        })
        .expect("the field")
}

fn contains(resource: &[u8], label: &str) -> bool {
    resource.windows(label.len()).any(|part| part == label.as_bytes())
}

fn name(number: usize) -> String {
    format!("filter-{number}")
}

fn path(number: usize) -> String {
    format!("/{number}.wasm")
}

/// Round trips of another type through an agent with hanging fetches and through one without, by turns.
async fn beside_hanging(report: &mut Report) {
    let title = format!("Relay beside {HANGING} fetches that hang");
    report.table(&title, &["beside them", "without", "ratio"]);
    let (mut beside, mut without) = (Side::start(HANGING).await, Side::start(0).await);
    let size = 1 << 10;
    let (mut slow, mut fast) = (Samples::default(), Samples::default());
    // One round more, to warm up.
    for round in 0..=ROUNDS {
        let mut sides = [(&mut beside, &mut slow), (&mut without, &mut fast)];
        if round % 2 == 1 {
            sides.reverse();
        }
        for (side, samples) in sides {
            let request = relay::request(size);
            let start = Instant::now();
            for _ in 0..TRIPS {
                side.envoy.send(request.clone()).await;
                side.envoy.receive().await;
            }
            if round > 0 {
                samples.push(start.elapsed() / TRIPS);
            }
        }
    }
    assert_eq!(beside.server.answering(), HANGING, "they still hang");
    let ratio = slow.ratio(&fast);
    report.row("1 KiB", &[slow.to_string(), fast.to_string(), format!("{ratio:.2}")]);
    let what = format!("beside {HANGING} fetches that hang");
    report.goal(&what, format!("{ratio:.2} times"), ratio, SLOWER, SLOWER);
}

/// One agent and a stream through it, on which so many modules do not come.
struct Side {
    envoy: Stream,
    server: BadServer,
    _parts: (Agent, ControlPlane, JoinSet<()>),
    // Last, for what runs in it is dropped before it.
    _world: World,
}

impl Side {
    async fn start(hanging: usize) -> Side {
        let world = World::new();
        let server = BadServer::start(&world).await;
        let never = Arc::new(Semaphore::new(0));
        for number in 0..hanging {
            let reply = Reply::ok(module::module(MODULE)).fault(Fault::Held(never.clone()));
            server.put(&path(number), reply);
        }
        let upstream = Xds::Tcp(world.address());
        let mut control_plane = ControlPlane::listen(upstream.clone()).await;
        let options = crate::agent(&upstream).with("fetch: {concurrency: 64}");
        let agent = Agent::start(&world, &options).await;
        let envoy = Stream::open(&Xds::Unix(agent.socket.clone()), Protocol::Sotw).await;
        let offered = (0..hanging)
            .map(|number| Wasm::remote(Kind::Http, server.url(&path(number))).resource(&name(number)));
        let offer = DiscoveryResponse {
            version_info: "1".into(),
            nonce: "1".into(),
            type_url: resources::ecds_type(),
            resources: offered.collect(),
            ..DiscoveryResponse::default()
        };
        let mut answering = JoinSet::new();
        answering.spawn(answer(control_plane.accept().await, offer));
        let subscription = DiscoveryRequest {
            node: Some(Node { id: "bench".into(), ..Node::default() }),
            type_url: resources::ecds_type(),
            resource_names: (0..hanging.max(1)).map(name).collect(),
            ..DiscoveryRequest::default()
        };
        envoy.send(subscription.encode_to_vec().into()).await;
        eventually("fetches that hang", async || (server.answering() == hanging).then_some(())).await;
        Side { envoy, server, _parts: (agent, control_plane, answering), _world: world }
    }
}

/// Answers every request for clusters, and the first one for extension configs with this offer.
async fn answer(mut stream: Accepted, offer: DiscoveryResponse) {
    let clusters = relay::response(1 << 10);
    let mut offer = Some(offer.encode_to_vec());
    while let Ok(Some(request)) = stream.request().await {
        let request = DiscoveryRequest::decode(request).expect("a DiscoveryRequest");
        let answer = match request.type_url == CLUSTERS {
            true => Some(clusters.clone()),
            false => offer.take().map(Into::into),
        };
        if let Some(answer) = answer
            && stream.respond(answer).await.is_err()
        {
            return;
        }
    }
}
