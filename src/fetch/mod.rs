//! The network side of a pull: OCI registries, HTTP servers and files, as streams of bytes.
//!
//! ```text
//! Fetcher -> oci -> hosts, layers, others
//!         |     \-> repository -> auth -> realm
//!         |             \-> manifest  \
//!         |-> http_source ------------+-> http -> dial -> names, address, proxy, tls
//!         |-> file, layout             \-> download -> body, pace
//!         \-> credential, credentials
//! ```
//!
//! What a server says is checked here, up to the digest and size of what it sends: a [`Body`] that is
//! finished well held all the bytes that were promised and no others. What the bytes mean is not known here, nor
//! where they are kept.
//!
//! What fails for the moment is asked again as [`retry`](self::retry) says, after all who may have it were
//! asked once. Hosts are reached through [`dial`](self::dial) alone. A credential goes to its registry and to a token
//! server that [`realm`](self::realm) lets the registry name.

mod address;
mod auth;
mod body;
mod credential;
mod credentials;
mod dial;
mod download;
mod error;
mod file;
mod files;
mod hosts;
mod http;
mod http_source;
mod layers;
mod layout;
mod manifest;
mod names;
mod oci;
mod others;
mod pace;
mod proxy;
mod realm;
mod repository;
mod retry;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use oci_client::Reference;
use url::Url;

pub use self::body::{Body, Resumed};
pub use self::credential::Credential;
pub use self::credentials::{
    CredentialError, CredentialSource, ImagePattern, InvalidPattern, Listeners, NodeCredential,
    ProgramEnvironment, Repositories, provider_problems,
};
pub use self::error::{FetchError, RegistryCode};
pub use self::file::FileAccess;
pub use self::hosts::{
    Access, DEFAULT as ANY_REGISTRY, KeyPair, Mirror, Registry, Scheme, go_duration, header_name,
    header_value,
};
pub use self::proxy::{Proxies, Proxy};
pub use self::retry::{Retries, Tries};

use self::address::AddressPolicy;
use self::auth::Tokens;
use self::body::Promise;
use self::credentials::Sources;
use self::dial::Dialer;
use self::hosts::Doubts;
use self::http::Peer;
use self::names::Names;
use self::tls::Tls;
use crate::clock::Clock;
use crate::digest::{BlobDigest, ExpectedDigest, SourceDigest};
use crate::metrics::Metrics;
use crate::module::{ModuleRequest, ModuleUrl, PullSecret, Validators};
use crate::wasm::Packaging;

/// How to fetch.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Which files may be read.
    pub files: FileAccess,
    /// What is special about a registry, by `HOST[:PORT]` in lower case; [`ANY_REGISTRY`] is for those
    /// that nothing else speaks of.
    pub registries: BTreeMap<String, Registry>,
    /// containerd's folders of hosts, for registries that have no entry.
    pub containerd_hosts: Vec<PathBuf>,
    /// Through what servers are reached.
    pub proxies: Proxies,
    /// Hosts of token servers that any registry may name, besides those that are known.
    pub realms: Vec<String>,
    /// A larger manifest is an error.
    pub max_manifest_bytes: u64,
    /// A larger module is an error. What it is packed in may be a little larger.
    pub max_module_bytes: u64,
    /// The whole fetch's limit, where the request has none.
    pub timeout: Duration,
    /// How long a server may send nothing.
    pub progress_timeout: Duration,
    /// What a server must send of a body at least, in bytes a second over that time; 0 is nothing.
    pub min_rate: u64,
    /// What is asked again within one fetch.
    pub retries: Retries,
    /// The limit of a name lookup, of a connection, and of a TLS handshake.
    pub connect_timeout: Duration,
    /// Addresses that are never connected to, besides those that never are anyway: link-local,
    /// metadata, unspecified, multicast and broadcast ones.
    pub blocked_cidrs: Vec<IpNet>,
    /// The node's own credentials, in the order in which they are tried.
    pub credentials: Vec<NodeCredential>,
    /// What programs that give credentials are run with, and for how long.
    pub programs: ProgramEnvironment,
    pub program_timeout: Duration,
    /// Where such runs are counted, and retries.
    pub metrics: Option<Metrics>,
}

