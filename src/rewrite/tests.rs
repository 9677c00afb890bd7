//! Resources are written here by hand, level by level, so that unknown fields can stand at each of
//! them and the expected bytes are known exactly; what they mean is prost's word with Envoy's own
//! messages (`against_prost`).

mod against_prost;
mod message;
mod support;
mod typed_struct;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Code, Plugin, local_of, planned, remote_of};

use super::*;
use crate::digest::ExpectedDigest;
use crate::module::{PullPolicy, PullSecret};
use crate::protobuf::WireError;
use crate::protobuf::messages::Any;
use crate::protobuf::wire::{put_len, put_string};

const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The environment of every shape of resource goes through the same conventions.
fn request(env: &[(&str, &str)]) -> Result<ModuleRequest, InvalidRequest> {
    let plugin = Plugin { env: Some(env), ..Plugin::remote() };
    let in_message = remote_of(&plugin.message()).request;
    for style in support::STYLES {
        assert_eq!(remote_of(&plugin.typed_struct(style)).request, in_message, "{style:?}");
    }
    in_message
}

#[test]
fn a_remote_source_becomes_a_request() {
    let request = request(&[]).unwrap();
    assert_eq!(request.url.canonical(), "oci://registry.example/team/filter:v1");
    assert_eq!(request.expected, Some(ExpectedDigest::from_hex(HEX).unwrap()));
    assert_eq!(request.policy, PullPolicy::IfNotPresent);
    assert_eq!(request.secret, PullSecret::None);
    assert_eq!(request.resource_version, None);
    assert_eq!(request.timeout, Some(Duration::from_millis(30_500)));
}

#[test]
fn a_pull_secret_is_kept_and_an_empty_one_is_not_anonymous() {
    let with = |secret| request(&[("ISTIO_META_WASM_IMAGE_PULL_SECRET", secret)]).unwrap().secret;
    assert_eq!(
        with("{\"auths\":{}}"),
        PullSecret::DockerConfig(crate::secret::Secret::new("{\"auths\":{}}".into()))
    );
    assert_eq!(with(""), PullSecret::Unavailable);
}

#[test]
fn a_pull_policy_is_taken_by_its_name_and_another_name_is_refused() {
    let with =
        |policy| request(&[("ISTIO_META_WASM_IMAGE_PULL_POLICY", policy)]).map(|request| request.policy);
    assert_eq!(with("Always"), Ok(PullPolicy::Always));
    assert_eq!(with("IfNotPresent"), Ok(PullPolicy::IfNotPresent));
    assert_eq!(with("UNSPECIFIED_POLICY"), Ok(PullPolicy::IfNotPresent));
    assert_eq!(with(""), Ok(PullPolicy::IfNotPresent));
    assert_eq!(with("always"), Err(InvalidRequest::PullPolicy));
}

#[test]
fn without_a_policy_the_url_decides() {
    let with = |uri| {
        let plugin = Plugin { code: Code::Remote { uri, sha256: "", timeout: None }, ..Plugin::remote() };
        remote_of(&plugin.message()).request.unwrap().policy
    };
    assert_eq!(with("oci://r.example/a:latest"), PullPolicy::Always);
    assert_eq!(with("r.example/a"), PullPolicy::Always);
    assert_eq!(with("r.example/a:v1"), PullPolicy::IfNotPresent);
    assert_eq!(with("https://r.example/latest"), PullPolicy::IfNotPresent);
}

#[test]
fn the_resource_version_is_passed_on() {
    let with = |version| request(&[("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", version)]).unwrap();
    assert_eq!(with("12345").resource_version.as_deref(), Some("12345"));
    assert_eq!(with("").resource_version, None);
}

#[test]
fn no_sha256_has_three_spellings_and_a_bad_one_is_refused() {
    let with = |sha256: &str| {
        let code = Code::Remote { uri: "https://h.example/m.wasm", sha256, timeout: None };
        remote_of(&Plugin { code, ..Plugin::remote() }.message()).request.map(|request| request.expected)
    };
    assert_eq!(with(""), Ok(None));
    assert_eq!(with("nil"), Ok(None));
    assert_eq!(with(&HEX.to_uppercase()), Ok(Some(ExpectedDigest::from_hex(HEX).unwrap())));
    for bad in [&HEX[1..], &format!("sha256:{HEX}"), "null", &HEX.replace('0', "g")] {
        assert_eq!(with(bad), Err(InvalidRequest::Sha256), "{bad}");
    }
}

#[test]
fn a_timeout_of_zero_is_none_and_a_negative_one_is_refused() {
    let with = |timeout| {
        let code = Code::Remote { uri: "https://h.example/m.wasm", sha256: "", timeout };
        remote_of(&Plugin { code, ..Plugin::remote() }.message()).request.map(|request| request.timeout)
    };
    assert_eq!(with(None), Ok(None));
    assert_eq!(with(Some((0, 0))), Ok(None));
    assert_eq!(with(Some((7, 5))), Ok(Some(Duration::new(7, 5))));
    assert_eq!(with(Some((-1, 0))), Err(InvalidRequest::Timeout));
    assert_eq!(with(Some((i64::MAX, 0))), Err(InvalidRequest::Timeout));
}

