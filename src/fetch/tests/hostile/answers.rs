//! Answers that do not end, or are not what they say.

use std::io::Write as _;

use super::*;

/// A registry of an image that answers as given where the path holds this.
async fn where_path(holds: &'static str, image: &Image, reply: Reply) -> Server {
    registry(image, move |seen| seen.path().contains(holds).then(|| reply.clone())).await
}

/// Fails, by its label, for a URL or an image of a server.
async fn label(url: &str) -> &'static str {
    failure(&Net::default().build(), &request(url)).await.0
}

fn raw(head: &str, again: &str) -> Reply {
    Reply::ok(format!("{head}{again}")).fault(Fault::Raw(head.len()))
}

#[tokio::test]
async fn error_bodies_without_end_end_here_whoever_sends_them() {
    let image = Image::new("module");
    let endless = |status| Reply { body: vec![b' '; 65536], ..Reply::new(status) }.fault(Fault::Endless);
    for (status, expected) in [
        (206, "status"),
        (300, "status"),
        (302, "redirect"),
        (400, "status"),
        (401, "unauthorized"),
        (403, "denied"),
        (404, "not_found"),
        (429, "rate_limited"),
        (500, "unavailable"),
        (503, "unavailable"),
    ] {
        for holds in ["/manifests/", "/blobs/"] {
            let server = where_path(holds, &image, endless(status)).await;
            assert_eq!(label(&image_url(&server)).await, expected, "{holds} {status}");
        }
        let server = Server::start(move |_| endless(status)).await;
        assert_eq!(label(&server.url("/m")).await, expected, "{status}");
        // Of a token server, which is not what is asked for.
        let tokens = Server::start(move |_| endless(status)).await;
        let realm = tokens.url("/token");
        let server = registry(&image, move |_| Some(ask(&realm))).await;
        let expected = if status == 404 { "token" } else { expected };
        assert_eq!(label(&image_url(&server)).await, expected, "token {status}");
    }
    let server =
        where_path("/blobs/", &image, endless(401).header("WWW-Authenticate", "Basic realm=x")).await;
    let request = with_password(&image_url(&server), &server.address.to_string(), "user", "hunter2");
    assert_eq!(failure(&Net::default().build(), &request).await.0, "unauthorized");
}

#[tokio::test]
async fn heads_and_frames_without_end_end_here() {
    let chunked = "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let image = Image::new("module");
    for answer in [
        raw("HTTP/1.1 200 x", "x"),
        raw("HTTP/1.1 200 x\r\n", "a: b\r\n"),
        raw("HTTP/1.1 200 x\r\na: ", "b"),
        raw("HTTP/1.1 200 x\r\nContent-Length: ", "1"),
        raw("", "\r\n"),
        raw("", "x"),
        raw(&format!("{chunked}1;"), "x"),
        raw(&format!("{chunked}0\r\n"), "a: b\r\n"),
    ] {
        for holds in ["/manifests/", "/blobs/"] {
            let server = where_path(holds, &image, answer.clone()).await;
            assert_eq!(
                label(&image_url(&server)).await,
                "transport",
                "{:?}",
                String::from_utf8_lossy(&answer.body)
            );
        }
    }
}

#[tokio::test]
async fn announcements_and_sizes_without_end_end_with_the_time_for_an_answer() {
    for answer in [
        raw("", "HTTP/1.1 103 x\r\nLink: </x>\r\n\r\n"),
        raw("HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n", "0"),
    ] {
        ends_with_the_time(answer).await;
    }
}

async fn ends_with_the_time(answer: Reply) {
    let server = Server::start(move |_| answer.clone()).await;
    let mut ended = server.ended.clone();
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }.build();
    let request = request(&image_url(&server));
    let fetching = tokio::spawn(async move { fetch(&fetcher, &request).await });
    while server.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    while !fetching.is_finished() {
        manual.advance(FetchConfig::default().progress_timeout);
        tokio::task::yield_now().await;
    }
    assert!(matches!(fetching.await.unwrap().unwrap_err().label(), "stalled" | "timeout"));
    ended.wait_for(|ended| *ended == 1).await.unwrap();
}