impl Default for FetchConfig {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            files: FileAccess::Below(Vec::new()),
            registries: BTreeMap::new(),
            containerd_hosts: Vec::new(),
            proxies: Proxies::default(),
            realms: Vec::new(),
            max_manifest_bytes: 8 * MIB,
            max_module_bytes: 256 * MIB,
            timeout: Duration::from_secs(120),
            progress_timeout: Duration::from_secs(30),
            min_rate: 1024,
            retries: Retries::default(),
            connect_timeout: Duration::from_secs(10),
            blocked_cidrs: Vec::new(),
            credentials: Vec::new(),
            programs: ProgramEnvironment::default(),
            program_timeout: Duration::from_secs(60),
            metrics: None,
        }
    }
}

/// Fetches modules. Cheap to clone; clones share tokens and the threads that look names up.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    config: FetchConfig,
    clock: Clock,
    client: Arc<http::Client>,
    tokens: Tokens,
    node: Arc<Sources>,
    doubts: Arc<Doubts>,
}

impl Shared {
    /// The server of a URL that is no registry's, whose certificates are what its entry says, if it has
    /// one. What else stands there is for who pulls images.
    fn web(&self, url: &Url) -> Peer {
        let host = http::host(url).to_ascii_lowercase();
        let entry = self.config.registries.get(&host).map(|entry| &entry.access);
        let access = entry.map(|access| Access {
            ca_files: access.ca_files.clone(),
            skip_verify: access.skip_verify,
            ..Access::default()
        });
        Peer::new(url, Arc::new(access.unwrap_or_default()))
    }
}

impl Fetcher {
    /// A fetcher for the real network. Does no I/O.
    pub fn new(config: FetchConfig, clock: Clock) -> Self {
        let dialer = Dialer {
            names: Names::new(names::system()),
            policy: AddressPolicy::new(config.blocked_cidrs.clone()),
            tls: Tls::system(),
            proxies: config.proxies.clone(),
            connect_timeout: config.connect_timeout,
            clock: clock.clone(),
            #[cfg(test)]
            routes: Default::default(),
        };
        Self::with_dialer(config, clock, dialer)
    }

    fn with_dialer(config: FetchConfig, clock: Clock, dialer: Dialer) -> Self {
        let (progress_timeout, min_rate) = (config.progress_timeout, config.min_rate);
        let client = http::Client { dialer, clock: clock.clone(), progress_timeout, min_rate };
        let tokens = Tokens::new(clock.clone(), config.realms.clone());
        let node = Arc::new(Sources::of(&config, &clock));
        let doubts = Arc::new(Doubts::new(clock.clone()));
        Self { shared: Arc::new(Shared { config, clock, client: Arc::new(client), tokens, node, doubts }) }
    }

    /// When a fetch that begins now must have ended.
    pub fn deadline(&self, request: &ModuleRequest) -> Instant {
        self.shared.clock.now() + request.timeout.unwrap_or(self.shared.config.timeout)
    }

    /// The credential that a request has for its source: the resource's pull secret, and only without one
    /// what the node has for whoever asks. All of that is for registries: for http and files it is always
    /// anonymous. Reads files and may run programs.
    ///
    /// # Errors
    /// The pull secret is not available ([`FetchError::SecretUnavailable`]), malformed
    /// ([`FetchError::BadSecret`]), or for something else ([`FetchError::SecretUnmatched`]). What is wrong
    /// with the node's own credentials is told when one is needed.
    pub async fn credential(&self, request: &ModuleRequest) -> Result<Credential, FetchError> {
        match self.own_credential(request)? {
            Owned::Resource(credential) => Ok(credential),
            Owned::Node(image) => Ok(self.shared.node.clone().credential(&request.caller, image).await),
        }
    }

    /// The same as far as it is known without running a program; none where one has to be run first.
    /// Blocks on files.
    ///
    /// # Errors
    /// As [`Fetcher::credential`].
    pub fn credential_at_hand(&self, request: &ModuleRequest) -> Result<Option<Credential>, FetchError> {
        match self.own_credential(request)? {
            Owned::Resource(credential) => Ok(Some(credential)),
            Owned::Node(image) => Ok(self.shared.node.at_hand(&request.caller, image)),
        }
    }

