//! Tenants share downloads, not access: a module that the store has for others is linked into the view of
//! whoever asks once the registry has shown, to their own credential, the manifest and the layer in that
//! repository. What was shown is remembered for a while, in which nobody is asked again; and where the
//! registry does not answer, an older proof may do.
//!
//! Only the bytes are shared. Questions, flights, claims and failures stay those of one credential.

use std::sync::Arc;
use std::time::Duration;

use oci_client::Reference;

use super::{Asked, Inner, Outcome, ResolveError, is_expected, manifest_is_expected};
use crate::digest::{PayloadDigest, SourceDigest};
use crate::fetch::{FetchError, Located};
use crate::metrics::result;
use crate::module::{Module, ModuleRequest, ModuleUrl, PullPolicy, Validators};
use crate::store::{Proof, Stored};
use crate::wasm::Packaging;

/// What a registry shows to whoever may have a module, as it is called in proofs.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    repository: String,
    /// The reference that was asked for, the index where there is one, and the manifest.
    names: Vec<String>,
    /// Said of the repository too, since of a layer that another registry claims to have nothing is known.
    layer: String,
    source: SourceDigest,
    /// What is expected was found in a manifest.
    is_expected: bool,
}

impl Shown {
    /// None where there is no registry.
    pub(super) fn of(request: &ModuleRequest, located: &Located) -> Option<Self> {
        let ModuleUrl::Oci(reference) = &request.url else { return None };
        let (repository, source) = (repository(reference), located.source()?);
        let (digest, packaging) = located.layer()?;
        let packed = match packaging {
            Packaging::Raw => "raw",
            Packaging::Layer => "layer",
            Packaging::Sniff => "sniff",
        };
        let mut names = vec![name(reference), format!("@{source}")];
        names.extend(located.index().map(|index| format!("@{index}")));
        names.sort();
        names.dedup();
        Some(Self {
            layer: format!("{repository} {packed} {digest}"),
            repository,
            names,
            source,
            is_expected: manifest_is_expected(request, located),
        })
    }
}

/// `HOST/NAME`: what a proof is of, together with a name in it.
fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// What a reference names in its repository.
fn name(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => format!("@{digest}"),
        None => format!(":{}", reference.tag().unwrap_or("latest")),
    }
}

impl Inner {
    /// The module that a digest stands for, where this credential has shown not long ago that it may have it.
    pub(super) async fn proven(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
    ) -> Result<Option<Module>, Arc<ResolveError>> {
        let is_pinned = matches!(&asked.request.url, ModuleUrl::Oci(image) if image.digest().is_some());
        if !is_pinned {
            return Ok(None);
        }
        Ok(self.blocking(asked, |inner, asked| inner.share_proven(asked, false)).await?)
    }

    /// For a manifest that was not to be had: what this credential was given before, where it is the registry
    /// that fails, and what is expected of it does not change with time.
    pub(super) async fn unless_seen(self: &Arc<Self>, asked: &Arc<Asked>, error: ResolveError) -> Outcome {
        if !is_outage(&error) {
            return Err(Arc::new(error));
        }
        match self.blocking(asked, |inner, asked| inner.share_proven(asked, true)).await {
            Ok(Some(module)) => {
                tracing::warn!(url = %asked.request.url, "given without a new look at it: {error}");
                Ok(module)
            }
            Ok(None) | Err(_) => Err(Arc::new(error)),
        }
    }

    fn share_proven(&self, asked: &Asked, is_down: bool) -> Result<Option<Module>, ResolveError> {
        let request = &asked.request;
        // Who wants to be sure each time is not sure with this.
        let (ModuleUrl::Oci(image), PullPolicy::IfNotPresent) = (&request.url, request.policy) else {
            return Ok(None);
        };
        let proof = self.store.proof(&asked.audience, &repository(image), &name(image));
        let Some(proof) = proof.map_err(|source| asked.store_error(source))? else { return Ok(None) };
        let (payload, source) = (proof.payload, proof.source);
        if !is_expected(request.expected.as_ref(), &payload, &source) {
            return Ok(None);
        }
        let ground = match proof.is_fresh {
            true => "remembered",
            false if !is_down => return Ok(None),
            false if asked.config.allow_if_seen => "seen",
            false => {
                self.count_sharing("unanswered");
                return Ok(None);
            }
        };
        let module = self.link(asked, payload, source)?;
        if module.is_some() {
            self.count_sharing(ground);
        }
        Ok(module)
    }

