//! Pulls from a registry (OCI distribution specification 1.1): the manifest, chosen and checked, then
//! the layer that holds the module.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use oci_client::Reference;
use url::Url;

use super::Shared;
use super::auth::{Asker, Authorization};
use super::body::{Body, Promise};
use super::credential::Login;
use super::download::{Download, Origin};
use super::error::{FetchError, RegistryCode};
use super::http::{Request, Response, Session};
use super::layers::{self, Below};
use super::manifest::{self, Child, Image, Layer, Layers, Manifest, Refusal};
use super::realm;
use crate::digest::SourceDigest;
use crate::module::is_loopback;

/// How much of an error's body is read for its code.
const MAX_ERROR_BODY: u64 = 64 * 1024;
/// Where a registry gives the digest of the manifest that it answers with.
const DIGEST_HEADER: &str = "docker-content-digest";

/// A module's layers, found.
pub(super) struct Found {
    pub(super) manifest: SourceDigest,
    /// The index that led to the manifest.
    pub(super) index: Option<SourceDigest>,
    pub(super) layers: Layers,
    repository: Repository,
}

/// One repository as one login sees it, for the length of one fetch.
pub(super) struct Repository {
    shared: Arc<Shared>,
    session: Session,
    /// `https://HOST/v2/NAME/`
    base: Url,
    name: String,
    /// The image, for errors.
    what: String,
    login: Option<Login>,
    authorization: Option<Authorization>,
    /// Whether the one renewal has been used up.
    renewed: bool,
}

