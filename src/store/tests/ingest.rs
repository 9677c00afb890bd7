use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};

use super::*;
use crate::store::{Collection, Ingest, Operation};

#[test]
fn a_store_can_be_shared_between_threads() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Store>();
    sent::<Ingest>();
    sent::<Finished>();
}

#[test]
fn what_was_written_is_hashed_and_can_be_read_before_it_is_committed() {
    let home = Home::new();
    let store = home.store();
    let finished = write(&store, MODULE);
    assert_eq!(finished.payload(), digest(MODULE));
    assert_eq!(finished.size(), MODULE.len() as u64);

    let (mut one, mut other) = (finished.reader().unwrap(), finished.reader().unwrap());
    let mut read = Vec::new();
    one.read_to_end(&mut read).unwrap();
    assert_eq!(read, MODULE);
    let mut tail = String::new();
    assert_eq!(other.seek(SeekFrom::End(-6)).unwrap(), MODULE.len() as u64 - 6);
    other.read_to_string(&mut tail).unwrap();
    assert_eq!(tail, "module");
    assert_eq!(other.seek(SeekFrom::Current(-6)).unwrap(), MODULE.len() as u64 - 6);
    assert!(other.seek(SeekFrom::End(-1000)).is_err());
    assert!(files(&home.v1("content/blobs")).is_empty() && files(&home.v1("public")).is_empty());
}

#[test]
fn what_is_dropped_leaves_nothing() {
    let home = Home::new();
    let store = home.store();
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(MODULE).unwrap();
    assert_eq!(files(&home.v1("content/ingest")).len(), 1);
    drop(ingest);
    let mut finished = write(&store, MODULE);
    finished.start_sync();
    drop(finished);
    assert_eq!(files(&home.path()).len(), 2, "the key and the age");
    assert_eq!(store.stats().entries, 0);
}

#[test]
fn a_committed_module_lies_once_with_a_view_for_each_who_may_have_it() {
    let home = Home::new();
    let store = home.store();
    let tag = store.fingerprint(b"credential");
    let hex = digest(MODULE).hex();
    let public = put(&store, &Audience::Public, MODULE);
    let private = put(&store, &Audience::Private(tag), MODULE);

    let root = home.path().canonicalize().unwrap();
    let blob = root.join("v1/content/blobs").join(&hex[..2]).join(&hex);
    assert_eq!(public.path, root.join("v1/public").join(&hex[..2]).join(format!("{hex}.wasm")));
    assert_eq!(private.path, root.join("v1/private").join(tag.hex()).join(format!("{hex}.wasm")));
    let blob = fs::metadata(blob).unwrap();
    assert_eq!((blob.nlink(), blob.mode() & 0o7777), (3, 0o444));
    for stored in [public, private] {
        assert_eq!((stored.payload, stored.size), (digest(MODULE), MODULE.len() as u64));
        assert_eq!(fs::metadata(&stored.path).unwrap().ino(), blob.ino());
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
    }
    assert_eq!(store.stats().entries, 1);
    assert!(files(&home.v1("content/ingest")).is_empty());
}

#[test]
fn committing_what_is_there_changes_nothing() {
    let home = Home::new();
    let store = home.store();
    let first = put(&store, &Audience::Public, MODULE);
    let before = fs::metadata(&first.path).unwrap();
    let mut again = write(&store, MODULE);
    again.start_sync();
    assert_eq!(again.commit(&Audience::Public).unwrap(), first);
    let after = fs::metadata(&first.path).unwrap();
    assert_eq!((after.ino(), after.nlink()), (before.ino(), 2));
    assert_eq!(store.stats().entries, 1);
    assert!(files(&home.v1("content/ingest")).is_empty());
}

#[test]
fn committing_at_once_from_many_threads_and_openings_ends_with_one_file() {
    let home = Home::new();
    let stores = [home.store(), home.store()];
    let start = std::sync::Barrier::new(8);
    let commit = |store: &Store| {
        let mut finished = write(store, MODULE);
        finished.start_sync();
        start.wait();
        finished.commit(&Audience::Public).unwrap()
    };
    let stored: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            stores.iter().cycle().take(8).map(|store| scope.spawn(|| commit(store))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(stored.iter().all(|each| *each == stored[0]));
    let blob = only_file(&home.v1("content/blobs"));
    assert_eq!(fs::metadata(&blob).unwrap().ino(), fs::metadata(&stored[0].path).unwrap().ino());
    assert_eq!(fs::metadata(&blob).unwrap().nlink(), 2);
    assert!(files(&home.v1("content/ingest")).is_empty());
    // Each counts what is there when it first looks, and what it has placed itself: none counts it twice.
    let counted = stores.each_ref().map(|store| store.stats().entries);
    assert!(counted.contains(&1) && counted.iter().all(|entries| *entries <= 1), "{counted:?}");
    for store in &stores {
        Collection::count(store).run().unwrap();
        assert_eq!(store.stats().entries, 1);
    }
}

#[test]
fn leftovers_of_the_dead_are_swept_and_the_living_are_untouched() {
    let home = Home::new();
    let store = home.store();
    let mut living = store.ingest().unwrap();
    living.write_all(b"half of ").unwrap();
    let living_file = only_file(&home.v1("content/ingest"));
    // As the dead leave it: there, and locked by nobody. Its process id is that of a living one.
    let leftover = home.v1("content/ingest").join(format!("{}-0123456789abcdef", std::process::id()));
    fs::write(&leftover, "torn").unwrap();

    home.store();
    assert!(!leftover.exists());
    assert_eq!(only_file(&home.v1("content/ingest")), living_file);
    living.write_all(b"a module").unwrap();
    let stored = living.finish().unwrap().commit(&Audience::Public).unwrap();
    assert_eq!(fs::read(stored.path).unwrap(), b"half of a module");
}

#[test]
#[ignore = "run by a_killed_process_leaves_a_file_that_the_next_start_sweeps"]
fn child_writes_until_it_is_killed() {
    let store = store_of_parent();
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(MODULE).unwrap();
    println!("\nwriting");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_killed_process_leaves_a_file_that_the_next_start_sweeps() {
    let home = Home::new();
    let mut child =
        in_another_process("store::tests::ingest::child_writes_until_it_is_killed", &home.path(), "022");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "writing"));

    home.store();
    only_file(&home.v1("content/ingest"));
    child.kill().unwrap();
    child.wait().unwrap();
    only_file(&home.v1("content/ingest"));
    home.store();
    assert!(files(&home.v1("content/ingest")).is_empty());
}

