//! xDS resources as Envoy knows them, for bootstraps, for control planes and to compare with.

use std::net::SocketAddr;
use std::path::Path;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{
    self as core, AsyncDataSource, ConfigSource, ExtensionConfigSource, TypedExtensionConfig,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::rbac::v3::{self as rbac_rules, rbac::Action};
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::buffer::v3::Buffer;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm as HttpWasm;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::wasm::v3::Wasm as NetworkWasm;
use envoy_types::pb::envoy::extensions::wasm::v3::{
    EnvironmentVariables, FailurePolicy, PluginConfig, VmConfig, plugin_config,
};
use envoy_types::pb::google::protobuf::{Any, Duration, StringValue, UInt32Value};
use envoy_types::util::pack_any;
use prost::{Message, Name};

/// The type URL of ECDS resources.
pub fn ecds_type() -> String {
    TypedExtensionConfig::type_url()
}

/// The type URL of listeners.
pub fn lds_type() -> String {
    Listener::type_url()
}

/// The type URL of clusters.
pub fn cds_type() -> String {
    Cluster::type_url()
}

/// Whether a filter stands among the HTTP filters or among a connection's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http,
    Network,
}

/// A listener that answers every request with 200 and `ok`, behind these filters.
pub fn listener(name: &str, address: SocketAddr, network: Vec<Filter>, http: Vec<HttpFilter>) -> Listener {
    let ok = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::DirectResponse(DirectResponseAction {
            status: 200,
            body: Some(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString("ok".into())),
                ..core::DataSource::default()
            }),
            ..DirectResponseAction::default()
        })),
        ..Route::default()
    };
    let routes = RouteConfiguration {
        name: "routes".into(),
        virtual_hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![ok],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let router = HttpFilter {
        name: "router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: name.into(),
        http_filters: http.into_iter().chain([router]).collect(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    };
    let manager =
        Filter { name: "http".into(), config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))) };
    Listener {
        name: name.into(),
        address: Some(socket_address(address)),
        filter_chains: vec![FilterChain {
            filters: network.into_iter().chain([manager]).collect(),
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

/// How a filter is asked for over ADS: Wasm, or the RBAC filter that stands in for it; Envoy waits for
/// it without a limit.
pub fn discovery(kind: Kind) -> ExtensionConfigSource {
    let type_urls = match kind {
        Kind::Http => vec![HttpWasm::type_url(), HttpRbac::type_url()],
        Kind::Network => vec![NetworkWasm::type_url(), NetworkRbac::type_url()],
    };
    ExtensionConfigSource {
        config_source: Some(ConfigSource { initial_fetch_timeout: Some(Duration::default()), ..ads() }),
        type_urls,
        ..ExtensionConfigSource::default()
    }
}

/// An HTTP filter that is discovered under this name.
pub fn http_slot(name: &str, discovery: ExtensionConfigSource) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(discovery)),
        ..HttpFilter::default()
    }
}

/// An HTTP filter that lets a request pass when all of it is there.
pub fn whole_requests() -> HttpFilter {
    let buffer = Buffer { max_request_bytes: Some(UInt32Value { value: 1024 }) };
    HttpFilter {
        name: "whole-requests".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(buffer))),
        ..HttpFilter::default()
    }
}

/// A network filter that is discovered under this name.
pub fn network_slot(name: &str, discovery: ExtensionConfigSource) -> Filter {
    Filter { name: name.into(), config_type: Some(filter::ConfigType::ConfigDiscovery(discovery)) }
}

/// A Wasm filter, as a control plane describes it.
#[derive(Debug, Clone)]
pub struct Wasm {
    pub kind: Kind,
    pub code: Code,
    /// Empty, a SHA-256 in hex, or `nil`.
    pub sha256: String,
    /// The VM's own environment: Istio's conventions travel in it.
    pub env: Vec<(String, String)>,
    pub failure_policy: FailurePolicy,
    /// What the plugin is configured with.
    pub configuration: String,
}

