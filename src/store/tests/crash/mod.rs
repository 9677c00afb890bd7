//! The machine crashes: at every point of what the store does, with every loss that a file system may
//! have had, the next start finds a store in which nothing lies and nothing is missing that was promised.
//!
//! What is done is recorded (`recording.rs`), played to a model of a disk up to some point, and there the
//! model loses what it may (`disk.rs`): all combinations of up to [`ALL`] open operations, and of more some
//! that a seed gives. Each outcome is put into a folder and checked (`check.rs`).

mod check;
mod disk;
mod promises;
pub(in crate::store) mod recording;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::SystemTime;

use self::disk::{Disk, Tree};
use self::promises::{Promises, Told, Value, Who};
use self::recording::Event;
use super::aging::Aged;
use super::*;
use crate::digest::BlobDigest;
use crate::store::{Collection, Lease, Pin, View, Views};

const MINUTE: Duration = Duration::from_secs(60);
/// Of so many open operations all combinations are tried.
const ALL: usize = 12;
/// How many are tried of more, at each point. Another number by the environment, and then each state is
/// taken through a collection and another pull, too; otherwise one of so many.
const SAMPLES: usize = 40;
const GOES_ON: u64 = 4;
const SAMPLES_VARIABLE: &str = "WASMFERRY_CRASHES";

const OTHER: &[u8] = b"\0asm\x01\0\0\0 another";
const THIRD: &[u8] = b"\0asm\x01\0\0\0 and one more";
const DAMAGE: &[u8] = b"damaged";
const NODE: &str = "node";
const ANNE: Who = Who::Holder("Anne's");
const BOB: Who = Who::Holder("Bob's");

/// What is done, in a store whose doings are recorded.
struct Film(Aged);

