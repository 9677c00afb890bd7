//! Whole fetches from a server that misbehaves.

mod auth;
mod bodies;
mod guard;
mod hostile;
mod mirrors;
mod pace;
mod proxies;
mod resume;
mod retry;
mod server;
mod stack;

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use self::server::{Fault, Reply, Seen, Server};
use super::*;
use crate::clock::ManualClock;
use crate::digest::{BlobDigest, PayloadDigest};
use crate::secret::Secret;
use crate::wasm::Packaging;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const RAW: &str = "application/wasm";

/// A fetcher whose names and public addresses are made up. It asks once.
struct Net {
    config: FetchConfig,
    names: HashMap<&'static str, Vec<IpAddr>>,
    /// Instead of the names.
    lookup: Option<names::Lookup>,
    routes: HashMap<SocketAddr, SocketAddr>,
    roots: Option<rustls::RootCertStore>,
    clock: Option<Clock>,
}

impl Default for Net {
    fn default() -> Self {
        let retries = Retries { most: 0, ..Retries::default() };
        Net {
            config: FetchConfig { retries, ..FetchConfig::default() },
            names: HashMap::new(),
            lookup: None,
            routes: HashMap::new(),
            roots: None,
            clock: None,
        }
    }
}

impl Net {
    fn name(mut self, name: &'static str, addresses: &[&str]) -> Self {
        self.names.insert(name, addresses.iter().map(|address| address.parse().unwrap()).collect());
        self
    }

    fn route(mut self, from: &str, to: SocketAddr) -> Self {
        self.routes.insert(from.parse().unwrap(), to);
        self
    }

    fn plain(mut self, registry: &str) -> Self {
        self.config
            .registries
            .insert(registry.to_owned(), Registry { scheme: Scheme::Http, ..Registry::default() });
        self
    }

    fn config(mut self, change: impl FnOnce(&mut FetchConfig)) -> Self {
        change(&mut self.config);
        self
    }

    fn build(self) -> Fetcher {
        let Net { config, names, lookup, routes, roots, clock } = self;
        let of_names: names::Lookup = Arc::new(move |name| {
            // A name server that never answers; its thread ends with the tests.
            if name == "dead.example" {
                loop {
                    std::thread::park();
                }
            }
            names.get(name).cloned().ok_or_else(|| std::io::Error::other("no such name"))
        });
        let clock = clock.unwrap_or(Clock::System);
        let dialer = Dialer {
            names: Names::new(lookup.unwrap_or(of_names)),
            policy: AddressPolicy::new(config.blocked_cidrs.clone()),
            tls: Tls::with_roots(roots.unwrap_or_else(rustls::RootCertStore::empty)),
            proxies: config.proxies.clone(),
            connect_timeout: config.connect_timeout,
            clock: clock.clone(),
            routes,
        };
        Fetcher::with_dialer(config, clock, dialer)
    }
}

fn request(url: &str) -> ModuleRequest {
    ModuleRequest::new(url.parse().unwrap())
}

/// With a docker config of one user and password for everything on a host.
fn with_password(url: &str, host: &str, user: &str, password: &str) -> ModuleRequest {
    with_config(url, json!({ "auths": { host: { "username": user, "password": password } } }))
}

fn with_config(url: &str, config: serde_json::Value) -> ModuleRequest {
    ModuleRequest { secret: PullSecret::DockerConfig(Secret::new(config.to_string())), ..request(url) }
}

#[derive(Debug)]
struct Fetched {
    bytes: Vec<u8>,
    source: SourceDigest,
    packaging: Packaging,
}

async fn fetch(fetcher: &Fetcher, request: &ModuleRequest) -> Result<Fetched, FetchError> {
    let deadline = fetcher.deadline(request);
    let credential = fetcher.credential(request).await?;
    let located = fetcher.locate(request, &credential, deadline).await?;
    read(fetcher.open(located, deadline).await?).await
}

