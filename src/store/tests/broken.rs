//! Each operation of the store fails once, and once for good: what is visible is whole, what has
//! failed is not visible, and nothing is left behind.

use rustix::io::Errno;

use super::faults::Plan;
use super::*;
use crate::store::Operation;

/// How far a pull came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Nothing,
    Commit,
    Record,
}

/// All that a pull does with the store, in an order that is always the same.
fn pull(store: &Store, audience: &Audience) -> (Reached, Result<(), StoreError>) {
    let stored = (|| {
        let mut ingest = store.ingest()?;
        ingest.write_all(MODULE).map_err(StoreError::from_io)?;
        let mut finished = ingest.finish()?;
        std::io::copy(&mut finished.reader()?, &mut std::io::sink()).map_err(StoreError::from_io)?;
        finished.start_sync();
        finished.commit(audience)
    })();
    match stored.map(|stored| store.record(audience, SOURCE, &record_of(&stored))) {
        Err(error) => (Reached::Nothing, Err(error)),
        Ok(Err(error)) => (Reached::Commit, Err(error)),
        Ok(Ok(())) => (Reached::Record, Ok(())),
    }
}

/// Every module that anybody could be given has the bytes that its name says.
fn all_visible_is_whole(home: &Home) {
    for place in ["content/blobs", "public", "private"] {
        for (path, content) in files(&home.v1(place)) {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(name.trim_end_matches(".wasm"), digest(&content).hex(), "{}", path.display());
            assert_eq!(mode(&path), 0o444);
        }
    }
}

fn leftovers(home: &Home) -> usize {
    files(&home.v1("content/ingest")).len()
}

/// Lets the operation of every number fail, until there is none of that number.
fn each_operation(errno: Errno, for_good: bool, mut test: impl FnMut(Plan) -> bool) {
    let failed = (0..).take_while(|at| test(Plan { at: *at, errno, for_good })).count();
    assert!(failed > 20, "only {failed} operations were seen");
}

#[test]
fn a_pull_of_which_any_operation_fails_leaves_nothing() {
    for (errno, private) in [(Errno::NOSPC, false), (Errno::IO, false), (Errno::IO, true)] {
        each_operation(errno, false, |plan| {
            let home = Home::quick();
            let faults = Arc::new(Faults::default());
            let store = home.faulty(&faults).unwrap();
            let audience =
                if private { Audience::Private(store.fingerprint(b"credential")) } else { Audience::Public };
            faults.arm(plan);
            let (reached, result) = pull(&store, &audience);
            let seen = faults.disarm();
            let Some((failed, path)) = seen.get(plan.at) else {
                result.unwrap();
                return false;
            };
            let context = format!("{failed:?} {} reached {reached:?}: {result:?}", path.display());

            all_visible_is_whole(&home);
            if let Err(error) = &result {
                match errno {
                    Errno::NOSPC => assert!(matches!(error, StoreError::NoSpace { .. }), "{context}"),
                    _ => assert!(matches!(error, StoreError::Io { .. }), "{context}"),
                }
            }
            // Only handles for a second thread, cleaning up, and the seal may fail in silence.
            let seals = home.v1("content/seals");
            let unlinked = seen.iter().position(|(o, _)| *o == Operation::Remove).unwrap_or(plan.at);
            let sealed = seen.iter().rposition(|(_, path)| path.starts_with(&seals)).unwrap_or_default();
            let excusable = matches!(failed, Operation::Open | Operation::Remove)
                || files(&seals).is_empty()
                || (unlinked..sealed).contains(&plan.at);
            assert!(result.is_err() || excusable, "{context}");
            let found = store.lookup(&audience, SOURCE).unwrap();
            // A record whose folder could not be synced is there, and right.
            if reached < Reached::Record && *failed != Operation::SyncFolder {
                assert_eq!(found, None, "{context}");
            }
            if reached == Reached::Nothing && *failed != Operation::SyncFolder {
                let visible = [home.v1("content/blobs"), home.v1("public"), home.v1("private")];
                assert!(visible.iter().all(|place| files(place).is_empty()), "{context}");
                assert_eq!(store.stats().entries, 0, "{context}");
            }
            assert_eq!(leftovers(&home), usize::from(*failed == Operation::Remove), "{context}");

            assert_eq!(pull(&home.store(), &audience).0, Reached::Record, "{context}: then it works");
            opened_until(|| drop(home.store()), || leftovers(&home) == 0);
            assert_eq!(leftovers(&home), 0, "{context}");
            true
        });
    }
}

