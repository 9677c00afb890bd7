//! One repository of a registry (OCI distribution specification 1.1): manifests by tag or digest, and blobs,
//! asked for with a credential where the registry wants one.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use oci_client::Reference;
use url::Url;

use super::Shared;
use super::auth::{Asker, Authorization};
use super::credential::{Login, is_repeated};
use super::error::{FetchError, RegistryCode};
use super::hosts::Endpoint;
use super::http::{Peer, Request, Response, Session};
use super::layers;
use super::manifest::{self, Child, Image, Layer, Manifest, Refusal};
use super::realm;
use crate::digest::SourceDigest;

/// How much of an error's body is read for its code.
const MAX_ERROR_BODY: u64 = 64 * 1024;
/// Where a registry gives the digest of the manifest that it answers with.
const DIGEST_HEADER: &str = "docker-content-digest";

/// One repository as one login sees it, for the length of one fetch.
pub(super) struct Repository {
    pub(super) shared: Arc<Shared>,
    session: Session,
    pub(super) endpoint: Arc<Endpoint>,
    /// `https://HOST/v2/NAME/`
    base: Url,
    /// As this host knows it.
    name: String,
    /// The image, for errors.
    pub(super) what: String,
    pub(super) login: Option<Login>,
    authorization: Option<Authorization>,
    /// Whether the one renewal has been used up.
    renewed: bool,
}

/// What a host is asked.
#[derive(Clone, Copy)]
pub(super) enum Question<'a> {
    /// The image by tag or digest; where it is known, all its bytes must have the digest.
    Image { named: &'a str, pinned: Option<SourceDigest> },
    /// The digest that a tag has now: an image's or an index's. Costs a HEAD, and a GET where it is not
    /// answered as the specification says.
    Digest { tag: &'a str },
}

pub(super) enum Answer {
    Image { manifest: SourceDigest, index: Option<SourceDigest>, image: Image },
    Digest(SourceDigest),
}

impl Repository {
    pub(super) fn new(
        shared: Arc<Shared>,
        endpoint: &Arc<Endpoint>,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<Self, FetchError> {
        let what = format!("oci://{}", reference.whole());
        let (base, name) =
            endpoint.repository(reference.repository()).ok_or_else(|| FetchError::Unsupported {
                what: what.clone(),
                reason: "its registry is not a valid host".to_owned(),
            })?;
        let peer = Peer::new(&base, endpoint.access.clone());
        Ok(Self {
            session: Session::new(shared.client.clone(), peer),
            authorization: shared.tokens.kept(&base, &name, login),
            endpoint: endpoint.clone(),
            login: login.cloned(),
            renewed: false,
            shared,
            base,
            name,
            what,
        })
    }

    pub(super) async fn answer(
        &mut self,
        question: Question<'_>,
        deadline: Instant,
    ) -> Result<Answer, FetchError> {
        match question {
            Question::Digest { tag } => Ok(Answer::Digest(match self.head(tag, deadline).await? {
                Some(digest) => digest,
                None => self.manifest(tag, None, None, deadline).await?.0,
            })),
            Question::Image { named, pinned } => {
                let (digest, read) = self.manifest(named, pinned, None, deadline).await?;
                Ok(match read {
                    Manifest::Image(image) => Answer::Image { manifest: digest, index: None, image },
                    Manifest::Index(index) => {
                        let child = index.choose(architecture()).map_err(|refusal| self.refused(refusal))?;
                        let manifest = child.digest;
                        let image = self.child(child, deadline).await?;
                        Answer::Image { manifest, index: Some(digest), image }
                    }
                })
            }
        }
    }

    /// As it is now, with connections of its own.
    pub(super) fn again(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            session: self.session.again(),
            endpoint: self.endpoint.clone(),
            base: self.base.clone(),
            name: self.name.clone(),
            what: self.what.clone(),
            login: self.login.clone(),
            authorization: self.authorization.clone(),
            renewed: self.renewed,
        }
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

    /// Whether the layer is there for this login. `false` where the registry has no answer to that.
    pub(super) async fn shows(&mut self, layer: &Layer, deadline: Instant) -> Result<bool, FetchError> {
        // A mirror that knows no credentials shows nothing of what one may read.
        if self.endpoint.namespace.is_some() && !self.endpoint.credentials {
            return Ok(false);
        }
        let (path, what) = (format!("blobs/{}", layer.digest), self.layer_name(layer));
        match self.send(Method::HEAD, &path, &what, HeaderMap::new(), deadline).await {
            Ok(_) => Ok(true),
            Err(
                FetchError::Status { status: StatusCode::METHOD_NOT_ALLOWED, .. }
                | FetchError::Unavailable { status: StatusCode::NOT_IMPLEMENTED, .. },
            ) => Ok(false),
            Err(error) => Err(error),
        }
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
        // One that has run out by itself does not use up the one renewal.
        let now = self.shared.clock.now();
        if self.authorization.as_ref().and_then(|sent| sent.until).is_some_and(|until| until <= now) {
            self.authorization = self.shared.tokens.kept(&self.base, &self.name, self.login.as_ref());
        }
        let mut url = self
            .base
            .join(path)
            .map_err(|_| self.refused(Refusal::Invalid("it cannot be written as a URL".to_owned())))?;
        if let Some(namespace) = &self.endpoint.namespace {
            // As containerd tells a mirror whose image is meant.
            url.query_pairs_mut().append_pair("ns", namespace);
        }
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

    pub(super) fn refused(&self, refusal: Refusal) -> FetchError {
        layers::refused(&self.what, self.without_secrets(refusal))
    }

    /// The same, unless the registry has put into it what it was shown: media types are a stranger's words.
    pub(super) fn without_secrets(&self, refusal: Refusal) -> Refusal {
        let (Refusal::Invalid(reason) | Refusal::Unsupported(reason)) = &refusal;
        let sent = self.authorization.as_ref().and_then(|sent| sent.header.to_str().ok());
        // What follows the scheme.
        let sent = sent.and_then(|header| header.split_once(' ')).map(|(_, value)| value);
        let is_repeated = self.login.as_ref().is_some_and(|login| login.is_in(reason))
            || sent.is_some_and(|sent| is_repeated(reason, &[sent]));
        let hidden = || "what its registry says of it repeats the credential, and is not shown".to_owned();
        match refusal {
            Refusal::Invalid(_) if is_repeated => Refusal::Invalid(hidden()),
            Refusal::Unsupported(_) if is_repeated => Refusal::Unsupported(hidden()),
            refusal => refusal,
        }
    }

    pub(super) fn layer_name(&self, layer: &Layer) -> String {
        layers::name(&self.what, layer)
    }
}

/// What a request for a manifest says that it takes.
fn accept() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT))])
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
