//! The filter as a message.

use std::time::Duration;

use bytes::Bytes;

use super::super::{FilterKind, Plan, RewriteError, resource_name};
use super::support::{Code, MODULE, Plugin, local_of, planned, remote_of};
use crate::protobuf::messages::{Any, TypedExtensionConfig};
use crate::protobuf::type_url;
use crate::protobuf::wire::{put_len, put_message, put_string, put_varint};

const SECRET: (&str, &str) = ("ISTIO_META_WASM_IMAGE_PULL_SECRET", "hunter2");
const VERSION: (&str, &str) = ("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", "1");
const UNHEARD_OF: (&str, &str) = ("ISTIO_META_SOMETHING_NEW", "x");
const OWN: (&str, &str) = ("OWN", "ISTIO_META_ in a value is no key");
const NEARLY: (&str, &str) = ("ISTIO_METADATA", "not ours");

#[test]
fn remote_code_becomes_local_and_nothing_else_changes() {
    for noisy in [false, true] {
        for kind in [FilterKind::Http, FilterKind::Network] {
            let env = [SECRET, OWN, VERSION, NEARLY, UNHEARD_OF];
            let left = [OWN, NEARLY];
            let source = Plugin {
                kind,
                noisy,
                env: Some(&env),
                host_keys: &["HOME", "ISTIO_META_FROM_HOST"],
                failure_policy: 2,
                ..Plugin::remote()
            };
            let expected = Plugin { code: Code::Local(MODULE), env: Some(&left), ..source.clone() };
            let source = source.message();
            assert_eq!(remote_of(&source).kind, kind);
            assert_eq!(local_of(&source), expected.message());
            assert_eq!(local_of(&source), local_of(&source));
        }
    }
}

#[test]
fn local_code_keeps_all_but_the_keys_that_are_for_the_agent() {
    for noisy in [false, true] {
        let env = [SECRET, OWN];
        let source = Plugin { noisy, env: Some(&env), ..Plugin::local("/own.wasm") };
        let expected = Plugin { env: Some(&[OWN]), ..source.clone() };
        let Ok(Plan::Stripped(stripped)) = planned(&source.message()) else { panic!("stripped") };
        assert_eq!(stripped, expected.message());
        assert!(matches!(planned(&expected.message()), Ok(Plan::Untouched)));
    }
}

#[test]
fn local_code_without_such_keys_is_untouched() {
    for env in [None, Some(&[][..]), Some(&[OWN, NEARLY][..])] {
        let plugin = Plugin { env, noisy: true, ..Plugin::local("/own.wasm") };
        assert!(matches!(planned(&plugin.message()), Ok(Plan::Untouched)), "{env:?}");
    }
}

#[test]
fn an_environment_that_is_left_empty_is_dropped() {
    let source = Plugin { env: Some(&[SECRET, VERSION]), ..Plugin::remote() };
    let expected = Plugin { code: Code::Local(MODULE), env: None, ..source.clone() };
    assert_eq!(local_of(&source.message()), expected.message());
}

#[test]
fn an_environment_with_host_keys_or_unknown_fields_is_kept() {
    for (host_keys, noisy) in [(&["HOME"][..], false), (&[], true)] {
        let source = Plugin { env: Some(&[SECRET]), host_keys, noisy, ..Plugin::remote() };
        let expected = Plugin { code: Code::Local(MODULE), env: Some(&[]), ..source.clone() };
        assert_eq!(local_of(&source.message()), expected.message());
    }
}

#[test]
fn an_environment_that_came_empty_stays() {
    let source = Plugin { env: Some(&[]), ..Plugin::remote() };
    let expected = Plugin { code: Code::Local(MODULE), ..source.clone() };
    assert_eq!(local_of(&source.message()), expected.message());
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    let env =
        [("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", "1"), ("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", "2")];
    let request = remote_of(&Plugin { env: Some(&env), ..Plugin::remote() }.message()).request.unwrap();
    assert_eq!(request.resource_version.as_deref(), Some("2"));
}

/// A resource around the fields of an `AsyncDataSource`.
fn with_code(code: &[u8]) -> Bytes {
    let mut wasm = Vec::new();
    put_message(&mut wasm, 1, |plugin| put_message(plugin, 3, |vm| put_len(vm, 3, code)));
    let any = Any { type_url: type_url::HTTP_WASM, value: &wasm };
    TypedExtensionConfig { name: "a", typed_config: Some(any) }.encode().into()
}

