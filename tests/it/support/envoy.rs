//! A real Envoy.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use envoy_types::pb::envoy::config::bootstrap::v3::{
    Admin, Bootstrap, LayeredRuntime, RuntimeLayer,
    bootstrap::{DynamicResources, StaticResources},
    runtime_layer::LayerSpecifier,
};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3::{
    self as core, ApiConfigSource, GrpcService, Http2ProtocolOptions, api_config_source::ApiType,
    grpc_service,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config,
};
use envoy_types::pb::google::protobuf::{Duration, Struct, Value, value};
use envoy_types::util::pack_any;
use http::StatusCode;
use prost::{Message, Name};
use rustix::process::Signal;

use super::client::{self, Answer, Broken};
use super::process::{Process, Program};
use super::world::{User, World, tool};
use super::{eventually, resources};

/// How Envoy speaks xDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// State of the world, by the mux that is the default.
    Sotw,
    /// State of the world, by the unified mux.
    SotwUnified,
    Delta,
}

impl Variant {
    pub const ALL: [Variant; 3] = [Variant::Sotw, Variant::SotwUnified, Variant::Delta];
}

/// Where Envoy finds its xDS server.
#[derive(Debug, Clone)]
pub enum Xds {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// What Envoy starts with.
#[derive(Debug, Clone)]
pub struct Options {
    pub xds: Xds,
    pub variant: Variant,
    /// Listeners in the bootstrap.
    pub listeners: Vec<Listener>,
    /// Whether listeners are asked for over ADS as well.
    pub lds: bool,
    pub node_id: String,
    /// Metadata of every xDS stream.
    pub metadata: Vec<(String, String)>,
    /// More arguments. Where they name `--base-id`, hot restart stays on.
    pub args: Vec<String>,
}

impl Options {
    /// Listeners over ADS, and nothing else.
    pub fn lds(xds: Xds, variant: Variant) -> Options {
        Options {
            xds,
            variant,
            listeners: Vec::new(),
            lds: true,
            node_id: "envoy".into(),
            metadata: Vec::new(),
            args: Vec::new(),
        }
    }

    /// This listener in the bootstrap, its filters over ADS.
    pub fn with_listener(xds: Xds, variant: Variant, listener: Listener) -> Options {
        Options { listeners: vec![listener], lds: false, ..Options::lds(xds, variant) }
    }

    /// The bootstrap.
    pub fn bootstrap(&self) -> Bootstrap {
        let address = match &self.xds {
            Xds::Tcp(address) => resources::socket_address(*address),
            Xds::Unix(path) => core::Address {
                address: Some(core::address::Address::Pipe(core::Pipe {
                    path: path.to_str().expect("a path in UTF-8").into(),
                    ..core::Pipe::default()
                })),
            },
        };
        Bootstrap {
            node: Some(core::Node {
                id: self.node_id.clone(),
                cluster: "test".into(),
                ..core::Node::default()
            }),
            admin: Some(Admin {
                address: Some(resources::socket_address(([127, 0, 0, 1], 0).into())),
                ..Admin::default()
            }),
            static_resources: Some(StaticResources {
                listeners: self.listeners.clone(),
                clusters: vec![http2_cluster("xds", address)],
                ..StaticResources::default()
            }),
            dynamic_resources: Some(DynamicResources {
                ads_config: Some(agent_service(self.variant, &self.metadata)),
                lds_config: self.lds.then(resources::ads),
                ..DynamicResources::default()
            }),
            layered_runtime: Some(LayeredRuntime {
                layers: vec![unified_mux(self.variant == Variant::SotwUnified)],
            }),
            ..Bootstrap::default()
        }
    }
}

/// The agent, asked by gRPC with this metadata. Its authority is set, since Rust's h2 refuses many a
/// cluster's name.
fn agent_service(variant: Variant, metadata: &[(String, String)]) -> ApiConfigSource {
    let metadata = metadata.iter().map(|(key, value)| core::HeaderValue {
        key: key.clone(),
        value: value.clone(),
        ..core::HeaderValue::default()
    });
    let service = GrpcService {
        initial_metadata: metadata.collect(),
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: "xds".into(),
            authority: "agent".into(),
            retry_policy: Some(reconnect_soon()),
            ..grpc_service::EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    };
    let api_type = match variant {
        Variant::Delta => ApiType::DeltaGrpc,
        Variant::Sotw | Variant::SotwUnified => ApiType::Grpc,
    };
    ApiConfigSource {
        api_type: api_type.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![service],
        ..ApiConfigSource::default()
    }
}

/// How a filter is asked for by the service of extension configs: otherwise as
/// [`resources::discovery`].
pub fn discovery_by_its_service(kind: resources::Kind, variant: Variant) -> core::ExtensionConfigSource {
    let mut discovery = resources::discovery(kind);
    let source = discovery.config_source.get_or_insert_default();
    let service = core::config_source::ConfigSourceSpecifier::ApiConfigSource(agent_service(variant, &[]));
    source.config_source_specifier = Some(service);
    discovery
}

/// Envoy's own backoff goes up to 30 s.
fn reconnect_soon() -> core::RetryPolicy {
    let milliseconds = |count: i32| Some(Duration { seconds: 0, nanos: count * 1_000_000 });
    core::RetryPolicy {
        retry_back_off: Some(core::BackoffStrategy {
            base_interval: milliseconds(100),
            max_interval: milliseconds(500),
        }),
        ..core::RetryPolicy::default()
    }
}

fn http2_cluster(name: &str, address: core::Address) -> Cluster {
    let http2 = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                Http2ProtocolOptions::default(),
            )),
        })),
        ..HttpProtocolOptions::default()
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static.into(),
        )),
        typed_extension_protocol_options: HashMap::from([(
            HttpProtocolOptions::full_name(),
            pack_any(http2),
        )]),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

