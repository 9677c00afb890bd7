//! What the environment says beside the file: proxies, and the variables of Istio's agent, which keep their
//! meaning here. The file wins where both speak.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::address::parse_host;
use super::environment::Environment;
use super::error::ConfigError;
use super::units::{show_duration, show_size};
use super::{Config, schema};
use crate::fetch::{ANY_REGISTRY, Access, Proxies, Proxy, Registry, Scheme, go_duration};
use crate::secret::Secret;
use crate::yaml::{Node, Value};

/// What stands in for keys that the file does not set.
#[derive(Debug, Clone, Default)]
pub(super) struct Defaults {
    pub(super) cache_directory: Option<PathBuf>,
    pub(super) timeout: Option<Duration>,
    pub(super) expiry: Option<Duration>,
    pub(super) retries: Option<u32>,
    pub(super) max_module_bytes: Option<u64>,
}

/// A variable that is set, and what comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    pub name: &'static str,
    /// For people: `cache.expiry: 12h`. Holds no secret.
    pub effect: String,
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.effect)
    }
}

/// All that the environment says, read.
#[derive(Debug, Clone, Default)]
pub(super) struct Variables {
    pub(super) defaults: Defaults,
    insecure: Vec<String>,
    blocked: Vec<IpNet>,
    proxies: Proxies,
    purge: bool,
}

const INSECURE: &str = "WASM_INSECURE_REGISTRIES";
const TIMEOUT: &str = "WASM_HTTP_REQUEST_TIMEOUT";
const RETRIES: &str = "WASM_HTTP_REQUEST_MAX_RETRIES";
const EXPIRY: &str = "WASM_MODULE_EXPIRY";
const PURGE: &str = "WASM_PURGE_INTERVAL";
const MAX_SIZE: &str = "ISTIO_WASM_MAX_BINARY_SIZE_BYTES";
const BLOCKED: &str = "BLOCKED_CIDRS_IN_WASM_FETCH";
/// All of Istio's that mean something here.
pub(super) const ISTIO: [&str; 7] = [INSECURE, TIMEOUT, RETRIES, EXPIRY, PURGE, MAX_SIZE, BLOCKED];

