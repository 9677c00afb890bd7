//! The relay between a scripted Envoy and a scripted control plane: what passes it, and what does not.

use http::{HeaderMap, Method, Request, Response, StatusCode};
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::support::ads::{Connection, Ended, prefix};
use crate::support::agent::{Agent, Options};
use crate::support::control_plane::answer::{Answer, Answering};
use crate::support::control_plane::{Accepted, ControlPlane, Protocol, Service};
use crate::support::envoy::Xds;
use crate::support::sockets::{connected_at, connected_to};
use crate::support::world::World;
use crate::support::{client, eventually, soon};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// The number of `type_url` in a request.
fn request_type_field(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Sotw => 4,
        Protocol::Delta => 2,
    }
}

/// The number of `node` in a request.
fn node_field(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Sotw => 2,
        Protocol::Delta => 1,
    }
}

/// The number of `type_url` in a response of either protocol.
const RESPONSE_TYPE_FIELD: u32 = 4;

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A message of nothing but its type.
fn plain(number: u32, type_url: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, number, type_url.as_bytes());
    out
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    /// A message of a type that is not intercepted, as nobody would write it: fields in any order, known
    /// and unknown, repeated, of wrong wire types, in groups, with lengths in more bytes than needed.
    fn message(&mut self, type_field: u32, largest: usize) -> Vec<u8> {
        let mut fields: Vec<Vec<u8>> = vec![plain(type_field, CLUSTER)];
        for _ in 0..self.below(8) {
            let mut field = Vec::new();
            let number = loop {
                let number = 1 + self.below(40) as u32;
                if number != type_field {
                    break number;
                }
            };
            match self.below(6) {
                0 => {
                    encode_key(number, WireType::Varint, &mut field);
                    encode_varint(self.0, &mut field);
                }
                1 => {
                    encode_key(number, WireType::SixtyFourBit, &mut field);
                    field.extend(self.bytes(8));
                }
                2 => {
                    encode_key(number, WireType::ThirtyTwoBit, &mut field);
                    field.extend(self.bytes(4));
                }
                3 => {
                    encode_key(number, WireType::StartGroup, &mut field);
                    encode_key(1, WireType::Varint, &mut field);
                    encode_varint(self.0, &mut field);
                    encode_key(number, WireType::EndGroup, &mut field);
                }
                4 => {
                    let length = self.below(128);
                    encode_key(number, WireType::LengthDelimited, &mut field);
                    field.extend([length as u8 | 0x80, 0x80, 0x00]);
                    field.extend(self.bytes(length));
                }
                _ => {
                    let length = self.below(largest);
                    put_bytes(&mut field, number, &self.bytes(length));
                }
            }
            fields.insert(self.below(fields.len() + 1), field);
        }
        fields.concat()
    }
}

/// An agent between a control plane and whoever connects.
struct Bench {
    control_plane: ControlPlane,
    agent: Agent,
    // Last, for what runs in it is dropped before it.
    _world: World,
}

impl Bench {
    async fn new() -> Bench {
        let world = World::new();
        let control_plane = ControlPlane::tcp(world.address()).await;
        let agent = Agent::start(&world, &Options::upstream(control_plane.address())).await;
        Bench { control_plane, agent, _world: world }
    }

    fn unix(&self) -> Xds {
        Xds::Unix(self.agent.socket.clone())
    }

    fn tcp(&self) -> Xds {
        Xds::Tcp(self.agent.tcp)
    }
}

async fn request(stream: &mut Accepted) -> Vec<u8> {
    let request = soon("a request to the control plane", stream.request()).await;
    request.expect("a stream that works").expect("a stream that goes on").to_vec()
}

