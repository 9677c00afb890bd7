//! Images of several layers, and the indexes that lead to them.

use super::*;
use crate::wasm::Layers as _;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A registry with an image of these layers under `a/b:v1`, the first one the lowest. Answers as `change`
/// says where it says something.
async fn stack(
    layers: &[&'static [u8]],
    change: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let described: Vec<_> = layers
        .iter()
        .map(|layer| json!({"mediaType": TAR, "digest": BlobDigest::of(layer).to_string(), "size": layer.len()}))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI, "layers": described}).to_string();
    let blobs: HashMap<String, &'static [u8]> =
        layers.iter().map(|layer| (format!("/v2/a/b/blobs/{}", BlobDigest::of(layer)), *layer)).collect();
    Server::start(move |seen| {
        change(seen).unwrap_or_else(|| match blobs.get(seen.path()) {
            Some(layer) => Reply::ok(*layer),
            None => Reply::ok(manifest.clone()).header("Content-Type", OCI),
        })
    })
    .await
}

/// What comes of one layer after the other.
async fn descend(fetcher: &Fetcher, server: &Server) -> Result<Vec<Vec<u8>>, FetchError> {
    descend_from(fetcher, &image_url(server)).await
}

async fn descend_from(fetcher: &Fetcher, url: &str) -> Result<Vec<Vec<u8>>, FetchError> {
    let request = request(url);
    let deadline = fetcher.deadline(&request);
    let located = fetcher.locate(&request, &Credential::anonymous(), deadline).await?;
    let mut body = fetcher.open(located, deadline).await?;
    let reading = tokio::task::spawn_blocking(move || {
        let mut layers = Vec::new();
        loop {
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes).map_err(FetchError::from_io)?;
            layers.push(bytes);
            if !body.next_layer().map_err(FetchError::from_io)? {
                body.finish(&PayloadDigest::of(b"whatever came out of them"))?;
                return Ok(layers);
            }
        }
    });
    reading.await.unwrap()
}

#[tokio::test]
async fn layers_come_from_the_last_backwards_and_each_when_it_is_wanted() {
    let server = stack(&[b"low", b"middle", b"top"], |_| None).await;
    let fetcher = Net::default().build();
    assert_eq!(descend(&fetcher, &server).await.unwrap(), [&b"top"[..], b"middle", b"low"]);
    let once = stack(&[b"low", b"middle", b"top"], |_| None).await;
    assert_eq!(fetch(&fetcher, &request(&image_url(&once))).await.unwrap().bytes, b"top");
    assert_eq!(once.asked().len(), 2, "a manifest and a layer: {:?}", once.asked());
}

#[tokio::test]
async fn every_layer_is_held_to_its_own_digest_and_size() {
    for (wrong, label) in
        [(&b"lox"[..], "digest_mismatch"), (b"lo", "size_mismatch"), (b"lower", "size_mismatch")]
    {
        let low = format!("/v2/a/b/blobs/{}", BlobDigest::of(b"low"));
        let server =
            stack(&[b"low", b"top"], move |seen| (seen.target == low).then(|| Reply::ok(wrong))).await;
        assert_eq!(descend(&Net::default().build(), &server).await.unwrap_err().label(), label, "{wrong:?}");
    }
}

#[tokio::test]
async fn a_layer_below_that_breaks_off_goes_on_where_it_stopped() {
    let low = format!("/v2/a/b/blobs/{}", BlobDigest::of(b"low"));
    let server = stack(&[b"low", b"top"], move |seen| match seen.header("range") {
        None if seen.target == low => Some(Reply::ok("low").fault(Fault::Cut(1))),
        Some("bytes=1-") => {
            Some(Reply { status: 206, ..Reply::ok("ow") }.header("Content-Range", "bytes 1-2/3"))
        }
        _ => None,
    })
    .await;
    assert_eq!(descend(&Net::default().build(), &server).await.unwrap(), [&b"top"[..], b"low"]);
}

#[tokio::test]
async fn each_layer_is_asked_of_the_next_host_where_the_first_has_none() {
    const LAYERS: [&[u8]; 3] = [b"low", b"middle", b"top"];
    let missing = |layer: &'static [u8]| {
        let path = format!("/blobs/{}", BlobDigest::of(layer));
        stack(&LAYERS, move |seen| seen.target.contains(&path).then(|| Reply::new(404)))
    };
    // Neither of them has all, and whoever gave one layer is asked for the next.
    let (mirror, origin) = (missing(b"middle").await, missing(b"low").await);
    let net = mirrors::net(&origin, &[&mirror]);
    let layers = descend_from(&net.build(), &mirrors::url(&origin)).await.unwrap();
    assert_eq!(layers, [&b"top"[..], b"middle", b"low"]);
    let blobs = |server: &Server| server.asked().iter().filter(|asked| asked.contains("/blobs/")).count();
    assert_eq!((blobs(&mirror), blobs(&origin)), (3, 2));
}

