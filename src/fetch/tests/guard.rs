//! Servers that lead elsewhere.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;

use super::*;

#[tokio::test]
async fn metadata_addresses_are_blocked_wherever_they_come_from() {
    let targets = [
        "http://169.254.169.254/latest",
        "http://2852039166/latest",
        "http://0xa9fea9fe/latest",
        "http://0251.0376.0251.0376/latest",
        "http://[::ffff:169.254.169.254]/latest",
        "http://[fe80::1]/latest",
        "http://[fd00:ec2::254]/latest",
        "http://0.0.0.0/latest",
        "http://metadata.example/latest",
    ];
    for target in targets {
        let net = || Net::default().name("metadata.example", &["169.254.169.254", "::ffff:169.254.169.254"]);
        assert_eq!(failure(&net().build(), &request(target)).await.0, "blocked", "{target}");

        let server = Server::start(move |_| Reply::redirect(target)).await;
        for url in [server.url("/m"), image_url(&server)] {
            assert_eq!(failure(&net().build(), &request(&url)).await.0, "blocked", "{target} from {url}");
        }

        let server = Server::start(move |_| {
            Reply::new(401).header("WWW-Authenticate", &format!(r#"Bearer realm="{target}""#))
        })
        .await;
        let realm = url::Url::parse(target).unwrap().host_str().unwrap().to_owned();
        let fetcher = net().config(|config| config.realms = vec![realm]).build();
        assert_eq!(
            failure(&fetcher, &request(&image_url(&server))).await.0,
            "blocked",
            "{target} as a realm"
        );
    }
}

#[tokio::test]
async fn a_registry_by_name_or_literal_at_a_blocked_address_is_refused() {
    let fetcher = Net::default()
        .name("metadata.example", &["169.254.169.254"])
        .name("internal.example", &["10.9.8.7"])
        .config(|config| config.blocked_cidrs = vec!["10.9.0.0/16".parse().unwrap()])
        .build();
    for registry in ["metadata.example", "169.254.169.254", "internal.example", "10.9.8.7:5000"] {
        let (label, text) = failure(&fetcher, &request(&format!("oci://{registry}/a:v1"))).await;
        assert_eq!(label, "blocked", "{registry}: {text}");
    }
}

#[tokio::test]
async fn a_public_server_cannot_lead_inward_and_an_inner_one_can() {
    let inner = Server::start(|_| Reply::ok("module")).await;
    let target = inner.url("/m");
    for (origin, expected) in [("203.0.113.9", Err("blocked")), ("10.0.0.9", Ok(b"module".to_vec()))] {
        let target = target.clone();
        let server = Server::start(move |_| Reply::redirect(&target)).await;
        let fetcher = Net::default()
            .name("origin.example", &[origin])
            .route(&format!("{origin}:80"), server.address)
            .build();
        let fetched = fetch(&fetcher, &request("http://origin.example/m")).await;
        assert_eq!(fetched.map(|fetched| fetched.bytes).map_err(|error| error.label()), expected, "{origin}");
    }
    assert_eq!(inner.seen().len(), 1);
}

#[tokio::test]
async fn a_detour_over_an_inner_server_does_not_lift_the_rule() {
    // public -> public -> inner
    let server = Server::start(|seen| match seen.target.as_str() {
        "/1" => Reply::redirect("http://203.0.113.8/2"),
        _ => Reply::redirect("http://10.0.0.9/3"),
    })
    .await;
    let fetcher = Net::default()
        .route("203.0.113.9:80", server.address)
        .route("203.0.113.8:80", server.address)
        .route("10.0.0.9:80", server.address)
        .build();
    assert_eq!(failure(&fetcher, &request("http://203.0.113.9/1")).await.0, "blocked");
    assert_eq!(server.asked(), ["GET /1", "GET /2"]);
}

#[tokio::test]
async fn a_public_registrys_token_server_cannot_be_an_inner_one() {
    let server = Server::start(|_| {
        Reply::new(401).header("WWW-Authenticate", r#"Bearer realm="http://inner.example/token""#)
    })
    .await;
    let inner = Server::start(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    let fetcher = Net::default()
        .name("public.example", &["203.0.113.9"])
        .name("inner.example", &["10.0.0.9"])
        .route("203.0.113.9:80", server.address)
        .route("10.0.0.9:80", inner.address)
        .plain("public.example")
        .config(|config| config.realms = vec!["inner.example".to_owned()])
        .build();
    assert_eq!(failure(&fetcher, &request("oci://public.example/a:v1")).await.0, "blocked");
    assert!(inner.seen().is_empty());
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|_| Reply::redirect("/again")).await;
    assert_eq!(failure(&Net::default().build(), &request(&server.url("/m"))).await.0, "redirect");
    assert_eq!(server.seen().len(), 11);
}

#[tokio::test]
async fn redirects_that_are_no_good_are_refused() {
    for target in [
        Some("file:///etc/passwd"),
        Some("ftp://h/x"),
        Some("http://user:hunter2@127.0.0.1:1/x"),
        Some("http://[bad"),
        None,
    ] {
        let server = Server::start(move |_| match target {
            Some(target) => Reply::redirect(target),
            None => Reply::new(302),
        })
        .await;
        let (label, text) = failure(&Net::default().build(), &request(&server.url("/m"))).await;
        assert_eq!(label, "redirect", "{target:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_blob_may_be_redirected_and_its_digest_still_counts() {
    let image = Image::new("module");
    let (good, evil) =
        (Server::start(|_| Reply::ok("module")).await, Server::start(|_| Reply::ok("eludom")).await);
    for (store, expected) in [(&good, Ok(b"module".to_vec())), (&evil, Err("digest_mismatch"))] {
        let target = store.url("/blob?sig=x");
        let path = image.blob_path();
        let server =
            registry(&image, move |seen| (seen.target == path).then(|| Reply::redirect(&target))).await;
        let fetched = fetch(&Net::default().build(), &request(&image_url(&server))).await;
        assert_eq!(fetched.map(|fetched| fetched.bytes).map_err(|error| error.label()), expected);
    }
}

#[tokio::test]
async fn plain_http_is_for_loopback_and_for_what_is_configured() {
    let image = Image::new("module");
    let server = registry(&image, |_| None).await;
    let port = server.address.port();
    let net = || {
        Net::default()
            .name("localhost", &["127.0.0.1"])
            .name("other.example", &["127.0.0.1"])
            .name("configured.example", &["127.0.0.1"])
            .plain(&format!("configured.example:{port}"))
    };
    for (host, expected) in [
        ("localhost", Ok(())),
        ("127.0.0.1", Ok(())),
        ("configured.example", Ok(())),
        ("other.example", Err("tls")),
    ] {
        let fetched = fetch(&net().build(), &request(&format!("oci://{host}:{port}/a/b:v1"))).await;
        assert_eq!(fetched.map(drop).map_err(|error| error.label()), expected, "{host}");
    }
    let secured = net().config(|config| {
        config.registries.insert(format!("localhost:{port}"), Registry::default());
    });
    assert_eq!(failure(&secured.build(), &request(&format!("oci://localhost:{port}/a/b:v1"))).await.0, "tls");
}

/// A certificate authority and a server certificate of its own for `tls.example`.
pub(super) fn certificates() -> (rustls::RootCertStore, TlsAcceptor) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["tls.example".to_owned()]).unwrap();
    let certificate = params.signed_by(&server_key, &issuer).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], server_key.into())
            .unwrap();
    (roots, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn https_is_spoken_to_servers_that_prove_their_name_and_to_no_others() {
    let (roots, acceptor) = certificates();
    let image = Image::new("module");
    let served = image.clone();
    let server = Server::start_at("127.0.0.1:0", Some(acceptor), move |seen| served.reply(seen)).await;
    let port = server.address.port();
    let net = |roots| {
        let net = Net::default().name("tls.example", &["127.0.0.1"]).name("evil.example", &["127.0.0.1"]);
        Net { roots, ..net }.build()
    };
    let url = |host: &str| request(&format!("oci://{host}:{port}/a/b:v1"));
    assert_eq!(failure(&net(Some(roots.clone())), &url("evil.example")).await.0, "tls");
    assert_eq!(failure(&net(None), &url("tls.example")).await.0, "tls");
    assert!(server.seen().is_empty());
    assert_eq!(fetch(&net(Some(roots)), &url("tls.example")).await.unwrap().bytes, b"module");
    assert!(server.seen().iter().all(|seen| seen.connection == server.seen()[0].connection));
}

#[tokio::test]
async fn https_never_leads_to_http() {
    let (roots, acceptor) = certificates();
    let plain = Server::start(|_| Reply::ok("module")).await;
    let target = plain.url("/m");
    let server = Server::start_at("127.0.0.1:0", Some(acceptor), move |_| Reply::redirect(&target)).await;
    let net = Net::default().name("tls.example", &["127.0.0.1"]);
    let fetcher = Net { roots: Some(roots), ..net }.build();
    for scheme in ["https", "oci"] {
        let url = format!("{scheme}://tls.example:{}/a/b:v1", server.address.port());
        assert_eq!(failure(&fetcher, &request(&url)).await.0, "redirect");
    }
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn files_are_read_only_below_allowed_folders() {
    let root = tempfile::tempdir().unwrap();
    let allowed = root.path().join("allowed");
    std::fs::create_dir(&allowed).unwrap();
    std::fs::write(allowed.join("module"), "module").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", allowed.join("link")).unwrap();
    let fetcher =
        Net::default().config(|config| config.files = FileAccess::Below(vec![allowed.clone()])).build();
    let url = |name: &str| request(&format!("file://{}", allowed.join(name).display()));
    assert_eq!(fetch(&fetcher, &url("module")).await.unwrap().bytes, b"module");
    assert_eq!(failure(&fetcher, &url("link")).await.0, "file_not_allowed");
    assert_eq!(failure(&fetcher, &request("file:///etc/passwd")).await.0, "file_not_allowed");
    let by_default = Net::default().build();
    assert_eq!(failure(&by_default, &url("module")).await.0, "file_not_allowed");
}
