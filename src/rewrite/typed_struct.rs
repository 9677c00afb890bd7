//! The Wasm filter as a `google.protobuf.Struct`, in a `TypedStruct`. Envoy turns it into the message
//! by way of JSON, so the rules are those of protobuf's JSON: two spellings of a key, enums by
//! name or number, durations as text, and null is the same as absent.
//!
//! ```text
//! Struct.fields=1 map<string, Value>;  Value: one of null=1 number=2 string=3 bool=4 struct=5 list=6
//! ```

use std::time::Duration;

use bytes::Bytes;

use super::frame::{Cut, Frame, Template, cut, is_len, open};
use super::request::{AgentKeys, Source};
use super::{Code, FailureMode, Reading, RewriteError};
use crate::protobuf::WireError;
use crate::protobuf::messages::whole_duration;
use crate::protobuf::wire::{Field, Fields, Value, put_string, text};

/// A field's two names: in the proto file, and in JSON.
#[derive(Clone, Copy)]
struct Key(&'static str, &'static str);

const CONFIG: Key = Key("config", "config");
const VM_CONFIG: Key = Key("vm_config", "vmConfig");
const FAILURE_POLICY: Key = Key("failure_policy", "failurePolicy");
const FAIL_OPEN: Key = Key("fail_open", "failOpen");
const ENVIRONMENT: Key = Key("environment_variables", "environmentVariables");
const KEY_VALUES: Key = Key("key_values", "keyValues");
const CODE: Key = Key("code", "code");
const HTTP_URI: Key = Key("http_uri", "httpUri");
const URI: Key = Key("uri", "uri");
const TIMEOUT: Key = Key("timeout", "timeout");
const SHA256: Key = Key("sha256", "sha256");

/// Reads the filter that belongs into the template's gap.
pub(super) fn read(mut template: Template, wasm: &Bytes) -> Result<Reading, RewriteError> {
    let plugin = enter(&mut template, wasm, CONFIG)?.ok_or(RewriteError::NoCode)?;
    let failure = failure(&plugin)?;
    let vm = enter(&mut template, &plugin, VM_CONFIG)?.ok_or(RewriteError::NoCode)?;
    let (keys, stripped) = strip(&vm)?;
    let vm = stripped.as_ref().unwrap_or(&vm);
    let (code_frames, code) = object(vm, CODE)?.ok_or(RewriteError::NoCode)?;

    let specifier = |field: &Field<'_>| Ok(matches!(entry_key(field)?, Some(b"local" | b"remote")));
    let specifier = cut("Struct", &code, specifier)?.ok_or(RewriteError::NoCode)?;
    let remote = match (last_object(&specifier, "local")?, last_object(&specifier, "remote")?) {
        (None, None) => return Err(RewriteError::NoCode),
        (Some(_), Some(_)) => {
            return Err(RewriteError::Ambiguous { field: "code", first: "local", second: "remote" });
        }
        (Some(_), None) => {
            let stripped = stripped.map(|vm| template.fill(&vm));
            return Ok(Reading { failure, code: Code::Local { stripped } });
        }
        (None, Some(remote)) => remote,
    };
    let source = source(&remote, keys)?;
    code_frames.into_iter().for_each(|frame| template.push(frame));
    // {"local": {"filename": GAP}}, each key an entry of a map to Values.
    template.push(specifier.into_frame(1));
    template.push(entry_of("local"));
    template.push(Frame::behind(Vec::new(), 5));
    template.push(Frame::behind(Vec::new(), 1));
    template.push(entry_of("filename"));
    template.push(Frame::behind(Vec::new(), 3));
    Ok(Reading { failure, code: Code::Remote { template, source } })
}

/// A map's entry with this key and a gap for its value.
fn entry_of(key: &str) -> Frame {
    let mut before = Vec::new();
    put_string(&mut before, 1, key);
    Frame::behind(before, 2)
}

