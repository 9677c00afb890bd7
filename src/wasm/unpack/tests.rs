use std::io::Write as _;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

const WASM: &[u8] = b"\0asm\x01\0\0\0 and the rest of it";

/// A gzip file named `self` that unpacks to itself: copies and literals that print each other, with
/// a checksum that was solved for.
const QUINE: &str = "1f8b08080000000000ff73656c6600001400ebff1f8b08080000000000ff73656c6600001400ebff\
    428821c400000500faff428821c400000500faff000500faff001400ebff428821c400000500faff000500faff001400ebff\
    428821c400001400ebff428821c400001400ebff428821c400001400ebff428821c400001400ebff428821c400000000ffff\
    000000ffff001200edff428821c400000000ffff000000ffff001200edff828bc04500010000ffffacfb10f4ce000000\
    828bc04500010000ffffacfb10f4ce000000";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A body that tells whether it was read to its end.
struct Body<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // Short reads, as a network gives them.
        let most = buf.len().min(700);
        let read = self.rest.read(&mut buf[..most])?;
        self.ended |= read == 0 && !buf.is_empty();
        Ok(read)
    }
}

fn unpack_with(body: &[u8], packaging: Packaging, limits: &Limits) -> Result<Vec<u8>, UnpackError> {
    let mut out = Vec::new();
    let mut body = Body { rest: body, ended: false };
    let size = unpack(&mut body, packaging, limits, &mut out)?;
    assert!(body.ended, "success means that the body was read to its end");
    assert_eq!(size, out.len() as u64);
    Ok(out)
}

fn get(body: &[u8], packaging: Packaging) -> Result<Vec<u8>, UnpackError> {
    unpack_with(body, packaging, &Limits::default())
}

fn small(max_module_bytes: u64) -> Limits {
    Limits { max_module_bytes, max_other_bytes: 64 * 1024, max_entries: 10 }
}

use Packaging::{Layer, Raw, Sniff};

#[test]
fn a_raw_body_is_copied_whatever_it_is() {
    assert_eq!(get(WASM, Raw).unwrap(), WASM);
    assert_eq!(get(b"<html>", Raw).unwrap(), b"<html>");
    assert_eq!(get(b"", Raw).unwrap(), b"");
}

#[test]
fn a_module_is_found_in_every_wrapping() {
    let archive = tar(&[("plugin.wasm", WASM)]);
    for packaging in [Layer, Sniff] {
        for body in [WASM, &gzip(WASM), &archive, &gzip(&archive), &gzip(&gzip(&archive))] {
            assert_eq!(get(body, packaging).unwrap(), WASM);
        }
    }
}

#[test]
fn plugin_wasm_is_found_at_any_depth_among_other_files() {
    let archive = tar(&[
        ("etc/passwd", b"root"),
        (".wh.plugin.wasm", b""),
        ("other.wasm", b"not this one"),
        ("plugin.wasm.bak", b"nor this"),
        ("opt/x/plugin.wasm", WASM),
        ("runtime-config.json", b"{}"),
    ]);
    assert_eq!(get(&gzip(&archive), Layer).unwrap(), WASM);
}

#[test]
fn a_sniffed_archive_may_name_its_only_module_as_it_likes() {
    let archive = tar(&[("README", b""), ("my-filter.wasm", WASM)]);
    assert_eq!(get(&archive, Sniff).unwrap(), WASM);
    let error = get(&archive, Layer).unwrap_err();
    assert_eq!(error.to_string(), "there is no plugin.wasm in the archive, only README, my-filter.wasm");
}

#[test]
fn two_candidates_are_refused_rather_than_guessed() {
    let archive = tar(&[("a/plugin.wasm", WASM), ("b/plugin.wasm", b"\0asm other")]);
    let error = get(&archive, Layer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is more than one plugin.wasm in the archive: a/plugin.wasm and b/plugin.wasm"
    );
    assert_eq!(get(&tar(&[("a.wasm", WASM), ("b.wasm", WASM)]), Sniff).unwrap_err().label(), "ambiguous");
}

#[test]
fn a_link_named_plugin_wasm_is_no_module() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_ustar();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "plugin.wasm", "/etc/passwd").unwrap();
    let error = get(&builder.into_inner().unwrap(), Layer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no plugin.wasm in the archive, only plugin.wasm (not a regular file)"
    );
}

#[test]
fn the_names_in_a_message_are_few_and_printable() {
    let names: Vec<String> = (0..9).map(|n| format!("file\n{n}")).collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let message = get(&tar(&entries), Layer).unwrap_err().to_string();
    assert!(message.ends_with(r"file\u{a}4 and 4 more"), "{message}");
}

