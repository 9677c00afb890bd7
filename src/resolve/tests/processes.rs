//! Resolvers with openings of one store of their own, which are to each other as other processes are.

use super::*;

/// Asks as another process would.
fn ask(resolver: &Resolver, request: ModuleRequest) -> tokio::task::JoinHandle<Outcome> {
    let resolver = resolver.clone();
    tokio::spawn(async move { resolver.resolve(request).await })
}

/// A URL whose answer waits as `slow` does.
fn slow_url(place: &Place, module: &'static [u8]) -> ModuleRequest {
    let path = "/slow/blobs/filter.wasm".to_owned();
    place.shop.goods.lock().unwrap().insert(path.clone(), Bytes::from_static(module));
    ModuleRequest::new(format!("http://{}{path}", place.address).parse().unwrap())
}

fn waits(resolver: &Resolver, how: &'static str) -> u64 {
    resolver.0.metrics.fetch_waits.get_or_create(&result(how)).get()
}

/// Lets the others run, and find that it is not their turn.
async fn a_moment(place: &Place) {
    for _ in 0..20 {
        place.clock.advance(Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn one_process_downloads_and_the_others_take_what_it_brought() {
    let place = Place::new(4).await;
    let manifest = place.shop.offer("slow:t", MODULES[0]);
    let url = slow_url(&place, MODULES[1]);
    place.shop.open.send_replace(false);
    let others: Vec<Resolver> = (0..3).map(|_| place.restarted()).collect();
    let expecting = ExpectedDigest::from_bytes(*manifest.as_bytes());
    let requests = [
        (place.request("slow:t"), 0),
        (place.always("slow:t", "7"), 0),
        (ModuleRequest { expected: Some(expecting), ..place.request("slow:t") }, 0),
        (url.clone(), 1),
        (ModuleRequest { policy: PullPolicy::Always, ..url.clone() }, 1),
    ];
    for (request, module) in requests {
        let (_, blobs) = place.shop.asked();
        // Records tell times apart by seconds.
        place.clock.advance(Duration::from_secs(1));
        let asking: Vec<_> = others.iter().map(|other| ask(other, request.clone())).collect();
        a_moment(&place).await;
        place.shop.open.send_replace(true);
        for asking in asking {
            let outcome = place.until_done(asking).await;
            assert_eq!(payload(&outcome), PayloadDigest::of(MODULES[module]), "{request:?}");
        }
        place.shop.open.send_replace(false);
        let expected = match request.policy {
            // The manifest says that it is there.
            PullPolicy::Always if module == 0 => 0,
            PullPolicy::Always => 1,
            PullPolicy::IfNotPresent if request.expected.is_some() => 0,
            PullPolicy::IfNotPresent => 1,
        };
        assert_eq!(place.shop.asked().1 - blobs, expected, "{request:?}");
    }
    let shared: u64 = others.iter().map(|other| waits(other, "shared")).sum();
    assert_eq!(shared, 6);
    let flights = place.folder.path().join("store/v1/content/flights");
    assert_eq!(std::fs::read_dir(flights).unwrap().count(), 0);
}

#[tokio::test]
async fn who_wants_to_be_sure_is_not_content_with_a_fetch_for_another_version() {
    let place = Place::new(4).await;
    let url = slow_url(&place, MODULES[0]);
    place.shop.open.send_replace(false);
    let asking = ["1", "2"].map(|version| ModuleRequest {
        policy: PullPolicy::Always,
        resource_version: Some(version.to_owned()),
        ..url.clone()
    });
    let other = place.restarted();
    let first = place.ask(asking[0].clone());
    place.shop.was_asked(0, 1).await;
    let second = ask(&other, asking[1].clone());
    a_moment(&place).await;
    place.shop.open.send_replace(true);
    place.until_done(first).await.unwrap();
    place.until_done(second).await.unwrap();
    assert_eq!(place.shop.asked(), (0, 2));
}

#[tokio::test]
async fn a_failure_is_not_shared_and_the_next_process_tries_by_itself() {
    let place = Place::new(4).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let (blob, bytes) = {
        let mut goods = place.shop.goods.lock().unwrap();
        let path = goods.keys().find(|path| path.contains("/blobs/")).unwrap().clone();
        (path.clone(), goods.remove(&path).unwrap())
    };
    let others: Vec<Resolver> = (0..3).map(|_| place.restarted()).collect();
    let asking: Vec<_> = others.iter().map(|other| ask(other, place.request("slow:t"))).collect();
    place.shop.was_asked(3, 1).await;
    a_moment(&place).await;
    assert_eq!(place.shop.asked(), (3, 1), "one at a time");
    place.shop.open.send_replace(true);
    for asking in asking {
        assert_eq!(label(place.until_done(asking).await), "not_found");
    }
    assert_eq!(place.shop.asked(), (3, 3));
    place.shop.goods.lock().unwrap().insert(blob, bytes);
    assert!(others[0].resolve(place.request("slow:t")).await.is_ok());
}

#[tokio::test]
async fn a_process_that_leaves_hands_its_turn_on() {
    let place = Place::new(4).await;
    place.shop.offer("slow:t", MODULES[0]);
    place.shop.open.send_replace(false);
    let first = place.ask(place.request("slow:t"));
    place.shop.was_asked(1, 1).await;
    let other = place.restarted();
    let second = ask(&other, place.request("slow:t"));
    place.shop.was_asked(2, 1).await;
    a_moment(&place).await;
    first.abort();
    // When nobody came back to it.
    while place.shop.asked() != (2, 2) {
        a_moment(&place).await;
    }
    place.shop.open.send_replace(true);
    assert!(place.until_done(second).await.is_ok());
    assert_eq!(waits(&other, "taken_over"), 1);
}

#[tokio::test]
async fn who_waits_for_another_process_has_a_deadline_and_holds_no_place() {
    let place = Place::new(1).await;
    let manifest = place.shop.offer("slow:t", MODULES[0]);
    place.shop.offer("quick:t", MODULES[1]);
    let what = digest_key(&place.request("slow:t").url, &manifest).unwrap();
    let another = place.restarted();
    let claim = another.0.store.claim(&Audience::Public, &what).unwrap();
    assert!(claim.is_some());
    let waiting = place.ask(place.request("slow:t"));
    place.shop.was_asked(1, 0).await;
    a_moment(&place).await;
    // The server's only place is free.
    assert!(place.resolver.resolve(place.request("quick:t")).await.is_ok());
    assert!(!waiting.is_finished());

    place.clock.advance(LIMIT);
    assert_eq!(label(place.until_done(waiting).await), "timeout");
    assert_eq!(waits(&place.resolver, "timeout"), 1);
    assert_eq!(place.shop.asked(), (2, 1));
}

#[tokio::test]
async fn where_no_claim_can_be_had_each_fetches_for_itself() {
    let place = Place::new(4).await;
    place.shop.offer("a:t", MODULES[0]);
    place.shop.offer("b:t", MODULES[1]);
    let flights = place.folder.path().join("store/v1/content/flights");
    std::fs::write(&flights, "no folder").unwrap();
    assert!(place.resolver.resolve(place.request("a:t")).await.is_ok());
    assert!(place.resolver.resolve(place.request("b:t")).await.is_ok());
    assert!(place.resolver.0.claims_failed.load(Ordering::Relaxed));
}
