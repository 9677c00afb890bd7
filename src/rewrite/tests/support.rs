//! Writes resources by hand: as a message and as a `TypedStruct` in each of its shapes, if wanted
//! with fields that nobody knows at every level.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};

use super::super::{FilterKind, Plan, Remote, RewriteError, plan};
use super::HEX;
use crate::protobuf::type_url;
use crate::protobuf::wire::{put_entry, put_len, put_message, put_string, put_varint};

/// Where the tests say that the module lies.
pub const MODULE: &str = "/var/lib/wasmferry/v1/public/00/0011.wasm";

pub fn planned(resource: &Bytes) -> Result<Plan, RewriteError> {
    plan(type_url::EXTENSION_CONFIG, resource)
}

pub fn remote_of(resource: &Bytes) -> Remote {
    match planned(resource).unwrap() {
        Plan::Remote(remote) => *remote,
        other => panic!("not remote: {other:?}"),
    }
}

pub fn local_of(resource: &Bytes) -> Bytes {
    remote_of(resource).with_local(Path::new(MODULE)).unwrap()
}

#[derive(Clone, Copy)]
pub enum Code<'a> {
    Remote { uri: &'a str, sha256: &'a str, timeout: Option<(i64, i32)> },
    Local(&'a str),
}

/// A Wasm filter and what is said about it.
#[derive(Clone)]
pub struct Plugin<'a> {
    pub kind: FilterKind,
    pub code: Code<'a>,
    pub env: Option<&'a [(&'a str, &'a str)]>,
    pub host_keys: &'a [&'a str],
    pub failure_policy: u64,
    pub fail_open: bool,
    /// With unknown fields before and after the known ones of each message.
    pub noisy: bool,
}

impl<'a> Plugin<'a> {
    pub fn remote() -> Self {
        let uri = "oci://registry.example/team/filter:v1";
        Self::new(Code::Remote { uri, sha256: HEX, timeout: Some((30, 500_000_000)) })
    }

    pub fn local(path: &'a str) -> Self {
        Self::new(Code::Local(path))
    }

    fn new(code: Code<'a>) -> Self {
        Self {
            kind: FilterKind::Http,
            code,
            env: None,
            host_keys: &[],
            failure_policy: 0,
            fail_open: false,
            noisy: false,
        }
    }

