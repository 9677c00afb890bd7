//! The policy and the flights, against a small registry that can be made to wait.

mod processes;
mod tags;
mod tenants;
mod unchanged;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::clock::ManualClock;
use crate::digest::{BlobDigest, PayloadDigest};
use crate::fetch::{FetchConfig, FileAccess, Retries};
use crate::store::StoreConfig;

/// Of a fetch; a silent server is given as long.
const LIMIT: Duration = Duration::from_secs(120);

/// Of looks at a tag.
const INTERVAL: Duration = Duration::from_secs(10);

const MODULES: [&[u8]; 2] = [
    include_bytes!("../../fixtures/modules/add-header-v1.wasm"),
    include_bytes!("../../fixtures/modules/add-header-v2.wasm"),
];

/// Blobs of `slow` wait while it is closed; those of `stuck` come but for the last byte.
#[derive(Clone)]
struct Shop {
    goods: Arc<Mutex<BTreeMap<String, Bytes>>>,
    asked: watch::Sender<Vec<String>>,
    open: watch::Sender<bool>,
    /// How it answers a HEAD.
    heads: Arc<Mutex<Heads>>,
    /// The status of every answer to a GET, instead of what it has.
    refuses: Arc<Mutex<Option<u16>>>,
}

#[derive(Debug, Clone, Copy)]
enum Heads {
    Answered,
    WithoutDigest,
    /// As if it had everything.
    Claimed,
    /// With this status.
    Refused(u16),
}

impl Shop {
    /// Offers a module under a tag; gives the digest of its manifest.
    fn offer(&self, name: &str, module: &'static [u8]) -> SourceDigest {
        let blob = BlobDigest::of(module);
        let manifest = json!({
            "schemaVersion": 2,
            "layers": [{"mediaType": "application/wasm", "digest": blob.to_string(), "size": module.len()}],
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest = SourceDigest::of(&manifest);
        let (repository, tag) = name.split_once(':').unwrap();
        let mut goods = self.goods.lock().unwrap();
        goods.insert(format!("/v2/{repository}/manifests/{tag}"), manifest);
        goods.insert(format!("/v2/{repository}/blobs/{blob}"), Bytes::from_static(module));
        digest
    }

    /// Offers an image of these layers under a tag, the first one the lowest.
    fn offer_layers(&self, name: &str, layers: &[&Bytes]) {
        let (repository, tag) = name.split_once(':').unwrap();
        let mut goods = self.goods.lock().unwrap();
        let describe = |layer: &&Bytes| {
            let digest = BlobDigest::of(layer).to_string();
            goods.insert(format!("/v2/{repository}/blobs/{digest}"), (*layer).clone());
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len()})
        };
        let layers: Vec<_> = layers.iter().map(describe).collect();
        let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
        goods.insert(format!("/v2/{repository}/manifests/{tag}"), manifest.into());
    }

    /// GETs of manifests and of blobs so far.
    fn asked(&self) -> (usize, usize) {
        let asked = self.asked.borrow();
        let of =
            |kind| asked.iter().filter(|path: &&String| path.starts_with('/') && path.contains(kind)).count();
        (of("/manifests/"), of("/blobs/"))
    }

    /// Waits for so many requests.
    async fn was_asked(&self, manifests: usize, blobs: usize) {
        let mut asked = self.asked.subscribe();
        while self.asked() != (manifests, blobs) {
            asked.changed().await.unwrap();
        }
    }

    /// Looks at tags so far.
    fn looks(&self) -> usize {
        let asked = self.asked.borrow();
        asked.iter().filter(|path| path.starts_with("HEAD ") && path.contains("/manifests/")).count()
    }

