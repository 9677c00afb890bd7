//! Cold pulls from a registry on loopback, beside what other tools need for the same module, and a
//! second request for what is there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use http::Method;
use http::header::{ACCEPT, HeaderValue};
use tokio_util::task::TaskTracker;
use wasmferry::app::{places, resolve_config};
use wasmferry::clock::Clock;
use wasmferry::config::{Environment, Loader, Overrides};
use wasmferry::fetch::FileAccess;
use wasmferry::metrics::Metrics;
use wasmferry::module::ModuleRequest;
use wasmferry::resolve::Resolver;
use wasmferry::store::{Store, StoreConfig};

use crate::filters::Filters;
use crate::module::{self, MIX};
use crate::support::agent;
use crate::support::client;
use crate::support::process::Program;
use crate::support::registry::{self, Access, Layout, Registry};
use crate::support::world::{User, World};
use crate::table::{Report, Samples};

/// MiB, how it is packed, and rounds.
const CASES: [(usize, Layout, usize); 5] = [
    (1, Layout::Artifact, 7),
    (8, Layout::Artifact, 31),
    (64, Layout::Artifact, 5),
    (8, Layout::OciImage, 5),
    (8, Layout::ZstdImage, 5),
];
/// The case that has a goal, which is skopeo's own time. Half of it is what we aim for.
const GOAL: (usize, Layout) = (8, Layout::Artifact);
/// Modules that are asked for at once, bytes of each, and how many skopeo runs at a time copy them.
const MANY: usize = 50;
const SMALL: usize = 64 << 10;
const AT_A_TIME: usize = 8;
const SECOND_REQUEST: Duration = Duration::from_millis(1);

pub async fn bench(report: &mut Report) {
    let world = World::new();
    let registry = Registry::start(&world, Access::Anonymous).await;
    let mut filters = Filters::start(&world).await;
    report.table("Cold pull", &["wasmferry prefetch", "a running agent", "skopeo copy", "curl of the blob"]);
    for (mebibytes, layout, rounds) in CASES {
        let mut module = module::module(mebibytes << 20);
        let mut took: [Samples; 4] = Default::default();
        for round in 0..rounds {
            // No round has another's module: the agent would have it already.
            let tag = format!("{layout:?}-{mebibytes}-{round}").to_lowercase();
            module::tag(&mut module, round as u64);
            let pull = Pull::publish(&world, &registry, &tag, layout, &module).await;
            for turn in 0..took.len() {
                let way = (round + turn) % took.len();
                // What others wrote is not ours to make durable.
                rustix::fs::sync();
                took[way].push(match way {
                    0 => prefetch(&world, std::slice::from_ref(&pull)).await,
                    1 => filters.deliver(&[&pull.url]).await,
                    2 => pull.skopeo().await,
                    _ => pull.curl().await,
                });
            }
        }
        let [prefetch, agent, skopeo, _] = &took;
        report.row(&format!("{mebibytes} MiB, {layout:?}"), &took);
        let (by_prefetch, by_agent) = (prefetch.ratio(skopeo), agent.ratio(skopeo));
        if (mebibytes, layout) == GOAL {
            report.goal("prefetch to skopeo", format!("{by_prefetch:.2} times"), by_prefetch, 1.0, 1.0);
            report.goal("agent to skopeo", format!("{by_agent:.2} times"), by_agent, 1.0, 1.0);
        }
    }
    println!("  The modules: {MIX}. skopeo and curl do not sync what they write; curl verifies nothing.");
    second_request(report, &world, &registry, &mut filters).await;
    many(report, &world, &registry, &mut filters).await;
}

/// Many small modules at once: by one command, by one response of the control plane to an agent, and by as
/// many runs of skopeo, some at a time.
async fn many(report: &mut Report, world: &World, registry: &Registry, filters: &mut Filters) {
    const ROUNDS: usize = 5;
    let columns = ["wasmferry prefetch", "a running agent", "skopeo copy, each"];
    report.table(&format!("{MANY} modules of {} KiB at once", SMALL >> 10), &columns);
    let mut module = module::module(SMALL);
    let mut took: [Samples; 3] = Default::default();
    for round in 0..ROUNDS {
        let mut pulls = Vec::new();
        for number in 0..MANY {
            module::tag(&mut module, (round * MANY + number) as u64);
            let tag = format!("many-{round}-{number}");
            pulls.push(Pull::publish(world, registry, &tag, Layout::Artifact, &module).await);
        }
        for turn in 0..took.len() {
            let way = (round + turn) % took.len();
            rustix::fs::sync();
            took[way].push(match way {
                0 => prefetch(world, &pulls).await,
                1 => {
                    let urls: Vec<&str> = pulls.iter().map(|pull| pull.url.as_str()).collect();
                    filters.deliver(&urls).await
                }
                _ => {
                    let start = Instant::now();
                    let copies = stream::iter(&pulls).map(Pull::skopeo).buffer_unordered(AT_A_TIME);
                    copies.collect::<Vec<_>>().await;
                    start.elapsed()
                }
            });
        }
    }
    report.row("", &took);
    let [prefetch, agent, skopeo] = &took;
    let (by_prefetch, by_agent) = (prefetch.ratio(skopeo), agent.ratio(skopeo));
    report.goal("prefetch to skopeo", format!("{by_prefetch:.2} times"), by_prefetch, 1.0, 1.0);
    report.goal("agent to skopeo", format!("{by_agent:.2} times"), by_agent, 1.0, 1.0);
}

