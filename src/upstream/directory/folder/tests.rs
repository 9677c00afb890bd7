use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;
use crate::clock::ManualClock;

fn document(name: &str, tag: &str) -> String {
    format!(
        "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: {name}}}\n\
         spec: {{url: 'r.io/{name}:{tag}'}}\n---\n"
    )
}

fn write(folder: &Path, file: &str, content: &str) {
    std::fs::write(folder.join(file), content).unwrap();
}

/// Name and URL of each plugin.
fn plugins(snapshot: &Snapshot) -> Vec<(String, String)> {
    snapshot.plugins().map(|(name, plugin)| (name.to_owned(), plugin.url.clone())).collect()
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.plugins().map(|(name, _)| name).collect()
}

fn problems(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(Problem::to_string).collect()
}

fn url(snapshot: &Snapshot, name: &str) -> String {
    snapshot.plugin(name).map(|plugin| plugin.url.clone()).unwrap_or_default()
}

struct Fixture {
    folder: TempDir,
    reader: Reader,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reader = Reader::new(folder.path().to_owned(), [0; 16]);
        Self { folder, reader }
    }

    fn write(&self, file: &str, content: &str) {
        write(self.folder.path(), file, content);
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.folder.path().join(file)).unwrap();
    }

    fn read(&mut self) -> Snapshot {
        self.reader.read();
        self.reader.snapshot()
    }
}

#[test]
fn plugin_files_are_read_and_others_are_not() {
    let mut fixture = Fixture::new();
    for file in ["a.yaml", "b.yml", "c.json"] {
        fixture.write(file, &document(&file[..1], "v1"));
    }
    for file in [".hidden.yaml", "d.yaml~", "e.txt", "yaml"] {
        fixture.write(file, &document("no", "v1"));
    }
    std::fs::create_dir(fixture.folder.path().join("f.yaml")).unwrap();
    let snapshot = fixture.read();
    assert_eq!(names(&snapshot), ["default.a", "default.b", "default.c"]);
    assert_eq!(problems(&snapshot), [""; 0]);
    assert!(snapshot.is_complete());
}

#[test]
fn a_broken_file_keeps_the_last_good_version_and_is_reported() {
    let mut fixture = Fixture::new();
    fixture.write("ab.yaml", &(document("a", "v1") + &document("b", "v1")));
    fixture.write("c.yaml", &document("c", "v1"));
    let good = plugins(&fixture.read());

    fixture.write("ab.yaml", &(document("a", "v2") + "kind: WasmPlugin\napiVersion: [\n"));
    fixture.write("c.yaml", &document("c", "v2"));
    let snapshot = fixture.read();
    assert_eq!(plugins(&snapshot)[..2], good[..2], "all of the file stays as it was");
    assert_eq!(url(&snapshot, "default.c"), "oci://r.io/c:v2", "other files are not held back");
    assert_eq!(snapshot.problems().len(), 1);
    let problem = &snapshot.problems()[0];
    assert!(problem.file.ends_with("ab.yaml") && problem.line >= Some(7), "{problem}");
    assert!(snapshot.is_complete(), "it is known what the file held");

    for content in ["", "just text"] {
        fixture.write("ab.yaml", content);
        let snapshot = fixture.read();
        assert_eq!(plugins(&snapshot)[..2], good[..2], "{content:?}");
        assert_eq!(snapshot.problems().len(), 1);
    }

    fixture.write("ab.yaml", &document("a", "v3"));
    let snapshot = fixture.read();
    assert_eq!(url(&snapshot, "default.a"), "oci://r.io/a:v3");
    assert_eq!(names(&snapshot), ["default.a", "default.c"]);
    assert_eq!(problems(&snapshot), [""; 0]);
}

#[test]
fn a_file_that_was_never_good_makes_the_snapshot_incomplete() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &document("a", "v1"));
    fixture.write("b.yaml", "broken: [");
    let snapshot = fixture.read();
    assert_eq!(names(&snapshot), ["default.a"]);
    assert!(!snapshot.is_complete());
    fixture.remove("b.yaml");
    assert!(fixture.read().is_complete());
}

#[test]
fn a_removed_file_takes_its_plugins_away() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &document("a", "v1"));
    fixture.write("b.yaml", &document("b", "v1"));
    fixture.read();
    fixture.remove("a.yaml");
    assert_eq!(names(&fixture.read()), ["default.b"]);
}

#[test]
fn of_two_files_with_one_plugin_the_first_by_name_wins() {
    let mut fixture = Fixture::new();
    fixture.write("2.yaml", &(document("b", "second") + &document("a", "second")));
    fixture.write("1.yaml", &document("a", "first"));
    let snapshot = fixture.read();
    assert_eq!(url(&snapshot, "default.a"), "oci://r.io/a:first");
    assert_eq!(names(&snapshot), ["default.a", "default.b"]);
    let problem = &snapshot.problems()[0];
    assert_eq!((problem.line, problem.field.as_deref()), (Some(6), Some("metadata.name")));
    assert_eq!(problem.why, "default/a is defined in 1.yaml already");
    assert!(problem.file.ends_with("2.yaml"));

    fixture.remove("1.yaml");
    let snapshot = fixture.read();
    assert_eq!(url(&snapshot, "default.a"), "oci://r.io/a:second");
    assert_eq!(problems(&snapshot), [""; 0]);
}

