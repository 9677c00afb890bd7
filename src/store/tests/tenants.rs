//! What one audience has brought and another is given.

use super::aging::Aged;
use super::*;
use crate::store::{Collection, Limits, MinFree, Proof};

const LAYER: &str = "registry.example/team/filter raw sha256:abc";
const REPOSITORY: &str = "registry.example/team/filter";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn tenant(store: &Store, secret: &str) -> Audience {
    Audience::Private(store.fingerprint(secret.as_bytes()))
}

fn prove(store: &Store, who: &Audience, name: &str) {
    let led_to = (&PayloadDigest::of(MODULE), &SourceDigest::of(b"manifest"));
    store.prove(who, REPOSITORY, name, led_to, Duration::ZERO).unwrap();
}

fn proof(store: &Store, who: &Audience, name: &str) -> Option<Proof> {
    store.proof(who, REPOSITORY, name).unwrap()
}

/// With room, and a module that stays for longer than proofs do.
fn aged() -> Aged {
    let aged = Aged::new();
    let min_free = MinFree::Bytes(0);
    aged.store.limit(Limits { min_free, expiry: 365 * DAY, proof: DAY, ..Limits::default() });
    aged
}

fn sweep(store: &Store) {
    let mut collection = Collection::of(store, true);
    while collection.step().unwrap() {}
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn what_another_brought_is_the_same_file_in_a_view_of_ones_own() {
    let home = Home::new();
    let store = home.store();
    let (mine, theirs) = (tenant(&store, "mine"), tenant(&store, "theirs"));
    let (brought, record) = remember(&store, &theirs);
    let prepare = |size| {
        assert_eq!(size, MODULE.len() as u64);
        vec![store.prepare_record(&mine, SOURCE, &record).unwrap()]
    };
    let shared = store.share(&mine, &brought.payload, prepare).unwrap().unwrap();
    assert_ne!(shared.path, brought.path);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&shared.path), inode(&brought.path));
    assert_eq!(store.lookup(&mine, SOURCE).unwrap(), Some(record));
    assert_eq!(store.lookup(&theirs, SOURCE).unwrap().unwrap().payload, brought.payload);
    // Without another look at its bytes.
    let again = home.store();
    assert_eq!(again.view(&mine, &brought.payload).unwrap(), Some(shared));
    // And once more, where it is there already.
    assert!(store.share(&mine, &brought.payload, |_| Vec::new()).unwrap().is_some());
}

#[test]
fn what_is_missing_or_damaged_is_shared_with_nobody() {
    let home = Home::new();
    let store = home.store();
    let (mine, theirs) = (tenant(&store, "mine"), tenant(&store, "theirs"));
    let none = |_| panic!("there is nothing to record");
    assert_eq!(store.share(&mine, &PayloadDigest::of(MODULE), none).unwrap(), None);
    let brought = put(&store, &theirs, MODULE);
    chmod(&brought.path, 0o644);
    fs::write(&brought.path, b"\0asm\x01\0\0\0 and the rest of another").unwrap();
    chmod(&brought.path, 0o444);
    assert_eq!(home.store().share(&mine, &brought.payload, none).unwrap(), None);
    assert_eq!(store.view(&mine, &brought.payload).unwrap(), None);
}

#[test]
fn a_layer_is_known_in_its_repository_while_its_payload_is_there() {
    let home = Home::new();
    let store = home.store();
    let payload = PayloadDigest::of(MODULE);
    store.remember_layer(LAYER, &payload).unwrap();
    assert_eq!(store.payload_of_layer(LAYER).unwrap(), None, "nobody has brought it");
    put(&store, &Audience::Public, MODULE);
    assert_eq!(home.store().payload_of_layer(LAYER).unwrap(), Some(payload));
    let elsewhere = LAYER.replace("registry.example", "evil.example");
    assert_eq!(store.payload_of_layer(&elsewhere).unwrap(), None, "the digest alone says nothing");
    store.remove(&payload, false).unwrap();
    assert_eq!(files(&home.v1("content/layers")), Vec::<PathBuf>::new());
}

#[test]
fn what_is_torn_or_lies_under_another_s_name_is_dropped_and_counted() {
    let home = Home::new();
    let store = home.store();
    let who = tenant(&store, "mine");
    put(&store, &who, MODULE);
    store.remember_layer(LAYER, &PayloadDigest::of(MODULE)).unwrap();
    prove(&store, &who, "@a");
    let mut dropped = 0;
    let layer = files(&home.v1("content/layers")).remove(0);
    let proven = files(&home.v1("content/proofs")).remove(0);
    assert_eq!((mode(&layer), mode(&proven)), (0o600, 0o600));
    for (file, is_known) in [
        (&layer, &(|| store.payload_of_layer(LAYER).unwrap().is_some()) as &dyn Fn() -> bool),
        (&proven, &|| proof(&store, &who, "@a").is_some()),
    ] {
        let whole = fs::read(file).unwrap();
        assert!(is_known());
        for length in 0..whole.len() {
            fs::write(file, &whole[..length]).unwrap();
            assert!(!is_known(), "{length}");
            dropped += 1;
            assert_eq!(store.dropped_records(), dropped);
        }
        fs::write(file, &whole).unwrap();
        assert!(is_known());
    }
    // Another's, who has shown something.
    prove(&store, &tenant(&store, "theirs"), "@b");
    let theirs = files(&home.v1("content/proofs")).into_iter().find(|file| *file != proven).unwrap();
    fs::copy(theirs, &proven).unwrap();
    assert_eq!(proof(&store, &who, "@a"), None);
    assert_eq!(store.dropped_records(), dropped + 1);
}

