//! Bodies that are not what was promised, or never end.

use super::*;

/// A registry whose layer is answered as given.
async fn layer(image: &Image, reply: Reply) -> Server {
    let path = image.blob_path();
    registry(image, move |seen| (seen.target == path).then(|| reply.clone())).await
}

/// A registry whose manifest is answered as given.
async fn manifest(reply: Reply) -> Server {
    registry(&Image::new("module"), move |seen| seen.target.ends_with("/v1").then(|| reply.clone())).await
}

async fn label(server: &Server) -> &'static str {
    failure(&Net::default().build(), &request(&image_url(server))).await.0
}

#[tokio::test]
async fn a_layer_with_a_wrong_byte_anywhere_is_refused() {
    let image = Image::new(vec![7; 300_000]);
    for position in [0, 150_000, 299_999] {
        let mut bytes = image.layer.clone();
        bytes[position] ^= 1;
        assert_eq!(label(&layer(&image, Reply::ok(bytes)).await).await, "digest_mismatch", "{position}");
    }
}

#[tokio::test]
async fn a_layer_longer_or_shorter_than_its_descriptor_is_refused() {
    let image = Image::new(vec![7; 300_000]);
    for fault in [Fault::None, Fault::Chunked] {
        for size in [0, 299_999, 300_001, 900_000] {
            let reply = Reply::ok(vec![7; size]).fault(fault);
            assert_eq!(label(&layer(&image, reply).await).await, "size_mismatch", "{fault:?} {size}");
        }
    }
    let endless = Reply::ok(vec![7; 65536]).fault(Fault::Endless);
    assert_eq!(label(&layer(&image, endless).await).await, "size_mismatch");
}

#[tokio::test]
async fn a_truncated_body_is_an_error_at_every_length() {
    let image = Image::new(vec![7; 300_000]);
    for cut in [0, 1, 150_000, 299_999] {
        let reply = Reply::ok(image.layer.clone()).fault(Fault::Cut(cut));
        assert_eq!(label(&layer(&image, reply).await).await, "transport", "{cut}");
    }
    let reply = Reply::ok(image.manifest.clone()).fault(Fault::Cut(10));
    assert_eq!(label(&manifest(reply).await).await, "transport");
}

#[tokio::test]
async fn a_body_that_failed_never_ends_well() {
    let image = Image::new(vec![7; 300_000]);
    let server = layer(&image, Reply::ok(image.layer.clone()).fault(Fault::Cut(10))).await;
    let fetcher = Net::default().build();
    let request = request(&image_url(&server));
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await.unwrap();
    let mut body = fetcher.open(located, deadline).await.unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut sink = Vec::new();
        body.read_to_end(&mut sink).unwrap_err();
        let again = body.read(&mut [0; 8]).map_err(FetchError::from_io);
        (again.unwrap_err().label(), body.finish(&PayloadDigest::of(&sink)).unwrap_err().label())
    });
    assert_eq!(reading.await.unwrap(), ("interrupted", "interrupted"));
}