fn remote(uri: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(&mut out, 2, |remote| put_message(remote, 1, |http_uri| put_string(http_uri, 1, uri)));
    out
}

fn local(path: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(&mut out, 1, |local| put_string(local, 1, path));
    out
}

#[test]
fn of_remote_and_local_code_the_last_counts_and_the_other_is_gone() {
    let both = with_code(&[remote("r.example/a:v1"), local("/own.wasm")].concat());
    assert!(matches!(planned(&both), Ok(Plan::Untouched)));

    let both = with_code(&[local("/own.wasm"), remote("r.example/a:v1")].concat());
    assert_eq!(local_of(&both), with_code(&local(MODULE)));

    // The local code in between cleared the first remote one: its sha256 must not come back.
    let mut first = Vec::new();
    put_message(&mut first, 2, |remote| put_string(remote, 2, "not hex at all"));
    let three = with_code(&[first, local("/own.wasm"), remote("r.example/a:v1")].concat());
    assert_eq!(remote_of(&three).request.unwrap().expected, None);
    assert_eq!(local_of(&three), with_code(&local(MODULE)));
}

#[test]
fn a_known_number_with_another_wire_type_is_an_unknown_field() {
    // local=1 and remote=2 as fixed32, which Envoy's parser keeps as unknown fields.
    let odd = b"\x0d\x01\0\0\0\x15\x02\0\0\0";
    let source = with_code(&[&odd[..5], &remote("r.example/a:v1"), &odd[5..]].concat());
    assert_eq!(local_of(&source), with_code(&[&odd[..5], &local(MODULE), &odd[5..]].concat()));
    assert_eq!(planned(&with_code(odd)).unwrap_err(), RewriteError::NoCode);
}

#[test]
fn code_in_two_pieces_is_read_as_one_and_leaves_as_one() {
    let mut pieces = Vec::new();
    put_message(&mut pieces, 2, |remote| {
        put_message(remote, 1, |http_uri| put_string(http_uri, 1, "r.example/a:v1"))
    });
    put_varint(&mut pieces, 9, 1);
    put_message(&mut pieces, 2, |remote| {
        put_message(remote, 1, |http_uri| put_message(http_uri, 3, |timeout| put_varint(timeout, 1, 7)));
    });
    let source = with_code(&pieces);
    let request = remote_of(&source).request.unwrap();
    assert_eq!(request.url.canonical(), "oci://r.example/a:v1");
    assert_eq!(request.timeout, Some(Duration::from_secs(7)));
    let mut expected = local(MODULE);
    put_varint(&mut expected, 9, 1);
    assert_eq!(local_of(&source), with_code(&expected));
}

#[test]
fn the_last_value_of_an_any_counts() {
    let wasm = |code: &[u8]| {
        let mut wasm = Vec::new();
        put_message(&mut wasm, 1, |plugin| put_message(plugin, 3, |vm| put_len(vm, 3, code)));
        wasm
    };
    let mut resource = Vec::new();
    put_string(&mut resource, 1, "a");
    put_message(&mut resource, 2, |any| {
        put_string(any, 1, type_url::HTTP_WASM);
        put_len(any, 2, &wasm(&local("/own.wasm")));
        put_len(any, 2, &wasm(&remote("r.example/a:v1")));
    });
    assert_eq!(local_of(&resource.into()), with_code(&local(MODULE)));
}

#[test]
fn code_that_says_nothing_is_rejected() {
    let mut unknown = Vec::new();
    put_varint(&mut unknown, 9, 1);
    assert_eq!(planned(&with_code(&unknown)).unwrap_err(), RewriteError::NoCode);
    assert_eq!(RewriteError::NoCode.label(), "no_code");
}

#[test]
fn a_text_that_is_none_is_rejected_with_its_field() {
    let mut code = Vec::new();
    put_message(&mut code, 2, |remote| put_len(remote, 2, b"\xff"));
    let error = planned(&with_code(&code)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the resource cannot be decoded: RemoteDataSource.sha256 is not valid UTF-8"
    );
    assert_eq!(resource_name(&with_code(&code)), Ok("a"));
}