#[derive(Debug, Clone)]
pub enum Code {
    Remote(String),
    Local(String),
}

impl Wasm {
    pub fn remote(kind: Kind, url: impl Into<String>) -> Wasm {
        Wasm::new(kind, Code::Remote(url.into()))
    }

    pub fn local(kind: Kind, path: &Path) -> Wasm {
        Wasm::new(kind, Code::Local(path.to_str().expect("a path in UTF-8").into()))
    }

    fn new(kind: Kind, code: Code) -> Wasm {
        Wasm {
            kind,
            code,
            sha256: String::new(),
            env: Vec::new(),
            failure_policy: FailurePolicy::Unspecified,
            configuration: String::new(),
        }
    }

    /// Its ECDS resource.
    pub fn resource(&self, name: &str) -> Any {
        let code = match &self.code {
            Code::Remote(url) => core::async_data_source::Specifier::Remote(core::RemoteDataSource {
                http_uri: Some(core::HttpUri {
                    uri: url.clone(),
                    timeout: Some(Duration { seconds: 30, nanos: 0 }),
                    http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("_".into())),
                }),
                sha256: self.sha256.clone(),
                ..core::RemoteDataSource::default()
            }),
            Code::Local(path) => core::async_data_source::Specifier::Local(core::DataSource {
                specifier: Some(core::data_source::Specifier::Filename(path.clone())),
                ..core::DataSource::default()
            }),
        };
        let vm = VmConfig {
            runtime: "envoy.wasm.runtime.v8".into(),
            code: Some(AsyncDataSource { specifier: Some(code) }),
            environment_variables: (!self.env.is_empty()).then(|| EnvironmentVariables {
                key_values: self.env.iter().cloned().collect(),
                ..EnvironmentVariables::default()
            }),
            ..VmConfig::default()
        };
        let plugin = PluginConfig {
            name: name.into(),
            failure_policy: self.failure_policy.into(),
            configuration: Some(pack_any(StringValue { value: self.configuration.clone() })),
            vm: Some(plugin_config::Vm::VmConfig(vm)),
            ..PluginConfig::default()
        };
        let config = match self.kind {
            Kind::Http => pack_any(HttpWasm { config: Some(plugin) }),
            Kind::Network => pack_any(NetworkWasm { config: Some(plugin) }),
        };
        extension(name, config)
    }
}

/// An RBAC filter that nothing passes (403, or a closed connection), as an ECDS resource.
pub fn deny_all(kind: Kind, name: &str) -> Any {
    rbac(kind, name, Some(rbac_rules::Rbac { action: Action::Allow.into(), ..rbac_rules::Rbac::default() }))
}

/// An RBAC filter without rules, which everything passes, as an ECDS resource.
pub fn allow_all(kind: Kind, name: &str) -> Any {
    rbac(kind, name, None)
}

fn rbac(kind: Kind, name: &str, rules: Option<rbac_rules::Rbac>) -> Any {
    let config = match kind {
        Kind::Http => pack_any(HttpRbac { rules, ..HttpRbac::default() }),
        Kind::Network => {
            pack_any(NetworkRbac { rules, stat_prefix: "test".into(), ..NetworkRbac::default() })
        }
    };
    extension(name, config)
}

/// Any filter configuration as an ECDS resource.
pub fn extension(name: &str, config: Any) -> Any {
    pack_any(TypedExtensionConfig { name: name.into(), typed_config: Some(config) })
}

/// The name that a resource of a known type carries.
pub fn name_of(resource: &Any) -> String {
    let value = resource.value.as_slice();
    if resource.type_url == ecds_type() {
        TypedExtensionConfig::decode(value).expect("an extension config").name
    } else if resource.type_url == lds_type() {
        Listener::decode(value).expect("a listener").name
    } else {
        panic!("{} is not a type that the tests know", resource.type_url)
    }
}

/// The config source of whatever comes over the aggregated stream.
pub fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..ConfigSource::default()
    }
}

pub fn socket_address(address: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
            ..core::SocketAddress::default()
        })),
    }
}
