use std::path::Path;

use envoy_types::pb::envoy::config::core::v3::async_data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::core::v3::{self as core, AsyncDataSource, HttpUri, RemoteDataSource};
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm as HttpWasm;
use envoy_types::pb::envoy::extensions::filters::network::wasm::v3::Wasm as NetworkWasm;
use envoy_types::pb::envoy::extensions::wasm::v3::plugin_config::Vm;
use envoy_types::pb::envoy::extensions::wasm::v3::{
    EnvironmentVariables, FailurePolicy, PluginConfig, VmConfig,
};
use envoy_types::pb::google::protobuf::{Any, Duration, StringValue};
use prost::Message as _;

use super::*;
use crate::module::ModuleRequest;
use crate::rewrite::{self, Plan};
use crate::secret::Secret;
use crate::upstream::directory::plugin;

fn plugin(spec: &str) -> WasmPlugin {
    let text = format!(
        "{{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, \
         metadata: {{name: auth, namespace: shop, resourceVersion: '42'}}, spec: {{{spec}}}}}"
    );
    plugin::parse(Path::new("p.yaml"), &text).unwrap().remove(0)
}

fn encoded(plugin: &WasmPlugin, name: &str) -> core::TypedExtensionConfig {
    let bytes = extension_config(plugin, ResourceName::new(name));
    core::TypedExtensionConfig::decode(bytes.as_slice()).unwrap()
}

fn http_config(plugin: &WasmPlugin) -> PluginConfig {
    let any = encoded(plugin, "shop.auth").typed_config.unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm");
    HttpWasm::decode(any.value.as_slice()).unwrap().config.unwrap()
}

