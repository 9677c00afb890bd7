//! Imports, exports, and what Envoy makes of them.

use super::*;

#[test]
fn each_version_that_envoy_speaks_is_recognised() {
    for (marker, abi) in [
        ("0_1_0", Some(AbiVersion::V0_1_0)),
        ("0_2_0", Some(AbiVersion::V0_2_0)),
        ("0_2_1", Some(AbiVersion::V0_2_1)),
        ("0_3_0", None),
    ] {
        let marker = format!(r#"(func (export "proxy_abi_version_{marker}"))"#);
        let module = assemble(&format!("(module {marker} {MALLOC} {MEMORY})"));
        assert_eq!(check_bytes(&module).ok().map(|info| info.abi), abi);
    }
}

#[test]
fn the_first_marker_decides() {
    let old = r#"(func (export "proxy_abi_version_0_1_0"))"#;
    let both = |markers: String| check_bytes(&assemble(&format!("(module {markers} {MALLOC} {MEMORY})")));
    assert_eq!(both(format!("{old}{MARKER}")).unwrap().abi, AbiVersion::V0_1_0);
    assert_eq!(both(format!("{MARKER}{old}")).unwrap().abi, AbiVersion::V0_2_1);
}

#[test]
fn a_marker_or_allocator_that_is_no_function_does_not_count() {
    let global = |name: &str| format!(r#"(global (export "{name}") i32 (i32.const 0))"#);
    let marker = global("proxy_abi_version_0_2_1");
    assert_eq!(verdict(&assemble(&format!("(module {marker} {MALLOC} {MEMORY})"))), "no_abi_version");
    let malloc = global("malloc");
    assert_eq!(verdict(&assemble(&format!("(module {MARKER} {malloc} {MEMORY})"))), "no_allocator");
}

#[test]
fn either_allocator_will_do_but_with_the_right_signature() {
    let with = |name: &str, param: &str| {
        let allocator = format!(r#"(func (export "{name}") (param {param}) (result i32) i32.const 0)"#);
        verdict(&assemble(&format!("(module {MARKER} {allocator} {MEMORY})")))
    };
    assert_eq!(with("malloc", "i32"), "ok");
    assert_eq!(with("proxy_on_memory_allocate", "i32"), "ok");
    assert_eq!(with("malloc", "i64"), "wrong_callback");
    assert_eq!(with("proxy_on_memory_allocate", "i64"), "wrong_callback");
    assert_eq!(with("allocate", "i32"), "no_allocator");
}

#[test]
fn a_memory_must_be_exported_or_imported() {
    let with = |memory: &str| verdict(&assemble(&format!("(module {memory} {MARKER} {MALLOC})")));
    assert_eq!(with(r#"(memory (export "any name") 1)"#), "ok");
    assert_eq!(with(r#"(import "env" "memory" (memory 1))"#), "ok");
    assert_eq!(with("(memory 1)"), "no_memory");
    assert_eq!(with(""), "no_memory");
}

#[test]
fn imports_are_known_by_module_name_and_signature() {
    let import = |module: &str, name: &str, ty: &str| {
        verdict(&plugin(&format!(r#"(import "{module}" "{name}" (func {ty}))"#)))
    };
    let log = "(param i32 i32 i32) (result i32)";
    assert_eq!(import("env", "proxy_log", log), "ok");
    assert_eq!(import("wasi_snapshot_preview1", "proxy_log", log), "unknown_import");
    assert_eq!(import("env", "proxy_log", "(param i32 i32) (result i32)"), "wrong_import");
    assert_eq!(import("env", "proxy_log", "(param i32 i32 i64) (result i32)"), "wrong_import");
    assert_eq!(import("env", "proxy_log", "(param i32 i32 i32)"), "wrong_import");
    assert_eq!(import("env", "proxy_log", "(param v128 i32 i32) (result i32)"), "wrong_import");
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        assert_eq!(import(module, "fd_seek", "(param i32 i64 i32 i32) (result i32)"), "ok");
        assert_eq!(import(module, "proc_raise", "(param i32) (result i32)"), "unknown_import");
    }
    assert_eq!(import("env", "fd_seek", "(param i32 i64 i32 i32) (result i32)"), "unknown_import");
    assert_eq!(import("env", "abort", "(param i32 i32 i32 i32)"), "unknown_import");
}

#[test]
fn a_wrong_import_is_shown_with_both_signatures() {
    let module = plugin(r#"(import "env" "proxy_record_metric" (func (param i32 i32) (result i32)))"#);
    assert_eq!(
        message(&module),
        "the module imports env.proxy_record_metric as (i32, i32) -> (i32), \
         but Envoy provides it as (i32, i64) -> (i32)"
    );
}

#[test]
fn functions_of_another_abi_are_refused() {
    for (name, ty, versions) in [
        ("proxy_get_log_level", "(param i32) (result i32)", &["0_2_1"][..]),
        ("proxy_continue_stream", "(param i32) (result i32)", &["0_2_0", "0_2_1"]),
        ("proxy_clear_route_cache", "(result i32)", &["0_1_0"]),
    ] {
        for version in ["0_1_0", "0_2_0", "0_2_1"] {
            let module = assemble(&format!(
                r#"(module (import "env" "{name}" (func {ty}))
                    (func (export "proxy_abi_version_{version}")) {MALLOC} {MEMORY})"#
            ));
            let expected = if versions.contains(&version) { "ok" } else { "import_of_other_abi" };
            assert_eq!(verdict(&module), expected, "{name} {version}");
        }
    }
}

#[test]
fn of_other_imports_only_one_plain_memory_and_table_are_provided() {
    let imports = |imports: &[&str]| {
        let imports: String =
            imports.iter().enumerate().map(|(n, i)| format!(r#"(import "env" "i{n}" {i})"#)).collect();
        verdict(&assemble(&format!("(module {imports} {MARKER} {MALLOC})")))
    };
    assert_eq!(imports(&["(memory 1)", "(table 1 funcref)"]), "ok");
    assert_eq!(imports(&["(memory 1)", "(table 1 externref)"]), "ok");
    for other in [
        "(global i32)",
        "(tag)",
        "(memory 1)",
        "(table i64 1 funcref)",
        "(table 1 anyref)",
        "(table 1 exnref)",
    ] {
        assert_eq!(imports(&["(memory 1)", other]), "import_kind", "{other}");
    }
    assert_eq!(imports(&["(memory i64 1)"]), "import_kind");
    assert_eq!(imports(&["(memory 1 1 shared)"]), "import_kind");
    assert_eq!(imports(&["(memory 1)", "(table 1 funcref)", "(table 1 funcref)"]), "import_kind");
}

#[test]
fn a_callback_with_another_signature_is_refused() {
    for (fields, expected) in [
        (r#"(func (export "proxy_on_configure") (param i32) (result i32) i32.const 1)"#, "wrong_callback"),
        (r#"(func (export "proxy_on_tick") (param i32) (result i32) i32.const 1)"#, "wrong_callback"),
        (r#"(func (export "proxy_on_tick") (param i32))"#, "ok"),
        (
            r#"(func (export "proxy_on_request_headers") (param i32 i32) (result i32) i32.const 0)"#,
            "wrong_callback",
        ),
        (r#"(func (export "envoy_on_resolve_dns") (param i32))"#, "wrong_callback"),
        // Envoy calls neither of these.
        (r#"(func (export "proxy_on_something_new") (param i64))"#, "ok"),
        (r#"(global (export "proxy_on_configure") i32 (i32.const 0))"#, "ok"),
    ] {
        assert_eq!(verdict(&plugin_with(fields)), expected, "{fields}");
    }
}

#[test]
fn headers_callbacks_have_one_parameter_less_in_the_first_abi() {
    let with = |params: &str| {
        let callback = format!(
            r#"(func (export "proxy_on_response_headers") (param {params}) (result i32) i32.const 0)"#
        );
        let marker = r#"(func (export "proxy_abi_version_0_1_0"))"#;
        verdict(&assemble(&format!("(module {marker} {MALLOC} {MEMORY} {callback})")))
    };
    assert_eq!(with("i32 i32"), "ok");
    assert_eq!(with("i32 i32 i32"), "wrong_callback");
}

#[test]
fn start_functions_are_looked_at_as_envoy_does() {
    let initialize = r#"(func (export "_initialize"))"#;
    let odd = |name: &str| format!(r#"(func (export "{name}") (param i32))"#);
    for (fields, expected) in [
        (odd("_start"), "wrong_callback"),
        (odd("_initialize"), "wrong_callback"),
        (odd("main"), "ok"),
        (format!("{initialize}{}", odd("_start")), "ok"),
        (format!("{initialize}{}", odd("main")), "wrong_callback"),
        (format!("{initialize}{}", odd("__main_void")), "wrong_callback"),
    ] {
        assert_eq!(verdict(&plugin_with(&fields)), expected, "{fields}");
    }
}

#[test]
fn exports_that_would_end_envoys_process_are_refused() {
    for fields in [
        r#"(func (export "x") (param v128))"#,
        r#"(func (export "x") (param exnref))"#,
        r#"(func (export "x") (result anyref) ref.null any)"#,
        r#"(type $t (func)) (func (export "x") (param (ref null $t)))"#,
        r#"(global (export "x") v128 (v128.const i32x4 0 0 0 0))"#,
        r#"(type $t (func)) (global (export "x") (ref null $t) (ref.null $t))"#,
        r#"(table (export "x") 1 exnref)"#,
        r#"(tag (export "x"))"#,
    ] {
        assert_eq!(verdict(&plugin_with(fields)), "export_crashes", "{fields}");
    }
    for fields in [
        r#"(func (export "x") (param f32 f64 externref funcref) (result i64 i64) i64.const 0 i64.const 0)"#,
        r#"(func (export "x") (param (ref func)))"#,
        r#"(global (export "x") funcref (ref.null func))"#,
        r#"(table (export "x") 1 externref)"#,
        r#"(func (param v128 exnref))"#,
    ] {
        assert_eq!(verdict(&plugin_with(fields)), "ok", "{fields}");
    }
}

#[test]
fn names_out_of_the_module_are_made_printable() {
    let module = plugin(r#"(import "e\1b[31m" "\n" (func))"#);
    assert_eq!(message(&module), r"the module imports e\u{1b}[31m.\u{a}, which no Envoy provides");
}
