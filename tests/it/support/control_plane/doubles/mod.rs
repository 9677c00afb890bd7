//! Doubles of two control planes that people run, each with the quirks of the real one.
//!
//! - [`go_control_plane`]: the snapshot cache and its server.
//! - [`istiod`]: its discovery server.
//!
//! What both share is here: what they offer, the streams, and a record of all that was said on them.
//! Every request is held to the protocol ([`Ledger`]) and to what an agent promises besides
//! ([`rules`]).

pub mod go_control_plane;
pub mod istiod;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use self::rules::Rules;
use super::ledger::{Event, Ledger};
use super::{Accepted, ControlPlane, Ended, Protocol};
use crate::support::envoy::Xds;
use crate::support::{eventually, resources};

/// Which control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    GoControlPlane,
    Istiod,
}

impl Kind {
    pub const BOTH: [Kind; 2] = [Kind::GoControlPlane, Kind::Istiod];
}

/// Serves in the background until it is dropped.
pub struct Double {
    address: Xds,
    state: watch::Sender<State>,
    /// How often all streams have been closed.
    closings: Arc<watch::Sender<u64>>,
    record: Arc<Mutex<Record>>,
    // Abort their tasks on drop.
    _server: JoinSet<()>,
    closer: Mutex<JoinSet<()>>,
}

/// All that is offered.
#[derive(Debug, Clone, Default)]
struct State {
    /// Counts the changes.
    version: u64,
    types: BTreeMap<String, Offered>,
}

/// What is offered of one type.
#[derive(Debug, Clone, Default)]
struct Offered {
    /// The last change of this type.
    version: u64,
    resources: BTreeMap<String, Offer>,
}

#[derive(Debug, Clone)]
struct Offer {
    /// The change since which it has these bytes.
    revision: u64,
    resource: Any,
}

/// What was said on a stream.
#[derive(Debug, Clone)]
pub enum Said {
    Opened,
    Request(Event),
    Response(Response),
    Ended,
}

#[derive(Debug, Default)]
struct Record {
    streams: usize,
    said: Vec<(usize, Said)>,
    broken: Option<String>,
}

/// A request of either variant.
#[derive(Debug, Default)]
struct Request {
    nonce: String,
    is_nack: bool,
    /// State of the world.
    version: String,
    names: BTreeSet<String>,
    /// Delta.
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    initial: BTreeMap<String, String>,
}

/// A response of either variant.
#[derive(Debug, Clone, Default)]
pub struct Response {
    pub type_url: String,
    pub nonce: String,
    pub version: String,
    /// By name, with the version in Delta.
    pub resources: BTreeMap<String, (String, Any)>,
    /// Delta.
    pub removed: Vec<String>,
}

impl Response {
    /// Those of these names that are offered, each with a version that is made of its revision.
    fn of(offered: &Offered, names: impl Fn(&str) -> bool, version: impl Fn(&Offer) -> String) -> Response {
        let chosen = offered.resources.iter().filter(|(name, _)| names(name));
        let chosen =
            chosen.map(|(name, offer)| (name.clone(), (version(offer), offer.resource.clone()))).collect();
        Response { version: offered.version.to_string(), resources: chosen, ..Response::default() }
    }
}

/// One type on one stream: when a control plane says what.
trait Watch: Send {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response>;
    /// What is offered has changed, of this type or of another.
    fn changed(&mut self, offered: &Offered) -> Option<Response>;
    /// The last response went out with this nonce.
    fn sent(&mut self, nonce: &str);
}

fn watch_for(kind: Kind, protocol: Protocol, type_url: &str) -> Box<dyn Watch> {
    match (kind, protocol) {
        (Kind::GoControlPlane, Protocol::Sotw) => Box::new(go_control_plane::Sotw::default()),
        (Kind::GoControlPlane, Protocol::Delta) => Box::new(go_control_plane::Delta::default()),
        (Kind::Istiod, Protocol::Sotw) => Box::new(istiod::Sotw::new(is_wildcard(type_url))),
        (Kind::Istiod, Protocol::Delta) => Box::new(istiod::Delta::new(is_wildcard(type_url))),
    }
}

