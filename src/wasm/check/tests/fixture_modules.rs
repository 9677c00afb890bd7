//! The modules in `fixtures/modules`.

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
        let expected = ModuleInfo { abi: AbiVersion::V0_2_1, size: module.len() as u64, functions, imports };
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