    /// What the manifest leads to, from another's view: once the registry has shown that this credential may
    /// read the layer, too. Whatever it says otherwise, the download is to say.
    pub(super) async fn from_another_view(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        located: &mut Located,
        deadline: std::time::Instant,
    ) -> Result<Option<Module>, ResolveError> {
        let Some(shown) = Shown::of(&asked.request, located) else { return Ok(None) };
        let its = shown.clone();
        let look = move |inner: &Inner, asked: &Asked| inner.look_for_layer(asked, &its);
        let Some((payload, proof)) = self.blocking(asked, look).await? else { return Ok(None) };
        let (ground, ago) = match proof {
            Some(proof) if proof.is_fresh => ("remembered", Some(proof.ago)),
            proof => match asked.config.fetcher.shows_layer(located, deadline).await {
                Ok(true) => ("asked", Some(Duration::ZERO)),
                // It has no answer to that question.
                Ok(false) => return Ok(None),
                Err(error) if error.is_outage() && proof.is_some() && asked.config.allow_if_seen => {
                    tracing::warn!(url = %asked.request.url, "given without a new look at the layer: {error}");
                    ("seen", None)
                }
                Err(error) => {
                    self.count_sharing(if error.is_refusal() { "refused" } else { "unanswered" });
                    tracing::debug!(url = %asked.request.url, "the store has it, for others: {error}");
                    self.refused(asked, error).await;
                    return Ok(None);
                }
            },
        };
        let share = move |inner: &Inner, asked: &Asked| {
            let module = inner.link(asked, payload, shown.source)?;
            if module.is_some() {
                inner.count_sharing(ground);
                if let Some(ago) = ago {
                    inner.prove(asked, &shown, &payload, ago);
                }
            }
            Ok(module)
        };
        self.blocking(asked, share).await
    }

    /// The payload of a layer where the store has it for anybody, and what this credential has shown.
    fn look_for_layer(
        &self,
        asked: &Asked,
        shown: &Shown,
    ) -> Result<Option<(PayloadDigest, Option<Proof>)>, ResolveError> {
        let failed = |source| asked.store_error(source);
        let payload = self.store.payload_of_layer(&shown.layer).map_err(failed)?;
        let payload = payload.filter(|payload| {
            shown.is_expected || is_expected(asked.request.expected.as_ref(), payload, &shown.source)
        });
        let Some(payload) = payload else { return Ok(None) };
        let proof = self.store.proof(&asked.audience, &shown.repository, &shown.layer).map_err(failed)?;
        Ok(Some((payload, proof.filter(|proof| proof.payload == payload))))
    }

    fn link(
        &self,
        asked: &Asked,
        payload: PayloadDigest,
        source: SourceDigest,
    ) -> Result<Option<Module>, ResolveError> {
        let records = |size| self.prepare_records(asked, payload, source, size, Validators::default());
        let stored = self.store.share(&asked.audience, &payload, records);
        let stored = stored.map_err(|source| asked.store_error(source))?;
        Ok(stored.map(|Stored { path, payload, size }| Module { path, payload, source, size, cached: true }))
    }

    /// Remembers what this credential has just had from the registry. A layer that held the module holds it
    /// in any image that ends with that layer; one that did not says nothing of what is below.
    pub(super) fn remember_shown(
        &self,
        asked: &Asked,
        shown: &Shown,
        payload: &PayloadDigest,
        in_layer: bool,
    ) {
        if in_layer && let Err(error) = self.store.remember_layer(&shown.layer, payload) {
            tracing::debug!(url = %asked.request.url, "cannot write down what the layer holds: {error}");
        }
        self.prove(asked, shown, payload, Duration::ZERO);
    }

    /// No name is proven for longer than the layer that it leads to.
    fn prove(&self, asked: &Asked, shown: &Shown, payload: &PayloadDigest, ago: Duration) {
        for name in shown.names.iter().chain([&shown.layer]) {
            let led_to = (payload, &shown.source);
            if let Err(error) = self.store.prove(&asked.audience, &shown.repository, name, led_to, ago) {
                tracing::debug!(url = %asked.request.url, "cannot write down what was shown: {error}");
            }
        }
    }

    /// What a failed question to the source means. Where it refuses this credential, what it has shown in
    /// that repository is over.
    pub(super) async fn refused(self: &Arc<Self>, asked: &Arc<Asked>, error: FetchError) -> ResolveError {
        if error.is_refusal()
            && let ModuleUrl::Oci(image) = &asked.request.url
        {
            let repository = repository(image);
            let end = move |inner: &Inner, asked: &Asked| {
                if let Err(error) = inner.store.end_proofs(&asked.audience, &repository) {
                    tracing::warn!(url = %asked.request.url, "a refused credential may still count: {error}");
                }
                Ok(())
            };
            // It fails where the agent ends.
            let _ = self.blocking(asked, end).await;
        }
        asked.fetch_error(error)
    }

    fn count_sharing(&self, ground: &'static str) {
        self.metrics.shared_modules.get_or_create(&result(ground)).inc();
    }
}

fn is_outage(error: &ResolveError) -> bool {
    matches!(error, ResolveError::Fetch { source, .. } if source.is_outage())
}
