//! What interrupted pulls leave, and who goes on with it.

use super::*;
use crate::digest::BlobDigest;
use crate::store::Ingest;

const HALF: usize = 20;

fn blob() -> BlobDigest {
    BlobDigest::of(MODULE)
}

fn resume(store: &Store) -> Ingest {
    store.resume(&Audience::Public, &blob(), MODULE.len() as u64).unwrap()
}

/// What a pull leaves that ends after so many bytes.
fn leave(store: &Store, bytes: &[u8]) -> PathBuf {
    let mut ingest = resume(store);
    ingest.write_all(bytes).unwrap();
    drop(ingest);
    only_file(&store.directory().join("v1/content/ingest"))
}

fn left(home: &Home) -> Vec<PathBuf> {
    files(&home.v1("content/ingest")).into_keys().collect()
}

fn age(path: &Path, by: Duration) {
    let then = std::time::SystemTime::now() - by;
    fs::File::options().append(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn the_next_pull_goes_on_where_the_last_one_stopped_also_after_a_start() {
    for restarted in [false, true] {
        let home = Home::new();
        let mut store = home.store();
        let path = leave(&store, &MODULE[..HALF]);
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, MODULE[..HALF].to_vec()));
        if restarted {
            drop(store);
            store = home.store();
        }
        let mut ingest = resume(&store);
        assert_eq!(ingest.size(), HALF as u64);
        let mut following = ingest.follow().unwrap();
        ingest.write_all(&MODULE[HALF..]).unwrap();
        let finished = ingest.finish().unwrap();
        let mut followed = Vec::new();
        std::io::Read::read_to_end(&mut following, &mut followed).unwrap();
        assert_eq!(followed, MODULE);
        assert_eq!((finished.payload(), finished.size()), (digest(MODULE), MODULE.len() as u64));
        let stored = finished.commit(&Audience::Public).unwrap();
        assert_eq!((mode(&stored.path), fs::read(&stored.path).unwrap()), (0o444, MODULE.to_vec()));
        assert_eq!(left(&home), Vec::<PathBuf>::new());
    }
}

#[test]
fn the_source_is_asked_for_the_last_byte_at_least() {
    let home = Home::new();
    let store = home.store();
    for there in [MODULE.to_vec(), [MODULE, b"and more"].concat()] {
        let path = leave(&store, &there);
        let mut ingest = resume(&store);
        assert_eq!(ingest.size(), MODULE.len() as u64 - 1);
        ingest.write_all(&MODULE[MODULE.len() - 1..]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), MODULE);
        assert_eq!(ingest.finish().unwrap().payload(), digest(MODULE));
    }
}

#[test]
fn only_the_same_audience_goes_on_with_the_same_layer() {
    let home = Home::new();
    let store = home.store();
    leave(&store, &MODULE[..HALF]);
    let private = Audience::Private(store.fingerprint(b"credential"));
    let other = BlobDigest::of(b"other");
    let size = MODULE.len() as u64;
    assert_eq!(store.resume(&private, &blob(), size).unwrap().size(), 0);
    assert_eq!(store.resume(&Audience::Public, &other, size).unwrap().size(), 0);
    assert_eq!(resume(&store).size(), HALF as u64);
    assert!(!left(&home)[0].to_str().unwrap().contains(&blob().hex()), "a keyed hash");
}

