//! The Wasm filter as a message: `envoy.extensions.filters.{http,network}.wasm.v3.Wasm`.
//!
//! ```text
//! Wasm.config=1 -> PluginConfig.vm_config=3 -> VmConfig.code=3 -> AsyncDataSource
//!                                              VmConfig.environment_variables=7
//! ```

use bytes::Bytes;

use super::frame::{Frame, Template, cut, is_len, open};
use super::request::{AgentKeys, Source};
use super::{Code, FailureMode, Reading, RewriteError};
use crate::protobuf::WireError;
use crate::protobuf::messages::duration;
use crate::protobuf::wire::{Field, Fields, Value, entry, text};

/// Reads the filter that belongs into the template's gap.
pub(super) fn read(mut template: Template, wasm: &Bytes) -> Result<Reading, RewriteError> {
    let plugin = template.enter("Wasm", wasm, 1)?.ok_or(RewriteError::NoCode)?;
    let failure = failure(&plugin)?;
    let vm = template.enter("PluginConfig", &plugin, 3)?.ok_or(RewriteError::NoCode)?;
    let (keys, stripped) = strip(&vm)?;
    let vm = stripped.as_ref().unwrap_or(&vm);
    let (code_frame, code) = open("VmConfig", vm, 3)?.ok_or(RewriteError::NoCode)?;

    // AsyncDataSource: one of local=1 and remote=2.
    let specifier = |field: &Field<'_>| Ok(is_len(field, 1) || is_len(field, 2));
    let specifier = cut("AsyncDataSource", &code, specifier)?.ok_or(RewriteError::NoCode)?;
    if specifier.last().is_some_and(|last| last.number == 1) {
        let stripped = stripped.map(|vm| template.fill(&vm));
        return Ok(Reading { failure, code: Code::Local { stripped } });
    }
    let source = source(&specifier.merged(), keys)?;
    template.push(code_frame);
    template.push(specifier.into_frame(1));
    // DataSource.filename=1.
    template.push(Frame::behind(Vec::new(), 1));
    Ok(Reading { failure, code: Code::Remote { template, source } })
}

fn failure(plugin: &[u8]) -> Result<FailureMode, WireError> {
    let (mut failure_policy, mut fail_open) = (0, false);
    for field in Fields::of("PluginConfig", plugin) {
        let field = field?;
        match (field.number, field.value) {
            (5, Value::Varint(value)) => fail_open = value != 0,
            (7, Value::Varint(value)) => failure_policy = value as i32,
            _ => {}
        }
    }
    Ok(FailureMode::of(failure_policy, fail_open))
}

/// The agent's keys and, where there were any, the `VmConfig` without them.
fn strip(vm: &Bytes) -> Result<(AgentKeys, Option<Bytes>), RewriteError> {
    let mut keys = AgentKeys::default();
    let Some((frame, environment)) = open("VmConfig", vm, 7)? else { return Ok((keys, None)) };
    let ours = |field: &Field<'_>| {
        let (2, Value::Len(bytes)) = (field.number, field.value) else { return Ok(false) };
        let (key, value) = entry("EnvironmentVariables.key_values", bytes)?;
        if let Some(known) = AgentKeys::known(key) {
            keys.set(known, text(known, value)?);
        }
        Ok(AgentKeys::owns(key))
    };
    let Some(cut) = cut("EnvironmentVariables", &environment, ours)? else { return Ok((keys, None)) };
    let rest = cut.without();
    let stripped = if rest.is_empty() { frame.without() } else { Template::from_iter([frame]).fill(&rest) };
    Ok((keys, Some(stripped)))
}

fn source(remote: &[u8], keys: AgentKeys) -> Result<Source, WireError> {
    let mut source = Source { keys, ..Source::default() };
    // Sub-messages that occur twice merge: field by field here, by concatenation below.
    let mut timeout = Vec::new();
    for field in Fields::of("RemoteDataSource", remote) {
        let field = field?;
        match (field.number, field.value) {
            (1, Value::Len(http_uri)) => read_http_uri(http_uri, &mut source.uri, &mut timeout)?,
            (2, Value::Len(bytes)) => source.sha256 = text("RemoteDataSource.sha256", bytes)?.to_owned(),
            _ => {}
        }
    }
    source.timeout = duration(&timeout)?;
    Ok(source)
}

fn read_http_uri(http_uri: &[u8], uri: &mut String, timeout: &mut Vec<u8>) -> Result<(), WireError> {
    for field in Fields::of("HttpUri", http_uri) {
        let field = field?;
        match (field.number, field.value) {
            (1, Value::Len(bytes)) => *uri = text("HttpUri.uri", bytes)?.to_owned(),
            (3, Value::Len(bytes)) => timeout.extend_from_slice(bytes),
            _ => {}
        }
    }
    Ok(())
}
