//! Files that lie about their bytes: found before they are handed out, or by looking at all.

use super::*;
use crate::store::fs::Identity;
use crate::store::{Damage, Verification, Verified};

const OTHER: &[u8] = b"\0asm\x01\0\0\0 and the rest of a mOdule";

/// Changes bytes in place, as whoever has the file's owner's rights may.
fn overwrite(path: &Path, bytes: &[u8]) {
    chmod(path, 0o644);
    fs::write(path, bytes).unwrap();
    chmod(path, 0o444);
}

/// The same as a disk does it: the file looks as it did.
fn rot(store: &Store, stored: &Stored, bytes: &[u8]) {
    overwrite(&stored.path, bytes);
    let looks = Identity::of(&rustix::fs::stat(&stored.path).unwrap());
    store.seal(&stored.payload, &looks);
}

fn verify(store: &Store) -> Verified {
    let mut verification = Verification::of_all(store);
    while verification.step().unwrap().is_some() {}
    verification.verified().clone()
}

fn quarantined(home: &Home) -> Vec<Vec<u8>> {
    files(&home.v1("content/quarantine")).into_values().collect()
}

/// Nothing of it is visible, the evidence is kept, and it can be brought again.
fn is_found_out(home: &Home, store: &Store, audiences: &[Audience]) {
    assert_eq!(quarantined(home), [OTHER]);
    for visible in ["content/blobs", "public", "private", "content/seals", "content/uses", "content/index"] {
        assert!(files(&home.v1(visible)).is_empty(), "{visible}: {:?}", files(&home.v1(visible)));
    }
    for audience in audiences {
        assert_eq!(store.lookup(audience, SOURCE).unwrap(), None);
        let (stored, record) = remember(store, audience);
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
        assert_eq!(store.view(audience, &stored.payload).unwrap(), Some(stored));
        assert_eq!(store.lookup(audience, SOURCE).unwrap(), Some(record));
    }
    assert!(files(&home.v1("content/ingest")).is_empty());
}

#[test]
fn a_file_that_somebody_has_written_to_is_never_handed_out_after_a_start() {
    for private in [false, true] {
        let home = Home::new();
        let first = home.store();
        let one = Audience::Private(first.fingerprint(b"one"));
        let audiences = if private { vec![Audience::Public, one] } else { vec![Audience::Public] };
        let mut stored = None;
        for audience in &audiences {
            stored = Some(remember(&first, audience).0);
        }
        let stored = stored.unwrap();
        overwrite(&stored.path, OTHER);
        drop(first);

        let store = home.store();
        let audience = audiences.last().unwrap();
        assert!(store.lookup(audience, SOURCE).unwrap().is_some(), "the index knows nothing of it");
        assert_eq!(store.view(audience, &stored.payload).unwrap(), None);
        assert_eq!((store.stats().damaged, store.stats().entries), (1, 0));
        is_found_out(&home, &store, &audiences);
    }
}

#[test]
fn one_that_is_written_to_while_running_is_not_handed_out_either() {
    let home = Home::new();
    let store = home.store();
    let (stored, _) = remember(&store, &Audience::Public);
    assert!(store.view(&Audience::Public, &stored.payload).unwrap().is_some());
    overwrite(&stored.path, OTHER);
    assert_eq!(store.view(&Audience::Public, &stored.payload).unwrap(), None);
    is_found_out(&home, &store, &[Audience::Public]);
}

#[test]
fn what_is_brought_again_never_gets_the_name_of_a_damaged_file() {
    let home = Home::new();
    let store = home.store();
    let (stored, _) = remember(&store, &Audience::Public);
    overwrite(&stored.path, OTHER);
    // Nobody has looked at it meanwhile.
    assert_eq!(put(&store, &Audience::Public, MODULE), stored);
    assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
    assert_eq!(fs::read(only_file(&home.v1("content/blobs"))).unwrap(), MODULE);
    assert_eq!((quarantined(&home), store.stats().entries), (vec![OTHER.to_vec()], 1));
}