async fn read(mut body: Body) -> Result<Fetched, FetchError> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(FetchError::from_io)?;
        let packaging = body.packaging();
        let source = body.finish(&PayloadDigest::of(&bytes))?;
        Ok(Fetched { bytes, source, packaging })
    });
    reading.await.unwrap()
}

/// Why a fetch fails, by its label.
async fn failure(fetcher: &Fetcher, request: &ModuleRequest) -> (&'static str, String) {
    let error = fetch(fetcher, request).await.expect_err("the fetch should fail");
    (error.label(), error.to_string())
}

/// An image of one layer: its manifest, and where manifest and layer are.
#[derive(Clone)]
struct Image {
    manifest: Vec<u8>,
    layer: Vec<u8>,
}

impl Image {
    fn new(layer: impl Into<Vec<u8>>) -> Self {
        Self::of_type(RAW, layer)
    }

    fn of_type(media_type: &str, layer: impl Into<Vec<u8>>) -> Self {
        let layer = layer.into();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI,
            "layers": [{
                "mediaType": media_type,
                "digest": BlobDigest::of(&layer).to_string(),
                "size": layer.len(),
                "urls": ["http://elsewhere.example/layer"],
            }],
        });
        Image { manifest: manifest.to_string().into_bytes(), layer }
    }

    fn digest(&self) -> SourceDigest {
        SourceDigest::of(&self.manifest)
    }

    fn blob_path(&self) -> String {
        format!("/v2/a/b/blobs/{}", BlobDigest::of(&self.layer))
    }

    /// What a healthy registry answers for `a/b:v1`.
    fn reply(&self, seen: &Seen) -> Reply {
        let by_digest = format!("/v2/a/b/manifests/{}", self.digest());
        match seen.target.as_str() {
            target if target == "/v2/a/b/manifests/v1" || target == by_digest => {
                Reply::ok(self.manifest.clone())
                    .header("Content-Type", OCI)
                    .header("Docker-Content-Digest", &self.digest().to_string())
            }
            target if target == self.blob_path() => Reply::ok(self.layer.clone()),
            _ => Reply::new(404),
        }
    }
}

/// A mirror with one image: as [`registry`], whatever it is told in queries.
async fn mirror(image: &Image, change: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let image = image.clone();
    Server::start(move |seen| {
        let seen = &Seen { target: seen.path().to_owned(), ..seen.clone() };
        change(seen).unwrap_or_else(|| image.reply(seen))
    })
    .await
}

/// A registry with one image, that answers as `change` says where it says something.
async fn registry(image: &Image, change: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let image = image.clone();
    Server::start(move |seen| change(seen).unwrap_or_else(|| image.reply(seen))).await
}

fn image_url(server: &Server) -> String {
    format!("oci://{}/a/b:v1", server.address)
}

#[tokio::test]
async fn an_image_is_pulled_over_one_connection() {
    let image = Image::new("module");
    let server = registry(&image, |_| None).await;
    let fetched = fetch(&Net::default().build(), &request(&image_url(&server))).await.unwrap();
    assert_eq!(fetched.bytes, b"module");
    assert_eq!(fetched.source, image.digest());
    assert_eq!(fetched.packaging, Packaging::Raw);
    let seen = server.seen();
    assert_eq!(server.asked(), ["GET /v2/a/b/manifests/v1".to_owned(), format!("GET {}", image.blob_path())]);
    assert!(seen.iter().all(|seen| seen.connection == 0));
    assert!(seen[0].header("user-agent").unwrap().starts_with("wasmferry/"));
    assert_eq!(seen[0].header("accept").unwrap().split(", ").count(), 4);
}

#[tokio::test]
async fn a_large_layer_arrives_whole() {
    let layer: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let image = Image::of_type("application/vnd.oci.image.layer.v1.tar+gzip", layer);
    let server = registry(&image, |_| None).await;
    let fetched = fetch(&Net::default().build(), &request(&image_url(&server))).await.unwrap();
    assert_eq!(PayloadDigest::of(&fetched.bytes), PayloadDigest::of(&image.layer));
    assert_eq!(fetched.packaging, Packaging::Layer);
}