#[tokio::test]
async fn what_is_compressed_is_not_unpacked_here() {
    let image = Image::new("module");
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let packed = |status, bytes: &[u8]| {
        Reply { body: gzip(bytes), ..Reply::new(status) }.header("Content-Encoding", "gzip")
    };
    let code = json!({"errors": [{"code": "DENIED"}]}).to_string();
    for body in [code.into_bytes(), vec![b' '; 50 << 20]] {
        let server = where_path("/manifests/", &image, packed(403, &body)).await;
        let (label, text) = failure(&Net::default().build(), &request(&image_url(&server))).await;
        assert!(label == "denied" && !text.contains("DENIED"), "{text}");
    }
    let server = where_path("/manifests/", &image, packed(200, &image.manifest)).await;
    assert_eq!(label(&image_url(&server)).await, "manifest");
    let tokens = {
        let answer = packed(200, br#"{"token":"t"}"#);
        Server::start(move |_| answer.clone()).await
    };
    let realm = tokens.url("/token");
    let server = registry(&image, move |_| Some(ask(&realm))).await;
    assert_eq!(label(&image_url(&server)).await, "token");
    let server = where_path("/blobs/", &image, packed(200, &image.layer)).await;
    assert_eq!(label(&image_url(&server)).await, "size_mismatch");
    assert!(server.seen().iter().all(|seen| !seen.headers.contains_key("accept-encoding")
        || seen.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn a_part_that_nobody_asked_for_is_refused_of_everything() {
    let image = Image::new("module");
    let part = |reply: Reply| Reply { status: 206, ..reply }.header("Content-Range", "bytes 0-5/6");
    let server = where_path("/manifests/", &image, part(Reply::ok(image.manifest.clone()))).await;
    assert_eq!(label(&image_url(&server)).await, "status");
    let server = where_path("/blobs/", &image, part(Reply::ok("module"))).await;
    assert_eq!(label(&image_url(&server)).await, "status");
    let server = Server::start(move |_| part(Reply::ok("module"))).await;
    assert_eq!(label(&server.url("/m")).await, "status");
    let tokens = Server::start(move |_| part(Reply::ok(r#"{"token":"t"}"#))).await;
    let realm = tokens.url("/token");
    let server = registry(&image, move |_| Some(ask(&realm))).await;
    assert_eq!(label(&image_url(&server)).await, "status");
}

#[tokio::test]
async fn a_part_that_is_longer_or_shorter_than_it_says_makes_no_module() {
    const SIZE: usize = 300_000;
    let image = Image::new((0..SIZE).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    for (bytes, layer, url) in [
        // More than is left, less, and nothing; in chunks, so that only the bytes tell.
        (SIZE, "size_mismatch", "changed"),
        (SIZE / 2 - 1, "size_mismatch", "changed"),
        (0, "size_mismatch", "changed"),
    ] {
        let whole = image.clone();
        let server = registry(&image, move |seen| {
            let is_module = seen.target.contains("/blobs/") || seen.target == "/m";
            let range = format!("bytes {}-{}/{SIZE}", SIZE / 2, SIZE - 1);
            let reply = match seen.header("range") {
                None => Reply::ok(whole.layer.clone()).fault(Fault::Cut(SIZE / 2)),
                Some(_) => Reply { status: 206, ..Reply::ok(vec![7; bytes]).fault(Fault::Chunked) }
                    .header("Content-Range", &range),
            };
            is_module.then(|| reply.header("ETag", "\"1\""))
        })
        .await;
        assert_eq!(label(&image_url(&server)).await, layer, "{bytes}");
        assert_eq!(label(&server.url("/m")).await, url, "{bytes}");
    }
}
