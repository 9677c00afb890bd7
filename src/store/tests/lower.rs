//! Other stores as sources: read, whoever owns them, and never written to.

use std::io::Read as _;
use std::os::unix::fs::symlink;

use super::*;

fn read(store: &Store, payload: &PayloadDigest) -> Vec<Vec<u8>> {
    let found = store.lower(payload).into_iter().map(|mut lower| {
        let mut bytes = Vec::new();
        lower.reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(lower.size, bytes.len() as u64);
        bytes
    });
    found.collect()
}

#[test]
fn what_another_store_has_for_all_is_read_by_digest_whatever_its_owner_and_modes() {
    let (home, other) = (Home::new(), Home::new());
    let lower = other.store();
    let public = put(&lower, &Audience::Public, MODULE);
    let private = put(&lower, &Audience::Private(lower.fingerprint(b"one")), b"private");
    let store = home.store();
    assert_eq!(read(&store, &public.payload), Vec::<Vec<u8>>::new());
    store.look_into(vec![home.0.path().join("nothing"), other.path()]);
    assert_eq!(read(&store, &public.payload), [MODULE]);
    // Though it is this user's own.
    assert_eq!(read(&store, &private.payload), Vec::<Vec<u8>>::new());
    assert_eq!(read(&store, &digest(b"neither")), Vec::<Vec<u8>>::new());

    chmod(&other.v1("public"), 0o777);
    chmod(&public.path, 0o644);
    if is_root() {
        for path in [other.path(), other.v1(""), other.v1("public"), public.path.clone()] {
            std::os::unix::fs::chown(path, Some(1337), None).unwrap();
        }
    }
    let before = files(&other.path());
    assert_eq!(read(&store, &public.payload), [MODULE]);
    assert_eq!(files(&other.path()), before);
    assert_eq!(files(&home.v1("content/blobs")).len(), 0);
}

#[test]
fn links_and_pipes_in_another_store_are_refused() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let (home, other) = (Home::new(), Home::new());
    let lower = other.store();
    let stored = put(&lower, &Audience::Public, MODULE);
    let store = home.store();
    store.look_into(vec![other.path()]);
    let target = other.outside().join("module");
    fs::write(&target, MODULE).unwrap();
    fs::remove_file(only_file(&other.v1("content/blobs"))).unwrap();

    fs::remove_file(&stored.path).unwrap();
    symlink(&target, &stored.path).unwrap();
    assert_eq!(read(&store, &stored.payload), Vec::<Vec<u8>>::new());
    fs::remove_file(&stored.path).unwrap();
    mknodat(CWD, &stored.path, FileType::Fifo, Mode::from_raw_mode(0o444), 0).unwrap();
    assert_eq!(read(&store, &stored.payload), Vec::<Vec<u8>>::new());

    let folder = stored.path.parent().unwrap();
    fs::remove_dir_all(folder).unwrap();
    symlink(other.outside(), folder).unwrap();
    fs::rename(&target, other.outside().join(format!("{}.wasm", stored.payload.hex()))).unwrap();
    assert_eq!(read(&store, &stored.payload), Vec::<Vec<u8>>::new());
}
