//! The real registry: Debian's docker-registry, with and without a password.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Method, Request, StatusCode};
use serde_json::json;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::authority::{Authority, Pair};
use super::client::{self, Answer};
use super::eventually;
use super::process::{Process, Program};
use super::token_server::TokenServer;
use super::world::{User, World, tool};

/// The user of a registry with a password who publishes.
pub const USER: &str = "alice";
pub const PASSWORD: &str = "open sesame";
/// The two as an htpasswd line: bcrypt of the lowest cost, which is all that the registry reads.
const HTPASSWD: &str = "alice:$2b$05$C.tgercoI/kLnmCqgkwypuRMiA69CNS/H8/TnliS0WqDC0laierjG\n";
/// Another one, until [`Registry::shut_out_other`], and the same of them.
pub const OTHER: &str = "bob";
pub const OTHER_PASSWORD: &str = "open too";
const OTHER_HTPASSWD: &str = "bob:$2b$05$C.tgercoI/kLnmCqgkwypuZrzqULO16zc8XxdHdWApH4U/iqajo9i\n";

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Anonymous,
    Htpasswd,
}

/// A registry with a folder and an address of its own; both outlive [`Registry::stop`].
pub struct Registry {
    program: Program,
    process: Option<Process>,
    address: SocketAddr,
    access: Access,
    log: std::path::PathBuf,
    /// Its configuration's name in the world, and what is in it.
    config: (String, serde_json::Value),
}

/// A request that the registry has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub method: String,
    pub path: String,
    pub status: u16,
}

impl Registry {
    pub async fn start(world: &World, access: Access) -> Registry {
        let address = world.address();
        let name = format!("registry-{}", address.port());
        let folder = world.folder(&name, User::Tests, 0o700);
        world.write(&format!("{name}/htpasswd"), format!("{HTPASSWD}{OTHER_HTPASSWD}"), User::Tests, 0o600);
        let auth = match access {
            Access::Anonymous => json!({}),
            Access::Htpasswd => json!({"htpasswd": {"realm": "test", "path": folder.join("htpasswd")}}),
        };
        // JSON is YAML.
        let config = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": folder.join("storage")},
                "delete": {"enabled": true},
                "maintenance": {"uploadpurging": {"enabled": false}},
            },
            "http": {"addr": address, "secret": "not one"},
            "auth": auth,
        });
        let file = format!("{name}/config.yml");
        let path = world.write(&file, config.to_string(), User::Tests, 0o600);
        let program = Program {
            name: name.clone(),
            path: tool("docker-registry"),
            user: User::Tests,
            args: vec!["serve".into(), path.into()],
            env: Vec::new(),
        };
        let log = world.path().join("logs").join(format!("{name}.out"));
        let config = (file, config);
        let mut registry = Registry { program, process: None, address, access, log, config };
        registry.resume(world).await;
        registry
    }

    /// Starts it anew with TLS, and lets in only who shows a certificate of `clients`, if that is given.
    /// What was pushed stays; nothing can be pushed from here any more.
    pub async fn secure(&mut self, world: &World, own: &Pair, clients: Option<&Authority>) {
        self.stop();
        let (file, config) = &mut self.config;
        config["http"]["tls"] = json!({"certificate": own.certificate, "key": own.key});
        if let Some(clients) = clients {
            config["http"]["tls"]["clientcas"] = json!([clients.file]);
        }
        world.write(file, config.to_string(), User::Tests, 0o600);
        // Asked in plain HTTP, it answers that it speaks TLS.
        self.resume(world).await;
    }

    /// Starts it anew behind a token server, whose tokens are the only way in from now on. What was pushed
    /// stays; nothing can be pushed from here any more.
    pub async fn guard(&mut self, world: &World, tokens: &TokenServer) {
        self.stop();
        let (file, config) = &mut self.config;
        config["auth"] = tokens.auth();
        world.write(file, config.to_string(), User::Tests, 0o600);
        self.resume(world).await;
    }

    /// Ends the registry; what was pushed stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it again, at the same address.
    pub async fn resume(&mut self, world: &World) {
        let mut process = self.program.start(world);
        let address = self.address;
        eventually("the registry", async || {
            process.assert_running();
            client::get(address, "/v2/").await.ok()
        })
        .await;
        self.process = Some(process);
    }

    /// Has the registry know the second user no longer. It starts again with that.
    pub async fn shut_out_other(&mut self, world: &World) {
        self.stop();
        let name = format!("registry-{}/htpasswd", self.address.port());
        world.write(&name, HTPASSWD, User::Tests, 0o600);
        self.resume(world).await;
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `oci://HOST/REPOSITORY:TAG` or `oci://HOST/REPOSITORY@DIGEST`.
    pub fn url(&self, repository: &str, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("oci://{}/{repository}{separator}{reference}", self.address)
    }

    /// A docker config that lets its bearer in, as it stands in pull secrets and in config.json.
    pub fn docker_config(&self) -> String {
        docker_config(&self.address.to_string(), USER, PASSWORD)
    }

    /// What was asked so far, in order of completion. Answers that the client has had may still be
    /// missing at the end: the registry writes its log after it answered.
    pub fn requests(&self) -> Vec<Logged> {
        parse_access_log(&self.log)
    }

    /// The requests of all who ask for blobs and manifests, by a request of our own behind them: what
    /// was answered before this call is there.
    pub async fn pulls(&self) -> Vec<Logged> {
        static MARKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let mark = format!("/v2/?mark={}", MARKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        client::get(self.address, &mark).await.expect("the registry");
        let mut requests = eventually("the registry's log", async || {
            let requests = self.requests();
            requests.iter().any(|request| request.path == mark).then_some(requests)
        })
        .await;
        requests.retain(|request| {
            let path = &request.path;
            let read = request.method == "GET" || request.method == "HEAD";
            read && (path.contains("/manifests/") || path.contains("/blobs/sha256:"))
        });
        requests
    }

    /// Publishes bytes as a blob and gives its descriptor.
    pub async fn publish_blob(&self, repository: &str, media_type: &str, blob: &[u8]) -> serde_json::Value {
        let digest = digest(blob);
        let upload = self.send(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), "", b"").await;
        assert_eq!(upload.status, StatusCode::ACCEPTED, "{}", upload.text());
        let location = upload.header(LOCATION.as_str());
        let path =
            location.split_once("//").map_or(location, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
        let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
        let done = self.send(Method::PUT, &path, "application/octet-stream", blob).await;
        assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
        json!({"mediaType": media_type, "digest": digest, "size": blob.len()})
    }

    /// Publishes a manifest as it is, under a tag or its digest, and gives its digest. The blobs that it
    /// names must be there already.
    pub async fn publish_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        body: &[u8],
    ) -> String {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let done = self.send(Method::PUT, &path, media_type, body).await;
        assert_eq!(done.status, StatusCode::CREATED, "{}", done.text());
        digest(body)
    }

    /// Publishes a module in one of the layouts that people use, and gives the manifest's digest.
    pub async fn publish(&self, repository: &str, tag: &str, layout: Layout, module: &[u8]) -> String {
        let (manifest_type, config_type, layer_type) = layout.media_types();
        let config = self.publish_blob(repository, config_type, b"{}").await;
        let layer = match layout {
            Layout::Artifact => module.to_vec(),
            Layout::OciImage | Layout::DockerImage => tar_gz(&[("plugin.wasm", module)]),
            Layout::ZstdImage => tar_zstd(&[("plugin.wasm", module)]),
        };
        let layer = self.publish_blob(repository, layer_type, &layer).await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": [layer],
        });
        self.publish_manifest(repository, tag, manifest_type, manifest.to_string().as_bytes()).await
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if self.access == Access::Htpasswd {
            request = request.header(AUTHORIZATION, format!("Basic {}", basic(USER, PASSWORD)));
        }
        let request = request.body(Bytes::copy_from_slice(body)).expect("a request");
        client::send(self.address, request).await.expect("the registry")
    }
}