    fn answer_head(&self, path: &str) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let answer = Response::builder();
        let answer = match (*self.heads.lock().unwrap(), self.goods.lock().unwrap().get(path)) {
            (Heads::Refused(status), _) => answer.status(status),
            (Heads::Claimed, _) => answer,
            (_, None) => answer.status(404),
            (Heads::WithoutDigest, Some(_)) => answer,
            (Heads::Answered, Some(manifest)) => {
                answer.header("Docker-Content-Digest", SourceDigest::of(manifest).to_string())
            }
        };
        answer.body(Full::default().boxed_unsync()).unwrap()
    }

    async fn answer(self, method: Method, path: String) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        if method == Method::HEAD {
            self.asked.send_modify(|asked| asked.push(format!("HEAD {path}")));
            return self.answer_head(&path);
        }
        self.asked.send_modify(|asked| asked.push(path.clone()));
        if path.contains("/slow/blobs/") {
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
        }
        let found = self.goods.lock().unwrap().get(&path).cloned();
        let refused = *self.refuses.lock().unwrap();
        let found = found.filter(|_| refused.is_none());
        let status = refused.unwrap_or(if found.is_some() { 200 } else { 404 });
        let mut bytes = found.unwrap_or_default();
        let body = if path.contains("/stuck/blobs/") {
            bytes.truncate(bytes.len() - 1);
            let begun = stream::iter([Ok(Frame::data(bytes))]);
            StreamBody::new(begun.chain(stream::pending())).boxed_unsync()
        } else {
            Full::new(bytes).boxed_unsync()
        };
        Response::builder().status(status).body(body).unwrap()
    }
}

/// A resolver with a store of its own and a shop to ask.
struct Place {
    resolver: Resolver,
    shop: Shop,
    clock: ManualClock,
    address: SocketAddr,
    folder: TempDir,
    tracker: TaskTracker,
    _server: AbortOnDropHandle<()>,
}

impl Place {
    async fn new(concurrency: usize) -> Place {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shop = Shop {
            goods: Arc::default(),
            asked: watch::Sender::default(),
            open: watch::Sender::new(true),
            heads: Arc::new(Mutex::new(Heads::Answered)),
            refuses: Arc::default(),
        };
        let seller = shop.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seller = seller.clone();
                connections.spawn(http1::Builder::new().serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                        let answer = seller.clone().answer(method, path);
                        async move { Ok::<_, Infallible>(answer.await) }
                    }),
                ));
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH);
        let tracker = TaskTracker::new();
        let resolver = resolver(&folder, &clock, concurrency, &tracker);
        let _server = AbortOnDropHandle::new(server);
        Place { resolver, shop, clock, address, folder, tracker, _server }
    }

    /// As after a restart.
    fn restarted(&self) -> Resolver {
        resolver(&self.folder, &self.clock, 4, &self.tracker)
    }

    fn request(&self, name: &str) -> ModuleRequest {
        ModuleRequest::new(format!("oci://{}/{name}", self.address).parse().unwrap())
    }

    fn always(&self, name: &str, version: &str) -> ModuleRequest {
        let request = self.request(name);
        ModuleRequest { policy: PullPolicy::Always, resource_version: Some(version.to_owned()), ..request }
    }

    /// Moves the clock on, for those who wait for their turn, until the task has ended.
    async fn until_done<T>(&self, task: tokio::task::JoinHandle<T>) -> T {
        while !task.is_finished() {
            self.clock.advance(Duration::from_millis(20));
            // Disks and sockets do not know that clock.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task.await.unwrap()
    }

    fn ask(&self, request: ModuleRequest) -> tokio::task::JoinHandle<Outcome> {
        let resolver = self.resolver.clone();
        tokio::spawn(async move { resolver.resolve(request).await })
    }
}

fn resolver(folder: &TempDir, clock: &ManualClock, concurrency: usize, tracker: &TaskTracker) -> Resolver {
    let clock = Clock::Manual(clock.clone());
    let directory = folder.path().join("store");
    let store = Store::open(&StoreConfig { directory }, clock.clone()).unwrap();
    let retries = Retries { most: 0, ..Retries::default() };
    let fetch = FetchConfig {
        files: FileAccess::Any,
        progress_timeout: LIMIT * 4,
        retries,
        ..FetchConfig::default()
    };
    let config = ResolveConfig {
        fetcher: Fetcher::new(fetch, clock.clone()),
        timeout: LIMIT,
        tag_interval: INTERVAL,
        limits: Limits::default(),
        budgets: Budgets::default(),
        allow_if_seen: true,
    };
    Resolver::new(
        store,
        config,
        Places::new(concurrency, concurrency * 2),
        clock,
        Metrics::new().0,
        tracker.clone(),
    )
}

fn payload(outcome: &Outcome) -> PayloadDigest {
    outcome.as_ref().unwrap().payload
}

fn label(outcome: Outcome) -> &'static str {
    outcome.unwrap_err().label()
}