#[test]
fn one_that_is_being_written_is_neither_shared_nor_swept() {
    let home = Home::new();
    let store = home.store();
    let mut first = resume(&store);
    first.write_all(&MODULE[..HALF]).unwrap();
    let path = only_file(&home.v1("content/ingest"));
    age(&path, Duration::from_secs(1_000_000));
    let other = home.store();
    let mut second = resume(&other);
    assert_eq!(second.size(), 0);
    second.write_all(MODULE).unwrap();
    second.finish().unwrap().commit(&Audience::Public).unwrap();
    first.write_all(&MODULE[HALF..]).unwrap();
    first.finish().unwrap().commit(&Audience::Public).unwrap();
    only_file(&home.v1("content/blobs"));
    assert_eq!(left(&home), Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_become_the_module_is_not_left() {
    let home = Home::new();
    let faults = Arc::new(Faults::default());
    let store = home.faulty(&faults).unwrap();
    drop(resume(&store));
    assert_eq!(left(&home), Vec::<PathBuf>::new(), "nothing was written");

    let mut ingest = resume(&store);
    ingest.write_all(&MODULE[..HALF]).unwrap();
    ingest.discard();
    assert_eq!(left(&home), Vec::<PathBuf>::new());

    let mut ingest = resume(&store);
    ingest.write_all(&MODULE[..HALF]).unwrap();
    drop(ingest.finish().unwrap());
    assert_eq!(left(&home), Vec::<PathBuf>::new(), "it was written to its end");

    let mut ingest = resume(&store);
    ingest.write_all(&MODULE[..HALF]).unwrap();
    faults.arm(faults::Plan { at: 0, errno: rustix::io::Errno::NOSPC, for_good: false });
    assert!(ingest.write_all(&MODULE[HALF..]).is_err());
    faults.disarm();
    let _ = ingest.write_all(b"more");
    drop(ingest);
    assert_eq!(left(&home), Vec::<PathBuf>::new(), "a write has failed");
}

#[test]
fn a_module_is_never_written_to_though_a_crash_left_it_under_both_names() {
    for mode in [0o444, 0o600] {
        let home = Home::new();
        let store = home.store();
        let path = leave(&store, &MODULE[..HALF]);
        fs::remove_file(&path).unwrap();
        let stored = put(&store, &Audience::Public, MODULE);
        fs::hard_link(&stored.path, &path).unwrap();
        chmod(&path, mode);
        let mut ingest = resume(&store);
        assert_eq!(ingest.size(), 0);
        ingest.write_all(b"other bytes").unwrap();
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
        drop(ingest);

        fs::remove_file(only_file(&home.v1("content/ingest"))).unwrap();
        fs::hard_link(&stored.path, &path).unwrap();
        opened_until(|| drop(home.store()), || left(&home).is_empty());
        assert_eq!(left(&home), Vec::<PathBuf>::new());
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
    }
}

#[test]
fn leftovers_that_are_old_or_many_are_swept() {
    let home = Home::quick();
    let store = home.store();
    let hour = Duration::from_secs(3600);
    let path = leave(&store, MODULE);
    age(&path, hour * 25);
    drop(home.store());
    assert_eq!(left(&home), Vec::<PathBuf>::new());

    for number in 0..20u8 {
        let mut ingest = store.resume(&Audience::Public, &BlobDigest::of(&[number]), 100).unwrap();
        ingest.write_all(&[number]).unwrap();
        drop(ingest);
        for path in left(&home) {
            let one_older = fs::metadata(&path).unwrap().modified().unwrap() - Duration::from_secs(60);
            fs::File::options().append(true).open(&path).unwrap().set_modified(one_older).unwrap();
        }
    }
    drop(home.store());
    let contents: Vec<u8> = files(&home.v1("content/ingest")).into_values().flatten().collect();
    assert_eq!(contents.len(), 16);
    assert!((4..20).all(|number| contents.contains(&number)), "the newest: {contents:?}");
}

#[test]
fn whatever_fails_in_going_on_the_module_is_whole_or_the_pull_fails() {
    let mut failed = 0;
    for at in 0.. {
        let home = Home::quick();
        let faults = Arc::new(Faults::default());
        let store = home.faulty(&faults).unwrap();
        leave(&store, &MODULE[..HALF]);
        faults.arm(faults::Plan { at, errno: rustix::io::Errno::IO, for_good: false });
        let outcome = (|| {
            let mut ingest = store.resume(&Audience::Public, &blob(), MODULE.len() as u64)?;
            let at = ingest.size() as usize;
            ingest.write_all(&MODULE[at..]).map_err(StoreError::from_io)?;
            ingest.finish()?.commit(&Audience::Public)
        })();
        let seen = faults.disarm();
        let Some(operation) = seen.get(at) else { break };
        match outcome {
            Ok(stored) => {
                assert_eq!(stored.payload, digest(MODULE), "{operation:?}");
                assert_eq!(fs::read(stored.path).unwrap(), MODULE, "{operation:?}");
            }
            Err(_) => assert!(files(&home.v1("public")).values().all(|bytes| bytes == MODULE)),
        }
        let mut again = resume(&home.store());
        let at = again.size() as usize;
        again.write_all(&MODULE[at..]).unwrap();
        let stored = again.finish().unwrap().commit(&Audience::Public).unwrap();
        assert_eq!((stored.payload, fs::read(stored.path).unwrap()), (digest(MODULE), MODULE.to_vec()));
        failed += 1;
    }
    assert!(failed > 30, "{failed}");
}
