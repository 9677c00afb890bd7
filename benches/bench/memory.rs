//! What the agent holds: the binary, idle, in the largest pull, and for an Envoy that does not read.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::Message as _;

use crate::envoy_side::Stream;
use crate::filters::Filters;
use crate::module::module;
use crate::support::agent::{self, Agent};
use crate::support::control_plane::serve::Serving;
use crate::support::control_plane::{ControlPlane, Protocol};
use crate::support::envoy::{self, Envoy, Xds};
use crate::support::process::Process;
use crate::support::registry::{Access, Layout, Registry};
use crate::support::resources::{self, Kind};
use crate::support::world::World;
use crate::table::{Report, mebibytes};

const MIB: u64 = 1 << 20;

pub async fn bench(report: &mut Report) {
    report.table("Memory", &[""]);
    let mut hold = |what: &str, bytes: u64, limit: u64| {
        report.goal(what, mebibytes(bytes), bytes as f64, (limit * MIB) as f64, format!("{limit} MiB"));
    };
    let binary = std::fs::metadata(agent::binary()).expect("the binary").len();
    hold("the binary", binary, 16);
    let (alone, with_envoy) = idle().await;
    hold("idle, no Envoy", alone, 12);
    hold("idle, one Envoy with one filter", with_envoy, 12);
    hold("what a pull of 64 MiB adds at its peak", pull(Layout::Artifact).await, 8);
    hold("the same in tar and gzip", pull(Layout::OciImage).await, 8);
}

/// Resident bytes before and after an Envoy came.
async fn idle() -> (u64, u64) {
    let world = World::new();
    let control_plane = Serving::listen(Xds::Tcp(world.address())).await;
    let mut agent = Agent::start(&world, &crate::agent(control_plane.address())).await;
    let alone = settled(agent.process()).await;

    let filter = resources::http_slot("filter", resources::discovery(Kind::Http));
    let listener = resources::listener("web", world.address(), vec![], vec![filter]);
    control_plane.set(resources::allow_all(Kind::Http, "filter"));
    let options =
        envoy::Options::with_listener(Xds::Unix(agent.socket.clone()), envoy::Variant::Sotw, listener);
    let envoy = Envoy::start(&world, &options).await;
    envoy.listener("web").await;
    (alone, settled(agent.process()).await)
}

/// What is resident when nothing happens any more.
async fn settled(process: &Process) -> u64 {
    tokio::time::sleep(Duration::from_secs(1)).await;
    process.memory("VmRSS")
}

/// How far the peak in a pull is above what was resident before.
async fn pull(layout: Layout) -> u64 {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    registry.publish("bench", "peak", layout, &module(64 << 20)).await;
    let mut filters = Filters::start(&world).await;
    let before = settled(filters.agent.process()).await;
    filters.agent.process().reset_peak();
    filters.deliver(&[&registry.url("bench", "peak")]).await;
    filters.agent.process().memory("VmHWM").saturating_sub(before)
}

/// Floods an Envoy that does not read until the agent ends its stream.
pub async fn stalled(report: &mut Report) {
    report.table(
        "A stalled Envoy, until its stream ends",
        &["taken from the control plane", "agent's memory grows by"],
    );
    for size in [10, 1 << 10, 64 << 10, 1 << 20] {
        let world = World::new();
        let mut control_plane = ControlPlane::tcp(world.address()).await;
        let mut agent = Agent::start(&world, &crate::agent(control_plane.address())).await;
        let envoy = Stream::open(&Xds::Unix(agent.socket.clone()), Protocol::Sotw).await;
        let stream = control_plane.accept().await;
        let before = settled(agent.process()).await;
        let response = response(size);
        let mut taken = 0;
        // Ends where the agent ends the stream.
        while stream.respond(response.clone()).await.is_ok() {
            taken += response.len() as u64;
        }
        let grown = agent.process().memory("VmHWM").saturating_sub(before);
        report.row(&format!("messages of {size} bytes"), &[mebibytes(taken), mebibytes(grown)]);
        drop(envoy);
    }
}

/// A response of a type that passes unread, with a body of this size.
fn response(size: usize) -> Bytes {
    DiscoveryResponse { nonce: "n".repeat(size - 3), ..DiscoveryResponse::default() }.encode_to_vec().into()
}
