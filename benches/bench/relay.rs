//! A message's way from Envoy through a relay to the control plane, and that of the answer back.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Instant;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use tokio::task::JoinSet;

use crate::envoy_side::Stream;
use crate::support::agent::Agent;
use crate::support::control_plane::{Accepted, ControlPlane, Protocol};
use crate::support::envoy::Xds;
use crate::support::eventually;
use crate::support::process::{Process, Program};
use crate::support::world::{User, World};
use crate::table::{Report, Samples};

/// Bytes of a message, and how often it goes there and back in a round.
const SIZES: [(usize, u32); 4] = [(100, 800), (1 << 10, 800), (64 << 10, 120), (1 << 20, 16)];
const ROUNDS: usize = 11;
const GOAL: f64 = 1.2;

pub async fn bench(report: &mut Report) {
    for unix in [true, false] {
        let transport = if unix { "unix sockets" } else { "TCP" };
        report.table(&format!("Relay round trip, {transport}"), &["wasmferry", "bare tonic relay", "ratio"]);
        let world = World::new();
        let mut relays = Relays::start(&world, unix).await;
        for (size, trips) in SIZES {
            let request = request(size);
            let (mut ours, mut bare) = (Samples::default(), Samples::default());
            // One round more, to warm up.
            for round in 0..=ROUNDS {
                let mut sides = [(&mut relays.ours, &mut ours), (&mut relays.bare, &mut bare)];
                if round % 2 == 1 {
                    sides.reverse();
                }
                for (stream, samples) in sides {
                    let start = Instant::now();
                    for _ in 0..trips {
                        stream.send(request.clone()).await;
                        stream.receive().await;
                    }
                    if round > 0 {
                        samples.push(start.elapsed() / trips);
                    }
                }
            }
            let ratio = ours.ratio(&bare);
            let name = match size {
                1_048_576.. => format!("{} MiB", size >> 20),
                1024.. => format!("{} KiB", size >> 10),
                _ => format!("{size} B"),
            };
            report.row(&name, &[ours.to_string(), bare.to_string(), format!("{ratio:.2}")]);
            report.goal(&format!("{name} over {transport}"), format!("{ratio:.2} times"), ratio, GOAL, GOAL);
        }
    }
}

/// The two relays side by side in front of one control plane, each with a stream through it.
struct Relays {
    ours: Stream,
    bare: Stream,
    _parts: (Agent, Process, ControlPlane, JoinSet<()>),
}

impl Relays {
    async fn start(world: &World, unix: bool) -> Relays {
        let folder = world.folder("xds", User::Tests, 0o777);
        let place = |name: &str| match unix {
            true => Xds::Unix(folder.join(name)),
            false => Xds::Tcp(world.address()),
        };
        let upstream = place("control-plane");
        let mut control_plane = ControlPlane::listen(upstream.clone()).await;
        let mut server = JoinSet::new();
        let agent = Agent::start(world, &crate::agent(&upstream)).await;
        let [by_unix, by_tcp] = agent.xds();
        let ours = Stream::open(if unix { &by_unix } else { &by_tcp }, Protocol::Sotw).await;
        server.spawn(answer(control_plane.accept().await));

        let listen = place("bare");
        let text = |xds: &Xds| match xds {
            Xds::Unix(path) => format!("unix:{}", path.display()),
            Xds::Tcp(address) => address.to_string(),
        };
        let args = ["bare-relay".to_owned(), text(&listen), text(&upstream)].map(OsString::from).into();
        let path = std::env::current_exe().expect("the bench's own file");
        let program = Program { name: "bare-relay".into(), path, user: User::Tests, args, env: Vec::new() };
        let process = program.start(world);
        eventually("the bare relay", async || match &listen {
            Xds::Unix(path) => tokio::net::UnixStream::connect(path).await.map(drop).ok(),
            Xds::Tcp(address) => tokio::net::TcpStream::connect(address).await.map(drop).ok(),
        })
        .await;
        let bare = Stream::open(&listen, Protocol::Sotw).await;
        server.spawn(answer(control_plane.accept().await));
        Relays { ours, bare, _parts: (agent, process, control_plane, server) }
    }
}

/// Answers each request with as many bytes.
async fn answer(mut stream: Accepted) {
    let answers: HashMap<usize, Bytes> = SIZES.map(|(size, _)| (request(size).len(), response(size))).into();
    while let Ok(Some(request)) = stream.request().await {
        let answer = answers.get(&request.len()).expect("a request of ours");
        if stream.respond(answer.clone()).await.is_err() {
            return;
        }
    }
}

pub const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A subscription to clusters, with as many names as have room.
pub fn request(size: usize) -> Bytes {
    let name = "outbound|8080||service.namespace.svc.cluster.local";
    let mut request = DiscoveryRequest {
        type_url: CLUSTERS.into(),
        response_nonce: "n".repeat(40),
        ..DiscoveryRequest::default()
    };
    let room = size.saturating_sub(request.encoded_len()) / (name.len() + 2);
    request.resource_names = vec![name.into(); room];
    request.encode_to_vec().into()
}

/// Clusters of some 1 KiB each, as many as have room.
pub fn response(size: usize) -> Bytes {
    let mut response = DiscoveryResponse {
        type_url: CLUSTERS.into(),
        nonce: "n".repeat(40),
        ..DiscoveryResponse::default()
    };
    let cluster = Any { type_url: CLUSTERS.into(), value: vec![7; 800] };
    let room = size.saturating_sub(response.encoded_len()) / (cluster.encoded_len() + 3);
    response.resources = vec![cluster; room];
    response.encode_to_vec().into()
}