#[test]
fn a_sweep_between_creating_and_locking_costs_the_writer_nothing() {
    let home = Home::new();
    let faults = Arc::new(Faults::default());
    let store = home.faulty(&faults).unwrap();
    let directory = home.path();
    let (swept, sweeps) = std::sync::mpsc::channel();
    faults.just_before(Operation::Lock, move || {
        let ingest = directory.join("v1/content/ingest");
        let before = files(&ingest).len();
        Store::open(&StoreConfig { directory }, Clock::System).unwrap();
        swept.send((before, files(&ingest).len())).unwrap();
    });
    let stored = put(&store, &Audience::Public, MODULE);
    assert_eq!(sweeps.recv().unwrap(), (1, 0), "the file was there and unlocked, and was swept");
    assert_eq!(fs::read(stored.path).unwrap(), MODULE);
}

/// What went wrong with the file that the content and the view are.
fn damage(path: &Path, how: fn(&Path)) -> u64 {
    how(path);
    fs::metadata(path).unwrap().ino()
}

#[test]
fn a_damaged_module_is_a_miss_until_it_is_brought_again() {
    let shorten = |path: &Path| {
        chmod(path, 0o644);
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap();
        chmod(path, 0o444);
    };
    for how in [shorten as fn(&Path), |path| chmod(path, 0o644), |path| chmod(path, 0o4444)] {
        let home = Home::new();
        let store = home.store();
        let (stored, record) = remember(&store, &Audience::Public);
        let damaged = damage(&stored.path, how);
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None);

        assert_eq!(remember(&store, &Audience::Public), (stored.clone(), record.clone()));
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
        let blob = fs::metadata(only_file(&home.v1("content/blobs"))).unwrap();
        let view = fs::metadata(&stored.path).unwrap();
        assert_eq!((view.ino(), view.nlink()), (blob.ino(), 2));
        assert_ne!(view.ino(), damaged);
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
        assert!(files(&home.v1("content/ingest")).is_empty());
        assert_eq!(store.stats().entries, 1);
    }
}

#[test]
fn a_view_that_is_shorter_than_its_content_is_a_miss() {
    let home = Home::new();
    let store = home.store();
    let (stored, record) = remember(&store, &Audience::Public);
    fs::remove_file(&stored.path).unwrap();
    fs::write(&stored.path, "short").unwrap();
    chmod(&stored.path, 0o444);
    assert_eq!(store.view(&Audience::Public, &stored.payload).unwrap(), None);
    assert_eq!(put(&store, &Audience::Public, MODULE), stored);
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
}

#[test]
fn a_module_whose_content_or_view_is_gone_is_a_miss() {
    for gone in ["content/blobs", "public"] {
        let home = Home::new();
        let store = home.store();
        let (stored, _) = remember(&store, &Audience::Public);
        fs::remove_file(only_file(&home.v1(gone))).unwrap();
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None, "{gone}");
        assert_eq!(store.view(&Audience::Public, &stored.payload).unwrap(), None, "{gone}");
        assert_eq!(put(&store, &Audience::Public, MODULE), stored);
        assert!(store.lookup(&Audience::Public, SOURCE).unwrap().is_some(), "{gone}");
    }
}

#[test]
fn a_store_that_was_emptied_under_a_running_process_works_on() {
    let home = Home::new();
    let store = home.store();
    remember(&store, &Audience::Public);
    fs::remove_dir_all(home.v1("")).unwrap();
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None);
    let (stored, record) = remember(&store, &Audience::Public);
    assert_eq!(fs::read(stored.path).unwrap(), MODULE);
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
    assert_eq!(mode(&home.v1("content")), 0o700);
}

#[test]
fn a_payload_can_be_followed_while_it_is_written() {
    let home = Home::new();
    let store = home.store();
    let mut ingest = store.ingest().unwrap();
    let mut following = ingest.follow().unwrap();
    let follower = std::thread::spawn(move || {
        let mut read = Vec::new();
        following.read_to_end(&mut read).map(|_| (read, following))
    });
    let payload: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    for part in payload.chunks(7_777) {
        ingest.write_all(part).unwrap();
    }
    let finished = ingest.finish().unwrap();
    let (read, mut following) = follower.join().unwrap().unwrap();
    assert!(read == payload);
    drop(finished);
    following.seek(SeekFrom::End(-2)).unwrap();
    assert_eq!(following.read(&mut [0; 8]).unwrap(), 2);
}

#[test]
fn who_follows_a_payload_that_is_given_up_hears_of_it() {
    let home = Home::new();
    let store = home.store();
    let mut ingest = store.ingest().unwrap();
    let mut following = ingest.follow().unwrap();
    ingest.write_all(b"half of").unwrap();
    let follower = std::thread::spawn(move || following.read_to_end(&mut Vec::new()));
    drop(ingest);
    assert!(follower.join().unwrap().is_err());
}
