//! What is collected, in which order, and what never is.

use rustix::io::Errno;

use super::aging::Aged;
use super::faults::Plan;
use super::*;
use crate::store::{Collection, Lease, MinFree, Pin, View, Views};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const NODE: &str = "node";

/// A module of a hundred bytes.
fn module(number: u32) -> Vec<u8> {
    let mut bytes = format!("\0asm module {number} ").into_bytes();
    bytes.resize(100, b'.');
    bytes
}

fn put_one(aged: &Aged, number: u32) -> Stored {
    put(&aged.store, &Audience::Public, &module(number))
}

/// Which of the first ten modules are in the store.
fn there(aged: &Aged) -> Vec<u32> {
    let blobs = files(&aged.home.v1("content/blobs"));
    let names: Vec<_> = blobs.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let mut there: Vec<u32> =
        (0..10).filter(|number| names.contains(&&*digest(&module(*number)).hex())).collect();
    there.sort_unstable();
    assert_eq!(there.len(), names.len());
    there
}

fn lease_on(store: &Store, stored: &[&Stored]) -> Lease {
    let view = |stored: &&Stored| (View { audience: Audience::Public, payload: stored.payload }, store.age());
    Lease::default().followed_by([("filter".to_owned(), stored.iter().map(view).collect::<Views>())].into())
}

fn collect(store: &Store) {
    let mut collection = Collection::of(store, true);
    while collection.step().unwrap() {}
}

#[test]
fn what_was_used_least_recently_goes_first_and_no_more_than_is_needed() {
    let aged = Aged::new();
    aged.limit(|limits| limits.max_bytes = 300);
    for number in 0..3 {
        put_one(&aged, number);
        aged.pass(20 * MINUTE);
    }
    aged.store.view(&Audience::Public, &digest(&module(0))).unwrap().unwrap();
    aged.pass(20 * MINUTE);
    put_one(&aged, 3);
    assert_eq!(there(&aged), [0, 2, 3]);
    assert_eq!(aged.store.stats().collected, [1, 0, 0]);
    assert_eq!((aged.store.stats().entries, aged.store.stats().bytes), (3, 300));
    put_one(&aged, 4);
    assert_eq!(there(&aged), [0, 3, 4]);
    // The views went with them.
    assert_eq!(files(&aged.home.v1("public")).len(), 3);
}

#[test]
fn what_is_leased_pinned_or_just_used_stays_and_when_that_is_all_the_error_says_so() {
    let aged = Aged::new();
    aged.limit(|limits| limits.max_bytes = 300);
    let (leased, pinned) = (put_one(&aged, 0), put_one(&aged, 1));
    aged.store.write_lease(NODE, &lease_on(&aged.store, &[&leased])).unwrap().sync().unwrap();
    let pin = Pin { payload: pinned.payload, url: "oci://x".to_owned(), who: "me".to_owned() };
    aged.store.pin(&pin).unwrap();
    aged.pass(2 * HOUR);
    put_one(&aged, 2);
    let error = write(&aged.store, &module(3)).commit(&Audience::Public).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Full {
                size: 100,
                limit: 300,
                held: 300,
                modules: 3,
                leased: 1,
                pinned: 1,
                recent: 1
            }
        ),
        "{error}"
    );
    assert_eq!(error.label(), "store_full");
    assert_eq!(there(&aged), [0, 1, 2]);
    assert!(files(&aged.home.v1("content/ingest")).is_empty());
    // What is there already needs no room.
    put_one(&aged, 2);
    aged.pass(11 * MINUTE);
    put_one(&aged, 3);
    assert_eq!(there(&aged), [0, 1, 3]);
    assert_eq!(aged.store.pins().unwrap(), [pin]);
    assert!(aged.store.unpin(&pinned.payload).unwrap());
    assert!(!aged.store.unpin(&pinned.payload).unwrap());
    put_one(&aged, 4);
    assert_eq!(there(&aged), [0, 3, 4]);
}

