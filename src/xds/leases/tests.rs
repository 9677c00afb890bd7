use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::digest::PayloadDigest;
use crate::store::{Audience, Collection, Limits, MinFree, StoreConfig};
use crate::xds::machine::memory::{LastGood, Made};

struct Scene {
    folder: tempfile::TempDir,
    clock: ManualClock,
    store: Store,
    metrics: Metrics,
    leases: Leases,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH);
        let directory = folder.path().join("store");
        let store = Store::open(&StoreConfig { directory }, Clock::Manual(clock.clone())).unwrap();
        let expiry = Duration::from_secs(1200);
        store.limit(Limits { expiry, min_free: MinFree::Bytes(0), ..Limits::default() });
        let metrics = Metrics::new().0;
        let leases = Leases::new(store.clone(), metrics.clone());
        Self { folder, clock, store, metrics, leases }
    }

    /// A module with its path.
    fn module(&self, text: &str) -> PathBuf {
        let mut ingest = self.store.ingest().unwrap();
        ingest.write_all(text.as_bytes()).unwrap();
        ingest.finish().unwrap().commit(&Audience::Public).unwrap().path
    }

    /// An agent is ready for so many minutes, without anybody seeing to the leases.
    fn pass(&self, minutes: u32) {
        self.store.grow_older().unwrap();
        for _ in 0..minutes {
            self.clock.advance(Duration::from_secs(60));
            self.store.grow_older().unwrap();
        }
    }

    /// As upkeep does it.
    async fn upkeep(&self, minutes: u32) {
        for _ in 0..minutes {
            self.pass(1);
            self.leases.renew().await;
        }
    }

    fn collect(&self) {
        let mut collection = Collection::of(&self.store, true);
        while collection.step().unwrap() {}
    }

    fn join(&self) -> Member {
        self.leases.join("listener", "node", None)
    }

    /// What is on disk of the node, by name and path.
    fn on_disk(&self) -> Vec<(String, PathBuf)> {
        let lease = self.store.lease(&super::super::memories::subject("listener", "node")).unwrap();
        let path = |view: &View| {
            let hex = view.payload.hex();
            self.store.directory().join(format!("v1/public/{}/{hex}.wasm", &hex[..2]))
        };
        let views = |(name, views): (&String, &Views)| {
            views.keys().map(|view| (name.clone(), path(view))).collect::<Vec<_>>()
        };
        lease.names.iter().flat_map(views).collect()
    }

    fn lease_file(&self) -> PathBuf {
        let folder = self.folder.path().join("store/v1/content/leases");
        std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
    }
}

/// Gives paths by name, and says of each whether Envoy has accepted something.
fn give(member: &Member, given: &[(&str, bool, &[&Path])]) -> Option<oneshot::Receiver<()>> {
    member.give(given.iter().map(|(name, settled, paths)| (*name, *settled, paths.iter().copied())), true)
}

async fn given(member: &Member, what: &[(&str, bool, &[&Path])]) {
    if let Some(written) = give(member, what) {
        written.await.unwrap();
    }
}

fn named(name: &str, path: &Path) -> (String, PathBuf) {
    (name.to_owned(), path.to_owned())
}

#[tokio::test]
async fn what_is_given_is_on_disk_before_and_written_once() {
    let scene = Scene::new();
    let (a, b) = (scene.module("a"), scene.module("b"));
    let member = scene.join();
    let written = give(&member, &[("one", false, &[&a]), ("two", false, &[&b])]);
    written.expect("to be awaited").await.unwrap();
    assert_eq!(scene.on_disk(), [named("one", &a), named("two", &b)]);
    let file = std::fs::metadata(scene.lease_file()).unwrap();
    assert!(give(&member, &[("one", false, &[&a]), ("two", false, &[&b])]).is_none());
    // Envoy has accepted it, and comes back; another name of the same file is no other file.
    assert!(give(&member, &[("one", true, &[&a]), ("two", true, &[&b])]).is_none());
    drop(member);
    let member = scene.join();
    let detour = b.parent().unwrap().join(".").join(b.file_name().unwrap());
    assert!(give(&member, &[("one", false, &[&a]), ("two", false, &[&detour])]).is_none());
    scene.upkeep(3).await;
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(std::fs::metadata(scene.lease_file()).unwrap().ino(), file.ino(), "nothing was written");
}

