//! What an Envoy gets of extension configs over streams that end, and by subscriptions that come and go:
//! against the doubles of two control planes, in both variants.

use std::time::Duration;

use crate::support::control_plane::Protocol;
use crate::support::control_plane::doubles::Kind;
use crate::support::eventually;
use crate::support::resources;
use crate::support::scene::{QUIET, against_both, against_both_by_each_service};

#[tokio::test]
async fn an_envoy_that_comes_back_loses_nothing_and_hears_of_what_was_removed() {
    against_both_by_each_service(async |scene| {
        let ecds = resources::ecds_type();
        for path in ["/a", "/b", "/c", "/fix"] {
            scene.publish(path);
        }
        scene.double.set_all(["a", "b", "c"].map(|name| scene.filter(name, name, &format!("/{name}"))));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b", "c"]).await;
        envoy.runs(&[("a", "a"), ("b", "b"), ("c", "c")]).await;
        scene.double.settled(&ecds, 1).await;

        // What it has not accepted comes under another name on the next stream.
        scene.heard(&envoy).await;
        scene.double.close_streams();
        envoy.ended().await;
        scene.double.remove(&ecds, "c");
        scene.double.set(scene.filter("b", "broken", "/nowhere"));
        let before = envoy.held.clone();
        envoy.reconnect().await;
        scene.double.settled(&ecds, 2).await;
        if (scene.kind, scene.protocol) == (Kind::GoControlPlane, Protocol::Delta) {
            envoy.until(|envoy| !envoy.held.contains_key("c")).await;
            assert_eq!(envoy.held.get("a"), before.get("a"));
        }
        scene.fetched("/nowhere", 1).await;
        envoy.nothing_new_within(QUIET).await;
        assert_eq!((envoy.label("a"), envoy.label("b")), (Some("a"), Some("b")), "{:?}", envoy.history);
        // The doubles hold that no version was shown; nor is a name lost.
        let requests = scene.double.requests(&ecds);
        let (_, first) = requests.iter().find(|(number, _)| *number == 2).expect("a second stream");
        assert_eq!(first.names.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        if scene.protocol == Protocol::Delta {
            assert_eq!(first.initial_versions.len(), 3, "{first:?}");
        }

        scene.double.set(scene.filter("b", "fix", "/fix"));
        envoy.runs(&[("a", "a"), ("b", "fix")]).await;
        assert_eq!((scene.fetches("/a"), scene.fetches("/c")), (1, 1), "modules come from disk");
        assert_eq!(scene.double.nacks(&ecds), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_starts_again_sends_the_same_bytes_and_fetches_nothing() {
    against_both(async |scene| {
        scene.publish("/a");
        scene.publish("/b");
        scene.double.set_all(["a", "b"].map(|name| scene.filter(name, name, &format!("/{name}"))));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("a", "a"), ("b", "b")]).await;
        scene.double.set(scene.filter("b", "broken", "/nowhere"));
        scene.fetched("/nowhere", 1).await;
        scene.unpublish("/a");
        scene.unpublish("/b");

        scene.agent.kill();
        scene.agent.resume(&scene.world).await;
        envoy.reconnect().await;
        scene.fetched("/nowhere", 2).await;
        envoy.nothing_new_within(QUIET).await;
        assert_eq!((scene.fetches("/a"), scene.fetches("/b")), (1, 1));
        scene.publish("/fix");
        scene.double.set(scene.filter("b", "fix", "/fix"));
        envoy.runs(&[("a", "a"), ("b", "fix")]).await;
    })
    .await;
}

#[tokio::test]
async fn over_streams_that_end_at_random_nothing_goes_backwards_and_the_newest_arrives() {
    const LAST: u32 = 12;
    against_both(async |scene| {
        scene.publish("/0");
        scene.double.set_all(["a", "b"].map(|name| scene.filter(name, "0", "/0")));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("a", "0"), ("b", "0")]).await;
        scene.double.close_at_random(0x5eed, Duration::from_millis(20)..Duration::from_millis(120));
        let changes = async {
            for number in 1..=LAST {
                let (label, path) = (number.to_string(), format!("/{number}"));
                // Some are there only after a while, some never: fewer than may be fetched at once.
                let held = scene.publish_held(&path);
                scene.double.set(scene.filter(if number % 2 == 0 { "a" } else { "b" }, &label, &path));
                tokio::time::sleep(Duration::from_millis(60)).await;
                if number % 5 != 1 || number > LAST - 2 {
                    held.add_permits(9);
                }
            }
            scene.double.close_no_more();
        };
        let (a, b) = (LAST.to_string(), (LAST - 1).to_string());
        let newest = envoy.follow_until(|envoy| envoy.label("a") == Some(&a) && envoy.label("b") == Some(&b));
        tokio::join!(changes, newest);
        for name in ["a", "b"] {
            let labels = envoy.history.iter().filter(|(of, _)| of == name);
            let labels: Vec<u32> =
                labels.map(|(_, label)| label.parse().expect("a module, no fallback")).collect();
            assert!(labels.is_sorted(), "{name}: {labels:?}");
        }
        let streams = scene.double.said().iter().map(|(number, _)| *number).max();
        assert!(streams > Some(3), "{streams:?} streams");
        assert_eq!(scene.double.nacks(&resources::ecds_type()), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_wanted_again_comes_again() {
    against_both(async |scene| {
        scene.publish("/a");
        scene.publish("/b");
        scene.double.set_all(["a", "b"].map(|name| scene.filter(name, name, &format!("/{name}"))));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("a", "a"), ("b", "b")]).await;
        for dropped in [&["b"][..], &["a", "b"]] {
            envoy.unsubscribe(dropped).await;
            envoy.subscribe(dropped).await;
            envoy.runs(&[("a", "a"), ("b", "b")]).await;
        }
        envoy.nothing_new_within(QUIET).await;
        assert_eq!((scene.fetches("/a"), scene.fetches("/b")), (1, 1), "modules come from disk");
    })
    .await;
}

#[tokio::test]
async fn subscriptions_that_cross_responses_are_all_heard() {
    const NAMES: u32 = 40;
    against_both(async |scene| {
        scene.publish("/module");
        let name = |number: u32| format!("name-{number}");
        let filter = |number: u32, label: u32| scene.filter(&name(number), &label.to_string(), "/module");
        scene.double.set_all((0..=NAMES).map(|number| filter(number, 0)));
        let mut envoy = scene.envoy().await;
        for number in 0..=NAMES {
            envoy.subscribe(&[&name(number)]).await;
            // Soon after, so that it meets the request somewhere on its way.
            for _ in 0..number * 3 {
                tokio::task::yield_now().await;
            }
            scene.double.set(filter(0, number));
        }
        let newest = NAMES.to_string();
        envoy
            .until(|envoy| {
                let all = envoy.held.len() == NAMES as usize + 1;
                all && envoy.label("name-0") == Some(&newest)
            })
            .await;
        envoy.nothing_new_within(QUIET).await;
        assert_eq!(scene.fetches("/module"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_second_subscription_to_a_name_is_answered_without_the_control_plane() {
    against_both_by_each_service(async |scene| {
        scene.publish("/a");
        scene.double.set(scene.filter("a", "a", "/a"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "a")]).await;
        let before = scene.double.requests(&resources::ecds_type()).len();
        // In state of the world the very same as the last answer.
        envoy.subscribe(&["a"]).await;
        let received = envoy.receive().await;
        assert_eq!(received.configs.get("a"), envoy.held.get("a"));
        envoy.accept(&received).await;
        envoy.silence(QUIET).await;
        // The double would have taken it for a broken rule, too.
        let requests = scene.double.requests(&resources::ecds_type());
        assert!(requests[before..].iter().all(|(_, event)| event.is_ack()), "{requests:?}");
    })
    .await;
}

#[tokio::test]
async fn an_envoy_that_wants_nothing_any_more_is_sent_nothing_and_never_asks_for_everything() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        for path in ["/a", "/other", "/update"] {
            scene.publish(path);
        }
        scene.double.set(scene.filter("a", "a", "/a"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "a")]).await;
        scene.double.settled(&ecds, 1).await;
        envoy.unsubscribe(&["a"]).await;
        eventually("a request without names", async || {
            scene.double.requests(&ecds).last().is_some_and(|(_, event)| event.names.is_empty()).then_some(())
        })
        .await;
        scene.double.set_all([scene.filter("a", "update", "/update"), scene.filter("b", "other", "/other")]);
        envoy.silence(QUIET).await;

        // With a version and no names, in state of the world.
        scene.double.close_streams();
        envoy.reconnect().await;
        // What is said after that has arrived upstream only after it.
        envoy.ask(&resources::lds_type()).await;
        let received = envoy.receive().await;
        assert_eq!(received.type_url, resources::lds_type(), "{received:?}");
        envoy.accept(&received).await;
        let on_second = |number: &usize| *number == 2;
        assert!(!scene.double.requests(&ecds).iter().any(|(number, _)| on_second(number)));
        envoy.silence(QUIET).await;
        assert_eq!((scene.fetches("/update"), scene.fetches("/other")), (0, 0), "nobody wants it");

        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "update")]).await;
        assert_eq!(scene.fetches("/other"), 0);
    })
    .await;
}

#[tokio::test]
async fn subscriptions_that_cross_what_cannot_be_read_are_all_heard() {
    const NAMES: u32 = 40;
    against_both(async |scene| {
        let name = |number: u32| format!("name-{number}");
        let filter = |number: u32| resources::allow_all(resources::Kind::Http, &name(number));
        scene.double.set_all((0..=NAMES).map(filter));
        let mut envoy = scene.envoy().await;
        for number in 0..=NAMES {
            envoy.subscribe(&[&name(number)]).await;
            // Soon after, so that it meets the request somewhere on its way.
            for _ in 0..number * 3 {
                tokio::task::yield_now().await;
            }
            let mut malformed = resources::deny_all(resources::Kind::Http, &format!("name-0-{number}"));
            malformed.value.truncate(malformed.value.len() - 1);
            scene.double.set_named(vec![("name-0".to_owned(), malformed)]);
        }
        envoy.until(|envoy| envoy.held.len() >= NAMES as usize).await;
        envoy.nothing_new_within(QUIET).await;
    })
    .await;
}