#[test]
fn modules_that_come_in_at_once_never_exceed_the_limit_nor_refuse_one_another() {
    for _ in 0..30 {
        let aged = Aged::new();
        aged.limit(|limits| limits.max_bytes = 500);
        for number in 0..5 {
            put_one(&aged, number);
        }
        aged.pass(20 * MINUTE);
        std::thread::scope(|scope| {
            for number in 5..10 {
                let aged = &aged;
                scope.spawn(move || put_one(aged, number));
            }
            scope.spawn(|| collect(&aged.store));
        });
        assert_eq!(there(&aged), [5, 6, 7, 8, 9]);
        assert!(aged.store.stats().bytes >= 500, "never too little");
        collect(&aged.store);
        assert_eq!((aged.store.stats().bytes, aged.store.stats().entries), (500, 5));
    }
}

#[test]
fn what_comes_in_is_counted_as_coming_or_as_there_and_never_as_both() {
    let aged = Aged::new();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = || {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let usage = aged.store.usage();
                let both: Vec<_> =
                    usage.arriving.iter().filter(|coming| usage.arrived.contains(coming)).collect();
                assert!(both.is_empty(), "{both:?}");
            }
        };
        let watching = scope.spawn(watch);
        (0..200).for_each(|number| _ = put_one(&aged, number));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        watching.join().unwrap();
    });
}

#[test]
fn nothing_goes_for_what_does_not_fit_anyway() {
    let aged = Aged::new();
    aged.limit(|limits| limits.max_bytes = 300);
    put_one(&aged, 0);
    aged.pass(HOUR);
    let error = write(&aged.store, &[0; 301]).commit(&Audience::Public).unwrap_err();
    assert!(matches!(error, StoreError::Full { size: 301, recent: 0, .. }), "{error}");
    assert_eq!(there(&aged), [0]);
}

#[test]
fn a_module_expires_by_the_stores_age_alone() {
    let mut aged = Aged::new();
    put_one(&aged, 0);
    aged.pass(12 * HOUR);
    aged.store.view(&Audience::Public, &digest(&module(0))).unwrap().unwrap();
    aged.pass(24 * HOUR - 5 * MINUTE);
    collect(&aged.store);
    assert_eq!(there(&aged), [0]);
    // A clock that jumps a year makes it two minutes older, and one that starts a century later nothing.
    aged.clock.advance(Duration::from_secs(365 * 24 * 3600));
    aged.restart();
    for wall in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(100 * 365 * 24 * 3600)] {
        let config = StoreConfig { directory: aged.home.path() };
        let clock = Clock::Manual(crate::clock::ManualClock::new(wall));
        collect(&Store::open(&config, clock).unwrap());
        collect(&aged.home.store());
        assert_eq!(there(&aged), [0]);
    }
    aged.pass(3 * MINUTE);
    collect(&aged.store);
    assert_eq!(there(&aged), [] as [u32; 0]);
    assert_eq!(aged.store.stats().collected, [0, 0, 1]);
}

#[test]
fn the_file_systems_room_is_kept_free() {
    let aged = Aged::new();
    for number in 0..4 {
        put_one(&aged, number);
        aged.pass(MINUTE);
    }
    aged.pass(HOUR);
    aged.faults.leave_space(850, 10_000);
    aged.limit(|limits| limits.min_free = MinFree::Percent(10));
    collect(&aged.store);
    assert_eq!(there(&aged), [2, 3], "150 bytes were missing");
    assert_eq!(aged.store.stats().collected, [0, 2, 0]);
    aged.limit(|limits| limits.min_free = MinFree::Bytes(860));
    collect(&aged.store);
    assert_eq!(there(&aged), [3]);
    // Before what is announced, too.
    aged.faults.leave_space(860, 10_000);
    aged.store.make_room(0);
    assert_eq!(there(&aged), [3]);
    aged.store.make_room(1);
    assert_eq!(there(&aged), [] as [u32; 0]);
}

