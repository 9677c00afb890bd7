//! What outlives a stream, and the agent: rejections, last good configs, and fetches that go on.

use std::fs;

use crate::support::bad_server::Reply;
use crate::support::eventually;
use crate::support::scene::{QUIET, against_both};

#[tokio::test]
async fn what_was_rejected_is_not_offered_again_on_the_next_stream() {
    against_both(async |scene| {
        for path in ["/a", "/rejected", "/update"] {
            scene.publish(path);
        }
        scene.double.set(scene.filter("a", "a", "/a"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "a")]).await;
        scene.double.set(scene.filter("a", "rejected", "/rejected"));
        let received = envoy.receive().await;
        envoy.reject(&received, "a", "it does not start").await;
        let received = envoy.receive().await;
        assert_eq!(received.configs["a"], envoy.held["a"]);
        envoy.accept(&received).await;
        scene.double.close_streams();
        envoy.reconnect().await;
        envoy.nothing_new_within(QUIET).await;
        scene.double.set(scene.filter("a", "update", "/update"));
        envoy.runs(&[("a", "update")]).await;
        assert!(!envoy.history.iter().any(|(_, label)| label == "rejected"), "{:?}", envoy.history);
    })
    .await;
}

#[tokio::test]
async fn an_envoy_that_starts_with_the_agent_while_an_update_is_broken_runs_what_worked_before() {
    against_both(async |scene| {
        scene.publish("/a");
        scene.double.set(scene.filter("a", "a", "/a"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "a")]).await;
        scene.agent.noted().await;
        scene.double.set(scene.filter("a", "broken", "/nowhere"));
        scene.fetched("/nowhere", 1).await;
        scene.agent.kill();
        scene.agent.resume(&scene.world).await;
        drop(envoy);
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "a")]).await;
        envoy.nothing_new_within(QUIET).await;
    })
    .await;
}

#[tokio::test]
async fn while_a_node_has_no_stream_what_it_wants_is_still_tried() {
    against_both(async |scene| {
        scene.server.put("/a", Reply::status(503));
        scene.double.set(scene.filter("a", "a", "/a"));
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        scene.fetched("/a", 1).await;
        drop(envoy);
        let before = scene.fetches("/a");
        scene.fetched("/a", before + 1).await;
        scene.publish("/a");
        let path = scene.agent.cache.join("v1/public");
        eventually("the module in the store", async || {
            let folders = fs::read_dir(&path).ok()?;
            (folders.count() > 0).then_some(())
        })
        .await;
        let fetches = scene.fetches("/a");
        let mut envoy = scene.envoy().await;
        envoy.subscribe(&["a"]).await;
        envoy.runs(&[("a", "a")]).await;
        assert_eq!(scene.fetches("/a"), fetches, "nothing more was asked of the server");
    })
    .await;
}
