use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{chown, symlink};
use std::process::Stdio;

use super::*;
use crate::store::{Lease, Operation, Pin};

#[test]
fn a_missing_directory_is_created_with_its_parents() {
    let home = Home::new();
    let directory = home.0.path().join("a/b/store");
    let store = Store::open(&StoreConfig { directory: directory.clone() }, Clock::System).unwrap();
    assert_eq!(store.directory(), directory.canonicalize().unwrap());
    for made in ["a", "a/b", "a/b/store"] {
        assert_eq!(mode(&home.0.path().join(made)), 0o711, "{made}");
    }
}

#[test]
#[ignore = "run by modes_do_not_depend_on_the_umask"]
fn child_fills_a_store() {
    let store = store_of_parent();
    remember(&store, &Audience::Public);
    put(&store, &Audience::Private(store.fingerprint(b"credential")), MODULE);
    let _living = store.ingest().unwrap();
    let ingest = only_file(&store.directory().join("v1/content/ingest"));
    println!("ingest {:o}", mode(&ingest));
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    for umask in ["000", "022", "077"] {
        let home = Home::new();
        let child = in_another_process("store::tests::open::child_fills_a_store", &home.path(), umask);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("ingest 444"), "{output:?}");

        let expected = |path: &Path| {
            let below = path.strip_prefix(home.path()).unwrap();
            let secret = below.starts_with("v1/content");
            match path.is_dir() {
                true if secret => 0o700,
                true => 0o711,
                false
                    if below.starts_with("v1/content/blobs")
                        || path.extension().is_some_and(|e| e == "wasm") =>
                {
                    0o444
                }
                false => 0o600,
            }
        };
        let mut seen = 0;
        let mut waiting = vec![home.path()];
        while let Some(path) = waiting.pop() {
            assert_eq!(mode(&path), expected(&path), "umask {umask}: {}", path.display());
            seen += 1;
            if path.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        assert_eq!(
            seen,
            16 + 9,
            "folders, and a key, an age, a lock, a payload, its use and seal, two views, a record"
        );
    }
}

#[test]
fn a_directory_behind_a_link_is_resolved_once() {
    let home = Home::new();
    let real = home.outside();
    symlink(&real, home.path()).unwrap();
    let store = home.store();
    assert_eq!(store.directory(), real.canonicalize().unwrap());
    fs::remove_file(home.path()).unwrap();
    symlink("/nonexistent", home.path()).unwrap();
    let stored = put(&store, &Audience::Public, MODULE);
    assert!(stored.path.starts_with(real.canonicalize().unwrap()));
    assert_eq!(fs::read(stored.path).unwrap(), MODULE);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_refused() {
    let home = Home::new();
    fs::write(home.path(), "").unwrap();
    let error = home.open().unwrap_err();
    assert!(matches!(&error, StoreError::NotAFolder { path } if path.ends_with("store")), "{error}");
}

#[test]
fn a_directory_that_no_resource_could_name_is_refused() {
    let home = Home::new();
    let directory = home.0.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    let error = Store::open(&StoreConfig { directory }, Clock::System).unwrap_err();
    assert!(matches!(error, StoreError::NotText { .. }), "{error}");
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let home = Home::new();
    let directory = if is_root() {
        fs::create_dir(home.path()).unwrap();
        chown(home.path(), Some(4711), Some(4711)).unwrap();
        home.path()
    } else {
        PathBuf::from("/usr")
    };
    let error = Store::open(&StoreConfig { directory: directory.clone() }, Clock::System).unwrap_err();
    assert!(matches!(&error, StoreError::NotOurs { path, .. } if *path == directory), "{error}");
    assert!(!directory.join("v1").exists());
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    for wide in [0o775, 0o757, 0o1777] {
        let home = Home::new();
        fs::create_dir(home.path()).unwrap();
        chmod(&home.path(), wide);
        let error = home.open().unwrap_err();
        assert!(matches!(error, StoreError::WritableByOthers { mode, .. } if mode == wide), "{error}");
        assert!(error.to_string().contains(&format!("{wide:04o}")), "{error}");
        assert!(files(&home.path()).is_empty() && !home.v1("").exists());
    }
}

#[test]
fn an_existing_directory_keeps_the_mode_that_the_operator_gave_it() {
    for given in [0o700, 0o750, 0o755] {
        let home = Home::new();
        fs::create_dir(home.path()).unwrap();
        chmod(&home.path(), given);
        home.store();
        assert_eq!(mode(&home.path()), given);
    }
}

#[test]
fn an_inner_folder_that_others_could_list_is_refused() {
    for (folder, wide) in [("content", 0o711), ("content/ingest", 0o750), ("public", 0o755), ("", 0o755)] {
        let home = Home::new();
        home.store();
        chmod(&home.v1(folder), wide);
        let error = home.open().unwrap_err();
        assert!(matches!(error, StoreError::Mode { mode, .. } if mode == wide), "{folder}: {error}");
    }
}

#[test]
fn an_inner_folder_that_others_could_write_to_is_refused() {
    for folder in ["", "content", "content/blobs", "content/index", "content/ingest", "public", "private"] {
        let home = Home::new();
        home.store();
        chmod(&home.v1(folder), 0o730);
        let error = home.open().unwrap_err();
        assert!(matches!(error, StoreError::WritableByOthers { .. }), "{folder}: {error}");
    }
}

#[test]
fn an_inner_folder_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    for folder in ["", "content", "content/blobs", "content/index", "content/ingest", "public", "private"] {
        let home = Home::new();
        home.store();
        chown(home.v1(folder), Some(4711), None).unwrap();
        let error = home.open().unwrap_err();
        assert!(matches!(error, StoreError::NotOurs { owner: 4711, .. }), "{folder}: {error}");
    }
}