#[tokio::test]
async fn after_a_restart_the_same_needs_no_other_lease() {
    let scene = Scene::new();
    let a = scene.module("a");
    given(&scene.join(), &[("one", true, &[&a])]).await;
    let before = std::fs::read(scene.lease_file()).unwrap();
    scene.pass(1);
    let next = Leases::new(scene.store.clone(), scene.metrics.clone()).join("listener", "node", None);
    given(&next, &[("one", false, &[&a])]).await;
    assert_eq!(std::fs::read(scene.lease_file()).unwrap(), before);
}

#[tokio::test]
async fn a_living_stream_renews_its_lease_and_one_that_has_ended_does_not() {
    let scene = Scene::new();
    let a = scene.module("a");
    let member = scene.join();
    given(&member, &[("one", true, &[&a])]).await;
    scene.upkeep(48 * 60).await;
    scene.collect();
    assert!(a.exists());
    drop(member);
    scene.upkeep(24 * 60 - 6).await;
    scene.collect();
    assert!(a.exists(), "a day after the last sign, which is five minutes older at the most");
    scene.upkeep(7).await;
    scene.collect();
    assert!(!a.exists());
}

#[tokio::test]
async fn what_an_ended_stream_gave_stays_until_a_later_one_has_moved_on() {
    let scene = Scene::new();
    let (old, new) = (scene.module("old"), scene.module("new"));
    let (first, overlapping) = (scene.join(), scene.join());
    given(&first, &[("one", true, &[&old])]).await;
    given(&overlapping, &[("one", true, &[&old])]).await;
    drop(first);
    // Of a hot restart: the other Envoy moves on, and says nothing of the first one.
    given(&overlapping, &[("one", true, &[&new])]).await;
    scene.upkeep(1).await;
    assert_eq!(scene.on_disk().len(), 2);
    let later = scene.join();
    given(&later, &[("one", false, &[&old, &new])]).await;
    given(&later, &[("one", false, &[&new])]).await;
    scene.upkeep(1).await;
    assert_eq!(scene.on_disk().len(), 2, "not accepted yet");
    given(&later, &[("one", true, &[&new])]).await;
    scene.upkeep(1).await;
    assert_eq!(scene.on_disk(), [named("one", &new)]);
}

#[tokio::test]
async fn of_two_streams_each_keeps_what_it_has() {
    let scene = Scene::new();
    let (old, new) = (scene.module("old"), scene.module("new"));
    let (first, second) = (scene.join(), scene.join());
    given(&first, &[("one", true, &[&old])]).await;
    given(&second, &[("one", true, &[&new])]).await;
    scene.upkeep(1).await;
    assert_eq!(scene.on_disk().len(), 2);
}

#[tokio::test]
async fn a_name_that_is_dropped_takes_its_lease_with_it() {
    let scene = Scene::new();
    let (a, b) = (scene.module("a"), scene.module("b"));
    let member = scene.join();
    given(&member, &[("one", true, &[&a]), ("two", true, &[&b])]).await;
    given(&member, &[("two", true, &[&b])]).await;
    scene.upkeep(1).await;
    assert_eq!(scene.on_disk(), [named("two", &b)]);
}

#[tokio::test]
async fn what_is_remembered_for_later_is_leased() {
    let scene = Scene::new();
    let (a, b) = (scene.module("a"), scene.module("b"));
    let memory = Memory::default();
    let made =
        Made { source_key: [7; 32], payload: PayloadDigest::from_bytes([8; 32]), path: a.as_path().into() };
    memory.lock().accepted("one", false, Some(LastGood { body: Bytes::new(), made }));
    let member = scene.leases.join("listener", "node", Some(memory.clone()));
    given(&member, &[("two", false, &[&b])]).await;
    assert_eq!(scene.on_disk(), [named("one", &a), named("two", &b)]);
    memory.lock().forget("one", 1);
    scene.upkeep(6).await;
    assert_eq!(scene.on_disk(), [named("two", &b)]);
}