#[test]
fn a_bad_url_is_a_request_that_cannot_be_met_and_no_reason_to_reject_the_resource() {
    for uri in ["", "ftp://h/x", "https://user:hunter2@h/x.wasm"] {
        let plugin = Plugin { code: Code::Remote { uri, sha256: "", timeout: None }, ..Plugin::remote() };
        let remote = remote_of(&plugin.message());
        assert!(matches!(remote.request, Err(InvalidRequest::Url(_))), "{uri}");
        assert_eq!(remote.failure, FailureMode::Deny);
    }
}

#[test]
fn the_failure_mode_is_the_policys_and_only_without_one_the_old_flags() {
    use FailureMode::{Allow, Deny};
    for (failure_policy, fail_open, expected) in [
        (0, false, Deny),
        (0, true, Allow),
        (1, true, Deny),
        (2, true, Deny),
        (3, false, Allow),
        (77, true, Deny),
    ] {
        let plugin = Plugin { failure_policy, fail_open, ..Plugin::remote() };
        assert_eq!(remote_of(&plugin.message()).failure, expected, "{failure_policy} {fail_open}");
        for style in support::STYLES {
            let remote = remote_of(&plugin.typed_struct(style));
            assert_eq!(remote.failure, expected, "{style:?} {failure_policy} {fail_open}");
        }
    }
}

