//! Where a listener or a cluster takes a filter from ECDS, and what it says of it there.
//!
//! A resource is walked from message to message along the fields that lead to a filter
//! ([`Node::below`]) and nothing else of it is read. Each message's fields are skipped by their
//! length until one is entered, so the work is linear in the resource's size whatever its nesting.
//!
//! These places are known:
//!
//! ```text
//! Listener  filter_chains, default_filter_chain > filters
//!           listener_filters
//!           api_listener
//! Cluster   filters
//!           typed_extension_protocol_options > HttpProtocolOptions > http_filters
//! and in a typed_config of any of these
//!           HttpConnectionManager > http_filters, upgrade_configs > filters
//!           Router > upstream_http_filters
//!           Composite, bare or in ExtensionWithMatcher > matchers > ExecuteFilterAction > dynamic_config
//! ```
//!
//! Not read, so that names which stand there alone are unseen: messages written as a `TypedStruct`;
//! matchers of a route (`typed_per_filter_config`); a matcher tree's `custom_match`; filter chains
//! that come by themselves (`fcds_config`); session filters of UDP, where no Wasm can stand.

use std::collections::HashSet;

use crate::digest::Hasher;
use crate::protobuf::messages::Any;
use crate::protobuf::wire::{Fields, Value, text};
use crate::protobuf::{WireError, type_url};

/// Messages within messages, each `Any` counted like one. Real ones need about 20; it bounds the
/// matchers, which nest at will.
const MAX_DEPTH: usize = 100;

/// What the reader takes a place to cost in memory beside its name, in bytes.
pub(super) const PLACE_COST: usize = 512;

/// What one place says of an ECDS resource, which its `config_discovery` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The ECDS resource's name; never empty.
    pub name: &'a str,
    /// Whether `type_urls` has the RBAC filter that can stand here: the HTTP one for HTTP filters,
    /// the network one for a listener's network filters. Where Envoy has none that can (listener
    /// filters, a cluster's network filters), false.
    pub lists_rbac: bool,
    /// Whether there is a `default_config`.
    pub has_default: bool,
    /// The first 16 bytes of the SHA-256 of the whole `config_discovery`.
    pub hash: [u8; 16],
}

/// Why a resource was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("it is neither a listener nor a cluster")]
    OtherType,
    #[error(transparent)]
    Malformed(#[from] WireError),
    #[error("its messages are nested too deeply")]
    TooDeep,
    #[error("it has more places than are kept")]
    NoRoom,
}

/// The places in one listener or cluster, in no order, equal ones once.
///
/// `room` is how many bytes they may cost, at [`PLACE_COST`] and its name's length each; what they
/// do cost is taken off it.
pub fn read<'a>(type_url: &str, resource: &'a [u8], room: &mut usize) -> Result<Vec<Place<'a>>, Unread> {
    let node = [(type_url::LISTENER, Node::Listener), (type_url::CLUSTER, Node::Cluster)]
        .into_iter()
        .find_map(|(known, node)| type_url::same(known, type_url).then_some(node))
        .ok_or(Unread::OtherType)?;
    let mut walk = Walk { found: HashSet::new(), room };
    walk.enter(node, resource, MAX_DEPTH)?;
    let places = walk.found.iter().map(Found::place);
    Ok(places.collect::<Result<_, _>>()?)
}

/// The name of a listener or a cluster of which perhaps no more than that can be read.
pub(super) fn resource_name(resource: &[u8]) -> &str {
    let mut fields = Fields::of("the resource", resource).map_while(Result::ok);
    let name = fields.find_map(|field| match field.value {
        Value::Len(bytes) if field.number == NAME => std::str::from_utf8(bytes).ok(),
        _ => None,
    });
    name.unwrap_or_default()
}

/// The number of `name` in Listener, Cluster, all kinds of filters, and DynamicConfig.
const NAME: u32 = 1;

/// Which filters can stand in a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Http,
    Network,
    /// Those of which Envoy has no RBAC.
    Other,
}

