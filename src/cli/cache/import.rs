//! `wasmferry cache import`. The file is hostile until its digests have been compared: nothing is written
//! anywhere by a name out of it, and all that is kept of it in memory is bounded.
//!
//! It is read twice: first for the documents, which are small, and then for the modules that they name, which
//! go into the store by the way of all others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};

use serde_json::json;
use tokio::runtime::Runtime;

use super::archive::{
    BLOBS, Descriptor, INDEX, Index, LAYOUT, LAYOUT_VERSION, Layout, PRIVATE, REF_NAME, RESOURCE_VERSION,
    SOURCE, URL,
};
use super::args::ImportArgs;
use super::{CacheError, Printer};
use crate::app::resolve_config;
use crate::cli::CliError;
use crate::clock::Clock;
use crate::config::{Config, Environment};
use crate::digest::{BlobDigest, Hasher, PayloadDigest, SourceDigest};
use crate::fetch::{FileAccess, NodeCredential, layer_of};
use crate::metrics::Metrics;
use crate::module::{Caller, ModuleRequest, ModuleUrl, Validators};
use crate::resolve::{ResolveConfig, digest_key};
use crate::store::{Audience, Finished, Record, Store, Stored};
use crate::wasm::tar::{Archive, Kind};
use crate::wasm::{self, Packaging};

/// Entries of the tar.
const MAX_ENTRIES: usize = 100_000;
/// Manifests that the index names.
const MAX_MANIFESTS: usize = 10_000;
/// Bytes of the index.
const MAX_INDEX: u64 = 16 << 20;
/// Bytes of a manifest, and of all files together that may be one.
const MAX_DOCUMENT: u64 = 64 << 10;
const MAX_DOCUMENTS: u64 = 64 << 20;

/// What a manifest in the index stands for.
struct Name {
    url: Option<ModuleUrl>,
    source: SourceDigest,
    resource_version: Option<String>,
    audience: Audience,
}

/// A layer, and what it is to become.
struct Wanted {
    size: u64,
    packaging: Packaging,
    names: Vec<Name>,
}

/// The documents of an archive.
#[derive(Default)]
struct Documents {
    layout: Option<Vec<u8>>,
    index: Option<Vec<u8>>,
    /// Blobs that are small enough to be a manifest.
    small: BTreeMap<BlobDigest, Vec<u8>>,
    blobs: BTreeSet<BlobDigest>,
}

struct Import<'a> {
    store: &'a Store,
    args: &'a ImportArgs,
    resolve: ResolveConfig,
    /// Credentials may come from programs.
    runtime: Runtime,
    printer: Printer,
    failed: usize,
}

pub(super) fn import(
    store: &Store,
    args: &ImportArgs,
    config: &Config,
    environment: &Environment,
    printer: Printer,
) -> Result<(), CliError> {
    let mut config = config.clone();
    config.credentials.extend(environment.docker_config.clone().map(NodeCredential::of_user));
    let (metrics, _) = Metrics::new();
    let (files, within) = (FileAccess::Below(Vec::new()), config.fetch.timeout);
    let resolve = resolve_config(&config, files, within, &Clock::System, &metrics);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let mut import = Import { store, args, resolve, runtime, printer, failed: 0 };
    let documents = import.documents()?;
    let mut wanted = import.wanted(&documents)?;
    import.modules(&mut wanted)?;
    for layer in wanted.into_keys() {
        import.refuse(format!("the layer {layer} is missing"))?;
    }
    match import.failed {
        0 => Ok(()),
        failed => Err(CliError::Failed { failed }),
    }
}

