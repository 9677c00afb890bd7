//! OCI and Docker manifests and indexes: read strictly, pick the platform, pick the layer. Pure.
//!
//! Image specification 1.1, Docker manifest v2 schema 2, and the Wasm layouts in use: Solo's
//! (compat images and two-layer artifacts), wasm-to-oci's, the CNCF's, and Higress's plugins.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::{BlobDigest, SourceDigest};
use crate::wasm::Packaging;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a request for a manifest accepts.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// The layer is the module.
const RAW_LAYERS: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];
/// Stands beside the module in Solo's artifacts.
const RAW_COMPANION: &str = "application/vnd.module.wasm.config.v1+json";
/// The layer is a tar that holds the module.
const TAR_LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
];
/// What stands beside the module in a Higress plugin: `spec.yaml`, `README.md`, an icon.
const DOCUMENTS: [&str; 4] = [
    "application/vnd.module.wasm.spec.v1+",
    "application/vnd.module.wasm.doc.v1",
    "application/vnd.module.wasm.icon.v1+",
    "application/vnd.module.wasm.config.v1+",
];
/// An image with more is refused; docker itself stops at 127.
const MAX_LAYERS: usize = 128;

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It breaks the specification, or contradicts itself.
    Invalid(String),
    /// It is well-formed, but not something that a module can be taken from.
    Unsupported(String),
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Invalid(reason.into()))
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(reason.into()))
}

/// A document that was read.
#[derive(Debug)]
pub(super) enum Manifest {
    Image(Image),
    Index(Index),
}

/// The manifest of one image or artifact.
#[derive(Debug)]
pub(super) struct Image {
    layers: Vec<Descriptor>,
}

/// An OCI index or a Docker manifest list.
#[derive(Debug)]
pub(super) struct Index {
    manifests: Vec<Descriptor>,
}

/// A manifest that an index names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) digest: SourceDigest,
    /// Bytes, where it is known.
    pub(super) size: Option<u64>,
}

/// Where the module is: in the first of these that decides it, `top` or one of those below, which are
/// in the order in which they are asked. One that cannot be read counts only where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layers {
    pub(super) top: Layer,
    pub(super) below: Vec<Result<Layer, Refusal>>,
}

/// A layer that may hold the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) digest: BlobDigest,
    pub(super) size: u64,
    pub(super) packaging: Packaging,
}

/// The fields that matter. `urls` is not among them: what they name is never asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    layers: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    annotations: Option<Annotations>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Annotations {
    #[serde(rename = "vnd.docker.reference.type")]
    reference_type: Option<IgnoredAny>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    ref_name: Option<String>,
}

/// Reads a document. `content_type`: what the server called it, if it did.
pub(super) fn read(body: &[u8], content_type: Option<&str>) -> Result<Manifest, Refusal> {
    let document: Document = match serde_json::from_slice(body) {
        Ok(document) => document,
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            return invalid(format!("it is not a manifest in JSON (line {line}, column {column})"));
        }
    };
    let media_type = media_type(content_type, document.media_type.as_deref())?;
    if document.schema_version == Some(1)
        || document.fs_layers.is_some()
        || media_type
            .as_deref()
            .is_some_and(|name| name.starts_with("application/vnd.docker.distribution.manifest.v1+"))
    {
        return unsupported("it is a Docker manifest of schema 1, which is obsolete: push the image again");
    }
    if document.schema_version != Some(2) {
        return invalid("its schemaVersion is not 2");
    }
    match (media_type.as_deref(), document.layers, document.manifests) {
        (_, Some(_), Some(_)) => invalid("it has both layers and manifests"),
        (None | Some(OCI_MANIFEST | DOCKER_MANIFEST), Some(layers), None) => {
            Ok(Manifest::Image(Image { layers }))
        }
        (None | Some(OCI_INDEX | DOCKER_LIST), None, Some(manifests)) => {
            Ok(Manifest::Index(Index { manifests }))
        }
        (None | Some(OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST), ..) => {
            invalid("it does not have what its media type calls for")
        }
        (Some(other), ..) => unsupported(format!("its media type is {}", quote(other))),
    }
}

/// One media type out of the header and the document, which may each be silent but not disagree.
fn media_type(header: Option<&str>, body: Option<&str>) -> Result<Option<String>, Refusal> {
    const GENERIC: [&str; 4] = ["", "application/json", "application/octet-stream", "text/plain"];
    let header =
        header.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_ascii_lowercase();
    let body = body.filter(|name| !name.is_empty()).map(str::to_ascii_lowercase);
    match body {
        Some(body) if GENERIC.contains(&header.as_str()) || header == body => Ok(Some(body)),
        Some(body) => {
            invalid(format!("it calls itself {}, but was sent as {}", quote(&body), quote(&header)))
        }
        None if GENERIC.contains(&header.as_str()) => Ok(None),
        None => Ok(Some(header)),
    }
}