#[test]
fn a_plugin_becomes_what_istiod_makes_of_it() {
    let digest = "ab".repeat(32);
    let mut plugin = plugin(&format!(
        "url: 'r.io/auth:v1', sha256: {digest}, imagePullPolicy: IfNotPresent, imagePullSecret: key, \
         pluginConfig: {{b: 2, a: one}}, pluginName: root, failStrategy: FAIL_OPEN, \
         vmConfig: {{env: [{{name: Z, value: last}}, {{name: HOME, valueFrom: HOST}}, {{name: A, value: first}}]}}"
    ));
    plugin.secret = PullSecret::DockerConfig(Secret::new(r#"{"auths":{}}"#.to_owned()));

    let configuration = StringValue { value: r#"{"a":"one","b":2}"#.to_owned() };
    let expected = PluginConfig {
        name: "shop.auth".to_owned(),
        root_id: "root".to_owned(),
        configuration: Some(Any {
            type_url: "type.googleapis.com/google.protobuf.StringValue".to_owned(),
            value: configuration.encode_to_vec(),
        }),
        failure_policy: FailurePolicy::FailOpen.into(),
        vm: Some(Vm::VmConfig(VmConfig {
            runtime: "envoy.wasm.runtime.v8".to_owned(),
            code: Some(AsyncDataSource {
                specifier: Some(Specifier::Remote(RemoteDataSource {
                    http_uri: Some(HttpUri {
                        uri: "oci://r.io/auth:v1".to_owned(),
                        timeout: Some(Duration { seconds: 30, nanos: 0 }),
                        http_upstream_type: Some(HttpUpstreamType::Cluster("_".to_owned())),
                    }),
                    sha256: digest,
                    retry_policy: None,
                })),
            }),
            environment_variables: Some(EnvironmentVariables {
                host_env_keys: vec!["HOME".to_owned()],
                key_values: [
                    ("ISTIO_META_WASM_IMAGE_PULL_POLICY", "IfNotPresent"),
                    ("ISTIO_META_WASM_IMAGE_PULL_SECRET", r#"{"auths":{}}"#),
                    ("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", "42"),
                    ("A", "first"),
                    ("Z", "last"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            }),
            ..VmConfig::default()
        })),
        ..PluginConfig::default()
    };
    assert_eq!(http_config(&plugin), expected);
}

#[test]
fn nothing_is_written_that_the_generated_types_do_not_know() {
    let plugin = plugin("url: 'https://h/a.wasm', type: NETWORK, vmConfig: {env: [{name: A, value: b}]}");
    // One entry in the map, so that the order of a hash map plays no part.
    let plugin = WasmPlugin { resource_version: "7".to_owned(), env: Default::default(), ..plugin };
    let bytes = extension_config(&plugin, ResourceName::new("shop.auth"));
    let decoded = core::TypedExtensionConfig::decode(bytes.as_slice()).unwrap();
    let any = decoded.typed_config.clone().unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm");
    let wasm = NetworkWasm::decode(any.value.as_slice()).unwrap();
    assert_eq!(wasm.encode_to_vec(), any.value);
    assert_eq!(decoded.encode_to_vec(), bytes);
}

#[test]
fn without_a_configuration_an_empty_any_is_sent() {
    assert_eq!(http_config(&plugin("url: r.io/a")).configuration, Some(Any::default()));
    assert_eq!(http_config(&plugin("url: r.io/a, pluginConfig: {}")).configuration, Some(Any::default()));
}

#[test]
fn each_fail_strategy_is_sent_as_its_policy() {
    let policy = |spec: &str| {
        let config = http_config(&plugin(&format!("url: r.io/a{spec}")));
        #[allow(deprecated, reason = "it must stay unset")]
        let fail_open = config.fail_open;
        assert!(!fail_open);
        config.failure_policy()
    };
    assert_eq!(policy(""), FailurePolicy::FailClosed);
    assert_eq!(policy(", failStrategy: FAIL_CLOSE"), FailurePolicy::FailClosed);
    assert_eq!(policy(", failStrategy: FAIL_OPEN"), FailurePolicy::FailOpen);
    assert_eq!(policy(", failStrategy: FAIL_RELOAD"), FailurePolicy::FailReload);
}

#[test]
fn a_secret_that_cannot_be_read_is_sent_empty_and_none_is_not_sent() {
    let env = |spec: &str| {
        let Some(Vm::VmConfig(vm)) = http_config(&plugin(spec)).vm else { unreachable!() };
        vm.environment_variables.unwrap().key_values
    };
    let secret = "ISTIO_META_WASM_IMAGE_PULL_SECRET";
    assert_eq!(env("url: r.io/a, imagePullSecret: key").get(secret).map(String::as_str), Some(""));
    let without = env("url: r.io/a");
    assert_eq!(without.keys().collect::<Vec<_>>(), ["ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION"]);
}

#[test]
fn a_file_is_remote_code_too() {
    let Some(Vm::VmConfig(vm)) = http_config(&plugin("url: 'file:///modules/a.wasm'")).vm else {
        unreachable!()
    };
    let Some(Specifier::Remote(remote)) = vm.code.unwrap().specifier else { panic!("not remote") };
    assert_eq!(remote.http_uri.unwrap().uri, "file:///modules/a.wasm");
}

#[test]
fn a_plugin_has_the_name_of_every_release() {
    let plugin = plugin("url: r.io/a");
    let translated = "shop.auth~istio-translated-wasmplugin";
    for (name, inner) in [
        ("shop.auth", "shop.auth"),
        ("extenstions.istio.io/wasmplugin/shop.auth", "shop.auth"),
        ("extensions.istio.io/wasmplugin/shop.auth", "shop.auth"),
        ("extensions.istio.io/trafficextension/shop.auth~istio-translated-wasmplugin", translated),
    ] {
        assert_eq!(ResourceName::new(name).plugin, "shop.auth", "{name}");
        let config = encoded(&plugin, name);
        assert_eq!(config.name, name);
        let wasm = HttpWasm::decode(config.typed_config.unwrap().value.as_slice()).unwrap();
        assert_eq!(wasm.config.unwrap().name, inner);
    }
}

#[test]
fn other_names_are_of_no_plugin() {
    for name in [
        "",
        "extensions.istio.io/trafficextension/shop.auth",
        "extensions.istio.io/wasmplugin/",
        "extensions.istio.io/lua/shop.auth",
        "shop.auth~istio-translated-wasmplugin",
    ] {
        assert_ne!(ResourceName::new(name).plugin, "shop.auth", "{name}");
    }
}

#[test]
fn the_agent_reads_the_same_request_out_of_the_resource() {
    let digest = "cd".repeat(32);
    for spec in [
        "url: 'r.io/auth'",
        "url: 'r.io/auth:v1', imagePullPolicy: Always, imagePullSecret: key, type: NETWORK",
        "url: 'file:///modules/a.wasm', imagePullPolicy: IfNotPresent",
        &format!(
            "url: 'https://h/a.wasm?token=1', sha256: {digest}, vmConfig: {{env: [{{name: A, value: b}}]}}"
        ),
    ] {
        let plugin = plugin(spec);
        let config = extension_config(&plugin, ResourceName::new("shop.auth"));
        let Ok(Plan::Remote(remote)) = rewrite::plan(type_url::EXTENSION_CONFIG, &config.into()) else {
            panic!("{spec}: not remote")
        };
        let expected =
            ModuleRequest { timeout: Some(std::time::Duration::from_secs(30)), ..plugin.request() };
        assert_eq!(remote.request, Ok(expected), "{spec}");
    }
}
