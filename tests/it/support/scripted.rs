//! A scripted Envoy that asks for extension configs: it answers as the test says, and remembers what an
//! Envoy remembers. All that it is sent is held to what an Envoy needs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{Node, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::{Any, StringValue};
use envoy_types::pb::google::rpc;
use prost::{Message, Name};

use super::ads::{Connection, Stream};
use super::control_plane::{Protocol, Service};
use super::ecds::{self, Filter};
use super::envoy::Xds;
use super::{resources, soon};

/// A config as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub filter: Filter,
    /// What a Wasm plugin is configured with; empty for other filters.
    pub label: String,
    version: String,
    resource: Any,
}

/// A response of any type.
#[derive(Debug, Clone)]
pub struct Received {
    pub type_url: String,
    version: String,
    nonce: String,
    /// Extension configs by name; of other types nothing.
    pub configs: BTreeMap<String, Config>,
    pub removed: Vec<String>,
}

/// An Envoy with one stream at a time.
pub struct Scripted {
    pub protocol: Protocol,
    service: Service,
    agent: Xds,
    stream: Stream,
    _connection: Connection,
    said_node: bool,
    /// Requests for extension configs so far, over all streams.
    pub said: u64,
    names: BTreeSet<String>,
    /// Of each type on this stream: the last nonce.
    nonces: BTreeMap<String, String>,
    /// Of each type: the last version that was accepted.
    versions: BTreeMap<String, String>,
    /// What runs.
    pub held: BTreeMap<String, Config>,
    /// What was rejected last, under a name that has got nothing else since.
    rejected: BTreeMap<String, Any>,
    /// What responses on this stream have carried.
    carried: BTreeSet<String>,
    /// All messages that came, as they came.
    pub messages: Vec<Bytes>,
    /// All that was accepted and differed from what was there: name and label.
    pub history: Vec<(String, String)>,
}

impl Scripted {
    pub async fn connect(agent: &Xds, service: Service, protocol: Protocol) -> Scripted {
        let mut connection = Connection::open(agent).await;
        let stream = connection.stream_of(service, protocol, &[]).await;
        Scripted {
            protocol,
            service,
            agent: agent.clone(),
            stream,
            _connection: connection,
            said_node: false,
            said: 0,
            names: BTreeSet::new(),
            nonces: BTreeMap::new(),
            versions: BTreeMap::new(),
            held: BTreeMap::new(),
            rejected: BTreeMap::new(),
            carried: BTreeSet::new(),
            messages: Vec::new(),
            history: Vec::new(),
        }
    }

    /// Waits for the end of the stream, and opens the next as Envoy does: with what it asks for, and the
    /// versions of what it has.
    pub async fn reconnect(&mut self) {
        self.ended().await;
        let mut connection = Connection::open(&self.agent).await;
        self.stream = connection.stream_of(self.service, self.protocol, &[]).await;
        self._connection = connection;
        self.said_node = false;
        self.nonces.clear();
        self.carried.clear();
        let initial = self.held.iter().filter(|(name, _)| self.names.contains(*name));
        let initial = initial.map(|(name, config)| (name.clone(), config.version.clone())).collect();
        let add: Vec<String> = self.names.iter().cloned().collect();
        self.say(Saying { add, initial, ..Saying::of(&resources::ecds_type()) }).await;
    }

    /// Waits until the stream has ended, passing over what still comes.
    pub async fn ended(&mut self) {
        self.stream.end().await;
    }

    pub async fn subscribe(&mut self, names: &[&str]) {
        self.names.extend(names.iter().map(|name| (*name).to_owned()));
        let add = names.iter().map(|name| (*name).to_owned()).collect();
        self.say(Saying { add, ..Saying::of(&resources::ecds_type()) }).await;
    }

    /// Wants these no longer, and forgets them.
    pub async fn unsubscribe(&mut self, names: &[&str]) {
        for name in names {
            self.names.remove(*name);
            self.held.remove(*name);
            self.rejected.remove(*name);
            self.carried.remove(*name);
        }
        let drop = names.iter().map(|name| (*name).to_owned()).collect();
        self.say(Saying { drop, ..Saying::of(&resources::ecds_type()) }).await;
    }

