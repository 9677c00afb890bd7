//! A plain control plane: serves a set of resources to all who come, and sends what changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use envoy_types::pb::google::protobuf::Any;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ledger::Event;
use super::script::Script;
use super::{ControlPlane, Ended, Protocol, Service};
use crate::support::envoy::Xds;
use crate::support::{eventually, resources};

/// Serves in the background until it is dropped. A client that breaks the protocol fails the test at
/// the next look at [`Serving::events`].
pub struct Serving {
    address: Xds,
    state: watch::Sender<State>,
    record: Arc<Mutex<Record>>,
    // Aborts its tasks on drop.
    _server: JoinSet<()>,
}

#[derive(Debug, Clone, Default)]
struct State {
    version: u64,
    /// By type and name, with the version in which each came.
    resources: BTreeMap<(String, String), (u64, Any)>,
}

#[derive(Debug, Default)]
struct Record {
    /// The service of each stream, in the order in which they came.
    streams: Vec<Service>,
    /// Each with the number of its stream, from 1.
    events: Vec<(usize, Event)>,
    broken: bool,
}

impl Serving {
    pub fn start(mut control_plane: ControlPlane) -> Serving {
        let address = control_plane.address().clone();
        let state = watch::Sender::new(State::default());
        let record = Arc::new(Mutex::new(Record::default()));
        let mut server = JoinSet::new();
        server.spawn({
            let (state, record) = (state.clone(), record.clone());
            async move {
                let mut streams = JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = control_plane.next() => {
                            let Some(accepted) = accepted else { return };
                            let number = {
                                let mut record = lock(&record);
                                record.streams.push(accepted.service);
                                record.streams.len()
                            };
                            streams.spawn(stream(accepted.into(), number, state.subscribe(), record.clone()));
                        }
                        Some(ended) = streams.join_next() => {
                            if ended.is_err_and(|error| error.is_panic()) {
                                lock(&record).broken = true;
                            }
                        }
                    }
                }
            }
        });
        Serving { address, state, record, _server: server }
    }

    /// On a fresh TCP address or a path, by what `address` says.
    pub async fn listen(address: Xds) -> Serving {
        Serving::start(ControlPlane::listen(address).await)
    }

    pub fn address(&self) -> &Xds {
        &self.address
    }

    /// Adds a resource, or replaces the one of its name, for all who asked for it.
    pub fn set(&self, resource: Any) {
        self.set_all([resource]);
    }

    /// Several in one version.
    pub fn set_all(&self, resources: impl IntoIterator<Item = Any>) {
        self.state.send_modify(|state| {
            state.version += 1;
            for resource in resources {
                let key = (resource.type_url.clone(), resources::name_of(&resource));
                state.resources.insert(key, (state.version, resource));
            }
        });
    }

    /// Takes a resource away.
    pub fn remove(&self, type_url: &str, name: &str) {
        self.state.send_modify(|state| {
            state.version += 1;
            state.resources.remove(&(type_url.to_owned(), name.to_owned()));
        });
    }

    /// How many streams have been opened.
    pub fn streams(&self) -> usize {
        lock(&self.record).streams.len()
    }

    /// The services by which they were opened, oldest first.
    pub fn services(&self) -> Vec<Service> {
        lock(&self.record).streams.clone()
    }

    /// What clients said so far, each with the number of its stream.
    ///
    /// # Panics
    /// Where one has broken the protocol.
    pub fn events(&self) -> Vec<(usize, Event)> {
        let record = lock(&self.record);
        assert!(!record.broken, "a client broke the protocol; the panic above says how");
        record.events.clone()
    }

    /// The messages of all NACKs for a type.
    pub fn nacks(&self, type_url: &str) -> Vec<String> {
        let events = self.events();
        let of_type = events.iter().filter(|(_, event)| event.type_url == type_url);
        of_type.filter_map(|(_, event)| event.nack().map(str::to_owned)).collect()
    }

    /// Waits for an event.
    pub async fn event(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        eventually(what, async || self.events().into_iter().map(|(_, event)| event).find(&wanted)).await
    }
}

fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn stream(
    mut script: Script,
    number: usize,
    mut state: watch::Receiver<State>,
    record: Arc<Mutex<Record>>,
) {
    // By type: what this client was sent, with versions.
    let mut delivered: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    loop {
        let current = state.borrow_and_update().clone();
        for type_url in script.ledger().types() {
            // Without clusters too, since Envoy asks for listeners only once it has been answered.
            if type_url == resources::cds_type()
                && !delivered.contains_key(&type_url)
                && script.send(&type_url, &current.version.to_string(), Vec::new()).await.is_err()
            {
                return;
            }
            let last = delivered.entry(type_url.clone()).or_default();
            if deliver(&mut script, &type_url, &current, last).await.is_err() {
                return;
            }
        }
        tokio::select! {
            event = script.next() => match event {
                Some(event) => lock(&record).events.push((number, event)),
                None => return,
            },
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

/// Sends what the client subscribes to and has not got in this version.
async fn deliver(
    script: &mut Script,
    type_url: &str,
    state: &State,
    delivered: &mut BTreeMap<String, u64>,
) -> Result<(), Ended> {
    let names = script.ledger().names(type_url);
    // Listeners are asked for without names: all of them.
    let all = names.contains("*") || (names.is_empty() && type_url == resources::lds_type());
    let wanted = |name: &str| all || names.contains(name);
    let offered: BTreeMap<&String, &(u64, Any)> = state
        .resources
        .iter()
        .filter(|((of_type, name), _)| of_type == type_url && wanted(name))
        .map(|((_, name), resource)| (name, resource))
        .collect();
    let versions: BTreeMap<String, u64> =
        offered.iter().map(|(name, (version, _))| ((*name).clone(), *version)).collect();
    if versions == *delivered {
        return Ok(());
    }
    let version = state.version.to_string();
    match script.protocol() {
        Protocol::Sotw => {
            let resources = offered.values().map(|(_, resource)| resource.clone()).collect();
            script.send(type_url, &version, resources).await?;
        }
        Protocol::Delta => {
            let fresh = offered.iter().filter(|(name, (version, _))| delivered.get(**name) != Some(version));
            let fresh = fresh.map(|(_, (_, resource))| resource.clone()).collect();
            let gone = delivered.keys().filter(|name| wanted(name) && !versions.contains_key(*name));
            let gone = gone.cloned().collect::<Vec<_>>();
            script.send_with(type_url, &version, fresh, gone).await?;
        }
    }
    *delivered = versions;
    Ok(())
}