#[test]
fn a_whole_file_is_hashed_once_after_a_backup_was_restored_and_is_one_file_again() {
    let home = Home::new();
    let faults = Arc::new(Faults::default());
    let first = home.store();
    let private = Audience::Private(first.fingerprint(b"one"));
    for audience in [Audience::Public, private] {
        remember(&first, &audience);
    }
    drop(first);
    // Other inodes, and a file for each name.
    let copy = home.0.path().join("copy");
    let mut cp = Command::new("cp");
    cp.args(["-r", "--preserve=mode,ownership,timestamps"]).arg(home.path()).arg(&copy);
    assert!(cp.status().unwrap().success());
    fs::remove_dir_all(home.path()).unwrap();
    fs::rename(&copy, home.path()).unwrap();

    let store = home.faulty(&faults).unwrap();
    let payload = digest(MODULE);
    let reads = |audience: &Audience| {
        faults.arm(super::faults::Plan { at: usize::MAX, errno: rustix::io::Errno::IO, for_good: false });
        assert!(store.view(audience, &payload).unwrap().is_some());
        let blob = payload.hex();
        let of_blob = |(operation, path): &&(super::super::Operation, PathBuf)| {
            *operation == super::super::Operation::Read
                && path.ends_with(&blob)
                && !path.starts_with(home.v1("content/seals"))
        };
        faults.disarm().iter().filter(of_blob).count()
    };
    assert!(reads(&Audience::Public) > 0, "the seal says nothing any more");
    assert_eq!(reads(&Audience::Public), 0);
    assert_eq!(reads(&private), 0);
    let blob = fs::metadata(only_file(&home.v1("content/blobs"))).unwrap();
    assert_eq!(blob.nlink(), 3);
    assert_eq!(quarantined(&home), Vec::<Vec<u8>>::new());
    // Nor after the next start.
    drop(store);
    let store = home.faulty(&faults).unwrap();
    faults.arm(super::faults::Plan { at: usize::MAX, errno: rustix::io::Errno::IO, for_good: false });
    assert!(store.view(&private, &payload).unwrap().is_some());
    let blobs = home.v1("content/blobs");
    let read = |(operation, path): &(super::super::Operation, PathBuf)| {
        *operation == super::super::Operation::Read && path.starts_with(&blobs)
    };
    assert!(!faults.disarm().iter().any(read));
}

#[test]
fn a_view_that_is_a_copy_with_other_bytes_is_replaced_before_it_is_handed_out() {
    let home = Home::new();
    let store = home.store();
    let (stored, _) = remember(&store, &Audience::Public);
    for found in [true, false] {
        fs::remove_file(&stored.path).unwrap();
        fs::write(&stored.path, OTHER).unwrap();
        chmod(&stored.path, 0o444);
        match found {
            true => {
                assert_eq!(store.view(&Audience::Public, &stored.payload).unwrap().as_ref(), Some(&stored))
            }
            false => assert_eq!(verify(&store).whole, 1),
        }
        assert_eq!(fs::read(&stored.path).unwrap(), MODULE);
    }
}

#[test]
fn what_a_disk_did_is_found_by_hashing_everything() {
    let home = Home::new();
    let store = home.store();
    let whole = put(&store, &Audience::Public, b"another one");
    let (stored, record) = remember(&store, &Audience::Public);
    rot(&store, &stored, OTHER);
    assert!(store.view(&Audience::Public, &stored.payload).unwrap().is_some(), "it looks as it did");

    // Somebody has hashed it within the hour, as far as its seal tells.
    let mut fresh = Verification::of_unchecked(&store);
    while fresh.step().unwrap().is_some() {}
    assert_eq!(*fresh.verified(), Verified::default());

    let found = verify(&store);
    let damage = Damage {
        payload: stored.payload,
        size: OTHER.len() as u64,
        found: Some(digest(OTHER)),
        path: home.v1("content/blobs").join(&stored.payload.hex()[..2]).join(stored.payload.hex()),
        urls: vec![record.url],
    };
    assert_eq!((found.whole, found.damaged, found.failed), (1, vec![damage], vec![]));
    assert_eq!(found.bytes, whole.size + OTHER.len() as u64);
    assert_eq!(store.view(&Audience::Public, &stored.payload).unwrap(), None);
    assert!(store.view(&Audience::Public, &whole.payload).unwrap().is_some());
}

