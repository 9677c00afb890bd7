//! Peers that do not read, or do not go on: what they cost, how they end, and that nobody else notices.

use bytes::Bytes;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use wasmferry::xds::frame::STALL_LIMIT;

use crate::support::ads::{Connection, Sender, Stream, Windows, prefix};
use crate::support::agent::{Agent, Options};
use crate::support::control_plane::answer::{Answer, Answering};
use crate::support::control_plane::{Accepted, ControlPlane, Protocol};
use crate::support::envoy::Xds;
use crate::support::sockets::connected_to;
use crate::support::timed::Timed;
use crate::support::world::World;
use crate::support::{eventually, soon};

const MIB: usize = 1 << 20;

/// How many peers stall at once.
const MANY: usize = 50;

/// A Delta message in either direction that is not intercepted, of about this many bytes.
fn message(length: usize) -> Bytes {
    // An unknown field; a message without a type is none that is intercepted.
    let mut message =
        vec![0xfa, 0x07, 0x80 | length as u8, 0x80 | (length >> 7) as u8, 0x80 | (length >> 14) as u8];
    message.push((length >> 21) as u8);
    message.resize(message.len() + length, 7);
    message.into()
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Vec<u8> {
    [&prefix(message.len() as u32), message].concat()
}

/// A sample of the agent's metrics.
async fn metric(agent: &Agent, sample: &str) -> u64 {
    let text = agent.health("/metrics").await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{sample} {value}")))
}

async fn in_flight(agent: &Agent) -> u64 {
    metric(agent, "wasmferry_in_flight_bytes").await
}

/// Waits until nothing is in flight.
async fn given_back(agent: &Agent) {
    eventually("all bytes given back", async || (in_flight(agent).await == 0).then_some(())).await;
}

/// One message each way.
async fn is_served(agent: &Agent, control_plane: &mut ControlPlane) {
    let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
    let mut envoy = connection.stream(Protocol::Delta).await;
    exchange(&mut envoy, &mut control_plane.accept().await).await;
}

async fn exchange(envoy: &mut Stream, upstream: &mut Accepted) {
    envoy.send(message(100)).await;
    assert_eq!(received(upstream).await, message(100));
    upstream.respond(message(200)).await.unwrap();
    assert_eq!(envoy.message().await, message(200));
}

async fn received(upstream: &mut Accepted) -> Bytes {
    let request = soon("a request to the control plane", upstream.request()).await;
    request.expect("a stream that works").expect("a stream that goes on")
}

/// Waits until the stream upstream is over, whatever came before.
async fn cancelled(upstream: &mut Accepted) {
    let end = async { while let Ok(Some(_)) = upstream.request().await {} };
    soon("the end upstream", end).await;
}

#[tokio::test]
async fn fifty_envoys_that_declare_the_maximum_and_stall_cost_next_to_nothing() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let mut agent = Agent::start(&world, &Options::upstream(control_plane.address())).await;
    is_served(&agent, &mut control_plane).await;
    let before = agent.process().memory("VmRSS");
    let mut stalled = Vec::new();
    for _ in 0..MANY {
        let mut connection = Connection::open(&Xds::Tcp(agent.tcp)).await;
        let mut envoy = connection.stream(Protocol::Delta).await;
        let mut upstream = control_plane.accept().await;
        // In one piece, so that who has got the one has got the other.
        envoy.send_raw([&framed(&message(10))[..], &prefix(16 << 20), &[7; 1000]].concat()).await;
        assert_eq!(received(&mut upstream).await, message(10));
        stalled.push((connection, envoy, upstream));
    }
    is_served(&agent, &mut control_plane).await;
    let grown = agent.process().memory("VmHWM").saturating_sub(before);
    assert!(grown < 32 * MIB as u64, "{grown} bytes for {MANY} Envoys");
    // Those that stall may still be spoken to.
    for (_, envoy, upstream) in &mut stalled {
        upstream.respond(message(5)).await.unwrap();
        assert_eq!(envoy.message().await, message(5));
    }
}