    /// Asks for all of another type.
    pub async fn ask(&mut self, type_url: &str) {
        let add = if self.protocol == Protocol::Delta { vec!["*".to_owned()] } else { Vec::new() };
        self.say(Saying { add, ..Saying::of(type_url) }).await;
    }

    /// The next response, whatever its type.
    pub async fn receive(&mut self) -> Received {
        let bytes = soon("a response from the agent", self.stream.next()).await;
        self.read(&bytes.expect("a stream that goes on"))
    }

    /// The next response if it comes within this time.
    async fn receive_within(&mut self, time: Duration) -> Option<Received> {
        let bytes = tokio::time::timeout(time, self.stream.next()).await.ok()?;
        Some(self.read(&bytes.expect("a stream that goes on")))
    }

    /// Takes and accepts responses until what was asked holds.
    pub async fn until(&mut self, mut holds: impl FnMut(&Scripted) -> bool) {
        while !holds(self) {
            let received = self.receive().await;
            self.accept(&received).await;
        }
    }

    /// The same over any number of streams.
    pub async fn follow_until(&mut self, mut holds: impl FnMut(&Scripted) -> bool) {
        while !holds(self) {
            match soon("a response from the agent, or an end", self.stream.next()).await {
                Ok(bytes) => {
                    let received = self.read(&bytes);
                    self.accept(&received).await;
                }
                Err(_) => self.reconnect().await,
            }
        }
    }

    /// Takes and accepts responses until each of these names has a module with this label.
    pub async fn runs(&mut self, wanted: &[(&str, &str)]) {
        let all = |envoy: &Scripted| wanted.iter().all(|(name, label)| envoy.label(name) == Some(*label));
        self.until(all).await;
    }

    /// The label of the module that runs under a name.
    pub fn label(&self, name: &str) -> Option<&str> {
        let config = self.held.get(name)?;
        matches!(config.filter, Filter::Module(_)).then_some(config.label.as_str())
    }