#[tokio::test]
async fn the_policy_decides_whether_the_source_is_asked_again() {
    let place = Place::new(4).await;
    let [first, second] = MODULES.map(PayloadDigest::of);
    place.shop.offer("a:t", MODULES[0]);
    let always = |version| place.always("a:t", version);
    let unversioned = ModuleRequest { policy: PullPolicy::Always, ..place.request("a:t") };
    // The request, what it gives, and what the registry has been asked by then.
    let table = [
        (place.request("a:t"), first, (1, 1)),
        (place.request("a:t"), first, (1, 1)),
        (always("1"), first, (2, 1)),
        (always("1"), first, (2, 1)),
        (always("2"), first, (3, 1)),
        // Without a version nothing says that it is the same.
        (unversioned.clone(), first, (4, 1)),
        (unversioned.clone(), first, (5, 1)),
    ];
    for (number, (request, payload, asked)) in table.into_iter().enumerate() {
        assert_eq!(place.resolver.resolve(request).await.unwrap().payload, payload, "{number}");
        assert_eq!(place.shop.asked(), asked, "{number}");
    }
    place.shop.offer("a:t", MODULES[1]);
    let table = [
        (place.request("a:t"), first, (5, 1)),
        (always("3"), second, (6, 2)),
        (place.request("a:t"), second, (6, 2)),
        (always("3"), second, (6, 2)),
        // Back to where it was: another version is another version.
        (always("2"), second, (7, 2)),
    ];
    for (number, (request, payload, asked)) in table.into_iter().enumerate() {
        assert_eq!(place.resolver.resolve(request).await.unwrap().payload, payload, "{number}");
        assert_eq!(place.shop.asked(), asked, "{number}");
    }
}

#[tokio::test]
async fn a_version_is_recorded_only_when_its_pull_has_succeeded() {
    let place = Place::new(4).await;
    place.shop.offer("a:t", MODULES[0]);
    place.resolver.resolve(place.always("a:t", "1")).await.unwrap();
    place.shop.goods.lock().unwrap().clear();
    for asked in [2, 3] {
        assert_eq!(label(place.resolver.resolve(place.always("a:t", "2")).await), "not_found");
        assert_eq!(place.shop.asked(), (asked, 1));
    }
    assert_eq!(
        payload(&place.resolver.resolve(place.always("a:t", "1")).await),
        PayloadDigest::of(MODULES[0])
    );
    assert_eq!(place.shop.asked(), (3, 1));
}

#[tokio::test]
async fn questions_that_differ_share_the_download_that_they_come_to() {
    let place = Place::new(2).await;
    let manifest = place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let expecting = ExpectedDigest::from_bytes(*manifest.as_bytes());
    let mut asking: Vec<_> =
        (0..5).map(|version| place.ask(place.always("slow:t", &version.to_string()))).collect();
    asking.push(place.ask(place.request("slow:t")));
    asking.push(place.ask(ModuleRequest { expected: Some(expecting), ..place.request("slow:t") }));
    // Each asks for itself what there is: all of them, though only two may fetch at once.
    place.shop.was_asked(7, 1).await;
    place.shop.open.send_replace(true);
    for outcome in asking {
        assert_eq!(payload(&outcome.await.unwrap()), PayloadDigest::of(MODULES[0]));
    }
    assert_eq!(place.shop.asked(), (7, 1));
}

#[tokio::test]
async fn who_expects_another_payload_does_not_share_the_outcome_of_who_expects_none() {
    let place = Place::new(4).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let other = ExpectedDigest::from_bytes(*PayloadDigest::of(MODULES[1]).as_bytes());
    let wrong = place.ask(ModuleRequest { expected: Some(other), ..place.request("slow:t") });
    place.shop.was_asked(1, 1).await;
    let right = place.ask(place.request("slow:t"));
    place.shop.was_asked(2, 1).await;
    place.shop.open.send_replace(true);
    assert_eq!(label(wrong.await.unwrap()), "digest_mismatch");
    // It waits for its turn, in case that what comes is what it wants.
    assert_eq!(payload(&place.until_done(right).await), PayloadDigest::of(MODULES[0]));
    assert_eq!(place.shop.asked(), (2, 2));
}

