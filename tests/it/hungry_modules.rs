//! Modules that are made to be expensive, fetched at once with ordinary ones: what they cost the agent,
//! and that nobody waits for them.

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::agent::{Agent, Options};
use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::control_plane::Protocol;
use crate::support::ecds::Ecds;
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::gate::Gate;
use crate::support::pulls::wasm_plugin;
use crate::support::registry::tar_gz;
use crate::support::world::{User, World};

const MIB: u64 = 1 << 20;
/// How far the agent's memory may grow, whatever modules it is sent.
const GROWTH: u64 = 8 * MIB;
const HEADER: &[u8] = b"\0asm\x01\0\0\0";

fn leb(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// Nothing but types of 200 parameters, in gzip: a million of them are 204 MB and come in a few.
fn types(count: usize) -> Vec<u8> {
    let func = [&[0x60][..], &leb(200), &[0x7f; 200], &[0]].concat();
    let size = leb(count).len() + count * func.len();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&[HEADER, &[1], &leb(size), &leb(count)].concat()).unwrap();
    for _ in 0..count {
        gzip.write_all(&func).unwrap();
    }
    gzip.finish().unwrap()
}

/// A filter that does nothing, with so many bytes of data and a memory that holds them.
fn with_data(bytes: usize) -> Vec<u8> {
    let text = format!(
        r#"(module
             (memory (export "memory") {})
             (func (export "proxy_abi_version_0_2_1"))
             (func (export "malloc") (param i32) (result i32) (i32.const 0)))"#,
        bytes / 65_536 + 1
    );
    let mut module = wat::parse_str(text).unwrap();
    // One segment for memory 0, at its beginning.
    let segment = [&[1, 0, 0x41, 0, 0x0b][..], &leb(bytes)].concat();
    module.extend([&[11][..], &leb(segment.len() + bytes), &segment].concat());
    // Nothing that compresses: a pseudo-random sequence.
    let mut state: u32 = 1;
    module.extend((0..bytes).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    module
}

/// The three kinds in small, one by one and then at once, so that what the program needs of itself is
/// there; then as large as they come. The two large ones are held in mid-air until the small one is there.
#[tokio::test]
async fn a_million_types_and_64_mib_of_data_cost_8_mib_at_most_and_delay_nobody() {
    let world = World::new();
    let server = BadServer::start(&world).await;
    let gate = Gate::in_front_of(server.address(), &world).await;
    let held = Arc::new(Semaphore::new(0));
    let through_gate = |path: &str| format!("http://{}{path}", gate.address());

    let small = module("add-header-v1");
    let large = with_data(64 << 20);
    let large_tar_gz = tar_gz(&[("plugin.wasm", &large)]);
    let hog = types(1_000_000);
    assert!(hog.len() < 8 << 20, "{} bytes on the wire", hog.len());
    // More than the budget of a section, which ends them both in the same place.
    server.put("/warm-hog", Reply::ok(types(10_000)));
    server.put("/hog", Reply::ok(hog).fault(Fault::Held(held.clone())));
    for (path, reply) in [
        ("/warm", padded(&small, 3)),
        ("/warm-large", with_data(256 << 10)),
        ("/warm-large.tar.gz", tar_gz(&[("plugin.wasm", &with_data(256 << 10))])),
        ("/small", small.clone()),
        ("/large", large.clone()),
        ("/large.tar.gz", large_tar_gz),
        ("/late", module("add-header-v2")),
    ] {
        server.put(path, Reply::ok(reply));
    }
    let warm = ["warm", "warm-hog", "warm-large", "warm-large.tar.gz"];
    let plugins = world.folder("plugins", User::Agent, 0o755);
    for name in warm.into_iter().chain(["hog", "large", "large.tar.gz", "small", "late"]) {
        let url = match name.starts_with("large") {
            true => through_gate(&format!("/{name}")),
            false => server.url(&format!("/{name}")),
        };
        let plugin = wasm_plugin(name, &url, json!({}));
        world.write(&format!("plugins/{name}.yaml"), plugin.to_string(), User::Agent, 0o644);
    }
    let mut agent = Agent::start(&world, &Options::directory(&plugins).with("fetch: {hold: 0s}")).await;
    let name = |name: &str| format!("default.{name}");

    for protocol in Protocol::BOTH {
        let mut envoy = Ecds::subscribe(agent.tcp, protocol, &warm.map(name)).await;
        envoy.denied("default.warm-hog").await;
        for filter in ["default.warm", "default.warm-large", "default.warm-large.tar.gz"] {
            envoy.module(filter).await;
        }
    }
    agent.process().reset_peak();
    let before = agent.process().memory("VmHWM");

    gate.hold_after(20 << 20);
    let names = ["hog", "large", "large.tar.gz", "small"].map(name);
    let mut envoys = Vec::new();
    for protocol in Protocol::BOTH {
        envoys.push(Ecds::subscribe(agent.tcp, protocol, &names).await);
    }
    for envoy in &mut envoys {
        assert_eq!(std::fs::read(envoy.module("default.small").await).unwrap(), small);
    }
    gate.held().await;
    eventually("three answers under way", async || (server.answering() == 3).then_some(())).await;
    // One more for Envoys that come now.
    for protocol in Protocol::BOTH {
        Ecds::subscribe(agent.tcp, protocol, &[name("late")]).await.module("default.late").await;
    }
    assert_eq!(server.answering(), 3, "the large ones are still on their way");

    gate.open();
    held.add_permits(1);
    for envoy in &mut envoys {
        for filter in ["default.large", "default.large.tar.gz"] {
            assert_eq!(std::fs::read(envoy.module(filter).await).unwrap(), large, "{filter}");
        }
        envoy.denied("default.hog").await;
    }
    let grown = agent.process().memory("VmHWM").saturating_sub(before);
    assert!(grown <= GROWTH, "grew by {} KiB", grown / 1024);
    let state = agent.state().await.to_string();
    assert_eq!(state.matches("bytes in one section, more than the limit").count(), 2, "{state}");
}