#[test]
fn a_process_that_dies_at_any_operation_leaves_what_the_next_start_mends() {
    each_operation(Errno::IO, true, |plan| {
        let home = Home::quick();
        let faults = Arc::new(Faults::default());
        let store = home.faulty(&faults).unwrap();
        faults.arm(plan);
        let (reached, result) = pull(&store, &Audience::Public);
        drop(store);
        let seen = faults.disarm();
        let Some((failed, path)) = seen.get(plan.at) else {
            result.unwrap();
            return false;
        };
        let context = format!("{failed:?} {} reached {reached:?}", path.display());

        all_visible_is_whole(&home);
        opened_until(|| drop(home.store()), || leftovers(&home) == 0);
        let store = home.store();
        assert_eq!(leftovers(&home), 0, "{context}");
        let found = store.lookup(&Audience::Public, SOURCE).unwrap();
        assert!(reached < Reached::Record || found.is_some(), "{context}: what was committed is there");
        assert_eq!(pull(&store, &Audience::Public).0, Reached::Record, "{context}");
        only_file(&home.v1("content/blobs"));
        true
    });
}

#[test]
fn a_start_of_which_any_operation_fails_does_no_harm() {
    each_operation(Errno::IO, false, |plan| {
        let home = Home::quick();
        let faults = Arc::new(Faults::default());
        faults.arm(plan);
        let opened = home.faulty(&faults);
        let seen = faults.disarm();
        let Some((failed, path)) = seen.get(plan.at) else {
            opened.unwrap();
            return false;
        };
        let context = format!("{failed:?} {}", path.display());
        if let Ok(store) = &opened {
            pull(store, &Audience::Public).1.unwrap();
        }
        drop(opened);
        let store = home.store();
        assert_eq!(leftovers(&home), 0, "{context}");
        assert_eq!(pull(&store, &Audience::Public).0, Reached::Record, "{context}");
        true
    });
}

#[test]
fn a_repair_of_which_any_operation_fails_leaves_nothing_behind() {
    each_operation(Errno::IO, false, |plan| {
        let home = Home::quick();
        let faults = Arc::new(Faults::default());
        let store = home.faulty(&faults).unwrap();
        let (stored, record) = remember(&store, &Audience::Public);
        chmod(&stored.path, 0o644);
        faults.arm(plan);
        let (reached, _) = pull(&store, &Audience::Public);
        let seen = faults.disarm();
        let Some((failed, path)) = seen.get(plan.at) else {
            assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
            return false;
        };
        let context = format!("{failed:?} {} reached {reached:?}", path.display());
        // The damaged view is in its place until a whole one takes it.
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE, "{context}");
        assert_eq!(leftovers(&home), usize::from(*failed == Operation::Remove), "{context}");
        assert_eq!(pull(&home.store(), &Audience::Public).0, Reached::Record, "{context}");
        all_visible_is_whole(&home);
        true
    });
}

#[test]
fn short_writes_lose_nothing() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    faults.shorten_writes();
    let store = home.faulty(&faults).unwrap();
    let (stored, record) = remember(&store, &Audience::Public);
    assert_eq!(stored.payload, digest(MODULE));
    assert_eq!(fs::read(stored.path).unwrap(), MODULE);
    assert_eq!(home.store().lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
}

#[test]
fn an_ingest_of_which_a_write_failed_cannot_be_finished() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    let store = home.faulty(&faults).unwrap();
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(b"the first half, ").unwrap();
    faults.arm(Plan { at: 0, errno: Errno::NOSPC, for_good: false });
    assert!(ingest.write_all(b"which fails, ").is_err());
    ingest.write_all(b"and the last").unwrap();
    assert!(matches!(ingest.finish(), Err(StoreError::Broken)));
    assert_eq!(leftovers(&home), 0);
}

#[test]
fn an_early_sync_that_fails_discards_the_module() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    let store = home.faulty(&faults).unwrap();
    let mut finished = write(&store, MODULE);
    // The first operation of it takes a second handle, the next one syncs.
    faults.arm(Plan { at: 1, errno: Errno::IO, for_good: false });
    finished.start_sync();
    let error = finished.commit(&Audience::Public).unwrap_err();
    assert!(matches!(error, StoreError::Io { operation: Operation::Sync, .. }), "{error}");
    assert_eq!(files(&home.path()).len(), 2, "the key and the age");
}
