//! Documents that name something else than they should.

use super::*;

const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is no digest that may be asked for, and what some would make a path of.
fn wrong_digests() -> Vec<String> {
    let hex = "0123456789abcdef".repeat(4);
    vec![
        "sha256:../../x".to_owned(),
        "../../../v2/secret/manifests/v1".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("SHA256:{hex}"),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{hex}/../../x"),
        format!("sha256:{hex}?x"),
        format!("sha256:%2e%2e/{hex}"),
        format!(" sha256:{hex}"),
        format!("sha256:{}\u{130}", &hex[2..]),
        format!("sha512:{hex}{hex}"),
        format!("md5:{}", &hex[..32]),
        hex,
        "sha256:".to_owned(),
        String::new(),
    ]
}

#[tokio::test]
async fn what_a_document_names_by_no_digest_is_asked_for_nowhere() {
    let image = Image::new("module");
    for wrong in wrong_digests() {
        let layer = json!({"mediaType": RAW, "digest": wrong, "size": 6});
        let entry = json!({"mediaType": OCI, "digest": wrong, "size": 6});
        for (document, media_type) in [
            (json!({"schemaVersion": 2, "layers": [layer]}), OCI),
            (json!({"schemaVersion": 2, "manifests": [entry]}), INDEX),
            (json!({"schemaVersion": 2, "manifests": [entry]}), LIST),
        ] {
            let body = document.to_string();
            let server = registry(&image, move |seen| {
                let reply = || Reply::ok(body.clone()).header("Content-Type", media_type);
                Some(if seen.target == "/v2/a/b/manifests/v1" { reply() } else { Reply::ok("module") })
            })
            .await;
            let label = failure(&Net::default().build(), &request(&image_url(&server))).await.0;
            assert_eq!(label, "manifest", "{wrong} {media_type}");
            assert_eq!(server.asked(), ["GET /v2/a/b/manifests/v1"], "{wrong}");
        }
        // The registry's own word for what it answers with.
        if wrong.is_ascii() {
            let whole = image.clone();
            let declared = wrong.clone();
            let server = registry(&image, move |seen| {
                let reply = Reply { headers: Vec::new(), ..whole.reply(seen) };
                Some(reply.header("Docker-Content-Digest", &declared))
            })
            .await;
            let (fetcher, request) = (Net::default().build(), request(&image_url(&server)));
            // A header has no spaces around it.
            let expected = if wrong.starts_with(' ') { "digest_mismatch" } else { "manifest" };
            assert_eq!(failure(&fetcher, &request).await.0, expected, "{wrong}");
            let deadline = fetcher.deadline(&request);
            let digest = fetcher.tag_digest(&request, &Credential::anonymous(), deadline).await;
            if !wrong.starts_with(' ') {
                assert_eq!(digest.err().map(|error| error.label()), Some("manifest"), "{wrong}");
            }
            assert!(server.seen().iter().all(|seen| seen.target == "/v2/a/b/manifests/v1"));
        }
    }
}

#[test]
fn what_is_expected_or_asked_for_by_no_digest_is_no_request() {
    for wrong in wrong_digests() {
        assert!(format!("oci://r.example/a/b@{wrong}").parse::<ModuleUrl>().is_err(), "{wrong}");
        let hex = wrong.strip_prefix("sha256:").unwrap_or(&wrong);
        if hex.len() != 64 || wrong.starts_with("sha256:") {
            assert!(ExpectedDigest::from_hex(hex).is_err(), "{wrong}");
        }
    }
}

