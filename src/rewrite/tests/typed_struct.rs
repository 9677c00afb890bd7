//! The filter in a `TypedStruct`.

use serde_json::{Value as Json, json};

use super::super::{FilterKind, InvalidRequest, Plan, RewriteError};
use super::against_prost::decoded;
use super::support::{Code, MODULE, Plugin, STYLES, local_of, planned, remote_of};

const OWN: (&str, &str) = ("OWN", "v");
const SECRET: (&str, &str) = ("ISTIO_META_WASM_IMAGE_PULL_SECRET", "hunter2");

#[test]
fn remote_code_becomes_local_in_all_four_shapes_and_nothing_else_changes() {
    for style in STYLES {
        for noisy in [false, true] {
            let env = [SECRET, OWN, ("ISTIO_META_NEW", "")];
            let source = Plugin {
                kind: FilterKind::Network,
                noisy,
                env: Some(&env),
                host_keys: &["HOME"],
                ..Plugin::remote()
            };
            let expected = Plugin { noisy, code: Code::Local(MODULE), env: Some(&[OWN]), ..source.clone() };
            let source = source.typed_struct(style);
            assert_eq!(remote_of(&source).kind, FilterKind::Network);
            if noisy {
                // What is written new has no unknown fields: compare what it means.
                assert_eq!(decoded(&local_of(&source)), decoded(&expected.typed_struct(style)), "{style:?}");
            } else {
                assert_eq!(local_of(&source), expected.typed_struct(style), "{style:?}");
            }
        }
    }
}

#[test]
fn unknown_fields_survive_at_every_level() {
    for style in STYLES {
        let source = Plugin { noisy: true, ..Plugin::remote() }.typed_struct(style);
        let local = local_of(&source);
        let count = |bytes: &[u8]| bytes.windows(7).filter(|window| *window == b"unknown").count();
        // {"remote": {...}} goes, with all that is in it.
        let remote = Plugin { noisy: true, ..Plugin::remote() };
        let code = &remote.json(style)["config"][if style.camel { "vmConfig" } else { "vm_config" }]["code"];
        let empty = remote.wrap_json(style, &json!({}));
        let gone = count(&remote.wrap_json(style, code)) - count(&empty);
        assert_eq!(count(&local), count(&source) - gone, "{style:?}");
    }
}

#[test]
fn local_code_is_stripped_of_keys_for_the_agent_and_otherwise_untouched() {
    for style in STYLES {
        let source = Plugin { env: Some(&[SECRET, OWN]), ..Plugin::local("/own.wasm") };
        let expected = Plugin { env: Some(&[OWN]), ..source.clone() };
        let Ok(Plan::Stripped(stripped)) = planned(&source.typed_struct(style)) else { panic!("{style:?}") };
        assert_eq!(stripped, expected.typed_struct(style));
        assert!(matches!(planned(&expected.typed_struct(style)), Ok(Plan::Untouched)));
    }
}

#[test]
fn an_emptied_map_is_dropped_and_an_emptied_environment_too() {
    for style in STYLES {
        for host_keys in [&[][..], &["HOME"]] {
            let source = Plugin { env: Some(&[SECRET]), host_keys, ..Plugin::remote() };
            let expected = Plugin { code: Code::Local(MODULE), env: Some(&[]), ..source.clone() };
            assert_eq!(local_of(&source.typed_struct(style)), expected.typed_struct(style), "{style:?}");
        }
    }
}

/// What comes of a JSON in place of the filter.
fn of(json: &Json) -> Result<Plan, RewriteError> {
    planned(&Plugin::remote().wrap_json(STYLES[0], json))
}

fn with_code(code: Json) -> Json {
    json!({"config": {"vm_config": {"code": code}}})
}