#[tokio::test]
async fn what_is_not_intercepted_passes_as_the_bytes_that_it_is_and_in_order() {
    let mut bench = Bench::new().await;
    for (protocol, address) in [(Protocol::Sotw, bench.unix()), (Protocol::Delta, bench.tcp())] {
        let mut random = Random(0x5eed + protocol as u64);
        let mut connection = Connection::open(&address).await;
        let mut envoy = connection.stream(protocol).await;
        let mut control_plane = bench.control_plane.accept().await;
        assert_eq!(control_plane.protocol, protocol);
        let type_field = request_type_field(protocol);
        // A few are larger than any window or buffer on their way.
        let sizes = [50, 5_000, 50, 500_000, 50, 3_000_000];
        // The first names the node; where a later one does not, nobody adds it.
        let mut first = plain(type_field, CLUSTER);
        put_bytes(&mut first, node_field(protocol), &[0x0a, 1, b'n']);
        let messages = |random: &mut Random, field| -> Vec<Vec<u8>> {
            (0..120).map(|n| random.message(field, sizes[n % sizes.len()])).collect()
        };
        let sent = [vec![first], messages(&mut random, type_field)].concat();
        for message in &sent {
            envoy.send(message).await;
        }
        for message in &sent {
            assert!(request(&mut control_plane).await == *message, "{protocol:?}, up");
        }
        let mut sent = messages(&mut random, RESPONSE_TYPE_FIELD);
        // A heartbeat: a resource of a name, and nothing in it; wrapped, in state of the world.
        let mut resource = Vec::new();
        put_bytes(&mut resource, 3, b"held");
        let mut wrapped = plain(1, "type.googleapis.com/envoy.service.discovery.v3.Resource");
        put_bytes(&mut wrapped, 2, &resource);
        let mut heartbeat = plain(RESPONSE_TYPE_FIELD, CLUSTER);
        put_bytes(&mut heartbeat, 2, if protocol == Protocol::Sotw { &wrapped } else { &resource });
        sent.push(heartbeat);
        sent.push(Vec::new());
        for message in &sent {
            control_plane.respond(message.clone()).await.unwrap();
        }
        for message in &sent {
            assert!(envoy.message().await == *message, "{protocol:?}, down");
        }
    }
}

#[tokio::test]
async fn metadata_goes_up_without_what_belongs_to_the_hop() {
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = Connection::open(&bench.unix()).await;
        let envoy = connection.stream_with(
            protocol,
            &[
                ("authorization", "Bearer of-envoy"),
                ("x-custom", "one"),
                ("x-custom", "two"),
                ("trace-bin", "AAEC/w"),
                // This would make the control plane refuse what is no gzip.
                ("grpc-encoding", "gzip"),
                ("grpc-accept-encoding", "gzip,br"),
                ("accept-encoding", "gzip"),
                ("user-agent", "a scripted Envoy"),
            ],
        );
        let envoy = envoy.await;
        assert_eq!(envoy.headers.get("content-type").unwrap(), "application/grpc");
        let metadata = bench.control_plane.accept().await.metadata.into_headers();
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer of-envoy");
        assert_eq!(metadata.get_all("x-custom").iter().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(metadata.get("trace-bin").unwrap(), "AAEC/w");
        let mut rest: Vec<&str> = metadata.keys().map(|name| name.as_str()).collect();
        rest.sort_unstable();
        let expected = ["authorization", "content-type", "te", "trace-bin", "user-agent", "x-custom"];
        assert_eq!(rest, expected);
        assert!(metadata.get("user-agent").unwrap().to_str().unwrap().starts_with("tonic/"));
    }
}

#[tokio::test]
async fn status_details_and_trailers_come_back() {
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = Connection::open(&bench.unix()).await;
        let mut envoy = connection.stream(protocol).await;
        let control_plane = bench.control_plane.accept().await;
        let before = plain(RESPONSE_TYPE_FIELD, CLUSTER);
        control_plane.respond(before.clone()).await.unwrap();
        let mut trailers = MetadataMap::new();
        trailers.insert("x-reason", "maintenance".parse().unwrap());
        trailers.insert_bin("x-raw-bin", MetadataValue::from_bytes(&[0, 255]));
        let details = vec![8, 7, 0, 255].into();
        let message = "naïve, 100 %";
        control_plane
            .end(Status::with_details_and_metadata(Code::PermissionDenied, message, details, trailers))
            .await;
        assert_eq!(envoy.message().await, before, "what came first arrives first");
        let status = envoy.end().await.status();
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, message));
        assert_eq!(status.details(), [8, 7, 0, 255]);
        assert_eq!(status.metadata().get("x-reason").unwrap(), "maintenance");
        assert_eq!(status.metadata().get_bin("x-raw-bin").unwrap().to_bytes().unwrap()[..], [0, 255]);
    }
}

