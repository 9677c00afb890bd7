//! Where Envoys connect, and how the agent begins, changes and ends.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use http::StatusCode;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::ads::{Connection, Stream};
use crate::support::agent::{Agent, Options};
use crate::support::control_plane::{ControlPlane, Protocol};
use crate::support::envoy::Xds;
use crate::support::process::Program;
use crate::support::world::{User, World, envoy_group, is_root};
use crate::support::{eventually, soon};

/// The lines of the agent's log whose message contains this.
fn logged(agent: &mut Agent, part: &str) -> Vec<serde_json::Value> {
    let text = agent.process().stderr();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["message"].as_str().is_some_and(|message| message.contains(part))).collect()
}

/// Waits for a line of the log whose message contains this.
async fn log(agent: &mut Agent, part: &str) -> serde_json::Value {
    eventually(&format!("{part:?} in the log"), async || logged(agent, part).pop()).await
}

/// Exchanges the agent's configuration for another, in one step.
fn reconfigure(world: &World, agent: &Agent, from: &str, to: &str) {
    let old = fs::read_to_string(&agent.config).unwrap();
    assert!(old.contains(from), "{old}");
    let name = agent.config.file_name().unwrap().to_str().unwrap();
    world.write(name, old.replace(from, to), User::Agent, 0o600);
}

/// A stream that the control plane has taken up.
async fn stream(connection: &mut Connection, control_plane: &mut ControlPlane) -> Stream {
    let stream = connection.stream(Protocol::Delta).await;
    let accepted = control_plane.accept().await;
    // What is open stays open: the test is about what the agent does.
    tokio::spawn(async move {
        let mut accepted = accepted;
        while let Ok(Some(_)) = accepted.request().await {}
    });
    stream
}

#[tokio::test]
async fn a_sockets_mode_and_group_are_the_configured_ones_whatever_the_umask() {
    for (umask, mode) in [("0077", 0o660), ("0000", 0o600), ("0022", 0o666)] {
        let world = World::new();
        let control_plane = ControlPlane::tcp(world.address()).await;
        let mut agent = Agent::prepare(&world, &Options::upstream(control_plane.address()));
        reconfigure(&world, &agent, "mode: \"0660\"", &format!("mode: \"{mode:04o}\""));
        let shell = "umask $1; shift; exec \"$@\"";
        agent.through(&["/bin/sh", "-c", shell, "sh", umask]);
        agent.resume(&world).await;
        let socket = fs::metadata(&agent.socket).unwrap();
        assert!(socket.file_type().is_socket());
        assert_eq!((socket.mode() & 0o7777, socket.gid()), (mode, envoy_group()), "umask {umask}");
        assert_eq!(fs::metadata(&agent.admin).unwrap().mode() & 0o7777, 0o600, "umask {umask}");
    }
}

#[tokio::test]
async fn the_group_alone_lets_another_user_in() {
    let world = World::new();
    let control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Agent::start(&world, &Options::upstream(control_plane.address())).await;
    let connect = async |user: User, socket: &Path| {
        let script = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let args = vec!["-c".into(), script.into(), socket.into()];
        let path = "/usr/bin/python3".into();
        let python = Program { name: "connect".into(), path, user, args, env: Vec::new() };
        let output = python.run(&world).await;
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (connected, error) = connect(User::Envoy, &agent.socket).await;
    assert!(connected, "{error}");
    if is_root() {
        let socket = fs::metadata(&agent.socket).unwrap();
        assert_eq!((socket.uid(), socket.mode() & 0o7777), (1338, 0o660));
        let (connected, error) = connect(User::Envoy, &agent.admin).await;
        assert!(!connected && error.contains("PermissionError"), "{error}");
    }
}

#[tokio::test]
async fn a_path_that_another_agent_serves_is_refused_and_a_dead_ones_is_taken_over() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address());
    let mut first = Agent::start(&world, &options).await;
    let mut second = Agent::prepare(&world, &Options { name: "second".into(), ..options });
    let (code, error) = second.refuses(&world).await;
    assert_eq!(code, Some(2), "{error}");
    let socket = first.socket.display().to_string();
    assert!(error.contains(&format!("cannot listen on unix:{socket}: another process serves")), "{error}");
    let mut connection = Connection::open(&Xds::Unix(first.socket.clone())).await;
    let _stream = stream(&mut connection, &mut control_plane).await;

    first.kill();
    assert!(first.socket.exists(), "a killed agent leaves its socket's file");
    second.resume(&world).await;
    let mut connection = Connection::open(&Xds::Unix(second.socket.clone())).await;
    let _stream = stream(&mut connection, &mut control_plane).await;
    assert_eq!(second.stop().await, Some(0));
    assert!(!second.socket.exists() && !second.admin.exists(), "the files go with the agent");
}

