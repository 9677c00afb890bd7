//! `wasmferry cache export`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};

use serde_json::json;

use super::archive::{
    BLOBS, Descriptor, INDEX, INDEX_TYPE, Index, LAYOUT, LAYOUT_VERSION, Layout, PRIVATE, REF_NAME,
    RESOURCE_VERSION, SOURCE, Tar, URL, ref_name,
};
use super::args::ExportArgs;
use super::{CacheError, Printer, find};
use crate::cli::CliError;
use crate::cli::push::layout::{MANIFEST_TYPE, describe};
use crate::digest::{BlobDigest, Hasher, PayloadDigest};
use crate::module::ModuleUrl;
use crate::resolve::digest_key;
use crate::store::{Remembering, Store};

/// What an archive says of one URL.
struct Named {
    payload: PayloadDigest,
    annotations: BTreeMap<String, String>,
}

/// The URL that a record is of, where it can be told: the index keeps a keyed hash of it, and what is
/// shown leaves queries out.
fn url_of(store: &Store, record: &Remembering) -> Option<String> {
    let shown = &record.record().url;
    let url: ModuleUrl = shown.parse().ok().filter(|_| !shown.contains('?'))?;
    [Some(url.canonical()), digest_key(&url, &record.record().source)]
        .into_iter()
        .flatten()
        .find(|source| record.is_of(store, source))
}

fn named(store: &Store, record: &Remembering) -> Option<(String, Named)> {
    let url = url_of(store, record)?;
    let remembered = record.record();
    let mut annotations =
        BTreeMap::from([(URL.to_owned(), url.clone()), (SOURCE.to_owned(), remembered.source.to_string())]);
    if let Some(name) = ref_name(&url) {
        annotations.insert(REF_NAME.to_owned(), name);
    }
    if let Some(version) = &remembered.resource_version {
        annotations.insert(RESOURCE_VERSION.to_owned(), version.clone());
    }
    if record.is_private() {
        annotations.insert(PRIVATE.to_owned(), "true".to_owned());
    }
    Some((url, Named { payload: remembered.payload, annotations }))
}

pub(super) fn export(store: &Store, args: &ExportArgs, printer: Printer) -> Result<(), CliError> {
    let records = store.remembered()?;
    let public: BTreeSet<_> =
        records.iter().filter(|record| !record.is_private()).map(|record| record.record().payload).collect();
    let mut wanted = BTreeSet::new();
    for module in &args.modules {
        let payload = find(store, module)?;
        if !public.contains(&payload) && !args.private {
            return Err(CacheError::Private { module: module.clone() }.into());
        }
        wanted.insert(payload);
    }
    if args.modules.is_empty() {
        wanted.extend(records.iter().map(|record| record.record().payload));
        wanted.retain(|payload| args.private || public.contains(payload));
    }
    // Of what is public and private under one URL, the public one.
    let mut names = BTreeMap::new();
    for record in records.iter().filter(|record| args.private || !record.is_private()) {
        if wanted.contains(&record.record().payload)
            && let Some((url, named)) = named(store, record)
            && (!record.is_private() || !names.contains_key(&url))
        {
            names.insert(url, named);
        }
    }
    let mut temporary = OsString::from(&args.archive);
    temporary.push(format!(".{}", std::process::id()));
    let failed = |source| CacheError::File { file: args.archive.clone(), source };
    let written = write(store, &wanted, &names, &temporary, printer);
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    fs::rename(&temporary, &args.archive).map_err(failed)?;
    Ok(())
}

fn write(
    store: &Store,
    wanted: &BTreeSet<PayloadDigest>,
    names: &BTreeMap<String, Named>,
    path: &OsString,
    printer: Printer,
) -> Result<(), CliError> {
    let failed = |source| CliError::from(CacheError::File { file: path.into(), source });
    let mut manifests = Vec::new();
    let mut documents = BTreeMap::new();
    let mut layers = Vec::new();
    for payload in wanted {
        let missing = || CacheError::Missing { module: payload.to_string() };
        let (size, _) = store.read_payload(payload)?.ok_or_else(missing)?;
        let (config, manifest) =
            describe(BlobDigest::from_bytes(*payload.as_bytes()), size).map_err(failed)?;
        let digest = BlobDigest::of(&manifest);
        let describe = |annotations: BTreeMap<String, String>| Descriptor {
            media_type: MANIFEST_TYPE.to_owned(),
            digest: digest.to_string(),
            size: manifest.len() as u64,
            annotations,
        };
        let before = manifests.len();
        let of_it = names.values().filter(|named| named.payload == *payload);
        manifests.extend(of_it.map(|named| describe(named.annotations.clone())));
        if manifests.len() == before {
            manifests.push(describe(BTreeMap::new()));
        }
        documents.insert(config.digest, config.bytes);
        documents.insert(digest, manifest);
        layers.push((*payload, size));
    }
    let json = |value: serde_json::Result<Vec<u8>>| value.map_err(|error| failed(error.into()));
    let layout = json(serde_json::to_vec(&Layout { image_layout_version: LAYOUT_VERSION.to_owned() }))?;
    let index = Index { schema_version: 2, media_type: INDEX_TYPE.to_owned(), manifests };
    let index = json(serde_json::to_vec(&index))?;

    let mut tar = Tar(BufWriter::new(File::create(path).map_err(failed)?));
    tar.bytes(LAYOUT, &layout).map_err(failed)?;
    tar.bytes(INDEX, &index).map_err(failed)?;
    for (digest, bytes) in &documents {
        tar.bytes(&format!("{BLOBS}{}", digest.hex()), bytes).map_err(failed)?;
    }
    for (payload, size) in layers {
        let missing = || CacheError::Missing { module: payload.to_string() };
        let (_, reader) = store.read_payload(&payload)?.ok_or_else(missing)?;
        tar.file(&format!("{BLOBS}{}", payload.hex()), size, |to| copy(reader, to, &payload))
            .map_err(failed)?;
        let urls: Vec<_> =
            names.iter().filter(|(_, named)| named.payload == payload).map(|(url, _)| url).collect();
        printer.print(
            || match urls.is_empty() {
                true => format!("{payload}: exported, {size} bytes, under no name"),
                false => format!(
                    "{payload}: exported, {size} bytes, {}",
                    urls.iter().map(|url| url.as_str()).collect::<Vec<_>>().join(", ")
                ),
            },
            || json!({"payload_digest": payload.to_string(), "size": size, "urls": urls}),
        )?;
    }
    let file = tar.end().and_then(|to| to.into_inner().map_err(io::IntoInnerError::into_error));
    file.and_then(|file| file.sync_all()).map_err(failed)
}

/// Copies what must have this digest, and says how many bytes that were.
fn copy(mut from: impl Read, to: &mut impl Write, payload: &PayloadDigest) -> io::Result<u64> {
    let (mut hash, mut copied, mut buffer) = (Hasher::default(), 0, vec![0; 256 * 1024]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        hash.update(bytes);
        to.write_all(bytes)?;
        copied += read as u64;
    }
    match PayloadDigest::from_bytes(hash.finish()) == *payload {
        true => Ok(copied),
        false => Err(io::Error::other(format!("{payload} is damaged: run wasmferry cache verify"))),
    }
}