#[test]
fn all_that_follows_the_module_is_read() {
    let archive = tar(&[("plugin.wasm", WASM), ("after", &[1; 5000])]);
    let padded = [&archive[..], &[0; 8192]].concat();
    let garbage = [&archive[..], b"after the end marker"].concat();
    for body in [&padded, &garbage, &gzip(&garbage), &[&gzip(&padded)[..], &[0; 3000]].concat()] {
        assert_eq!(get(body, Layer).unwrap(), WASM);
    }
}

#[test]
fn all_members_of_a_gzip_stream_belong_to_it() {
    let (first, second) = WASM.split_at(10);
    let members = [gzip(first), gzip(b""), gzip(second)].concat();
    assert_eq!(get(&members, Sniff).unwrap(), WASM);
}

#[test]
fn a_gzip_stream_that_was_cut_off_anywhere_is_an_error() {
    let whole = gzip(&tar(&[("plugin.wasm", WASM)]));
    for cut in 0..whole.len() {
        assert!(get(&whole[..cut], Layer).is_err(), "{cut}");
    }
}

#[test]
fn a_gzip_stream_with_a_wrong_checksum_is_an_error() {
    let mut body = gzip(WASM);
    let crc = body.len() - 8;
    body[crc] ^= 1;
    assert_eq!(get(&body, Sniff).unwrap_err().label(), "gzip");
}

#[test]
fn damage_behind_the_module_is_an_error() {
    // Stored without compression, so that the place of each byte is known.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(&tar(&[("plugin.wasm", WASM), ("after", b"intact")])).unwrap();
    let mut body = encoder.finish().unwrap();
    let place = body.windows(6).position(|w| w == b"intact").unwrap();
    body[place] ^= 1;
    assert_eq!(get(&body, Layer).unwrap_err().label(), "gzip");
}

#[test]
fn a_module_over_the_limit_is_an_error_and_never_cut() {
    let size = WASM.len() as u64;
    let archive = tar(&[("plugin.wasm", WASM)]);
    for (body, packaging) in
        [(WASM, Raw), (WASM, Sniff), (&gzip(WASM), Sniff), (&archive, Layer), (&gzip(&archive), Layer)]
    {
        assert_eq!(unpack_with(body, packaging, &small(size)).unwrap(), WASM);
        let error = unpack_with(body, packaging, &small(size - 1)).unwrap_err();
        assert!(matches!(error, UnpackError::TooLarge { limit } if limit == size - 1), "{error}");
    }
}

#[test]
fn an_entry_that_declares_too_much_is_refused_before_anything_is_written() {
    for (name, label) in [("plugin.wasm", "too_large"), ("other", "expands_too_far")] {
        let mut header = ::tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(u64::MAX / 2);
        header.set_cksum();
        let body = [&header.as_bytes()[..], &[1; 4096]].concat();
        let mut out = Vec::new();
        let error = unpack(&body[..], Layer, &Limits::default(), &mut out).unwrap_err();
        assert_eq!((error.label(), out.len()), (label, 0), "{name}");
    }
}

#[test]
fn a_gzip_bomb_ends_at_the_limit_wherever_it_sits() {
    let zeros = vec![0; 4 << 20];
    let module = [WASM, &zeros].concat();
    let other = tar(&[("other", &zeros), ("plugin.wasm", WASM)]);
    let behind = [&tar(&[("plugin.wasm", WASM)])[..], &zeros].concat();
    let outer = [gzip(WASM), zeros.clone()].concat();
    for (body, label) in [
        (gzip(&module), "too_large"),
        (gzip(&other), "expands_too_far"),
        (gzip(&behind), "expands_too_far"),
        (gzip(&outer), "expands_too_far"),
    ] {
        assert!(body.len() * 500 < zeros.len(), "it is a bomb");
        assert_eq!(unpack_with(&body, Layer, &small(64 * 1024)).unwrap_err().label(), label);
    }
}

#[test]
fn an_archive_with_too_many_entries_is_refused() {
    let names: Vec<String> = (0..11).map(|n| n.to_string()).collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    assert_eq!(unpack_with(&tar(&entries), Layer, &small(1)).unwrap_err().label(), "too_many_entries");
    assert_eq!(unpack_with(&tar(&entries[1..]), Layer, &small(1)).unwrap_err().label(), "no_module");
}