fn failure(plugin: &Bytes) -> Result<FailureMode, RewriteError> {
    let shape = |field, expected| Err(RewriteError::Shape { field, expected });
    let failure_policy = match get(plugin, FAILURE_POLICY)? {
        Json::Null => 0,
        Json::Number(number) if number.fract() == 0.0 => number as i32,
        Json::Text(name) => match &name[..] {
            b"UNSPECIFIED" => 0,
            b"FAIL_RELOAD" => 1,
            b"FAIL_CLOSED" => 2,
            b"FAIL_OPEN" => 3,
            _ => return shape(FAILURE_POLICY.0, "a failure policy that is known"),
        },
        _ => return shape(FAILURE_POLICY.0, "a failure policy"),
    };
    let fail_open = match get(plugin, FAIL_OPEN)? {
        Json::Null => false,
        Json::Bool(fail_open) => fail_open,
        _ => return shape(FAIL_OPEN.0, "true or false"),
    };
    Ok(FailureMode::of(failure_policy, fail_open))
}

/// The agent's keys and, where there were any, the `vm_config` without them.
fn strip(vm: &Bytes) -> Result<(AgentKeys, Option<Bytes>), RewriteError> {
    let mut keys = AgentKeys::default();
    let Some((environment_frames, environment)) = object(vm, ENVIRONMENT)? else { return Ok((keys, None)) };
    let Some((map_frames, map)) = object(&environment, KEY_VALUES)? else { return Ok((keys, None)) };
    let ours = |field: &Field<'_>| Ok(entry_key(field)?.is_some_and(AgentKeys::owns));
    let Some(cut) = cut("Struct", &map, ours)? else { return Ok((keys, None)) };
    for entry in &cut.taken {
        if let Some(known) = AgentKeys::known(key_of(&entry.bytes)?) {
            match entry_value(&entry.bytes)? {
                Json::Text(value) => keys.set(known, text(known, &value)?),
                _ => return Err(RewriteError::Shape { field: known, expected: "a text" }),
            }
        }
    }
    let environment = refill(map_frames, &cut.without());
    Ok((keys, Some(refill(environment_frames, &environment))))
}

/// The struct that `frames` were taken from, with another object in the gap; without that key
/// where the object is empty.
fn refill(frames: [Frame; 3], object: &Bytes) -> Bytes {
    if object.is_empty() {
        let [entry, ..] = frames;
        entry.without()
    } else {
        Template::from_iter(frames).fill(object)
    }
}

fn source(remote: &Bytes, keys: AgentKeys) -> Result<Source, RewriteError> {
    let http_uri = object(remote, HTTP_URI)?.map(|(_, http_uri)| http_uri).unwrap_or_default();
    let timeout = string(&http_uri, TIMEOUT)?;
    Ok(Source {
        uri: string(&http_uri, URI)?.unwrap_or_default(),
        sha256: string(remote, SHA256)?.unwrap_or_default(),
        timeout: timeout.map_or(Some(Duration::ZERO), |text| duration(&text)),
        keys,
    })
}

/// Protobuf's JSON form of a duration: seconds with up to nine decimals, and `s`.
fn duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (seconds, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(decimals) || decimals.len() > 9 {
        return None;
    }
    whole_duration(seconds.parse().ok()?, format!("{decimals:0<9}").parse().ok()?)
}

/// A `google.protobuf.Value`.
enum Json {
    Null,
    Number(f64),
    Text(Bytes),
    Bool(bool),
    /// The `Value` around the object, and the object's `Struct`.
    Object(Frame, Bytes),
    List,
}

impl Json {
    fn of(value: &Bytes) -> Result<Self, RewriteError> {
        let kind = |field: &Field<'_>| {
            Ok(matches!(
                (field.number, field.value),
                (1 | 4, Value::Varint(_)) | (2, Value::Fixed64(_)) | (3 | 5 | 6, Value::Len(_))
            ))
        };
        let Some(cut) = cut("google.protobuf.Value", value, kind)? else { return Ok(Json::Null) };
        let Some(last) = cut.last() else { return Ok(Json::Null) };
        Ok(match last.number {
            2 => Json::Number(f64::from_bits(last.bits)),
            3 => Json::Text(last.bytes.clone()),
            4 => Json::Bool(last.bits != 0),
            5 => {
                let object = cut.merged();
                Json::Object(cut.into_frame(5), object)
            }
            6 => Json::List,
            _ => Json::Null,
        })
    }
}

