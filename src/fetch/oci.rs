//! Pulls from a registry (OCI distribution specification 1.1): the manifest, chosen and checked, then
//! the layer that holds the module.

use std::collections::VecDeque;
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
use super::credential::{Credential, Login};
use super::download::{Download, Origin};
use super::error::{FetchError, RegistryCode};
use super::hosts::{self, Doubt, Endpoint};
use super::http::{Peer, Request, Response, Session};
use super::layers::{self, Below};
use super::manifest::{self, Child, Image, Layer, Layers, Manifest, Refusal};
use super::realm;
use super::retry::Tries;
use crate::causes::with_causes;
use crate::digest::{BlobDigest, SourceDigest};

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
    others: Others,
}

/// One repository as one login sees it, for the length of one fetch.
pub(super) struct Repository {
    shared: Arc<Shared>,
    session: Session,
    endpoint: Arc<Endpoint>,
    /// `https://HOST/v2/NAME/`
    base: Url,
    /// As this host knows it.
    name: String,
    /// The image, for errors.
    what: String,
    login: Option<Login>,
    authorization: Option<Authorization>,
    /// Whether the one renewal has been used up.
    renewed: bool,
}

/// What a host is asked.
#[derive(Clone, Copy)]
enum Question<'a> {
    /// The image by tag or digest; where it is known, all its bytes must have the digest.
    Image { named: &'a str, pinned: Option<SourceDigest> },
    /// The digest that a tag has now: an image's or an index's. Costs a HEAD, and a GET where it is not
    /// answered as the specification says.
    Digest { tag: &'a str },
}

enum Answer {
    Image { manifest: SourceDigest, index: Option<SourceDigest>, image: Image },
    Digest(SourceDigest),
}

/// Who wants which image from whom.
struct Asking<'a> {
    shared: &'a Arc<Shared>,
    reference: &'a Reference,
    logins: &'a [Login],
    deadline: Instant,
}

/// Fetches and checks the manifest, and picks the layer.
pub(super) async fn locate(
    shared: &Arc<Shared>,
    reference: &Reference,
    credential: &Credential,
    deadline: Instant,
) -> Result<Found, FetchError> {
    let asking = Asking { shared, reference, logins: credential.logins()?, deadline };
    let hosts = asking.hosts().await?;
    let pinned = match reference.digest().map(str::parse::<SourceDigest>) {
        None => None,
        Some(Ok(digest)) => Some(digest),
        Some(Err(error)) => return Err(asking.unsupported(error.to_string())),
    };
    // Who may only be asked by digest and comes first, gets the digest of one who may say what a tag is.
    let pinned = match (pinned, hosts.first()) {
        (None, Some(first)) if !first.resolve => Some(asking.tag_digest(&hosts).await?),
        (pinned, _) => pinned,
    };
    let by_digest = pinned.map(|digest| digest.to_string());
    let named = by_digest.as_deref().unwrap_or_else(|| asking.tag());
    let question = Question::Image { named, pinned };
    let (answer, repository) = match pinned {
        Some(_) => asking.ask_each(&hosts, question).await?,
        None => asking.ask_each(&resolving(&hosts), question).await?,
    };
    let Answer::Image { manifest, index, image } = answer else { return Err(FetchError::Interrupted) };
    let layers = image.layers().map_err(|refusal| repository.refused(refusal))?;
    layers::check_size(shared, &layers.top, &repository.what)?;
    let others = asking.others(&hosts, &repository, &layers.top);
    Ok(Found { manifest, index, layers, repository, others })
}

/// The digest that a tag has now: an image's or an index's.
pub(super) async fn tag_digest(
    shared: &Arc<Shared>,
    reference: &Reference,
    credential: &Credential,
    deadline: Instant,
) -> Result<SourceDigest, FetchError> {
    let asking = Asking { shared, reference, logins: credential.logins()?, deadline };
    let hosts = asking.hosts().await?;
    asking.tag_digest(&hosts).await
}

