use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Cursor, SeekFrom, Write as _};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn fixtures() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures", "modules"].iter().collect()
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name).with_extension("wasm")).unwrap()
}

fn check_bytes(module: &[u8]) -> Result<ModuleInfo, ModuleError> {
    check(Cursor::new(module), &Budgets::default())
}

fn assemble(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

const MARKER: &str = r#"(func (export "proxy_abi_version_0_2_1"))"#;
const MALLOC: &str = r#"(func (export "malloc") (param i32) (result i32) i32.const 0)"#;
const MEMORY: &str = r#"(memory (export "memory") 1)"#;

/// The least that Envoy takes, with these fields before it.
fn plugin(imports: &str) -> Vec<u8> {
    assemble(&format!("(module {imports} {MARKER} {MALLOC} {MEMORY})"))
}

/// The same with these fields after it.
fn plugin_with(fields: &str) -> Vec<u8> {
    assemble(&format!("(module {MARKER} {MALLOC} {MEMORY} {fields})"))
}

fn verdict(module: &[u8]) -> &'static str {
    check_bytes(module).map_or_else(|error| error.label(), |_| "ok")
}

fn message(module: &[u8]) -> String {
    check_bytes(module).unwrap_err().to_string()
}

fn leb(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

fn custom(name: &str, content: &[u8]) -> Vec<u8> {
    section(0, &[&leb(name.len())[..], name.as_bytes(), content].concat())
}

const HEADER: &[u8] = b"\0asm\x01\0\0\0";

mod fixture_modules {
    use super::*;

    #[test]
    fn every_binary_is_what_its_source_assembles_to() {
        let mut names = BTreeSet::new();
        for file in fs::read_dir(fixtures()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            match path.extension().and_then(|e| e.to_str()) {
                Some("wat") => assert_eq!(fixture(&name), wat::parse_file(&path).unwrap(), "{name}"),
                Some("wasm") => drop(names.insert(name)),
                _ => assert_eq!(name, "README"),
            }
        }
        let without_source: Vec<_> =
            names.iter().filter(|name| !fixtures().join(name).with_extension("wat").exists()).collect();
        assert_eq!(without_source, ["empty", "html", "truncated"]);
        assert_eq!(fixture("truncated"), fixture("add-header-v1")[..150]);
        assert_eq!(fixture("empty"), b"");
    }

    #[test]
    fn those_that_work_pass() {
        for (name, functions, imports) in
            [("add-header-v1", 4, 1), ("add-header-v2", 4, 1), ("configured-header", 7, 2), ("network", 6, 2)]
        {
            let module = fixture(name);
            let expected =
                ModuleInfo { abi: AbiVersion::V0_2_1, size: module.len() as u64, functions, imports };
            assert_eq!(check_bytes(&module).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn what_only_running_it_shows_is_not_found() {
        assert_eq!(verdict(&fixture("fails-configure")), "ok");
    }

    #[test]
    fn each_broken_one_is_refused_in_an_authors_words() {
        for (name, label, words) in [
            ("component", "component", "this is a WebAssembly component; Envoy runs core modules only"),
            ("empty", "empty", "the module is empty"),
            ("html", "not_wasm", "this is not a Wasm module: it looks like an HTML page"),
            ("no-abi", "no_abi_version", "not built with a Proxy-Wasm SDK?"),
            ("precompiled", "precompiled", "precompiled_wee8_v13.8.258.26_linux_x86_64"),
            ("truncated", "truncated", "the module is cut off: it ends within a section, after 150 bytes"),
            (
                "unknown-import",
                "unknown_import",
                "the module imports env.wasmferry_no_such_function, which no Envoy provides",
            ),
        ] {
            let error = check_bytes(&fixture(name)).unwrap_err();
            assert_eq!(error.label(), label);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

mod interface {
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
            (
                r#"(func (export "proxy_on_configure") (param i32) (result i32) i32.const 1)"#,
                "wrong_callback",
            ),
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
}

mod validity {
    use super::*;

    #[test]
    fn what_v8_takes_by_default_is_taken() {
        for fields in [
            r#"(global (export "g") (mut i32) (i32.const 0))"#,
            "(func (param i32) (result i32) local.get 0 i32.extend8_s)",
            "(func (param f32) (result i32) local.get 0 i32.trunc_sat_f32_s)",
            "(func (result i32 i32) i32.const 0 i32.const 1)",
            "(func i32.const 0 i32.const 0 i32.const 0 memory.copy)",
            "(table 1 externref) (func (result externref) i32.const 0 table.get 0)",
            "(func (result v128) v128.const i32x4 0 0 0 0)",
            "(func (param v128 v128) (result v128) local.get 0 local.get 1 i8x16.relaxed_swizzle)",
            "(func $f return_call $f)",
            "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
            "(func (result i32) i32.const 0 i32.atomic.load)",
            "(memory 1) (func (result i32) (i32.load 1 (i32.const 0)))",
            "(memory i64 1) (table i64 1 funcref)",
            "(tag $t (param i32)) (func try catch $t drop end)",
            "(tag $t (param i32)) (func (block $h (result i32) (try_table (catch $t $h)) i32.const 0) drop)",
            "(type $t (func)) (func (param (ref $t)) local.get 0 call_ref $t)",
            "(type $s (struct (field i32))) (func (result (ref $s)) struct.new_default $s)",
            "(rec (type $s (struct (field i8))) (type $a (sub (array (mut i16)))))",
            "(func $f) (table 1 (ref func) (ref.func $f))",
            "(func $f) (start $f)",
        ] {
            assert_eq!(verdict(&plugin_with(fields)), "ok", "{fields}");
        }
    }

    #[test]
    fn what_v8_does_not_take_by_default_is_refused() {
        for fields in [
            "(func (result i64 i64) i64.const 0 i64.const 0 i64.const 0 i64.const 0 i64.add128)",
            "(memory 1 (pagesize 1))",
            "(type $f (func)) (type $c (cont $f))",
        ] {
            assert_eq!(verdict(&plugin_with(fields)), "invalid", "{fields}");
        }
        assert_eq!(verdict(&plugin_with("(table 10000000 funcref)")), "ok");
        assert_eq!(verdict(&plugin_with("(table 10000001 funcref)")), "table_too_large");
    }

    #[test]
    fn an_invalid_function_is_found_where_it_is() {
        let bad = "(func $f (result i32) i64.const 0)";
        let module = plugin_with(&format!("(func) {bad}"));
        let at = module.windows(3).position(|w| w == [0x42, 0x00, 0x0b]).unwrap() + 2;
        // Custom sections in front, which the validator never sees, do not move the place.
        let with_custom = [HEADER, &custom("x", &[7; 300]), &module[8..]].concat();
        let moved = with_custom.len() - module.len();
        for (module, place) in [(&module, at), (&with_custom, at + moved)] {
            let Err(ModuleError::Invalid { offset, what }) = check_bytes(module) else { panic!() };
            assert!(what.contains("type mismatch"), "{what}");
            assert_eq!(offset, place as u64);
        }
    }

    #[test]
    fn a_module_that_was_cut_off_anywhere_is_refused() {
        let module = plugin_with(
            r#"(data "some data") (func i32.const 0 i32.const 0 i32.const 0 memory.init 0) (start 0)"#,
        );
        assert_eq!(verdict(&module), "ok");
        for cut in 0..module.len() {
            assert_ne!(verdict(&module[..cut]), "ok", "{cut}");
        }
        assert_eq!(verdict(&module[..4]), "truncated");
    }

    #[test]
    fn what_follows_the_module_is_part_of_it() {
        let module = plugin("");
        assert_eq!(verdict(&[&module[..], b"\0"].concat()), "truncated");
        assert_eq!(verdict(&[&module[..], &section(14, b"")].concat()), "invalid");
        assert_eq!(verdict(&[&module[..], &module[8..]].concat()), "invalid");
        assert_eq!(verdict(&[&module[..], &custom("x", b"anything")].concat()), "ok");
    }

    #[test]
    fn a_section_must_end_where_its_size_says() {
        let types = |content: &[u8]| [HEADER, &section(1, content), &plugin("")[8..]].concat();
        assert_eq!(verdict(&[HEADER, &section(1, b"\0\0")].concat()), "invalid");
        assert_eq!(verdict(&types(b"\x01")), "invalid");
        let code = [HEADER, &section(10, b"\0\0")].concat();
        assert_eq!(
            message(&code),
            "the module is not valid WebAssembly: the section goes on after its last item (at byte 0xb)"
        );
    }

    #[test]
    fn other_headers_are_told_apart() {
        assert_eq!(verdict(b"\0asm\x02\0\0\0"), "version");
        assert_eq!(verdict(b"\0asm\x0d\0\x01\0"), "component");
        assert_eq!(verdict(b"\0asm\x01\0"), "truncated");
        assert_eq!(verdict(b"\0asn\x01\0\0\0"), "not_wasm");
        assert_eq!(
            message(b"\x1f\x8b\x08\0\0\0\0\0"),
            "this is not a Wasm module: it looks like a gzip stream"
        );
    }

    #[test]
    fn data_segments_are_validated_without_their_data() {
        for (fields, expected) in [
            (r#"(data "passive") (data (i32.const 1) "a") (data (memory 0) (i32.const 9) "b")"#, "ok"),
            ("(data (offset (i32.add (i32.const 1) (i32.mul (i32.const 2) (i32.const 3)))) \"x\")", "ok"),
            (r#"(global $g i32 (i32.const 5)) (data (global.get $g) "x")"#, "ok"),
            (r#"(func i32.const 0 i32.const 0 i32.const 0 memory.init 0) (data "x")"#, "ok"),
            (r#"(data (i64.const 1) "a")"#, "invalid"),
            (r#"(data (f32.const 1) "a")"#, "invalid"),
            (r#"(data (memory 1) (i32.const 1) "a")"#, "invalid"),
            (r#"(global $g (mut i32) (i32.const 5)) (data (global.get $g) "x")"#, "invalid"),
        ] {
            assert_eq!(verdict(&plugin_with(fields)), expected, "{fields}");
        }
        let data = |content: &[u8]| verdict(&[&plugin("")[..], &section(11, content)].concat());
        assert_eq!(data(b"\x01\x00\x41\x00\x0b\x03abc"), "ok");
        assert_eq!(data(b"\x01\x00\x41\x00\x0b\x04abc"), "invalid");
        assert_eq!(data(b"\x01\x00\x41\x00\x0b\x02abc"), "invalid");
        assert_eq!(data(b"\x02\x00\x41\x00\x0b\x03abc"), "invalid");
        assert_eq!(data(b"\x01\x03\x03abc"), "invalid");
        assert_eq!(data(b"\xff\xff\xff\xff\x0f"), "invalid");
        assert_eq!(data(b"\xff\xff\xff\xff\x1f"), "invalid");
    }

    #[test]
    fn native_code_is_refused_wherever_it_stands() {
        for name in ["precompiled_wee8_v1_linux_x86_64", "precompiled_wasmtime_v1", "wamr-aot"] {
            for module in [
                [&plugin("")[..], &custom(name, b"code")].concat(),
                [HEADER, &custom(name, b"code"), &plugin("")[8..]].concat(),
            ] {
                assert_eq!(verdict(&module), "precompiled", "{name}");
            }
        }
    }

    #[test]
    fn names_are_held_to_what_envoy_reads() {
        let with = |sections: &[&[u8]]| verdict(&[&plugin("")[..], &sections.concat()].concat());
        let names = |content: &[u8]| with(&[&custom("name", content)]);
        assert_eq!(names(b""), "ok");
        assert_eq!(names(b"\x01\x04\x01\x00\x01a"), "ok");
        assert_eq!(names(b"\x00\x02\x01m\x01\x04\x01\x00\x01\xff\x02\x00"), "ok");
        assert_eq!(names(b"\x01"), "name_section");
        assert_eq!(names(b"\x02\x7f"), "name_section");
        assert_eq!(names(b"\x01\x04\x01\x00\x05a"), "name_section");
        assert_eq!(names(b"\x01\x05\x01\x00\x01aa"), "name_section");
        assert_eq!(names(b"\x01\x03\x01\x00\x01a"), "name_section");
        // It reads the first only.
        let (good, bad) = (custom("name", b""), custom("name", b"\x01"));
        assert_eq!(with(&[&good, &bad]), "ok");
        assert_eq!(with(&[&bad, &good]), "name_section");
        // Custom sections have names themselves.
        assert_eq!(with(&[&section(0, b"")]), "invalid");
        assert_eq!(with(&[&section(0, b"\x05a")]), "invalid");
        assert_eq!(with(&[&section(0, b"\x01\xff")]), "invalid");
    }
}

mod budgets {
    use super::*;

    /// A module that is not held in memory: a beginning, and one piece again and again.
    struct Repeated {
        head: Vec<u8>,
        piece: Vec<u8>,
        times: u64,
        position: u64,
        read: u64,
    }

    impl Repeated {
        fn new(head: Vec<u8>, piece: Vec<u8>, times: u64) -> Self {
            Self { head, piece, times, position: 0, read: 0 }
        }

        fn size(&self) -> u64 {
            self.head.len() as u64 + self.piece.len() as u64 * self.times
        }
    }

    impl Read for &mut Repeated {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let size = self.size();
            let mut written = 0;
            while written < buf.len() && self.position < size {
                let at = self.position as usize;
                buf[written] = match self.head.get(at) {
                    Some(&byte) => byte,
                    None => self.piece[(at - self.head.len()) % self.piece.len()],
                };
                written += 1;
                self.position += 1;
            }
            self.read += written as u64;
            Ok(written)
        }
    }

    impl Seek for &mut Repeated {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.position = match to {
                SeekFrom::Start(n) => n,
                SeekFrom::End(n) => self.size().strict_add_signed(n),
                SeekFrom::Current(n) => self.position.strict_add_signed(n),
            };
            Ok(self.position)
        }
    }

    fn func_type(params: usize) -> Vec<u8> {
        [&[0x60][..], &leb(params), &vec![0x7f; params], &[0]].concat()
    }

    fn over_budget(result: Result<ModuleInfo, ModuleError>) -> &'static str {
        match result {
            Err(ModuleError::OverBudget { what, found, limit }) => {
                assert!(found > limit);
                what
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_million_types_of_200_parameters_are_refused_unread() {
        let (count, ty) = (leb(1_000_000), func_type(200));
        let size = count.len() + ty.len() * 1_000_000;
        let head = [HEADER, &[1], &leb(size), &count].concat();
        let mut module = Repeated::new(head, ty, 1_000_000);
        assert_eq!(over_budget(check(&mut module, &Budgets::default())), "bytes in one section");
        assert!(module.read <= 64 * 1024, "{} bytes were read", module.read);
    }

    fn types(count: usize, content: &[u8]) -> Vec<u8> {
        [HEADER, &section(1, &[&leb(count)[..], content].concat())].concat()
    }

    #[test]
    fn types_are_counted_before_the_validator_sees_them() {
        let defaults = Budgets::default();
        let result = |module: Vec<u8>| check(Cursor::new(module), &defaults);
        let many = types(10_001, &func_type(0).repeat(10_001));
        assert_eq!(over_budget(result(many)), "types");
        let group = [&[0x4e][..], &leb(10_001), &func_type(0).repeat(10_001)].concat();
        assert_eq!(over_budget(result(types(1, &group))), "types");
        let two = [&[0x4e][..], &leb(5_001), &func_type(0).repeat(5_001)].concat().repeat(2);
        assert_eq!(over_budget(result(types(2, &two))), "types");
        let wide = types(1, &func_type(129));
        assert_eq!(over_budget(result(wide)), "parameters, results and fields in one type");
        let long = types(1_000, &func_type(101).repeat(1_000));
        assert_eq!(over_budget(result(long)), "parameters, results and fields of types");
        let fields = [&[0x5f][..], &leb(129), &[0x7f, 0].repeat(129)].concat();
        assert_eq!(over_budget(result(types(1, &fields))), "parameters, results and fields in one type");
        let references = [&[0x60][..], &leb(129), &[0x64, 0x70].repeat(129), &[0]].concat();
        assert_eq!(over_budget(result(types(1, &references))), "parameters, results and fields in one type");
    }

    #[test]
    fn parameters_and_results_count_together() {
        let both = |params: usize, results: usize| {
            types(
                1,
                &[&[0x60][..], &leb(params), &vec![0x7f; params], &leb(results), &vec![0x7f; results]]
                    .concat(),
            )
        };
        assert_eq!(verdict(&both(64, 64)), "no_abi_version");
        assert_eq!(verdict(&both(64, 65)), "over_budget");
    }

    #[test]
    fn each_budget_is_a_limit_and_the_error_names_it() {
        let module = plugin_with(
            "(func (result i32) i32.const 0 i32.const 0 block (result i32) i32.const 1 end i32.add i32.add)",
        );
        let with = |change: fn(&mut Budgets)| {
            let mut budgets = Budgets::default();
            change(&mut budgets);
            over_budget(check(Cursor::new(&module), &budgets))
        };
        assert_eq!(with(|b| b.types = 2), "types");
        assert_eq!(with(|b| b.params = 2), "parameters, results and fields of types");
        assert_eq!(with(|b| b.functions = 2), "functions");
        assert_eq!(with(|b| b.exports = 2), "exports");
        assert_eq!(with(|b| b.section_bytes = 8), "bytes in one section");
        assert_eq!(with(|b| b.function_body_bytes = 8), "bytes in one function");
        assert_eq!(with(|b| b.operands = 2), "values on the stack");
        assert_eq!(with(|b| b.nesting = 1), "blocks within each other");
        let import = plugin(r#"(import "env" "proxy_done" (func (result i32)))"#);
        let budgets = Budgets { imports: 0, ..Budgets::default() };
        assert_eq!(over_budget(check(Cursor::new(&import), &budgets)), "imports");
        let data = plugin_with(&r#"(data (i32.const 0) "")"#.repeat(100));
        let budgets = Budgets { section_bytes: 200, ..Budgets::default() };
        assert_eq!(over_budget(check(Cursor::new(&data), &budgets)), "bytes in the data section's headers");
    }

    /// A plugin with a data section of 64 MiB and a custom section of as much, on disk as holes.
    fn sparse_plugin() -> File {
        const BIG: u64 = 64 << 20;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&plugin("")).unwrap();
        let segment = [&[1, 0, 0x41, 0, 0x0b][..], &leb(BIG as usize)].concat();
        file.write_all(&[&[11][..], &leb(segment.len() + BIG as usize), &segment].concat()).unwrap();
        let end = file.seek(SeekFrom::Current(BIG as i64)).unwrap();
        let name = [&[1][..], b"x"].concat();
        file.write_all(&[&[0][..], &leb(name.len() + BIG as usize), &name].concat()).unwrap();
        let end = end + file.stream_position().unwrap() - end + BIG;
        file.set_len(end).unwrap();
        file
    }

    /// The most memory that this process ever had, in KiB.
    fn peak() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Runs one of the ignored tests below in a process of its own, where nothing else allocates.
    fn alone(test: &str) {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("wasm::check::tests::budgets::{test}"), "--ignored"])
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn big_data_and_custom_sections_cost_no_memory() {
        alone("in_a_process_of_its_own_big_sections");
    }

    #[test]
    #[ignore = "run by the test above it"]
    fn in_a_process_of_its_own_big_sections() {
        let module = sparse_plugin();
        let before = peak();
        assert_eq!(check(&module, &Budgets::default()).unwrap().functions, 2);
        let grown = peak() - before;
        // Most of it is the program itself, which is read in as it runs.
        assert!(grown <= 4 * 1024, "grew by {grown} KiB");
    }

    #[test]
    fn a_module_that_uses_up_every_budget_costs_no_more_than_8_mib() {
        alone("in_a_process_of_its_own_all_budgets");
    }

    #[test]
    #[ignore = "run by the test above it"]
    fn in_a_process_of_its_own_all_budgets() {
        let mut module = tempfile::tempfile().unwrap();
        write_greedy(&mut module);
        let before = peak();
        let info = check(&module, &Budgets::default()).unwrap();
        assert_eq!((info.functions, info.imports), (250_000, 1_000));
        let grown = peak() - before;
        assert!(grown <= 8 * 1024, "grew by {grown} KiB");
    }

    /// A plugin that Envoy could take, with as much of everything as the budgets allow.
    fn write_greedy(file: &mut File) {
        let Budgets { types, imports, functions, exports, function_body_bytes, operands, nesting, .. } =
            Budgets::default();
        file.write_all(HEADER).unwrap();
        // All different, else the validator would keep them once. The first three are: nothing, i32
        // to i32, nothing to i32.
        let mut content = leb(types as usize);
        content.extend([0x60, 0, 0, 0x60, 1, 0x7f, 1, 0x7f, 0x60, 0, 1, 0x7f]);
        for n in 3..types {
            content.extend([0x60, 9]);
            content.extend((0..9).map(|digit| 0x7f - (n >> (2 * digit) & 3) as u8));
            content.push(0);
        }
        file.write_all(&section(1, &content)).unwrap();
        let import = [&leb(3)[..], b"env", &leb(10), b"proxy_done", &[0, 2]].concat();
        file.write_all(&section(2, &[leb(imports as usize), import.repeat(imports as usize)].concat()))
            .unwrap();
        let bodies = functions as usize;
        let mut content = [leb(bodies), vec![0, 1]].concat();
        content.extend((2..bodies).map(|_| 0));
        file.write_all(&section(3, &content)).unwrap();
        file.write_all(&section(4, b"\x01\x70\x00\x01")).unwrap();
        file.write_all(&section(5, b"\x01\x00\x01")).unwrap();
        let mut content = leb(exports as usize);
        let mut export = |name: &str, kind: u8, index: usize| {
            content.extend([&leb(name.len())[..], name.as_bytes(), &[kind], &leb(index)].concat());
        };
        let first = imports as usize;
        export("memory", 2, 0);
        export("proxy_abi_version_0_2_1", 0, first);
        export("malloc", 0, first + 1);
        for n in 3..exports {
            export(&format!("{n:090}"), 0, first);
        }
        file.write_all(&section(7, &content)).unwrap();
        let mut content = [&[1, 0, 0x41, 0, 0x0b][..], &leb(bodies)].concat();
        content.extend((0..bodies).flat_map(|n| leb(first + n)));
        file.write_all(&section(9, &content)).unwrap();
        // One body at the limit that fills the stacks; the others are empty.
        let nesting = nesting as usize - 1;
        let operands = operands as usize;
        let mut body = vec![0];
        body.extend([0x02, 0x40].repeat(nesting));
        body.extend([0x41, 0].repeat(operands));
        body.extend(vec![0x1a; operands]);
        body.extend(vec![0x0b; nesting]);
        body.resize(function_body_bytes as usize - 1, 0x01);
        body.push(0x0b);
        let mut content = leb(bodies);
        content.extend([leb(body.len()), body].concat());
        content.extend([4, 0, 0x41, 0, 0x0b]);
        content.extend([2, 0, 0x0b].repeat(bodies - 2));
        file.write_all(&section(10, &content)).unwrap();
        file.rewind().unwrap();
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000), wasm in any::<bool>()) {
        let module = if wasm { [HEADER, &bytes].concat() } else { bytes };
        let _ = check_bytes(&module);
    }

    #[test]
    fn arbitrary_sections_never_panic(
        sections in proptest::collection::vec((0u8..16, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)
    ) {
        let sections: Vec<u8> = sections.iter().flat_map(|(id, content)| section(*id, content)).collect();
        let _ = check_bytes(&[HEADER, &sections].concat());
    }

    #[test]
    fn mutated_fixtures_never_panic(
        which in 0usize..3, changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>()
    ) {
        let mut module = fixture(["configured-header", "network", "precompiled"][which]);
        for (place, value) in changes {
            let place = place % module.len();
            module[place] = value;
        }
        module.truncate(module.len() - cut % 40);
        let _ = check_bytes(&module);
    }
}