#[test]
fn no_error_and_no_debug_text_shows_a_secret_or_the_resource() {
    let secret = "hunter2";
    let env = [
        ("ISTIO_META_WASM_IMAGE_PULL_SECRET", secret),
        ("ISTIO_META_WASM_IMAGE_PULL_POLICY", secret),
        ("OWN", secret),
    ];
    for uri in
        ["https://h.example/m.wasm?sig=hunter2", "https://u:hunter2@h/m", "oci://h/hunter2 x", "hunter2://h"]
    {
        for sha256 in ["", secret] {
            let code = Code::Remote { uri, sha256, timeout: Some((-1, 0)) };
            let plugin = Plugin { code, env: Some(&env), ..Plugin::remote() };
            let plan = planned(&plugin.message()).unwrap();
            let Plan::Remote(remote) = &plan else { panic!("{plan:?}") };
            let error = remote.request.as_ref().unwrap_err();
            let shown = format!("{plan:?} {error} {error:?} {}", error.label());
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    let stripped = planned(&Plugin { env: Some(&env), ..Plugin::local("/m.wasm") }.message()).unwrap();
    assert!(!format!("{stripped:?}").contains(secret));

    let mut resource = Plugin { env: Some(&env), ..Plugin::remote() }.message().to_vec();
    resource.push(0x0a);
    let error = planned(&resource.into()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the resource cannot be decoded: TypedExtensionConfig is malformed: it ends in the middle of a field"
    );
}

#[test]
fn the_source_key_tells_all_apart_but_secret_and_resource_version() {
    let key = |plugin: &Plugin<'_>| remote_of(&plugin.message()).source_key;
    let env = |secret, version, own| {
        [
            ("ISTIO_META_WASM_IMAGE_PULL_SECRET", secret),
            ("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", version),
            ("OWN", own),
        ]
    };
    let base = key(&Plugin { env: Some(&env("a", "1", "x")), ..Plugin::remote() });
    assert_eq!(key(&Plugin { env: Some(&env("b", "2", "x")), ..Plugin::remote() }), base);
    assert_ne!(key(&Plugin { env: Some(&env("a", "1", "y")), ..Plugin::remote() }), base);
    let plugin = Plugin { env: Some(&env("a", "1", "x")), ..Plugin::remote() };
    assert_ne!(key(&Plugin { failure_policy: 3, ..plugin.clone() }), base);
    let mut policy = env("a", "1", "x").to_vec();
    policy.push(("ISTIO_META_WASM_IMAGE_PULL_POLICY", "Always"));
    assert_ne!(key(&Plugin { env: Some(&policy), ..plugin.clone() }), base);
    for (uri, sha256, timeout) in [
        ("oci://registry.example/team/filter:v2", HEX, Some((30, 500_000_000))),
        ("oci://registry.example/team/filter:v1", "", Some((30, 500_000_000))),
        ("oci://registry.example/team/filter:v1", HEX, None),
    ] {
        let code = Code::Remote { uri, sha256, timeout };
        assert_ne!(key(&Plugin { code, ..plugin.clone() }), base);
    }
    // Two texts that are the same one after the other.
    let texts =
        |uri, sha256| key(&Plugin { code: Code::Remote { uri, sha256, timeout: None }, ..Plugin::remote() });
    assert_ne!(texts("r.example/a:v1", "2"), texts("r.example/a:v12", ""));
}

#[test]
fn what_is_not_wasm_is_untouched_whatever_is_in_it() {
    for inner in ["type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", ""] {
        let config =
            TypedExtensionConfig { name: "a", typed_config: Some(Any { type_url: inner, value: b"\xff" }) };
        assert!(matches!(planned(&config.encode().into()), Ok(Plan::Untouched)), "{inner}");
    }
    let mut other = Vec::new();
    put_string(&mut other, 1, "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua");
    put_len(&mut other, 2, b"\xff");
    let any = Any { type_url: type_url::XDS_TYPED_STRUCT, value: &other };
    let config = TypedExtensionConfig { name: "a", typed_config: Some(any) };
    assert!(matches!(planned(&config.encode().into()), Ok(Plan::Untouched)));
}

#[test]
fn a_resource_that_envoy_would_reject_is_rejected_by_name_of_what_is_wrong() {
    let config = |name, typed_config| {
        planned(&TypedExtensionConfig { name, typed_config }.encode().into()).unwrap_err()
    };
    let wasm = |value| Some(Any { type_url: type_url::HTTP_WASM, value });
    assert_eq!(config("", wasm(b"")), RewriteError::NoName);
    assert_eq!(config("a", None), RewriteError::NoTypedConfig);
    assert_eq!(config("a", wasm(b"")), RewriteError::NoCode);
    assert_eq!(config("a", wasm(b"\x0a\x00")), RewriteError::NoCode);
    assert_eq!(config("a", wasm(b"\x0a\x02\x1a\x00")), RewriteError::NoCode);
    assert_eq!(config("a", wasm(b"\x0a\x04\x1a\x02\x1a\x00")), RewriteError::NoCode);
    assert!(matches!(
        config("a", wasm(b"\x0a\x04\x1a\x09\x1a\x00")),
        RewriteError::Wire(WireError::Malformed { .. })
    ));
    let empty = Some(Any { type_url: type_url::UDPA_TYPED_STRUCT, value: b"" });
    assert!(matches!(
        planned(&TypedExtensionConfig { name: "a", typed_config: empty }.encode().into()),
        Ok(Plan::Untouched)
    ));
    assert_eq!(plan(type_url::LISTENER, &Bytes::new()).unwrap_err(), RewriteError::NotExtensionConfig);
}

#[test]
fn a_resource_tells_its_name() {
    assert_eq!(resource_name(&Plugin::remote().message()), Ok("team.filter"));
    assert_eq!(resource_name(b""), Err(RewriteError::NoName));
    let mut not_text = Vec::new();
    put_len(&mut not_text, 1, b"\xff");
    assert_eq!(
        resource_name(&not_text),
        Err(RewriteError::Wire(WireError::Utf8 { field: "TypedExtensionConfig.name" }))
    );
}

#[cfg(unix)]
#[test]
fn a_path_that_is_no_text_is_an_error() {
    use std::os::unix::ffi::OsStrExt as _;
    let path = Path::new(std::ffi::OsStr::from_bytes(b"/\xff.wasm"));
    let remote = remote_of(&Plugin::remote().message());
    assert_eq!(remote.with_local(path), Err(RewriteError::Path));
}

#[test]
fn the_golden_resources_are_rewritten_to_the_same_bytes_in_every_release() {
    // A running Envoy reloads whatever changes by a byte. The sources were written by prost.
    let read = |name: &str| Bytes::from(std::fs::read(format!("fixtures/resources/{name}.pb")).unwrap());
    for (name, fallback) in [("istio-http", "deny"), ("istio-network", "allow"), ("typed-struct", "deny")] {
        let source = read(name);
        assert_eq!(local_of(&source), read(&format!("{name}.local")), "{name}");
        assert_eq!(remote_of(&source).fallback(), read(&format!("{name}.{fallback}")), "{name}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_at_any_level(bytes in vec(any::<u8>(), 0..200), level in 0..=4usize) {
        let mut bytes = bytes;
        // From the inside: remote, code, vm_config, config.
        for number in [2, 3, 3, 1].into_iter().skip(level) {
            let mut around = Vec::new();
            put_len(&mut around, number, &bytes);
            bytes = around;
        }
        for inner in [type_url::HTTP_WASM, type_url::XDS_TYPED_STRUCT] {
            let value = if inner == type_url::XDS_TYPED_STRUCT {
                let mut out = Vec::new();
                put_string(&mut out, 1, type_url::HTTP_WASM);
                put_len(&mut out, 2, &bytes);
                out
            } else {
                bytes.clone()
            };
            let config = TypedExtensionConfig { name: "a", typed_config: Some(Any { type_url: inner, value: &value }) };
            if let Ok(Plan::Remote(remote)) = planned(&config.encode().into()) {
                let _ = remote.with_local(Path::new("/m"));
            }
        }
        let _ = planned(&bytes.into());
    }

    #[test]
    fn damaged_resources_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let env = [("ISTIO_META_WASM_IMAGE_PULL_SECRET", "s"), ("OWN", "v")];
        let plugin = Plugin { env: Some(&env), noisy: true, ..Plugin::remote() };
        for resource in [plugin.message(), plugin.typed_struct(support::STYLES[0])] {
            let mut damaged = resource.to_vec();
            let at = at.index(damaged.len());
            damaged[at] = byte;
            let _ = planned(&damaged.clone().into());
            damaged.truncate(cut.index(damaged.len()));
            let _ = planned(&damaged.into());
        }
    }
}
