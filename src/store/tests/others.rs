//! What another user of the same machine can do: open a path that it was told, and nothing else.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;

use super::*;

const ENVOY: u32 = 1337;

/// Whether a command succeeds for another user.
fn may(command: &[&str], path: &Path) -> bool {
    let (program, arguments) = command.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(path).uid(ENVOY).gid(ENVOY).current_dir("/");
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn another_user_reads_a_path_that_it_knows_and_lists_and_writes_nothing() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let store = home.store();
    let private = Audience::Private(store.fingerprint(b"credential"));
    let (public, _) = remember(&store, &Audience::Public);
    let (private, _) = remember(&store, &private);
    for stored in [&public, &private] {
        assert!(may(&["cat"], &stored.path), "{stored:?}");
        assert!(!may(&["rm", "-f"], &stored.path));
        assert!(!may(&["sh", "-c", "echo >\"$0\""], &stored.path));
        assert!(!may(&["ls"], stored.path.parent().unwrap()));
    }
    for folder in ["", "content", "content/ingest", "content/index", "content/blobs", "public", "private"] {
        let folder = home.v1(folder);
        assert!(!may(&["ls"], &folder), "{}", folder.display());
        assert!(!may(&["touch"], &folder.join("new")), "{}", folder.display());
    }
    assert!(!may(&["cat"], &home.v1("content/key")));
    for file in files(&home.v1("content")).keys() {
        assert!(!may(&["cat"], file), "{}", file.display());
    }
}

#[test]
fn a_file_of_another_user_is_never_handed_out() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let store = home.store();
    let stored = put(&store, &Audience::Public, MODULE);
    chown(&stored.path, Some(ENVOY), None).unwrap();
    let error = store.view(&Audience::Public, &stored.payload).unwrap_err();
    assert!(matches!(error, StoreError::NotOurs { owner: ENVOY, .. }), "{error}");
    let error = write(&store, MODULE).commit(&Audience::Public).unwrap_err();
    assert!(matches!(error, StoreError::NotOurs { owner: ENVOY, .. }), "{error}");
}