/// A message on the way to a filter.
#[derive(Debug, Clone, Copy)]
enum Node {
    Listener,
    FilterChain,
    NetworkFilter,
    ListenerFilter,
    ApiListener,
    Cluster,
    ClusterFilter,
    /// An entry of `Cluster.typed_extension_protocol_options`.
    ProtocolOptions,
    HttpProtocolOptions,
    HttpConnectionManager,
    UpgradeConfig,
    HttpFilter,
    Router,
    TypedExtensionConfig,
    ExtensionWithMatcher,
    Composite,
    /// An entry of `Composite.named_filter_chains`.
    NamedFilterChain,
    FilterChainConfiguration,
    ExecuteFilterAction,
    DynamicConfig,
    // Of `xds.type.matcher.v3` and, with the same numbers, `envoy.config.common.matcher.v3`.
    Matcher,
    MatcherList,
    FieldMatcher,
    MatcherTree,
    MatchMap,
    /// An entry of `MatchMap.map`.
    MatchEntry,
    OnMatch,
}

/// What a field holds that leads to a filter.
enum Step {
    Into(Node),
    /// A `google.protobuf.Any`, of which the type decides.
    Any,
    /// An `ExtensionConfigSource` for the message that has this field.
    Source(Kind),
}

impl Node {
    /// The message that an `Any` of this type holds, if it may lead to a filter.
    fn of(type_url: &str) -> Option<Self> {
        let known = [
            (type_url::HTTP_CONNECTION_MANAGER, Node::HttpConnectionManager),
            (type_url::ROUTER, Node::Router),
            (type_url::HTTP_PROTOCOL_OPTIONS, Node::HttpProtocolOptions),
            (type_url::EXTENSION_WITH_MATCHER, Node::ExtensionWithMatcher),
            (type_url::COMPOSITE, Node::Composite),
            (type_url::EXECUTE_FILTER_ACTION, Node::ExecuteFilterAction),
        ];
        known.into_iter().find_map(|(known, node)| type_url::same(known, type_url).then_some(node))
    }

    fn below(self, number: u32) -> Option<Step> {
        use Step::{Any, Into, Source};
        Some(match (self, number) {
            (Node::Listener, 3 | 25) => Into(Node::FilterChain),
            (Node::Listener, 9) => Into(Node::ListenerFilter),
            (Node::Listener, 19) => Into(Node::ApiListener),
            (Node::FilterChain, 3) => Into(Node::NetworkFilter),
            (Node::NetworkFilter, 4) => Any,
            (Node::NetworkFilter, 5) => Source(Kind::Network),
            (Node::ListenerFilter, 5) => Source(Kind::Other),
            (Node::ApiListener, 1) => Any,

            (Node::Cluster, 36) => Into(Node::ProtocolOptions),
            (Node::Cluster, 40) => Into(Node::ClusterFilter),
            (Node::ProtocolOptions, 2) => Any,
            (Node::ClusterFilter, 3) => Source(Kind::Other),
            (Node::HttpProtocolOptions, 6) => Into(Node::HttpFilter),

            (Node::HttpConnectionManager, 5) => Into(Node::HttpFilter),
            (Node::HttpConnectionManager, 23) => Into(Node::UpgradeConfig),
            (Node::UpgradeConfig, 2) => Into(Node::HttpFilter),
            (Node::HttpFilter, 4) => Any,
            (Node::HttpFilter, 5) => Source(Kind::Http),
            (Node::Router, 8) => Into(Node::HttpFilter),

            (Node::TypedExtensionConfig, 2) => Any,
            (Node::ExtensionWithMatcher, 1 | 3) => Into(Node::Matcher),
            (Node::ExtensionWithMatcher, 2) => Into(Node::TypedExtensionConfig),
            (Node::Composite, 1) => Into(Node::NamedFilterChain),
            (Node::Composite, 2) => Into(Node::Matcher),
            (Node::NamedFilterChain, 2) => Into(Node::FilterChainConfiguration),
            (Node::FilterChainConfiguration, 1) => Into(Node::TypedExtensionConfig),
            (Node::ExecuteFilterAction, 1) => Into(Node::TypedExtensionConfig),
            (Node::ExecuteFilterAction, 2) => Into(Node::DynamicConfig),
            (Node::ExecuteFilterAction, 4) => Into(Node::FilterChainConfiguration),
            (Node::DynamicConfig, 2) => Source(Kind::Http),

            (Node::Matcher, 1) => Into(Node::MatcherList),
            (Node::Matcher, 2) => Into(Node::MatcherTree),
            (Node::Matcher, 3) => Into(Node::OnMatch),
            (Node::MatcherList, 1) => Into(Node::FieldMatcher),
            (Node::FieldMatcher, 2) => Into(Node::OnMatch),
            (Node::MatcherTree, 2 | 3) => Into(Node::MatchMap),
            (Node::MatchMap, 1) => Into(Node::MatchEntry),
            (Node::MatchEntry, 2) => Into(Node::OnMatch),
            (Node::OnMatch, 1) => Into(Node::Matcher),
            (Node::OnMatch, 2) => Into(Node::TypedExtensionConfig),
            _ => return None,
        })
    }
}

