//! Downloads that break off and go on, and servers that lie about where.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::fetch::body::Resumed;

const SIZE: usize = 300_000;
const HALF: usize = 150_000;

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Where the request wants to begin.
fn from(seen: &Seen) -> Option<usize> {
    seen.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// What an honest server answers: the part that is asked for.
pub(super) fn part(whole: &[u8], seen: &Seen) -> Reply {
    let Some(from) = from(seen) else { return Reply::ok(whole) };
    let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
    Reply { status: 206, ..Reply::ok(&whole[from..]) }.header("Content-Range", &range)
}

/// Whether a request is for the module.
fn is_for_module(seen: &Seen) -> bool {
    seen.target.contains("/blobs/") || seen.target.starts_with("/m")
}

/// A server of these bytes, as an image and at `/m`, whose n-th answer with them is made by `answer`.
async fn server(answer: impl Fn(usize, &[u8], &Seen) -> Reply + Send + Sync + 'static) -> Server {
    let (image, asked) = (Image::new(bytes()), AtomicUsize::new(0));
    registry(&image.clone(), move |seen| {
        is_for_module(seen).then(|| answer(asked.fetch_add(1, Ordering::SeqCst), &image.layer, seen))
    })
    .await
}

/// How the n-th request was for the module: where it began, and under which ETag.
fn ranges(server: &Server) -> Vec<(Option<usize>, Option<String>)> {
    let asked = server.seen().into_iter().filter(is_for_module);
    asked.map(|seen| (from(&seen), seen.header("if-range").map(str::to_owned))).collect()
}

async fn both(server: &Server) -> [Result<(Fetched, Resumed), FetchError>; 2] {
    let mut outcomes = Vec::new();
    for url in [image_url(server), server.url("/m")] {
        outcomes.push(resumed(&url).await);
    }
    outcomes.try_into().unwrap()
}

async fn resumed(url: &str) -> Result<(Fetched, Resumed), FetchError> {
    let fetcher = Net::default().build();
    let request = request(url);
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await?;
    let mut body = fetcher.open(located, deadline).await?;
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(FetchError::from_io)?;
        let (packaging, resumed) = (body.packaging(), body.resumed());
        let source = body.finish(&PayloadDigest::of(&bytes))?;
        Ok((Fetched { bytes, source, packaging }, resumed))
    });
    reading.await.unwrap()
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let server = server(|number, whole, seen| {
        let reply = part(whole, seen).header("ETag", "\"one\"");
        if number % 2 == 0 { reply.fault(Fault::Cut(HALF)) } else { reply }
    })
    .await;
    for outcome in both(&server).await {
        let (fetched, resumed) = outcome.unwrap();
        assert_eq!(fetched.bytes, bytes());
        assert_eq!(resumed, Resumed { times: 1, saved: HALF as u64 });
    }
    let one = || Some("\"one\"".to_owned());
    // A layer is known by its digest, a URL's bytes by their ETag.
    let expected = [(None, None), (Some(HALF), None), (None, None), (Some(HALF), one())];
    assert_eq!(ranges(&server), expected);
    let seen = server.seen();
    assert!(
        seen.iter()
            .filter(|seen| is_for_module(seen))
            .all(|seen| { seen.header("accept-encoding") == Some("identity") })
    );
}

#[tokio::test]
async fn it_goes_on_a_few_times_and_only_while_that_brings_it_on() {
    // Each answer brings 10,000 bytes more.
    let server =
        server(|_, whole, seen| part(whole, seen).header("ETag", "\"1\"").fault(Fault::Cut(10_000))).await;
    for outcome in both(&server).await {
        assert_eq!(outcome.unwrap_err().label(), "transport");
    }
    let starts: Vec<_> = ranges(&server).into_iter().map(|(from, _)| from.unwrap_or(0)).collect();
    let once = [0, 10_000, 20_000, 30_000, 40_000, 50_000];
    assert_eq!(starts, [once, once].concat());

    // The second brings nothing.
    let server = super::resume::server(|number, whole, seen| {
        let cut = if number % 2 == 0 { HALF } else { 0 };
        part(whole, seen).header("ETag", "\"1\"").fault(Fault::Cut(cut))
    })
    .await;
    for outcome in both(&server).await {
        assert_eq!(outcome.unwrap_err().label(), "transport");
    }
    assert_eq!(ranges(&server).len(), 4);
}

