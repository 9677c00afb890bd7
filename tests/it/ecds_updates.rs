//! What an Envoy gets of extension configs that change faster than their modules come, or never come:
//! against the doubles of two control planes, in both variants.

use std::time::{Duration, Instant};

use crate::support::control_plane::Protocol;
use crate::support::control_plane::doubles::Kind;
use crate::support::ecds::Filter;
use crate::support::eventually;
use crate::support::mesh::listener;
use crate::support::resources::{self, allow_all, deny_all};
use crate::support::scene::{QUIET, Scene, against_both, against_both_by_each_service};

/// So long a control plane waits for an answer at the most, on a machine that runs other tests besides.
const ANSWER: Duration = Duration::from_secs(3);

/// Waits until the server is done with all that it was asked.
async fn done(scene: &Scene) {
    eventually("no answer under way", async || (scene.server.answering() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_fix_is_delivered_while_the_fetch_of_a_broken_update_still_hangs() {
    against_both_by_each_service(async |scene| {
        let ecds = resources::ecds_type();
        scene.publish("/v1");
        let hanging = scene.publish_held("/hanging");
        scene.publish("/fix");
        scene.double.set(scene.filter("a", "v1", "/v1"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "v1")]).await;
        scene.double.settled(&ecds, 1).await;

        let broken = [scene.filter("a", "nowhere", "/nowhere"), scene.filter("a", "hanging", "/hanging")];
        for (number, (broken, path)) in broken.into_iter().zip(["/nowhere", "/hanging"]).enumerate() {
            let begin = Instant::now();
            scene.double.set(broken);
            scene.double.settled(&ecds, 2 + number).await;
            assert!(begin.elapsed() < ANSWER, "{:?} until the answer", begin.elapsed());
            scene.fetched(path, 1).await;
            envoy.nothing_new_within(QUIET).await;
        }
        scene.double.set(scene.filter("a", "fix", "/fix"));
        envoy.runs(&[("a", "fix")]).await;
        scene.double.settled(&ecds, 4).await;
        assert_eq!(scene.double.nacks(&ecds), Vec::<String>::new());
        assert_eq!(scene.double.responses(&ecds).len(), 4, "no loop");

        hanging.add_permits(1);
        done(scene).await;
        envoy.nothing_new_within(QUIET).await;
        assert_eq!(envoy.history, [("a".into(), "v1".into()), ("a".into(), "fix".into())]);
    })
    .await;
}

#[tokio::test]
async fn of_two_updates_the_newer_wins_though_the_older_is_downloaded_last() {
    against_both_by_each_service(async |scene| {
        let ecds = resources::ecds_type();
        let first = scene.publish_held("/first");
        let second = scene.publish_held("/second");
        scene.publish("/v1");
        scene.double.set_all([scene.filter("a", "v1", "/v1"), scene.filter("b", "v1", "/v1")]);
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("a", "v1"), ("b", "v1")]).await;
        for (number, path) in ["/first", "/second"].into_iter().enumerate() {
            scene.double.set_all(["a", "b"].map(|name| scene.filter(name, &path[1..], path)));
            scene.double.settled(&ecds, 2 + number).await;
            scene.fetched(path, 1).await;
        }
        second.add_permits(1);
        envoy.runs(&[("a", "second"), ("b", "second")]).await;
        first.add_permits(1);
        done(scene).await;
        envoy.nothing_new_within(QUIET).await;
        assert!(!envoy.history.iter().any(|(_, label)| label == "first"), "{:?}", envoy.history);
        assert_eq!((scene.fetches("/first"), scene.fetches("/second")), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn one_module_that_never_comes_keeps_nobody_waiting() {
    against_both(async |scene| {
        let never = scene.publish_held("/never");
        for path in ["/one", "/two", "/three"] {
            scene.publish(path);
        }
        let filters = [("a", "never"), ("b", "one"), ("c", "two")];
        let filters = filters.map(|(name, label)| scene.filter(name, label, &format!("/{label}")));
        scene.double.set_all(filters);
        scene.double.set(listener("web", &[], &["a", "b", "c"]));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b", "c"]).await;
        scene.fetched("/never", 1).await;
        envoy.runs(&[("b", "one"), ("c", "two")]).await;
        // Another type, on the same stream.
        envoy.ask(&resources::lds_type()).await;
        let received = envoy.receive().await;
        assert_eq!(received.type_url, resources::lds_type());
        envoy.accept(&received).await;
        // And an update of a neighbour.
        scene.double.set(scene.filter("b", "three", "/three"));
        envoy.runs(&[("b", "three"), ("c", "two")]).await;
        assert_eq!(scene.server.answering(), 1, "the slow one hangs");
        assert!(!envoy.held.contains_key("a"), "a download in progress is no failure: {:?}", envoy.held);
        never.add_permits(1);
        envoy.runs(&[("a", "never"), ("b", "three"), ("c", "two")]).await;
        assert_eq!(scene.fetches("/never"), 1);
    })
    .await;
}

#[tokio::test]
async fn what_is_gone_while_its_module_is_on_its_way_never_comes() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        let held = scene.publish_held("/late");
        scene.publish("/v1");
        scene.double.set(scene.filter("b", "v1", "/v1"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("b", "v1")]).await;
        scene.double.settled(&ecds, 1).await;
        scene.double.set(scene.filter("a", "late", "/late"));
        scene.fetched("/late", 1).await;
        if (scene.kind, scene.protocol) == (Kind::GoControlPlane, Protocol::Delta) {
            scene.double.settled(&ecds, 2).await;
            scene.double.remove(&ecds, "a");
            // Of a name that Envoy has never had, too.
            let received = envoy.receive().await;
            assert_eq!((&received.removed[..], received.configs.len()), (&["a".to_owned()][..], 0));
            envoy.accept(&received).await;
        } else {
            // Nobody else can say that something is gone, other than Envoy itself.
            envoy.unsubscribe(&["a"]).await;
            eventually("a request without it", async || {
                let requests = scene.double.requests(&ecds);
                requests.last().is_some_and(|(_, event)| !event.names.contains("a")).then_some(())
            })
            .await;
        }
        held.add_permits(1);
        done(scene).await;
        envoy.silence(QUIET).await;
        assert_eq!(envoy.history, [("b".into(), "v1".into())]);
    })
    .await;
}

#[tokio::test]
async fn what_a_control_plane_leaves_out_stays_unless_it_says_that_it_is_gone() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        for path in ["/a", "/b", "/update"] {
            scene.publish(path);
        }
        scene.double.set_all(["a", "b"].map(|name| scene.filter(name, name, &format!("/{name}"))));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a", "b"]).await;
        envoy.runs(&[("a", "a"), ("b", "b")]).await;
        scene.double.settled(&ecds, 1).await;
        scene.double.remove(&ecds, "a");
        scene.double.settled(&ecds, 2).await;
        // In state of the world the agent would be found out if its next response left out `a`.
        scene.double.set(scene.filter("b", "update", "/update"));
        envoy.runs(&[("b", "update")]).await;
        let says_so = (scene.kind, scene.protocol) == (Kind::GoControlPlane, Protocol::Delta);
        assert_eq!(envoy.label("a"), (!says_so).then_some("a"));
        scene.double.set(scene.filter("a", "update", "/update"));
        envoy.runs(&[("a", "update"), ("b", "update")]).await;
    })
    .await;
}