/// How a module is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The CNCF's Wasm artifact: the layer is the module.
    Artifact,
    /// An OCI image of one tar+gzip layer with plugin.wasm.
    OciImage,
    /// The same as a Docker image, schema 2.
    DockerImage,
    /// An OCI image of one tar+zstd layer.
    ZstdImage,
}

impl Layout {
    pub const ALL: [Layout; 4] = [Layout::Artifact, Layout::OciImage, Layout::DockerImage, Layout::ZstdImage];

    /// Of the manifest, the config and the layer.
    fn media_types(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Layout::Artifact => (OCI_MANIFEST, "application/vnd.wasm.config.v0+json", "application/wasm"),
            Layout::OciImage => (
                OCI_MANIFEST,
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            Layout::ZstdImage => (
                OCI_MANIFEST,
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
            Layout::DockerImage => (
                DOCKER_MANIFEST,
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        }
    }
}

/// A tar of these files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *content).expect("a tar in memory");
    }
    tar.into_inner().expect("a tar in memory")
}

/// The same in gzip.
pub fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar(files)).and_then(|()| gzip.finish()).expect("a gzip in memory")
}

/// The same in zstd.
pub fn tar_zstd(files: &[(&str, &[u8])]) -> Vec<u8> {
    zstd::encode_all(&*tar(files), 3).expect("a zstd in memory")
}

/// A docker config JSON with one registry.
pub fn docker_config(host: &str, user: &str, password: &str) -> String {
    json!({"auths": {host: {"auth": basic(user, password)}}}).to_string()
}

/// `sha256:HEX` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn basic(user: &str, password: &str) -> String {
    BASE64_STANDARD.encode(format!("{user}:{password}"))
}

/// Apache's combined format: the request line is in the first pair of quotes, the status follows it.
fn parse_access_log(log: &Path) -> Vec<Logged> {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let parse = |line: &str| {
        let mut quoted = line.split('"');
        let mut request = quoted.nth(1)?.split(' ');
        let status = quoted.next()?.split_whitespace().next()?.parse().ok()?;
        Some(Logged { method: request.next()?.into(), path: request.next()?.into(), status })
    };
    log.lines().filter_map(parse).collect()
}