/// Fetches and checks the manifest, and picks the layer.
pub(super) async fn locate(
    shared: &Arc<Shared>,
    reference: &Reference,
    login: Option<&Login>,
    deadline: Instant,
) -> Result<Found, FetchError> {
    let mut repository = Repository::new(shared.clone(), reference, login)?;
    let pinned = match reference.digest().map(str::parse::<SourceDigest>) {
        None => None,
        Some(Ok(digest)) => Some(digest),
        Some(Err(error)) => return Err(repository.refused(Refusal::Unsupported(error.to_string()))),
    };
    let named = match pinned {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let (digest, read) = repository.manifest(&named, pinned, None, deadline).await?;
    let (manifest, index, image) = match read {
        Manifest::Image(image) => (digest, None, image),
        Manifest::Index(index) => {
            let child = index.choose(architecture()).map_err(|refusal| repository.refused(refusal))?;
            (child.digest, Some(digest), repository.child(child, deadline).await?)
        }
    };
    let layers = image.layers().map_err(|refusal| repository.refused(refusal))?;
    layers::check_size(shared, &layers.top, &repository.what)?;
    Ok(Found { manifest, index, layers, repository })
}

/// The digest that a tag has now: an image's or an index's. Costs the registry a HEAD, and a GET where
/// it does not answer that as the specification says.
pub(super) async fn tag_digest(
    shared: &Arc<Shared>,
    reference: &Reference,
    login: Option<&Login>,
    deadline: Instant,
) -> Result<SourceDigest, FetchError> {
    let mut repository = Repository::new(shared.clone(), reference, login)?;
    let tag = reference.tag().unwrap_or("latest");
    match repository.head(tag, deadline).await? {
        Some(digest) => Ok(digest),
        None => Ok(repository.manifest(tag, None, None, deadline).await?.0),
    }
}

impl Found {
    /// Begins to fetch what follows the first `from` bytes of the layer.
    pub(super) async fn open(self, from: u64, deadline: Instant) -> Result<Body, FetchError> {
        let Found { manifest, layers, repository, .. } = self;
        let top = layers.top;
        let (shared, image) = (repository.shared.clone(), repository.what.clone());
        let promise = Promise::Blob { digest: top.digest, size: top.size, manifest };
        let mut origin = Origin::Layer { repository: Box::new(repository), layer: top };
        let part = origin.part(from, Some(top.size), deadline).await?;
        let download = Download::new(origin, part, from, Some(top.size), deadline);
        let what = layers::name(&image, &top);
        let body = Body::network(what, top.packaging, promise, download, shared.clock.clone());
        Ok(body.above(Below::new(&shared, image, layers)))
    }

    /// The same once more, for another fetch of the layer.
    pub(super) fn again(&self) -> Found {
        let Found { manifest, index, layers, repository } = self;
        Found { manifest: *manifest, index: *index, layers: layers.clone(), repository: repository.again() }
    }
}

impl Repository {
    fn new(shared: Arc<Shared>, reference: &Reference, login: Option<&Login>) -> Result<Self, FetchError> {
        let what = format!("oci://{}", reference.whole());
        let base = base(&shared, reference).ok_or_else(|| FetchError::Unsupported {
            what: what.clone(),
            reason: "its registry is not a valid host".to_owned(),
        })?;
        let name = reference.repository().to_owned();
        Ok(Self {
            session: Session::new(shared.client.clone()),
            authorization: shared.tokens.kept(&base, &name, login),
            login: login.cloned(),
            renewed: false,
            shared,
            base,
            name,
            what,
        })
    }

    /// As it is now, with connections of its own.
    fn again(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            session: Session::new(self.shared.client.clone()),
            base: self.base.clone(),
            name: self.name.clone(),
            what: self.what.clone(),
            login: self.login.clone(),
            authorization: self.authorization.clone(),
            renewed: self.renewed,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The answer with a layer, or with the part of it that the headers ask for.
    pub(super) async fn layer(
        &mut self,
        layer: &Layer,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        let what = self.layer_name(layer);
        self.get(&format!("blobs/{}", layer.digest), &what, headers, deadline).await
    }

    /// The digest that the registry gives for a manifest; none where it gives none without the manifest.
    async fn head(&mut self, named: &str, deadline: Instant) -> Result<Option<SourceDigest>, FetchError> {
        let what = self.what.clone();
        let path = format!("manifests/{named}");
        let response = match self.send(Method::HEAD, &path, &what, accept(), deadline).await {
            Err(
                FetchError::Status { status: StatusCode::METHOD_NOT_ALLOWED, .. }
                | FetchError::Unavailable { status: StatusCode::NOT_IMPLEMENTED, .. },
            ) => return Ok(None),
            outcome => outcome?,
        };
        let declared = response.headers.get(DIGEST_HEADER).and_then(|value| value.to_str().ok());
        Ok(declared.and_then(|text| text.parse().ok()))
    }

    /// A manifest by tag or digest, with the digest that it has. All its bytes are hashed; what was
    /// expected of them, by whom ever, must be so.
    async fn manifest(
        &mut self,
        named: &str,
        digest: Option<SourceDigest>,
        size: Option<u64>,
        deadline: Instant,
    ) -> Result<(SourceDigest, Manifest), FetchError> {
        let what = self.what.clone();
        let response = self.get(&format!("manifests/{named}"), &what, accept(), deadline).await?;
        let headers = response.headers.clone();
        let body = self.read(response, self.shared.config.max_manifest_bytes, "manifest").await?;
        let actual = SourceDigest::of(&body);
        let mismatch = |expected: String| FetchError::DigestMismatch {
            what: format!("the manifest of {what}"),
            expected,
            actual: actual.to_string(),
        };
        if let Some(expected) = size.filter(|size| *size != body.len() as u64) {
            let what = format!("the manifest of {what}");
            let actual = body.len() as u64;
            return Err(FetchError::SizeMismatch { what, expected, actual, at_least: false });
        }
        if let Some(expected) = digest.filter(|digest| *digest != actual) {
            return Err(mismatch(expected.to_string()));
        }
        if let Some(declared) = headers.get(DIGEST_HEADER) {
            match declared.to_str().ok().and_then(|text| text.parse::<SourceDigest>().ok()) {
                Some(declared) if declared == actual => {}
                Some(declared) => return Err(mismatch(declared.to_string())),
                None => {
                    let reason = "its Docker-Content-Digest is not a SHA-256 digest".to_owned();
                    return Err(self.refused(Refusal::Invalid(reason)));
                }
            }
        }
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let read = manifest::read(&body, content_type).map_err(|refusal| self.refused(refusal))?;
        Ok((actual, read))
    }

    /// The image that an index led to.
    async fn child(&mut self, child: Child, deadline: Instant) -> Result<Image, FetchError> {
        let named = child.digest.to_string();
        match self.manifest(&named, Some(child.digest), child.size, deadline).await? {
            (_, Manifest::Image(image)) => Ok(image),
            (_, Manifest::Index(_)) => {
                Err(self.refused(Refusal::Invalid("its index calls another index an image".to_owned())))
            }
        }
    }

    /// A GET below the repository that ends with status 200, or 206 where it asks for a part.
    async fn get(
        &mut self,
        path: &str,
        what: &str,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        self.send(Method::GET, path, what, headers, deadline).await
    }

    /// A request below the repository that ends with status 200, or 206 where it asks for a part,
    /// authorised where the registry asks for it.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        what: &str,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        let url = self
            .base
            .join(path)
            .map_err(|_| self.refused(Refusal::Invalid("it cannot be written as a URL".to_owned())))?;
        loop {
            let request = Request {
                headers: headers.clone(),
                authorization: self.authorization.as_ref().map(|sent| sent.header.clone()),
                ..Request::of(method.clone(), url.clone())
            };
            let response = self.session.send(request, deadline).await?;
            let is_part =
                response.status == StatusCode::PARTIAL_CONTENT && headers.contains_key(header::RANGE);
            if response.status == StatusCode::OK || is_part {
                return Ok(response);
            }
            // Only the registry itself may ask for a credential, not whom it redirected to.
            let asks =
                response.status == StatusCode::UNAUTHORIZED && response.url.origin() == self.base.origin();
            let spent = match &self.authorization {
                None => false,
                Some(sent) => !sent.renewable || std::mem::replace(&mut self.renewed, true),
            };
            if !asks || spent {
                return Err(self.error(response, what).await);
            }
            self.authorize(response, what, deadline).await?;
        }
    }

    async fn authorize(
        &mut self,
        response: Response,
        what: &str,
        deadline: Instant,
    ) -> Result<(), FetchError> {
        let challenges = realm::challenges(&response.headers);
        let reach = response.reach();
        if challenges.is_empty() {
            return Err(self.error(response, what).await);
        }
        // Read to its end, so that the connection is free for the next try; where that fails, a new one
        // is made.
        let body = self.session.read(response, MAX_ERROR_BODY, what).await.unwrap_or_default();
        let asker = Asker {
            registry: &self.base,
            reach,
            repository: &self.name,
            login: self.login.as_ref(),
            what: &self.what,
            code: RegistryCode::from_body(&body),
        };
        let answer = self.shared.tokens.answer(&mut self.session, &asker, &challenges, deadline).await?;
        self.authorization = Some(answer);
        Ok(())
    }

    /// What an answer other than 200 means, with the registry's code where it gives a known one.
    async fn error(&mut self, response: Response, what: &str) -> FetchError {
        let (status, headers) = (response.status, response.headers.clone());
        let body = match status.is_client_error() {
            true => self.session.read(response, MAX_ERROR_BODY, what).await.unwrap_or_default(),
            false => Bytes::new(),
        };
        FetchError::from_status(what, status, &headers, RegistryCode::from_body(&body))
    }

    async fn read(&mut self, response: Response, limit: u64, kind: &str) -> Result<Bytes, FetchError> {
        let what = format!("the {kind} of {}", self.what);
        self.session.read(response, limit, &what).await
    }

    fn refused(&self, refusal: Refusal) -> FetchError {
        layers::refused(&self.what, refusal)
    }

    pub(super) fn layer_name(&self, layer: &Layer) -> String {
        layers::name(&self.what, layer)
    }
}

/// What a request for a manifest says that it takes.
fn accept() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT))])
}

/// `SCHEME://HOST/v2/NAME/`. Plain http for a registry on loopback, as docker and crane do it, unless
/// the configuration speaks of that registry; for others only where it says so.
fn base(shared: &Shared, reference: &Reference) -> Option<Url> {
    let registry = match reference.registry() {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let mut url = Url::parse(&format!("https://{registry}/v2/{}/", reference.repository())).ok()?;
    let key = reference.registry().to_ascii_lowercase();
    let plain = match shared.config.registries.get(&key) {
        Some(configured) => configured.plain_http,
        None => is_loopback(reference.registry()),
    };
    if plain {
        // `set_scheme` would lose an explicit port 443, so the URL is read anew.
        url = Url::parse(&format!("http://{registry}/v2/{}/", reference.repository())).ok()?;
    }
    Some(url)
}

/// This machine's architecture by the name that images give it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
