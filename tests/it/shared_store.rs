//! Processes of one user that share a store: one download for all of them, whoever lives and dies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use wasmferry::clock::Clock;
use wasmferry::module::ModuleRequest;
use wasmferry::store::{Store, StoreConfig};

use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::control_plane::Protocol;
use crate::support::control_plane::doubles::Kind;
use crate::support::engine;
use crate::support::fixtures::{module, padded};
use crate::support::process::{Process, Program};
use crate::support::pulls::{begin_prefetch, cache, digests, payloads, prefetch};
use crate::support::registry::{Access, Layout, Registry};
use crate::support::scene::Scene;
use crate::support::world::{User, World};
use crate::support::{eventually, soon};

const PROCESSES: usize = 8;
const CALLERS: usize = 64;
const MODULES: usize = 100;

/// A waiter takes over within this.
const TAKES_OVER: Duration = Duration::from_secs(2);

/// What [`one_of_many_processes`] is told: the store, the URLs.
const DRIVE: &str = "TEST_SHARED_STORE";

/// Not a test by itself: what a process of the next one does, the library driven as the agent does.
#[test]
fn one_of_many_processes() {
    let Ok(told) = std::env::var(DRIVE) else { return };
    let (directory, urls): (PathBuf, Vec<String>) = serde_json::from_str(&told).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&StoreConfig { directory }, Clock::System).unwrap();
        let resolver = engine::resolver(store);
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            let (resolver, urls) = (resolver.clone(), urls.clone());
            callers.spawn(async move {
                // Each in an order of its own, and so many that each module has sixteen who ask for it.
                for number in 0..urls.len() / 4 {
                    let url = &urls[(number * 37 + caller * 7) % urls.len()];
                    let module = resolver.resolve(ModuleRequest::new(url.parse().unwrap())).await.unwrap();
                    assert_eq!(module.size, std::fs::metadata(&module.path).unwrap().len());
                }
            });
        }
        assert_eq!(callers.join_all().await.len(), CALLERS);
    });
}

#[tokio::test]
async fn eight_processes_of_64_callers_each_download_100_modules_once() {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let modules: Vec<Vec<u8>> = (0..MODULES).map(|n| padded(&module("add-header-v1"), 1000 + n)).collect();
    let mut urls = Vec::new();
    for (number, module) in modules.iter().enumerate() {
        let tag = format!("v{number}");
        registry.publish("filters", &tag, Layout::ALL[number % Layout::ALL.len()], module).await;
        urls.push(registry.url("filters", &tag));
    }
    let cache = cache(&world);
    let begun = Instant::now();
    let mut processes: Vec<Process> = (0..PROCESSES)
        .map(|number| {
            let program = Program {
                name: format!("process-{number}"),
                path: std::env::current_exe().unwrap(),
                user: User::Agent,
                args: ["--exact", "shared_store::one_of_many_processes", "--nocapture"]
                    .map(Into::into)
                    .into(),
                env: vec![(DRIVE.into(), json!([cache, urls]).to_string())],
            };
            program.start(&world)
        })
        .collect();
    for process in &mut processes {
        assert!(process.end().await.success(), "{}", process.stdout());
        assert!(process.stdout().contains("1 passed"), "{}", process.stdout());
    }
    let took = begun.elapsed();

    let mut blobs = BTreeMap::<String, usize>::new();
    for pull in registry.pulls().await.into_iter().filter(|pull| pull.path.contains("/blobs/")) {
        assert_eq!((pull.method.as_str(), pull.status), ("GET", 200), "{pull:?}");
        *blobs.entry(pull.path).or_default() += 1;
    }
    assert_eq!((blobs.len(), blobs.values().sum::<usize>()), (MODULES, MODULES), "{blobs:?}");
    assert_eq!(payloads(&cache), digests(modules.iter().map(Vec::as_slice)));
    eprintln!("{PROCESSES} processes of {CALLERS} callers, {MODULES} modules: {took:?}");
}