/// Whether all of a type is meant where no names are given.
fn is_wildcard(type_url: &str) -> bool {
    [resources::lds_type(), resources::cds_type()].iter().any(|wildcard| wildcard == type_url)
}

impl Double {
    pub async fn listen(kind: Kind, address: Xds) -> Double {
        let mut control_plane = ControlPlane::listen(address.clone()).await;
        let state = watch::Sender::new(State::default());
        let closings = Arc::new(watch::Sender::new(0));
        let record = Arc::<Mutex<Record>>::default();
        let mut server = JoinSet::new();
        server.spawn({
            let (state, closings, record) = (state.clone(), closings.clone(), record.clone());
            async move {
                let mut streams = JoinSet::new();
                while let Some(accepted) = control_plane.next().await {
                    let number = {
                        let mut record = lock(&record);
                        record.streams += 1;
                        record.streams
                    };
                    let stream = Stream {
                        kind,
                        accepted,
                        number,
                        ledger: Ledger::default(),
                        rules: Rules::default(),
                        watches: BTreeMap::new(),
                        nonces: 0,
                        record: record.clone(),
                    };
                    streams.spawn(stream.serve(state.subscribe(), closings.subscribe()));
                }
            }
        });
        Double { address, state, closings, record, _server: server, closer: Mutex::default() }
    }

    pub fn address(&self) -> &Xds {
        &self.address
    }

    /// Adds a resource, or replaces the one of its name.
    pub fn set(&self, resource: Any) {
        self.set_all([resource]);
    }

    /// Several in one version.
    pub fn set_all(&self, resources: impl IntoIterator<Item = Any>) {
        let named = resources.into_iter().map(|resource| (resources::name_of(&resource), resource));
        self.set_named(named.collect());
    }

    /// Each under a name that need not stand in it, nor need the bytes make sense.
    pub fn set_named(&self, resources: Vec<(String, Any)>) {
        self.state.send_modify(|state| {
            state.version += 1;
            for (name, resource) in resources {
                let offered = state.types.entry(resource.type_url.clone()).or_default();
                offered.version = state.version;
                let known = offered.resources.get(&name).filter(|known| known.resource == resource);
                let revision = known.map_or(state.version, |known| known.revision);
                offered.resources.insert(name, Offer { revision, resource });
            }
        });
    }

    /// Takes a resource away.
    pub fn remove(&self, type_url: &str, name: &str) {
        self.state.send_modify(|state| {
            state.version += 1;
            let offered = state.types.entry(type_url.to_owned()).or_default();
            offered.version = state.version;
            offered.resources.remove(name);
        });
    }

    /// Ends all streams. Who comes back is served.
    pub fn close_streams(&self) {
        self.closings.send_modify(|closings| *closings += 1);
    }