impl Film {
    /// Of a store that has all that it needs.
    fn begin() -> Self {
        let film = Self(Aged::at(Home::quick(), SystemTime::now()));
        film.0.limit(|_| ());
        film.0.faults.record();
        film
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    /// The machine has been up for so long that all is on disk: what is lost is of what comes now.
    fn flush(&self) {
        self.0.faults.told(Event::Flushed(Box::new(Disk::read(&self.0.home.path()))));
    }

    fn asked(&self, told: &Told, value: &Value) {
        self.0.faults.told(Event::Asked(told.clone(), value.clone()));
    }

    fn promised(&self, told: Told, value: Value) {
        self.0.faults.told(Event::Promised(told, value));
    }

    /// Does something after which all of this is so.
    fn promise(&self, told: Vec<(Told, Value)>, act: impl FnOnce()) {
        told.iter().for_each(|(told, value)| self.asked(told, value));
        act();
        told.into_iter().for_each(|(told, value)| self.promised(told, value));
    }

    /// All that a pull does with the store.
    fn pull(&self, who: Who, bytes: &[u8], source: &'static str) {
        let store = self.store();
        let audience = who.audience(store);
        let record =
            record_of(&Stored { path: PathBuf::new(), payload: digest(bytes), size: bytes.len() as u64 });
        let told = vec![
            (Told::Module(who, record.payload), Some(String::new())),
            (Told::Record(who, source), Some(format!("{record:?}"))),
        ];
        self.promise(told, || {
            let _claim = store.claim(&audience, source).unwrap().unwrap();
            let mut ingest = store.ingest().unwrap();
            let (begin, end) = bytes.split_at(bytes.len() / 2);
            ingest.write_all(begin).unwrap();
            ingest.write_all(end).unwrap();
            let finished = ingest.finish().unwrap();
            let prepared = store.prepare_record(&audience, source, &record).unwrap();
            finished.commit_recorded(&audience, vec![prepared]).unwrap();
        });
    }

    /// Gives somebody what another has brought, and writes down how they may have it.
    fn share(&self, who: Who, bytes: &[u8], source: &'static str) {
        let store = self.store();
        let audience = who.audience(store);
        let (payload, size) = (digest(bytes), bytes.len() as u64);
        let record = record_of(&Stored { path: PathBuf::new(), payload, size });
        let told = vec![
            (Told::Module(who, payload), Some(String::new())),
            (Told::Record(who, source), Some(format!("{record:?}"))),
        ];
        self.promise(told, || {
            store.remember_layer(source, &payload).unwrap();
            let prepare = |_| vec![store.prepare_record(&audience, source, &record).unwrap()];
            store.share(&audience, &payload, prepare).unwrap().unwrap();
            store.prove(&audience, source, source, (&payload, &record.source), Duration::ZERO).unwrap();
            store.end_proofs(&audience, source).unwrap();
            store.prove(&audience, source, source, (&payload, &record.source), Duration::ZERO).unwrap();
        });
    }

    fn lease(&self, views: &[(Who, &[u8])]) {
        let store = self.store();
        let view = |(who, bytes): &(Who, &[u8])| {
            (View { audience: who.audience(store), payload: digest(bytes) }, store.age())
        };
        let views: Views = views.iter().map(view).collect();
        let lease = Lease::default().followed_by([("filter".to_owned(), views)].into());
        let told = vec![(Told::Lease(NODE), Some(format!("{lease:?}")))];
        self.promise(told, || store.write_lease(NODE, &lease).unwrap().sync().unwrap());
    }

    fn pin(&self, bytes: &[u8]) {
        let pin = Pin { payload: digest(bytes), url: "oci://x".to_owned(), who: "me".to_owned() };
        let told = vec![(Told::Pin(pin.payload), Some(format!("{pin:?}")))];
        self.promise(told, || self.store().pin(&pin).unwrap());
    }

    fn note(&self, note: &str) {
        let told = vec![(Told::Note("subject"), Some(note.to_owned()))];
        self.promise(told, || self.store().write_note("subject", note.as_bytes()).unwrap());
    }

    /// Collects, of which these may go.
    fn collect(&self, may_go: &[(Who, &[u8], &'static str)]) {
        for (who, bytes, source) in may_go {
            self.asked(&Told::Module(*who, digest(bytes)), &None);
            self.asked(&Told::Record(*who, source), &None);
        }
        self.0.limit(|limits| limits.expiry = 10 * MINUTE);
        let mut collection = Collection::of(self.store(), true);
        while collection.step().unwrap() {}
        for (_, bytes, _) in may_go {
            assert!(!files(&self.0.home.v1("content/blobs")).into_values().any(|there| there == *bytes));
        }
    }

    /// Tries every loss at every point after the last flush; says how many outcomes that were.
    fn end(self, what: &str) -> usize {
        let events = self.0.faults.recorded();
        let flushed = events.iter().rposition(|event| matches!(event, Event::Flushed(_))).unwrap();
        let (before, after) = events.split_at(flushed);
        let mut promises = Promises::default();
        before.iter().for_each(|event| promises.happen(event));
        let Event::Flushed(disk) = &after[0] else { unreachable!("it was found so") };
        let mut disk = Disk::clone(disk);

        let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let bytes = |payload: &PayloadDigest| {
            let modules = [MODULE, OTHER, THIRD];
            modules.into_iter().find(|bytes| digest(bytes) == *payload).unwrap().to_vec()
        };
        let mut seen = HashSet::new();
        let mut random = Random(0x5eed);
        let more: Option<usize> = std::env::var(SAMPLES_VARIABLE).ok().map(|more| more.parse().unwrap());
        let samples = more.unwrap_or(SAMPLES);
        let mut points = 0;
        for number in 1..=after.len() {
            let next = after.get(number);
            // What only adds an operation that may be lost leads to no state less than there was.
            if next.is_none_or(|next| !next.only_adds()) {
                points += 1;
                disk.each_crash(samples, &mut random, |tree| {
                    let mut hash = DefaultHasher::new();
                    (&tree, &promises).hash(&mut hash);
                    let hash = hash.finish();
                    if seen.insert(hash) {
                        let here = format!("{what}: before {next:?}, the {number}. of {}", after.len());
                        let _context = Context(&here, &tree);
                        let on = more.is_some() || hash.is_multiple_of(GOES_ON);
                        check::check(&tree, &promises, bytes, home.path(), on);
                    }
                });
            }
            if let Some(next) = next {
                disk.happen(next);
                promises.happen(next);
            }
        }
        disk.flush();
        assert_eq!(contents(&disk.crashed(&[])), contents(&Disk::read(&self.0.home.path()).crashed(&[])));
        eprintln!("{what}: {} operations, {points} points, {} states", after.len(), seen.len());
        seen.len()
    }
}

/// What the model has, for who compares it with what is really there.
fn contents(tree: &Tree) -> Vec<(&String, Option<&Vec<u8>>)> {
    let each = tree.iter().map(|(path, entry)| match entry {
        disk::Entry::File { content, .. } => (path, Some(content)),
        disk::Entry::Folder { .. } => (path, None),
    });
    each.collect()
}

/// Says on a failure which state it was.
struct Context<'a>(&'a str, &'a Tree);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}, and what is left:", self.0);
            for (path, entry) in self.1 {
                match entry {
                    disk::Entry::Folder { mode } => eprintln!("  {mode:04o} {path}/"),
                    disk::Entry::File { number, content, mode, stamp } => {
                        eprintln!("  {mode:04o} {path} ({number}, {} bytes, {stamp:?})", content.len());
                    }
                }
            }
        }
    }
}

