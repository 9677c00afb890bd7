//! The places in one resource.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3 as cluster_v3;
use envoy_types::pb::envoy::config::common::matcher::v3 as common_matcher;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, ListenerFilter, listener_filter};
use envoy_types::pb::envoy::extensions::common::matching::v3::ExtensionWithMatcher;
use envoy_types::pb::envoy::extensions::filters::http::composite::v3::{
    Composite, DynamicConfig, ExecuteFilterAction, FilterChainConfiguration,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig;
use envoy_types::pb::xds::r#type::matcher::v3 as xds_matcher;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Name;

use super::*;
use crate::protobuf::wire::{put_len, put_message, put_string};

/// The names in a resource, each with whether its place takes the fallback.
fn found(type_url: &str, resource: &impl Message) -> BTreeSet<(String, bool)> {
    let bytes = resource.encode_to_vec();
    let places = places::read(type_url, &bytes, &mut usize::MAX.clone()).unwrap();
    places.iter().map(|place| (place.name.to_owned(), place.lists_rbac && !place.has_default)).collect()
}

fn expected(names: &[(&str, bool)]) -> BTreeSet<(String, bool)> {
    names.iter().map(|(name, takes)| ((*name).to_owned(), *takes)).collect()
}

fn http(name: &str) -> HttpFilter {
    discovered(name, source(&[WASM, RBAC]))
}

fn in_listener(filters: Vec<HttpFilter>) -> BTreeSet<(String, bool)> {
    found(type_url::LISTENER, &listener("l", filters))
}

#[test]
fn the_type_urls_are_envoys() {
    assert_eq!(type_url::LISTENER, Listener::type_url());
    assert_eq!(type_url::CLUSTER, Cluster::type_url());
    assert_eq!(type_url::HTTP_CONNECTION_MANAGER, HttpConnectionManager::type_url());
    assert_eq!(type_url::ROUTER, Router::type_url());
    assert_eq!(type_url::HTTP_PROTOCOL_OPTIONS, HttpProtocolOptions::type_url());
    assert_eq!(type_url::COMPOSITE, Composite::type_url());
    assert_eq!(type_url::EXTENSION_WITH_MATCHER, ExtensionWithMatcher::type_url());
    assert_eq!(type_url::EXECUTE_FILTER_ACTION, ExecuteFilterAction::type_url());
}

#[test]
fn a_listeners_network_filters_take_the_network_fallback_alone() {
    let discovery = |urls: &[&str]| filter::ConfigType::ConfigDiscovery(source(urls));
    let filters = vec![
        network("network", discovery(&[type_url::NETWORK_WASM, type_url::NETWORK_RBAC])),
        network("http-listed", discovery(&[type_url::NETWORK_WASM, RBAC])),
    ];
    let listener = Listener {
        filter_chains: vec![chain(vec![]), chain(filters)],
        default_filter_chain: Some(chain(vec![network("default", discovery(&[type_url::NETWORK_RBAC]))])),
        ..Default::default()
    };
    let expected = expected(&[("network", true), ("http-listed", false), ("default", true)]);
    assert_eq!(found(type_url::LISTENER, &listener), expected);
}

#[test]
fn no_fallback_can_stand_among_listener_filters_or_a_clusters_network_filters() {
    let all = source(&[RBAC, type_url::NETWORK_RBAC]);
    let listener = Listener {
        listener_filters: vec![ListenerFilter {
            name: "listener".to_owned(),
            config_type: Some(listener_filter::ConfigType::ConfigDiscovery(all.clone())),
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(found(type_url::LISTENER, &listener), expected(&[("listener", false)]));
    let filter =
        cluster_v3::Filter { name: "cluster".to_owned(), config_discovery: Some(all), ..Default::default() };
    let cluster = Cluster { filters: vec![filter], ..Default::default() };
    assert_eq!(found(type_url::CLUSTER, &cluster), expected(&[("cluster", false)]));
}

#[test]
fn http_filters_are_found_wherever_a_listener_has_them() {
    let router = Router { upstream_http_filters: vec![http("upstream")], ..Default::default() };
    let manager = HttpConnectionManager {
        http_filters: vec![http("http"), typed("router", type_url::ROUTER, &router)],
        upgrade_configs: vec![UpgradeConfig { filters: vec![http("upgrade")], ..Default::default() }],
        ..Default::default()
    };
    let manager = packed(type_url::HTTP_CONNECTION_MANAGER, &manager);
    let names = expected(&[("http", true), ("upstream", true), ("upgrade", true)]);

    let api_listener = Some(ApiListener { api_listener: Some(manager.clone()) });
    let listener = Listener { api_listener, ..Default::default() };
    assert_eq!(found(type_url::LISTENER, &listener), names);

    let filters = vec![network("hcm", filter::ConfigType::TypedConfig(manager))];
    let listener = Listener { default_filter_chain: Some(chain(filters)), ..Default::default() };
    assert_eq!(found(type_url::LISTENER, &listener), names);
}

#[test]
fn http_filters_are_found_in_a_cluster() {
    let names = expected(&[("a", true), ("b", true)]);
    assert_eq!(found(type_url::CLUSTER, &cluster("c", vec![http("a"), http("b")])), names);
}

fn execute(name: &str) -> TypedExtensionConfig {
    let dynamic = DynamicConfig { name: name.to_owned(), config_discovery: Some(source(&[WASM, RBAC])) };
    let action = ExecuteFilterAction { dynamic_config: Some(dynamic), ..Default::default() };
    extension(type_url::EXECUTE_FILTER_ACTION, &action)
}

fn extension(type_url: &str, config: &impl Message) -> TypedExtensionConfig {
    TypedExtensionConfig { name: "x".to_owned(), typed_config: Some(packed(type_url, config)) }
}

/// Both kinds of matcher have the same shape: a list around `$list`, a tree around the two maps, one
/// within the other, and what matches nothing.
macro_rules! matcher {
    ($package:ident, $config:expr) => {{
        use $package::Matcher;
        use $package::matcher::{
            MatcherList, MatcherTree, MatcherType, OnMatch,
            matcher_list::FieldMatcher,
            matcher_tree::{MatchMap, TreeType},
            on_match,
        };
        let act = |name: &str| OnMatch {
            on_match: Some(on_match::OnMatch::Action($config(execute(name)))),
            ..Default::default()
        };
        let map = |name: &str| MatchMap { map: [("k".to_owned(), act(name))].into() };
        let tree = |tree| Matcher {
            matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
                tree_type: Some(tree),
                ..Default::default()
            })),
            ..Default::default()
        };
        let nested = |matcher: Matcher| FieldMatcher {
            on_match: Some(OnMatch {
                on_match: Some(on_match::OnMatch::Matcher(Box::new(matcher))),
                ..Default::default()
            }),
            ..Default::default()
        };
        let matchers = vec![
            FieldMatcher { on_match: Some(act("list")), ..Default::default() },
            nested(tree(TreeType::ExactMatchMap(map("exact")))),
            nested(tree(TreeType::PrefixMatchMap(map("prefix")))),
        ];
        Matcher {
            on_no_match: Some(Box::new(act("no"))),
            matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers })),
        }
    }};
}

