//! Folders of other versions of the format, beside this one's.

use std::os::unix::fs::{chown, symlink};

use super::*;

/// A folder of another version, with something in it.
fn other(home: &Home, name: &str) -> PathBuf {
    let folder = home.path().join(name);
    for (below, mode) in [("", 0o711), ("content", 0o700), ("content/blobs", 0o700), ("public", 0o711)] {
        fs::create_dir_all(folder.join(below)).unwrap();
        chmod(&folder.join(below), mode);
    }
    fs::write(folder.join("content/blobs/module"), MODULE).unwrap();
    fs::hard_link(folder.join("content/blobs/module"), folder.join("public/module.wasm")).unwrap();
    folder
}

fn home() -> Home {
    let home = Home::new();
    fs::create_dir(home.path()).unwrap();
    chmod(&home.path(), 0o711);
    home
}

#[test]
fn an_older_version_that_nobody_uses_or_leases_is_swept() {
    let home = home();
    let older = other(&home, "v0");
    fs::create_dir(older.join("content/leases")).unwrap();
    chmod(&older.join("content/leases"), 0o700);
    let outside = home.outside();
    fs::write(outside.join("file"), "outside").unwrap();
    symlink(&outside, older.join("content/link")).unwrap();
    put(&home.store(), &Audience::Public, MODULE);
    assert!(!older.exists());
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
}

#[test]
fn an_older_version_stays_while_something_of_it_is_leased_or_somebody_uses_it() {
    let home = home();
    let older = other(&home, "v0");
    let leases = older.join("content/leases");
    fs::create_dir(&leases).unwrap();
    chmod(&leases, 0o700);
    fs::write(leases.join("node"), "").unwrap();
    drop(home.store());
    assert_eq!(fs::read(older.join("public/module.wasm")).unwrap(), MODULE);

    fs::remove_file(leases.join("node")).unwrap();
    let uses = fs::File::open(&older).unwrap();
    uses.lock_shared().unwrap();
    drop(home.store());
    assert_eq!(fs::read(older.join("public/module.wasm")).unwrap(), MODULE);
    drop(uses);
    drop(home.store());
    assert!(!older.exists());
}

#[test]
fn an_older_version_that_is_not_ours_alone_is_left_alone() {
    let home = home();
    let older = other(&home, "v0");
    chmod(&older, 0o777);
    drop(home.store());
    assert!(older.join("public/module.wasm").exists());
    if is_root() {
        chmod(&older, 0o711);
        chown(older.join("public"), Some(4711), None).unwrap();
        drop(home.store());
        assert!(older.join("public/module.wasm").exists());
    }
}

#[test]
fn newer_versions_and_what_is_no_version_are_left_alone() {
    let home = home();
    let names = ["v2", "v17", "v01", "v4294967296", "version", "v", "v-1"];
    let others = names.map(|name| other(&home, name));
    chmod(&others[0], 0o777);
    put(&home.store(), &Audience::Public, MODULE);
    for folder in others {
        assert_eq!(fs::read(folder.join("public/module.wasm")).unwrap(), MODULE, "{}", folder.display());
    }
}

#[test]
fn who_uses_this_version_keeps_later_ones_from_sweeping_it() {
    let home = home();
    let (store, second) = (home.store(), home.store());
    let later = fs::File::open(home.v1("")).unwrap();
    assert!(later.try_lock().is_err());
    drop(store);
    assert!(later.try_lock().is_err());
    drop(second);
    later.try_lock().unwrap();
    let error = home.open().unwrap_err();
    assert!(error.to_string().contains("could not lock"), "{error}");
    drop(later);
    home.store();
}