#[tokio::test]
async fn fifty_control_planes_that_declare_the_maximum_and_stall_cost_next_to_nothing() {
    let world = World::new();
    let body = [&framed(&message(10))[..], &prefix(256 << 20), &[7; 1000]].concat();
    let server = Answering::listen(world.address(), Answer::grpc(body)).await;
    let mut agent = Agent::start(&world, &Options::upstream(&server.address)).await;
    let mut first = Connection::open(&Xds::Tcp(agent.tcp)).await;
    assert_eq!(first.stream(Protocol::Sotw).await.message().await, message(10));
    let before = agent.process().memory("VmRSS");
    let mut stalled = Vec::new();
    for _ in 0..=MANY {
        let mut connection = Connection::open(&Xds::Tcp(agent.tcp)).await;
        let mut envoy = connection.stream(Protocol::Sotw).await;
        assert_eq!(envoy.message().await, message(10));
        stalled.push((connection, envoy));
    }
    let grown = agent.process().memory("VmHWM").saturating_sub(before);
    assert!(grown < 32 * MIB as u64, "{grown} bytes for {MANY} streams upstream");
    assert_eq!(in_flight(&agent).await, 0);
}

#[tokio::test]
async fn fifty_envoys_that_send_all_but_the_end_cost_no_more_than_their_share_of_the_budget() {
    const BUDGET: u64 = 256 << 20;
    /// What of it is for what Envoys send.
    const SHARE: u64 = BUDGET / 4;
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address()).with("relay: {in_flight_bytes: 256MiB}");
    let mut agent = Agent::start(&world, &options).await;
    is_served(&agent, &mut control_plane).await;
    let before = agent.process().memory("VmRSS");
    let piece = Bytes::from(vec![7; 159 << 10]);
    let mut stalled = Vec::new();
    let mut sending = JoinSet::new();
    for _ in 0..MANY {
        let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
        let mut envoy = connection.stream(Protocol::Delta).await;
        let upstream = control_plane.accept().await;
        let sender = envoy.take_sender();
        let piece = piece.clone();
        sending.spawn(async move {
            sender.bytes(prefix(16 << 20)).await;
            for _ in 0..102 {
                sender.bytes(piece.clone()).await;
            }
            // Keeps the stream open.
            sender
        });
        stalled.push((connection, envoy, upstream));
    }
    eventually("a share that is spent", async || (in_flight(&agent).await > SHARE - (1 << 20)).then_some(()))
        .await;
    is_served(&agent, &mut control_plane).await;
    let grown = agent.process().memory("VmHWM").saturating_sub(before);
    // HTTP/2 lets a mebibyte a connection come in before it is read.
    let most = SHARE + (MANY + 32) as u64 * MIB as u64;
    assert!(grown < most, "{grown} bytes, of the budget {SHARE} are for Envoys");
    drop((stalled, sending));
    given_back(&agent).await;
    is_served(&agent, &mut control_plane).await;
}

#[tokio::test]
async fn an_envoy_that_does_not_read_costs_its_queue_and_then_its_stream_ends() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address()).with("relay: {queue_bytes: 4MiB}");
    let mut agent = Agent::start(&world, &options).await;
    // Room for its neighbour on the connection.
    let windows = Windows { stream: 65_535, connection: 1 << 20 };
    let mut connection = Connection::with(&Xds::Unix(agent.socket.clone()), windows).await;
    let mut neighbour = connection.stream(Protocol::Delta).await;
    let mut neighbours = control_plane.accept().await;
    let mut envoy = connection.stream(Protocol::Delta).await;
    let mut upstream = control_plane.accept().await;
    let mut sent = 0;
    let all = async {
        while upstream.respond(message(100_000)).await.is_ok() {
            sent += 100_000;
        }
    };
    soon("the end of the stream", all).await;
    // The queue, and what the windows and buffers on both sides take.
    assert!((4 * MIB..8 * MIB).contains(&sent), "{sent} bytes");
    cancelled(&mut upstream).await;
    drop(upstream);
    assert_eq!(metric(&agent, "wasmferry_stream_ends_total{result=\"envoy_stalled\"}").await, 1);
    given_back(&agent).await;
    exchange(&mut neighbour, &mut neighbours).await;
    // Who reads again is told.
    let (code, reason) = envoy.status().await;
    assert_eq!(code, Code::ResourceExhausted);
    assert!(reason.starts_with("Envoy is too slow: the peer does not read: 4"), "{reason}");
    assert!(agent.process().stderr().contains(&reason), "in the log too");
    drop((connection, neighbour, neighbours, envoy));
    none_left(control_plane.address()).await;
}

