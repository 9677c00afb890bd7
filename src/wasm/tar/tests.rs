use super::*;

/// A header block with a right checksum, made by hand so that it may lie.
fn header(name: &[u8], flag: u8, size: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(BLOCK), 0);
    padded
}

fn size(n: usize) -> Vec<u8> {
    format!("{n:011o}\0").into_bytes()
}

fn entry(name: &[u8], flag: u8, content: &[u8]) -> Vec<u8> {
    [&header(name, flag, &size(content.len()))[..], &padded(content)].concat()
}

const END: [u8; 1024] = [0; 1024];

/// Names, kinds and contents, or what is wrong.
fn read(archive: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>, String> {
    let mut archive = Archive::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry().map_err(|e| e.to_string())? {
        let mut content = Vec::new();
        archive.read_to_end(&mut content).map_err(|e| e.to_string())?;
        entries.push((String::from_utf8_lossy(&entry.name).into_owned(), entry.kind, content));
    }
    Ok(entries)
}

fn one(archive: &[u8]) -> (String, Kind, Vec<u8>) {
    let mut entries = read(archive).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/plugin.wasm", "d".repeat(300));
    for (name, content) in [("a", &b"one"[..]), (&long, &[7; 1000]), ("empty", b"")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    }
    let archive = builder.into_inner().unwrap();
    assert_eq!(
        read(&archive).unwrap(),
        [
            ("a".to_owned(), Kind::File, b"one".to_vec()),
            (long, Kind::File, vec![7; 1000]),
            ("empty".to_owned(), Kind::File, vec![]),
        ]
    );
}

#[test]
fn a_ustar_prefix_is_part_of_the_name() {
    let mut block = header(b"plugin.wasm", b'0', &size(0));
    block[345..348].copy_from_slice(b"a/b");
    seal(&mut block);
    assert_eq!(one(&[&block[..], &END].concat()).0, "a/b/plugin.wasm");
}

#[test]
fn pax_path_and_size_replace_those_of_the_header() {
    let pax = entry(b"PaxHeaders/x", b'x', b"22 path=b/plugin.wasm\n10 size=3\n");
    let file = [&header(b"cut", b'0', &size(0))[..], &padded(b"abc")].concat();
    let (name, _, content) = one(&[pax, file, END.to_vec()].concat());
    assert_eq!((name.as_str(), &content[..]), ("b/plugin.wasm", &b"abc"[..]));
}

#[test]
fn a_pax_header_changes_one_entry_only() {
    let pax = entry(b"x", b'x', b"9 path=b\n");
    let archive = [pax, entry(b"a", b'0', b""), entry(b"c", b'0', b""), END.to_vec()].concat();
    let names: Vec<_> = read(&archive).unwrap().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["b", "c"]);
}

#[test]
fn malformed_pax_headers_are_refused() {
    for records in
        [&b"path=b\n"[..], b"99 path=b\n", b"9 path=b ", b"8 pathbb\n", b"9 size=x\n", b"0 \n", b"-1 a=b\n"]
    {
        let archive = [entry(b"x", b'x', records), entry(b"a", b'0', b""), END.to_vec()].concat();
        assert_eq!(read(&archive), Err("a PAX header is malformed".to_owned()), "{records:?}");
    }
}

#[test]
fn both_ways_to_store_a_file_with_holes_are_recognised() {
    assert_eq!(one(&[&entry(b"a", b'S', b"")[..], &END].concat()).1, Kind::Sparse);
    let pax = entry(b"x", b'x', b"22 GNU.sparse.major=1\n");
    assert_eq!(one(&[pax, entry(b"a", b'0', b""), END.to_vec()].concat()).1, Kind::Sparse);
}

#[test]
fn a_link_or_folder_has_no_content_whatever_it_declares() {
    for flag in b'1'..=b'6' {
        let archive = [&header(b"link", flag, &size(4096))[..], &entry(b"a", b'0', b"x"), &END].concat();
        let entries = read(&archive).unwrap();
        let kind = if flag == b'5' { Kind::Folder } else { Kind::Other };
        assert_eq!(entries[0], ("link".to_owned(), kind, vec![]));
        assert_eq!(entries[1].2, b"x");
    }
}

#[test]
fn sizes_are_octal_or_base_256_and_never_wrap() {
    let with = |field: &[u8]| {
        let archive = header(b"a", b'0', field);
        Archive::new(&archive[..]).next_entry().map(|e| e.unwrap().size).map_err(|e| e.to_string())
    };
    let bad = Err("the size of an entry is not a number".to_owned());
    assert_eq!(with(b"00000000017\0"), Ok(15));
    assert_eq!(with(b"         17 "), Ok(15));
    assert_eq!(with(b"777777777777"), Ok((1 << 36) - 1));
    assert_eq!(with(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Ok(258));
    assert_eq!(with(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), Ok(u64::MAX));
    assert_eq!(with(b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), bad);
    assert_eq!(with(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), bad);
    assert_eq!(with(b"00000000018\0"), bad);
    assert_eq!(with(b"-0000000017\0"), bad);
}

#[test]
fn skipping_over_an_absurd_size_ends_at_the_end_of_the_archive() {
    let archive = [&header(b"a", b'0', b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff")[..], &END].concat();
    let mut archive = Archive::new(&archive[..]);
    archive.next_entry().unwrap();
    assert!(archive.next_entry().is_err());
}

#[test]
fn an_archive_that_was_cut_off_anywhere_is_an_error() {
    let archive = [&entry(b"a", b'0', b"content")[..], &END].concat();
    for cut in (0..=BLOCK * 2).chain([archive.len() - END.len() + 511]) {
        assert!(read(&archive[..cut]).is_err(), "{cut}");
    }
    assert!(read(&archive).is_ok());
}

#[test]
fn a_header_with_a_wrong_checksum_is_refused() {
    let mut archive = [&entry(b"a", b'0', b"")[..], &END].concat();
    archive[0] = b'b';
    assert_eq!(read(&archive), Err("the checksum of a header is wrong".to_owned()));
    assert!(!is_header(&archive));
}

#[test]
fn a_long_name_without_its_entry_is_refused() {
    assert!(read(&[&entry(b"x", b'L', b"long\0")[..], &END].concat()).is_err());
}

#[test]
fn a_gnu_long_name_ends_at_its_nul() {
    let archive = [entry(b"x", b'L', b"long\0"), entry(b"a", b'0', b""), END.to_vec()].concat();
    assert_eq!(one(&archive).0, "long");
}

#[test]
fn a_huge_extension_header_is_refused_before_it_is_read() {
    let archive = header(b"x", b'x', &size(1 << 30));
    assert_eq!(read(&archive), Err("a long name or PAX header is larger than 256 KiB".to_owned()));
}

#[test]
fn what_is_passed_over_by_seeking_is_the_same_as_what_is_read_over() {
    let long = [7; 2000];
    let whole = [entry(b"a", b'0', &long), entry(b"b", b'0', b"xyz"), END.to_vec()].concat();
    let mut archive = Archive::seeking(io::Cursor::new(&whole));
    assert_eq!(archive.next_entry().unwrap().unwrap().name, b"a");
    let second = archive.next_entry().unwrap().unwrap();
    let at = usize::try_from(archive.position().unwrap()).unwrap();
    assert_eq!((second.name.as_slice(), &whole[at..at + 3]), (&b"b"[..], &b"xyz"[..]));
    assert!(archive.next_entry().unwrap().is_none());

    let mut cut = Archive::seeking(io::Cursor::new(&whole[..1000]));
    cut.next_entry().unwrap();
    assert!(cut.next_entry().unwrap_err().to_string().contains("cut off"));
}