/// All of these by one command, into an empty store.
async fn prefetch(world: &World, pulls: &[Pull<'_>]) -> Duration {
    let cache = world.folder(&format!("prefetch-{}", pulls[0].tag), User::Agent, 0o711);
    let args = ["prefetch", "--output", "json", "--cache-dir"].map(OsString::from);
    let urls = pulls.iter().map(|pull| pull.url.clone().into());
    let args = args.into_iter().chain([cache.clone().into()]).chain(urls);
    let start = Instant::now();
    let output = agent::wasmferry(world, args).await;
    let took = start.elapsed();
    let answers: Vec<serde_json::Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("a line of JSON"))
        .collect();
    assert_eq!(answers.len(), pulls.len(), "{output:?}");
    for answer in answers {
        assert_eq!((&answer["size"], &answer["cached"]), (&pulls[0].size.into(), &false.into()), "{answer}");
    }
    remove(&cache);
    took
}

/// A module in the registry, and the ways to get it from there.
struct Pull<'a> {
    world: &'a World,
    url: String,
    blob: String,
    /// A name for what is written.
    tag: String,
    size: usize,
}

impl Pull<'_> {
    async fn publish<'a>(
        world: &'a World,
        registry: &Registry,
        tag: &str,
        layout: Layout,
        module: &[u8],
    ) -> Pull<'a> {
        let digest = registry.publish("bench", tag, layout, module).await;
        let path = format!("/v2/bench/manifests/{digest}");
        let mut request = client::request(Method::GET, &path, "");
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(registry::OCI_MANIFEST));
        let manifest = client::send(registry.address(), request).await;
        let manifest: serde_json::Value =
            serde_json::from_slice(&manifest.expect("the registry").body).expect("a manifest");
        let layer = manifest["layers"][0]["digest"].as_str().expect("a layer");
        Pull {
            world,
            url: registry.url("bench", tag),
            blob: format!("http://{}/v2/bench/blobs/{layer}", registry.address()),
            tag: tag.into(),
            size: module.len(),
        }
    }

    async fn skopeo(&self) -> Duration {
        let folder = self.folder("skopeo");
        let source = self.url.replacen("oci:", "docker:", 1);
        let target = format!("dir:{}", folder.display());
        let args = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &source, &target];
        self.run("skopeo", &args, &folder).await
    }

    async fn curl(&self) -> Duration {
        let folder = self.folder("curl");
        let file = folder.join("blob");
        let target = file.to_str().expect("a path in UTF-8");
        self.run("curl", &["--silent", "--show-error", "--fail", "--output", target, &self.blob], &folder)
            .await
    }

    /// An empty one, for what a program writes.
    fn folder(&self, name: &str) -> PathBuf {
        self.world.folder(&format!("{name}-{}", self.tag), User::Agent, 0o755)
    }

    /// Runs a program as the user that wasmferry runs as, in the same home.
    async fn run(&self, name: &str, args: &[&str], written: &Path) -> Duration {
        // What it keeps for the next time, and where skopeo looks for credentials.
        let home = self.world.folder("home", User::Agent, 0o700).display().to_string();
        let program = Program {
            name: format!("{name}-{}", self.tag),
            path: on_path(name),
            user: User::Agent,
            args: args.iter().map(OsString::from).collect(),
            env: ["HOME", "XDG_RUNTIME_DIR"].map(|key| (key.into(), home.clone())).into(),
        };
        let start = Instant::now();
        let output = program.run(self.world).await;
        let took = start.elapsed();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        remove(written);
        took
    }
}

fn on_path(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; `make bench` gets it"))
}

/// Removes what a pull wrote.
fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("a folder that goes away");
}

/// In a running agent, and in the engine alone.
async fn second_request(report: &mut Report, world: &World, registry: &Registry, filters: &mut Filters) {
    const REQUESTS: usize = 50;
    report.table("Second request, 8 MiB", &["the engine", "a running agent, by xDS"]);
    let mut module = module::module(8 << 20);
    module::tag(&mut module, u64::MAX);
    let pull = Pull::publish(world, registry, "second", Layout::Artifact, &module).await;
    let directory = world.folder("engine", User::Tests, 0o711);
    let resolver = resolver(directory);
    let request = || ModuleRequest::new(pull.url.parse().expect("a URL"));
    assert!(!resolver.resolve(request()).await.expect("a module").cached);
    filters.deliver(&[&pull.url]).await;
    let (mut engine, mut agent) = (Samples::default(), Samples::default());
    for _ in 0..REQUESTS {
        let request = request();
        let start = Instant::now();
        let module = resolver.resolve(request).await.expect("a module");
        engine.push(start.elapsed());
        assert!(module.cached);
        agent.push(filters.deliver(&[&pull.url]).await);
    }
    report.row("", &[&engine, &agent]);
    let limit = SECOND_REQUEST.as_secs_f64();
    report.goal("the engine", &engine, engine.median(), limit, "1 ms");
    report.goal("through the agent", &agent, agent.median(), limit, "1 ms");
}

fn resolver(directory: PathBuf) -> Resolver {
    let clock = Clock::System;
    let overrides = Overrides { cache_directory: Some(directory.clone()), ..Overrides::default() };
    let config = Loader::new(None, &Environment::default(), overrides).load().expect("the defaults");
    let store = Store::open(&StoreConfig { directory }, clock.clone()).expect("a store");
    let (metrics, _registry) = Metrics::new();
    let engine = resolve_config(&config, FileAccess::Any, config.fetch.timeout, &clock, &metrics);
    Resolver::new(store, engine, places(&config), clock, metrics, TaskTracker::new())
}
