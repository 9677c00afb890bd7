use std::io::Write as _;
use std::time::SystemTime;

use super::*;
use crate::clock::ManualClock;
use crate::module::ModuleRequest;
use crate::store::{Audience, StoreConfig, Stored};
use crate::xds::machine::memory::Wanted;

struct Home {
    folder: tempfile::TempDir,
    clock: ManualClock,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, clock: ManualClock::new(SystemTime::UNIX_EPOCH) }
    }

    /// As a process finds it that starts now.
    fn memories(&self) -> Memories {
        let clock = Clock::Manual(self.clock.clone());
        let directory = self.folder.path().join("store");
        Memories::load(Store::open(&StoreConfig { directory }, clock.clone()).unwrap(), clock)
    }

    /// A config that was accepted, and its module.
    fn good(&self, text: &'static str) -> LastGood {
        let directory = self.folder.path().join("store");
        let store = Store::open(&StoreConfig { directory }, Clock::Manual(self.clock.clone())).unwrap();
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(text.as_bytes()).unwrap();
        let Stored { path, payload, .. } = ingest.finish().unwrap().commit(&Audience::Public).unwrap();
        let made = Made { source_key: [7; 32], payload, path: path.into() };
        LastGood { body: Bytes::from_static(text.as_bytes()), made }
    }
}

fn accept(member: &Member, name: &str, good: &LastGood) {
    member.memory.lock().accepted(name, false, Some(good.clone()));
    member.save();
}

fn remembered(member: &Member, name: &str) -> Option<LastGood> {
    member.memory.lock().get(name)?.last_good.clone()
}

#[tokio::test]
async fn what_worked_is_there_after_a_restart_while_its_module_is() {
    let home = Home::new();
    let (one, other) = (home.good("one"), home.good("other"));
    {
        let memories = home.memories();
        let member = memories.join("listener", "node");
        accept(&member, "a", &one);
        accept(&member, "b", &other);
        memories.write().await;
    }
    std::fs::remove_file(&other.made.path).unwrap();
    let memories = home.memories();
    let member = memories.join("listener", "node");
    assert_eq!((remembered(&member, "a"), remembered(&member, "b")), (Some(one), None));
    for (listener, node) in [("listener", "another"), ("another", "node")] {
        assert_eq!(remembered(&memories.join(listener, node), "a"), None);
    }
}

#[tokio::test]
async fn a_node_is_forgotten_ten_minutes_after_its_last_stream_and_not_before() {
    let home = Home::new();
    let memories = home.memories();
    let (first, second) = (memories.join("listener", "node"), memories.join("listener", "node"));
    accept(&first, "a", &home.good("one"));
    memories.write().await;
    drop(first);
    home.clock.advance(REMEMBERED * 2);
    memories.forget().await;
    assert!(remembered(&second, "a").is_some(), "it has a stream");
    drop(second);
    home.clock.advance(REMEMBERED - Duration::from_secs(1));
    memories.forget().await;
    assert!(remembered(&memories.join("listener", "node"), "a").is_some());
    home.clock.advance(REMEMBERED);
    memories.forget().await;
    assert_eq!(remembered(&memories.join("listener", "node"), "a"), None);
    assert_eq!(remembered(&home.memories().join("listener", "node"), "a"), None, "on disk too");
}

#[tokio::test]
async fn nodes_that_come_once_and_give_themselves_any_id_are_bounded() {
    let home = Home::new();
    let memories = home.memories();
    let member = memories.join("listener", "stays");
    for number in 0..MAX_IDLE + 100 {
        drop(memories.join("listener", &number.to_string()));
        home.clock.advance(Duration::from_millis(1));
    }
    memories.forget().await;
    assert_eq!(memories.nodes().len(), MAX_IDLE + 1);
    drop(member);
    assert!(memories.nodes().values().all(|entry| entry.streams == 0));
}

#[tokio::test]
async fn a_note_that_is_no_note_is_left_alone() {
    let home = Home::new();
    let memories = home.memories();
    memories.0.store.write_note("x", b"{").unwrap();
    memories.0.store.write_note("y", br#"{"format":2,"node":"n","configs":[]}"#).unwrap();
    assert!(home.memories().nodes().is_empty());
}

#[tokio::test]
async fn what_envoy_rejected_or_never_judged_is_known_after_a_restart() {
    let home = Home::new();
    let (rejected, unjudged, fallback, source) = ([1; 16], [2; 16], [3; 16], [4; 16]);
    {
        let memories = home.memories();
        let member = memories.join("listener", "node");
        {
            let mut memory = member.memory.lock();
            memory.sent("a", unjudged, false);
            memory.sent("a", fallback, true);
            memory.rejected("a", rejected, Some(source), true);
            memory.accepted("plain", false, None);
        }
        member.save();
        memories.write().await;
    }
    let member = home.memories().join("listener", "node");
    let memory = member.memory.lock();
    let known = memory.get("a").unwrap();
    assert_eq!(known.rejected, [rejected]);
    assert_eq!((known.rejected_source, known.fallback_rejected), (Some(source), true));
    assert_eq!(known.unjudged, [(unjudged, false), (fallback, true)]);
    assert!(!known.held && memory.get("plain").unwrap().held);
}

#[tokio::test]
async fn a_note_of_an_older_agent_is_read() {
    let home = Home::new();
    let good = home.good("one");
    let subject = hex::encode(hash(&[b"listener", b"node"]));
    let config = serde_json::to_value(Config::of("a", &good)).unwrap();
    let note = serde_json::json!({"format": 1, "node": subject, "configs": [config]});
    home.memories().0.store.write_note(&subject, note.to_string().as_bytes()).unwrap();
    assert_eq!(remembered(&home.memories().join("listener", "node"), "a"), Some(good));
}

#[tokio::test]
async fn what_a_stream_wanted_is_tried_for_ten_minutes_after_it_though_the_node_has_another() {
    let home = Home::new();
    let memories = home.memories();
    let (first, second) = (memories.join("listener", "node"), memories.join("listener", "node"));
    let now = || memories.0.clock.now();
    let wanted = || first.memory.lock().unattended().count();
    let stream = {
        let mut memory = first.memory.lock();
        let stream = memory.join();
        let request = ModuleRequest::new("oci://r.io/a:1".parse().unwrap());
        let next = now();
        memory.used("a", stream).wanted = Some(Wanted { source: [1; 16], request, failing: None, next });
        stream
    };
    assert_eq!(wanted(), 0, "its stream sees to it");
    first.memory.lock().leave(stream, now());
    home.clock.advance(REMEMBERED - Duration::from_secs(1));
    memories.forget().await;
    assert_eq!(wanted(), 1);
    home.clock.advance(Duration::from_secs(1));
    memories.forget().await;
    assert_eq!(wanted(), 0);
    assert!(second.memory.lock().get("a").is_none());
}
