//! Nothing outside of the store is read or written by way of a link in it.

use std::os::unix::fs::symlink;

use super::*;

/// Puts a link to an empty folder outside in a folder's place.
fn lead_outside(home: &Home, folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    symlink(home.outside(), folder).unwrap();
}

fn is_link(result: Result<impl Sized, StoreError>, path: &Path) {
    match result {
        Err(StoreError::Link { path: found }) => assert_eq!(found, path.to_owned()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a link was followed at {}", path.display()),
    }
}

#[test]
fn a_link_in_the_place_of_a_folder_is_refused_at_the_start() {
    for folder in ["", "content", "content/blobs", "content/index", "content/ingest", "public", "private"] {
        let home = Home::new();
        home.store();
        let folder = home.path().join(Path::new("v1").join(folder).components().as_path());
        lead_outside(&home, &folder);
        is_link(home.open(), &folder);
        assert_eq!(fs::read_dir(home.outside()).unwrap().count(), 0);
    }
}

#[test]
fn a_link_in_the_place_of_a_folder_is_refused_while_running() {
    let first_two = &digest(MODULE).hex()[..2];
    let store_of = |home: &Home| {
        let store = home.store();
        (Audience::Private(store.fingerprint(b"credential")), store)
    };
    type Folder = fn(&Home, &str, &str) -> PathBuf;
    let folders: [Folder; 5] = [
        |home, hh, _| home.v1("content/blobs").join(hh),
        |home, _, tag| home.v1("private").join(tag),
        |home, _, _| home.v1("private"),
        |home, _, _| home.v1("content"),
        |home, _, _| home.v1("content/ingest"),
    ];
    for folder in folders {
        let home = Home::new();
        let (audience, store) = store_of(&home);
        let Audience::Private(tag) = audience else { unreachable!() };
        let folder = folder(&home, first_two, &tag.hex());
        let finished = write(&store, MODULE);
        lead_outside(&home, &folder);
        if folder.ends_with("ingest") {
            is_link(store.ingest(), &folder);
        } else {
            is_link(finished.commit(&audience), &folder);
            is_link(store.view(&audience, &digest(MODULE)), &folder);
        }
        assert_eq!(fs::read_dir(home.outside()).unwrap().count(), 0);
    }
}

#[test]
fn a_link_among_the_records_folders_is_refused() {
    let home = Home::new();
    let store = home.store();
    let (_, record) = remember(&store, &Audience::Public);
    let folder = only_file(&home.v1("content/index")).parent().unwrap().to_owned();
    lead_outside(&home, &folder);
    is_link(store.lookup(&Audience::Public, SOURCE), &folder);
    is_link(store.record(&Audience::Public, SOURCE, &record), &folder);
    assert_eq!(fs::read_dir(home.outside()).unwrap().count(), 0);
    assert!(files(&home.v1("content/ingest")).is_empty());
}

#[test]
fn a_link_in_the_place_of_a_module_is_refused() {
    for place in ["content/blobs", "public"] {
        let home = Home::new();
        let store = home.store();
        let stored = put(&store, &Audience::Public, MODULE);
        let path = only_file(&home.v1(place));
        fs::remove_file(&path).unwrap();
        // A perfect forgery: only its being a link speaks against it.
        let target = home.outside().join("module");
        fs::write(&target, MODULE).unwrap();
        chmod(&target, 0o444);
        symlink(&target, &path).unwrap();

        is_link(store.view(&Audience::Public, &stored.payload), &path);
        is_link(write(&store, MODULE).commit(&Audience::Public), &path);
        assert_eq!(fs::metadata(&target).unwrap().nlink(), 1);
        assert_eq!(fs::read(&target).unwrap(), MODULE);
        assert!(files(&home.v1("content/ingest")).is_empty());
    }
}

#[test]
fn a_link_among_the_files_being_written_or_for_the_key_is_refused() {
    for name in ["content/ingest/1-0123456789abcdef", "content/key"] {
        let home = Home::new();
        home.store();
        let target = home.outside().join("target");
        fs::write(&target, [7; 32]).unwrap();
        chmod(&target, 0o600);
        let _ = fs::remove_file(home.v1(name));
        symlink(&target, home.v1(name)).unwrap();
        is_link(home.open(), &home.v1(name));
        assert_eq!(fs::read(&target).unwrap(), [7; 32]);
    }
}

#[test]
fn what_is_no_file_in_the_place_of_one_is_refused_without_waiting_for_it() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let home = Home::new();
    let store = home.store();
    let stored = put(&store, &Audience::Public, MODULE);
    fs::remove_file(&stored.path).unwrap();
    mknodat(CWD, &stored.path, FileType::Fifo, Mode::from_raw_mode(0o444), 0).unwrap();
    let error = store.view(&Audience::Public, &stored.payload).unwrap_err();
    assert!(matches!(error, StoreError::NotAFile { .. }), "{error}");

    let pipe = home.v1("content/ingest/1-0123456789abcdef");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let error = home.open().unwrap_err();
    assert!(matches!(&error, StoreError::NotAFile { path } if *path == pipe), "{error}");
}

#[test]
fn links_among_what_the_store_keeps_for_itself_are_never_followed_to_write_or_remove() {
    let places = [
        "pins",
        "uses",
        "seals",
        "leases",
        "notes",
        "flights",
        "quarantine",
        "age",
        "age.lock",
        "lock",
        "layers",
        "proofs",
    ];
    for place in places {
        let home = Home::new();
        let store = home.store();
        let (stored, _) = remember(&store, &Audience::Public);
        let outside = home.outside();
        let target = outside.join("target");
        fs::write(&target, "another's").unwrap();
        chmod(&target, 0o644);
        let path = home.v1("content").join(place);
        let is_folder = !matches!(place, "age" | "age.lock" | "lock");
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        symlink(if is_folder { &outside } else { &target }, &path).unwrap();

        // Each does its work, or refuses; none does it outside.
        let pin = crate::store::Pin { payload: stored.payload, url: String::new(), who: String::new() };
        let _ = store.pin(&pin);
        let _ = store.unpin(&stored.payload);
        let _ = store.view(&Audience::Public, &stored.payload);
        let _ = store.write_lease("node", &crate::store::Lease::default());
        let _ = store.write_note("subject", b"note");
        let _ = store.claim(&Audience::Public, "what");
        let _ = store.remember_layer("layer", &stored.payload);
        let led_to = (&stored.payload, &SourceDigest::of(b"manifest"));
        let _ = store.prove(&Audience::Public, "repository", "name", led_to, Duration::ZERO);
        let _ = store.end_proofs(&Audience::Public, "repository");
        let _ = store.grow_older();
        let _ = write(&store, b"another").commit(&Audience::Public);
        let _ = store.remove(&stored.payload, true);
        let _ = home.open();
        let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, std::slice::from_ref(&target), "{place}");
        assert_eq!((fs::read(&target).unwrap(), mode(&target)), (b"another's".to_vec(), 0o644), "{place}");
    }
}