/// A server whose first answer with the bytes of `filter` stalls in the middle, for an image and for a
/// file of a web server.
async fn stalling(world: &World, large: &[u8], image: bool) -> (BadServer, String) {
    let server = BadServer::start(world).await;
    let url = match image {
        true => server.image("filter", "application/wasm", large, Reply::status(500)),
        false => server.url("/filter.wasm"),
    };
    let (asked, bytes) = (AtomicBool::new(false), large.to_vec());
    server.handle(move |seen| {
        let body = seen.path.contains("/blobs/") || seen.path.ends_with(".wasm");
        body.then(|| match asked.swap(true, Ordering::SeqCst) {
            false => Reply::ok(bytes.clone()).fault(Fault::Stalled(200_000)),
            true => Reply::part(&bytes, seen),
        })
    });
    (server, url)
}

fn bodies(server: &BadServer) -> usize {
    let is_body = |path: &str| path.contains("/blobs/") || path.ends_with(".wasm");
    server.seen().iter().filter(|seen| is_body(&seen.path)).count()
}

#[tokio::test]
async fn a_waiter_takes_over_when_the_downloader_is_killed_in_mid_body() {
    for image in [true, false] {
        let world = World::new();
        let large = padded(&module("add-header-v1"), 400_000);
        let (server, url) = stalling(&world, &large, image).await;
        let mut first = begin_prefetch(&world, "first", &url);
        eventually("the first one in mid-body", async || (bodies(&server) == 1).then_some(())).await;
        let mut second = begin_prefetch(&world, "second", &url);
        eventually("the second one waiting", async || {
            second.stderr().contains("another process fetches this").then_some(())
        })
        .await;
        // It waits, as long as the first one lives.
        tokio::time::sleep(Duration::from_millis(500)).await;
        second.assert_running();
        assert_eq!(bodies(&server), 1);

        let killed = Instant::now();
        first.kill();
        assert!(second.end().await.success(), "{}", second.stderr());
        let took = killed.elapsed();
        assert!(took < TAKES_OVER, "{took:?}");
        assert_eq!(bodies(&server), 2);
        // What the dead one left goes with the next start.
        prefetch(&world, [&url], &[]).await.module(&url, &large);
        assert_eq!(payloads(&cache(&world)), digests([large.as_slice()]));
        assert_eq!(bodies(&server), 2);
    }
}

#[tokio::test]
async fn an_agent_and_a_prefetch_side_by_side_ask_once() {
    for agent_first in [true, false] {
        let mut scene = Scene::new(Kind::BOTH[0], Protocol::BOTH[0]).await;
        let held = scene.publish_held("/filter.wasm");
        let url = scene.server.url("/filter.wasm");
        scene.double.set(scene.filter("a", "v1", "/filter.wasm"));
        let mut envoy = scene.envoy().await;
        let mut job = None;
        if agent_first {
            envoy.subscribe(&["a"]).await;
            scene.fetched("/filter.wasm", 1).await;
            job = Some(begin_prefetch(&scene.world, "job", &url));
        } else {
            job.insert(begin_prefetch(&scene.world, "job", &url)).assert_running();
            scene.fetched("/filter.wasm", 1).await;
            envoy.subscribe(&["a"]).await;
        }
        let mut job = job.unwrap();
        eventually("the other one waiting", async || {
            let waits = "another process fetches this";
            (job.stderr().contains(waits) || scene.agent.log().contains(waits)).then_some(())
        })
        .await;
        held.add_permits(1);
        envoy.runs(&[("a", "v1")]).await;
        assert!(soon("the prefetch", job.end()).await.success(), "{}", job.stderr());
        assert_eq!(scene.fetches("/filter.wasm"), 1);
        let shared = scene.agent.metric("wasmferry_fetch_waits_total{result=\"shared\"}").await;
        assert_eq!(shared, u64::from(!agent_first));
        scene.agent.process().assert_running();
    }
}