#[test]
fn an_inner_folder_that_is_too_narrow_is_opened_again() {
    let home = Home::new();
    home.store();
    chmod(&home.v1("public"), 0o700);
    home.store();
    assert_eq!(mode(&home.v1("public")), 0o711);
}

/// A file system in memory, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn new(path: &Path) -> Option<Self> {
        let mounted = mount(&["-t", "tmpfs", "-o", "mode=0711", "tmpfs"], path);
        if !mounted {
            eprintln!("skipped: this root may not mount");
        }
        mounted.then(|| Self(path.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

fn mount(options: &[&str], path: &Path) -> bool {
    let command = Command::new("mount").args(options).arg(path).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

#[test]
fn a_store_on_a_read_only_mount_is_refused() {
    let home = Home::new();
    if !is_root() {
        return;
    }
    let mounted = home.outside();
    let Some(_mount) = Mount::new(&mounted) else { return };
    let (full, missing) = (mounted.join("full"), mounted.join("missing"));
    let open = |directory: &Path| {
        Store::open(&StoreConfig { directory: directory.to_owned() }, Clock::System).map(drop)
    };
    open(&full).unwrap();
    assert!(mount(&["-o", "remount,ro"], &mounted));
    for directory in [full, missing] {
        let error = open(&directory).unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
        assert_eq!(error.label(), "store_read_only");
    }
}

#[test]
fn a_directory_that_the_user_may_not_write_to_is_an_error() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may write anywhere");
        return;
    }
    let home = Home::new();
    fs::create_dir(home.path()).unwrap();
    chmod(&home.path(), 0o555);
    let error = home.open().unwrap_err();
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    assert!(
        matches!(&error, StoreError::Io { operation: Operation::MakeFolder, source, .. } if refused(source)),
        "{error}"
    );
}

#[test]
fn a_full_file_system_is_an_error_that_leaves_nothing() {
    let home = Home::new();
    if !is_root() {
        return;
    }
    let mounted = home.outside();
    let Some(_mount) = Mount::new(&mounted) else { return };
    assert!(mount(&["-o", "remount,size=1m"], &mounted));
    let store = Store::open(&StoreConfig { directory: mounted.join("store") }, Clock::System).unwrap();
    let mut ingest = store.ingest().unwrap();
    let error = ingest.write_all(&vec![1; 2 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(matches!(StoreError::from_io(error), StoreError::NoSpace { .. }));
    assert!(matches!(ingest.finish(), Err(StoreError::Broken)));
    put(&store, &Audience::Public, MODULE);
}

#[test]
fn a_directory_that_cannot_be_made_is_named_in_the_error() {
    let home = Home::new();
    fs::write(home.0.path().join("file"), "").unwrap();
    let directory = home.0.path().join("file/store");
    let error = Store::open(&StoreConfig { directory: directory.clone() }, Clock::System).unwrap_err();
    assert!(matches!(error, StoreError::Io { operation: Operation::MakeFolder, .. }), "{error}");
    assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
}

#[test]
fn processes_that_make_the_key_at_once_agree_on_it() {
    let home = Home::new();
    let start = std::sync::Barrier::new(8);
    let tags: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            start.wait();
            home.store().fingerprint(b"credential")
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(tags.iter().all(|tag| *tag == tags[0]), "{tags:?}");
    assert_eq!(files(&home.v1("content/ingest")).len(), 0);
}

#[test]
fn a_fingerprint_is_the_stores_own_and_lasts() {
    let (home, other) = (Home::new(), Home::new());
    let tag = home.store().fingerprint(b"credential");
    assert_eq!(tag, home.store().fingerprint(b"credential"));
    assert_ne!(tag, home.store().fingerprint(b"credentials"));
    assert_ne!(tag, other.store().fingerprint(b"credential"));
    assert_eq!(tag.hex().len(), 64);
}

#[test]
fn a_key_that_is_no_key_is_refused() {
    for content in [&b""[..], &[7; 31], &[7; 33]] {
        let home = Home::new();
        home.store();
        fs::write(home.v1("content/key"), content).unwrap();
        let error = home.open().unwrap_err();
        assert!(matches!(error, StoreError::Key { .. }), "{error}");
    }
    let home = Home::new();
    home.store();
    chmod(&home.v1("content/key"), 0o640);
    let error = home.open().unwrap_err();
    assert!(matches!(error, StoreError::Mode { mode: 0o640, .. }), "{error}");
}

#[test]
fn a_store_that_is_opened_again_has_what_was_there() {
    let home = Home::new();
    let store = home.store();
    let private = Audience::Private(store.fingerprint(b"credential"));
    let expected: Vec<_> =
        [Audience::Public, private].map(|audience| (audience, remember(&store, &audience))).into();
    put(&store, &Audience::Public, b"another");
    assert_eq!(store.stats().entries, 2);
    drop(store);

    let store = home.store();
    assert_eq!(store.stats().entries, 2);
    for (audience, (stored, record)) in expected {
        assert_eq!(store.lookup(&audience, SOURCE).unwrap(), Some(record));
        assert_eq!(store.view(&audience, &stored.payload).unwrap(), Some(stored.clone()));
        assert_eq!(fs::read(stored.path).unwrap(), MODULE);
    }
}

#[test]
fn what_the_store_keeps_for_itself_is_not_used_where_others_have_part_in_it() {
    type Use = fn(&Store, &Stored) -> Result<(), StoreError>;
    let uses: [(&str, Use); 4] = [
        ("leases", |store, _| store.write_lease("node", &Lease::default())?.sync()),
        ("pins", |store, stored| {
            store.pin(&Pin { payload: stored.payload, url: String::new(), who: String::new() })
        }),
        ("flights", |store, _| store.claim(&Audience::Public, "source").map(drop)),
        ("notes", |store, _| store.write_note("subject", b"note")),
    ];
    for (folder, act) in uses {
        for wide in [0o755, 0o730, 0o701] {
            let home = Home::new();
            let store = home.store();
            let stored = put(&store, &Audience::Public, MODULE);
            act(&store, &stored).unwrap();
            chmod(&home.v1("content").join(folder), wide);
            let error = act(&store, &stored).unwrap_err();
            let is_refused = matches!(error, StoreError::Mode { .. } | StoreError::WritableByOthers { .. });
            assert!(is_refused, "{folder} {wide:o}: {error}");
            if !is_root() {
                continue;
            }
            chmod(&home.v1("content").join(folder), 0o700);
            chown(home.v1("content").join(folder), Some(4711), None).unwrap();
            let error = act(&store, &stored).unwrap_err();
            assert!(matches!(error, StoreError::NotOurs { owner: 4711, .. }), "{folder}: {error}");
        }
    }
}
