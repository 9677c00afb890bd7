//! What follows where a config comes again, where Envoy rejects one, and where one cannot be read: against
//! the doubles of two control planes, in both variants.

use envoy_types::pb::google::protobuf::Any;

use crate::support::control_plane::Protocol;
use crate::support::control_plane::doubles::Kind;
use crate::support::ecds::Filter;
use crate::support::mesh::listener;
use crate::support::resources::{self, allow_all, deny_all};
use crate::support::scene::{QUIET, against_both, against_both_by_each_service};
use crate::support::scripted::Config;

#[tokio::test]
async fn what_comes_again_with_equal_bytes_is_neither_fetched_nor_sent_again() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        for path in ["/a", "/b", "/update"] {
            scene.publish(path);
        }
        scene.double.set_all(["a", "b"].map(|name| scene.filter(name, name, &format!("/{name}"))));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b", "c"]).await;
        envoy.runs(&[("a", "a"), ("b", "b")]).await;
        scene.double.set(scene.filter("c", "broken", "/nowhere"));
        scene.fetched("/nowhere", 1).await;
        envoy.until(|envoy| envoy.held.contains_key("c")).await;
        scene.double.settled(&ecds, 2).await;
        for number in 1..=3 {
            scene.double.set(scene.filter("a", "a", "/a"));
            // In Delta go-control-plane sees that nothing has changed.
            let says_nothing = (scene.kind, scene.protocol) == (Kind::GoControlPlane, Protocol::Delta);
            scene.double.settled(&ecds, if says_nothing { 2 } else { 2 + number }).await;
        }
        // Of another type, at which istiod sends everything.
        scene.double.set(listener("web", &[], &["a", "b", "c"]));
        envoy.silence(QUIET).await;
        assert_eq!((scene.fetches("/a"), scene.fetches("/b")), (1, 1));
        assert_eq!(scene.fetches("/nowhere"), 1, "a resend is no reason to try again");

        scene.double.set(scene.filter("a", "update", "/update"));
        envoy.runs(&[("a", "update")]).await;
        envoy.nothing_new_within(QUIET).await;
        let b = envoy.history.iter().filter(|(name, _)| name == "b").count();
        assert_eq!((b, scene.fetches("/b")), (1, 1), "{:?}", envoy.history);
        assert_eq!(scene.double.nacks(&ecds), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn after_a_rejected_module_the_last_good_one_comes_and_then_only_a_change() {
    against_both_by_each_service(async |scene| {
        let ecds = resources::ecds_type();
        for path in ["/a", "/b", "/rejected", "/update"] {
            scene.publish(path);
        }
        scene.double.set_all(["a", "b"].map(|name| scene.filter(name, name, &format!("/{name}"))));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("a", "a"), ("b", "b")]).await;
        scene.double.set(scene.filter("a", "rejected", "/rejected"));
        let received = envoy.receive().await;
        assert_eq!(received.configs["a"].label, "rejected");
        envoy.reject(&received, "a", "it does not start").await;
        let received = envoy.receive().await;
        assert_eq!(received.configs["a"], envoy.held["a"], "first what repairs it");
        envoy.accept(&received).await;
        // It comes again by itself from istiod, with any change, and from go-control-plane with this.
        scene.double.set(scene.filter("a", "rejected", "/rejected"));
        envoy.silence(QUIET).await;
        scene.double.set(scene.filter("b", "update", "/update"));
        envoy.runs(&[("a", "a"), ("b", "update")]).await;
        scene.double.set(scene.filter("a", "update", "/update"));
        envoy.runs(&[("a", "update"), ("b", "update")]).await;
        assert!(!envoy.history.iter().any(|(_, label)| label == "rejected"), "{:?}", envoy.history);
        // It was accepted before the module was there.
        assert_eq!(scene.double.nacks(&ecds), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_rejection_of_what_needs_no_module_is_told_once_however_often_it_comes_again() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        let (good, bad) = (allow_all(resources::Kind::Http, "a"), deny_all(resources::Kind::Http, "a"));
        scene.double.set(good);
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.until(|envoy| envoy.held.contains_key("a")).await;
        scene.double.set(bad.clone());
        let received = envoy.receive().await;
        assert_eq!(received.configs["a"].filter, Filter::Deny);
        envoy.reject(&received, "a", "not this one").await;
        let received = envoy.receive().await;
        assert_eq!(received.configs["a"].filter, Filter::Allow);
        envoy.accept(&received).await;
        // In state of the world go-control-plane sends it again by itself.
        let again = usize::from((scene.kind, scene.protocol) == (Kind::GoControlPlane, Protocol::Sotw));
        scene.double.settled(&ecds, 2 + again).await;
        scene.double.set(bad);
        envoy.silence(QUIET).await;
        let nacks = scene.double.nacks(&ecds);
        assert!(matches!(&nacks[..], [nack] if nack.contains("\"a\"")), "{nacks:?}");
        assert!(scene.double.responses(&ecds).len() <= 3 + again, "no loop");
    })
    .await;
}

