//! A plugin as the extension config that istiod makes of it, and the names that releases of Istio
//! gave that config.
//!
//! Knows nothing of streams. One difference from istiod: `file://` is remote code here too, so
//! that such a module is checked and stored like any other.

use crate::module::{PullPolicy, PullSecret};
use crate::protobuf::messages::{Any, TypedExtensionConfig};
use crate::protobuf::type_url;
use crate::protobuf::wire::{put_entry, put_len, put_message, put_string, put_varint};

use super::plugin::{FailStrategy, PluginType, WasmPlugin};

const RUNTIME: &str = "envoy.wasm.runtime.v8";
/// Required by Envoy's validation; nobody sends anything to it.
const CLUSTER: &str = "_";
const FETCH_TIMEOUT_SECS: u64 = 30;

const SECRET_ENV: &str = "ISTIO_META_WASM_IMAGE_PULL_SECRET";
const POLICY_ENV: &str = "ISTIO_META_WASM_IMAGE_PULL_POLICY";
const VERSION_ENV: &str = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION";

/// 1.21 to 1.25 (the spelling is theirs), 1.26 to 1.29. Up to 1.20 there was no prefix.
const PREFIXES: [&str; 2] = ["extenstions.istio.io/wasmplugin/", "extensions.istio.io/wasmplugin/"];
/// From 1.30 a `WasmPlugin` is translated to a `TrafficExtension` with a longer name.
const TRANSLATED_PREFIX: &str = "extensions.istio.io/trafficextension/";
const TRANSLATED_SUFFIX: &str = "~istio-translated-wasmplugin";

/// Which plugin a resource's name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResourceName<'a> {
    /// As it was asked for.
    asked: &'a str,
    /// `NAMESPACE.NAME`.
    pub plugin: &'a str,
    /// What the plugin is called inside of Envoy.
    plugin_config: &'a str,
}

impl<'a> ResourceName<'a> {
    /// Any text is the name of some resource, though of few that exist.
    pub fn new(asked: &'a str) -> Self {
        if let Some(translated) = asked.strip_prefix(TRANSLATED_PREFIX) {
            // Without the suffix it is a `TrafficExtension` of that name, which we do not have.
            let plugin = translated.strip_suffix(TRANSLATED_SUFFIX).unwrap_or_default();
            return Self { asked, plugin, plugin_config: translated };
        }
        let plugin = PREFIXES.iter().find_map(|prefix| asked.strip_prefix(prefix)).unwrap_or(asked);
        Self { asked, plugin, plugin_config: plugin }
    }
}

/// The encoded `TypedExtensionConfig`. The same plugin and name give the same bytes.
pub(super) fn extension_config(plugin: &WasmPlugin, name: ResourceName<'_>) -> Vec<u8> {
    let mut wasm = Vec::new();
    put_message(&mut wasm, 1, |out| put_plugin_config(out, plugin, name.plugin_config));
    let type_url = match plugin.kind {
        PluginType::Http => type_url::HTTP_WASM,
        PluginType::Network => type_url::NETWORK_WASM,
    };
    TypedExtensionConfig { name: name.asked, typed_config: Some(Any { type_url, value: &wasm }) }.encode()
}

/// `envoy.extensions.wasm.v3.PluginConfig`
fn put_plugin_config(out: &mut Vec<u8>, plugin: &WasmPlugin, name: &str) {
    put_string(out, 1, name);
    put_string(out, 2, &plugin.root_id);
    put_message(out, 3, |out| put_vm_config(out, plugin));
    put_message(out, 4, |out| {
        // Present without content where there is no configuration, as istiod has it.
        let Some(json) = plugin.configuration.as_deref().filter(|json| *json != "{}") else { return };
        let mut value = Vec::new();
        put_string(&mut value, 1, json);
        Any { type_url: type_url::STRING_VALUE, value: &value }.encode_onto(out);
    });
    let failure_policy = match plugin.fail_strategy {
        FailStrategy::Reload => 1,
        FailStrategy::Close => 2,
        FailStrategy::Open => 3,
    };
    put_varint(out, 7, failure_policy);
}

/// `envoy.extensions.wasm.v3.VmConfig`
fn put_vm_config(out: &mut Vec<u8>, plugin: &WasmPlugin) {
    put_string(out, 2, RUNTIME);
    put_message(out, 3, |code| {
        put_message(code, 2, |remote| {
            put_message(remote, 1, |uri| {
                put_string(uri, 1, &plugin.url);
                put_string(uri, 2, CLUSTER);
                put_message(uri, 3, |timeout| put_varint(timeout, 1, FETCH_TIMEOUT_SECS));
            });
            let sha256 = plugin.expected.map(|digest| hex::encode(digest.as_bytes()));
            put_string(remote, 2, &sha256.unwrap_or_default());
        });
    });
    put_message(out, 7, |environment| {
        for name in &plugin.host_env {
            put_len(environment, 1, name.as_bytes());
        }
        for (name, value) in agent_env(plugin) {
            put_entry(environment, 2, name, value);
        }
        // Sorted; none of them has a name of the agent's.
        for (name, value) in &plugin.env {
            put_entry(environment, 2, name, value);
        }
    });
}

/// What the agent is told by way of the VM's environment.
fn agent_env(plugin: &WasmPlugin) -> impl Iterator<Item = (&'static str, &str)> {
    let policy = plugin.policy.map(|policy| match policy {
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Always => "Always",
    });
    let secret = match &plugin.secret {
        PullSecret::None => None,
        PullSecret::Unavailable => Some(""),
        PullSecret::DockerConfig(secret) => Some(secret.expose()),
    };
    let version = Some(plugin.resource_version.as_str());
    [(POLICY_ENV, policy), (SECRET_ENV, secret), (VERSION_ENV, version)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
}

#[cfg(test)]
mod tests;
