//! `make bench`: what wasmferry must reach, each measured beside something else in the same run, on
//! real parts. `cargo bench --bench bench -- relay ecds pull store memory stall` runs only those that are named.
//!
//! The agent is the built binary, or the one that `WASMFERRY` names, in a process of its own. Ends
//! with 1 where a goal was missed.

mod bare;
mod ecds;
mod envoy_side;
mod filters;
mod memory;
mod module;
mod pull;
mod relay;
mod store;
#[path = "../../tests/it/support/mod.rs"]
mod support;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use support::agent::Options;
use support::envoy::Xds;
use table::{Report, Samples};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, listen, upstream] = args.as_slice()
        && command == "bare-relay"
    {
        bare::relay(bare::address(listen), bare::address(upstream)).await;
        return ExitCode::SUCCESS;
    }
    // cargo adds a `--bench`.
    let wanted: Vec<&str> = args.iter().map(String::as_str).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |section: &str| wanted.is_empty() || wanted.contains(&section);
    let mut report = Report::default();
    println!(
        "{} on {} cores. Medians, and in brackets the least and the most.",
        support::agent::binary().display(),
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    noise(&report);
    if wants("relay") {
        relay::bench(&mut report).await;
    }
    if wants("ecds") {
        ecds::bench(&mut report).await;
    }
    if wants("pull") {
        pull::bench(&mut report).await;
    }
    if wants("store") {
        store::bench(&mut report).await;
    }
    if wants("memory") {
        memory::bench(&mut report).await;
    }
    if wants("stall") {
        memory::stalled(&mut report).await;
    }
    noise(&report);
    match report.missed() {
        0 => ExitCode::SUCCESS,
        missed => {
            println!("\n{missed} goals were missed.");
            ExitCode::FAILURE
        }
    }
}

/// How even the machine is: the same work, several times.
fn noise(report: &Report) {
    let (mut hashing, mut syncing) = (Samples::default(), Samples::default());
    let bytes = vec![7; 8 << 20];
    let mut file = tempfile::tempfile().expect("a temporary file");
    for _ in 0..15 {
        let start = Instant::now();
        std::hint::black_box(Sha256::digest(&bytes));
        hashing.push(start.elapsed());
        let start = Instant::now();
        std::io::Write::write_all(&mut file, &bytes).and_then(|()| file.sync_all()).expect("a disk");
        syncing.push(start.elapsed());
    }
    report.table("The machine's noise", &["SHA-256 of 8 MiB", "write and fsync of 8 MiB"]);
    report.row("", &[hashing, syncing]);
}

/// An agent that logs as it does in production.
fn agent(upstream: &Xds) -> Options {
    Options { env: vec![("RUST_LOG".into(), "wasmferry=info".into())], ..Options::upstream(upstream) }
}