#[tokio::test]
async fn a_file_that_is_no_socket_and_a_port_in_use_are_left_alone() {
    let world = World::new();
    let control_plane = ControlPlane::tcp(world.address()).await;
    let agent = Agent::prepare(&world, &Options::upstream(control_plane.address()));
    fs::write(&agent.socket, "precious").unwrap();
    let (code, error) = agent.refuses(&world).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("the path exists and is no socket"), "{error}");
    assert_eq!(fs::read(&agent.socket).unwrap(), b"precious");
    fs::remove_file(&agent.socket).unwrap();

    let _taken = std::net::TcpListener::bind(agent.tcp).unwrap();
    let (code, error) = agent.refuses(&world).await;
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains(&format!("cannot listen on {}", agent.tcp)), "{error}");
    assert!(!agent.socket.exists(), "nothing is left of what was bound before");
}

#[tokio::test]
async fn a_dead_sockets_file_is_replaced() {
    let world = World::new();
    let control_plane = ControlPlane::tcp(world.address()).await;
    let mut agent = Agent::prepare(&world, &Options::upstream(control_plane.address()));
    drop(UnixListener::bind(&agent.socket).unwrap());
    if let Some((user, group, _)) = User::Agent.ids() {
        chown(&agent.socket, Some(user), Some(group)).unwrap();
    }
    agent.resume(&world).await;
    let _connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
}

#[tokio::test]
async fn port_zero_is_logged_as_the_port_that_was_chosen() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let mut agent = Agent::prepare(&world, &Options::upstream(control_plane.address()));
    let zero = format!("{}:0", agent.tcp.ip());
    reconfigure(&world, &agent, &format!("\"{}\"", agent.tcp), &format!("\"{zero}\""));
    agent.resume(&world).await;
    let lines = logged(&mut agent, "listening for Envoys");
    let addresses: Vec<&str> = lines.iter().filter_map(|line| line["address"].as_str()).collect();
    let tcp = addresses.iter().find_map(|address| address.parse::<std::net::SocketAddr>().ok());
    let tcp = tcp.unwrap_or_else(|| panic!("{addresses:?}"));
    assert_ne!(tcp.port(), 0);
    let mut connection = Connection::open(&Xds::Tcp(tcp)).await;
    let _stream = stream(&mut connection, &mut control_plane).await;
}

#[tokio::test]
async fn a_hangup_reloads_what_can_change_and_names_what_cannot() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address()).with("relay: {queue_bytes: 2MiB}");
    let mut agent = Agent::start(&world, &options).await;
    let mut connection = Connection::open(&Xds::Tcp(agent.tcp)).await;
    let _stream = stream(&mut connection, &mut control_plane).await;

    reconfigure(
        &world,
        &agent,
        "relay: {queue_bytes: 2MiB}",
        "relay: {queue_bytes: 1MiB}\nregistries: {r.test: {plain_http: true}}\nsources: {file: [/srv]}",
    );
    reconfigure(&world, &agent, "mode: \"0660\"", "mode: \"0666\"");
    agent.process().signal(Signal::HUP);
    let line = log(&mut agent, "the configuration was reloaded").await;
    let changed = line["changed"].as_str().unwrap();
    for key in ["relay.queue_bytes", "registries", "sources"] {
        assert!(changed.contains(key), "{changed}");
    }
    let warnings = logged(&mut agent, "wait for a restart");
    assert_eq!(warnings.len(), 1);
    assert_eq!((&warnings[0]["level"], &warnings[0]["keys"]), (&"WARN".into(), &"listeners".into()));
    assert_eq!(fs::metadata(&agent.socket).unwrap().mode() & 0o777, 0o660);
    let metrics = agent.health("/metrics").await.text();
    assert!(metrics.contains("wasmferry_config_reloads_total{result=\"applied\"} 1"), "{metrics}");
    assert_eq!(logged(&mut agent, "stream ended").len(), 0, "streams go on");
}