#[test]
fn the_generation_counts_changes_and_nothing_else() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &document("a", "v1"));
    let first = fixture.read().generation();
    assert!(!fixture.reader.read());
    fixture.write("a.yaml", &document("a", "v1"));
    assert!(!fixture.reader.read(), "the same content again");
    fixture.write("a.yaml", &document("a", "v2"));
    assert!(fixture.reader.read());
    assert_eq!(fixture.reader.snapshot().generation(), first + 1);
    fixture.write("a.yaml", "broken: [");
    assert!(fixture.reader.read(), "a new problem is a change");
    assert!(!fixture.reader.read(), "the same problem is none");
}

#[test]
fn a_folder_that_is_missing_is_a_problem_and_keeps_what_it_held() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &document("a", "v1"));
    let folder = fixture.folder.path().to_owned();
    fixture.read();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(fixture.reader.has_changed());
    let snapshot = fixture.read();
    assert_eq!(names(&snapshot), ["default.a"]);
    assert!(!snapshot.is_complete());
    assert_eq!(snapshot.problems()[0].file, folder);
    std::fs::create_dir(&folder).unwrap();
    assert!(fixture.reader.has_changed());
    let snapshot = fixture.read();
    assert_eq!(names(&snapshot), [""; 0]);
    assert!(snapshot.is_complete());
}

#[test]
fn a_link_to_nothing_is_reported() {
    let mut fixture = Fixture::new();
    symlink("nowhere", fixture.folder.path().join("a.yaml")).unwrap();
    let snapshot = fixture.read();
    assert_eq!(snapshot.problems().len(), 1);
    assert!(!snapshot.is_complete());
}

#[test]
fn files_beyond_the_limit_are_reported_and_not_read() {
    let mut fixture = Fixture::new();
    for n in 0..=reader::MAX_FILES {
        fixture.write(&format!("{n:04}.yaml"), "# nothing\n");
    }
    fixture.write("9999.yaml", &document("last", "v1"));
    let snapshot = fixture.read();
    assert_eq!(names(&snapshot), [""; 0]);
    assert!(!snapshot.is_complete());
    assert_eq!(snapshot.problems().len(), 1);
}

#[test]
fn a_pull_secret_that_changes_changes_the_plugin() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &document("a", "v1").replace("spec: {", "spec: {imagePullSecret: key, "));
    let snapshot = fixture.read();
    assert_eq!(snapshot.problems()[0].field.as_deref(), Some("spec.imagePullSecret"));
    let without = snapshot.plugin("default.a").unwrap().clone();

    // The first look at the secret's path is part of the next reading.
    fixture.reader.read();
    assert!(!fixture.reader.has_changed());
    fixture.write("key.dockerconfigjson", "{}");
    assert!(fixture.reader.has_changed());
    let snapshot = fixture.read();
    assert_eq!(problems(&snapshot), [""; 0]);
    assert!(*snapshot.plugin("default.a").unwrap() != without);
}

/// A `ConfigMap` as the kubelet mounts it: links into a hidden folder that is swapped as a whole.
fn mount(folder: &Path, version: &str, content: &str) {
    std::fs::create_dir(folder.join(version)).unwrap();
    write(&folder.join(version), "a.yaml", content);
    symlink(version, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if !folder.join("a.yaml").exists() {
        symlink("..data/a.yaml", folder.join("a.yaml")).unwrap();
    }
}

#[test]
fn a_config_map_that_is_swapped_is_noticed() {
    let mut fixture = Fixture::new();
    let folder = fixture.folder.path().to_owned();
    mount(&folder, "..v1", &document("a", "v1"));
    assert_eq!(url(&fixture.read(), "default.a"), "oci://r.io/a:v1");
    assert!(!fixture.reader.has_changed());
    mount(&folder, "..v2", &document("a", "v2"));
    assert!(fixture.reader.has_changed());
    assert_eq!(url(&fixture.read(), "default.a"), "oci://r.io/a:v2");
}

/// Polls so seldom that only an event can make it look.
const EVENTS: Pace = Pace { debounce: Duration::ZERO, poll: Duration::from_secs(1 << 20), events: true };

async fn follow(
    folder: &Path,
    clock: Clock,
    pace: Pace,
) -> (publish::Receiver<Arc<Snapshot>>, CancellationToken, tokio::task::JoinHandle<Result<(), JoinError>>) {
    let followed = Folder::open_paced(folder.to_owned(), clock, pace).await.unwrap();
    let (snapshots, stop) = (followed.snapshots(), CancellationToken::new());
    let task = tokio::spawn(followed.run(stop.clone()));
    (snapshots, stop, task)
}

#[tokio::test]
async fn a_change_is_published_when_the_kernel_tells_of_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.yaml", &document("a", "v1"));
    let (mut snapshots, stop, task) = follow(folder.path(), Clock::System, EVENTS).await;
    assert_eq!(url(&snapshots.borrow_and_update(), "default.a"), "oci://r.io/a:v1");

    write(folder.path(), "a.yaml", &document("a", "v2"));
    snapshots.wait_for(|now| url(now, "default.a") == "oci://r.io/a:v2").await.unwrap();
    write(folder.path(), "new", &document("b", "v1"));
    std::fs::rename(folder.path().join("new"), folder.path().join("b.yaml")).unwrap();
    snapshots.wait_for(|now| now.plugin("default.b").is_some()).await.unwrap();
    std::fs::remove_file(folder.path().join("a.yaml")).unwrap();
    snapshots.wait_for(|now| now.plugin("default.a").is_none()).await.unwrap();

    stop.cancel();
    task.await.unwrap().unwrap();
    assert!(snapshots.changed().await.is_err(), "nothing is published after the end");
}