#[test]
fn a_full_file_system_costs_what_may_go_and_not_the_ingest() {
    let aged = Aged::new();
    aged.limit(|_| ());
    put_one(&aged, 0);
    aged.pass(HOUR);
    aged.faults.leave_space(0, 10_000);
    let mut ingest = aged.store.ingest().unwrap();
    aged.faults.arm(Plan { at: 0, errno: Errno::NOSPC, for_good: false });
    ingest.write_all(&module(1)).unwrap();
    aged.faults.disarm();
    ingest.finish().unwrap().commit(&Audience::Public).unwrap();
    assert_eq!(there(&aged), [1]);
}

#[test]
fn leases_are_kept_across_restarts_until_their_time_is_over() {
    let mut aged = Aged::new();
    aged.limit(|limits| limits.expiry = HOUR);
    let stored = put_one(&aged, 0);
    let lease = lease_on(&aged.store, &[&stored]);
    aged.store.write_lease(NODE, &lease).unwrap().sync().unwrap();
    assert_eq!(mode(&only_file(&aged.home.v1("content/leases"))), 0o600);
    aged.pass(12 * HOUR);
    aged.restart();
    assert_eq!(aged.store.lease(NODE).unwrap(), lease);
    aged.pass(12 * HOUR - MINUTE);
    collect(&aged.store);
    assert_eq!((there(&aged), aged.store.stats().leased), (vec![0], 1));
    aged.pass(MINUTE);
    collect(&aged.store);
    assert_eq!((there(&aged), aged.store.stats().leased), (vec![], 0));
    assert!(files(&aged.home.v1("content/leases")).is_empty(), "nothing is left of it");
}

#[test]
fn what_this_process_holds_stays_without_a_lease_on_disk() {
    let aged = Aged::new();
    let stored = put_one(&aged, 0);
    aged.store.hold(NODE, [stored.payload].into());
    aged.pass(48 * HOUR);
    collect(&aged.store);
    assert_eq!(there(&aged), [0]);
    aged.store.hold(NODE, Default::default());
    collect(&aged.store);
    assert_eq!(there(&aged), [] as [u32; 0]);
}