/// A place as it was found. A listener says the same of a name in each of its filter chains, often
/// in hundreds: equal ones are dropped before they are looked into.
#[derive(PartialEq, Eq, Hash)]
struct Found<'a> {
    name: &'a str,
    kind: Kind,
    /// The encoded `ExtensionConfigSource`.
    source: &'a [u8],
}

impl<'a> Found<'a> {
    fn place(&self) -> Result<Place<'a>, WireError> {
        let rbac = match self.kind {
            Kind::Http => Some(type_url::HTTP_RBAC),
            Kind::Network => Some(type_url::NETWORK_RBAC),
            Kind::Other => None,
        };
        let (mut lists_rbac, mut has_default) = (false, false);
        for field in Fields::of("ExtensionConfigSource", self.source) {
            let field = field?;
            match (field.number, field.value) {
                (2, Value::Len(_)) => has_default = true,
                (4, Value::Len(bytes)) => {
                    let listed = text("ExtensionConfigSource.type_urls", bytes)?;
                    lists_rbac |= rbac.is_some_and(|rbac| type_url::same(rbac, listed));
                }
                _ => {}
            }
        }
        Ok(Place { name: self.name, lists_rbac, has_default, hash: hash(self.source) })
    }
}

fn hash(source: &[u8]) -> [u8; 16] {
    let mut hasher = Hasher::default();
    hasher.update(source);
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finish()[..16]);
    short
}

struct Walk<'a, 'room> {
    found: HashSet<Found<'a>>,
    room: &'room mut usize,
}

impl<'a> Walk<'a, '_> {
    /// Protobuf merges the pieces of a singular message, and of a one-of the last counts. Nobody
    /// sends either twice; here each piece is a place, and of several places the strictest decides.
    fn enter(&mut self, node: Node, message: &'a [u8], depth: usize) -> Result<(), Unread> {
        let below = depth.checked_sub(1).ok_or(Unread::TooDeep)?;
        let mut name = None;
        for field in Fields::of("the resource", message) {
            let field = field?;
            let Value::Len(bytes) = field.value else { continue };
            match node.below(field.number) {
                None => {}
                Some(Step::Into(node)) => self.enter(node, bytes, below)?,
                Some(Step::Any) => {
                    let any = Any::decode(bytes)?;
                    if let Some(node) = Node::of(any.type_url) {
                        self.enter(node, any.value, below)?;
                    }
                }
                Some(Step::Source(kind)) => {
                    let name = match name {
                        Some(name) => name,
                        None => *name.insert(filter_name(message)?),
                    };
                    self.find(Found { name, kind, source: bytes })?;
                }
            }
        }
        Ok(())
    }

    fn find(&mut self, found: Found<'a>) -> Result<(), Unread> {
        let cost = found.name.len().saturating_add(PLACE_COST);
        // Envoy subscribes to no empty name.
        if !found.name.is_empty() && self.found.insert(found) {
            *self.room = self.room.checked_sub(cost).ok_or(Unread::NoRoom)?;
        }
        Ok(())
    }
}

/// The name of a filter, which is that of its ECDS resource. It may stand behind all else.
fn filter_name(filter: &[u8]) -> Result<&str, WireError> {
    let mut name = "";
    for field in Fields::of("the filter", filter) {
        let field = field?;
        if let (NAME, Value::Len(bytes)) = (field.number, field.value) {
            name = text("the filter's name", bytes)?;
        }
    }
    Ok(name)
}
