//! The other hosts that an image's layers can be had from, where one fails.

use std::collections::VecDeque;
use std::sync::Arc;

use oci_client::Reference;

use super::Shared;
use super::credential::Login;
use super::error::FetchError;
use super::hosts::{Doubt, Endpoint};
use super::manifest::Layer;
use super::repository::Repository;
use crate::causes::with_causes;
use crate::digest::BlobDigest;

/// A host, and as whom it is asked.
pub(super) type Way = (Arc<Endpoint>, Option<Login>);

/// The other hosts that a layer can be had from.
pub(super) struct Others {
    shared: Arc<Shared>,
    reference: Reference,
    /// Of any layer.
    all: Vec<Way>,
    /// For this layer.
    left: VecDeque<Way>,
    /// Those that were asked for this layer, and may have it a little later.
    failed: VecDeque<Way>,
    doubt: Arc<Doubt>,
    layer: BlobDigest,
}

impl Others {
    /// `ways` are those besides the one who gave the manifest, which comes last. They are asked once a layer
    /// has [begun](Others::begin).
    pub(super) fn new(
        shared: &Arc<Shared>,
        reference: &Reference,
        ways: Vec<Way>,
        giver: &Repository,
        top: &Layer,
    ) -> Self {
        let giver = (giver.endpoint.clone(), giver.login.clone());
        Self::of(shared, reference, ways.into_iter().chain([giver]).collect(), top.digest)
    }

    fn of(shared: &Arc<Shared>, reference: &Reference, all: Vec<Way>, layer: BlobDigest) -> Self {
        Self {
            shared: shared.clone(),
            reference: reference.clone(),
            all,
            left: VecDeque::new(),
            failed: VecDeque::new(),
            doubt: Arc::new(Doubt::new(shared.doubts.clone(), layer)),
            layer,
        }
    }

    /// Of the layer that is asked for.
    pub(super) fn doubt(&self) -> Arc<Doubt> {
        self.doubt.clone()
    }

    /// Goes on to this layer, of which nobody is asked yet, and `current` is to be first.
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

    /// The same once more, for another fetch.
    pub(super) fn again(&self) -> Self {
        Self::of(&self.shared, &self.reference, self.all.clone(), self.layer)
    }
}