impl Index {
    /// The manifest to use: that for Wasm, else that for Linux on this architecture, else the only one
    /// there is. Attestations do not count.
    pub(super) fn choose(&self, architecture: &str) -> Result<Child, Refusal> {
        let mut seen = HashSet::new();
        let images = self.manifests.iter().filter(|manifest| manifest.is_image());
        let candidates: Vec<_> = images.filter(|manifest| seen.insert(manifest.digest.as_str())).collect();
        let pick = |wanted: &dyn Fn(&Platform) -> bool| -> Vec<&Descriptor> {
            let fits = |manifest: &&Descriptor| manifest.platform.as_ref().is_some_and(wanted);
            candidates.iter().copied().filter(fits).collect()
        };
        // `wasip2` marks a component, which no Envoy runs.
        let wasm = pick(&|platform| platform.architecture.starts_with("wasm") && platform.os != "wasip2");
        let linux = pick(&|platform| platform.os == "linux" && platform.architecture == architecture);
        let preferred = [wasm, linux].into_iter().find(|found| !found.is_empty()).unwrap_or(candidates);
        match preferred.as_slice() {
            [] => unsupported(format!("no image is in its index, only {}", self.platforms())),
            [one] => match one.digest.parse() {
                Ok(digest) => Ok(Child { digest, size: Some(one.size) }),
                Err(_) => invalid("its index names a manifest by something that is no SHA-256 digest"),
            },
            _ => unsupported(format!(
                "more than one image in its index may be meant (wanted: one for wasm, or else for \
                 linux/{architecture}): {}",
                self.platforms()
            )),
        }
    }

    /// What an image layout's `index.json` has under a tag.
    pub(super) fn tagged(self, tag: &str) -> Result<Self, Refusal> {
        let name = |manifest: &Descriptor| manifest.annotations.as_ref().and_then(|a| a.ref_name.clone());
        let names = list(self.manifests.iter().filter_map(name).collect::<Vec<_>>().into_iter());
        let found = self.manifests.into_iter().filter(|manifest| name(manifest).as_deref() == Some(tag));
        match found.collect::<Vec<_>>() {
            none if none.is_empty() => {
                unsupported(format!("no image in it has the tag, only these are there: {names}"))
            }
            manifests => Ok(Index { manifests }),
        }
    }

    /// The only entry that there is, be it an index itself.
    pub(super) fn only(&self) -> Result<Option<Child>, Refusal> {
        match self.manifests.as_slice() {
            [one] if one.is_image() || matches!(one.media_type.as_str(), OCI_INDEX | DOCKER_LIST) => {
                match one.digest.parse() {
                    Ok(digest) => Ok(Some(Child { digest, size: Some(one.size) })),
                    Err(_) => invalid("its index names a manifest by something that is no SHA-256 digest"),
                }
            }
            _ => Ok(None),
        }
    }

    fn platforms(&self) -> String {
        list(self.manifests.iter().map(|manifest| match &manifest.platform {
            Some(Platform { os, architecture, variant: None }) => format!("{os}/{architecture}"),
            Some(Platform { os, architecture, variant: Some(variant) }) => {
                format!("{os}/{architecture}/{variant}")
            }
            None => manifest.media_type.clone(),
        }))
    }
}

impl Descriptor {
    fn is_image(&self) -> bool {
        let attestation = self.annotations.as_ref().is_some_and(|a| a.reference_type.is_some())
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown");
        !attestation && matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }

    fn is_tar(&self) -> bool {
        TAR_LAYERS.contains(&self.media_type.as_str())
    }

    fn is_document(&self) -> bool {
        DOCUMENTS.iter().any(|document| self.media_type.starts_with(document))
    }

    fn layer(&self, packaging: Packaging) -> Result<Layer, Refusal> {
        match self.digest.parse() {
            Ok(digest) => Ok(Layer { digest, size: self.size, packaging }),
            Err(_) => invalid("its layer is named by something that is no SHA-256 digest"),
        }
    }
}

impl Image {
    /// Where the module is: the only raw layer, or those of an image, the last one first.
    pub(super) fn layers(&self) -> Result<Layers, Refusal> {
        if self.layers.len() > MAX_LAYERS {
            let count = self.layers.len();
            return unsupported(format!("it has {count} layers, and more than {MAX_LAYERS} are not read"));
        }
        let is_raw = |layer: &&Descriptor| RAW_LAYERS.contains(&layer.media_type.as_str());
        let mut raw = self.layers.iter().filter(is_raw);
        let mut layers = self.layers.iter().rev().filter(|layer| !layer.is_document());
        match (raw.next(), raw.next(), self.layers.as_slice()) {
            (_, _, []) => unsupported("it has no layers"),
            (Some(module), None, [_]) => only(module),
            (Some(module), None, [a, b]) if [a, b].iter().any(|l| l.media_type == RAW_COMPANION) => {
                only(module)
            }
            (None, ..) => match layers.next() {
                Some(top) if top.is_tar() => {
                    Ok(Layers { top: top.layer(Packaging::Layer)?, below: layers.map(below).collect() })
                }
                _ => self.in_no_layout(),
            },
            _ => self.in_no_layout(),
        }
    }

    fn in_no_layout<T>(&self) -> Result<T, Refusal> {
        let seen = list(self.layers.iter().map(|layer| layer.media_type.clone()));
        unsupported(format!("none of the layouts of Wasm modules has layers such as {seen}"))
    }
}

/// A layer that is the module.
fn only(module: &Descriptor) -> Result<Layers, Refusal> {
    Ok(Layers { top: module.layer(Packaging::Raw)?, below: Vec::new() })
}

/// A layer below another one.
fn below(layer: &Descriptor) -> Result<Layer, Refusal> {
    match layer.is_tar() {
        true => layer.layer(Packaging::Layer),
        false => {
            let seen = quote(&layer.media_type);
            unsupported(format!("no later layer holds plugin.wasm, and one of type {seen} cannot be read"))
        }
    }
}

/// A few of a stranger's words, for an error.
fn list(words: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 8;
    let more = words.len().saturating_sub(SHOWN);
    let mut text = words.take(SHOWN).map(|word| quote(&word)).collect::<Vec<_>>().join(", ");
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// A stranger's word: short, and without anything that a terminal or a log would act on.
fn quote(word: &str) -> String {
    const MAX: usize = 100;
    let safe = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    word.chars().take(MAX).map(safe).collect()
}

#[cfg(test)]
mod tests;
