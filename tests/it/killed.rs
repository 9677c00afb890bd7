//! `kill -9` at random moments: processes that pull, read and collect at once in one store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use wasmferry::clock::{Clock, ManualClock};
use wasmferry::module::ModuleRequest;
use wasmferry::store::{self, Audience, Collection, Lease, MinFree, Store, StoreConfig, Views};

use crate::support::bad_server::{BadServer, Reply};
use crate::support::engine;
use crate::support::fixtures::{module, padded};
use crate::support::process::{Process, Program};
use crate::support::pulls::tree;
use crate::support::registry::digest;
use crate::support::world::{User, World};

const PROCESSES: usize = 4;
const MODULES: usize = 200;
const MODULE_BYTES: usize = 20_000;
/// What the store may hold of them.
const MAX_BYTES: usize = MODULES / 5 * MODULE_BYTES;

/// How often one of them is killed; another number by the environment, and then the last start is timed in
/// a store of so many modules.
const KILLS: usize = 40;
const KILLS_VARIABLE: &str = "WASMFERRY_KILLS";
const RECOVERED: usize = 1_000;
const RECOVERY: Duration = Duration::from_secs(1);
/// The longest that one of them lives.
const LIFE: Duration = Duration::from_millis(700);

/// Seconds of the store's age that pass in one of ours.
const HASTE: u32 = 1_200;
/// In so long nothing that was used just now may go: it is two thirds of ten minutes.
const NOT_YET: Duration = Duration::from_millis(330);

/// What [`one_of_those_that_are_killed`] is told.
const DRIVE: &str = "TEST_KILLED";

#[derive(Serialize, Deserialize)]
struct Drive {
    directory: PathBuf,
    name: String,
    seed: u64,
    /// The digest of what each leads to.
    urls: Vec<(String, String)>,
}

/// Numbers that look random, and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Not a test by itself: what a process of the next one does, the library driven as the agent does.
#[test]
fn one_of_those_that_are_killed() {
    let Ok(told) = std::env::var(DRIVE) else { return };
    let Drive { directory, name, seed, urls } = serde_json::from_str(&told).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let time = ManualClock::new(SystemTime::now());
        let store = Store::open(&StoreConfig { directory }, Clock::Manual(time.clone())).unwrap();
        store.limit(store::Limits {
            max_bytes: MAX_BYTES as u64,
            min_free: MinFree::Bytes(0),
            ..store::Limits::default()
        });
        let resolver = engine::resolver(store.clone());
        let (mut random, mut given) = (Random(seed), Vec::<(PathBuf, String)>::new());
        let mut counted_to = Instant::now();
        for round in 0.. {
            let now = Instant::now();
            time.advance((now - counted_to) * HASTE);
            counted_to = now;
            store.grow_older().unwrap();

            let (url, digest) = &urls[random.below(urls.len())];
            match resolver.resolve(ModuleRequest::new(url.parse().unwrap())).await {
                Ok(module) => given.push((module.path, digest.clone())),
                Err(error) if error.label() == "store_full" => {}
                Err(error) => panic!("{url}: {error}"),
            }
            if given.len() > 3 {
                given.remove(0);
            }
            let view = |(path, _): &(PathBuf, String)| (store.view_at(path).unwrap(), store.age());
            let views: Views = given.iter().map(view).collect();
            let lease = Lease::default().followed_by([("a".to_owned(), views)].into());
            // Processes are killed, not the machine.
            let _unsynced = store.write_lease(&name, &lease).unwrap();
            let leased_in_time = now.elapsed() < NOT_YET;
            given.retain(|(path, digest)| match std::fs::read(path) {
                Ok(bytes) => {
                    assert_eq!(crate::support::registry::digest(&bytes), *digest, "{}", path.display());
                    true
                }
                // The newest, while this process was kept from leasing it.
                Err(error) => {
                    assert!(!leased_in_time, "{}: {error} after {:?}", path.display(), now.elapsed());
                    false
                }
            });
            let mut collection = Collection::of(&store, round % 8 == 7);
            while round % 4 == 3 && collection.step().unwrap() {}
        }
    });
}

struct Soak {
    world: World,
    cache: PathBuf,
    urls: Vec<(String, String)>,
    random: Random,
}

impl Soak {
    fn start(&mut self, number: usize) -> Process {
        let drive = Drive {
            directory: self.cache.clone(),
            name: format!("node-{number}"),
            seed: self.random.below(1 << 30) as u64,
            urls: self.urls.clone(),
        };
        let program = Program {
            name: format!("process-{number}"),
            path: std::env::current_exe().unwrap(),
            user: User::Tests,
            args: ["--exact", "killed::one_of_those_that_are_killed", "--nocapture"].map(Into::into).into(),
            env: vec![(DRIVE.into(), serde_json::to_string(&drive).unwrap())],
        };
        program.start(&self.world)
    }