#[test]
fn a_gzip_that_contains_itself_ends() {
    let quine = hex::decode(QUINE).unwrap();
    let mut unpacked = Vec::new();
    GzDecoder::new(&quine[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, quine);
    for packaging in [Layer, Sniff] {
        assert_eq!(get(&quine, packaging).unwrap_err().label(), "nested_too_deep");
    }
}

#[test]
fn zstd_is_unpacked_frame_by_frame() {
    let archive = tar(&[("plugin.wasm", WASM)]);
    let (first, second) = archive.split_at(700);
    // What pzstd puts before each frame, and zstd:chunked behind the last.
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    let frames = [&skippable[..], &zstd(first), &zstd(b""), &zstd(second), skippable].concat();
    for body in [&zstd(&archive), &frames, &gzip(&zstd(&archive)), &zstd(&gzip(&archive)), &zstd(WASM)] {
        assert_eq!(get(body, Layer).unwrap(), WASM);
        assert_eq!(get(body, Sniff).unwrap(), WASM);
    }
    assert_eq!(get(&zstd(&zstd(&zstd(WASM))), Layer).unwrap_err().label(), "nested_too_deep");
    assert_eq!(get(&[&zstd(WASM)[..], b"behind it"].concat(), Layer).unwrap_err().label(), "zstd");
}

#[test]
fn a_zstd_stream_that_was_cut_off_or_damaged_is_an_error() {
    let whole = zstd(&tar(&[("plugin.wasm", WASM)]));
    for cut in 0..whole.len() {
        assert!(get(&whole[..cut], Layer).is_err(), "{cut}");
    }
    // Its checksum.
    let mut body = whole;
    *body.last_mut().unwrap() ^= 1;
    assert_eq!(get(&body, Layer).unwrap_err().label(), "zstd");
}

#[test]
fn a_zstd_bomb_ends_at_the_limit() {
    let zeros = vec![0; 4 << 20];
    for (body, label) in [
        (zstd(&[WASM, &zeros].concat()), "too_large"),
        (zstd(&tar(&[("other", &zeros), ("plugin.wasm", WASM)])), "expands_too_far"),
    ] {
        assert!(body.len() * 500 < zeros.len(), "it is a bomb");
        assert_eq!(unpack_with(&body, Layer, &small(64 * 1024)).unwrap_err().label(), label);
    }
}

#[test]
fn a_zstd_stream_that_asks_for_a_huge_window_is_refused() {
    let with_window = |log: u8| {
        // A frame without its size or a checksum, its window, and one last raw block of the module.
        let block = (u32::try_from(WASM.len()).unwrap() << 3) | 1;
        [b"\x28\xb5\x2f\xfd\x00", &[(log - 10) << 3][..], &block.to_le_bytes()[..3], WASM].concat()
    };
    assert_eq!(get(&with_window(25), Sniff).unwrap(), WASM);
    for log in [26, 31, 41] {
        assert_eq!(get(&with_window(log), Sniff).unwrap_err().label(), "zstd", "{log}");
    }
}

/// Layers, the last one of the image first.
struct Stack {
    layers: Vec<Vec<u8>>,
    at: usize,
    read: usize,
}

impl Read for Stack {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = (&self.layers[self.at][self.read..]).read(buf)?;
        self.read += read;
        Ok(read)
    }
}

impl Layers for Stack {
    fn packaging(&self) -> Packaging {
        Layer
    }

    fn next_layer(&mut self) -> io::Result<bool> {
        assert_eq!(self.read, self.layers[self.at].len(), "a layer is read to its end");
        (self.at, self.read) = (self.at + 1, 0);
        Ok(self.at < self.layers.len())
    }
}

/// The module out of an image's layers, the last one first, and how many of them were begun.
fn stacked(limits: &Limits, layers: &[&[(&str, &[u8])]]) -> (Result<Vec<u8>, UnpackError>, usize) {
    let layers = layers.iter().map(|entries| zstd(&tar(entries))).collect();
    let mut stack = Stack { layers, at: 0, read: 0 };
    let mut out = Vec::new();
    let outcome = unpack_layers(&mut stack, limits, &mut out).map(|_| out);
    (outcome, (stack.at + 1).min(stack.layers.len()))
}

#[test]
fn the_last_layer_that_holds_the_module_wins_and_none_below_is_asked_for() {
    let old: &[(&str, &[u8])] = &[("plugin.wasm", b"\0asm old")];
    let new: &[(&str, &[u8])] = &[("a/plugin.wasm", WASM)];
    let other: &[(&str, &[u8])] = &[("etc/x", b"y")];
    for (layers, begun) in [
        (&[new, old][..], 1),
        (&[other, new, old], 2),
        (&[&[], other, new], 3),
        (&[&[(".wh.plugin.wasm", b"")], new, old], 2),
        (&[&[("a/.wh..wh..opq", b""), ("a/plugin.wasm", WASM)], old], 1),
    ] {
        let (outcome, read) = stacked(&Limits::default(), layers);
        assert_eq!((outcome.unwrap(), read), (WASM.to_vec(), begun));
    }
}