#[test]
fn after_a_lease_that_cannot_be_read_nothing_is_removed_while_it_could_have_lasted() {
    let damage: [fn(&Path); 4] = [
        |path| fs::write(path, b"").unwrap(),
        |path| fs::write(path, br#"{"format":2,"node":"n","names":{}}"#).unwrap(),
        |path| fs::write(path, br#"{"format":1,"node":"n","names":{"a":{"public/x":1}}}"#).unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        },
    ];
    for damage in damage {
        let mut aged = Aged::new();
        aged.limit(|limits| limits.expiry = HOUR);
        let (stored, _) = (put_one(&aged, 0), put_one(&aged, 1));
        aged.store.write_lease(NODE, &lease_on(&aged.store, &[&stored])).unwrap().sync().unwrap();
        damage(&only_file(&aged.home.v1("content/leases")));
        aged.pass(2 * HOUR);
        collect(&aged.store);
        assert_eq!((there(&aged), aged.store.dropped_records()), (vec![0, 1], 1));
        aged.restart();
        aged.pass(24 * HOUR - MINUTE);
        collect(&aged.store);
        assert_eq!((there(&aged), aged.store.dropped_records()), (vec![0, 1], 0));
        aged.pass(MINUTE);
        collect(&aged.store);
        assert_eq!(there(&aged), [] as [u32; 0]);
        assert!(Path::new("/etc/passwd").exists());
    }
}

#[test]
fn after_a_lost_age_nothing_is_removed_while_a_lease_could_have_lasted() {
    let mut aged = Aged::new();
    aged.limit(|limits| limits.expiry = HOUR);
    put_one(&aged, 0);
    aged.pass(2 * HOUR);
    fs::remove_file(aged.home.v1("content/age")).unwrap();
    let limits = aged.store.limits();
    aged.store = aged.another();
    aged.store.limit(limits);
    assert_eq!(aged.store.age(), 0, "of the only stamp");
    aged.pass(24 * HOUR - MINUTE);
    collect(&aged.store);
    assert_eq!(there(&aged), [0]);
    aged.pass(MINUTE);
    collect(&aged.store);
    assert_eq!(there(&aged), [] as [u32; 0]);
}

#[test]
fn what_lost_its_last_use_was_used_now() {
    let aged = Aged::new();
    aged.limit(|limits| limits.expiry = HOUR);
    put_one(&aged, 0);
    aged.pass(2 * HOUR);
    fs::remove_dir_all(aged.home.v1("content/uses")).unwrap();
    collect(&aged.store);
    aged.pass(HOUR - MINUTE);
    collect(&aged.store);
    assert_eq!(there(&aged), [0]);
    aged.pass(MINUTE);
    collect(&aged.store);
    assert_eq!(there(&aged), [] as [u32; 0]);
}

#[test]
fn records_and_empty_folders_go_with_their_modules() {
    let aged = Aged::new();
    aged.limit(|limits| limits.expiry = HOUR);
    let tag = |secret: &[u8]| Audience::Private(aged.store.fingerprint(secret));
    for audience in [Audience::Public, tag(b"one"), tag(b"two")] {
        remember(&aged.store, &audience);
    }
    let kept = put(&aged.store, &tag(b"two"), b"another");
    aged.pass(HOUR);
    aged.store.view(&tag(b"two"), &kept.payload).unwrap().unwrap();
    collect(&aged.store);
    assert_eq!(aged.store.lookup(&Audience::Public, SOURCE).unwrap(), None);
    assert_eq!(aged.store.dropped_records(), 0);
    assert!(files(&aged.home.v1("content/index")).is_empty());
    assert_eq!(only_file(&aged.home.v1("private")), kept.path);
    assert_eq!(fs::read_dir(aged.home.v1("private")).unwrap().count(), 1, "no empty folder");
    only_file(&aged.home.v1("content/uses"));
    // And all of it can come back.
    remember(&aged.store, &tag(b"one"));
}

/// What is left when only the leased module is.
fn nothing_is_left_but(aged: &Aged, leased: &Stored, context: &str) {
    assert_eq!(only_file(&aged.home.v1("public")), leased.path, "{context}");
    for place in ["content/blobs", "content/uses", "content/index"] {
        assert_eq!(files(&aged.home.v1(place)).len(), 1, "{context}: {place}");
    }
    assert!(files(&aged.home.v1("private")).is_empty(), "{context}");
}

#[test]
fn a_collection_that_dies_at_any_operation_removes_nothing_leased_and_the_next_one_ends_it() {
    let mut number = 0;
    loop {
        let mut aged = Aged::new();
        aged.limit(|limits| limits.expiry = 11 * MINUTE);
        let tag = Audience::Private(aged.store.fingerprint(b"credential"));
        remember(&aged.store, &Audience::Public);
        remember(&aged.store, &tag);
        put_one(&aged, 1);
        let leased = put_one(&aged, 0);
        aged.store.record(&Audience::Public, "leased", &record_of(&leased)).unwrap();
        aged.store.write_lease(NODE, &lease_on(&aged.store, &[&leased])).unwrap().sync().unwrap();
        aged.pass(11 * MINUTE);
        aged.faults.arm(Plan { at: number, errno: Errno::IO, for_good: true });
        let mut collection = Collection::of(&aged.store, true);
        while matches!(collection.step(), Ok(true)) {}
        let seen = aged.faults.disarm();
        let context = format!("{:?}", seen.get(number));
        for (path, content) in files(&aged.home.v1("public")) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert_eq!(name, digest(&content).hex(), "{context}");
        }
        assert!(leased.path.exists(), "{context}");
        assert!(aged.store.lookup(&Audience::Public, "leased").unwrap().is_some(), "{context}");
        aged.restart();
        collect(&aged.store);
        nothing_is_left_but(&aged, &leased, &context);
        put_one(&aged, 1);
        if number >= seen.len() {
            assert!(number > 50, "only {number} operations were seen");
            return;
        }
        number += 1;
    }
}

#[test]
fn one_that_is_needed_between_the_choice_and_the_removal_stays() {
    let aged = Aged::new();
    aged.limit(|limits| limits.expiry = HOUR);
    let stored: Vec<_> = (0..3).map(|number| put_one(&aged, number)).collect();
    aged.pass(2 * HOUR);
    let payload = stored[0].payload;
    let mut collection = Collection::of(&aged.store, true);
    let other = aged.another();
    // The steps up to the removal.
    let mut is_chosen = false;
    while collection.step().unwrap() {
        if !is_chosen && aged.store.stats().counted_at.is_some() {
            is_chosen = true;
            other.view(&Audience::Public, &payload).unwrap().unwrap();
            other.write_lease(NODE, &lease_on(&other, &[&stored[1]])).unwrap().sync().unwrap();
        }
    }
    assert!(is_chosen);
    assert_eq!(there(&aged), [0, 1]);
}

#[test]
fn processes_that_read_put_and_collect_at_once_never_see_half_of_it() {
    let aged = Aged::new();
    let count = 300;
    for number in 0..count {
        put(&aged.store, &Audience::Public, &module(number));
    }
    aged.pass(2 * HOUR);
    aged.store.stop_growing_older().unwrap();
    let stores: Vec<_> = (0..3).map(|_| aged.home.store()).collect();
    stores.iter().for_each(|store| {
        store.limit(crate::store::Limits { expiry: HOUR, min_free: MinFree::Bytes(0), ..Default::default() });
    });
    // Some are needed by nobody, however slow the collectors are.
    let is_needed = |number: &u32| number % 10 != 3;
    let given = std::thread::scope(|scope| {
        let collectors = [&stores[0], &stores[1]].map(|store| scope.spawn(move || collect(store)));
        let reader = scope.spawn(|| {
            let look = |number: &u32| {
                let view = stores[2].view(&Audience::Public, &digest(&module(*number))).unwrap();
                view.inspect(|view| assert_eq!(fs::read(&view.path).unwrap(), module(*number)))
            };
            (0..count).rev().filter(is_needed).filter_map(|number| look(&number)).collect::<Vec<_>>()
        });
        let writer = scope.spawn(|| {
            let numbers = (0..count).step_by(7).filter(is_needed);
            numbers.map(|number| put(&stores[2], &Audience::Public, &module(number))).collect()
        });
        let mut given: Vec<Stored> = reader.join().unwrap();
        given.extend::<Vec<Stored>>(writer.join().unwrap());
        collectors.into_iter().for_each(|collector| collector.join().unwrap());
        given
    });
    assert!(!given.is_empty());
    for stored in given {
        assert_eq!(digest(&fs::read(&stored.path).unwrap()), stored.payload, "what was given is there");
    }
    // What collectors left to the next one while the store was in use all the time.
    collect(&stores[0]);
    let blobs = files(&aged.home.v1("content/blobs")).len();
    assert_eq!(files(&aged.home.v1("public")).len(), blobs);
    assert!(blobs < count as usize, "something was collected");
}

#[test]
fn a_pin_whose_words_are_lost_still_pins() {
    let aged = Aged::new();
    let stored = put_one(&aged, 0);
    let pin = Pin { payload: stored.payload, url: "oci://x".to_owned(), who: "me".to_owned() };
    aged.store.pin(&pin).unwrap();
    fs::write(only_file(&aged.home.v1("content/pins")), b"{").unwrap();
    aged.pass(48 * HOUR);
    collect(&aged.store);
    assert_eq!((there(&aged), aged.store.stats().pinned), (vec![0], 1));
    let [Pin { payload, url, .. }] = &aged.store.pins().unwrap()[..] else { panic!("one pin") };
    assert_eq!((*payload, url.as_str()), (stored.payload, ""));
}
