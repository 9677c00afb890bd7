//! Pulls of an image from whom its registry's configuration names: the manifest, chosen and checked, then
//! the layer that holds the module.

use std::sync::Arc;
use std::time::Instant;

use oci_client::Reference;

use super::Shared;
use super::body::{Body, Promise};
use super::credential::{Credential, Login};
use super::download::{Download, Origin};
use super::error::FetchError;
use super::hosts::{self, Endpoint};
use super::layers::{self, Below};
use super::manifest::{Layer, Layers};
use super::others::Others;
use super::repository::{Answer, Question, Repository};
use super::retry::Tries;
use crate::causes::with_causes;
use crate::digest::SourceDigest;

/// A module's layers, found.
pub(super) struct Found {
    pub(super) manifest: SourceDigest,
    /// The index that led to the manifest.
    pub(super) index: Option<SourceDigest>,
    pub(super) layers: Layers,
    repository: Repository,
    others: Others,
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
    let Layers { top, below } = image.layers().map_err(|refusal| repository.refused(refusal))?;
    let below = below.into_iter().map(|layer| layer.map_err(|refusal| repository.without_secrets(refusal)));
    let layers = Layers { top, below: below.collect() };
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
        Others::new(self.shared, self.reference, ways.collect(), giver, top)
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

impl Found {
    /// Begins to fetch what follows the first `from` bytes of the layer.
    pub(super) async fn open(self, from: u64, deadline: Instant) -> Result<Body, FetchError> {
        let Found { manifest, layers, mut repository, mut others, .. } = self;
        let top = layers.top;
        let (shared, image) = (repository.shared.clone(), repository.what.clone());
        let promise = Promise::Blob { digest: top.digest, size: top.size, manifest };
        others.begin(&mut repository, &top);
        let doubt = others.doubt();
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
        self.repository.shows(&self.layers.top, deadline).await
    }

    /// The same once more, for another fetch of the layer.
    pub(super) fn again(&self) -> Found {
        let Found { manifest, index, layers, repository, others } = self;
        let (repository, others) = (repository.again(), others.again());
        Found { manifest: *manifest, index: *index, layers: layers.clone(), repository, others }
    }
}
