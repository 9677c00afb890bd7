//! Resource to resource: what an ECDS resource asks for, and the resource that Envoy gets instead.
//!
//! A Wasm filter whose code is remote is taken apart into the request for its module and a template
//! that takes the module's path; everything else in it stays byte for byte. The filter is a message
//! (`binary`) or the same message written as a `Struct` (`typed_struct`); both give a `Reading`.
//!
//! Pure: no I/O, no clock. Knows nothing of streams or of how a module is fetched.

mod binary;
mod error;
mod fallback;
mod frame;
mod request;
mod typed_struct;

use std::fmt;
use std::path::Path;

use bytes::Bytes;

use crate::module::ModuleRequest;
use crate::protobuf::messages::TypedExtensionConfig;
use crate::protobuf::type_url;
use crate::protobuf::wire::{Fields, Value, text};
pub use error::{InvalidRequest, RewriteError};
use frame::{Template, cut, is_len};
use request::Source;

/// What is to be done with a resource.
#[derive(Clone)]
pub enum Plan {
    /// It goes on as it came: not Wasm, or Wasm with local code and no key for the agent.
    Untouched,
    /// Local code; this is the resource without the keys that are for the agent.
    Stripped(Bytes),
    /// The code is remote.
    Remote(Box<Remote>),
}

/// A Wasm filter with remote code.
#[derive(Clone)]
pub struct Remote {
    /// The resource's name.
    pub name: String,
    /// The module that it wants. A request that cannot be met is no reason to reject the resource:
    /// its failure mode applies.
    pub request: Result<ModuleRequest, InvalidRequest>,
    pub failure: FailureMode,
    pub kind: FilterKind,
    /// A hash of all that the resource says, except for the pull secret and the resource version:
    /// two with the same key are the same to Envoy once they lead to the same module.
    pub source_key: [u8; 32],
    template: Template,
}

/// What happens to traffic while a filter's module cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureMode {
    /// It passes as if the filter were not there.
    Allow,
    /// It is refused.
    Deny,
}

/// Where a filter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilterKind {
    Http,
    Network,
}

/// What is to be done with one ECDS resource, given as the `google.protobuf.Any` that carries it.
pub fn plan(type_url: &str, value: &Bytes) -> Result<Plan, RewriteError> {
    if !type_url::same(type_url, type_url::EXTENSION_CONFIG) {
        return Err(RewriteError::NotExtensionConfig);
    }
    let config = TypedExtensionConfig::decode(value)?;
    let name = named(config.name)?;
    let filter_type = config.typed_config.ok_or(RewriteError::NoTypedConfig)?.type_url;

    let mut template = Template::default();
    let any = template.enter("TypedExtensionConfig", value, 2)?.unwrap_or_default();
    let Some((kind, reading)) = read(filter_type, template, &any)? else { return Ok(Plan::Untouched) };
    Ok(match reading.code {
        Code::Local { stripped: None } => Plan::Untouched,
        Code::Local { stripped: Some(resource) } => Plan::Stripped(resource),
        Code::Remote { template, source } => Plan::Remote(Box::new(Remote {
            name: name.to_owned(),
            source_key: source.key(&template),
            request: source.into_request(),
            failure: reading.failure,
            kind,
            template,
        })),
    })
}

/// The name of an ECDS resource (`TypedExtensionConfig.name`).
pub fn resource_name(value: &[u8]) -> Result<&str, RewriteError> {
    named(TypedExtensionConfig::decode(value)?.name)
}

/// Envoy takes no resource without a name.
fn named(name: &str) -> Result<&str, RewriteError> {
    if name.is_empty() { Err(RewriteError::NoName) } else { Ok(name) }
}

