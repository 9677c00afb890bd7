//! Pulls that break off, by a connection or with their process, and what is asked for again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::bad_server::{BadServer, Fault, Reply};
use crate::support::eventually;
use crate::support::fixtures::{module, padded};
use crate::support::pulls::{begin_prefetch, cache, digests, payloads, prefetch};
use crate::support::registry::tar_gz;
use crate::support::world::World;

const RAW: &str = "application/wasm";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// So many bytes come before anything breaks off.
const BEGINNING: usize = 200_000;
/// Modules are written in pieces of this size; what is smaller in that folder is another file of the store's.
const PIECE: usize = 64 * 1024;
/// So many of those are on disk by then.
const WRITTEN: usize = 3 * PIECE;

fn large() -> Vec<u8> {
    padded(&module("add-header-v1"), 400_000)
}

/// What a dead process left.
fn leftovers(world: &World) -> Vec<PathBuf> {
    let ingest = cache(world).join("v1/content/ingest");
    let Ok(entries) = std::fs::read_dir(ingest) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn size(path: &Path) -> usize {
    path.metadata().map_or(0, |metadata| metadata.len() as usize)
}

/// The ranges of all requests for layers.
fn ranges(server: &BadServer) -> Vec<Option<String>> {
    let layers = server.seen().into_iter().filter(|seen| seen.path.contains("/blobs/"));
    layers.map(|seen| seen.range).collect()
}

/// A server of an image whose layer's n-th answer is made by `answer`; gives its URL.
async fn image(
    world: &World,
    media_type: &str,
    layer: &[u8],
    answer: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static,
) -> (BadServer, String) {
    let server = BadServer::start(world).await;
    let url = server.image("filter", media_type, layer, Reply::status(500));
    let (layer, asked) = (layer.to_vec(), AtomicUsize::new(0));
    server.handle(move |seen| {
        let is_layer = seen.path.contains("/blobs/");
        is_layer.then(|| answer(asked.fetch_add(1, Ordering::SeqCst), Reply::part(&layer, seen)))
    });
    (server, url)
}

fn stalls_at_first(number: usize, reply: Reply) -> Reply {
    if number == 0 { reply.fault(Fault::Stalled(BEGINNING)) } else { reply }
}

/// Begins to pull and is killed when all has been written that comes; gives how much that is.
async fn pull_and_die(world: &World, url: &str) -> usize {
    let mut pull = begin_prefetch(world, "killed", url);
    eventually("the beginning on disk", async || {
        leftovers(world).first().is_some_and(|path| size(path) == WRITTEN).then_some(())
    })
    .await;
    pull.kill();
    size(&leftovers(world)[0])
}

#[tokio::test]
async fn after_a_kill_in_mid_pull_only_the_rest_of_a_layer_is_asked_for() {
    let (world, large) = (World::new(), large());
    let (server, url) = image(&world, RAW, &large, stalls_at_first).await;
    let there = pull_and_die(&world, &url).await;
    let run = prefetch(&world, [&url], &[]).await;
    run.module(&url, &large);
    assert_eq!(ranges(&server), [None, Some(format!("bytes={there}-"))]);
    assert_eq!(payloads(&cache(&world)), digests([large.as_slice()]));
}

#[tokio::test]
async fn what_is_left_of_a_compressed_layer_is_swept_and_all_of_it_asked_for() {
    let (world, large) = (World::new(), large());
    let layer = tar_gz(&[("plugin.wasm", &large)]);
    let (server, url) = image(&world, TAR, &layer, |number, reply| {
        let most = reply.body.len() / 2;
        if number == 0 { reply.fault(Fault::Stalled(most)) } else { reply }
    })
    .await;
    let mut pull = begin_prefetch(&world, "killed", &url);
    eventually("a piece of it on disk", async || {
        leftovers(&world).first().is_some_and(|path| size(path) >= PIECE).then_some(())
    })
    .await;
    pull.kill();
    assert_eq!(leftovers(&world).len(), 1);
    prefetch(&world, [&url], &[]).await.module(&url, &large);
    assert_eq!(ranges(&server), [None, None]);
    assert_eq!(payloads(&cache(&world)), digests([large.as_slice()]));
}

#[tokio::test]
async fn a_leftover_with_other_bytes_is_found_out_and_the_layer_fetched_from_its_start_once() {
    let (world, large) = (World::new(), large());
    let (server, url) = image(&world, RAW, &large, stalls_at_first).await;
    let there = pull_and_die(&world, &url).await;
    // As after a loss of power.
    std::fs::write(&leftovers(&world)[0], vec![0; there]).unwrap();
    prefetch(&world, [&url], &[]).await.module(&url, &large);
    assert_eq!(ranges(&server), [None, Some(format!("bytes={there}-")), None]);
    assert_eq!(payloads(&cache(&world)), digests([large.as_slice()]));
}

#[tokio::test]
async fn a_server_that_sends_other_bytes_for_the_rest_is_asked_once_more_and_then_refused() {
    let (world, large) = (World::new(), large());
    let (server, url) = image(&world, RAW, &large, |number, reply| {
        let other = reply.body.iter().map(|byte| !byte).collect();
        if number == 0 { reply.fault(Fault::Stalled(BEGINNING)) } else { Reply { body: other, ..reply } }
    })
    .await;
    let there = pull_and_die(&world, &url).await;
    let run = prefetch(&world, [&url], &[]).await;
    assert_eq!(run.error(&url).0, "digest_mismatch");
    assert_eq!(ranges(&server), [None, Some(format!("bytes={there}-")), None]);
    assert_eq!(payloads(&cache(&world)), digests([]));
}

#[tokio::test]
async fn a_pull_that_breaks_off_goes_on_and_one_that_fails_leaves_its_beginning_for_the_next() {
    let (world, large) = (World::new(), large());
    let (server, url) = image(&world, RAW, &large, |number, reply| match number {
        0 => reply.fault(Fault::Cut(BEGINNING)),
        1 => reply.fault(Fault::Cut(1000)),
        2 => Reply::status(503),
        _ => reply,
    })
    .await;
    // One try of each thing, and no other.
    let run = prefetch(&world, [&url], &[("WASM_HTTP_REQUEST_MAX_RETRIES", "1")]).await;
    assert_eq!(run.error(&url).0, "unavailable");
    assert_eq!(size(&leftovers(&world)[0]), WRITTEN);
    prefetch(&world, [&url], &[]).await.module(&url, &large);
    let from = |at: usize| Some(format!("bytes={at}-"));
    let expected = [None, from(BEGINNING), from(BEGINNING + 1000), from(WRITTEN)];
    assert_eq!(ranges(&server), expected);
    assert_eq!(payloads(&cache(&world)), digests([large.as_slice()]));
}