#[test]
fn a_module_that_a_later_layer_removes_is_not_there() {
    let module: &[(&str, &[u8])] = &[("a/plugin.wasm", WASM)];
    for above in ["a/.wh.plugin.wasm", ".wh.a", "a/.wh..wh..opq", "a"] {
        let (outcome, _) = stacked(&Limits::default(), &[&[(above, b"")], module]);
        let error = outcome.unwrap_err();
        assert_eq!(error.to_string(), "a later layer of the image removes or replaces its a/plugin.wasm");
    }
    let (outcome, read) = stacked(&Limits::default(), &[&[(".wh..wh..opq", b"")], module]);
    assert_eq!((outcome.unwrap_err().label(), read), ("no_module", 1), "nothing below counts");
    let (outcome, _) = stacked(&Limits::default(), &[&[("x", b"")], &[("y", b"")]]);
    assert_eq!(outcome.unwrap_err().to_string(), "there is no plugin.wasm in the archive, only x, y");
}

#[test]
fn the_limits_are_those_of_all_layers_together() {
    let full = vec![1; 40_000];
    let layer: &[(&str, &[u8])] = &[("full", &full)];
    let module: &[(&str, &[u8])] = &[("plugin.wasm", WASM)];
    assert_eq!(stacked(&small(1000), &[layer, module]).0.unwrap(), WASM);
    assert_eq!(stacked(&small(1000), &[layer, layer, module]).0.unwrap_err().label(), "expands_too_far");
    let six: Vec<_> = ["1", "2", "3", "4", "5", "6"].map(|name| (name, &b""[..])).into();
    assert_eq!(stacked(&small(1000), &[&six, &six, module]).0.unwrap_err().label(), "too_many_entries");
}

#[test]
fn what_is_no_archive_is_described() {
    let error = get(b"<!doctype html><title>Sign in</title>", Sniff).unwrap_err();
    assert!(error.to_string().ends_with("it looks like an HTML page"), "{error}");
    assert_eq!(get(b"", Layer).unwrap_err().label(), "not_a_module");
    assert_eq!(get(&[0; 1024], Sniff).unwrap_err().label(), "not_a_module");
    assert_eq!(get(&[0; 1024], Layer).unwrap_err().label(), "no_module", "an archive of nothing");
}

#[test]
fn a_failing_body_keeps_its_own_error_through_every_layer() {
    #[derive(Debug, thiserror::Error)]
    #[error("digest mismatch")]
    struct Mismatch;

    let archive = tar(&[("plugin.wasm", WASM)]);
    for whole in [WASM, &gzip(WASM), &archive, &gzip(&archive)] {
        for cut in [0, 5, whole.len() / 2, whole.len() - 1, whole.len()] {
            let failing = whole[..cut].chain(Failing(|| io::Error::other(Mismatch)));
            let error = unpack(failing, Sniff, &Limits::default(), &mut io::sink()).unwrap_err();
            let UnpackError::Read(inner) = error else { panic!("{cut}: {error}") };
            assert!(inner.get_ref().unwrap().is::<Mismatch>());
        }
    }
}

struct Failing(fn() -> io::Error);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err((self.0)())
    }
}

#[test]
fn a_failing_sink_is_told_from_a_failing_body() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let error = unpack(&gzip(WASM)[..], Sniff, &Limits::default(), &mut Full).unwrap_err();
    assert!(matches!(error, UnpackError::Write(e) if e.kind() == io::ErrorKind::StorageFull));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
        for packaging in [Raw, Layer, Sniff] {
            let _ = unpack_with(&body, packaging, &small(1000));
        }
    }

    #[test]
    fn a_mutated_archive_never_panics_and_never_yields_more_than_the_limit(
        place in 0usize..3000, value in any::<u8>(), compressed in any::<bool>()
    ) {
        let mut body = tar(&[("first", b"x"), ("a/plugin.wasm", WASM)]);
        if compressed {
            body = gzip(&body);
        }
        let place = place % body.len();
        body[place] = value;
        if let Ok(module) = unpack_with(&body, Layer, &small(1000)) {
            prop_assert!(module.len() <= 1000);
        }
    }
}