fn xds(config: TypedExtensionConfig) -> envoy_types::pb::xds::core::v3::TypedExtensionConfig {
    envoy_types::pb::xds::core::v3::TypedExtensionConfig {
        name: config.name,
        typed_config: config.typed_config,
    }
}

#[test]
fn what_a_matcher_chooses_is_found_under_both_kinds_of_matcher() {
    let names = expected(&[("list", true), ("exact", true), ("prefix", true), ("no", true)]);
    let with = |with: &ExtensionWithMatcher| {
        in_listener(vec![typed("composite", type_url::EXTENSION_WITH_MATCHER, with)])
    };
    let xds = matcher!(xds_matcher, xds);
    assert_eq!(with(&ExtensionWithMatcher { xds_matcher: Some(xds.clone()), ..Default::default() }), names);
    #[allow(deprecated)]
    let common = ExtensionWithMatcher {
        matcher: Some(matcher!(common_matcher, std::convert::identity)),
        ..Default::default()
    };
    assert_eq!(with(&common), names);
    let bare = Composite { matcher: Some(xds), ..Default::default() };
    assert_eq!(in_listener(vec![typed("composite", type_url::COMPOSITE, &bare)]), names);
}

#[test]
fn what_a_composite_filter_runs_may_be_one_that_holds_filters() {
    let router = |name| {
        let router = Router { upstream_http_filters: vec![http(name)], ..Default::default() };
        extension(type_url::ROUTER, &router)
    };
    let of = |router| FilterChainConfiguration { typed_config: vec![router] };
    let action = ExecuteFilterAction {
        typed_config: Some(router("single")),
        filter_chain: Some(of(router("chain"))),
        ..Default::default()
    };
    let on_match = xds_matcher::matcher::OnMatch {
        on_match: Some(xds_matcher::matcher::on_match::OnMatch::Action(xds(extension(
            type_url::EXECUTE_FILTER_ACTION,
            &action,
        )))),
        ..Default::default()
    };
    let matcher = xds_matcher::Matcher { on_no_match: Some(Box::new(on_match)), ..Default::default() };
    let composite = Composite {
        named_filter_chains: [("n".to_owned(), of(router("named")))].into(),
        matcher: Some(matcher),
    };
    let with = ExtensionWithMatcher {
        extension_config: Some(extension(type_url::COMPOSITE, &composite)),
        ..Default::default()
    };
    let names = expected(&[("single", true), ("chain", true), ("named", true)]);
    assert_eq!(in_listener(vec![typed("x", type_url::EXTENSION_WITH_MATCHER, &with)]), names);
}

