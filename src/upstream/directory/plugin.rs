//! `WasmPlugin` (`extensions.istio.io/v1alpha1`), read as strictly as Kubernetes does: a
//! misspelt field or a value out of range is an error with file, line and field.
//!
//! Knows neither what becomes of a plugin on the wire nor how the folder is watched.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::error::{PluginError, Problem};
use super::fields::{self, Fault, Field, Fields};
use crate::digest::ExpectedDigest;
use crate::module::{Caller, InvalidUrl, ModuleRequest, ModuleUrl, PullPolicy, PullSecret};
use crate::secret::Secret;

/// The largest file that is read; as large as etcd takes an object.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// As in the custom resource definition.
const MAX_ENV: usize = 256;
const MAX_ENV_NAME: usize = 256;
const MAX_ENV_VALUE: usize = 2048;
const MAX_PLUGIN_NAME: usize = 256;
/// What has no limit of its own is limited by the file's size.
const ANY: usize = MAX_FILE_BYTES as usize;

const GROUP: &str = "extensions.istio.io/";
const API_VERSION: &str = "extensions.istio.io/v1alpha1";
/// The agent's own keys in a VM's environment; they never reach the plugin.
const RESERVED_ENV: &str = "ISTIO_META_";

/// What Envoy does where the plugin cannot be loaded or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailStrategy {
    Close,
    Open,
    Reload,
}

/// Which kind of filter the plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginType {
    Http,
    Network,
}

/// One plugin, valid.
#[derive(Clone, PartialEq)]
pub struct WasmPlugin {
    pub namespace: String,
    pub name: String,
    /// The URL as it was written, with its scheme.
    pub url: String,
    pub module: ModuleUrl,
    pub expected: Option<ExpectedDigest>,
    /// None where the URL decides.
    pub policy: Option<PullPolicy>,
    /// The name of the pull secret, and its content as far as it could be read.
    pub secret_name: Option<String>,
    pub secret: PullSecret,
    /// JSON; may hold secrets.
    pub configuration: Option<String>,
    /// `pluginName`: which of several plugins in one module.
    pub root_id: String,
    pub fail_strategy: FailStrategy,
    pub kind: PluginType,
    /// Values may be secrets.
    pub env: BTreeMap<String, String>,
    /// Variables that Envoy passes on from its own environment.
    pub host_env: Vec<String>,
    /// `metadata.resourceVersion`, otherwise a hash of the document.
    pub resource_version: String,
    /// Where the document begins in its file.
    pub line: u64,
}

/// For people: nothing in it but the names.
impl fmt::Debug for WasmPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WasmPlugin({})", self.full_name())
    }
}

impl WasmPlugin {
    /// `NAMESPACE.NAME`. A namespace has no dot, so this is never ambiguous.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// The request for its module.
    pub fn request(&self) -> ModuleRequest {
        ModuleRequest {
            url: self.module.clone(),
            expected: self.expected,
            policy: self.policy.unwrap_or_else(|| self.module.default_policy()),
            resource_version: Some(self.resource_version.clone()),
            secret: self.secret.clone(),
            timeout: None,
            caller: Caller::Nobody,
        }
    }

    /// Reads the pull secret that the plugin names from where it would be mounted:
    /// `NAME.dockerconfigjson` or `NAME/.dockerconfigjson` beside the plugin's own file.
    pub(super) fn load_secret(&mut self, file: &Path) -> Result<(), Problem> {
        let Some(name) = &self.secret_name else { return Ok(()) };
        let read = |path: &PathBuf| read_bounded(path).ok().filter(|text| !text.trim().is_empty());
        match secret_files(file, name).iter().find_map(read) {
            Some(text) => {
                self.secret = PullSecret::DockerConfig(Secret::new(text));
                Ok(())
            }
            None => {
                self.secret = PullSecret::Unavailable;
                Err(Problem {
                    file: file.to_owned(),
                    line: Some(self.line),
                    field: Some("spec.imagePullSecret".to_owned()),
                    why: format!("neither {name}.dockerconfigjson nor {name}/.dockerconfigjson can be read"),
                })
            }
        }
    }
}

/// Where a pull secret may lie for a plugin of this file.
pub(super) fn secret_files(file: &Path, name: &str) -> [PathBuf; 2] {
    let folder = file.parent().unwrap_or(Path::new(""));
    [folder.join(format!("{name}.dockerconfigjson")), folder.join(name).join(".dockerconfigjson")]
}

/// All `WasmPlugin`s of a YAML or JSON file, pull secrets beside it included. Documents of other
/// kinds are skipped. An unreadable secret is no error here: the plugin's request fails by it.
pub fn parse_file(file: &Path) -> Result<Vec<WasmPlugin>, PluginError> {
    let mut plugins = parse(file, &read(file)?)?;
    for plugin in &mut plugins {
        if let Err(problem) = plugin.load_secret(file) {
            tracing::warn!("{problem}");
        }
    }
    Ok(plugins)
}