fn unified_mux(on: bool) -> RuntimeLayer {
    let on = Value { kind: Some(value::Kind::BoolValue(on)) };
    RuntimeLayer {
        name: "test".into(),
        layer_specifier: Some(LayerSpecifier::StaticLayer(Struct {
            fields: HashMap::from([("envoy.reloadable_features.unified_mux".into(), on)]),
        })),
    }
}

/// A running Envoy; ends when it is dropped.
pub struct Envoy {
    process: Process,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts it and waits until its admin interface answers. That is before it is live.
    pub async fn start(world: &World, options: &Options) -> Envoy {
        let mut args = options.args.clone();
        if !args.iter().any(|arg| arg == "--base-id") {
            args.push("--disable-hot-restart".into());
        }
        let bootstrap = options.bootstrap().encode_to_vec();
        Envoy::run(world, &options.node_id, ".pb", &bootstrap, &args).await
    }

    /// The same with any bootstrap, in the format of this extension.
    pub async fn run(world: &World, name: &str, extension: &str, bootstrap: &[u8], more: &[String]) -> Envoy {
        let folder = world.folder("envoy", User::Envoy, 0o700);
        let bootstrap = world.write(&format!("envoy/{name}{extension}"), bootstrap, User::Envoy, 0o400);
        let admin_address = folder.join(format!("{name}.admin"));
        let _ = std::fs::remove_file(&admin_address);
        let mut args: Vec<String> = [
            "--concurrency 2 --drain-time-s 1 --drain-strategy immediate --log-level info",
            "--component-log-level config:debug,wasm:debug --admin-address-path",
        ]
        .iter()
        .flat_map(|line| line.split(' ').map(str::to_owned))
        .collect();
        args.push(admin_address.display().to_string());
        args.extend(["--config-path".into(), bootstrap.display().to_string()]);
        args.extend(more.iter().cloned());
        let program = Program {
            name: name.into(),
            path: tool("envoy"),
            user: User::Envoy,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
        };
        let mut process = program.start(world);
        let admin = eventually("Envoy's admin interface", async || {
            process.assert_running();
            let admin = std::fs::read_to_string(&admin_address).ok()?.parse().ok()?;
            client::get(admin, "/server_info").await.ok().map(|_| admin)
        })
        .await;
        Envoy { process, admin }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(mut self) {
        self.process.signal(Signal::TERM);
        self.process.end().await;
    }

    /// A page of the admin interface.
    pub async fn admin(&self, path: &str) -> Answer {
        client::get(self.admin, path).await.expect("Envoy's admin interface")
    }

    /// Whether it has all its first configuration, and takes requests.
    pub async fn is_live(&self) -> bool {
        self.admin("/ready").await.status == StatusCode::OK
    }

    pub async fn live(&self) {
        eventually("a live Envoy", async || self.is_live().await.then_some(())).await;
    }

    pub async fn config_dump(&self) -> serde_json::Value {
        let dump = self.admin("/config_dump?include_eds").await;
        serde_json::from_slice(&dump.body).expect("JSON from /config_dump")
    }

    /// A counter or gauge; 0 where Envoy has none of this name yet.
    pub async fn stat(&self, name: &str) -> u64 {
        let answer = self.admin(&format!("/stats?filter=^{}$", name.replace('.', "\\."))).await;
        let text = answer.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(0, |value| value.parse().expect("a number from /stats"))
    }

    /// A counter of one discovered filter: `config_reload`, `update_success`, `update_rejected`, ...
    pub async fn ecds_stat(&self, kind: resources::Kind, filter: &str, counter: &str) -> u64 {
        let kind = match kind {
            resources::Kind::Http => "http_filter",
            resources::Kind::Network => "network_filter",
        };
        self.stat(&format!("extension_config_discovery.{kind}.{filter}.{counter}")).await
    }

    /// Holds that a discovered filter was put in place so often. Envoy counts it a little after it has done so.
    pub async fn reloaded(&self, kind: resources::Kind, filter: &str, times: u64) {
        let reloads = async || self.ecds_stat(kind, filter, "config_reload").await;
        eventually(&format!("{times} reloads"), async || (reloads().await >= times).then_some(())).await;
        assert_eq!(reloads().await, times, "{filter}");
    }

    /// Where a listener listens, as soon as it does.
    pub async fn listener(&self, name: &str) -> SocketAddr {
        eventually("an active listener", async || {
            let body = self.admin("/listeners?format=json").await.body;
            let listeners: serde_json::Value = serde_json::from_slice(&body).ok()?;
            let listeners = listeners.get("listener_statuses")?.as_array()?;
            let listener = listeners.iter().find(|listener| listener["name"] == name)?;
            let address = &listener["local_address"]["socket_address"];
            let ip: std::net::IpAddr = address["address"].as_str()?.parse().ok()?;
            let port: u16 = address["port_value"].as_u64()?.try_into().ok()?;
            Some(SocketAddr::from((ip, port)))
        })
        .await
    }

    /// Requests `/` from a listener until the answer is one that is waited for.
    pub async fn answers(&self, what: &str, listener: SocketAddr, good: impl Fn(&Answer) -> bool) -> Answer {
        eventually(what, async || request(listener).await.ok().filter(&good)).await
    }
}

/// One request for `/` to a listener.
pub async fn request(listener: SocketAddr) -> Result<Answer, Broken> {
    client::get(listener, "/").await
}