    /// Ends all streams again and again, each time after a pause that the seed chooses from `pauses`.
    pub fn close_at_random(&self, seed: u64, pauses: Range<Duration>) {
        let closings = self.closings.clone();
        let mut random = seed | 1;
        self.closer.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            loop {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let spread = pauses.end.saturating_sub(pauses.start);
                let pause = pauses.start + spread.mul_f64((random % 1000) as f64 / 1000.0);
                tokio::time::sleep(pause).await;
                closings.send_modify(|closings| *closings += 1);
            }
        });
    }

    /// From now on streams stay open.
    pub fn close_no_more(&self) {
        self.closer.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// All that was said so far, with the number of the stream, from 1.
    ///
    /// # Panics
    /// Where a client has broken a rule.
    pub fn said(&self) -> Vec<(usize, Said)> {
        let record = lock(&self.record);
        assert_eq!(record.broken, None, "a client broke a rule, after {:#?}", record.said);
        record.said.clone()
    }

    /// The requests for a type, with the number of the stream.
    pub fn requests(&self, type_url: &str) -> Vec<(usize, Event)> {
        let of_type = |(number, said)| match said {
            Said::Request(event) if event.type_url == type_url => Some((number, event)),
            _ => None,
        };
        self.said().into_iter().filter_map(of_type).collect()
    }

    /// The responses of a type, with the number of the stream.
    pub fn responses(&self, type_url: &str) -> Vec<(usize, Response)> {
        let of_type = |(number, said)| match said {
            Said::Response(response) if response.type_url == type_url => Some((number, response)),
            _ => None,
        };
        self.said().into_iter().filter_map(of_type).collect()
    }

    /// The messages of all NACKs for a type.
    pub fn nacks(&self, type_url: &str) -> Vec<String> {
        let requests = self.requests(type_url);
        requests.iter().filter_map(|(_, event)| event.nack().map(str::to_owned)).collect()
    }

    /// Waits until every response of a type that went out on the newest stream is answered, and as many
    /// at least have been sent in all.
    pub async fn settled(&self, type_url: &str, responses: usize) {
        let what = format!("{responses} responses of {type_url}, and answers to them");
        eventually(&what, async || {
            let sent = self.responses(type_url);
            let newest = self.said().iter().map(|(number, _)| *number).max()?;
            let of_newest = sent.iter().filter(|(number, _)| *number == newest).count();
            let requests = self.requests(type_url);
            let answers =
                requests.iter().filter(|(number, event)| *number == newest && event.answer.is_some()).count();
            (sent.len() >= responses && of_newest == answers).then_some(())
        })
        .await;
    }
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stream being served.
struct Stream {
    kind: Kind,
    accepted: Accepted,
    number: usize,
    ledger: Ledger,
    rules: Rules,
    watches: BTreeMap<String, Box<dyn Watch>>,
    nonces: u64,
    record: Arc<Mutex<Record>>,
}

impl Stream {
    async fn serve(mut self, mut state: watch::Receiver<State>, mut closings: watch::Receiver<u64>) {
        self.note(Said::Opened);
        closings.mark_unchanged();
        let closed = loop {
            let served = tokio::select! {
                _ = closings.changed() => break true,
                request = self.accepted.request() => match request {
                    Ok(Some(request)) => {
                        let now = state.borrow().clone();
                        self.request(&request, &now).await
                    }
                    Ok(None) | Err(_) => break false,
                },
                _ = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    self.changed(&now).await
                }
            };
            if served.is_err() {
                break false;
            }
        };
        self.note(Said::Ended);
        if closed {
            self.accepted.end(Status::new(Code::Ok, "")).await;
        }
    }

    /// What of a type this control plane takes for its state: istiod has one version for all types.
    fn offered(&self, state: &State, type_url: &str) -> Offered {
        let mut offered = state.types.get(type_url).cloned().unwrap_or_default();
        if self.kind == Kind::Istiod {
            offered.version = state.version;
        }
        offered
    }

    async fn request(&mut self, bytes: &[u8], state: &State) -> Result<(), Ended> {
        let protocol = self.accepted.protocol;
        let (request, event) = match protocol {
            Protocol::Sotw => {
                let request = DiscoveryRequest::decode(bytes).expect("a DiscoveryRequest");
                (Request::from(&request), self.check(&request, Ledger::sotw, Rules::sotw))
            }
            Protocol::Delta => {
                let request = DeltaDiscoveryRequest::decode(bytes).expect("a DeltaDiscoveryRequest");
                (Request::from(&request), self.check(&request, Ledger::delta, Rules::delta))
            }
        };
        let Some(event) = event else { return Err(Ended) };
        let type_url = event.type_url.clone();
        self.note(Said::Request(event));
        let offered = self.offered(state, &type_url);
        let kind = self.kind;
        let watch =
            self.watches.entry(type_url.clone()).or_insert_with(|| watch_for(kind, protocol, &type_url));
        match watch.request(&request, &offered) {
            Some(response) => self.respond(type_url, response).await,
            None => Ok(()),
        }
    }

    /// What the request means, where it breaks no rule.
    fn check<R: std::fmt::Debug, V: std::fmt::Display, W: std::fmt::Display>(
        &mut self,
        request: &R,
        ledger: impl Fn(&mut Ledger, &R) -> Result<Event, V>,
        rules: impl Fn(&mut Rules, &R, &Event) -> Result<(), W>,
    ) -> Option<Event> {
        let broken = match ledger(&mut self.ledger, request) {
            Ok(event) => match rules(&mut self.rules, request, &event) {
                Ok(()) => return Some(event),
                Err(violation) => violation.to_string(),
            },
            Err(violation) => violation.to_string(),
        };
        let text = format!("stream {}: {broken}, in {request:?}", self.number);
        lock(&self.record).broken.get_or_insert(text);
        None
    }

    async fn changed(&mut self, state: &State) -> Result<(), Ended> {
        let types: Vec<String> = self.watches.keys().cloned().collect();
        for type_url in types {
            let offered = self.offered(state, &type_url);
            let response = self.watches.get_mut(&type_url).and_then(|watch| watch.changed(&offered));
            if let Some(response) = response {
                self.respond(type_url, response).await?;
            }
        }
        Ok(())
    }

    async fn respond(&mut self, type_url: String, mut response: Response) -> Result<(), Ended> {
        self.nonces += 1;
        response.nonce = match self.kind {
            Kind::GoControlPlane => self.nonces.to_string(),
            Kind::Istiod => format!("{}-{}-{}", response.version, self.number, self.nonces),
        };
        response.type_url = type_url;
        self.ledger.sent(&response.type_url, &response.version, &response.nonce);
        if let Some(watch) = self.watches.get_mut(&response.type_url) {
            watch.sent(&response.nonce);
        }
        let bytes = response.encode(self.accepted.protocol);
        self.note(Said::Response(response));
        self.accepted.respond(bytes).await
    }

    fn note(&self, said: Said) {
        lock(&self.record).said.push((self.number, said));
    }
}