#[test]
fn a_proof_is_one_credentials_in_one_repository_and_names_neither() {
    let home = Home::new();
    let store = home.store();
    let (mine, theirs) = (tenant(&store, "mine"), tenant(&store, "theirs"));
    prove(&store, &mine, "@a");
    prove(&store, &Audience::Public, "@b");
    assert!(proof(&home.store(), &mine, "@a").unwrap().is_fresh);
    assert_eq!(store.proof(&mine, "registry.example/team/other", "@a").unwrap(), None);
    for (who, name) in [(theirs, "@a"), (mine, "@b"), (Audience::Public, "@a")] {
        assert_eq!(proof(&store, &who, name), None);
    }
    let tag = match mine {
        Audience::Private(tag) => tag.hex(),
        Audience::Public => unreachable!(),
    };
    for file in files(&home.v1("content/proofs")) {
        let text = format!("{} {}", file.display(), fs::read_to_string(&file).unwrap());
        assert!(
            !text.contains(&tag) && !text.contains("registry.example") && !text.contains("mine"),
            "{text}"
        );
    }
    assert_eq!(mode(&home.v1("content/proofs")), 0o700);
}

#[test]
fn a_refusal_ends_what_that_credential_has_shown_in_that_repository() {
    let home = Home::new();
    let store = home.store();
    let (mine, theirs) = (tenant(&store, "mine"), tenant(&store, "theirs"));
    for who in [&mine, &theirs] {
        prove(&store, who, "@a");
        prove(&store, who, ":v1");
    }
    let led_to = (&PayloadDigest::of(MODULE), &SourceDigest::of(b"manifest"));
    store.prove(&mine, "registry.example/team/other", "@a", led_to, Duration::ZERO).unwrap();
    store.end_proofs(&mine, REPOSITORY).unwrap();
    store.end_proofs(&mine, "registry.example/never/asked").unwrap();
    let again = home.store();
    for name in ["@a", ":v1"] {
        assert_eq!(proof(&again, &mine, name), None);
        assert!(proof(&again, &theirs, name).is_some());
    }
    assert!(again.proof(&mine, "registry.example/team/other", "@a").unwrap().is_some());
    prove(&store, &mine, "@a");
    assert!(proof(&store, &mine, "@a").is_some(), "it is let in again");
}

#[test]
fn a_proof_grows_old_with_the_store_and_with_no_clock() {
    let aged = aged();
    let who = tenant(&aged.store, "mine");
    aged.pass(HOUR);
    prove(&aged.store, &who, "@a");
    // A weekend without an agent, and a clock that is set.
    aged.clock.advance(100 * DAY);
    assert!(proof(&aged.store, &who, "@a").unwrap().is_fresh);
    aged.pass(DAY - HOUR);
    assert!(proof(&aged.store, &who, "@a").unwrap().is_fresh);
    aged.pass(HOUR);
    let old = proof(&aged.store, &who, "@a").unwrap();
    assert!(!old.is_fresh && old.ago >= DAY, "{old:?}");
    // What was shown long ago is as old, whenever it is written down.
    let led_to = (&old.payload, &old.source);
    aged.store.prove(&who, REPOSITORY, "@b", led_to, old.ago).unwrap();
    assert!(!proof(&aged.store, &who, "@b").unwrap().is_fresh);
    aged.store.limit(Limits { proof: 2 * DAY, ..aged.store.limits() });
    assert!(proof(&aged.store, &who, "@a").unwrap().is_fresh, "it is the operator's to say");
}

#[test]
fn a_proof_of_a_time_that_has_not_come_is_none() {
    let aged = aged();
    let who = tenant(&aged.store, "mine");
    aged.pass(HOUR);
    prove(&aged.store, &who, "@a");
    let file = files(&aged.home.v1("content/proofs")).remove(0);
    let text = fs::read_to_string(&file).unwrap();
    let shown = format!("\"shown\":{}", aged.store.age());
    assert!(text.contains(&shown), "{text}");
    // Another process may count a little ahead.
    fs::write(&file, text.replace(&shown, &format!("\"shown\":{}", aged.store.age() + 60))).unwrap();
    assert!(proof(&aged.store, &who, "@a").unwrap().is_fresh);
    fs::write(&file, text.replace(&shown, &format!("\"shown\":{}", aged.store.age() + 7200))).unwrap();
    assert_eq!(proof(&aged.store, &who, "@a"), None);
}

#[test]
fn a_sweep_takes_proofs_that_are_over_and_of_nothing_or_a_month_old() {
    let mut aged = aged();
    let (kept, lost) = (tenant(&aged.store, "kept"), tenant(&aged.store, "lost"));
    put(&aged.store, &kept, MODULE);
    prove(&aged.store, &kept, "@a");
    let led_to = (&PayloadDigest::of(b"gone"), &SourceDigest::of(b"manifest"));
    aged.store.prove(&lost, REPOSITORY, "@a", led_to, Duration::ZERO).unwrap();
    let there = |store: &Store| [&kept, &lost].map(|who| proof(store, who, "@a").is_some());
    sweep(&aged.store);
    assert_eq!(there(&aged.store), [true, true], "young");
    aged.pass(DAY + HOUR);
    sweep(&aged.store);
    assert_eq!(there(&aged.store), [true, false]);
    assert_eq!(fs::read_dir(aged.home.v1("content/proofs")).unwrap().count(), 1, "its folder is gone");
    // A month as the store counts, by its own file.
    aged.restart();
    fs::write(aged.home.v1("content/age"), (31 * DAY).as_secs().to_string()).unwrap();
    aged.restart();
    sweep(&aged.store);
    assert_eq!(there(&aged.store), [false, false]);
    assert_eq!(fs::read_dir(aged.home.v1("content/proofs")).unwrap().count(), 0);
}