#[tokio::test]
async fn a_changed_file_is_noticed_by_itself_and_an_invalid_one_changes_nothing() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address()).with("shutdown: {timeout: 7s}");
    let mut agent = Agent::start(&world, &options).await;
    reconfigure(&world, &agent, "timeout: 7s", "timeuot: 7s");
    let line = log(&mut agent, "the new configuration is not valid, the old one stays").await;
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("timeuot") && line["level"] == "ERROR", "{line}");
    let mut connection = Connection::open(&Xds::Tcp(agent.tcp)).await;
    let _stream = stream(&mut connection, &mut control_plane).await;
    assert_eq!(agent.health("/readyz").await.status, StatusCode::OK);

    reconfigure(&world, &agent, "timeuot: 7s", "timeout: 8s");
    let line = log(&mut agent, "the configuration was reloaded").await;
    assert_eq!(line["changed"], "shutdown.timeout");
    let metrics = agent.health("/metrics").await.text();
    for result in ["invalid", "applied"] {
        let count = format!("wasmferry_config_reloads_total{{result=\"{result}\"}} 1");
        assert!(metrics.contains(&count), "{metrics}");
    }
}

#[tokio::test]
async fn a_signal_ends_every_stream_with_a_reason_and_the_agent_with_success() {
    for signal in [Signal::TERM, Signal::INT] {
        let world = World::new();
        let mut control_plane = ControlPlane::tcp(world.address()).await;
        // No test waits that long: whoever would sit it out fails.
        let options = Options::upstream(control_plane.address()).with("shutdown: {timeout: 1h}");
        let mut agent = Agent::start(&world, &options).await;
        let mut streams = Vec::new();
        for xds in agent.xds() {
            let mut connection = Connection::open(&xds).await;
            let running = stream(&mut connection, &mut control_plane).await;
            let mut ending = stream(&mut connection, &mut control_plane).await;
            // Envoy's side has ended, the control plane's has not.
            ending.finish();
            streams.push((connection, running, ending));
        }
        let _silent = soon("a connection", TcpStream::connect(agent.tcp)).await.unwrap();
        agent.process().signal(signal);
        for (_connection, running, _) in &mut streams {
            assert_eq!(running.status().await, (Code::Unavailable, "the agent is shutting down".into()));
        }
        let status = agent.process().end().await;
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(!agent.socket.exists());
        assert_eq!(logged(&mut agent, "shutdown.timeout has passed").len(), 0);
    }
}

#[tokio::test]
async fn an_envoy_that_does_not_read_holds_up_the_end_no_longer_than_the_timeout() {
    let world = World::new();
    let mut control_plane = ControlPlane::tcp(world.address()).await;
    let options = Options::upstream(control_plane.address()).with("shutdown: {timeout: 1s}");
    let mut agent = Agent::start(&world, &options).await;
    let mut connection = Connection::open(&Xds::Unix(agent.socket.clone())).await;
    let _stream = connection.stream(Protocol::Delta).await;
    let upstream = control_plane.accept().await;
    // Well-formed: 8000 times field 15, of 122 bytes.
    upstream.respond(vec![0x7a; 124 * 8000]).await.unwrap();
    // Bytes in flight would not tell: those of a message that has not wholly come are dropped at once.
    eventually("a message that waits", async || {
        let metrics = agent.health("/metrics").await.text();
        let whole = "wasmferry_messages_total{from=\"control_plane\",intercepted=\"false\"} 1\n";
        metrics.contains(whole).then_some(())
    })
    .await;
    assert_eq!(agent.process().terminate().await.code(), Some(0));
    assert_eq!(logged(&mut agent, "shutdown.timeout has passed").len(), 1);
    assert!(!agent.socket.exists());
}
