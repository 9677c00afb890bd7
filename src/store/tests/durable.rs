//! In which order things are synced and named: what a crash of the machine then leaves is whole.

use rustix::io::Errno;

use super::faults::Plan;
use super::*;
use crate::store::Operation;

/// What is done, by the paths below the store's folder, in order.
fn watch(home: &Home, faults: &Faults, act: impl FnOnce()) -> Vec<(Operation, String)> {
    faults.arm(Plan { at: usize::MAX, errno: Errno::IO, for_good: false });
    act();
    let root = home.path().canonicalize().unwrap();
    let below = |path: PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    faults.disarm().into_iter().map(|(operation, path)| (operation, below(path))).collect()
}

fn position(seen: &[(Operation, String)], operation: Operation, path: &str) -> usize {
    seen.iter()
        .position(|(o, p)| *o == operation && p.starts_with(path))
        .unwrap_or_else(|| panic!("no {operation:?} of {path} in {seen:#?}"))
}

/// Where a folder itself is synced.
fn folder_sync(seen: &[(Operation, String)], folder: &str) -> usize {
    seen.iter()
        .position(|(o, p)| *o == Operation::SyncFolder && p == folder)
        .unwrap_or_else(|| panic!("{folder} is not synced in {seen:#?}"))
}

fn opened(home: &Home, faults: &Arc<Faults>) -> Store {
    home.faulty(faults).unwrap()
}

#[test]
fn a_module_gets_its_names_after_its_bytes_are_durable_and_then_they_are_made_so() {
    for early in [false, true] {
        let home = Home::quick();
        let faults = Arc::new(Faults::default());
        let store = opened(&home, &faults);
        let audience = Audience::Private(store.fingerprint(b"credential"));
        let seen = watch(&home, &faults, || {
            let mut finished = write(&store, MODULE);
            if early {
                finished.start_sync();
            }
            finished.commit(&audience).unwrap();
        });
        let bytes = position(&seen, Operation::Sync, "v1/content/ingest/");
        let mode = position(&seen, Operation::SetMode, "v1/content/ingest/");
        let content = position(&seen, Operation::Link, "v1/content/blobs/");
        // What it looks like is written down when all is done.
        let last_write = seen[..content].iter().rposition(|(o, _)| *o == Operation::Write).unwrap();
        let view = position(&seen, Operation::Link, "v1/private/");
        assert!(mode < bytes && last_write < bytes && bytes < content && content < view, "{seen:#?}");

        let parent = |position: usize| seen[position].1.rsplit_once('/').unwrap().0;
        for (named, folder) in [
            (content, parent(content)),
            (content, "v1/content/blobs"),
            (view, parent(view)),
            (view, "v1/private"),
        ] {
            assert!(named < folder_sync(&seen, folder), "{seen:#?}");
        }
        let syncs = seen.iter().filter(|(o, _)| matches!(o, Operation::Sync | Operation::SyncFolder)).count();
        assert_eq!(syncs, 5, "and nothing is synced twice");
    }
}

#[test]
fn a_module_that_is_there_already_is_made_durable_all_the_same() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    let store = opened(&home, &faults);
    put(&home.store(), &Audience::Public, MODULE);
    let seen = watch(&home, &faults, || drop(put(&store, &Audience::Public, MODULE)));
    let hh = &digest(MODULE).hex()[..2];
    for folder in ["v1/content/blobs", "v1/public"] {
        folder_sync(&seen, folder);
        folder_sync(&seen, &format!("{folder}/{hh}"));
    }
}

#[test]
fn a_record_takes_its_place_when_it_is_durable() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    let store = opened(&home, &faults);
    let stored = put(&store, &Audience::Public, MODULE);
    let seen = watch(&home, &faults, || {
        store.record(&Audience::Public, SOURCE, &record_of(&stored)).unwrap();
    });
    let written = position(&seen, Operation::Write, "v1/content/ingest/");
    let synced = position(&seen, Operation::Sync, "v1/content/ingest/");
    let named = position(&seen, Operation::Rename, "v1/content/index/");
    let folder = seen[named].1.rsplit_once('/').unwrap().0;
    assert!(written < synced && synced < named, "{seen:#?}");
    assert!(named < folder_sync(&seen, folder) && named < folder_sync(&seen, "v1/content/index"));
}

