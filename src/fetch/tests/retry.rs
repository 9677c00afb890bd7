//! What is asked again, of whom, when, and what is not.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::metrics::ReasonLabel;

const LONG: Duration = Duration::from_secs(60);

fn net(most: u32) -> Net {
    Net::default().config(|config| config.retries = Retries { most, within: LONG })
}

/// Which of the requests for an image, or for a URL, something is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Manifest,
    Blob,
    Token,
    Url,
}

impl Kind {
    fn is_of(self, seen: &Seen) -> bool {
        let part = match self {
            Kind::Manifest => "/manifests/",
            Kind::Blob => "/blobs/",
            Kind::Token => "/token",
            Kind::Url => "/m",
        };
        match self {
            Kind::Url => seen.target == part,
            // The first is only told to bring a token.
            Kind::Manifest => seen.target.contains(part) && seen.header("authorization").is_some(),
            Kind::Blob | Kind::Token => seen.target.contains(part),
        }
    }

    fn url(self, server: &Server) -> String {
        if self == Kind::Url { server.url("/m") } else { image_url(server) }
    }
}

/// A registry behind a token server, and a URL, of which one kind fails so many times at first.
async fn failing(kind: Kind, times: usize, fault: Reply) -> Server {
    let (image, failed) = (Image::new("module"), AtomicUsize::new(0));
    registry(&image, move |seen| {
        if kind.is_of(seen) && failed.fetch_add(1, Ordering::SeqCst) < times {
            return Some(fault.clone());
        }
        if seen.target == "/m" {
            return Some(Reply::ok("module"));
        }
        if seen.target.starts_with("/token") {
            return Some(Reply::ok(json!({ "token": "t" }).to_string()));
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
        let asks = seen.header("authorization").is_none();
        asks.then(|| Reply::new(401).header("WWW-Authenticate", &realm))
    })
    .await
}

fn times(server: &Server, kind: Kind) -> usize {
    server.seen().iter().filter(|seen| kind.is_of(seen)).count()
}

#[tokio::test]
async fn what_fails_for_the_moment_is_asked_again_whatever_is_asked_for() {
    let mut attempts = Vec::new();
    for kind in [Kind::Manifest, Kind::Blob, Kind::Token, Kind::Url] {
        let statuses = [408, 429, 500, 502, 503, 504].map(Reply::new);
        let broken = [Reply::ok("module").fault(Fault::HangUp), Reply::ok("module").fault(Fault::Cut(0))];
        for (number, fault) in statuses.into_iter().chain(broken).enumerate() {
            if kind == Kind::Url && fault.fault == Fault::Cut(0) {
                // Its body has begun, and cannot go on: whoever takes it in asks again.
                continue;
            }
            attempts.push(async move {
                let server = failing(kind, 2, fault.clone()).await;
                let outcome = fetch(&net(2).build(), &request(&kind.url(&server))).await;
                let what = format!("{kind:?} {number}: {outcome:?}");
                assert_eq!(outcome.expect(&what).bytes, b"module");
                assert!(times(&server, kind) >= 3, "{what}");
                if fault.fault != Fault::None {
                    return;
                }
                assert_eq!(times(&server, kind), 3, "{what}");
                // The same where it may be asked again only once.
                let server = failing(kind, 2, fault).await;
                let (label, _) = failure(&net(1).build(), &request(&kind.url(&server))).await;
                assert!(matches!(label, "rate_limited" | "unavailable"), "{kind:?}: {label}");
                assert_eq!(times(&server, kind), 2);
            });
        }
    }
    futures_util::future::join_all(attempts).await;
}

#[tokio::test]
async fn what_does_not_pass_by_itself_is_asked_once() {
    let mut faults: Vec<_> = [400, 401, 403, 404, 410, 416, 418, 501, 505, 511].map(Reply::new).into();
    let wrong = SourceDigest::of(b"x").to_string();
    faults.push(Reply::ok("others").header("Docker-Content-Digest", &wrong));
    faults.push(Reply::redirect("http://169.254.169.254/"));
    for kind in [Kind::Manifest, Kind::Blob] {
        for fault in &faults {
            let server = failing(kind, 9, fault.clone()).await;
            let error = fetch(&net(5).build(), &request(&image_url(&server))).await.unwrap_err();
            assert_eq!(times(&server, kind), 1, "{kind:?} {fault:?}: {error}");
        }
    }
    let small = Net::default().config(|config| {
        config.max_module_bytes = 1;
        config.retries = Retries { most: 5, within: LONG };
    });
    let server = failing(Kind::Url, 9, Reply::ok(vec![7; 2 << 20])).await;
    assert_eq!(failure(&small.build(), &request(&server.url("/m"))).await.0, "too_large");
    assert_eq!(times(&server, Kind::Url), 1);
}

#[tokio::test]
async fn a_retry_after_is_waited_for_and_no_earlier_try_made() {
    let fault = Reply::new(429).header("Retry-After", "7");
    let server = failing(Kind::Manifest, 1, fault).await;
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..net(1) }.build();
    let url = request(&image_url(&server));
    let fetching = tokio::spawn(async move { fetch(&fetcher, &url).await });
    while times(&server, Kind::Manifest) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    manual.advance(Duration::from_millis(6_900));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((times(&server, Kind::Manifest), fetching.is_finished()), (1, false));
    while !fetching.is_finished() {
        manual.advance(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(fetching.await.unwrap().unwrap().bytes, b"module");
    assert_eq!(times(&server, Kind::Manifest), 2);
}

#[tokio::test]
async fn one_that_is_longer_than_there_is_time_is_told_at_once() {
    let fault = Reply::new(503).header("Retry-After", "3600");
    for kind in [Kind::Manifest, Kind::Url] {
        let server = failing(kind, 9, fault.clone()).await;
        let error = fetch(&net(5).build(), &request(&kind.url(&server))).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
        assert_eq!(times(&server, kind), 1);
    }
}

#[tokio::test]
async fn no_try_begins_later_than_it_may() {
    for (within, tries) in [(29, 1), (300, 3)] {
        let server = Server::start(|_| Reply::new(200).fault(Fault::Mute)).await;
        let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
        let retries = Retries { most: 2, within: Duration::from_secs(within) };
        let net = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() };
        let fetcher = net.config(|config| config.retries = retries).build();
        let request = request(&image_url(&server));
        let fetching = tokio::spawn(async move { fetch(&fetcher, &request).await });
        // Silent for 30 s each time.
        while !fetching.is_finished() {
            manual.advance(Duration::from_millis(500));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert_eq!(fetching.await.unwrap().unwrap_err().label(), "stalled");
        assert_eq!(server.seen().len(), tries, "{within}");
    }
}

/// A mirror and an origin that note who was asked for this kind, and fail as told: by how often both were.
async fn pair(
    image: &Image,
    kind: Kind,
    fails: impl Fn(&str, usize) -> Option<Reply> + Clone + Send + Sync + 'static,
) -> ([Server; 2], Arc<Mutex<Vec<&'static str>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let host = async |name: &'static str| {
        let (image, log, fails) = (image.clone(), log.clone(), fails.clone());
        Server::start(move |seen| {
            let target = seen.path().to_owned();
            let is_asked = match kind {
                Kind::Blob => target.contains("/blobs/"),
                _ => target.contains("/manifests/"),
            };
            let fault = is_asked.then(|| {
                let mut log = log.lock().unwrap();
                log.push(name);
                fails(name, log.len())
            });
            fault.flatten().unwrap_or_else(|| image.reply(&Seen { target, ..seen.clone() }))
        })
        .await
    };
    ([host("mirror").await, host("origin").await], log)
}

#[tokio::test]
async fn all_hosts_are_asked_once_before_one_is_asked_again() {
    let image = Image::new("module");
    for kind in [Kind::Manifest, Kind::Blob] {
        let ([mirror, origin], log) =
            pair(&image, kind, |_, number| (number <= 3).then(|| Reply::new(503))).await;
        let net = mirrors::net(&origin, &[&mirror])
            .config(|config| config.retries = Retries { most: 1, within: LONG });
        assert_eq!(mirrors::bytes(net, &origin).await, b"module");
        assert_eq!(*log.lock().unwrap(), ["mirror", "origin", "mirror", "origin"], "{kind:?}");
    }
}

#[tokio::test]
async fn a_host_that_does_not_have_it_is_not_asked_again_with_the_others() {
    let image = Image::new("module");
    for kind in [Kind::Manifest, Kind::Blob] {
        let ([mirror, origin], log) = pair(&image, kind, |name, number| match name {
            "mirror" => Some(Reply::new(404)),
            _ => (number == 2).then(|| Reply::new(503)),
        })
        .await;
        let net = mirrors::net(&origin, &[&mirror])
            .config(|config| config.retries = Retries { most: 1, within: LONG });
        assert_eq!(mirrors::bytes(net, &origin).await, b"module");
        assert_eq!(*log.lock().unwrap(), ["mirror", "origin", "origin"], "{kind:?}");
    }
}

#[tokio::test]
async fn the_registrys_own_refusal_ends_it_though_a_mirror_may_come_back() {
    let image = Image::new("module");
    let ([mirror, origin], log) =
        pair(&image, Kind::Manifest, |name, _| Some(Reply::new(if name == "mirror" { 503 } else { 404 })))
            .await;
    let net =
        mirrors::net(&origin, &[&mirror]).config(|config| config.retries = Retries { most: 5, within: LONG });
    let url = request(&mirrors::url(&origin));
    assert_eq!(failure(&net.build(), &url).await.0, "not_found");
    assert_eq!(*log.lock().unwrap(), ["mirror", "origin"]);
}

#[tokio::test]
async fn a_body_goes_on_where_it_stopped_through_answers_that_bring_nothing() {
    let layer: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let half = layer.len() / 2;
    let (image, asked) = (Image::new(layer.clone()), AtomicUsize::new(0));
    let whole = layer.clone();
    let server = registry(&image, move |seen| {
        seen.target.contains("/blobs/").then(|| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::ok(whole.clone()).fault(Fault::Cut(half)),
            1 => resume::part(&whole, seen).fault(Fault::Cut(0)),
            2 => Reply::new(503),
            _ => resume::part(&whole, seen),
        })
    })
    .await;
    assert_eq!(fetch(&net(2).build(), &request(&image_url(&server))).await.unwrap().bytes, layer);
    let blobs = server.seen().into_iter().filter(|seen| seen.target.contains("/blobs/"));
    let ranges: Vec<_> = blobs.map(|seen| seen.header("range").map(str::to_owned)).collect();
    let rest = Some(format!("bytes={half}-"));
    assert_eq!(ranges, [None, rest.clone(), rest.clone(), rest]);
}

#[tokio::test]
async fn a_name_is_looked_up_again_for_every_try() {
    let image = Image::new("module");
    let server = registry(&image, |_| None).await;
    let port = server.address.port();
    let looked_up = Arc::new(AtomicUsize::new(0));
    let count = looked_up.clone();
    // Nobody listens there, then nobody is there, then it has moved.
    let lookup: names::Lookup = Arc::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(vec!["127.0.0.9".parse().unwrap()]),
        1 => Err(std::io::Error::other("no such name")),
        _ => Ok(vec!["127.0.0.1".parse().unwrap()]),
    });
    let registry = format!("r.test:{port}");
    let fetcher = Net { lookup: Some(lookup), ..net(2) }.plain(&registry).build();
    let fetched = fetch(&fetcher, &request(&format!("oci://{registry}/a/b:v1"))).await.unwrap();
    assert_eq!(fetched.bytes, b"module");
    assert_eq!(looked_up.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_body_that_breaks_off_goes_on_wherever_its_host_has_moved() {
    let layer = vec![7; 300_000];
    let image = Image::new(layer.clone());
    let (cut, path) = (Reply::ok(layer.clone()).fault(Fault::Cut(100_000)), image.blob_path());
    let old = registry(&image, move |seen| (seen.target == path).then(|| cut.clone())).await;
    let served = image.clone();
    let at = format!("127.0.0.2:{}", old.address.port());
    let new = Server::start_at(&at, None, move |seen| match seen.target.contains("/blobs/") {
        true => resume::part(&served.layer, seen),
        false => Reply::new(404),
    })
    .await;
    let has_moved = Arc::new(AtomicUsize::new(0));
    let lookups = has_moved.clone();
    let lookup: names::Lookup = Arc::new(move |_| {
        let address = if lookups.fetch_add(1, Ordering::SeqCst) == 0 { "127.0.0.1" } else { "127.0.0.2" };
        Ok(vec![address.parse().unwrap()])
    });
    let registry = format!("r.test:{}", old.address.port());
    let fetcher = Net { lookup: Some(lookup), ..net(0) }.plain(&registry).build();
    let fetched = fetch(&fetcher, &request(&format!("oci://{registry}/a/b:v1"))).await.unwrap();
    assert_eq!(fetched.bytes, layer);
    assert_eq!(new.seen()[0].header("range"), Some("bytes=100000-"));
}

#[tokio::test]
async fn every_retry_is_counted_by_its_reason() {
    let server = failing(Kind::Manifest, 2, Reply::new(503)).await;
    let (metrics, _) = Metrics::new();
    let counted = metrics.clone();
    let fetcher = net(3).config(|config| config.metrics = Some(counted)).build();
    fetch(&fetcher, &request(&image_url(&server))).await.unwrap();
    let count = |reason| metrics.fetch_retries.get_or_create(&ReasonLabel { reason }).get();
    assert_eq!((count("unavailable"), count("transport")), (2, 0));
}