/// What an Envoy is told where the control plane gives this answer.
async fn status_of(answer: Answer, protocol: Protocol) -> Status {
    let world = World::new();
    let server = Answering::listen(world.address(), answer).await;
    let agent = Agent::start(&world, &Options::upstream(&server.address)).await;
    let mut connection = Connection::open(&Xds::Tcp(agent.tcp)).await;
    connection.stream(protocol).await.end().await.status()
}

#[tokio::test]
async fn an_answer_of_headers_alone_comes_back_as_the_status_it_is() {
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", "16")
        .header("grpc-message", "who are you?")
        .header("x-hint", "a token would help");
    let answer = Answer { head: head.body(()).unwrap(), ends: true, ..Answer::grpc("") };
    for protocol in Protocol::BOTH {
        let status = status_of(answer.clone(), protocol).await;
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "who are you?"));
        assert_eq!(status.metadata().get("x-hint").unwrap(), "a token would help");
    }
}

#[tokio::test]
async fn what_is_no_answer_of_a_control_plane_ends_the_stream_with_a_reason() {
    let http = Response::builder().status(503).header("content-type", "text/html");
    let http = Answer { head: http.body(()).unwrap(), body: "<html>".into(), ends: true };
    let mut compressed = prefix(3).to_vec();
    compressed[0] = 1;
    compressed.extend([1, 2, 3]);
    let mut garbage = prefix(4).to_vec();
    garbage.extend([0x0a, 0xff, 0xff, 0xff]);
    let mut cut = prefix(4).to_vec();
    cut.extend([0x0a]);
    for (answer, code, reason) in [
        (http, Code::Unavailable, "HTTP status 503"),
        (Answer::grpc(compressed), Code::Internal, "compressed"),
        (Answer::grpc(garbage), Code::Internal, "the control plane sent a malformed message"),
        (Answer::grpc(prefix((256 << 20) + 1)), Code::ResourceExhausted, "268435457 bytes"),
        (Answer { ends: true, ..Answer::grpc(cut) }, Code::Unavailable, "in the middle of a message"),
        (Answer { ends: true, ..Answer::grpc("") }, Code::Unavailable, "ended the stream"),
    ] {
        let status = status_of(answer, Protocol::Delta).await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(reason), "{status:?}");
    }
}

#[tokio::test]
async fn a_control_plane_that_is_not_there_is_unavailable_with_its_address_and_the_cause() {
    let world = World::new();
    let nobody = world.address();
    let agent = Agent::start(&world, &Options::upstream(&Xds::Tcp(nobody))).await;
    for protocol in Protocol::BOTH {
        let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
        let (code, message) = connection.stream(protocol).await.status().await;
        assert_eq!(code, Code::Unavailable, "{message}");
        assert!(
            message.starts_with(&format!("cannot reach the control plane at http://{nobody}: ")),
            "{message}"
        );
        assert!(message.to_lowercase().contains("refused"), "{message}");
    }
}