impl Import<'_> {
    fn broken(&self, why: impl Into<String>) -> CliError {
        CacheError::Archive { file: self.args.archive.clone(), why: why.into() }.into()
    }

    fn io(&self, error: io::Error) -> CliError {
        CacheError::File { file: self.args.archive.clone(), source: error }.into()
    }

    /// One module that cannot be had; the others are.
    fn refuse(&mut self, why: String) -> Result<(), CliError> {
        self.failed += 1;
        self.printer.print(|| format!("refused: {why}"), || json!({"error": why}))
    }

    /// Calls for each file whose name means something; says nothing of the others.
    fn each(
        &self,
        mut of: impl FnMut(&str, u64, &mut Archive<BufReader<File>>) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let file = File::open(&self.args.archive).map_err(|error| self.io(error))?;
        let mut archive = Archive::new(BufReader::with_capacity(256 * 1024, file));
        for _ in 0..MAX_ENTRIES {
            let Some(entry) = archive.next_entry().map_err(|error| self.io(error))? else { return Ok(()) };
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name);
            let is_blob = name.strip_prefix(BLOBS).is_some_and(|hex| !hex.is_empty());
            if name != LAYOUT && name != INDEX && !is_blob {
                continue;
            }
            if entry.kind != Kind::File {
                return Err(self.broken(format!("{name:?} is no regular file")));
            }
            of(name, entry.size, &mut archive)?;
        }
        Err(self.broken(format!("it has more than {MAX_ENTRIES} entries")))
    }

    fn documents(&self) -> Result<Documents, CliError> {
        let mut found = Documents::default();
        let mut kept = 0;
        self.each(|name, size, content| {
            let twice = || self.broken(format!("{name:?} is in it twice"));
            let read = |limit: u64, content: &mut Archive<BufReader<File>>| {
                if size > limit {
                    return Err(self.broken(format!("{name:?} has more than {limit} bytes")));
                }
                let mut bytes = Vec::new();
                content.read_to_end(&mut bytes).map_err(|error| self.io(error))?;
                Ok(bytes)
            };
            match name {
                LAYOUT if found.layout.is_some() => return Err(twice()),
                LAYOUT => found.layout = Some(read(MAX_DOCUMENT, content)?),
                INDEX if found.index.is_some() => return Err(twice()),
                INDEX => found.index = Some(read(MAX_INDEX, content)?),
                _ => {
                    let digest = BlobDigest::from_hex(name.strip_prefix(BLOBS).unwrap_or_default());
                    let Ok(digest) = digest else { return Ok(()) };
                    if !found.blobs.insert(digest) {
                        return Err(twice());
                    }
                    if size <= MAX_DOCUMENT {
                        kept += size;
                        if kept > MAX_DOCUMENTS {
                            return Err(self.broken("it has too many small files"));
                        }
                        found.small.insert(digest, read(MAX_DOCUMENT, content)?);
                    }
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The layers that the index leads to.
    fn wanted(&mut self, documents: &Documents) -> Result<BTreeMap<BlobDigest, Wanted>, CliError> {
        let layout =
            documents.layout.as_deref().and_then(|bytes| serde_json::from_slice::<Layout>(bytes).ok());
        if layout.is_none_or(|layout| layout.image_layout_version != LAYOUT_VERSION) {
            return Err(self.broken(format!("it is no OCI image layout of version {LAYOUT_VERSION}")));
        }
        let index = documents.index.as_deref().ok_or_else(|| self.broken("it has no index.json"))?;
        let index: Index =
            serde_json::from_slice(index).map_err(|error| self.broken(format!("index.json: {error}")))?;
        if index.manifests.len() > MAX_MANIFESTS {
            return Err(self.broken(format!("it names more than {MAX_MANIFESTS} manifests")));
        }
        let mut wanted: BTreeMap<BlobDigest, Wanted> = BTreeMap::new();
        for manifest in index.manifests {
            match self.layer(documents, &manifest) {
                Err(why) => self.refuse(why)?,
                Ok(None) => {}
                Ok(Some((layer, size, packaging, name))) => {
                    let of = wanted.entry(layer).or_insert(Wanted { size, packaging, names: Vec::new() });
                    if (of.size, of.packaging) != (size, packaging) {
                        self.refuse(format!("the layer {layer} is described in two ways"))?;
                    } else {
                        of.names.push(name);
                    }
                }
            }
        }
        Ok(wanted)
    }

    fn layer(
        &self,
        documents: &Documents,
        manifest: &Descriptor,
    ) -> Result<Option<(BlobDigest, u64, Packaging, Name)>, String> {
        let digest: BlobDigest =
            manifest.digest.parse().map_err(|error| format!("a manifest in index.json: {error}"))?;
        let bytes = documents.small.get(&digest).ok_or_else(|| match documents.blobs.contains(&digest) {
            true => format!("the manifest {digest} has more than {MAX_DOCUMENT} bytes"),
            false => format!("the manifest {digest} is missing"),
        })?;
        if BlobDigest::of(bytes) != digest || bytes.len() as u64 != manifest.size {
            return Err(format!("the manifest {digest} has other bytes than its digest says"));
        }
        let (layer, size, packaging) =
            layer_of(bytes).map_err(|why| format!("the manifest {digest}: {why}"))?;
        let annotation = |key: &str| manifest.annotations.get(key).map(String::as_str);
        let url = match (annotation(URL), annotation(REF_NAME)) {
            (Some(url), _) => {
                Some(url.parse::<ModuleUrl>().map_err(|error| format!("the URL of {digest}: {error}"))?)
            }
            // Of another tool: a tag alone names no registry.
            (None, Some(name)) if name.contains('/') => name.parse().ok(),
            (None, _) => None,
        };
        let audience = match annotation(PRIVATE) {
            None => Audience::Public,
            Some(_) if !self.args.private => return Ok(None),
            Some(_) => self.audience(url.as_ref())?,
        };
        let source = annotation(SOURCE).and_then(|source| source.parse().ok());
        let name = Name {
            url,
            source: source.unwrap_or(SourceDigest::from_bytes(*digest.as_bytes())),
            resource_version: annotation(RESOURCE_VERSION).map(str::to_owned),
            audience,
        };
        Ok(Some((layer, size, packaging, name)))
    }

    /// Who may have a private module from there: those with the credential that this user has.
    fn audience(&self, url: Option<&ModuleUrl>) -> Result<Audience, String> {
        let url = url.ok_or("a private module has no URL")?;
        let request = ModuleRequest { caller: Caller::Operator, ..ModuleRequest::new(url.clone()) };
        let credential = self.runtime.block_on(self.resolve.fetcher.credential(&request));
        let credential = credential.map_err(|error| format!("{url}: {error}"))?;
        match credential.identity() {
            Some(identity) => Ok(Audience::Private(self.store.fingerprint(identity))),
            None => Err(format!("{url} is private, and there is no credential of yours for it")),
        }
    }

    fn modules(&mut self, wanted: &mut BTreeMap<BlobDigest, Wanted>) -> Result<(), CliError> {
        // A second reading of the file finds what the first one found, or less is imported.
        let mut outcomes = Vec::new();
        self.each(|name, size, content| {
            let digest = name.strip_prefix(BLOBS).and_then(|hex| BlobDigest::from_hex(hex).ok());
            let Some((digest, of)) = digest.and_then(|digest| Some((digest, wanted.remove(&digest)?))) else {
                return Ok(());
            };
            let outcome = match size == of.size {
                true => self.module(content, digest, &of),
                false => Err(format!("the layer {digest} has another size than its manifest says")),
            };
            match &outcome {
                Ok(stored) => self.told(stored, &of)?,
                Err(why) => outcomes.push(why.clone()),
            }
            Ok(())
        })?;
        for why in outcomes {
            self.refuse(why)?;
        }
        Ok(())
    }

    fn told(&self, stored: &Stored, of: &Wanted) -> Result<(), CliError> {
        let urls: Vec<_> = of.names.iter().filter_map(|name| Some(name.url.as_ref()?.to_string())).collect();
        self.printer.print(
            || format!("{}: imported, {} bytes, {}", stored.payload, stored.size, urls.join(", ")),
            || json!({"payload_digest": stored.payload.to_string(), "size": stored.size, "urls": urls}),
        )
    }

    /// Takes a module out of a layer and puts it into the store, for all who may have it.
    fn module(&self, content: impl Read, layer: BlobDigest, of: &Wanted) -> Result<Stored, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the layer {layer}: {error}");
        self.store.make_room(of.size);
        let mut ingest = self.store.ingest().map_err(|error| failed(&error))?;
        let mut content = Hashed { content, hash: Hasher::default() };
        wasm::unpack(&mut content, of.packaging, &self.resolve.limits, &mut ingest)
            .map_err(|error| failed(&crate::causes::with_causes(&error)))?;
        if BlobDigest::from_bytes(content.hash.finish()) != layer {
            return Err(failed(&"it has other bytes than its digest says"));
        }
        let finished = ingest.finish().map_err(|error| failed(&error))?;
        let reader = finished.reader().map_err(|error| failed(&error))?;
        wasm::check(reader, &self.resolve.budgets)
            .map_err(|error| failed(&crate::causes::with_causes(&error)))?;
        let audiences: BTreeSet<Audience> = of.names.iter().map(|name| name.audience).collect();
        let mut stored: Option<Stored> = None;
        let mut finished = Some(finished);
        for audience in audiences {
            let this = match (finished.take(), &stored) {
                (Some(finished), _) => finished,
                (None, Some(stored)) => self.again(&stored.payload).map_err(|error| failed(&error))?,
                (None, None) => break,
            };
            stored = Some(this.commit(&audience).map_err(|error| failed(&error))?);
        }
        let stored = stored.ok_or_else(|| failed(&"nobody may have it"))?;
        for name in &of.names {
            self.record(name, &stored).map_err(|error| failed(&error))?;
        }
        Ok(stored)
    }

    /// What is in the store already, for another audience.
    fn again(&self, payload: &PayloadDigest) -> io::Result<Finished> {
        let (_, mut reader) =
            self.store.read_payload(payload)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut ingest = self.store.ingest()?;
        io::copy(&mut reader, &mut ingest)?;
        ingest.flush()?;
        Ok(ingest.finish()?)
    }

    fn record(&self, name: &Name, stored: &Stored) -> io::Result<()> {
        let Some(url) = &name.url else { return Ok(()) };
        let record = Record {
            payload: stored.payload,
            source: name.source,
            size: stored.size,
            resource_version: name.resource_version.clone(),
            fetched_at: Clock::System.wall(),
            url: url.to_string(),
            validators: Validators::default(),
        };
        for key in [Some(url.canonical()), digest_key(url, &name.source)].into_iter().flatten() {
            self.store.record(&name.audience, &key, &record)?;
        }
        Ok(())
    }
}

/// Hashes what is read.
struct Hashed<R> {
    content: R,
    hash: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
