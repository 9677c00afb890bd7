//! The modules in fixtures/, and what is made of them.

use std::path::Path;

/// The bytes of `fixtures/modules/NAME.wasm`.
pub fn module(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/modules/{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The module, larger by a custom section of this many bytes and a few more.
pub fn padded(module: &[u8], bytes: usize) -> Vec<u8> {
    const NAME: &[u8] = b"\x07padding";
    let mut padded = module.to_vec();
    padded.push(0);
    let mut size = NAME.len() + bytes;
    while size > 0x7f {
        padded.push((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    padded.push(size as u8);
    padded.extend_from_slice(NAME);
    // Nothing that compresses to nothing on the way.
    padded.extend((0..bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8));
    padded
}
