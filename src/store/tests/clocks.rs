//! The clock on the wall jumps, by a year and more, forward and back. What asks it: the time of a download
//! in its record and that of the last count, both for people; and how old leftovers are.

use std::time::SystemTime;

use rustix::io::Errno;

use super::aging::Aged;
use super::faults::Plan;
use super::*;
use crate::digest::BlobDigest;
use crate::store::{Collection, Lease, Operation, Pin, View};

const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn noon() -> SystemTime {
    SystemTime::now()
}

/// From now: a year on, a year back, and the first of January 1970, where a clock without a battery begins.
fn jumps() -> [SystemTime; 3] {
    [noon() + YEAR, noon() - YEAR, UNIX_EPOCH]
}

fn collect(store: &Store) {
    let mut collection = Collection::of(store, true);
    while collection.step().unwrap() {}
}

#[test]
fn a_clock_that_jumps_ends_no_lease_and_ages_nothing() {
    for wall in jumps() {
        let mut aged = Aged::at(Home::quick(), noon());
        aged.limit(|limits| limits.expiry = 60 * MINUTE);
        let [leased, pinned, used] =
            [&b"leased"[..], b"pinned", b"used"].map(|bytes| put(&aged.store, &Audience::Public, bytes));
        let view = View { audience: Audience::Public, payload: leased.payload };
        let lease = Lease::default().followed_by([("filter".to_owned(), [(view, 0)].into())].into());
        aged.store.write_lease("node", &lease).unwrap().sync().unwrap();
        let pin = Pin { payload: pinned.payload, url: String::new(), who: String::new() };
        aged.store.pin(&pin).unwrap();
        aged.pass(30 * MINUTE);
        for restarted in [false, true] {
            aged.clock.jump(wall);
            if restarted {
                aged.restart();
            }
            aged.pass(12 * MINUTE);
            collect(&aged.store);
            for stored in [&leased, &pinned, &used] {
                assert!(stored.path.exists(), "{wall:?}");
            }
            assert_eq!(aged.store.lease("node").unwrap(), lease);
        }
        assert_eq!(aged.store.age(), 54 * 60);
        // And what comes in at such a time is as young as anything.
        let late = put(&aged.store, &Audience::Public, b"late");
        aged.pass(30 * MINUTE);
        collect(&aged.store);
        assert!(late.path.exists() && leased.path.exists() && pinned.path.exists());
        assert!(!used.path.exists(), "an hour of age after its last use");
        aged.pass(24 * 60 * MINUTE);
        collect(&aged.store);
        assert!(!leased.path.exists() && pinned.path.exists(), "{wall:?}");
    }
}

#[test]
fn a_clock_that_jumps_costs_a_leftover_and_never_what_is_being_written() {
    for wall in jumps() {
        let aged = Aged::at(Home::quick(), noon());
        let size = MODULE.len() as u64;
        let resume =
            |bytes: &[u8]| aged.store.resume(&Audience::Public, &BlobDigest::of(bytes), size).unwrap();
        resume(b"left").write_all(b"left").unwrap();
        let mut written = resume(MODULE);
        written.write_all(&MODULE[..20]).unwrap();
        let mut other = aged.store.ingest().unwrap();
        other.write_all(&MODULE[..20]).unwrap();
        aged.clock.jump(wall);
        drop(aged.another());
        let left = files(&aged.home.v1("content/ingest"));
        assert_eq!(left.into_values().collect::<Vec<_>>(), [&MODULE[..20]; 2], "{wall:?}");
        written.write_all(&MODULE[20..]).unwrap();
        let stored = written.finish().unwrap().commit(&Audience::Public).unwrap();
        assert_eq!(fs::read(stored.path).unwrap(), MODULE);
    }
}

#[test]
fn a_record_of_before_1970_is_one_of_1970() {
    let aged = Aged::at(Home::quick(), UNIX_EPOCH - YEAR);
    let stored = put(&aged.store, &Audience::Public, MODULE);
    let record = Record { fetched_at: UNIX_EPOCH - YEAR, ..record_of(&stored) };
    aged.store.record(&Audience::Public, SOURCE, &record).unwrap();
    let found = aged.store.lookup(&Audience::Public, SOURCE).unwrap();
    assert_eq!(found, Some(Record { fetched_at: UNIX_EPOCH, ..record }));
}

#[test]
fn what_an_umask_has_closed_to_us_is_swept_though_it_is_of_the_future() {
    for stamp in [noon() - YEAR, noon() + YEAR] {
        let aged = Aged::at(Home::quick(), noon());
        let closed = aged.home.v1("content/ingest/1-0123456789abcdef");
        fs::write(&closed, b"").unwrap();
        fs::File::options().append(true).open(&closed).unwrap().set_modified(stamp).unwrap();
        let open = |at| {
            aged.faults.arm(Plan { at, errno: Errno::ACCESS, for_good: false });
            drop(aged.another());
            aged.faults.disarm()
        };
        // As the tests may be root, who is refused nothing: where it is opened, from a run that sweeps it.
        let is_opening = |(operation, path): &(Operation, PathBuf)| {
            *operation == Operation::Open && path.ends_with(closed.file_name().unwrap())
        };
        let at = open(usize::MAX).iter().position(is_opening).unwrap();
        fs::write(&closed, b"").unwrap();
        fs::File::options().append(true).open(&closed).unwrap().set_modified(stamp).unwrap();
        open(at);
        assert!(!closed.exists());
    }
}