#[test]
fn null_is_absent() {
    let remote = json!({"http_uri": {"uri": "r.example/a:v1", "timeout": null}, "sha256": null});
    let plan = of(&json!({"config": {
        "failure_policy": null, "fail_open": null,
        "vm_config": {"environment_variables": null, "code": {"local": null, "remote": remote}},
    }}));
    let Ok(Plan::Remote(remote)) = plan else { panic!("{plan:?}") };
    let request = remote.request.clone().unwrap();
    assert_eq!((request.expected, request.timeout), (None, None));
    let local = remote.with_local(MODULE.as_ref()).unwrap();
    let expected = json!({"config": {
        "failure_policy": null, "fail_open": null,
        "vm_config": {"environment_variables": null, "code": {"local": {"filename": MODULE}}},
    }});
    assert_eq!(local, Plugin::remote().wrap_json(STYLES[0], &expected));

    for nothing in [
        json!({}),
        json!({"config": null}),
        json!({"config": {"vm_config": null}}),
        with_code(json!(null)),
        with_code(json!({})),
        with_code(json!({"remote": null})),
    ] {
        assert_eq!(of(&nothing).unwrap_err(), RewriteError::NoCode, "{nothing}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_rejected_with_its_field() {
    let remote = json!({"remote": {"http_uri": {"uri": "r.example/a:v1"}}});
    let vm = |key: &str, value: Json| json!({"config": {"vm_config": {"code": remote, "environment_variables": {key: value}}}});
    for (json, field) in [
        (json!({"config": "x"}), "config"),
        (json!({"config": {"vm_config": []}}), "vm_config"),
        (with_code(json!(1)), "code"),
        (with_code(json!({"remote": true})), "remote"),
        (with_code(json!({"local": "x"})), "local"),
        (with_code(json!({"remote": {"http_uri": "x"}})), "http_uri"),
        (with_code(json!({"remote": {"http_uri": {"uri": 1}}})), "uri"),
        (with_code(json!({"remote": {"http_uri": {"timeout": 30}}})), "timeout"),
        (with_code(json!({"remote": {"sha256": 1}})), "sha256"),
        (json!({"config": {"failure_policy": "FAIL_SOMEHOW", "vm_config": {}}}), "failure_policy"),
        (json!({"config": {"failure_policy": 1.5, "vm_config": {}}}), "failure_policy"),
        (json!({"config": {"fail_open": "yes", "vm_config": {}}}), "fail_open"),
        (vm("key_values", json!([])), "key_values"),
        (
            vm("key_values", json!({"ISTIO_META_WASM_IMAGE_PULL_SECRET": 1})),
            "ISTIO_META_WASM_IMAGE_PULL_SECRET",
        ),
    ] {
        match of(&json) {
            Err(RewriteError::Shape { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{json}: {other:?}"),
        }
    }
}

#[test]
fn what_is_given_twice_is_rejected_for_nobody_knows_which_counts() {
    let remote = json!({"http_uri": {"uri": "r.example/a:v1"}});
    let both = with_code(json!({"local": {"filename": "/x"}, "remote": remote}));
    let error = of(&both).unwrap_err();
    assert_eq!(error.to_string(), "in the TypedStruct, code is given twice, as local and as remote");

    // Under another spelling a key for the agent would slip through.
    let spelled = json!({"config": {"vm_config": {
        "code": {"remote": remote},
        "environment_variables": {"key_values": {"A": "b"}},
        "environmentVariables": {"key_values": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "s"}},
    }}});
    assert_eq!(
        of(&spelled).unwrap_err(),
        RewriteError::Ambiguous {
            field: "environment_variables",
            first: "environment_variables",
            second: "environmentVariables"
        }
    );
}

#[test]
fn a_duration_is_read_as_json_writes_it() {
    let timeout = |text: &str| {
        let json = with_code(json!({"remote": {"http_uri": {"uri": "r.example/a:v1", "timeout": text}}}));
        let Ok(Plan::Remote(remote)) = of(&json) else { panic!("{text}") };
        remote.request.map(|request| request.timeout.map(|timeout| timeout.as_nanos()))
    };
    assert_eq!(timeout("30s"), Ok(Some(30_000_000_000)));
    assert_eq!(timeout("0.25s"), Ok(Some(250_000_000)));
    assert_eq!(timeout("1.000000001s"), Ok(Some(1_000_000_001)));
    assert_eq!(timeout("0s"), Ok(None));
    for bad in ["", "s", "30", "-1s", "1.s", ".5s", "1.0000000001s", "+1s", "1e3s", "99999999999s"] {
        assert_eq!(timeout(bad), Err(InvalidRequest::Timeout), "{bad}");
    }
}
