//! Several hosts for one registry's images: some down, some wrong, some that want to see a certificate.

use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as Key};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::*;

/// The origin and a mirror of it, and the net in which `r.test` is the one and `m.test` the other.
pub(super) fn net(origin: &Server, mirrors: &[&Server]) -> Net {
    let mirror = |server: &&Server| Mirror {
        url: Url::parse(&server.url("")).unwrap(),
        credentials: false,
        access: Access::default(),
    };
    let entry = Registry {
        mirrors: mirrors.iter().map(mirror).collect(),
        scheme: Scheme::Http,
        ..Registry::default()
    };
    let name = format!("r.test:{}", origin.address.port());
    Net::default().name("r.test", &["127.0.0.1"]).config(|config| _ = config.registries.insert(name, entry))
}

pub(super) fn url(origin: &Server) -> String {
    format!("oci://r.test:{}/a/b:v1", origin.address.port())
}

pub(super) async fn bytes(net: Net, origin: &Server) -> Vec<u8> {
    fetch(&net.build(), &request(&url(origin))).await.unwrap().bytes
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_whose_image_is_meant() {
    let image = Image::new("module");
    let origin = registry(&image, |_| None).await;
    let mirror = mirror(&image, |_| None).await;
    assert_eq!(bytes(net(&origin, &[&mirror]), &origin).await, b"module");
    assert!(origin.seen().is_empty());
    let namespace = format!("?ns=r.test%3A{}", origin.address.port());
    assert_eq!(mirror.seen().len(), 2);
    assert!(mirror.seen().iter().all(|seen| seen.target.ends_with(&namespace)), "{:?}", mirror.seen());
}

#[tokio::test]
async fn a_mirror_that_fails_in_any_way_leads_to_the_next_host() {
    let image = Image::new("module");
    for status in [401, 403, 404, 429, 500, 503] {
        let origin = registry(&image, |_| None).await;
        let mirror = Server::start(move |_| Reply::new(status)).await;
        assert_eq!(bytes(net(&origin, &[&mirror]), &origin).await, b"module", "{status}");
        assert!(!mirror.seen().is_empty());
    }
    let origin = registry(&image, |_| None).await;
    let other = Image::new("another module, and not what its digest says");
    let lying = registry(&image, move |seen| {
        let manifest = seen.target.contains("/manifests/");
        manifest.then(|| Reply::ok(other.manifest.clone()).header("Docker-Content-Digest", &image_digest()))
    })
    .await;
    let closed = Server::start(|_| Reply::new(500)).await;
    let address = closed.address;
    let down = net(&origin, &[&closed, &lying]);
    drop(closed);
    // Nothing may have taken the port meanwhile.
    let _ = tokio::net::TcpStream::connect(address).await.unwrap_err();
    assert_eq!(bytes(down, &origin).await, b"module");
}

fn image_digest() -> String {
    SourceDigest::of(b"something else").to_string()
}

#[tokio::test]
async fn the_layer_is_asked_of_the_next_host_where_the_first_has_none_or_breaks_off() {
    let image = Image::new("module");
    for broken in [Reply::new(404), Reply::ok("module").fault(Fault::Cut(3)), Reply::ok("modu")] {
        let origin = registry(&image, |_| None).await;
        let is_blob = |seen: &Seen| seen.target.contains("/blobs/");
        let mirror = mirror(&image, move |seen| is_blob(seen).then(|| broken.clone())).await;
        assert_eq!(bytes(net(&origin, &[&mirror]), &origin).await, b"module");
        assert_eq!(origin.asked(), [format!("GET {}", image.blob_path())]);
    }
}

#[tokio::test]
async fn a_mirror_with_other_bytes_is_told_and_not_asked_for_them_again() {
    let image = Image::of_type("application/vnd.oci.image.layer.v1.tar+gzip", "module");
    let origin = registry(&image, |_| None).await;
    let mirror = mirror(&image, |seen| seen.target.contains("/blobs/").then(|| Reply::ok("eludom"))).await;
    let fetcher = net(&origin, &[&mirror]).build();
    let error = fetch(&fetcher, &request(&url(&origin))).await.unwrap_err();
    assert!(matches!(error, FetchError::Mirror { .. }) && error.label() == "digest_mismatch", "{error}");
    assert!(!error.is_permanent());
    assert_eq!(fetch(&fetcher, &request(&url(&origin))).await.unwrap().bytes, b"module");
    let blobs = mirror.asked().into_iter().filter(|asked| asked.contains("/blobs/"));
    assert_eq!(blobs.count(), 1);
}

#[tokio::test]
async fn a_credential_goes_to_a_mirror_only_where_that_is_configured() {
    let image = Image::new("module");
    for credentials in [false, true] {
        let guarded = |image: &Image| {
            let image = image.clone();
            move |seen: &Seen| {
                let target = seen.path().to_owned();
                match seen.header("authorization") {
                    Some(_) => image.reply(&Seen { target, ..seen.clone() }),
                    None => Reply::new(401).header("WWW-Authenticate", "Basic realm=x"),
                }
            }
        };
        let (origin, mirror) = (Server::start(guarded(&image)).await, Server::start(guarded(&image)).await);
        let net = net(&origin, &[&mirror]).config(|config| {
            let entry = config.registries.values_mut().next().unwrap();
            entry.mirrors[0].credentials = credentials;
        });
        let host = format!("r.test:{}", origin.address.port());
        let request = with_password(&url(&origin), &host, "u", "hunter2");
        assert_eq!(fetch(&net.build(), &request).await.unwrap().bytes, b"module");
        let told = mirror.seen().iter().any(|seen| seen.header("authorization").is_some());
        assert_eq!((told, origin.seen().is_empty()), (credentials, credentials));
    }
}

#[tokio::test]
async fn who_may_only_pull_is_told_the_digest_that_another_one_resolved() {
    let image = Image::new("module");
    let origin = registry(&image, |_| None).await;
    let mirror = mirror(&image, |_| None).await;
    let folder = tempfile::tempdir().unwrap();
    let name = format!("r.test_{}_", origin.address.port());
    std::fs::create_dir(folder.path().join(&name)).unwrap();
    let server = format!("http://r.test:{}", origin.address.port());
    let text = format!("server = '{server}'\n[host.'{}']\ncapabilities = ['pull']\n", mirror.url(""));
    std::fs::write(folder.path().join(&name).join("hosts.toml"), text).unwrap();
    let net = Net::default()
        .name("r.test", &["127.0.0.1"])
        .config(|config| config.containerd_hosts = vec![folder.path().to_owned()]);
    assert_eq!(bytes(net, &origin).await, b"module");
    assert_eq!(origin.asked(), ["HEAD /v2/a/b/manifests/v1"]);
    let by_digest = format!("GET /v2/a/b/manifests/{}", image.digest());
    assert_eq!(mirror.asked(), [by_digest, format!("GET {}", image.blob_path())]);
}

#[tokio::test]
async fn a_mirror_may_be_this_machine_and_never_a_metadata_server() {
    let image = Image::new("module");
    let origin = registry(&image, |_| None).await;
    let net = net(&origin, &[]).config(|config| {
        let url = Url::parse("http://169.254.169.254/").unwrap();
        let mirror = Mirror { url, credentials: false, access: Access::default() };
        config.registries.values_mut().next().unwrap().mirrors.push(mirror);
        config.registries.values_mut().next().unwrap().scheme = Scheme::Https;
    });
    // What the registry itself says is told: it speaks no TLS.
    assert_eq!(failure(&net.build(), &request(&url(&origin))).await.0, "tls");
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn configured_headers_go_to_their_own_host_alone() {
    let image = Image::new("module");
    let store = Server::start(|_| Reply::ok("module")).await;
    let (target, path) = (store.url("/blob"), image.blob_path());
    let origin = registry(&image, move |seen| (seen.target == path).then(|| Reply::redirect(&target))).await;
    let net = net(&origin, &[]).config(|config| {
        let entry = config.registries.values_mut().next().unwrap();
        entry.access.headers.insert("x-own", header_value("hunter2").unwrap());
    });
    assert_eq!(bytes(net, &origin).await, b"module");
    assert!(origin.seen().iter().all(|seen| seen.header("x-own") == Some("hunter2")));
    assert_eq!(store.seen()[0].header("x-own"), None);
}

/// A certificate authority, by its file, and servers and clients that it vouches for.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, Key>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, Key::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { folder, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn signed(&self, name: &str) -> (rcgen::Certificate, Key) {
        let key = Key::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn pair(&self) -> hosts::KeyPair {
        let (certificate, key) = self.signed("client.test");
        let pair = hosts::KeyPair { certificate: self.file("client.pem"), key: self.file("client.key") };
        std::fs::write(&pair.certificate, certificate.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    /// For `r.test`; with clients that have to show a certificate of the same authority.
    fn acceptor(&self, clients: bool) -> TlsAcceptor {
        let (certificate, key) = self.signed("r.test");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = match clients {
            false => builder.with_no_client_auth(),
            true => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder.with_single_cert(vec![certificate.der().clone()], key.into()).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

#[tokio::test]
async fn a_private_authority_a_client_certificate_and_no_proof_at_all_where_configured() {
    let authority = Authority::new();
    let image = Image::new("module");
    for clients in [false, true] {
        let served = image.clone();
        let acceptor = authority.acceptor(clients);
        let server = Server::start_at("127.0.0.1:0", Some(acceptor), move |seen| served.reply(seen)).await;
        let outcome = async |access: Access| {
            let net = net(&server, &[]).config(|config| {
                let entry = Registry { access, ..Registry::default() };
                config.registries.values_mut().for_each(|registry| *registry = entry.clone());
            });
            fetch(&net.build(), &request(&url(&server))).await.map(|_| ()).map_err(|error| error.label())
        };
        let ca = || Access { ca_files: vec![authority.file("ca.pem")], ..Access::default() };
        assert_eq!(outcome(Access::default()).await, Err("tls"));
        let expected = if clients { Err(()) } else { Ok(()) };
        // Who refuses a client may do so with the first answer.
        assert_eq!(outcome(ca()).await.map_err(drop), expected);
        let pair = Some(authority.pair());
        assert_eq!(outcome(Access { client_certificate: pair.clone(), ..ca() }).await, Ok(()));
        let skip = Access { skip_verify: true, client_certificate: pair, ..Access::default() };
        assert_eq!(outcome(skip).await, Ok(()));
        let missing = Access { ca_files: vec![authority.file("missing.pem")], ..Access::default() };
        assert_eq!(outcome(missing).await, Err("certificate_file"));
    }
}

#[tokio::test]
async fn plain_http_after_https_is_spoken_where_both_are_configured_and_by_nobody_else() {
    let image = Image::new("module");
    let origin = registry(&image, |_| None).await;
    for (scheme, expected) in [(Scheme::HttpsThenHttp, Ok(())), (Scheme::Https, Err("tls"))] {
        let net = net(&origin, &[]).config(|config| {
            let entry = config.registries.values_mut().next().unwrap();
            (entry.scheme, entry.access.skip_verify) = (scheme, true);
        });
        let fetched = fetch(&net.build(), &request(&url(&origin))).await;
        assert_eq!(fetched.map(drop).map_err(|error| error.label()), expected);
    }
}

#[tokio::test]
async fn a_web_server_is_believed_by_what_its_entry_trusts_and_gets_nothing_else_of_it() {
    let authority = Authority::new();
    let server =
        Server::start_at("127.0.0.1:0", Some(authority.acceptor(false)), |_| Reply::ok("module")).await;
    let url = format!("https://r.test:{}/m", server.address.port());
    let net = net(&server, &[]).config(|config| {
        let entry = config.registries.values_mut().next().unwrap();
        entry.access.ca_files = vec![authority.file("ca.pem")];
        entry.access.headers.insert("x-own", header_value("hunter2").unwrap());
    });
    assert_eq!(fetch(&net.build(), &request(&url)).await.unwrap().bytes, b"module");
    assert_eq!(server.seen()[0].header("x-own"), None);
}

#[tokio::test]
async fn a_tag_is_looked_at_where_it_would_be_pulled() {
    let image = Image::new("module");
    let asked = Arc::new(AtomicUsize::new(0));
    let origin = registry(&image, |_| None).await;
    let counted = asked.clone();
    let mirror = Server::start(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Reply::new(503)
    })
    .await;
    let fetcher = net(&origin, &[&mirror]).build();
    let request = request(&url(&origin));
    let deadline = fetcher.deadline(&request);
    let digest = fetcher.tag_digest(&request, &Credential::anonymous(), deadline).await.unwrap();
    assert_eq!((digest, asked.load(Ordering::SeqCst)), (Some(image.digest()), 1));
}