#[tokio::test]
async fn of_several_changes_the_rejected_one_holds_up_no_other() {
    against_both(async |scene| {
        let names = ["a", "b", "c"];
        scene.double.set_all(names.map(|name| allow_all(resources::Kind::Http, name)));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&names).await;
        envoy.until(|envoy| envoy.held.len() == 3).await;
        scene.double.set_all(names.map(|name| deny_all(resources::Kind::Http, name)));
        let denies = |config: Option<&Config>| config.is_some_and(|config| config.filter == Filter::Deny);
        // All that has the bad one in it is rejected, and Envoy says of none which one that was.
        let mut rejected = 0;
        while !(denies(envoy.held.get("b")) && denies(envoy.held.get("c")) && rejected > 1) {
            let received = envoy.receive().await;
            if denies(received.configs.get("a")) {
                rejected += 1;
                envoy.reject(&received, "a", "not this one").await;
            } else {
                envoy.accept(&received).await;
            }
        }
        envoy.nothing_new_within(QUIET).await;
        assert_eq!((envoy.held["a"].filter.clone(), rejected), (Filter::Allow, 2), "together and alone");
        let nacks = scene.double.nacks(&resources::ecds_type());
        assert!(nacks.iter().all(|nack| nack.contains("\"a\"")) && nacks.len() <= 1, "{nacks:?}");
    })
    .await;
}

/// A config that breaks off in the middle, after its name.
fn cut(mut resource: Any) -> Any {
    resource.value.truncate(resource.value.len() - 1);
    resource
}

#[tokio::test]
async fn a_config_that_cannot_be_read_is_rejected_by_name_and_its_neighbours_come() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        scene.publish("/a");
        scene.publish("/fix");
        let malformed = cut(scene.filter("malformed", "x", "/a"));
        let resources = vec![
            ("a".to_owned(), scene.filter("a", "a", "/a")),
            ("malformed".to_owned(), malformed),
            ("z".to_owned(), scene.filter("z", "z", "/a")),
        ];
        scene.double.set_named(resources);
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "malformed", "z"]).await;
        envoy.runs(&[("a", "a"), ("z", "z")]).await;
        envoy.silence(QUIET).await;
        let nacks = scene.double.nacks(&ecds);
        assert!(!nacks.is_empty() && nacks.iter().all(|nack| nack.contains("\"malformed\"")), "{nacks:?}");
        assert!(!nacks.iter().any(|nack| nack.contains("\"a\"") || nack.contains("\"z\"")), "{nacks:?}");

        scene.double.set(scene.filter("malformed", "fix", "/fix"));
        envoy.runs(&[("a", "a"), ("malformed", "fix"), ("z", "z")]).await;
    })
    .await;
}

#[tokio::test]
async fn a_config_that_cannot_be_read_is_rejected_once_by_each_version() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        scene.publish("/a");
        let malformed = cut(scene.filter("malformed", "x", "/a"));
        let resources =
            vec![("a".to_owned(), scene.filter("a", "a", "/a")), ("malformed".to_owned(), malformed)];
        scene.double.set_named(resources);
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "malformed"]).await;
        envoy.runs(&[("a", "a")]).await;
        envoy.silence(QUIET).await;
        let (nacks, responses) = (scene.double.nacks(&ecds), scene.double.responses(&ecds).len());
        assert_eq!(nacks.len(), 1, "and no loop: {responses} responses");
        assert!(responses <= 2, "{responses} responses");
    })
    .await;
}