#[tokio::test]
async fn who_waits_for_another_s_download_leaves_their_place_to_others() {
    let place = Place::new(2).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let first = place.ask(place.always("slow:t", "1"));
    place.shop.was_asked(1, 1).await;
    let second = place.ask(place.always("slow:t", "2"));
    place.shop.was_asked(2, 1).await;
    // One place is taken by the download that stands still; the other one is free.
    place.shop.offer("quick:t", MODULES[1]);
    assert_eq!(
        payload(&place.resolver.resolve(place.request("quick:t")).await),
        PayloadDigest::of(MODULES[1])
    );
    place.shop.open.send_replace(true);
    for outcome in [first, second] {
        assert_eq!(payload(&outcome.await.unwrap()), PayloadDigest::of(MODULES[0]));
    }
}

#[tokio::test]
async fn a_server_that_stands_still_delays_no_module_of_another() {
    let (place, other) = (Place::new(1).await, Place::new(1).await);
    place.shop.offer("slow:t", MODULES[0]);
    other.shop.offer("quick:t", MODULES[1]);
    place.shop.open.send_replace(false);
    let slow = place.ask(place.request("slow:t"));
    place.shop.was_asked(1, 1).await;
    // Its only place is taken.
    let waiting = place.ask(place.request("absent:t"));
    let quick = place.resolver.resolve(other.request("quick:t")).await;
    assert_eq!(payload(&quick), PayloadDigest::of(MODULES[1]));
    assert_eq!((place.shop.asked(), other.shop.asked()), ((1, 1), (1, 1)));
    place.shop.open.send_replace(true);
    assert_eq!(payload(&slow.await.unwrap()), PayloadDigest::of(MODULES[0]));
    assert_eq!(label(waiting.await.unwrap()), "not_found");
}

#[tokio::test]
async fn the_limit_of_who_asked_first_fails_nobody_who_has_more_time() {
    let place = Place::new(4).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let patient = |version| {
        let timeout = Some(LIMIT * 3);
        place.ask(ModuleRequest { timeout, ..place.always("slow:t", version) })
    };
    let first = place.ask(place.always("slow:t", "1"));
    place.shop.was_asked(1, 1).await;
    // The same question, and another one that comes to the same download.
    let (same, other) = (patient("1"), patient("2"));
    place.shop.was_asked(2, 1).await;
    place.clock.advance(LIMIT * 2);
    assert_eq!(label(first.await.unwrap()), "timeout");
    place.shop.open.send_replace(true);
    for outcome in [same, other] {
        assert_eq!(payload(&outcome.await.unwrap()), PayloadDigest::of(MODULES[0]));
    }
}

#[tokio::test]
async fn a_resource_that_would_not_wait_long_does_not_cut_short_what_others_wait_for() {
    let place = Place::new(4).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let hasty = ModuleRequest { timeout: Some(LIMIT / 60), ..place.request("slow:t") };
    let hasty = place.ask(hasty);
    place.shop.was_asked(1, 1).await;
    place.clock.advance(LIMIT / 2);
    place.shop.open.send_replace(true);
    assert_eq!(payload(&hasty.await.unwrap()), PayloadDigest::of(MODULES[0]));
    assert_eq!(place.shop.asked(), (1, 1));
}

#[tokio::test]
async fn one_who_leaves_does_not_end_the_download() {
    let place = Place::new(4).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let only = place.ask(place.request("slow:t"));
    place.shop.was_asked(1, 1).await;
    only.abort();
    assert!(only.await.unwrap_err().is_cancelled());
    place.shop.open.send_replace(true);
    place.tracker.close();
    place.tracker.wait().await;
    assert!(place.resolver.resolve(place.request("slow:t")).await.unwrap().cached);
    assert_eq!(place.shop.asked(), (1, 1));
}

#[tokio::test]
async fn a_download_that_nobody_waits_for_gives_its_place_back_after_the_grace() {
    let place = Place::new(1).await;
    place.shop.offer("stuck:t", MODULES[0]);
    place.shop.offer("quick:t", MODULES[1]);
    let progress = Arc::new(Progress::default());
    let only = tokio::spawn({
        let (resolver, request, progress) =
            (place.resolver.clone(), place.request("stuck:t"), progress.clone());
        async move { resolver.resolve_watched(request, progress).await }
    });
    // A thread has begun to read.
    while progress.done.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = place.ask(place.request("quick:t"));
    only.abort();
    assert!(only.await.unwrap_err().is_cancelled());
    settle().await;
    place.clock.advance(GRACE - Duration::from_millis(1));
    settle().await;
    assert_eq!(place.shop.asked(), (1, 1));
    place.clock.advance(Duration::from_millis(1));
    assert_eq!(payload(&waiting.await.unwrap()), PayloadDigest::of(MODULES[1]));
    place.tracker.close();
    place.tracker.wait().await;
    let abandoned = place.resolver.0.metrics.fetches.get_or_create(&result("abandoned")).get();
    assert_eq!(abandoned, 1);
    // Nor does the thread go on.
    let ingest = place.folder.path().join("store/v1/content/ingest");
    let is_over = async {
        while std::fs::read_dir(&ingest).unwrap().next().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), is_over).await.expect("what was written is removed");
}