#[tokio::test]
async fn an_image_is_pinned_by_its_own_digest_or_by_its_indexs() {
    let image = Image::new("module");
    let entry = json!({
        "mediaType": OCI, "digest": image.digest().to_string(), "size": image.manifest.len(),
        "platform": { "os": "wasip1", "architecture": "wasm" },
    });
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string().into_bytes();
    let index_digest = SourceDigest::of(&index);
    let served = index.clone();
    let server = registry(&image, move |seen| match seen.target.as_str() {
        target if target == format!("/v2/a/b/manifests/{index_digest}") => {
            Some(Reply::ok(served.clone()).header("Content-Type", INDEX))
        }
        _ => None,
    })
    .await;
    let fetcher = Net::default().build();
    let url = format!("oci://{}/a/b@{index_digest}", server.address);
    let deadline = fetcher.deadline(&request(&url));
    let located = fetcher.locate(&request(&url), &Credential::anonymous(), deadline).await.unwrap();
    assert_eq!(located.source(), Some(image.digest()));
    assert_eq!(located.size(), Some(6));
    for (digest, expected) in [(index_digest, true), (image.digest(), true), (SourceDigest::of(b"x"), false)]
    {
        assert_eq!(located.matches(&ExpectedDigest::from_hex(&digest.hex()).unwrap()), expected);
    }
    assert_eq!(read(fetcher.open(located, deadline).await.unwrap()).await.unwrap().bytes, b"module");
}

#[tokio::test]
async fn an_index_entry_of_another_size_is_refused() {
    let image = Image::new("module");
    let entry =
        json!({"mediaType": OCI, "digest": image.digest().to_string(), "size": image.manifest.len() + 1});
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    let server = registry(&image, move |seen| {
        seen.target.ends_with("/v1").then(|| Reply::ok(index.clone()).header("Content-Type", INDEX))
    })
    .await;
    let (label, _) = failure(&Net::default().build(), &request(&image_url(&server))).await;
    assert_eq!(label, "size_mismatch");
}

#[tokio::test]
async fn http_and_files_are_read_with_their_own_digest_as_source() {
    let server = Server::start(|_| Reply::ok("module")).await;
    let fetcher = Net::default().config(|config| config.files = FileAccess::Any).build();
    let fetched = fetch(&fetcher, &request(&server.url("/m.wasm?sig=hunter2"))).await.unwrap();
    assert_eq!((fetched.source, fetched.packaging), (SourceDigest::of(b"module"), Packaging::Sniff));
    assert_eq!(server.seen()[0].target, "/m.wasm?sig=hunter2");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "module").unwrap();
    let fetched = fetch(&fetcher, &request(&format!("file://{}", file.path().display()))).await.unwrap();
    assert_eq!((fetched.source, fetched.bytes.as_slice()), (SourceDigest::of(b"module"), &b"module"[..]));
}

#[tokio::test]
async fn a_name_is_reached_by_whichever_of_its_addresses_answers() {
    let server = Server::start(|_| Reply::ok("module")).await;
    let fetcher = Net::default().name("dual.example", &["::1", "127.0.0.2", "127.0.0.1"]).build();
    let url = format!("http://dual.example:{}/", server.address.port());
    assert_eq!(fetch(&fetcher, &request(&url)).await.unwrap().bytes, b"module");
    assert_eq!(server.seen()[0].header("host"), Some(&*format!("dual.example:{}", server.address.port())));
}

