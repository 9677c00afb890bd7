//! What the tests run against: real processes, scripted peers, and the folders and addresses they use.
//!
//! Everything belongs to one [`world::World`] a test; everything ends when it is dropped.

// Shared by tests that each use a part of it.
#![allow(dead_code)]

pub mod ads;
pub mod agent;
pub mod authority;
pub mod bad_server;
pub mod client;
pub mod control_plane;
pub mod ecds;
pub mod engine;
pub mod envoy;
pub mod fixtures;
pub mod forward_proxy;
pub mod gate;
pub mod mesh;
pub mod process;
pub mod programs;
pub mod pulls;
pub mod registry;
pub mod resources;
pub mod scene;
pub mod scripted;
pub mod search;
pub mod sockets;
pub mod standalone;
pub mod timed;
pub mod token_server;
pub mod traffic;
pub mod world;

use std::time::{Duration, Instant};

/// How long a real process may take for anything, on a machine that runs other tests besides. Passing
/// tests never wait this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls a condition of a real process until it holds, and gives what the probe gave.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for something that a peer does, for as long as [`eventually`] would.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}