/// Lets all tasks run as far as they can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_that_fails_fails_alone_and_is_asked_for_again() {
    let place = Place::new(1).await;
    place.shop.offer("good:t", MODULES[0]);
    place.shop.offer("bad:t", b"\0asm\x01\0\0\0");
    let (bad, good) = (place.ask(place.request("bad:t")), place.ask(place.request("good:t")));
    assert_eq!(label(bad.await.unwrap()), "no_abi_version");
    good.await.unwrap().unwrap();
    place.shop.offer("bad:t", MODULES[1]);
    assert_eq!(payload(&place.resolver.resolve(place.request("bad:t")).await), PayloadDigest::of(MODULES[1]));
}

#[tokio::test]
async fn a_restart_asks_for_nothing_and_a_lost_index_for_a_manifest() {
    let place = Place::new(4).await;
    place.shop.offer("a:t", MODULES[0]);
    let first = place.resolver.resolve(place.request("a:t")).await.unwrap();
    place.tracker.close();
    place.tracker.wait().await;
    let restarted = place.restarted().resolve(place.request("a:t")).await.unwrap();
    assert_eq!((restarted.path.as_path(), restarted.cached), (first.path.as_path(), true));
    assert_eq!(place.shop.asked(), (1, 1));
    std::fs::remove_dir_all(place.folder.path().join("store/v1/content/index")).unwrap();
    let again = place.restarted().resolve(place.request("a:t")).await.unwrap();
    assert_eq!((again.path, again.payload), (first.path, first.payload));
    assert_eq!(place.shop.asked(), (2, 1));
}

#[tokio::test]
async fn a_record_that_cannot_be_written_costs_a_fetch_and_no_module() {
    let place = Place::new(4).await;
    place.shop.offer("a:t", MODULES[0]);
    // Longer than a record may be.
    let version = "x".repeat(100_000);
    for asked in [1, 2] {
        let outcome = place.resolver.resolve(place.always("a:t", &version)).await;
        assert_eq!(payload(&outcome), PayloadDigest::of(MODULES[0]));
        assert_eq!(place.shop.asked().0, asked);
    }
}

#[tokio::test]
async fn a_host_whose_bodies_hang_has_only_its_own_places_and_what_is_cached_needs_none() {
    let place = Place::new(2).await;
    let [first, second] = MODULES.map(PayloadDigest::of);
    place.shop.offer("cached:t", MODULES[0]);
    place.shop.offer("other:t", MODULES[1]);
    assert_eq!(payload(&place.ask(place.request("cached:t")).await.unwrap()), first);
    place.shop.open.send_replace(false);
    let names: Vec<_> = (0..6).map(|number| format!("{number}/slow:t")).collect();
    names.iter().for_each(|name| _ = place.shop.offer(name, MODULES[1]));
    let mut hanging: Vec<_> = names.iter().map(|name| place.ask(place.request(name))).collect();
    place.shop.was_asked(3, 3).await;
    // The same server under another name has places of its own.
    let other = format!("oci://localhost:{}/other:t", place.address.port());
    let other = place.ask(ModuleRequest::new(other.parse().unwrap()));
    assert_eq!(payload(&place.until_done(other).await), second);
    assert_eq!(payload(&place.until_done(place.ask(place.request("cached:t"))).await), first);
    assert!(hanging.iter().all(|fetch| !fetch.is_finished()));
    assert_eq!(place.shop.asked(), (4, 4), "of the six that hang, two are asked for");
    place.shop.open.send_replace(true);
    for fetch in hanging.drain(..) {
        assert_eq!(payload(&place.until_done(fetch).await), second);
    }
}