/// The value of a key; null where there is none.
fn get(object: &Bytes, key: Key) -> Result<Json, RewriteError> {
    Ok(find(object, key)?.map_or(Json::Null, |(_, _, value)| value))
}

fn string(object: &Bytes, key: Key) -> Result<Option<String>, RewriteError> {
    match get(object, key)? {
        Json::Null => Ok(None),
        Json::Text(bytes) => Ok(Some(text(key.0, &bytes)?.to_owned())),
        _ => Err(RewriteError::Shape { field: key.0, expected: "a text" }),
    }
}

/// The object under a key, and what is around it, from the outside: the struct around the map's
/// entry, the entry around the value, the value around the object.
fn object(around: &Bytes, key: Key) -> Result<Option<([Frame; 3], Bytes)>, RewriteError> {
    match find(around, key)? {
        None | Some((_, _, Json::Null)) => Ok(None),
        Some((outer, entry, Json::Object(value, object))) => Ok(Some(([outer, entry, value], object))),
        Some(_) => Err(RewriteError::Shape { field: key.0, expected: "an object" }),
    }
}

/// Goes down into the object under a key.
fn enter(template: &mut Template, around: &Bytes, key: Key) -> Result<Option<Bytes>, RewriteError> {
    let Some((frames, object)) = object(around, key)? else { return Ok(None) };
    frames.into_iter().for_each(|frame| template.push(frame));
    Ok(Some(object))
}

/// A key's value, the frame of the entry in its struct, and that of the value in the entry.
fn find(object: &Bytes, Key(snake, camel): Key) -> Result<Option<(Frame, Frame, Json)>, RewriteError> {
    let (mut has_snake, mut has_camel) = (false, false);
    let named = |field: &Field<'_>| {
        let key = entry_key(field)?;
        let is_snake = key == Some(snake.as_bytes());
        let is_camel = !is_snake && key == Some(camel.as_bytes());
        has_snake |= is_snake;
        has_camel |= is_camel;
        Ok(is_snake || is_camel)
    };
    let Some(cut) = cut("Struct", object, named)? else { return Ok(None) };
    if has_snake && has_camel {
        return Err(RewriteError::Ambiguous { field: snake, first: snake, second: camel });
    }
    let entry = cut.last().map(|last| last.bytes.clone()).unwrap_or_default();
    let Some((entry_frame, value)) = open("Struct.fields", &entry, 2)? else { return Ok(None) };
    Ok(Some((cut.into_frame(1), entry_frame, Json::of(&value)?)))
}

/// The object under the last of the entries with this key.
fn last_object(entries: &Cut, key: &'static str) -> Result<Option<Bytes>, RewriteError> {
    for entry in entries.taken.iter().rev() {
        if key_of(&entry.bytes)? == key.as_bytes() {
            return match entry_value(&entry.bytes)? {
                Json::Null => Ok(None),
                Json::Object(_, object) => Ok(Some(object)),
                _ => Err(RewriteError::Shape { field: key, expected: "an object" }),
            };
        }
    }
    Ok(None)
}

fn entry_value(entry: &Bytes) -> Result<Json, RewriteError> {
    match open("Struct.fields", entry, 2)? {
        None => Ok(Json::Null),
        Some((_, value)) => Json::of(&value),
    }
}

/// The key of a field of `Struct`, if that is an entry of its map.
fn entry_key<'a>(field: &Field<'a>) -> Result<Option<&'a [u8]>, WireError> {
    match field.value {
        Value::Len(entry) if is_len(field, 1) => key_of(entry).map(Some),
        _ => Ok(None),
    }
}

fn key_of(entry: &[u8]) -> Result<&[u8], WireError> {
    let mut key: &[u8] = &[];
    for field in Fields::of("Struct.fields", entry) {
        let field = field?;
        if let (1, Value::Len(bytes)) = (field.number, field.value) {
            key = bytes;
        }
    }
    Ok(key)
}
