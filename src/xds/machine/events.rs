//! What goes into the machine and what comes out of it.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::slot::{Hash, Offer, hash};
use crate::digest::SourceDigest;
use crate::module::ModuleRequest;
use crate::resolve::ResolveError;

/// What Envoy says about one intercepted type.
#[derive(Debug, Clone, Default)]
pub struct EnvoyRequest {
    /// The nonce of the response that this answers; empty where it answers none.
    pub nonce: String,
    /// Why Envoy rejected that response.
    pub error: Option<String>,
    pub names: Names,
    /// State of the world, first request of a stream: Envoy has a version from an earlier one.
    pub resumes: bool,
}

/// What a request says about the subscription.
#[derive(Debug, Clone)]
pub enum Names {
    /// State of the world: all of it.
    All(BTreeSet<String>),
    /// Delta: what changes; `held` are the names in `initial_resource_versions`.
    Change { subscribe: BTreeSet<String>, unsubscribe: BTreeSet<String>, held: BTreeSet<String> },
}

impl Default for Names {
    fn default() -> Self {
        Names::All(BTreeSet::new())
    }
}

/// What the control plane says about one intercepted type.
#[derive(Debug, Default)]
pub struct ControlResponse {
    pub version: String,
    pub nonce: String,
    pub offers: Vec<Offer>,
    /// Resources that could not be read: name (where that much could be read) and reason.
    pub malformed: Vec<(String, String)>,
    pub removed: Vec<String>,
}

impl ControlResponse {
    /// Identifies what it says, whatever its version and nonce.
    pub fn content(&self) -> Hash {
        let offers = self.offers.iter().flat_map(|offer| [offer.name.as_bytes(), offer.source.as_slice()]);
        let malformed = self.malformed.iter().flat_map(|(name, reason)| [name.as_bytes(), reason.as_bytes()]);
        let counts = [self.offers.len(), self.malformed.len()].map(usize::to_be_bytes);
        let counts = counts.iter().map(<[u8; 8]>::as_slice);
        let removed = self.removed.iter().map(String::as_bytes);
        hash(&counts.chain(offers).chain(malformed).chain(removed).collect::<Vec<_>>())
    }
}

/// How a fetch ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One line, without secrets.
    pub message: String,
    /// The reason's label for metrics.
    pub label: &'static str,
    /// Trying again soon is no use.
    pub permanent: bool,
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// What went wrong with a fetch.
    pub fn of(error: &ResolveError) -> Self {
        Self {
            message: error.to_string(),
            label: error.label(),
            permanent: error.is_permanent(),
            retry_after: error.retry_after(),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this to Envoy.
    Respond(EnvoyResponse),
    /// Send this to the control plane.
    Request(ControlRequest),
    /// Get this module and come back with [`Machine::fetched`].
    Fetch { name: String, generation: u64, request: Box<ModuleRequest> },
    /// Look whether the tag of this request still leads to this manifest, and come back with
    /// [`Machine::refreshed`](super::Machine::refreshed).
    Refresh { name: String, generation: u64, request: Box<ModuleRequest>, known: SourceDigest },
    /// Worth a line in the log, and a count.
    Note(Note),
}

/// What operators want to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A module could not be had.
    FetchFailed { name: String, failure: Failure, retry_in: Option<Duration>, serving: Serving },
    /// A module that had failed is there.
    Recovered { name: String },
    /// Envoy now runs the resource's failure policy.
    FallbackSent { name: String },
    /// The resource's TTL has passed.
    Expired { name: String },
    /// Envoy rejected these resources.
    Rejected { names: Vec<String>, reason: String },
    /// The control plane sent something that cannot be read.
    Malformed { name: String, reason: String },
}

/// What Envoy runs for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    Nothing,
    Fallback,
    /// The newest config.
    Current,
    /// The last config that worked; a newer one is not ready or was rejected.
    LastGood,
}

/// A response to Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvoyResponse {
    pub version: String,
    pub nonce: String,
    /// State of the world: Any messages. Delta: Resource messages.
    pub resources: Vec<Bytes>,
    pub removed: Vec<String>,
}

/// A request to the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlRequest {
    pub version: String,
    pub nonce: String,
    /// State of the world: the whole subscription.
    pub names: Vec<String>,
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    /// Delta: names that Envoy holds, sent with an empty version.
    pub initial: Vec<String>,
    pub error: Option<String>,
}