/// Reads the filter in an `Any`; `None` where it is not Wasm.
fn read(
    filter_type: &str,
    mut template: Template,
    any: &Bytes,
) -> Result<Option<(FilterKind, Reading)>, RewriteError> {
    let typed_struct = [type_url::UDPA_TYPED_STRUCT, type_url::XDS_TYPED_STRUCT];
    let typed_struct = typed_struct.iter().any(|known| type_url::same(known, filter_type));
    if !typed_struct && FilterKind::of(filter_type).is_none() {
        return Ok(None);
    }

    // `Any.value` is a scalar: the last one counts, and they do not merge.
    let value = cut("google.protobuf.Any", any, |field| Ok(is_len(field, 2)))?;
    let filter = match value {
        None => Bytes::new(),
        Some(cut) => {
            let filter = cut.last().map(|last| last.bytes.clone()).unwrap_or_default();
            template.push(cut.into_frame(2));
            filter
        }
    };
    if !typed_struct {
        let Some(kind) = FilterKind::of(filter_type) else { return Ok(None) };
        return Ok(Some((kind, binary::read(template, &filter)?)));
    }
    let Some(kind) = FilterKind::of(type_inside(&filter)?) else { return Ok(None) };
    let fields = template.enter("TypedStruct", &filter, 2)?.ok_or(RewriteError::NoCode)?;
    Ok(Some((kind, typed_struct::read(template, &fields)?)))
}

/// The type of the message that a `TypedStruct` holds.
fn type_inside(typed_struct: &[u8]) -> Result<&str, RewriteError> {
    let mut type_url = "";
    for field in Fields::of("TypedStruct", typed_struct) {
        let field = field?;
        if let (1, Value::Len(bytes)) = (field.number, field.value) {
            type_url = text("TypedStruct.type_url", bytes)?;
        }
    }
    Ok(type_url)
}

/// What a Wasm filter's configuration says, in whichever encoding.
struct Reading {
    failure: FailureMode,
    code: Code,
}

enum Code {
    Local {
        /// The resource without the agent's keys, where it had any.
        stripped: Option<Bytes>,
    },
    Remote {
        /// The resource with local code and a gap for the path, without the agent's keys.
        template: Template,
        source: Source,
    },
}

impl FailureMode {
    /// `PluginConfig.failure_policy` and, where that is unspecified, the older `fail_open`.
    fn of(failure_policy: i32, fail_open: bool) -> Self {
        const UNSPECIFIED: i32 = 0;
        const FAIL_OPEN: i32 = 3;
        match failure_policy {
            FAIL_OPEN => FailureMode::Allow,
            UNSPECIFIED if fail_open => FailureMode::Allow,
            _ => FailureMode::Deny,
        }
    }
}

impl FilterKind {
    fn of(filter_type: &str) -> Option<Self> {
        if type_url::same(filter_type, type_url::HTTP_WASM) {
            Some(FilterKind::Http)
        } else if type_url::same(filter_type, type_url::NETWORK_WASM) {
            Some(FilterKind::Network)
        } else {
            None
        }
    }
}

impl Remote {
    /// The resource (`TypedExtensionConfig`) with the module at this path as local code.
    pub fn with_local(&self, path: &Path) -> Result<Bytes, RewriteError> {
        let path = path.to_str().ok_or(RewriteError::Path)?;
        Ok(self.template.fill(path.as_bytes()))
    }

    /// The resource (`TypedExtensionConfig`, same name) that stands in for one whose module cannot
    /// be had: Envoy's RBAC filter, which lets all through or nothing, as the failure mode says.
    pub fn fallback(&self) -> Bytes {
        fallback::filter(&self.name, self.kind, self.failure)
    }
}

/// Never shows a byte of the resource: it may hold anything.
impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Untouched => f.write_str("Untouched"),
            Plan::Stripped(resource) => write!(f, "Stripped({} bytes)", resource.len()),
            Plan::Remote(remote) => f.debug_tuple("Remote").field(remote).finish(),
        }
    }
}

/// As for [`Plan`].
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("name", &self.name)
            .field("request", &self.request)
            .field("failure", &self.failure)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
