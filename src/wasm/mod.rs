//! Wasm modules as bytes: [`unpack`] takes one out of the layer or archive that it came in, and
//! [`check`] tells whether Envoy will take it. Both are synchronous and work in bounded memory.
//!
//! Knows no network, no store and no xDS.

mod abi;
mod budget;
mod check;
mod decompress;
mod error;
mod functions;
mod hidden;
mod input;
pub mod tar;
mod unpack;

use std::io::{self, Read};

pub use abi::AbiVersion;
pub use budget::Budgets;
pub use check::{ModuleInfo, check};
pub use error::ModuleError;
pub use unpack::{Layers, Limits, Packaging, UnpackError, unpack, unpack_layers};

/// Reads until the slice is full or the reader has ended.
trait ReadToSlice: Read {
    fn read_to_slice(&mut self, slice: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = slice.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}

impl<R: Read + ?Sized> ReadToSlice for R {}

/// What bytes that are no Wasm module look like, from their beginning, for an error message.
fn looks_like(head: &[u8]) -> &'static str {
    let text = head.trim_ascii_start();
    let starts = |prefix: &str| {
        text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    match head {
        [] => "nothing at all",
        [0x1f, 0x8b, ..] => "a gzip stream",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd stream",
        [b'P', b'K', 3 | 5, ..] => "a zip archive",
        [0x7f, b'E', b'L', b'F', ..] => "a native (ELF) program",
        _ if starts("<!doctype") || starts("<html") => "an HTML page",
        _ if starts("<?xml") => "an XML document",
        _ if starts("(module") => "WebAssembly text, which must be assembled first",
        _ if starts("{") || starts("[") => "a JSON document",
        _ if tar::is_header(head) => "a tar archive",
        _ if head.iter().all(|&b| b == 0) => "zero bytes",
        _ if head.iter().all(|&b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => "a text",
        _ => "unknown binary data",
    }
}

/// A name out of a module or an archive, fit for one line of a message: cut, and with all that is
/// not printable escaped.
fn printable(name: &[u8]) -> String {
    const LONGEST: usize = 80;
    let mut shown = String::new();
    for c in String::from_utf8_lossy(name).chars() {
        if shown.len() >= LONGEST {
            shown.push('…');
            break;
        }
        match c {
            ' ' => shown.push(c),
            c if c.is_control() || c.is_whitespace() || is_deceptive(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Characters that show nothing, or turn the text around them.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_message_is_one_short_printable_line() {
        assert_eq!(printable(b"a b\n\x1b[31m"), r"a b\u{a}\u{1b}[31m");
        assert_eq!(printable("a\u{202e}b".as_bytes()), r"a\u{202e}b");
        assert_eq!(printable(b"\xff"), "\u{fffd}");
        assert!(printable(&[b'a'; 1000]).len() < 100);
    }

    #[test]
    fn common_mistakes_are_recognised() {
        for (bytes, what) in [
            (&b""[..], "nothing at all"),
            (b"\n<!DOCTYPE html>", "an HTML page"),
            (b"\x1f\x8b\x08", "a gzip stream"),
            (b"(module)", "WebAssembly text, which must be assembled first"),
            (b"{\"errors\":[]}", "a JSON document"),
            (b"not found", "a text"),
            (b"\x01\x02\x03\x80", "unknown binary data"),
        ] {
            assert_eq!(looks_like(bytes), what);
        }
    }
}
