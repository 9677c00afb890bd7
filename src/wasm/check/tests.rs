use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Cursor, SeekFrom, Write as _};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

mod budgets;
mod fixture_modules;
mod interface;
mod validity;

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

    /// Which shows too that a module without its custom sections and data is as valid as the whole.
    #[test]
    fn mutated_fixtures_never_panic_and_are_as_valid_as_all_at_once(
        which in 0usize..3, changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>()
    ) {
        let mut module = fixture(["configured-header", "network", "add-header-v1"][which]);
        for (place, value) in changes {
            let place = place % module.len();
            module[place] = value;
        }
        module.truncate(module.len() - cut % 40);
        let valid = Validator::new_with_features(FEATURES).validate_all(&module).is_ok();
        match check_bytes(&module) {
            Ok(_) => prop_assert!(valid),
            Err(ModuleError::Invalid { .. } | ModuleError::Truncated { .. }) => prop_assert!(!valid),
            // Valid or not, but refused for another reason.
            Err(_) => {}
        }
    }
}
