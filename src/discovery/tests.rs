//! Resources and responses are written by prost with Envoy's own messages, so that every field
//! number is theirs.

mod kept;
mod read;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{ConfigSource, ExtensionConfigSource};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::google::protobuf;
use prost::Message;

use super::*;

const WASM: &str = type_url::HTTP_WASM;
const RBAC: &str = type_url::HTTP_RBAC;

fn packed(type_url: &str, message: &impl Message) -> protobuf::Any {
    protobuf::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn source(type_urls: &[&str]) -> ExtensionConfigSource {
    ExtensionConfigSource {
        config_source: Some(ConfigSource { resource_api_version: 2, ..Default::default() }),
        type_urls: type_urls.iter().map(|url| (*url).to_owned()).collect(),
        ..Default::default()
    }
}

fn discovered(name: &str, source: ExtensionConfigSource) -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::ConfigDiscovery(source));
    HttpFilter { name: name.to_owned(), config_type, ..Default::default() }
}

fn typed(name: &str, type_url: &str, config: &impl Message) -> HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(packed(type_url, config)));
    HttpFilter { name: name.to_owned(), config_type, ..Default::default() }
}

fn network(name: &str, config_type: filter::ConfigType) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(config_type) }
}

fn manager(http_filters: Vec<HttpFilter>) -> Filter {
    let manager = HttpConnectionManager { http_filters, ..Default::default() };
    network("hcm", filter::ConfigType::TypedConfig(packed(type_url::HTTP_CONNECTION_MANAGER, &manager)))
}

fn chain(filters: Vec<Filter>) -> FilterChain {
    FilterChain { filters, ..Default::default() }
}

fn listener(name: &str, http_filters: Vec<HttpFilter>) -> Listener {
    let filter_chains = vec![chain(vec![manager(http_filters)])];
    Listener { name: name.to_owned(), filter_chains, ..Default::default() }
}

fn cluster(name: &str, http_filters: Vec<HttpFilter>) -> Cluster {
    let options = HttpProtocolOptions { http_filters, ..Default::default() };
    let options = packed(type_url::HTTP_PROTOCOL_OPTIONS, &options);
    Cluster {
        name: name.to_owned(),
        typed_extension_protocol_options: [("envoy.extensions.upstreams.http".to_owned(), options)].into(),
        ..Default::default()
    }
}