    /// All that somebody may open has the bytes that its name says; how much that is.
    fn all_is_whole(&self) -> usize {
        let mut whole = 0;
        for (path, content) in files(&self.cache.join("v1")) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".wasm") || path.ancestors().any(|above| above.ends_with("content/blobs")) {
                assert_eq!(digest(&content), format!("sha256:{}", name.trim_end_matches(".wasm")));
                whole += 1;
            }
        }
        whole
    }
}

/// All files below a folder of which there may be less at any moment.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.extend(std::fs::read(entry.path()).map(|content| (entry.path(), content))),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_killed_at_random_moments_leave_nothing_wrong_and_nothing_behind() {
    let told = std::env::var(KILLS_VARIABLE).ok().map(|kills| kills.parse::<usize>().unwrap());
    let kills = told.unwrap_or(KILLS);
    let world = World::new();
    let server = BadServer::start(&world).await;
    let filter = module("add-header-v1");
    let mut urls = Vec::new();
    for number in 0..MODULES {
        let bytes = padded(&filter, MODULE_BYTES - number);
        let url = match number % 2 {
            0 => server.image(&format!("m{number}"), "application/wasm", &bytes, Reply::status(500)),
            _ => server.url(&format!("/v2/m{number}/blobs/{}", digest(&bytes))),
        };
        let path = format!("/v2/m{number}/blobs/{}", digest(&bytes));
        urls.push((url, digest(&bytes), path, bytes));
    }
    let bodies: BTreeMap<String, Vec<u8>> =
        urls.iter().map(|(_, _, path, bytes)| (path.clone(), bytes.clone())).collect();
    server.handle(move |seen| bodies.get(&seen.path).map(|bytes| Reply::part(bytes, seen)));
    let cache = world.folder("cache", User::Tests, 0o711);
    let urls = urls.into_iter().map(|(url, digest, ..)| (url, digest)).collect();
    let mut soak = Soak { world, cache, urls, random: Random(0x5eed) };

    let mut processes: Vec<Process> = (0..PROCESSES).map(|number| soak.start(number)).collect();
    let mut looked_at = 0;
    for kill in 0..kills {
        let pause = LIFE / PROCESSES as u32 * soak.random.below(1_000) as u32 / 1_000;
        tokio::time::sleep(pause).await;
        let number = soak.random.below(PROCESSES);
        processes.iter_mut().for_each(Process::assert_running);
        processes[number].kill();
        if kill % 10 == 9 {
            looked_at += soak.all_is_whole();
        }
        processes[number] = soak.start(number);
    }
    assert!(looked_at > 0, "nothing was ever pulled");

    // So many modules, and all of them killed in the middle of it.
    let config = StoreConfig { directory: soak.cache.clone() };
    let filled = Store::open(&config, Clock::System).unwrap();
    for number in 0..told.map_or(0, |_| RECOVERED) {
        use std::io::Write as _;
        let mut ingest = filled.ingest().unwrap();
        ingest.write_all(format!("module {number}").as_bytes()).unwrap();
        ingest.finish().unwrap().commit(&Audience::Public).unwrap();
    }
    drop(filled);
    processes.iter_mut().for_each(Process::assert_running);
    processes.iter_mut().for_each(Process::kill);
    let left = tree(&soak.cache.join("v1/content/ingest")).len();
    let begun = Instant::now();
    let store = Store::open(&config, Clock::System).unwrap();
    let took = begun.elapsed();
    assert!(told.is_none() || took < RECOVERY, "{took:?}");

    let mut collection = Collection::of(&store, true);
    while collection.step().unwrap() {}
    let whole = soak.all_is_whole();
    let names = |folder: &str| -> BTreeSet<String> {
        let files = files(&soak.cache.join("v1").join(folder)).into_keys();
        files
            .map(|path| path.file_name().unwrap().to_str().unwrap().trim_end_matches(".wasm").into())
            .collect()
    };
    let blobs = names("content/blobs");
    for left in ["public", "private", "content/uses"] {
        assert!(names(left).is_subset(&blobs), "{left}");
    }
    assert_eq!(names("content/flights"), BTreeSet::new());
    let partial = names("content/ingest");
    assert!(partial.len() <= 16 && partial.iter().all(|name| name.starts_with("part-")), "{partial:?}");
    assert_eq!(store.dropped_records(), 0);
    eprintln!(
        "{kills} kills: {looked_at} files looked at in between, {whole} at the end, {} downloads; {left} \
         unfinished files and {} modules at the last start, which took {took:?}",
        server.seen().iter().filter(|seen| seen.path.contains("/blobs/")).count(),
        blobs.len(),
    );
}