impl Response {
    fn encode(&self, protocol: Protocol) -> Vec<u8> {
        let resources = self.resources.clone().into_iter();
        match protocol {
            Protocol::Sotw => DiscoveryResponse {
                version_info: self.version.clone(),
                resources: resources.map(|(_, (_, resource))| resource).collect(),
                type_url: self.type_url.clone(),
                nonce: self.nonce.clone(),
                ..DiscoveryResponse::default()
            }
            .encode_to_vec(),
            Protocol::Delta => {
                let wrap = |(name, (version, resource))| Resource {
                    name,
                    version,
                    resource: Some(resource),
                    ..Resource::default()
                };
                DeltaDiscoveryResponse {
                    system_version_info: self.version.clone(),
                    resources: resources.map(wrap).collect(),
                    type_url: self.type_url.clone(),
                    removed_resources: self.removed.clone(),
                    nonce: self.nonce.clone(),
                    ..DeltaDiscoveryResponse::default()
                }
                .encode_to_vec()
            }
        }
    }
}

impl From<&DiscoveryRequest> for Request {
    fn from(request: &DiscoveryRequest) -> Request {
        Request {
            nonce: request.response_nonce.clone(),
            is_nack: request.error_detail.is_some(),
            version: request.version_info.clone(),
            names: request.resource_names.iter().cloned().collect(),
            ..Request::default()
        }
    }
}

impl From<&DeltaDiscoveryRequest> for Request {
    fn from(request: &DeltaDiscoveryRequest) -> Request {
        Request {
            nonce: request.response_nonce.clone(),
            is_nack: request.error_detail.is_some(),
            subscribe: request.resource_names_subscribe.iter().cloned().collect(),
            unsubscribe: request.resource_names_unsubscribe.iter().cloned().collect(),
            initial: request.initial_resource_versions.clone().into_iter().collect(),
            ..Request::default()
        }
    }
}

mod tests {
    use super::*;

    /// A request of both variants, in which Delta subscribes to what state of the world names.
    pub fn asked(version: &str, nonce: &str, names: &[&str]) -> Request {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Request {
            version: version.into(),
            nonce: nonce.into(),
            subscribe: names.clone(),
            names,
            ..Request::default()
        }
    }

    /// These names with their revisions.
    pub fn offered(version: u64, resources: &[(&str, u64)]) -> Offered {
        let offer = |revision: u64| Offer { revision, resource: Any::default() };
        let resources = resources.iter().map(|(name, revision)| ((*name).to_owned(), offer(*revision)));
        Offered { version, resources: resources.collect() }
    }

    pub fn names(response: &Response) -> Vec<&str> {
        response.resources.keys().map(String::as_str).collect()
    }

    /// The names in a response, or none.
    pub fn sent(response: &Option<Response>) -> Vec<String> {
        response.iter().flat_map(|response| response.resources.keys().cloned()).collect()
    }
}