#[tokio::test]
async fn a_lease_that_cannot_be_written_stops_nobody_and_holds_all_the_same() {
    let scene = Scene::new();
    let a = scene.module("a");
    given(&scene.join(), &[("one", true, &[&a])]).await;
    let file = scene.lease_file();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let b = scene.module("b");
    let leases = Leases::new(scene.store.clone(), scene.metrics.clone());
    let member = leases.join("listener", "node", None);
    given(&member, &[("one", false, &[&b])]).await;
    leases.renew().await;
    assert_eq!(scene.metrics.lease_failures.get(), 1, "said once");
    std::fs::remove_dir(&file).unwrap();
    scene.pass(60);
    scene.collect();
    assert!(b.exists() && !a.exists(), "held in memory");
    leases.renew().await;
    assert_eq!(scene.on_disk(), [named("one", &b)]);
    assert_eq!(scene.metrics.lease_failures.get(), 1);
}

#[tokio::test]
async fn nodes_that_are_gone_are_forgotten_and_their_leases_are_not() {
    let scene = Scene::new();
    let a = scene.module("a");
    for number in 0..20 {
        given(&scene.leases.join("listener", &number.to_string(), None), &[("one", true, &[&a])]).await;
    }
    // What is written is also synced, by another thread.
    let busy = || scene.leases.nodes().values().any(|node| Arc::strong_count(node) > 1);
    while busy() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scene.upkeep(1).await;
    assert_eq!(scene.leases.nodes().len(), 0);
    scene.upkeep(60).await;
    scene.collect();
    assert!(a.exists());
}

#[tokio::test]
async fn who_comes_while_it_is_written_waits_too() {
    let scene = Scene::new();
    let a = scene.module("a");
    let member = scene.join();
    let busy = member.node.writing.lock().unwrap();
    let first = give(&member, &[("one", false, &[&a])]).unwrap();
    let second = give(&member, &[("one", false, &[&a])]).unwrap();
    assert!(first.is_empty() && second.is_empty());
    drop(busy);
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(scene.on_disk(), [named("one", &a)]);
}

#[tokio::test]
async fn a_view_that_is_leased_under_another_name_is_waited_for_no_more() {
    let scene = Scene::new();
    let (a, b) = (scene.module("a"), scene.module("b"));
    let member = scene.join();
    given(&member, &[("one", true, &[&a])]).await;
    assert!(give(&member, &[("one", true, &[&a]), ("two", false, &[&a])]).is_none());
    let all: [(_, _, &[&Path]); 3] = [("one", true, &[&a]), ("two", false, &[&a]), ("three", false, &[&b])];
    give(&member, &all).unwrap().await.unwrap();
    assert_eq!(scene.on_disk(), [named("one", &a), named("three", &b), named("two", &a)]);
}

#[tokio::test]
async fn what_nobody_is_told_yet_is_written_within_a_minute_and_held_until_then() {
    let scene = Scene::new();
    let (a, b) = (scene.module("a"), scene.module("b"));
    let member = scene.join();
    given(&member, &[("one", true, &[&a])]).await;
    let paths = [a.as_path(), b.as_path()];
    assert!(member.give([("one", true, paths.into_iter())].into_iter(), false).is_none());
    assert_eq!(scene.on_disk().len(), 1);
    scene.pass(30);
    scene.collect();
    assert!(b.exists());
    scene.upkeep(1).await;
    assert_eq!(scene.on_disk().len(), 2);
}

#[tokio::test]
async fn of_two_agents_with_one_node_each_leaves_the_others_part() {
    let scene = Scene::new();
    let (a, b) = (scene.module("a"), scene.module("b"));
    let other = Leases::new(scene.store.clone(), scene.metrics.clone());
    let (ours, theirs) = (scene.join(), other.join("listener", "node", None));
    given(&ours, &[("one", true, &[&a])]).await;
    given(&theirs, &[("one", false, &[&b])]).await;
    for _ in 0..12 {
        scene.upkeep(1).await;
        other.renew().await;
        assert_eq!(scene.on_disk().len(), 2);
    }
    // A later stream of the node moves on.
    let later = other.join("listener", "node", None);
    drop(ours);
    given(&later, &[("one", true, &[&b])]).await;
    other.renew().await;
    assert_eq!(scene.on_disk(), [named("one", &b)]);
}