impl Asking<'_> {
    async fn hosts(&self) -> Result<Vec<Arc<Endpoint>>, FetchError> {
        let config = &self.shared.config;
        hosts::endpoints(&config.registries, &config.containerd_hosts, self.reference.registry()).await
    }

    fn tag(&self) -> &str {
        self.reference.tag().unwrap_or("latest")
    }

    fn unsupported(&self, reason: String) -> FetchError {
        FetchError::Unsupported { what: format!("oci://{}", self.reference.whole()), reason }
    }

    fn logins(&self, host: &Endpoint) -> &[Login] {
        if host.credentials { self.logins } else { &[] }
    }

    async fn tag_digest(&self, hosts: &[Arc<Endpoint>]) -> Result<SourceDigest, FetchError> {
        let question = Question::Digest { tag: self.tag() };
        match self.ask_each(&resolving(hosts), question).await? {
            (Answer::Digest(digest), _) => Ok(digest),
            (Answer::Image { .. }, _) => Err(FetchError::Interrupted),
        }
    }

    /// Asks one host after the other until one has an answer. Where none has, the last one's reason
    /// counts, which is the registry's own: if that may pass, those of whom this is true are asked again.
    async fn ask_each(
        &self,
        hosts: &[Arc<Endpoint>],
        question: Question<'_>,
    ) -> Result<(Answer, Repository), FetchError> {
        let mut tries = Tries::new(self.shared, self.deadline);
        let mut hosts = hosts.to_vec();
        loop {
            let mut failed = Vec::new();
            let mut reason = self.unsupported("no host may be asked for it".to_owned());
            let mut left = hosts.len();
            for host in hosts {
                left -= 1;
                reason = match self.ask(&host, question).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                if left > 0 && self.shared.clock.now() < self.deadline {
                    told(self.reference, &host.host(), &reason);
                }
                if reason.may_pass_soon() {
                    failed.push(host);
                }
                if self.shared.clock.now() >= self.deadline {
                    break;
                }
            }
            if !tries.again(self.shared, &reason).await {
                return Err(reason);
            }
            hosts = failed;
        }
    }

    /// Asks one host, with each login that is let in nowhere before.
    async fn ask(
        &self,
        host: &Arc<Endpoint>,
        question: Question<'_>,
    ) -> Result<(Answer, Repository), FetchError> {
        let (logins, mut next) = (self.logins(host), 0);
        loop {
            let mut repository =
                Repository::new(self.shared.clone(), host, self.reference, logins.get(next))?;
            match repository.answer(question, self.deadline).await {
                Ok(answer) => return Ok((answer, repository)),
                Err(error) if error.refuses_the_credential() && next + 1 < logins.len() => next += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whom to ask for the layers besides the one who gave the manifest: those behind it first.
    fn others(&self, hosts: &[Arc<Endpoint>], giver: &Repository, top: &Layer) -> Others {
        let at = hosts.iter().position(|host| Arc::ptr_eq(host, &giver.endpoint)).unwrap_or(0);
        let (before, behind) = (hosts.iter().take(at), hosts.iter().skip(at + 1));
        let ways = behind.chain(before).flat_map(|host| {
            let logins = self.logins(host).iter().cloned().map(Some);
            let anonymous = self.logins(host).is_empty().then_some(None);
            logins.chain(anonymous).map(move |login| (host.clone(), login))
        });
        let ways: Vec<_> = ways.collect();
        Others {
            shared: self.shared.clone(),
            reference: self.reference.clone(),
            left: ways.iter().cloned().collect(),
            failed: VecDeque::new(),
            all: ways.into_iter().chain([(giver.endpoint.clone(), giver.login.clone())]).collect(),
            doubt: Arc::new(Doubt::new(self.shared.doubts.clone(), top.digest)),
            layer: top.digest,
        }
    }
}

/// Those that may be asked what a tag is.
fn resolving(hosts: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    hosts.iter().filter(|host| host.resolve).cloned().collect()
}

/// A host that fails is only seen where all do, and here.
fn told(reference: &Reference, host: &str, error: &FetchError) {
    tracing::info!(image = %reference, host, "the next host is asked: {}", with_causes(error));
}

/// A host, and as whom it is asked.
type Way = (Arc<Endpoint>, Option<Login>);

/// The other hosts that a layer can be had from.
pub(super) struct Others {
    shared: Arc<Shared>,
    reference: Reference,
    /// For any layer, the one who gave the manifest last.
    all: Vec<Way>,
    /// For this layer.
    left: VecDeque<Way>,
    /// Those that were asked for this layer, and may have it a little later.
    failed: VecDeque<Way>,
    doubt: Arc<Doubt>,
    layer: BlobDigest,
}

impl Others {
    /// Goes on to another layer, of which nobody but `current` is asked yet.
    pub(super) fn begin(&mut self, current: &mut Repository, layer: &Layer) {
        let is_other = |way: &&Way| !Arc::ptr_eq(&way.0, &current.endpoint);
        self.left = self.all.iter().filter(is_other).cloned().collect();
        self.failed.clear();
        self.layer = layer.digest;
        self.doubt.begin(layer.digest);
        self.avoid_doubts(current);
    }

    /// Who gave this layer wrong not long ago is passed over, as long as there is another.
    fn avoid_doubts(&mut self, current: &mut Repository) {
        let known = FetchError::Changed { what: current.what.clone() };
        if self.shared.doubts.holds(&current.endpoint, &self.layer)
            && let Some(next) = self.next(current, &known)
        {
            *current = next;
        } else {
            self.asks(current);
        }
    }

    /// The next one after `asked`, which has failed.
    pub(super) fn next(&mut self, asked: &Repository, because: &FetchError) -> Option<Repository> {
        if because.may_pass_soon() {
            self.failed.push_back((asked.endpoint.clone(), asked.login.clone()));
        }
        self.untried(because)
    }

    /// The first of those that may have it by now.
    pub(super) fn anew(&mut self, because: &FetchError) -> Option<Repository> {
        self.left = std::mem::take(&mut self.failed);
        self.untried(because)
    }

    fn untried(&mut self, because: &FetchError) -> Option<Repository> {
        while let Some((host, login)) = self.left.pop_front() {
            if self.shared.doubts.holds(&host, &self.layer) && !self.left.is_empty() {
                continue;
            }
            // What holds of the deadline holds of all.
            if matches!(because, FetchError::Timeout { during: "reading from", .. }) {
                return None;
            }
            tracing::info!(
                image = %self.reference, host = host.host(),
                "the layer is asked of the next host: {}", with_causes(because)
            );
            let next = Repository::new(self.shared.clone(), &host, &self.reference, login.as_ref()).ok()?;
            self.asks(&next);
            return Some(next);
        }
        None
    }

    fn asks(&self, repository: &Repository) {
        self.doubt.asks(&repository.endpoint, self.left.len());
    }

    fn again(&self) -> Self {
        Others {
            shared: self.shared.clone(),
            reference: self.reference.clone(),
            all: self.all.clone(),
            left: self.left.clone(),
            failed: self.failed.clone(),
            doubt: Arc::new(Doubt::new(self.shared.doubts.clone(), self.layer)),
            layer: self.layer,
        }
    }
}

impl Found {
    /// Begins to fetch what follows the first `from` bytes of the layer.
    pub(super) async fn open(self, from: u64, deadline: Instant) -> Result<Body, FetchError> {
        let Found { manifest, layers, mut repository, mut others, .. } = self;
        let top = layers.top;
        let (shared, image) = (repository.shared.clone(), repository.what.clone());
        let promise = Promise::Blob { digest: top.digest, size: top.size, manifest };
        others.avoid_doubts(&mut repository);
        let doubt = others.doubt.clone();
        let mut origin = Origin::Layer { repository: Box::new(repository), layer: top, others };
        let part = origin.part(from, Some(top.size), deadline).await?;
        let download = Download::new(origin, part, from, Some(top.size), deadline);
        let what = layers::name(&image, &top);
        let body = Body::network(what, top.packaging, promise, download, shared.clock.clone());
        let body = body.above(Below::new(&shared, image, layers));
        // What was there before the first byte may be what is wrong.
        Ok(if from == 0 { body.with_doubt(doubt) } else { body })
    }

    /// Asks whether the topmost layer is there for this login. `false` where the registry has no answer to
    /// that.
    pub(super) async fn shows_layer(&mut self, deadline: Instant) -> Result<bool, FetchError> {
        let Found { layers, repository, .. } = self;
        // A mirror that knows no credentials shows nothing of what one may read.
        if repository.endpoint.namespace.is_some() && !repository.endpoint.credentials {
            return Ok(false);
        }
        let (path, what) = (format!("blobs/{}", layers.top.digest), repository.layer_name(&layers.top));
        match repository.send(Method::HEAD, &path, &what, HeaderMap::new(), deadline).await {
            Ok(_) => Ok(true),
            Err(
                FetchError::Status { status: StatusCode::METHOD_NOT_ALLOWED, .. }
                | FetchError::Unavailable { status: StatusCode::NOT_IMPLEMENTED, .. },
            ) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The same once more, for another fetch of the layer.
    pub(super) fn again(&self) -> Found {
        let Found { manifest, index, layers, repository, others } = self;
        let (repository, others) = (repository.again(), others.again());
        Found { manifest: *manifest, index: *index, layers: layers.clone(), repository, others }
    }
}

impl Repository {
    fn new(
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

    async fn answer(&mut self, question: Question<'_>, deadline: Instant) -> Result<Answer, FetchError> {
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
    fn again(&self) -> Self {
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