    fn filter_type(&self) -> &'static str {
        match self.kind {
            FilterKind::Http => type_url::HTTP_WASM,
            FilterKind::Network => type_url::NETWORK_WASM,
        }
    }

    fn level(&self, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        if self.noisy {
            put_varint(&mut out, 1000, 7);
            // A group, with a field in it that looks like one of ours.
            out.extend_from_slice(b"\xcb\x3e\x0a\x01x\xcc\x3e");
        }
        fill(&mut out);
        if self.noisy {
            put_len(&mut out, 1002, b"unknown");
        }
        out
    }

    fn config(&self, value: &[u8], value_type: &str) -> Bytes {
        let any = self.level(|any| {
            put_string(any, 1, value_type);
            put_len(any, 2, value);
        });
        let config = self.level(|config| {
            put_string(config, 1, "team.filter");
            put_len(config, 2, &any);
        });
        config.into()
    }

    /// The resource with the filter as a message.
    pub fn message(&self) -> Bytes {
        let code = self.level(|code| match self.code {
            Code::Local(path) => put_message(code, 1, |local| put_len(local, 1, path.as_bytes())),
            Code::Remote { uri, sha256, timeout } => put_message(code, 2, |remote| {
                put_message(remote, 1, |http_uri| {
                    put_string(http_uri, 1, uri);
                    put_string(http_uri, 2, "_");
                    if let Some((seconds, nanos)) = timeout {
                        put_message(http_uri, 3, |duration| {
                            put_varint(duration, 1, seconds as u64);
                            put_varint(duration, 2, nanos as u64);
                        });
                    }
                });
                put_string(remote, 2, sha256);
            }),
        });
        let vm = self.level(|vm| {
            put_string(vm, 1, "vm");
            put_string(vm, 2, "envoy.wasm.runtime.v8");
            if let Some(env) = self.env {
                let env = self.level(|out| {
                    self.host_keys.iter().for_each(|key| put_len(out, 1, key.as_bytes()));
                    env.iter().for_each(|(key, value)| put_entry(out, 2, key, value));
                });
                put_len(vm, 7, &env);
            }
            put_len(vm, 3, &code);
            put_varint(vm, 5, 1);
        });
        let plugin = self.level(|plugin| {
            put_string(plugin, 1, "filter");
            put_len(plugin, 3, &vm);
            put_message(plugin, 4, |any| put_string(any, 1, type_url::STRING_VALUE));
            put_varint(plugin, 5, self.fail_open.into());
            put_varint(plugin, 7, self.failure_policy);
        });
        let wasm = self.level(|wasm| put_len(wasm, 1, &plugin));
        self.config(&wasm, self.filter_type())
    }

    /// The resource with the filter in a `TypedStruct`.
    pub fn typed_struct(&self, style: Style) -> Bytes {
        self.wrap_json(style, &self.json(style))
    }

    /// The resource with any JSON in a `TypedStruct`.
    pub fn wrap_json(&self, style: Style, json: &Json) -> Bytes {
        let Json::Object(fields) = json else { panic!("an object") };
        let name = self.filter_type();
        let name = if style.prefix { name } else { type_url::full_name(name) };
        let typed_struct = self.level(|out| {
            put_string(out, 1, name);
            put_len(out, 2, &self.structure(fields));
        });
        self.config(&typed_struct, style.outer)
    }

    /// The `Wasm` message as JSON.
    pub fn json(&self, style: Style) -> Json {
        let key = |snake: &str, camel: &str| if style.camel { camel } else { snake }.to_owned();
        let code = match self.code {
            Code::Local(path) => json!({"local": {"filename": path}}),
            Code::Remote { uri, sha256, timeout } => {
                let mut http_uri = json!({"uri": uri, "cluster": "_"});
                if let Some((seconds, nanos)) = timeout {
                    http_uri["timeout"] = json!(format!("{seconds}.{nanos:09}s"));
                }
                json!({"remote": {key("http_uri", "httpUri"): http_uri, "sha256": sha256}})
            }
        };
        let mut vm = json!({
            key("vm_id", "vmId"): "vm",
            "runtime": "envoy.wasm.runtime.v8",
            "code": code,
            "configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": null},
        });
        if let Some(env) = self.env {
            let mut variables = Map::new();
            if !self.host_keys.is_empty() {
                variables.insert(key("host_env_keys", "hostEnvKeys"), json!(self.host_keys));
            }
            let values: Map<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
            // An empty object is not written at all, so that what is expected after stripping is
            // what is written without the keys.
            if !values.is_empty() {
                variables.insert(key("key_values", "keyValues"), Json::Object(values));
            }
            if !variables.is_empty() {
                vm[key("environment_variables", "environmentVariables")] = Json::Object(variables);
            }
        }
        let policies = ["UNSPECIFIED", "FAIL_RELOAD", "FAIL_CLOSED", "FAIL_OPEN"];
        let policy = match policies.get(self.failure_policy as usize) {
            Some(name) if style.camel => json!(name),
            _ => json!(self.failure_policy),
        };
        json!({"config": {
            "name": "filter",
            key("vm_config", "vmConfig"): vm,
            key("fail_open", "failOpen"): self.fail_open,
            key("failure_policy", "failurePolicy"): policy,
            "field_of_the_future": [1, {"deep": true}],
        }})
    }

    fn structure(&self, fields: &Map<String, Json>) -> Vec<u8> {
        self.level(|out| {
            for (key, value) in fields {
                let entry = self.level(|entry| {
                    put_string(entry, 1, key);
                    put_len(entry, 2, &self.value(value));
                });
                put_len(out, 1, &entry);
            }
        })
    }

    fn value(&self, value: &Json) -> Vec<u8> {
        let body = |out: &mut Vec<u8>| match value {
            Json::Null => out.extend_from_slice(b"\x08\x00"),
            Json::Number(number) => {
                out.push(0x11);
                out.extend_from_slice(&number.as_f64().unwrap().to_le_bytes());
            }
            Json::String(text) => put_len(out, 3, text.as_bytes()),
            Json::Bool(value) => out.extend_from_slice(&[0x20, u8::from(*value)]),
            Json::Object(fields) => put_len(out, 5, &self.structure(fields)),
            Json::Array(values) => put_message(out, 6, |list| {
                values.iter().for_each(|value| put_len(list, 1, &self.value(value)));
            }),
        };
        let mut out = Vec::new();
        if self.noisy {
            put_varint(&mut out, 1000, 7);
        }
        body(&mut out);
        if self.noisy {
            put_len(&mut out, 1002, b"unknown");
        }
        out
    }
}

/// How a message is written as a `Struct`.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub outer: &'static str,
    /// Keys as in JSON (and enums by name), or as in the proto file (and enums by number).
    pub camel: bool,
    /// The inner type URL begins with `type.googleapis.com/`.
    pub prefix: bool,
}

pub const STYLES: [Style; 4] = [
    Style { outer: type_url::UDPA_TYPED_STRUCT, camel: false, prefix: true },
    Style { outer: type_url::UDPA_TYPED_STRUCT, camel: true, prefix: false },
    Style { outer: type_url::XDS_TYPED_STRUCT, camel: false, prefix: false },
    Style { outer: type_url::XDS_TYPED_STRUCT, camel: true, prefix: true },
];