#[tokio::test]
async fn urls_in_a_document_are_never_followed() {
    let image = Image::new("module");
    let trap = Server::start(|_| Reply::ok("module")).await;
    let urls = [trap.url("/layer"), "http://elsewhere.example/layer".to_owned()];
    let (digest, size) = (BlobDigest::of(&image.layer).to_string(), image.layer.len());
    let descriptor = |media_type: &str| json!({"mediaType": media_type, "digest": digest, "size": size, "urls": urls, "data": "bW9kdWxl"});
    let entry = json!({"mediaType": OCI, "digest": digest, "size": size, "urls": urls});
    for (document, media_type, expected) in [
        (
            json!({"schemaVersion": 2, "config": descriptor("application/json"), "layers": [descriptor(RAW)]}),
            OCI,
            "not_found",
        ),
        (
            json!({"schemaVersion": 2, "subject": entry, "layers": [descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]}),
            OCI,
            "unsupported",
        ),
        (json!({"schemaVersion": 2, "manifests": [entry]}), INDEX, "not_found"),
    ] {
        let body = document.to_string();
        let server = Server::start(move |seen| match seen.target.as_str() {
            "/v2/a/b/manifests/v1" => Reply::ok(body.clone()).header("Content-Type", media_type),
            _ => Reply::new(404),
        })
        .await;
        let fetcher = Net::default()
            .name("elsewhere.example", &["203.0.113.9"])
            .route("203.0.113.9:80", trap.address)
            .build();
        assert_eq!(failure(&fetcher, &request(&image_url(&server))).await.0, expected, "{document}");
    }
    assert_eq!(trap.seen().len(), 0);
}

#[tokio::test]
async fn a_document_is_one_thing_only_and_what_it_was_sent_as() {
    let image = Image::new("module");
    let digest = image.digest().to_string();
    let layer = json!({"mediaType": RAW, "digest": BlobDigest::of(&image.layer).to_string(), "size": 6});
    let entry = json!({"mediaType": OCI, "digest": digest, "size": image.manifest.len()});
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let both = json!({"schemaVersion": 2, "layers": [layer], "manifests": [entry]});
    let with_type = |name: &str| {
        let mut document = both.clone();
        document["mediaType"] = name.into();
        document.to_string()
    };
    let of_layers =
        |name: &str| json!({"schemaVersion": 2, "mediaType": name, "layers": [layer]}).to_string();
    let twice = format!(r#"{{"schemaVersion":2,"layers":[{layer}],"layers":[]}}"#);
    let typed_twice =
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","mediaType":"{INDEX}","layers":[{layer}]}}"#);
    for (body, content_type) in [
        (both.to_string(), None),
        (both.to_string(), Some(OCI)),
        (both.to_string(), Some(INDEX)),
        (with_type(OCI), Some(OCI)),
        (with_type(INDEX), Some(INDEX)),
        (with_type(LIST), None),
        (of_layers(OCI), Some(INDEX)),
        (of_layers(OCI), Some(docker)),
        (of_layers(docker), Some(OCI)),
        (of_layers(INDEX), None),
        (of_layers(OCI), Some("text/html")),
        (of_layers(OCI), Some("application/vnd.oci.image.manifest.v1+json-x")),
        (twice, Some(OCI)),
        (typed_twice, None),
    ] {
        let served = body.clone();
        let server = registry(&image, move |seen| {
            (seen.target == "/v2/a/b/manifests/v1").then(|| {
                let reply = Reply::ok(served.clone());
                content_type.map_or(reply.clone(), |content_type| reply.header("Content-Type", content_type))
            })
        })
        .await;
        let label = failure(&Net::default().build(), &request(&image_url(&server))).await.0;
        assert_eq!(label, "manifest", "{content_type:?} {body}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn an_index_of_very_many_images_takes_no_time() {
    let entries: Vec<String> =
        (0..90_000).map(|n| format!(r#"{{"mediaType":"{OCI}","digest":"{n:06}","size":1}}"#)).collect();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    assert!(index.len() as u64 <= FetchConfig::default().max_manifest_bytes);
    let server = Server::start(move |_| Reply::ok(index.clone()).header("Content-Type", INDEX)).await;
    let begun = std::time::Instant::now();
    let (label, text) = failure(&Net::default().build(), &request(&image_url(&server))).await;
    assert_eq!(label, "unsupported");
    assert!(text.len() < 2000, "{text}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