    fn own_credential<'a>(&self, request: &'a ModuleRequest) -> Result<Owned<'a>, FetchError> {
        match (&request.secret, &request.url) {
            (PullSecret::Unavailable, _) => Err(FetchError::SecretUnavailable),
            (PullSecret::DockerConfig(text), ModuleUrl::Oci(image)) => {
                Credential::of_pull_secret(text, image).map(Owned::Resource)
            }
            (PullSecret::None, ModuleUrl::Oci(image)) => Ok(Owned::Node(image)),
            _ => Ok(Owned::Resource(Credential::anonymous())),
        }
    }

    /// The first half of a fetch: for OCI the manifest, fetched, checked, and its layer chosen; for
    /// http and files nothing yet.
    pub async fn locate(
        &self,
        request: &ModuleRequest,
        credential: &Credential,
        deadline: Instant,
    ) -> Result<Located, FetchError> {
        let place = match &request.url {
            ModuleUrl::Http(url) => Place::Http(Box::new(http_source::Found::new(url.clone()))),
            ModuleUrl::File(path) => Place::File(path.clone()),
            ModuleUrl::Layout(path, image) => {
                let (what, path, image) = (request.url.to_string(), path.clone(), image.clone());
                let locate = move |shared: &Shared| layout::locate(shared, &path, image.as_ref(), what);
                Place::Layout(Box::new(self.of_files(&request.url.to_string(), deadline, locate).await?))
            }
            ModuleUrl::Oci(reference) => {
                let found = oci::locate(&self.shared, reference, credential, deadline).await?;
                Place::Oci(Box::new(found))
            }
        };
        Ok(Located { place })
    }

    /// As [`Fetcher::locate`], for who has what an http server gave these along with: none where it still
    /// serves that, which it is asked.
    pub async fn locate_changed(
        &self,
        request: &ModuleRequest,
        credential: &Credential,
        known: &Validators,
        deadline: Instant,
    ) -> Result<Option<Located>, FetchError> {
        match &request.url {
            ModuleUrl::Http(url) if !known.is_empty() => {
                let found = http_source::Found::changed(&self.shared, url.clone(), known, deadline).await?;
                Ok(found.map(|found| Located { place: Place::Http(Box::new(found)) }))
            }
            _ => self.locate(request, credential, deadline).await.map(Some),
        }
    }

    /// The digest that the tag of a request has now: the manifest's or, where the tag is of an index,
    /// the index's. It is the registry's word, of which nothing was checked. None where the request
    /// follows no tag.
    pub async fn tag_digest(
        &self,
        request: &ModuleRequest,
        credential: &Credential,
        deadline: Instant,
    ) -> Result<Option<SourceDigest>, FetchError> {
        let (ModuleUrl::Oci(reference), Some(_)) = (&request.url, request.tag_registry()) else {
            return Ok(None);
        };
        oci::tag_digest(&self.shared, reference, credential, deadline).await.map(Some)
    }

    /// Whether the registry says that the layer is there for this credential, which costs it a HEAD. Not
    /// where it does not answer such questions, and where there is no registry.
    pub async fn shows_layer(&self, located: &mut Located, deadline: Instant) -> Result<bool, FetchError> {
        match &mut located.place {
            Place::Oci(found) => found.shows_layer(deadline).await,
            Place::Http(_) | Place::File(_) | Place::Layout(_) => Ok(false),
        }
    }

    /// The second half: the bytes. Must be called on the async runtime; the [`Body`] is for a blocking
    /// thread.
    pub async fn open(&self, located: Located, deadline: Instant) -> Result<Body, FetchError> {
        self.open_from(located, 0, deadline).await
    }

    /// As [`Fetcher::open`], for who has the first `from` bytes of a [`layer`](Located::raw_layer)
    /// already: the body begins behind them, and its end counts only if they are what was promised too.
    pub async fn open_from(
        &self,
        located: Located,
        from: u64,
        deadline: Instant,
    ) -> Result<Body, FetchError> {
        match located.place {
            Place::Oci(found) => found.open(from, deadline).await,
            Place::Http(found) => found.open(&self.shared, deadline).await,
            Place::File(path) => self.open_file(path, deadline).await,
            // The body begins at its start: no layer of a layout is a `raw_layer`.
            Place::Layout(found) => {
                let open = move |shared: &Shared| found.open(shared);
                self.of_files("the layout", deadline, open).await
            }
        }
    }

    /// Work on files, off the runtime's threads.
    async fn of_files<T: Send + 'static>(
        &self,
        what: &str,
        deadline: Instant,
        work: impl FnOnce(&Shared) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let shared = self.shared.clone();
        let working = tokio::task::spawn_blocking(move || work(&shared));
        let done = self.shared.clock.timeout_at(deadline, working).await;
        let done = done.map_err(|_| FetchError::Timeout { during: "opening", host: what.to_owned() })?;
        done.map_err(|_| FetchError::Interrupted)?
    }

    /// The tries for a body that cannot [go on](Body::can_go_on) by itself. The first one begins now.
    pub fn tries(&self, deadline: Instant) -> Tries {
        Tries::new(&self.shared, deadline)
    }

    /// Waits until a body that ended with this error may be asked for again; false, at once, where it is
    /// not to be.
    pub async fn again(&self, tries: &mut Tries, because: &FetchError) -> bool {
        tries.again(&self.shared, because).await
    }

    async fn open_file(&self, path: PathBuf, deadline: Instant) -> Result<Body, FetchError> {
        let what = format!("the file {}", path.display());
        let limit = self.shared.config.max_module_bytes.saturating_add(layers::FRAMING);
        let open = move |shared: &Shared| file::open(&shared.config.files, &path);
        let (file, size) = self.of_files(&what, deadline, open).await?;
        if size > limit {
            return Err(FetchError::TooLarge { what, limit });
        }
        Ok(Body::file(what, Promise::AtMost { limit, size: Some(size) }, file))
    }
}