#[test]
fn a_record_that_is_prepared_takes_its_place_after_the_module() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    let store = opened(&home, &faults);
    let finished = write(&store, MODULE);
    let record =
        record_of(&Stored { path: PathBuf::new(), payload: finished.payload(), size: finished.size() });
    let seen = watch(&home, &faults, || {
        let prepared = store.prepare_record(&Audience::Public, SOURCE, &record).unwrap();
        assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), None);
        finished.commit_recorded(&Audience::Public, vec![prepared]).unwrap();
    });
    assert_eq!(store.lookup(&Audience::Public, SOURCE).unwrap(), Some(record));
    let synced = position(&seen, Operation::Sync, "v1/content/ingest/");
    let view = position(&seen, Operation::Link, "v1/public/");
    let named = position(&seen, Operation::Rename, "v1/content/index/");
    assert!(synced < view && view < named, "{seen:#?}");
    let folder = seen[named].1.rsplit_once('/').unwrap().0;
    assert!(named < folder_sync(&seen, folder) && named < folder_sync(&seen, "v1/content/index"));
}

#[test]
fn a_record_that_cannot_take_its_place_costs_nothing_but_itself() {
    let home = Home::quick();
    let faults = Arc::new(Faults::default());
    let store = opened(&home, &faults);
    let finished = write(&store, MODULE);
    let record =
        record_of(&Stored { path: PathBuf::new(), payload: finished.payload(), size: finished.size() });
    let prepared = store.prepare_record(&Audience::Public, SOURCE, &record).unwrap();
    fs::remove_dir_all(home.path().join("v1/content/index")).unwrap();
    fs::write(home.path().join("v1/content/index"), "in the way").unwrap();
    let stored = finished.commit_recorded(&Audience::Public, vec![prepared]).unwrap();
    assert_eq!(fs::read(stored.path).unwrap(), MODULE);
    assert_eq!(fs::read_dir(home.path().join("v1/content/ingest")).unwrap().count(), 0);
}

#[test]
fn a_directory_that_is_made_is_durable_in_its_parent_behind_a_link_too() {
    let home = Home::quick();
    let link = home.0.path().join("link");
    std::os::unix::fs::symlink(home.outside(), &link).unwrap();
    let faults = Arc::new(Faults::default());
    let config = StoreConfig { directory: link.join("a/store") };
    Store::open_observed(&config, Clock::System, Observer::Faults(faults.clone())).unwrap();
    let seen = faults.disarm();
    for parent in [link.join("a"), link] {
        assert!(seen.contains(&(Operation::SyncFolder, parent)), "{seen:#?}");
    }
}

#[test]
fn the_key_and_the_folders_are_durable_before_the_store_is_open() {
    let home = Home::quick();
    fs::create_dir(home.path()).unwrap();
    let faults = Arc::new(Faults::default());
    let seen = watch(&home, &faults, || drop(opened(&home, &faults)));
    for (folder, inner) in [("", "v1"), ("v1", "v1/private"), ("v1/content", "v1/content/ingest")] {
        let made = position(&seen, Operation::MakeFolder, inner);
        assert!(made < folder_sync(&seen, folder), "{seen:#?}");
    }
    let bytes = position(&seen, Operation::Sync, "v1/content/ingest/");
    let named = position(&seen, Operation::Link, "v1/content/key");
    assert!(bytes < named, "{seen:#?}");
    let last_sync = seen.iter().rposition(|(o, p)| *o == Operation::SyncFolder && p == "v1/content");
    assert!(named < last_sync.unwrap(), "{seen:#?}");
}
