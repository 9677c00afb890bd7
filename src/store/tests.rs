//! Tests of the store, a file a behaviour, and what they share.

mod aging;
mod broken;
mod claims;
mod clocks;
mod collect;
mod crash;
mod durable;
mod failing;
pub(super) mod faults;
mod hashing;
mod index;
mod ingest;
mod links;
mod lower;
mod notes;
mod open;
mod others;
mod partial;
mod removing;
mod tenants;
mod verify;
mod versions;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;

use self::faults::Faults;
use super::observer::Observer;
use super::{Audience, Finished, Record, Store, StoreConfig, StoreError, Stored};
use crate::clock::Clock;
use crate::digest::{PayloadDigest, SourceDigest};
use crate::module::Validators;

const MODULE: &[u8] = b"\0asm\x01\0\0\0 and the rest of a module";
const SOURCE: &str = "https://example.org/filter.wasm?signature=hunter2";

/// A folder for one test, which other users may pass through.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    /// In memory, where syncing is free.
    fn quick() -> Self {
        Self::over(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn over(dir: TempDir) -> Self {
        chmod(dir.path(), 0o711);
        Self(dir)
    }

    /// Where the store is to be: nothing is there yet.
    fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// A path below the version's folder.
    fn v1(&self, below: &str) -> PathBuf {
        self.path().join("v1").join(below)
    }

    fn outside(&self) -> PathBuf {
        let outside = self.0.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        chmod(&outside, 0o711);
        outside
    }

    fn open(&self) -> Result<Store, StoreError> {
        Store::open(&StoreConfig { directory: self.path() }, Clock::System)
    }

    fn store(&self) -> Store {
        self.open().unwrap()
    }

    fn faulty(&self, faults: &Arc<Faults>) -> Result<Store, StoreError> {
        let config = StoreConfig { directory: self.path() };
        Store::open_observed(&config, Clock::System, Observer::Faults(faults.clone()))
    }
}

fn write(store: &Store, bytes: &[u8]) -> Finished {
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(bytes).unwrap();
    ingest.finish().unwrap()
}

fn put(store: &Store, audience: &Audience, bytes: &[u8]) -> Stored {
    write(store, bytes).commit(audience).unwrap()
}

fn record_of(stored: &Stored) -> Record {
    Record {
        payload: stored.payload,
        source: SourceDigest::of(b"manifest"),
        size: stored.size,
        resource_version: Some("7".to_owned()),
        fetched_at: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        url: "https://example.org/filter.wasm?(query not shown)".to_owned(),
        validators: Validators { etag: Some("W/\"1\"".to_owned()), last_modified: None },
    }
}

/// A module in the store, with its record.
fn remember(store: &Store, audience: &Audience) -> (Stored, Record) {
    let stored = put(store, audience, MODULE);
    let record = record_of(&stored);
    store.record(audience, SOURCE, &record).unwrap();
    (stored, record)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Opens a store until it has swept what was left there, if it ever does: a process that another test is
/// starting holds all locks of this one for an instant.
fn opened_until(open: impl Fn(), swept: impl Fn() -> bool) {
    let _ = (0..100).any(|_| {
        swept() || {
            std::thread::sleep(Duration::from_millis(10));
            open();
            false
        }
    });
}

/// All that is no folder below a path, links unfollowed, with content where it is a regular file.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(path) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files(&path));
        } else {
            let content = if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            found.insert(path, content);
        }
    }
    found
}

/// The only file below a path.
fn only_file(path: &Path) -> PathBuf {
    let files = files(path);
    assert_eq!(files.len(), 1, "{files:?}");
    files.into_keys().next().unwrap()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Another process that runs one of the tests that are ignored otherwise.
fn in_another_process(test: &str, store: &Path, umask: &str) -> Child {
    Command::new("sh")
        .args(["-c", "umask $0; exec \"$@\"", umask])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", test])
        .env("TEST_STORE", store)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The store that [`in_another_process`] named.
fn store_of_parent() -> Store {
    let directory = std::env::var_os("TEST_STORE").expect("run by another test only").into();
    Store::open(&StoreConfig { directory }, Clock::System).unwrap()
}

fn digest(bytes: &[u8]) -> PayloadDigest {
    PayloadDigest::of(bytes)
}