#[tokio::test]
async fn a_mirror_with_other_bytes_for_a_layer_below_is_told_and_not_asked_for_them_again() {
    let low = format!("/blobs/{}", BlobDigest::of(b"low"));
    let origin = stack(&[b"low", b"top"], |_| None).await;
    let lying =
        stack(&[b"low", b"top"], move |seen| seen.target.contains(&low).then(|| Reply::ok("lie"))).await;
    let fetcher = mirrors::net(&origin, &[&lying]).build();
    let error = descend_from(&fetcher, &mirrors::url(&origin)).await.unwrap_err();
    assert!(matches!(error, FetchError::Mirror { .. }) && error.label() == "digest_mismatch", "{error}");
    let layers = descend_from(&fetcher, &mirrors::url(&origin)).await.unwrap();
    assert_eq!(layers, [&b"top"[..], b"low"]);
    let asked = lying.asked().into_iter().filter(|asked| asked.contains("/blobs/")).count();
    assert_eq!((asked, origin.asked().len()), (3, 1));
}

#[tokio::test]
async fn the_limit_is_that_of_all_layers_together() {
    const LARGE: &[u8] = &[7; 700_000];
    let server = stack(&[LARGE, LARGE], |_| None).await;
    let limited = |bytes| Net::default().config(|config| config.max_module_bytes = bytes).build();
    assert_eq!(descend(&limited(400_000), &server).await.unwrap().len(), 2);
    assert_eq!(descend(&limited(300_000), &server).await.unwrap_err().label(), "too_large");
}

#[tokio::test]
async fn an_index_of_indexes_is_refused() {
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string();
    let digest = SourceDigest::of(inner.as_bytes()).to_string();
    for called in [OCI, INDEX] {
        let entry = json!({"mediaType": called, "digest": digest, "size": inner.len()});
        let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string();
        let inner = inner.clone();
        let server = Server::start(move |seen| {
            let body = if seen.target.ends_with("/v1") { &outer } else { &inner };
            Reply::ok(body.clone()).header("Content-Type", INDEX)
        })
        .await;
        let (label, _) = failure(&Net::default().build(), &request(&image_url(&server))).await;
        assert_eq!(label, if called == OCI { "manifest" } else { "unsupported" });
    }
}

#[tokio::test]
async fn a_url_that_has_not_changed_brings_nothing() {
    const ETAG: &str = "W/\"1\"";
    const TIME: &str = "Sat, 21 Nov 2026 10:00:00 GMT";
    let server = Server::start(|seen| {
        let known =
            seen.header("if-none-match") == Some(ETAG) && seen.header("if-modified-since") == Some(TIME);
        let reply = if known { Reply::new(304) } else { Reply::ok("module") };
        reply.header("ETag", ETAG).header("Last-Modified", TIME)
    })
    .await;
    let fetcher = Net::default().build();
    let request = request(&server.url("/m"));
    let deadline = fetcher.deadline(&request);
    let ask = async |known: &Validators| {
        let located =
            fetcher.locate_changed(&request, &Credential::anonymous(), known, deadline).await.unwrap();
        match located {
            None => None,
            Some(located) => Some(fetcher.open(located, deadline).await.unwrap()),
        }
    };
    let body = ask(&Validators::default()).await.unwrap();
    let given = body.validators().clone();
    assert_eq!(given, Validators { etag: Some(ETAG.into()), last_modified: Some(TIME.into()) });
    assert!(ask(&given).await.is_none());
    let other = Validators { etag: Some("\"2\"".into()), ..given };
    assert_eq!(read(ask(&other).await.unwrap()).await.unwrap().bytes, b"module");
    assert_eq!(server.asked().len(), 3, "what changed came with the answer");

    let unasked = Server::start(|_| Reply::new(304)).await;
    assert_eq!(failure(&fetcher, &super::request(&unasked.url("/m"))).await.0, "status");
    let endless = Server::start(|_| Reply::ok("module").header("ETag", &"x".repeat(300))).await;
    let (request, anonymous) = (super::request(&endless.url("/m")), Credential::anonymous());
    let located = fetcher.locate(&request, &anonymous, deadline).await.unwrap();
    let body = fetcher.open(located, deadline).await.unwrap();
    assert!(body.validators().is_empty());
}