/// Waits until the agent holds no connection to this control plane.
async fn none_left(control_plane: &Xds) {
    let Xds::Tcp(address) = control_plane else { panic!("a TCP address") };
    eventually("no connection that is left over", async || (connected_to(*address) == 0).then_some(())).await;
}

/// Sends messages until the stream takes no more, or so many; how many it took.
async fn send_all(sender: &Sender, count: usize, message: &[u8]) -> usize {
    let bytes = Bytes::from(framed(message));
    for sent in 0..count {
        if !sender.bytes(bytes.clone()).await {
            return sent;
        }
    }
    count
}

#[tokio::test]
async fn a_control_plane_that_does_not_read_is_left_with_its_connection() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address()).with("relay: {queue_bytes: 4MiB}");
    let agent = Agent::start(&world, &options).await;
    let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
    let mut envoy = connection.stream(Protocol::Delta).await;
    let upstream = control_plane.accept().await;
    let sender = envoy.take_sender();
    let sending = tokio::spawn(async move { send_all(&sender, 1000, &message(100_000)).await });
    let (code, reason) = envoy.status().await;
    assert_eq!(code, Code::ResourceExhausted);
    assert!(reason.starts_with("the control plane is too slow: the peer does not read: 4"), "{reason}");
    assert!(soon("the end of the sending", sending).await.unwrap() < 100);
    assert_eq!(metric(&agent, "wasmferry_stream_ends_total{result=\"control_plane_stalled\"}").await, 1);
    given_back(&agent).await;
    // It still does not read, and would not see the end of a stream.
    none_left(control_plane.address()).await;
    drop(upstream);
}

#[tokio::test]
async fn a_control_plane_that_is_frozen_keeps_no_connection() {
    // SETTINGS and WINDOW_UPDATE: it takes a gigabyte. Then it reads nothing, and its kernel's buffers
    // are full long before the windows are.
    const HELLO: [u8; 28] = [
        0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x40, 0, 0, 0, //
        0, 0, 4, 8, 0, 0, 0, 0, 0, 0x3f, 0xff, 0, 0,
    ];
    let world = World::new();
    let address = world.address();
    let frozen = tokio::net::TcpListener::bind(address).await.unwrap();
    let options = Options::upstream(&Xds::Tcp(address)).with("relay: {queue_bytes: 4MiB}");
    let agent = Agent::start(&world, &options).await;
    let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
    let mut envoy = connection.stream(Protocol::Delta).await;
    let (mut upstream, _) = soon("a connection", frozen.accept()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut upstream, &HELLO).await.unwrap();
    let sender = envoy.take_sender();
    let sending = tokio::spawn(async move { send_all(&sender, 1000, &message(100_000)).await });
    assert_eq!(envoy.status().await.0, Code::ResourceExhausted);
    assert!(soon("the end of the sending", sending).await.unwrap() < 1000);
    given_back(&agent).await;
    none_left(&Xds::Tcp(address)).await;
    drop(upstream);
}