/// Whose credential a request has.
enum Owned<'a> {
    Resource(Credential),
    /// The node's, for this image.
    Node(&'a Reference),
}

/// The layer of an image's manifest in which the module is looked for first: its digest, its size in bytes,
/// and how the module lies in it. The error is for people.
pub fn layer_of(manifest: &[u8]) -> Result<(BlobDigest, u64, Packaging), String> {
    let layer = match manifest::read(manifest, None) {
        Ok(manifest::Manifest::Image(image)) => image.layers().map(|layers| layers.top),
        Ok(manifest::Manifest::Index(_)) => return Err("it is an index and no image".to_owned()),
        Err(refusal) => Err(refusal),
    };
    match layer {
        Ok(layer) => Ok((layer.digest, layer.size, layer.packaging)),
        Err(manifest::Refusal::Invalid(why) | manifest::Refusal::Unsupported(why)) => Err(why),
    }
}

/// A module's source, found but not yet fetched. Holds a connection where that is free.
pub struct Located {
    place: Place,
}

enum Place {
    Oci(Box<oci::Found>),
    Http(Box<http_source::Found>),
    File(PathBuf),
    Layout(Box<layout::Found>),
}

impl Located {
    /// OCI: the digest of the manifest that holds the layer, which is the image's, not the index's.
    pub fn source(&self) -> Option<SourceDigest> {
        match &self.place {
            Place::Oci(found) => Some(found.manifest),
            Place::Layout(found) => Some(found.manifest),
            Place::Http(_) | Place::File(_) => None,
        }
    }

    /// OCI: the digest of the index that led to the manifest.
    pub fn index(&self) -> Option<SourceDigest> {
        match &self.place {
            Place::Oci(found) => found.index,
            Place::Layout(found) => found.index,
            Place::Http(_) | Place::File(_) => None,
        }
    }

    /// Bytes of the layer as it is kept, where that is known by now.
    pub fn size(&self) -> Option<u64> {
        match &self.place {
            Place::Oci(found) => Some(found.layers.top.size),
            Place::Layout(found) => Some(found.layers.top.size),
            Place::Http(_) | Place::File(_) => None,
        }
    }

    /// From a registry: digest of the topmost layer, and how the module lies in it, if it does.
    pub fn layer(&self) -> Option<(BlobDigest, Packaging)> {
        match &self.place {
            Place::Oci(found) => Some((found.layers.top.digest, found.layers.top.packaging)),
            Place::Http(_) | Place::File(_) | Place::Layout(_) => None,
        }
    }

    /// OCI: digest and size of the layer, where that is the module itself and nothing else.
    pub fn raw_layer(&self) -> Option<(BlobDigest, u64)> {
        match &self.place {
            Place::Oci(found) if found.layers.top.packaging == Packaging::Raw => {
                Some((found.layers.top.digest, found.layers.top.size))
            }
            _ => None,
        }
    }

    /// The same source, to be fetched once more.
    pub fn again(&self) -> Located {
        let place = match &self.place {
            Place::Oci(found) => Place::Oci(Box::new(found.again())),
            Place::Http(found) => Place::Http(Box::new(found.again())),
            Place::File(path) => Place::File(path.clone()),
            Place::Layout(found) => Place::Layout(Box::new(found.again())),
        };
        Located { place }
    }

    /// Whether the manifest, or the index that led to it, is what was expected. Where not, it may still
    /// be the payload's digest.
    pub fn matches(&self, expected: &ExpectedDigest) -> bool {
        [self.source(), self.index()].iter().flatten().any(|source| expected.is_source(source))
    }
}

#[cfg(test)]
mod tests;