#[tokio::test]
async fn a_url_without_a_strong_etag_does_not_go_on() {
    for etag in [None, Some("W/\"one\"")] {
        let server = server(move |_, whole, seen| {
            let reply = part(whole, seen).fault(Fault::Cut(HALF));
            match etag {
                Some(etag) => reply.header("ETag", etag),
                None => reply,
            }
        })
        .await;
        assert_eq!(resumed(&server.url("/m")).await.unwrap_err().label(), "transport");
        assert_eq!(ranges(&server).len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_sends_all_again_is_read_from_where_it_stopped() {
    let server = server(|number, whole, _| {
        let reply = Reply::ok(whole).header("ETag", "\"one\"");
        if number % 2 == 0 { reply.fault(Fault::Cut(HALF)) } else { reply }
    })
    .await;
    for outcome in both(&server).await {
        let (fetched, resumed) = outcome.unwrap();
        assert_eq!(fetched.bytes, bytes());
        assert_eq!(resumed, Resumed { times: 1, saved: 0 });
    }
}

#[tokio::test]
async fn a_server_that_lies_about_the_part_is_asked_for_all() {
    let lies: [fn(&[u8], usize) -> Reply; 6] = [
        |whole, from| lie(&whole[from..], format!("bytes 0-{}/{SIZE}", SIZE - 1)),
        |whole, from| lie(&whole[from..], format!("bytes {}-{}/{SIZE}", from + 1, SIZE - 1)),
        |whole, from| lie(&whole[from..], format!("bytes {from}-{}/{}", SIZE, SIZE + 1)),
        |whole, from| lie(&whole[from..from + 10], format!("bytes {from}-{}/{SIZE}", from + 9)),
        |whole, from| lie(&whole[from..], "no range".to_owned()),
        |_, _| Reply::new(416),
    ];
    for (number, lied) in lies.into_iter().enumerate() {
        let server = server(move |number, whole, seen| {
            let reply = match from(seen) {
                Some(from) => lied(whole, from),
                None if number % 3 == 0 => Reply::ok(whole).fault(Fault::Cut(HALF)),
                None => Reply::ok(whole),
            };
            reply.header("ETag", "\"one\"")
        })
        .await;
        for outcome in both(&server).await {
            let (fetched, resumed) = outcome.unwrap();
            assert_eq!(fetched.bytes, bytes(), "{number}");
            assert_eq!(resumed, Resumed { times: 1, saved: 0 });
        }
        assert_eq!(ranges(&server).len(), 6, "{number}");
    }
}

fn lie(body: &[u8], range: String) -> Reply {
    Reply { status: 206, ..Reply::ok(body) }.header("Content-Range", &range)
}

#[tokio::test]
async fn other_bytes_behind_the_break_are_never_taken_for_the_same() {
    // Of a layer, the digest tells. Of a URL, its ETag: by itself where the server knows no If-Range.
    for partial in [true, false] {
        let server = server(move |number, whole, seen| match number % 2 {
            0 => Reply::ok(whole).header("ETag", "\"one\"").fault(Fault::Cut(HALF)),
            _ => {
                let other: Vec<u8> = whole.iter().map(|byte| !byte).collect();
                let reply = if partial { part(&other, seen) } else { Reply::ok(other) };
                reply.header("ETag", "\"two\"")
            }
        })
        .await;
        let [layer, url] = both(&server).await.map(|outcome| outcome.unwrap_err().label());
        assert_eq!(layer, "digest_mismatch");
        // After a part under another ETag it is asked for all, which is what has changed.
        assert_eq!(url, if partial { "transport" } else { "changed" });
    }
}

#[tokio::test]
async fn a_part_of_a_layer_is_asked_for_with_the_credential_and_through_the_redirect_again() {
    let whole = bytes();
    let elsewhere = {
        let (whole, asked) = (whole.clone(), AtomicUsize::new(0));
        Server::start(move |seen| {
            let reply = part(&whole, seen);
            if asked.fetch_add(1, Ordering::SeqCst) == 0 { reply.fault(Fault::Cut(HALF)) } else { reply }
        })
        .await
    };
    let to = elsewhere.url("/storage");
    let server = server(move |_, _, seen| match seen.header("authorization") {
        Some(_) => Reply::redirect(&to),
        None => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"test\""),
    })
    .await;
    let request = with_password(&image_url(&server), &server.address.to_string(), "alice", "secret");
    let fetcher = Net::default().build();
    let deadline = fetcher.deadline(&request);
    let located =
        fetcher.locate(&request, &fetcher.credential(&request).await.unwrap(), deadline).await.unwrap();
    let fetched = read(fetcher.open(located, deadline).await.unwrap()).await.unwrap();
    assert_eq!(fetched.bytes, whole);
    let asked = ranges(&server).into_iter().map(|(from, _)| from);
    assert_eq!(asked.collect::<Vec<_>>(), [None, None, Some(HALF)], "the first one without a credential");
    let there = elsewhere.seen();
    assert_eq!(there.iter().map(from).collect::<Vec<_>>(), [None, Some(HALF)]);
    assert!(there.iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn who_has_the_beginning_of_a_layer_is_brought_the_rest() {
    for ranges_are_known in [true, false] {
        let server =
            server(move |_, whole, seen| if ranges_are_known { part(whole, seen) } else { Reply::ok(whole) })
                .await;
        let (fetcher, request) = (Net::default().build(), request(&image_url(&server)));
        let deadline = fetcher.deadline(&request);
        let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await.unwrap();
        assert_eq!(located.raw_layer(), Some((BlobDigest::of(&bytes()), SIZE as u64)));
        let mut body = fetcher.open_from(located.again(), HALF as u64, deadline).await.unwrap();
        let saved = if ranges_are_known { HALF as u64 } else { 0 };
        let reading = tokio::task::spawn_blocking(move || {
            let mut rest = Vec::new();
            body.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, bytes()[HALF..]);
            assert_eq!(body.resumed(), Resumed { times: 0, saved });
            body.finish(&PayloadDigest::of(&bytes())).unwrap();
        });
        reading.await.unwrap();
        assert_eq!(ranges(&server), [(Some(HALF), None)]);
    }
}