    /// Accepts what comes within this time, and holds that it changes nothing.
    pub async fn nothing_new_within(&mut self, time: Duration) {
        let (history, held) = (self.history.len(), self.held.clone());
        let deadline = tokio::time::Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let Some(received) = self.receive_within(left).await else { break };
            self.accept(&received).await;
        }
        assert_eq!(&self.history[history..], [], "something new");
        assert_eq!(self.held, held);
    }

    /// Holds that no response comes within this time.
    pub async fn silence(&mut self, time: Duration) {
        let received = self.receive_within(time).await;
        assert!(received.is_none(), "{received:?}");
    }

    pub async fn accept(&mut self, received: &Received) {
        for (name, config) in &received.configs {
            self.rejected.remove(name);
            let before = self.held.insert(name.clone(), config.clone());
            if before.is_none_or(|before| before.resource != config.resource) {
                self.history.push((name.clone(), config.label.clone()));
            }
        }
        for name in &received.removed {
            self.held.remove(name);
        }
        self.versions.insert(received.type_url.clone(), received.version.clone());
        let nonce = Some(received.nonce.clone());
        self.say(Saying { nonce, ..Saying::of(&received.type_url) }).await;
    }

    /// Rejects the whole response because of this name, which is in it.
    pub async fn reject(&mut self, received: &Received, name: &str, reason: &str) {
        self.rejected.insert(name.to_owned(), received.configs[name].resource.clone());
        let nonce = Some(received.nonce.clone());
        self.say(Saying { nonce, error: Some(reason.to_owned()), ..Saying::of(&received.type_url) }).await;
    }

    /// Takes a message, and holds it to what an Envoy needs.
    fn read(&mut self, bytes: &Bytes) -> Received {
        self.messages.push(bytes.clone());
        let bytes = bytes.as_ref();
        let (received, resources) = match self.protocol {
            Protocol::Sotw => {
                let response = DiscoveryResponse::decode(bytes).expect("a DiscoveryResponse");
                let received = Received {
                    type_url: response.type_url,
                    version: response.version_info,
                    nonce: response.nonce,
                    configs: BTreeMap::new(),
                    removed: Vec::new(),
                };
                let resources = response.resources.into_iter().map(|any| (None, String::new(), any));
                (received, resources.collect::<Vec<_>>())
            }
            Protocol::Delta => {
                let response = DeltaDiscoveryResponse::decode(bytes).expect("a DeltaDiscoveryResponse");
                let received = Received {
                    type_url: response.type_url,
                    version: response.system_version_info,
                    nonce: response.nonce,
                    configs: BTreeMap::new(),
                    removed: response.removed_resources,
                };
                let resources = response.resources.into_iter().map(|resource| {
                    (Some(resource.name), resource.version, resource.resource.expect("no heartbeat"))
                });
                (received, resources.collect())
            }
        };
        self.nonces.insert(received.type_url.clone(), received.nonce.clone());
        if received.type_url != resources::ecds_type() {
            return received;
        }
        let mut configs = BTreeMap::new();
        for (outer, version, resource) in resources {
            let (name, filter) = ecds::read(&resource);
            assert!(outer.is_none_or(|outer| outer == name), "Envoy ignores what has no name outside");
            assert!(self.names.contains(&name), "{name} was not asked for");
            assert_ne!(self.rejected.get(&name), Some(&resource), "Envoy takes no second look at {name}");
            let label = label(&resource);
            let twice = configs.insert(name.clone(), Config { filter, label, version, resource });
            assert!(twice.is_none(), "{name} comes twice");
        }
        if self.protocol == Protocol::Sotw {
            let missing = self.carried.iter().find(|name| !configs.contains_key(*name));
            assert!(missing.is_none(), "{missing:?} is missing, which the unified mux rejects");
            self.carried.extend(configs.keys().cloned());
        }
        let both = received.removed.iter().find(|name| configs.contains_key(*name));
        assert!(both.is_none(), "{both:?} is both added and removed");
        Received { configs, ..received }
    }

    async fn say(&mut self, saying: Saying) {
        let node = (!std::mem::replace(&mut self.said_node, true))
            .then(|| Node { id: "scripted".into(), ..Node::default() });
        let error_detail = saying.error.map(|message| rpc::Status { code: 13, message, details: Vec::new() });
        let is_ecds = saying.type_url == resources::ecds_type();
        self.said += u64::from(is_ecds);
        let request = match self.protocol {
            Protocol::Sotw => DiscoveryRequest {
                node,
                version_info: self.versions.get(&saying.type_url).cloned().unwrap_or_default(),
                resource_names: self.names.iter().filter(|_| is_ecds).cloned().collect(),
                response_nonce: self.nonces.get(&saying.type_url).cloned().unwrap_or_default(),
                type_url: saying.type_url,
                error_detail,
                ..DiscoveryRequest::default()
            }
            .encode_to_vec(),
            Protocol::Delta => DeltaDiscoveryRequest {
                node,
                type_url: saying.type_url,
                resource_names_subscribe: saying.add,
                resource_names_unsubscribe: saying.drop,
                initial_resource_versions: saying.initial.into_iter().collect(),
                response_nonce: saying.nonce.unwrap_or_default(),
                error_detail,
                ..DeltaDiscoveryRequest::default()
            }
            .encode_to_vec(),
        };
        // Where the stream has ended meanwhile, the next one begins with what is true then.
        let _ = self.stream.try_send(request).await;
    }
}

/// What goes into a request, of which state of the world takes the type and the error alone.
#[derive(Debug, Default)]
struct Saying {
    type_url: String,
    add: Vec<String>,
    drop: Vec<String>,
    initial: BTreeMap<String, String>,
    nonce: Option<String>,
    error: Option<String>,
}

impl Saying {
    fn of(type_url: &str) -> Saying {
        Saying { type_url: type_url.to_owned(), ..Saying::default() }
    }
}

/// What a Wasm plugin is configured with.
fn label(resource: &Any) -> String {
    let config = TypedExtensionConfig::decode(resource.value.as_slice()).expect("an extension config");
    let filter = config.typed_config.expect("a filter");
    if filter.type_url != Wasm::type_url() {
        return String::new();
    }
    let plugin = Wasm::decode(filter.value.as_slice()).expect("Wasm").config.expect("a plugin");
    let configuration = plugin.configuration.unwrap_or_default();
    StringValue::decode(configuration.value.as_slice()).expect("a string").value
}
