//! What the store costs: bytes on their way in, beside `cp` and `sync` of the same, and the start of an
//! agent that finds many modules there.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use wasmferry::clock::Clock;
use wasmferry::store::{Audience, Store, StoreConfig};

use crate::support::agent::{Agent, wasmferry};
use crate::support::control_plane::ControlPlane;
use crate::support::envoy::Xds;
use crate::support::fixtures;
use crate::support::world::{User, World};
use crate::table::{Report, Samples, mebibytes};

const MANY: usize = 10_000;
/// What one run of `prefetch` is given.
const AT_ONCE: usize = 2_500;
const ROUNDS: usize = 9;
/// What comes from the network comes in about such pieces.
const PIECE: usize = 64 << 10;

pub async fn bench(report: &mut Report) {
    ingest(report);
    start(report).await;
}

/// Writes, hashes, syncs and names a payload; and a copy that does nothing but write and sync.
fn ingest(report: &mut Report) {
    let world = World::new();
    report.table("Into the store", &["ingest and commit", "cp and sync", "times"]);
    for mebibytes in [1, 8, 64] {
        let store = StoreConfig { directory: world.folder("store", User::Tests, 0o711) };
        let store = Store::open(&store, Clock::System).expect("a store");
        let mut bytes = vec![7; mebibytes << 20];
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for round in 0..ROUNDS {
            bytes[0] = round as u8;
            let source = world.write("source", &bytes, User::Tests, 0o644);
            // Both find it in memory, and nothing else on its way to the disk.
            rustix::fs::sync();
            let begin = Instant::now();
            let mut ingest = store.ingest().expect("an ingest");
            bytes.chunks(PIECE).for_each(|piece| ingest.write_all(piece).expect("room"));
            ingest.finish().and_then(|finished| finished.commit(&Audience::Public)).expect("a module");
            ours.push(begin.elapsed());
            rustix::fs::sync();
            let begin = Instant::now();
            copy(&source, &world.path().join("copy"));
            theirs.push(begin.elapsed());
        }
        let ratio = format!("{:.2}", ours.ratio(&theirs));
        report.row(&format!("{mebibytes} MiB"), &[ours.to_string(), theirs.to_string(), ratio]);
    }
    println!("  A copy is hashed by nobody, and its name is not synced.");
}

fn copy(from: &Path, to: &Path) {
    let script = r#"cp "$0" "$1" && sync "$1""#;
    let status = Command::new("sh").arg("-c").arg(script).args([from, to]).status();
    assert!(status.expect("a shell").success());
    fs::remove_file(to).expect("a file that goes away");
}

/// From the start of the process to its readiness, with nothing in the store and with a lot.
async fn start(report: &mut Report) {
    report.table("Start of an agent", &["an empty store", "10,000 modules", "memory by these"]);
    let world = World::new();
    let upstream = Xds::Tcp(world.address());
    let _control_plane = ControlPlane::listen(upstream.clone()).await;
    let mut agent = Agent::start(&world, &crate::agent(&upstream)).await;
    let (empty, before) = starts(&mut agent, &world).await;
    fill(&world, &agent.cache).await;
    let (full, after) = starts(&mut agent, &world).await;
    report.row("", &[empty.to_string(), full.to_string(), mebibytes(after.saturating_sub(before))]);
}

/// Starts it some times, and says what it holds at last.
async fn starts(agent: &mut Agent, world: &World) -> (Samples, u64) {
    let mut took = Samples::default();
    for _ in 0..ROUNDS {
        assert_eq!(agent.stop().await, Some(0));
        let begin = Instant::now();
        agent.resume(world).await;
        took.push(begin.elapsed());
    }
    // It looks at what it has once it is ready.
    tokio::time::sleep(Duration::from_secs(3)).await;
    (took, agent.process().memory("VmRSS"))
}

/// Brings many small modules.
async fn fill(world: &World, cache: &Path) {
    let folder = world.folder("modules", User::Agent, 0o755);
    let module = fixtures::module("add-header-v1");
    let urls: Vec<String> = (0..MANY)
        .map(|number| {
            let file = folder.join(format!("{number}.wasm"));
            fs::write(&file, fixtures::padded(&module, 16 + number)).expect("room");
            format!("file://{}", file.display())
        })
        .collect();
    let begin = Instant::now();
    for urls in urls.chunks(AT_ONCE) {
        let fixed = ["prefetch", "--output", "json", "--cache-dir"].map(str::to_owned);
        let args = fixed.into_iter().chain([cache.display().to_string()]).chain(urls.iter().cloned());
        let output = wasmferry(world, args).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    println!("  (prefetched {MANY} of them in {:.0} s)", begin.elapsed().as_secs_f64());
}