#[tokio::test]
async fn two_peers_that_send_before_they_read_do_not_block_each_other() {
    const COUNT: usize = 120;
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Agent::start(&world, &Options::upstream(control_plane.address())).await;
    for protocol in Protocol::BOTH {
        let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
        let mut envoy = connection.stream(protocol).await;
        let mut upstream = control_plane.accept().await;
        // More than all windows and buffers on the way hold.
        let bytes = message(200_000);
        let sender = envoy.take_sender();
        let up = send_all(&sender, COUNT, &bytes);
        let down = async {
            for _ in 0..COUNT {
                upstream.respond(bytes.clone()).await.unwrap();
            }
        };
        let (sent, ()) = soon("both to have sent all", async { tokio::join!(up, down) }).await;
        assert_eq!(sent, COUNT);
        for _ in 0..COUNT {
            assert!(received(&mut upstream).await == bytes);
            assert!(envoy.message().await == bytes);
        }
    }
    given_back(&agent).await;
}

#[tokio::test]
async fn what_stalls_in_the_middle_of_a_message_ends_with_a_reason_after_the_limit() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Timed::start(&world, control_plane.address(), "").await;
    let mut connection = Connection::open(&agent.xds).await;
    let mut idle = connection.stream(Protocol::Sotw).await;
    let mut idle_upstream = control_plane.accept().await;
    let mut stalled = Vec::new();
    for _ in 0..MANY {
        let mut envoy = connection.stream(Protocol::Delta).await;
        let upstream = control_plane.accept().await;
        envoy.send_raw([&prefix(16 << 20)[..], &[7; 100]].concat()).await;
        stalled.push((envoy, upstream));
    }
    for (envoy, upstream) in &mut stalled {
        let (code, reason) = agent.passes("the end of the stream", envoy.status()).await;
        assert_eq!(code, Code::InvalidArgument);
        assert!(reason.contains("a message of 16777216 bytes made no progress for 30 s"), "{reason}");
        cancelled(upstream).await;
    }
    // One that says nothing at all has no message to be late with.
    exchange(&mut idle, &mut idle_upstream).await;
}

#[tokio::test]
async fn what_a_stream_leaves_to_an_envoy_that_does_not_read_is_dropped_after_the_limit() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Timed::start(&world, control_plane.address(), "").await;
    let mut connection = Connection::open(&agent.xds).await;
    let envoy = connection.stream(Protocol::Delta).await;
    let upstream = control_plane.accept().await;
    for _ in 0..10 {
        upstream.respond(message(500_000)).await.unwrap();
    }
    upstream.end(Status::unavailable("that is all")).await;
    eventually("messages that wait", async || {
        (agent.metric("wasmferry_in_flight_bytes").await > 4_000_000).then_some(())
    })
    .await;
    eventually("nothing that waits", async || {
        agent.clock.advance(STALL_LIMIT);
        (agent.metric("wasmferry_in_flight_bytes").await == 0).then_some(())
    })
    .await;
    drop(envoy);
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_is_closed_after_a_while() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Timed::start(&world, control_plane.address(), "").await;
    let Xds::Tcp(address) = agent.xds.clone() else { unreachable!() };
    let mut connection = Connection::open(&agent.xds).await;
    let mut envoy = connection.stream(Protocol::Sotw).await;
    let mut upstream = control_plane.accept().await;
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut answer);
    agent.passes("the end of the connection", read).await.unwrap();
    exchange(&mut envoy, &mut upstream).await;
}

#[tokio::test]
async fn an_agent_drains_whatever_its_peers_leave_open() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Timed::start(&world, control_plane.address(), "").await;
    let mut connection = Connection::open(&agent.xds).await;
    let mut envoy = connection.stream(Protocol::Sotw).await;
    let mut upstream = control_plane.accept().await;
    envoy.finish();
    // Half closed, and by this clock for ever.
    assert!(soon("the end upstream", upstream.request()).await.unwrap().is_none());
    agent.stop.notify_one();
    assert_eq!(envoy.status().await.0, Code::Unavailable);
    assert!(soon("the end of the agent", agent.running).await.unwrap(), "all has ended by itself");
}