#[tokio::test]
async fn a_manifest_over_the_limit_is_an_error_however_it_comes() {
    let huge = vec![b' '; 9 * 1024 * 1024];
    assert_eq!(label(&manifest(Reply::ok(huge.clone())).await).await, "too_large");
    assert_eq!(label(&manifest(Reply::ok(huge).fault(Fault::Chunked)).await).await, "too_large");
    let endless = Reply::ok(vec![b' '; 65536]).fault(Fault::Endless);
    assert_eq!(label(&manifest(endless).await).await, "too_large");
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let image = Image::new("module");
    let typed = |body: &[u8]| Reply::ok(body).header("Content-Type", OCI);
    let other = SourceDigest::of(b"other").to_string();
    for (reply, expected) in [
        (typed(&image.manifest).header("Docker-Content-Digest", &other), "digest_mismatch"),
        (typed(&image.manifest).header("Docker-Content-Digest", "sha256:../../x"), "manifest"),
        (typed(b"<html>"), "manifest"),
        (typed(br#"{"schemaVersion":2,"layers":[],"manifests":[]}"#), "manifest"),
        (typed(br#"{"schemaVersion":1,"fsLayers":[]}"#), "unsupported"),
        (Reply::ok(image.manifest.clone()).header("Content-Type", INDEX), "manifest"),
        (typed(&Image::of_type("text/html", "x").manifest), "unsupported"),
    ] {
        assert_eq!(label(&manifest(reply.clone()).await).await, expected, "{reply:?}");
    }
    let server = manifest(Reply::new(404)).await;
    let fetcher = Net::default().build();
    let wrong =
        registry(&image, |seen| seen.target.contains("manifests").then(|| Reply::ok(r#"{"x":1}"#))).await;
    let pinned = |server: &Server| request(&format!("oci://{}/a/b@{}", server.address, image.digest()));
    assert_eq!(failure(&fetcher, &pinned(&wrong)).await.0, "digest_mismatch");
    assert!(fetch(&fetcher, &pinned(&server)).await.is_ok(), "the right bytes are taken");
}

#[tokio::test]
async fn a_layer_over_the_limit_is_refused_before_it_is_asked_for() {
    for media_type in [RAW, "application/vnd.oci.image.layer.v1.tar+gzip"] {
        let image = Image::of_type(media_type, vec![7; 1 + layers::FRAMING as usize + 10]);
        let server = registry(&image, |_| None).await;
        let fetcher = Net::default().config(|config| config.max_module_bytes = 10).build();
        assert_eq!(failure(&fetcher, &request(&image_url(&server))).await.0, "too_large");
        assert_eq!(server.asked(), ["GET /v2/a/b/manifests/v1"]);
    }
}

#[tokio::test]
async fn an_http_body_or_file_over_the_limit_is_an_error_and_never_cut_short() {
    let fetcher = || {
        Net::default().config(|config| {
            config.max_module_bytes = 10;
            config.files = FileAccess::Any;
        })
    };
    let size = layers::FRAMING as usize + 11;
    for reply in [
        Reply::ok(vec![7; size]),
        Reply::ok(vec![7; size]).fault(Fault::Chunked),
        Reply::ok(vec![7; 65536]).fault(Fault::Endless),
    ] {
        let server = Server::start(move |_| reply.clone()).await;
        assert_eq!(failure(&fetcher().build(), &request(&server.url("/m"))).await.0, "too_large");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; size]).unwrap();
    let request = request(&format!("file://{}", file.path().display()));
    assert_eq!(failure(&fetcher().build(), &request).await.0, "too_large");
}

#[tokio::test]
async fn error_bodies_and_heads_without_end_end_here() {
    let endless = |status| Reply { body: vec![b' '; 65536], ..Reply::new(status) }.fault(Fault::Endless);
    assert_eq!(label(&manifest(endless(404)).await).await, "not_found");
    let challenge = r#"Basic realm="x""#;
    assert_eq!(
        label(&manifest(endless(401).header("WWW-Authenticate", challenge)).await).await,
        "unauthorized"
    );
    assert_eq!(label(&manifest(Reply::new(200).fault(Fault::EndlessHead)).await).await, "transport");
}

#[tokio::test]
async fn a_partial_answer_that_nobody_asked_for_is_refused() {
    let image = Image::new("module");
    let reply = Reply { status: 206, ..Reply::ok("module") };
    assert_eq!(label(&layer(&image, reply).await).await, "status");
}

#[tokio::test]
async fn a_missing_layer_is_not_looked_for_where_its_urls_point() {
    let server = layer(&Image::new("module"), Reply::new(404)).await;
    assert_eq!(label(&server).await, "not_found");
}

/// Advances the clock by the progress timeout until the task has ended.
async fn until_done<T>(manual: &ManualClock, task: tokio::task::JoinHandle<T>) -> T {
    while !task.is_finished() {
        manual.advance(FetchConfig::default().progress_timeout);
        tokio::task::yield_now().await;
    }
    task.await.unwrap()
}

#[tokio::test]
async fn a_stalled_body_is_given_up() {
    let image = Image::new(vec![7; 300_000]);
    let server = layer(&image, Reply::ok(image.layer.clone()).fault(Fault::Stall(100_000))).await;
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }.build();
    let mut request = request(&image_url(&server));
    request.timeout = Some(Duration::from_secs(1 << 40));
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await.unwrap();
    let body = fetcher.open(located, deadline).await.unwrap();
    let error = until_done(&manual, tokio::spawn(read(body))).await.unwrap_err();
    assert_eq!(error.label(), "stalled");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let server = Server::start(|_| Reply::new(200).fault(Fault::Mute)).await;
    let mut asked = server.ended.clone();
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }.build();
    let mut request = request(&image_url(&server));
    request.timeout = Some(Duration::from_secs(7));
    let fetching = tokio::spawn(async move { fetch(&fetcher, &request).await });
    while server.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(until_done(&manual, fetching).await.unwrap_err().label(), "timeout");
    asked.wait_for(|ended| *ended == 1).await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_runs_into_the_deadline_too() {
    let server = Server::start(|_| Reply::ok(vec![7; 8 * 1024 * 1024])).await;
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }.build();
    let request = request(&server.url("/m"));
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await.unwrap();
    let body = fetcher.open(located, deadline).await.unwrap();
    manual.advance(FetchConfig::default().timeout);
    assert_eq!(read(body).await.unwrap_err().label(), "timeout");
}

#[tokio::test]
async fn dropping_a_body_ends_the_download() {
    let server = Server::start(|_| Reply::ok(vec![7; 65536]).fault(Fault::Endless)).await;
    let mut ended = server.ended.clone();
    let fetcher = Net::default().build();
    let request = request(&server.url("/m"));
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await.unwrap();
    let mut body = fetcher.open(located, deadline).await.unwrap();
    let body = tokio::task::spawn_blocking(move || {
        body.read_exact(&mut [0; 1000]).unwrap();
        body
    });
    drop(body.await.unwrap());
    ended.wait_for(|ended| *ended == 1).await.unwrap();
}