#[test]
fn a_lease_does_not_keep_damaged_bytes_visible() {
    let home = Home::new();
    let store = home.store();
    let (stored, _) = remember(&store, &Audience::Public);
    let view = store.view_at(&stored.path).unwrap();
    let names = [("filter".to_owned(), [(view, store.age())].into())].into();
    store.write_lease("node", &super::super::Lease::default().followed_by(names)).unwrap().sync().unwrap();
    rot(&store, &stored, OTHER);
    assert_eq!(verify(&store).damaged.len(), 1);
    assert!(!stored.path.exists());
}

#[test]
fn a_file_that_cannot_be_read_is_damaged() {
    let home = Home::new();
    let faults = Arc::new(Faults::default());
    let store = home.faulty(&faults).unwrap();
    let (stored, _) = remember(&store, &Audience::Public);
    let blob = only_file(&home.v1("content/blobs"));
    let mut verification = Verification::of_all(&store);
    let mut failed = false;
    loop {
        let about_to_read = verification.is_reading();
        if about_to_read && !failed {
            faults.arm(super::faults::Plan { at: 0, errno: rustix::io::Errno::IO, for_good: false });
            failed = true;
        }
        if verification.step().unwrap().is_none() {
            break;
        }
    }
    faults.disarm();
    let damaged = &verification.verified().damaged;
    assert_eq!((damaged[0].payload, damaged[0].found, &damaged[0].path), (stored.payload, None, &blob));
}

#[test]
fn the_quarantine_is_bounded_in_number_and_age() {
    let home = Home::new();
    let store = home.store();
    let now = crate::store::partial::seconds(store.clock());
    let quarantine = home.v1("content/quarantine");
    fs::create_dir(&quarantine).unwrap();
    chmod(&quarantine, 0o700);
    let name = |number: u64, at: u64| format!("{}-{at}", digest(&number.to_be_bytes()).hex());
    for number in 0..20 {
        fs::write(quarantine.join(name(number, now - 20 + number)), "bytes").unwrap();
    }
    fs::write(quarantine.join(name(20, now - 8 * 24 * 3600)), "old").unwrap();
    let big = quarantine.join(name(21, now - 1));
    fs::File::create(&big).unwrap().set_len(1 << 31).unwrap();
    fs::write(quarantine.join("not ours"), "stays").unwrap();
    drop(store);
    home.store();
    let left: Vec<String> = files(&quarantine)
        .keys()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut expected: Vec<String> = (4..20).map(|number| name(number, now - 20 + number)).collect();
    expected.push("not ours".to_owned());
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn a_start_or_hashing_everything_follows_no_link() {
    let home = Home::new();
    let store = home.store();
    let (stored, _) = remember(&store, &Audience::Public);
    let outside = home.outside();
    for below in ["content/seals", "content/quarantine"] {
        let _ = fs::remove_dir_all(home.v1(below));
        std::os::unix::fs::symlink(&outside, home.v1(below)).unwrap();
    }
    // Without seals all is hashed; nothing is written down of it.
    let another = home.open();
    assert!(matches!(another, Err(StoreError::Link { .. })), "{another:?}");
    assert!(store.view(&Audience::Public, &stored.payload).unwrap().is_some());
    overwrite(&stored.path, OTHER);
    let found = verify(&store);
    assert_eq!((found.whole, found.damaged.len(), found.failed.len()), (0, 0, 1), "{found:?}");
    assert!(store.view(&Audience::Public, &stored.payload).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