impl Variables {
    /// # Errors
    /// A variable holds something else than it may. Nothing of it is repeated.
    pub(super) fn read(environment: &Environment) -> Result<Self, ConfigError> {
        let setting = |name, why: &str| ConfigError::Setting { name, why: why.to_owned() };
        let variable = |name: &'static str| environment.istio.get(name).map(String::as_str);
        let duration = |name: &'static str, range: RangeInclusive<Duration>| {
            let parse = |text: &str| go_duration(text).filter(|duration| range.contains(duration));
            let (low, high) = (show_duration(*range.start()), show_duration(*range.end()));
            let why = format!("not a duration from {low} to {high}, as in 1m30s");
            variable(name).map(|text| parse(text).ok_or_else(|| setting(name, &why))).transpose()
        };
        let size = |text: &str| {
            let size = text.parse().ok().filter(|size| schema::MODULE_BYTES.contains(size));
            size.ok_or_else(|| setting(MAX_SIZE, "not a number of bytes from 1024 to 4294967296"))
        };
        // Istio's agent counts the first one too.
        let retries = |text: &str| {
            let retries = text.parse::<u64>().ok().map(|tries| tries.saturating_sub(1));
            let retries = retries.filter(|retries| schema::RETRIES.contains(retries));
            let retries = retries.and_then(|retries| u32::try_from(retries).ok());
            retries.ok_or_else(|| setting(RETRIES, "not a number of tries from 0 to 21"))
        };
        let list = |name| {
            variable(name).unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty())
        };
        let host = |text: &str| match text {
            ANY_REGISTRY => Ok(ANY_REGISTRY.to_owned()),
            host => parse_host(host).map_err(|why| setting(INSECURE, &why.to_string())),
        };
        let network = |text: &str| {
            text.parse().map_err(|_| setting(BLOCKED, "not a list of networks, as in 10.0.0.0/8,fd00::/8"))
        };
        let proxy = |name, text: &Option<Secret>| {
            let proxy = text.as_ref().map(|text| Proxy::parse(text.expose()));
            proxy.transpose().map_err(|why| setting(name, why))
        };
        Ok(Variables {
            defaults: Defaults {
                cache_directory: environment.cache_directory.clone(),
                timeout: duration(TIMEOUT, schema::TIMEOUT)?,
                expiry: duration(EXPIRY, schema::EXPIRY)?,
                retries: variable(RETRIES).map(retries).transpose()?,
                max_module_bytes: variable(MAX_SIZE).map(size).transpose()?,
            },
            insecure: list(INSECURE).map(host).collect::<Result<_, _>>()?,
            blocked: list(BLOCKED).map(network).collect::<Result<_, _>>()?,
            proxies: Proxies::new(
                proxy("HTTP_PROXY", &environment.http_proxy)?,
                proxy("HTTPS_PROXY", &environment.https_proxy)?,
                environment.no_proxy.as_deref().unwrap_or_default(),
            ),
            purge: variable(PURGE).is_some(),
        })
    }

    /// Adds to a configuration what its file leaves open, and what comes of each variable.
    pub(super) fn complete(self, config: &mut Config, file: &FileKeys) {
        let mut told = Vec::new();
        let mut tell = |name, effect: String| told.push(Variable { name, effect });
        let mut default = |name, set: bool, key: &str, value: String| match set {
            true => tell(name, format!("without effect, since the file sets {key}")),
            false => tell(name, format!("{key}: {value}")),
        };
        if let Some(timeout) = self.defaults.timeout {
            default(TIMEOUT, file.timeout, "fetch.timeout", show_duration(timeout));
        }
        if let Some(retries) = self.defaults.retries {
            default(RETRIES, file.retries, "fetch.retries", retries.to_string());
        }
        if let Some(expiry) = self.defaults.expiry {
            default(EXPIRY, file.expiry, "cache.expiry", show_duration(expiry));
        }
        if let Some(size) = self.defaults.max_module_bytes {
            default(MAX_SIZE, file.max_module_bytes, "cache.max_module_bytes", show_size(size));
        }
        for host in self.insecure {
            let name = if host == ANY_REGISTRY { "all other registries" } else { &host };
            if config.registries.contains_key(&host) {
                tell(INSECURE, format!("without effect, since the file speaks of {name}"));
                continue;
            }
            tell(INSECURE, format!("{name} need not prove who they are, and may be spoken to in plain HTTP"));
            let access = Access { skip_verify: true, ..Access::default() };
            let registry = Registry { scheme: Scheme::HttpsThenHttp, access, ..Registry::default() };
            config.registries.insert(host, registry);
        }
        if !self.blocked.is_empty() {
            let networks: Vec<_> = self.blocked.iter().map(ToString::to_string).collect();
            tell(BLOCKED, format!("added to blocked_cidrs: {}", networks.join(", ")));
            for network in self.blocked {
                if !config.blocked_cidrs.contains(&network) {
                    config.blocked_cidrs.push(network);
                }
            }
        }
        if self.purge {
            tell(PURGE, "without effect: what has expired is removed within a minute".to_owned());
        }
        config.proxies = self.proxies;
        config.variables = told;
    }
}

/// Which of the keys that a variable stands in for the file sets.
pub(super) struct FileKeys {
    timeout: bool,
    retries: bool,
    expiry: bool,
    max_module_bytes: bool,
}

impl FileKeys {
    pub(super) fn of(root: &Node) -> Self {
        let set = |section, key| child(root, section).and_then(|section| child(section, key)).is_some();
        FileKeys {
            timeout: set("fetch", "timeout"),
            retries: set("fetch", "retries"),
            expiry: set("cache", "expiry"),
            max_module_bytes: set("cache", "max_module_bytes"),
        }
    }
}

/// The value of a key of a map; none where it is null.
fn child<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    let entry = entries.iter().find(|entry| entry.key == key)?;
    (!matches!(entry.node.value, Value::Null)).then_some(&entry.node)
}