#[tokio::test]
async fn an_envoy_that_does_not_answer_keeps_the_control_plane_waiting_for_a_second_at_most() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        scene.double.set(allow_all(resources::Kind::Http, "a"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        let unanswered = envoy.receive().await;
        let begin = Instant::now();
        scene.double.settled(&ecds, 1).await;
        assert!(begin.elapsed() < ANSWER, "{:?} until the answer", begin.elapsed());
        assert!(scene.double.requests(&ecds)[1].1.is_ack());

        // Nor does it wait where the subscription changes meanwhile: first the answer, then the change.
        scene.double.set_all([deny_all(resources::Kind::Http, "a"), allow_all(resources::Kind::Http, "b")]);
        eventually("a second response", async || (scene.double.responses(&ecds).len() > 1).then_some(()))
            .await;
        let begin = Instant::now();
        envoy.subscribe(&["b"]).await;
        eventually("a request for both", async || {
            let requests = scene.double.requests(&ecds);
            let [.., (_, answer), (_, change)] = &requests[..] else { panic!("{requests:?}") };
            let both = ["a".to_owned(), "b".to_owned()].into();
            (change.names == both && change.answer.is_none() && answer.is_ack()).then_some(())
        })
        .await;
        assert!(begin.elapsed() < ANSWER / 2, "{:?} until the change", begin.elapsed());
        envoy.accept(&unanswered).await;
        envoy.until(|envoy| envoy.held.len() == 2).await;
        assert_eq!(envoy.held["a"].filter, Filter::Deny);
    })
    .await;
}

#[tokio::test]
async fn downloads_that_nobody_wants_any_more_keep_no_newer_one_waiting() {
    against_both(async |scene| {
        let ecds = resources::ecds_type();
        scene.publish("/v1");
        scene.publish("/fix");
        scene.double.set(scene.filter("a", "v1", "/v1"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "v1")]).await;
        let mut hanging = Vec::new();
        for number in 1..=4 {
            let path = format!("/hanging-{number}");
            hanging.push(scene.publish_held(&path));
            scene.double.set(scene.filter("a", "hanging", &path));
            scene.double.settled(&ecds, 1 + number).await;
            scene.fetched(&path, 1).await;
        }
        let begin = Instant::now();
        scene.double.set(scene.filter("a", "fix", "/fix"));
        envoy.runs(&[("a", "fix")]).await;
        assert!(begin.elapsed() < ANSWER, "{:?} until the fix", begin.elapsed());
    })
    .await;
}