#[tokio::test]
async fn what_is_no_aggregated_discovery_is_refused_and_the_connection_goes_on() {
    let mut bench = Bench::new().await;
    let mut connection = Connection::open(&bench.tcp()).await;
    let call = |path: &str, content_type: &str| {
        let uri = format!("http://agent{path}");
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header("content-type", content_type)
            .body(())
            .unwrap()
    };
    for path in [
        "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
        "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/FetchExtensionConfigs",
        "/",
    ] {
        let (_sender, answer) = connection.request(call(path, "application/grpc")).await.unwrap();
        let status = Status::from_header_map(answer.headers()).expect("an answer of headers alone");
        assert_eq!((answer.status(), status.code()), (StatusCode::OK, Code::Unimplemented));
        assert!(status.message().contains("aggregated"), "{status:?}");
    }
    for content_type in ["application/json", "application/grpc-web+proto"] {
        let request = call(Service::Aggregated.path(Protocol::Delta), content_type);
        let (_sender, answer) = connection.request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    client::get(bench.agent.tcp, "/").await.expect_err("HTTP/1 where HTTP/2 is spoken");
    let _envoy = connection.stream(Protocol::Delta).await;
    bench.control_plane.accept().await;
    assert!(!bench.control_plane.has_stream(), "of all that only one stream goes up");
}

#[tokio::test]
async fn garbage_from_an_envoy_ends_its_stream_and_no_other() {
    let mut bench = Bench::new().await;
    for protocol in Protocol::BOTH {
        let mut connection = Connection::open(&bench.unix()).await;
        let mut good = connection.stream(protocol).await;
        let mut good_upstream = bench.control_plane.accept().await;
        let mut garbage = prefix(4).to_vec();
        garbage.extend([0x0a, 0xff, 0xff, 0xff]);
        let mut group = prefix(1).to_vec();
        group.extend([0x0c]);
        for (bytes, code, reason) in [
            (garbage, Code::InvalidArgument, "Envoy sent a malformed message"),
            (group, Code::InvalidArgument, "Envoy sent a malformed message"),
            (vec![1, 0, 0, 0, 0], Code::InvalidArgument, "compressed"),
            (prefix((16 << 20) + 1).to_vec(), Code::ResourceExhausted, "16777217 bytes"),
            (vec![0, 0xff, 0xff, 0xff, 0xff], Code::ResourceExhausted, "4294967295 bytes"),
        ] {
            let mut bad = connection.stream(protocol).await;
            let mut upstream = bench.control_plane.accept().await;
            bad.send_raw(bytes).await;
            let (got, message) = bad.status().await;
            assert_eq!(got, code, "{message}");
            assert!(message.contains(reason), "{message}");
            let end = soon("the end upstream", upstream.request()).await;
            assert!(!matches!(end, Ok(Some(_))), "nothing of it goes up: {end:?}");
        }
        let message = plain(request_type_field(protocol), CLUSTER);
        good.send(&message).await;
        assert_eq!(request(&mut good_upstream).await, message);
    }
}

#[tokio::test]
async fn sixty_envoys_have_a_stream_upstream_each_and_one_that_goes_takes_only_its_own() {
    let mut bench = Bench::new().await;
    let mut envoys = Vec::new();
    for number in 0..60_u32 {
        let protocol = Protocol::BOTH[number as usize % 2];
        let address = if number % 3 == 0 { bench.unix() } else { bench.tcp() };
        let mut connection = Connection::open(&address).await;
        let stream = connection.stream_with(protocol, &[("x-number", &number.to_string())]).await;
        let upstream = bench.control_plane.accept().await;
        assert_eq!(upstream.metadata.get("x-number").unwrap().to_str().unwrap(), number.to_string());
        assert_eq!(upstream.protocol, protocol);
        envoys.push((connection, stream, upstream));
    }
    // One vanishes with its connection, one resets its stream, one ends it in order, one loses its
    // control plane.
    let (connection, stream, mut upstream) = envoys.pop().unwrap();
    drop((connection, stream));
    let end = soon("the end upstream", upstream.request()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    let (_resetting, mut stream, mut upstream) = envoys.pop().unwrap();
    stream.reset().await;
    let end = soon("the end upstream", upstream.request()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    let (_ending, mut stream, mut upstream) = envoys.pop().unwrap();
    stream.finish();
    assert!(soon("the end upstream", upstream.request()).await.unwrap().is_none());
    let last = plain(RESPONSE_TYPE_FIELD, CLUSTER);
    upstream.respond(last.clone()).await.unwrap();
    upstream.end(Status::new(Code::Ok, "")).await;
    assert_eq!(stream.message().await, last, "what the control plane still has to say");
    assert_eq!(stream.status().await.0, Code::Ok);
    let (_losing, mut stream, upstream) = envoys.pop().unwrap();
    drop(upstream);
    assert!(matches!(stream.end().await, Ended::Trailers(trailers) if trailers != HeaderMap::new()));

    let Xds::Tcp(control_plane) = *bench.control_plane.address() else { unreachable!() };
    eventually("56 connections", async || (connected_to(control_plane) == envoys.len()).then_some(())).await;
    for (_, stream, upstream) in &mut envoys {
        let message = plain(request_type_field(upstream.protocol), CLUSTER);
        stream.send(&message).await;
        assert_eq!(request(upstream).await, message);
        upstream.respond(plain(RESPONSE_TYPE_FIELD, CLUSTER)).await.unwrap();
        assert_eq!(stream.message().await, plain(RESPONSE_TYPE_FIELD, CLUSTER));
    }
    drop((envoys, _resetting, _ending, _losing));
    eventually("no connection that is left over", async || {
        (connected_to(control_plane) + connected_at(bench.agent.tcp) == 0).then_some(())
    })
    .await;
}