impl Disk {
    fn each_crash(&self, samples: usize, random: &mut Random, mut check: impl FnMut(Tree)) {
        let outcomes = self.outcomes();
        if outcomes.len() <= ALL {
            let mut chosen = vec![0; outcomes.len()];
            loop {
                check(self.crashed(&chosen));
                let Some(digit) = (0..chosen.len()).find(|digit| chosen[*digit] + 1 < outcomes[*digit])
                else {
                    return;
                };
                chosen[..digit].fill(0);
                chosen[digit] += 1;
            }
        }
        let lost = vec![0; outcomes.len()];
        let kept: Vec<usize> = outcomes.iter().map(|outcomes| outcomes - 1).collect();
        for (number, outcomes) in outcomes.iter().enumerate() {
            for outcome in 0..*outcomes {
                for others in [&lost, &kept] {
                    let mut chosen = others.clone();
                    chosen[number] = outcome;
                    check(self.crashed(&chosen));
                }
            }
        }
        for _ in 0..samples {
            let chosen: Vec<_> = outcomes.iter().map(|outcomes| random.below(*outcomes)).collect();
            check(self.crashed(&chosen));
        }
    }
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

#[test]
fn whatever_a_crash_loses_of_the_first_start_the_next_one_works() {
    let home = Home::quick();
    fs::create_dir(home.path()).unwrap();
    chmod(&home.path(), 0o711);
    let faults = Arc::new(Faults::default());
    faults.record();
    faults.told(Event::Flushed(Box::new(Disk::read(&home.path()))));
    let film = Film(Aged::with(home, SystemTime::now(), faults));
    film.pull(ANNE, MODULE, SOURCE);
    film.lease(&[(ANNE, MODULE)]);
    assert!(film.end("the first start") > 500);
}

#[test]
fn whatever_a_crash_loses_of_a_pull_what_is_visible_is_whole_and_what_was_promised_is_there() {
    let film = Film::begin();
    film.flush();
    film.pull(Who::Everybody, MODULE, SOURCE);
    film.lease(&[(Who::Everybody, MODULE)]);
    assert!(film.end("a pull") > 500);
}

#[test]
fn whatever_a_crash_loses_of_a_second_ones_pull_the_first_one_keeps_what_it_has() {
    let film = Film::begin();
    film.pull(Who::Everybody, MODULE, SOURCE);
    film.lease(&[(Who::Everybody, MODULE)]);
    film.flush();
    film.pull(ANNE, MODULE, SOURCE);
    film.lease(&[(Who::Everybody, MODULE), (ANNE, MODULE)]);
    assert!(film.end("a second audience") > 100);
}

#[test]
fn whatever_a_crash_loses_of_what_is_shared_who_brought_it_and_who_was_given_it_have_it() {
    let film = Film::begin();
    film.pull(BOB, MODULE, SOURCE);
    film.lease(&[(BOB, MODULE)]);
    film.flush();
    film.share(ANNE, MODULE, SOURCE);
    film.lease(&[(BOB, MODULE), (ANNE, MODULE)]);
    assert!(film.end("a module that is shared") > 50);
}

#[test]
fn whatever_a_crash_loses_of_a_collection_what_is_leased_and_pinned_is_there() {
    let film = Film::begin();
    film.pull(Who::Everybody, MODULE, SOURCE);
    film.pull(ANNE, OTHER, "other");
    film.pull(BOB, OTHER, "other");
    film.pull(ANNE, THIRD, "third");
    film.lease(&[(Who::Everybody, MODULE)]);
    film.pin(THIRD);
    film.0.pass(30 * MINUTE);
    film.flush();
    film.collect(&[(ANNE, OTHER, "other"), (BOB, OTHER, "other")]);
    assert!(film.end("a collection") > 50);
}

#[test]
fn whatever_a_crash_loses_of_a_collection_what_comes_again_after_it_is_there() {
    let film = Film::begin();
    film.pull(ANNE, MODULE, SOURCE);
    film.0.pass(30 * MINUTE);
    film.flush();
    film.collect(&[(ANNE, MODULE, SOURCE)]);
    film.pull(ANNE, MODULE, SOURCE);
    film.lease(&[(ANNE, MODULE)]);
    assert!(film.end("a pull after a collection") > 200);
}

#[test]
fn whatever_a_crash_loses_of_a_download_in_two_parts_the_module_is_whole_or_not_there() {
    let film = Film::begin();
    film.flush();
    let (store, size) = (film.store(), MODULE.len() as u64);
    let resume = || store.resume(&Audience::Public, &BlobDigest::of(MODULE), size).unwrap();
    let mut ingest = resume();
    ingest.write_all(&MODULE[..20]).unwrap();
    drop(ingest);
    film.promise(vec![(Told::Module(Who::Everybody, digest(MODULE)), Some(String::new()))], || {
        let mut ingest = resume();
        assert_eq!(ingest.size(), 20);
        ingest.write_all(&MODULE[20..]).unwrap();
        ingest.finish().unwrap().commit(&Audience::Public).unwrap();
    });
    assert!(film.end("a download in two parts") > 100);
}

#[test]
fn whatever_a_crash_loses_of_a_repair_nobody_is_given_the_damaged_file() {
    let film = Film::begin();
    film.pull(Who::Everybody, MODULE, SOURCE);
    film.lease(&[(Who::Everybody, MODULE)]);
    let damaged = only_file(&film.0.home.v1("public"));
    chmod(&damaged, 0o644);
    fs::write(&damaged, DAMAGE).unwrap();
    film.promised(Told::Module(Who::Everybody, digest(MODULE)), None);
    film.promised(Told::Record(Who::Everybody, SOURCE), None);
    film.flush();
    film.pull(Who::Everybody, MODULE, SOURCE);
    assert!(film.end("a repair") > 100);
}

#[test]
fn whatever_a_crash_loses_of_small_files_each_is_the_old_one_or_the_new_one() {
    let film = Film::begin();
    for bytes in [MODULE, OTHER] {
        film.pull(Who::Everybody, bytes, SOURCE);
    }
    film.flush();
    film.lease(&[(Who::Everybody, MODULE)]);
    film.note("subject: one");
    film.lease(&[(Who::Everybody, OTHER), (Who::Everybody, MODULE)]);
    film.pin(OTHER);
    film.0.pass(2 * MINUTE);
    film.note("subject: two");
    film.lease(&[(Who::Everybody, OTHER)]);
    film.promise(vec![(Told::Pin(digest(OTHER)), None)], || {
        film.store().unpin(&digest(OTHER)).unwrap();
    });
    assert!(film.end("small files") > 50);
}