#[tokio::test]
async fn a_swapped_config_map_is_published_when_the_kernel_tells_of_it() {
    let folder = tempfile::tempdir().unwrap();
    mount(folder.path(), "..v1", &document("a", "v1"));
    let (mut snapshots, _stop, _task) = follow(folder.path(), Clock::System, EVENTS).await;
    for version in ["v2", "v3"] {
        mount(folder.path(), &format!("..{version}"), &document("a", version));
        let expected = format!("oci://r.io/a:{version}");
        snapshots.wait_for(|now| url(now, "default.a") == expected).await.unwrap();
    }
}

#[tokio::test]
async fn changes_are_found_by_polling_where_no_event_comes() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("plugins");
    let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
    let pace = Pace { debounce: DEBOUNCE, poll: POLL, events: false };
    let (snapshots, _stop, _task) = follow(&folder, Clock::Manual(manual.clone()), pace).await;
    assert!(!snapshots.borrow().is_complete(), "there is no folder yet");
    let poll_until = async |expected: &str| {
        while url(&snapshots.borrow(), "default.a") != expected {
            manual.advance(POLL);
            tokio::task::yield_now().await;
        }
    };

    std::fs::create_dir(&folder).unwrap();
    write(&folder, "a.yaml", &document("a", "v1"));
    poll_until("oci://r.io/a:v1").await;
    write(&folder, "a.yaml", &document("a", "v2"));
    poll_until("oci://r.io/a:v2").await;

    let replacement = parent.path().join("replacement");
    std::fs::create_dir(&replacement).unwrap();
    write(&replacement, "a.yaml", &document("a", "v3"));
    std::fs::rename(&folder, parent.path().join("old")).unwrap();
    std::fs::rename(&replacement, &folder).unwrap();
    poll_until("oci://r.io/a:v3").await;
}

#[tokio::test]
async fn a_replaced_folder_is_watched_in_place_of_the_old_one() {
    let parent = tempfile::tempdir().unwrap();
    let (first, second) = (parent.path().join("1"), parent.path().join("2"));
    for folder in [&first, &second] {
        std::fs::create_dir(folder).unwrap();
    }
    let mut reader = Reader::new(parent.path().join("plugins"), [0; 16]);
    symlink(&first, reader.directory()).unwrap();
    reader.read();
    let (watch, renewed) = Watch::none().renew(&reader, true);
    assert!(renewed);
    let (watch, renewed) = watch.renew(&reader, true);
    assert!(!renewed);
    std::fs::remove_file(reader.directory()).unwrap();
    symlink(&second, reader.directory()).unwrap();
    let (watch, renewed) = watch.renew(&reader, true);
    assert!(renewed);
    write(&second, "a.yaml", &document("a", "v1"));
    watch.changed().await;
}

#[test]
fn reading_the_folder_is_no_sign_of_change() {
    let mut fixture = Fixture::new();
    let folder = fixture.folder.path().to_owned();
    write(&folder, "a.yaml", &document("a", "v1"));
    let (events, received) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(events).unwrap();
    notify::Watcher::watch(&mut watcher, &folder, notify::RecursiveMode::NonRecursive).unwrap();
    fixture.read();
    write(&folder, "end", "");
    let mut of_reading = 0;
    for event in received.iter().map(Result::unwrap) {
        if event.paths.iter().any(|path| path.ends_with("end")) {
            break;
        }
        of_reading += 1;
        assert!(!watch::is_sign(event.kind), "{event:?}");
    }
    assert!(of_reading > 0, "the kernel does tell of it");
}