#[test]
fn a_type_that_is_listed_in_any_spelling_is_listed_and_a_default_is_seen() {
    let default =
        ExtensionConfigSource { default_config: Some(protobuf::Any::default()), ..source(&[WASM, RBAC]) };
    let filters = vec![
        discovered("bare", source(&["envoy.extensions.filters.http.rbac.v3.RBAC"])),
        discovered("not", source(&[WASM])),
        discovered("network", source(&[type_url::NETWORK_RBAC])),
        discovered("default", default),
        discovered("", source(&[RBAC])),
    ];
    let expected = expected(&[("bare", true), ("not", false), ("network", false), ("default", false)]);
    assert_eq!(in_listener(filters), expected);
}

#[test]
fn a_name_may_stand_behind_its_config_discovery() {
    let mut filter = Vec::new();
    put_len(&mut filter, 5, &source(&[type_url::NETWORK_RBAC]).encode_to_vec());
    put_string(&mut filter, 1, "late");
    let mut listener = Vec::new();
    put_message(&mut listener, 3, |chain| put_len(chain, 3, &filter));
    let places = places::read(type_url::LISTENER, &listener, &mut 1000).unwrap();
    assert_eq!(places.iter().map(|place| place.name).collect::<Vec<_>>(), ["late"]);
}

#[test]
fn equal_places_are_one_and_any_other_byte_is_another_hash() {
    let chains = |sources: &[ExtensionConfigSource]| {
        let chains = sources.iter().map(|source| chain(vec![manager(vec![discovered("a", source.clone())])]));
        Listener { filter_chains: chains.collect(), ..Default::default() }.encode_to_vec()
    };
    let (one, other) = (source(&[RBAC]), source(&[WASM, RBAC]));
    let bytes = chains(&[one.clone(), other.clone(), one.clone()]);
    let mut room = 2 * (PLACE_COST + 1);
    let places = places::read(type_url::LISTENER, &bytes, &mut room).unwrap();
    assert_eq!((places.len(), room), (2, 0));
    assert_ne!(places[0].hash, places[1].hash);
    let mut room = 2 * (PLACE_COST + 1) - 1;
    assert_eq!(places::read(type_url::LISTENER, &bytes, &mut room), Err(Unread::NoRoom));
}

#[test]
fn a_resource_that_cannot_be_read_says_why() {
    let read = |type_url, bytes: &[u8]| places::read(type_url, bytes, &mut 1000).unwrap_err();
    assert_eq!(read(type_url::ROUTES, b""), Unread::OtherType);
    assert!(matches!(read(type_url::LISTENER, b"\x1a\x02\x1a\x05"), Unread::Malformed(_)));
    let mut not_text = Vec::new();
    put_message(&mut not_text, 40, |filter| {
        put_len(filter, 1, b"\xff");
        put_len(filter, 3, b"");
    });
    assert!(matches!(read(type_url::CLUSTER, &not_text), Unread::Malformed(_)));
}

#[test]
fn matchers_nest_up_to_a_limit() {
    let nested = |depth| {
        let leaf = xds_matcher::matcher::on_match::OnMatch::Action(xds(execute("deep")));
        let wrap = |inner, _| {
            let on_match = xds_matcher::matcher::OnMatch { on_match: Some(inner), ..Default::default() };
            let matcher = xds_matcher::Matcher { on_no_match: Some(Box::new(on_match)), matcher_type: None };
            xds_matcher::matcher::on_match::OnMatch::Matcher(Box::new(matcher))
        };
        let xds_matcher::matcher::on_match::OnMatch::Matcher(matcher) = (0..depth).fold(leaf, wrap) else {
            panic!("at least one matcher")
        };
        let composite = Composite { matcher: Some(*matcher), ..Default::default() };
        listener("l", vec![typed("c", type_url::COMPOSITE, &composite)])
    };
    assert_eq!(found(type_url::LISTENER, &nested(40)), expected(&[("deep", true)]));
    let deep = nested(50).encode_to_vec();
    assert_eq!(places::read(type_url::LISTENER, &deep, &mut 1000), Err(Unread::TooDeep));
}

fn everything() -> [(&'static str, Vec<u8>); 2] {
    let router = Router { upstream_http_filters: vec![http("upstream")], ..Default::default() };
    let with = ExtensionWithMatcher { xds_matcher: Some(matcher!(xds_matcher, xds)), ..Default::default() };
    let filters = vec![
        http("http"),
        typed("matcher", type_url::EXTENSION_WITH_MATCHER, &with),
        typed("router", type_url::ROUTER, &router),
    ];
    [
        (type_url::LISTENER, listener("l", filters.clone()).encode_to_vec()),
        (type_url::CLUSTER, cluster("c", filters).encode_to_vec()),
    ]
}

proptest! {
    /// Most changes of a byte leave much of the message as it was, and so reach deep into it.
    #[test]
    fn a_mutated_resource_never_panics(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        for (type_url, mut bytes) in everything() {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let mut room = 100_000;
            if let Ok(places) = places::read(type_url, &bytes, &mut room) {
                let cost: usize = places.iter().map(|place| place.name.len() + PLACE_COST).sum();
                prop_assert_eq!(cost + room, 100_000);
                prop_assert!(places.iter().all(|place| !place.name.is_empty()));
            }
        }
    }
}