/// The text of a file of plugins.
pub(super) fn read(file: &Path) -> Result<String, PluginError> {
    match read_bounded(file) {
        Ok(text) if text.is_empty() => Err(PluginError::Empty(Problem::of_file(
            file,
            "the file is empty; to remove its plugins, remove the file",
        ))),
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Err(PluginError::TooLarge(Problem::of_file(file, format!("larger than {MAX_FILE_BYTES} bytes"))))
        }
        Err(source) => Err(PluginError::Unreadable { file: file.to_owned(), source }),
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    // Opening a named pipe that nobody writes to must not block.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// All `WasmPlugin`s of a text, which is said to be `file`'s. Pull secrets are not read.
pub(super) fn parse(file: &Path, text: &str) -> Result<Vec<WasmPlugin>, PluginError> {
    let mut found = Found::default();
    fields::documents(text)
        .and_then(|documents| documents.into_iter().try_for_each(|document| found.add(document)))
        .map_err(|fault| PluginError::invalid(file, fault))?;
    if found.skipped > 0 {
        tracing::debug!(file = %file.display(), skipped = found.skipped, "documents of other kinds are skipped");
    }
    Ok(found.plugins)
}

#[derive(Default)]
struct Found {
    plugins: Vec<WasmPlugin>,
    skipped: usize,
}

impl Found {
    fn add(&mut self, document: Field) -> Result<(), Fault> {
        if document.is_list() {
            return self.add_items(&document);
        }
        let line = document.line();
        let mut fields = document.map()?;
        let api_version = fields.require("apiVersion")?;
        let kind = fields.require("kind")?.text(ANY)?;
        match (api_version.text(ANY)?.as_str(), kind.as_str()) {
            (API_VERSION, "WasmPlugin") => self.plugins.push(read_plugin(fields, line)?),
            ("v1", "List") | (API_VERSION, "WasmPluginList") => self.add_items(&fields.require("items")?)?,
            (other, "WasmPlugin") if other.starts_with(GROUP) => {
                return Err(api_version.fault(format!("expected {API_VERSION}")));
            }
            _ => self.skipped += 1,
        }
        Ok(())
    }

    fn add_items(&mut self, items: &Field) -> Result<(), Fault> {
        items.list(ANY)?.into_iter().try_for_each(|item| self.add(item))
    }
}

fn read_plugin(mut fields: Fields, line: u64) -> Result<WasmPlugin, Fault> {
    let content = fields.json();
    let mut metadata = fields.require("metadata")?.map()?;
    let name = subdomain(&metadata.require("name")?)?;
    let namespace = metadata.optional("namespace", label)?.unwrap_or_else(|| "default".to_owned());
    let resource_version = metadata
        .optional("resourceVersion", |field| field.text(ANY))?
        .unwrap_or_else(|| hex::encode(Sha256::digest(content)));
    let spec = fields.require("spec")?.map()?;
    // Written by controllers.
    fields.take("status");
    fields.finish()?;
    read_spec(spec, Identity { namespace, name, resource_version, line })
}

struct Identity {
    namespace: String,
    name: String,
    resource_version: String,
    line: u64,
}

fn read_spec(mut spec: Fields, identity: Identity) -> Result<WasmPlugin, Fault> {
    let Identity { namespace, name, resource_version, line } = identity;
    let (url, module) = read_url(&spec.require("url")?)?;
    let secret_name = spec.optional("imagePullSecret", subdomain)?;
    let (env, host_env) = spec.optional("vmConfig", read_vm_config)?.unwrap_or_default();
    let plugin = WasmPlugin {
        namespace,
        name,
        resource_version,
        line,
        url,
        module,
        env,
        host_env,
        secret: if secret_name.is_some() { PullSecret::Unavailable } else { PullSecret::None },
        secret_name,
        expected: spec.optional("sha256", read_sha256)?.flatten(),
        policy: spec.optional("imagePullPolicy", |field| field.choice(POLICIES))?.flatten(),
        configuration: spec.optional("pluginConfig", read_configuration)?,
        root_id: spec.optional("pluginName", |field| field.text(MAX_PLUGIN_NAME))?.unwrap_or_default(),
        fail_strategy: spec
            .optional("failStrategy", |field| field.choice(FAIL_STRATEGIES))?
            .unwrap_or(FailStrategy::Close),
        kind: spec.optional("type", |field| field.choice(TYPES))?.unwrap_or(PluginType::Http),
    };
    let placed = read_placement(&mut spec)?;
    spec.finish()?;
    if placed {
        let plugin = plugin.full_name();
        tracing::debug!(
            plugin,
            "phase, priority, match and selectors have no effect without a control plane"
        );
    }
    Ok(plugin)
}

const POLICIES: &[(&str, Option<PullPolicy>)] = &[
    ("UNSPECIFIED_POLICY", None),
    ("IfNotPresent", Some(PullPolicy::IfNotPresent)),
    ("Always", Some(PullPolicy::Always)),
];
const FAIL_STRATEGIES: &[(&str, FailStrategy)] = &[
    ("FAIL_CLOSE", FailStrategy::Close),
    ("FAIL_OPEN", FailStrategy::Open),
    ("FAIL_RELOAD", FailStrategy::Reload),
];
const TYPES: &[(&str, PluginType)] = &[
    ("UNSPECIFIED_PLUGIN_TYPE", PluginType::Http),
    ("HTTP", PluginType::Http),
    ("NETWORK", PluginType::Network),
];
const PHASES: &[(&str, ())] = &[("UNSPECIFIED_PHASE", ()), ("AUTHN", ()), ("AUTHZ", ()), ("STATS", ())];
/// Whether the variable comes from Envoy's own environment.
const VALUE_FROM: &[(&str, bool)] = &[("INLINE", false), ("HOST", true)];

/// The URL as it is sent, and what it means.
fn read_url(field: &Field) -> Result<(String, ModuleUrl), Fault> {
    let text = field.text(ANY)?;
    let text = text.trim();
    let module = text.parse().map_err(|error: InvalidUrl| field.fault(error.to_string()))?;
    let url = if text.contains("://") { text.to_owned() } else { format!("oci://{text}") };
    Ok((url, module))
}

fn read_sha256(field: &Field) -> Result<Option<ExpectedDigest>, Fault> {
    let text = field.text_or_empty(64)?;
    if text.is_empty() {
        return Ok(None);
    }
    let digest = ExpectedDigest::from_hex(&text);
    digest.map(Some).map_err(|_| field.fault("expected 64 lower-case hex digits"))
}

fn read_configuration(field: &Field) -> Result<String, Fault> {
    field.clone().map()?;
    Ok(field.json())
}

type Environment = (BTreeMap<String, String>, Vec<String>);

fn read_vm_config(field: &Field) -> Result<Environment, Fault> {
    let mut vm = field.clone().map()?;
    let variables = vm.optional("env", |env| env.list(MAX_ENV))?.unwrap_or_default();
    vm.finish()?;
    let (mut env, mut host_env) = Environment::default();
    for variable in variables {
        let mut variable = variable.map()?;
        let name_field = variable.require("name")?;
        let name = name_field.text(MAX_ENV_NAME)?;
        let from_host = variable.optional("valueFrom", |field| field.choice(VALUE_FROM))?.unwrap_or(false);
        let value_field = variable.take("value");
        variable.finish()?;
        if env.contains_key(&name) || host_env.contains(&name) {
            return Err(name_field.fault("is defined twice"));
        }
        match value_field {
            Some(value) if from_host => return Err(value.fault("must not be given with valueFrom: HOST")),
            _ if from_host => host_env.push(name),
            _ if name.starts_with(RESERVED_ENV) => {
                return Err(name_field.fault(format!("names that begin with {RESERVED_ENV} are reserved")));
            }
            value => {
                let value = value.map(|value| value.text_or_empty(MAX_ENV_VALUE)).transpose()?;
                env.insert(name, value.unwrap_or_default());
            }
        }
    }
    Ok((env, host_env))
}

/// Checks the fields that say where a control plane would place the plugin: here the listener says
/// that. Whether there are any.
fn read_placement(spec: &mut Fields) -> Result<bool, Fault> {
    let any_map = |field: &Field| field.clone().map().map(drop);
    let any_list = |field: &Field| field.list(ANY).map(drop);
    let given = [
        spec.optional("phase", |field| field.choice(PHASES))?,
        spec.optional("priority", |field| field.integer(i32::MIN.into(), i32::MAX.into()).map(drop))?,
        spec.optional("selector", any_map)?,
        spec.optional("targetRef", any_map)?,
        spec.optional("targetRefs", any_list)?,
        spec.optional("match", any_list)?,
    ];
    // Neither here nor in istiod.
    spec.optional("verificationKey", |field| field.text_or_empty(ANY))?;
    Ok(given.iter().any(Option::is_some))
}

/// A DNS-1123 subdomain: what Kubernetes takes as a name. Never a path.
fn subdomain(field: &Field) -> Result<String, Fault> {
    let text = field.text(253)?;
    if text.split('.').all(is_label) { Ok(text) } else { Err(field.fault(NAME_RULE)) }
}

/// A DNS-1123 label: what Kubernetes takes as a namespace.
fn label(field: &Field) -> Result<String, Fault> {
    let text = field.text(63)?;
    if is_label(&text) { Ok(text) } else { Err(field.fault(NAME_RULE)) }
}

const NAME_RULE: &str = "must be of lower-case letters, digits and `-`, as Kubernetes has its names";

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(inner)
}

#[cfg(test)]
mod tests;
