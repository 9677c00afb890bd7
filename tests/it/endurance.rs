//! Sources that fail for the moment, drip, or hang: what is asked again, what is given up, and who waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::agent::{Agent, Options};
use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::control_plane::Protocol;
use crate::support::ecds::Ecds;
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::pulls::{begin_prefetch, cache, digests, payloads, prefetch, tree, wasm_plugin};
use crate::support::world::{User, World};

const RAW: &str = "application/wasm";

/// A server whose first answers to each path are as told.
fn fails_at_first(server: &BadServer, path_has: &'static str, faults: Vec<Reply>) {
    let asked = AtomicUsize::new(0);
    server.handle(move |seen| {
        let number = seen.path.contains(path_has).then(|| asked.fetch_add(1, Ordering::SeqCst))?;
        faults.get(number).cloned()
    });
}

#[tokio::test]
async fn prefetch_asks_again_for_what_fails_for_the_moment() {
    let (world, module) = (World::new(), padded(&module("add-header-v1"), 100_000));
    let cut = Reply::ok(module.clone()).fault(Fault::Cut(50_000));
    for (path, faults) in [
        ("/manifests/", vec![Reply::status(503), Reply::status(429).header("retry-after", "1")]),
        ("/blobs/", vec![Reply::status(500), Reply::status(502)]),
        // Nothing tells the rest of it from that of something else: all of it comes again.
        ("/m.wasm", vec![cut.clone(), Reply::status(503), cut]),
    ] {
        let server = BadServer::start(&world).await;
        let image = server.image("filter", RAW, &module, Reply::ok(module.clone()));
        let file = server.put("/m.wasm", Reply::ok(module.clone()));
        let times = faults.len() + 1;
        fails_at_first(&server, path, faults);
        let url = if path == "/m.wasm" { file } else { image };
        prefetch(&world, [&url], &[]).await.module(&url, &module);
        let seen = server.seen();
        assert_eq!(seen.iter().filter(|seen| seen.path.contains(path)).count(), times, "{seen:#?}");
    }
    assert_eq!(payloads(&cache(&world)), digests([module.as_slice()]));
}

#[tokio::test]
async fn a_source_that_drips_is_given_up_with_its_rate() {
    let (world, module) = (World::new(), padded(&module("add-header-v1"), 100_000));
    let server = BadServer::start(&world).await;
    let drip = Reply::ok(module.clone()).fault(Fault::Drip(Duration::from_millis(100)));
    let urls = [server.put("/m.wasm", drip.clone()), server.image("filter", RAW, &module, drip)];
    let config = "version: 1\nfetch: {progress_timeout: 1s, min_rate: 100B}\n";
    let config = world.write("rate.yaml", config, User::Tests, 0o644);
    let began = Instant::now();
    let run = prefetch(&world, ["--config", config.to_str().unwrap(), &urls[0], &urls[1]], &[]).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    for url in &urls {
        let (reason, text) = run.error(url);
        assert_eq!(reason, "slow");
        assert!(text.contains("bytes in 1s, and 100 bytes a second are the least"), "{text}");
    }
    assert_eq!(payloads(&cache(&world)), digests([]));
}

#[tokio::test]
async fn a_server_that_hangs_keeps_only_its_own_modules_waiting() {
    let (world, module) = (World::new(), module("add-header-v1"));
    let (hangs, works) = (BadServer::start(&world).await, BadServer::start(&world).await);
    let good = works.put("/good.wasm", Reply::ok(module.clone()));
    let stalled = Reply::ok(module.clone()).fault(Fault::Stalled(10));
    let hanging = (0..20).map(|number| hangs.put(&format!("/{number}.wasm"), stalled.clone()));
    // It comes last, behind more than may be downloaded at once.
    let urls: Vec<String> = hanging.chain([good.clone()]).collect();
    let plugins = urls.iter().map(|url| wasm_plugin("p", url, json!({})).to_string());
    let documents = plugins.collect::<Vec<_>>().join("\n---\n");
    let file = world.write("all.yaml", documents, User::Tests, 0o644);
    let mut run = begin_prefetch(&world, "hangs", file.to_str().unwrap());
    eventually("the module of the server that works", async || {
        let files = tree(&cache(&world));
        files.keys().any(|path| path.starts_with("v1/public/") && path.ends_with(".wasm")).then_some(())
    })
    .await;
    assert_eq!(works.seen().len(), 1);
    eventually("all places of the one that hangs", async || (hangs.seen().len() >= 4).then_some(())).await;
    assert_eq!(hangs.seen().len(), 4);
    run.kill();
}

#[tokio::test]
async fn retries_keep_no_fallback_waiting_and_what_comes_within_the_hold_needs_none() {
    let (world, module) = (World::new(), module("add-header-v1"));
    let server = BadServer::start(&world).await;
    let down = server.put("/down.wasm", Reply::status(503));
    let shaky = server.put("/shaky.wasm", Reply::ok(module.clone()));
    fails_at_first(&server, "/shaky", vec![Reply::status(503), Reply::status(503)]);
    let plugins = world.folder("plugins", User::Agent, 0o755);
    for (name, url) in [("down", &down), ("shaky", &shaky)] {
        let plugin = wasm_plugin(name, url, json!({}));
        world.write(&format!("plugins/{name}.yaml"), plugin.to_string(), User::Agent, 0o644);
    }
    // More than half a minute of retries, if they were all made.
    let options = Options::directory(&plugins).with("fetch: {hold: 3s, retries: 20}");
    let agent = Agent::start(&world, &options).await;
    let names = ["default.down".to_owned(), "default.shaky".to_owned()];
    let began = Instant::now();
    let mut envoy = Ecds::subscribe(agent.tcp, Protocol::Sotw, &names).await;
    assert_eq!(std::fs::read(envoy.module("default.shaky").await).unwrap(), module);
    envoy.denied("default.down").await;
    let took = began.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&took), "{took:?}");
    let retries = agent.metric(r#"wasmferry_fetch_retries_total{reason="unavailable"}"#).await;
    assert!(retries >= 4, "two of the one, and more of the other: {retries}");
    assert_eq!(agent.metric(r#"wasmferry_fetches_total{result="success"}"#).await, 1);
}
