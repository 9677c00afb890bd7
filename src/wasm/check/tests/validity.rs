//! The format itself, and what V8 takes.

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
    assert_eq!(message(b"\x1f\x8b\x08\0\0\0\0\0"), "this is not a Wasm module: it looks like a gzip stream");
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
