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
mod message;
mod rules;
mod stream;
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::message::Request;
pub use self::message::Response;
use self::stream::Stream;
use super::ledger::Event;
use super::{ControlPlane, Protocol, Service};
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
    /// By this service.
    Opened(Service),
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
                    let stream = Stream::new(kind, accepted, number, record.clone());
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

    /// The services by which streams were opened, oldest first.
    pub fn services(&self) -> Vec<Service> {
        let opened = |(_, said)| match said {
            Said::Opened(service) => Some(service),
            _ => None,
        };
        self.said().into_iter().filter_map(opened).collect()
    }

    /// The rule that a client has broken, after which its stream ended.
    pub fn broken_rule(&self) -> Option<String> {
        lock(&self.record).broken.clone()
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