#[tokio::test]
async fn a_registry_on_ipv6_is_pulled_from() {
    let image = Image::new("module");
    let served = image.clone();
    let server = Server::start_at("[::1]:0", None, move |seen| served.reply(seen)).await;
    let reference = oci_client::Reference::with_tag(server.address.to_string(), "a/b".into(), "v1".into());
    let fetched =
        fetch(&Net::default().build(), &ModuleRequest::new(ModuleUrl::Oci(reference))).await.unwrap();
    assert_eq!(fetched.bytes, b"module");
}

#[tokio::test]
async fn a_connection_that_died_in_the_pool_is_replaced() {
    let image = Image::new("module");
    let cut = image.manifest.len();
    let whole = image.clone();
    // The manifest arrives whole, then the connection ends.
    let server = registry(&image, move |seen| {
        seen.target.ends_with("/v1").then(|| whole.reply(seen).fault(Fault::Cut(cut)))
    })
    .await;
    assert_eq!(fetch(&Net::default().build(), &request(&image_url(&server))).await.unwrap().bytes, b"module");
}

#[tokio::test]
async fn statuses_mean_what_they_say_and_only_known_codes_are_quoted() {
    for (status, code, expected) in [
        (401, "UNAUTHORIZED", "unauthorized"),
        (403, "DENIED", "denied"),
        (404, "MANIFEST_UNKNOWN", "not_found"),
        (429, "TOOMANYREQUESTS", "rate_limited"),
        (503, "", "unavailable"),
        (418, "hunter2", "status"),
    ] {
        let server = Server::start(move |_| {
            let body = json!({ "errors": [{ "code": code, "message": "hunter2" }] }).to_string();
            Reply { body: body.into_bytes(), ..Reply::new(status) }.header("Retry-After", "7")
        })
        .await;
        let request = request(&image_url(&server));
        let error = fetch(&Net::default().build(), &request).await.unwrap_err();
        assert_eq!(error.label(), expected);
        let text = error.to_string();
        assert!(text.contains("a/b") && !text.contains("hunter2"), "{text}");
        assert!(code.is_empty() || code == "hunter2" || text.contains(code), "{text}");
        let waits = matches!(status, 429 | 503);
        assert_eq!(error.retry_after(), waits.then(|| Duration::from_secs(7)));
        assert_eq!(error.is_permanent(), !waits);
    }
}

#[tokio::test]
async fn unknown_and_silent_hosts_are_told_apart() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let fetcher = Net::default().name("empty.example", &[]).build();
    for (url, expected) in [
        ("oci://unknown.example/a:v1".to_owned(), "dns"),
        ("https://empty.example/a".to_owned(), "dns"),
        (format!("oci://{closed}/a:v1"), "connect"),
        (format!("http://{closed}/a"), "connect"),
    ] {
        assert_eq!(failure(&fetcher, &request(&url)).await.0, expected, "{url}");
    }
}

#[tokio::test]
async fn a_name_server_that_never_answers_holds_up_nobody_else_and_is_given_up() {
    let server = Server::start(|_| Reply::ok("module")).await;
    let manual = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    let fetcher = Net { clock: Some(Clock::Manual(manual.clone())), ..Net::default() }
        .name("live.example", &["127.0.0.1"])
        .build();
    let dead: Vec<_> = (0..100)
        .map(|_| {
            let fetcher = fetcher.clone();
            tokio::spawn(async move { failure(&fetcher, &request("oci://dead.example/a:v1")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let live = request(&format!("http://live.example:{}/", server.address.port()));
    assert_eq!(fetch(&fetcher, &live).await.unwrap().bytes, b"module");
    manual.advance(FetchConfig::default().connect_timeout);
    for fetching in dead {
        let (label, text) = fetching.await.unwrap();
        assert!(label == "timeout" && text.contains("looking up dead.example"), "{text}");
    }
}

#[tokio::test]
async fn a_query_is_never_in_an_error() {
    let server = Server::start(|_| Reply::ok("module").fault(Fault::Cut(1))).await;
    let error = fetch(&Net::default().build(), &request(&server.url("/m?sig=hunter2"))).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert_eq!(error.label(), "transport");
}
