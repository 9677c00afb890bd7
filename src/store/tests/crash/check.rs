//! What has to hold after a crash: before anybody starts again, after the next start, and after a
//! collection that follows it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::disk::{Tree, materialise};
use super::promises::Promises;
use super::{files, mode};
use crate::clock::{Clock, ManualClock};
use crate::digest::PayloadDigest;
use crate::store::lease::Leased;
use crate::store::observer::Observer;
use crate::store::tests::faults::Faults;
use crate::store::{Collection, Limits, MinFree, Store, StoreConfig};

/// Long enough that what is neither leased nor pinned may go, in two minutes.
const WHILE: usize = 6;

/// Checks one state, in a folder of its own; what follows the start only where `on`.
pub(super) fn check(
    tree: &Tree,
    promises: &Promises,
    bytes: impl Fn(&PayloadDigest) -> Vec<u8>,
    at: &Path,
    on: bool,
) {
    let directory = at.join("store");
    materialise(tree, &directory);
    // Envoy may be there first.
    let visible = visible(&directory);

    let clock = ManualClock::new(SystemTime::now());
    let faults = Arc::new(Faults::default());
    faults.leave_space(1 << 40, 1 << 40);
    let config = StoreConfig { directory: directory.clone() };
    let store =
        Store::open_observed(&config, Clock::Manual(clock.clone()), Observer::Faults(faults)).unwrap();
    let torn = promises.hold(&store);
    nothing_is_left_of_what_was_written(&directory);
    assert_eq!(store.dropped_records(), torn, "nothing else is torn");

    if on {
        go_on(&store, &clock, promises, &visible, bytes);
    }
    drop(store);

    let beside: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["store"]);
    fs::remove_dir_all(&directory).unwrap();
}

/// Collects what may go, and pulls all of it again.
fn go_on(
    store: &Store,
    clock: &ManualClock,
    promises: &Promises,
    visible: &BTreeSet<PayloadDigest>,
    bytes: impl Fn(&PayloadDigest) -> Vec<u8>,
) {
    let mut kept: BTreeSet<PayloadDigest> = store.pins().unwrap().iter().map(|pin| pin.payload).collect();
    for node in promises.nodes() {
        kept.extend(store.lease(node).unwrap().payloads());
    }
    store.limit(Limits {
        expiry: Duration::from_secs(600),
        min_free: MinFree::Bytes(0),
        ..Default::default()
    });
    store.grow_older().unwrap();
    // What lost its last use counts as used when that is noticed.
    let mut collection = Collection::count(store);
    while collection.step().unwrap() {}
    for _ in 0..WHILE {
        clock.advance(Duration::from_secs(120));
        store.grow_older().unwrap();
    }
    let mut collection = Collection::of(store, true);
    while collection.step().unwrap() {}
    // A lease that was damaged, or a lost age, keeps everything for as long as a lease lasts.
    match is_everything_leased(store) {
        true => assert!(views(store.directory()).is_superset(visible)),
        false => only_these_are_left(store.directory(), &kept, visible),
    }

    // And it goes on from there.
    for (who, payload) in promises.modules() {
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(&bytes(&payload)).unwrap();
        let stored = ingest.finish().unwrap().commit(&who.audience(store)).unwrap();
        assert_eq!(fs::read(&stored.path).unwrap(), bytes(&payload));
        assert_eq!(stored.payload, payload);
    }
}

/// The payloads that somebody could open, each with the bytes that it should have.
fn visible(directory: &Path) -> BTreeSet<PayloadDigest> {
    let mut visible = BTreeSet::new();
    for place in ["public", "private", "content/blobs"] {
        for (path, content) in files(&directory.join("v1").join(place)) {
            // What somebody has damaged is not handed out.
            if mode(&path) != 0o444 {
                assert_eq!(content, super::DAMAGE);
                continue;
            }
            let payload = payload_of(&path);
            assert_eq!(PayloadDigest::of(&content), payload, "{}", path.display());
            if place != "content/blobs" {
                visible.insert(payload);
            }
        }
    }
    visible
}

fn is_everything_leased(store: &Store) -> bool {
    let mut leased = Leased::default();
    store.read_leases(&store.lease_names().unwrap(), &mut leased).unwrap();
    leased.everything
}

fn views(directory: &Path) -> BTreeSet<PayloadDigest> {
    ["v1/public", "v1/private"].iter().flat_map(|views| payloads(&directory.join(views))).collect()
}

fn payloads(folder: &Path) -> BTreeSet<PayloadDigest> {
    files(folder).keys().map(|path| payload_of(path)).collect()
}

fn payload_of(path: &Path) -> PayloadDigest {
    PayloadDigest::from_hex(path.file_stem().unwrap().to_str().unwrap()).unwrap()
}

/// But for what can be continued.
fn nothing_is_left_of_what_was_written(directory: &Path) {
    for folder in ["ingest", "flights"] {
        for path in files(&directory.join("v1/content").join(folder)).into_keys() {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(name.starts_with("part-") && mode(&path) == 0o600, "{} is left", path.display());
        }
    }
}

fn only_these_are_left(directory: &Path, kept: &BTreeSet<PayloadDigest>, visible: &BTreeSet<PayloadDigest>) {
    let content = directory.join("v1/content");
    let blobs = payloads(&content.join("blobs"));
    let views = views(directory);
    assert!(blobs.is_subset(kept), "{blobs:?} are left, and {kept:?} to be kept");
    assert!(
        kept.intersection(visible).all(|payload| views.contains(payload)),
        "{kept:?} of {visible:?}: {views:?}"
    );
    assert!(views.is_subset(kept), "views without a payload: {views:?}");
    assert!(payloads(&content.join("uses")).is_subset(kept), "uses without a payload");
    for record in files(&content.join("index")).into_values() {
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let payload = record["payload"].as_str().unwrap().parse().unwrap();
        assert!(kept.contains(&payload), "a record that leads nowhere");
    }
}
