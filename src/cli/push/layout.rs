//! The three ways of packing a module for a registry, both deterministic: the same module always has
//! the same digests.
//!
//! - `artifact`: what the CNCF's Wasm working group describes; one raw layer.
//! - `image`: what `docker build` makes of `FROM scratch` and `COPY plugin.wasm /`; older agents
//!   know only this one.
//! - `docker`: the same in docker's own media types, for registries and tools that know no others.
//!
//! Specifications: OCI image-spec 1.1, docker's image manifest version 2 schema 2, and TAG Runtime's "Wasm
//! OCI Artifact layout".

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use crate::digest::{BlobDigest, SourceDigest};

/// The media type of a manifest that is not docker's.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const ARTIFACT_CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const ARTIFACT_LAYER_TYPE: &str = "application/wasm";
const IMAGE_CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const IMAGE_LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Both configs may hold a time; a real one would change the digest with each push.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// The file that an image's layer holds.
const FILE_NAME: &str = "plugin.wasm";

/// How a module is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Layout {
    /// A CNCF Wasm artifact: the module as it is, in one layer
    #[default]
    Artifact,
    /// An OCI image: one tar+gzip layer that holds plugin.wasm
    Image,
    /// A docker image, schema 2: one tar+gzip layer that holds plugin.wasm
    Docker,
}

/// What is uploaded.
#[derive(Debug)]
pub(super) struct Package {
    pub layer: Blob,
    pub config: Blob,
    /// JSON.
    pub manifest: Bytes,
    pub manifest_type: &'static str,
}

#[derive(Debug)]
pub struct Blob {
    pub media_type: &'static str,
    pub bytes: Bytes,
    pub digest: BlobDigest,
}

impl Package {
    /// The digest of the manifest.
    pub fn digest(&self) -> SourceDigest {
        SourceDigest::of(&self.manifest)
    }
}

impl Blob {
    fn new(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { media_type, digest: BlobDigest::of(&bytes), bytes }
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { media_type: self.media_type, digest: self.digest.to_string(), size: self.bytes.len() }
    }
}

// Types of their own, and not `serde_json::Value`: the order of their fields is part of the digest.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: [Descriptor; 1],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, &'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactConfig {
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    layer_digests: [String; 1],
}

#[derive(Serialize)]
struct ImageConfig {
    created: &'static str,
    architecture: &'static str,
    os: &'static str,
    config: BTreeMap<(), ()>,
    rootfs: RootFs,
}

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: [String; 1],
}

impl Layout {
    /// Packs a module.
    ///
    /// # Errors
    /// The module has no place in a tar (8 GiB).
    pub(super) fn pack(self, module: Bytes) -> io::Result<Package> {
        match self {
            Layout::Artifact => artifact(module),
            Layout::Image => oci_image(&module),
            Layout::Docker => docker_image(&module),
        }
    }
}

fn artifact(module: Bytes) -> io::Result<Package> {
    let layer = Blob::new(ARTIFACT_LAYER_TYPE, module);
    let (config, manifest) = artifact_of(layer.descriptor())?;
    Ok(Package { layer, config, manifest, manifest_type: MANIFEST_TYPE })
}

/// Config and manifest of a module that is not at hand, as an artifact: its digest, and its size in bytes.
pub fn describe(digest: BlobDigest, size: u64) -> io::Result<(Blob, Bytes)> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    artifact_of(Descriptor { media_type: ARTIFACT_LAYER_TYPE, digest: digest.to_string(), size })
}

fn artifact_of(layer: Descriptor) -> io::Result<(Blob, Bytes)> {
    let config = ArtifactConfig {
        created: CREATED,
        architecture: "wasm",
        os: "wasip1",
        layer_digests: [layer.digest.clone()],
    };
    let config = Blob::new(ARTIFACT_CONFIG_TYPE, serde_json::to_vec(&config)?);
    let manifest = manifest(MANIFEST_TYPE, &config, layer, BTreeMap::new())?;
    Ok((config, manifest))
}

fn oci_image(module: &[u8]) -> io::Result<Package> {
    let (layer, config) = image(module, IMAGE_LAYER_TYPE, IMAGE_CONFIG_TYPE)?;
    let annotations = BTreeMap::from([("module.wasm.image/variant", "compat")]);
    let manifest = manifest(MANIFEST_TYPE, &config, layer.descriptor(), annotations)?;
    Ok(Package { layer, config, manifest, manifest_type: MANIFEST_TYPE })
}

/// Docker's manifests know no annotations.
fn docker_image(module: &[u8]) -> io::Result<Package> {
    let (layer, config) = image(module, DOCKER_LAYER_TYPE, DOCKER_CONFIG_TYPE)?;
    let manifest = manifest(DOCKER_MANIFEST_TYPE, &config, layer.descriptor(), BTreeMap::new())?;
    Ok(Package { layer, config, manifest, manifest_type: DOCKER_MANIFEST_TYPE })
}

/// Layer and config of an image that holds the module.
fn image(module: &[u8], layer_type: &'static str, config_type: &'static str) -> io::Result<(Blob, Blob)> {
    let tar = tar(module)?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&tar)?;
    let layer = Blob::new(layer_type, gzip.finish()?);
    let config = ImageConfig {
        created: CREATED,
        // What image tools write, and what those that look for a platform find.
        architecture: "amd64",
        os: "linux",
        config: BTreeMap::new(),
        rootfs: RootFs { r#type: "layers", diff_ids: [BlobDigest::of(&tar).to_string()] },
    };
    Ok((layer, Blob::new(config_type, serde_json::to_vec(&config)?)))
}

fn manifest(
    media_type: &'static str,
    config: &Blob,
    layer: Descriptor,
    annotations: BTreeMap<&'static str, &'static str>,
) -> io::Result<Bytes> {
    let manifest =
        Manifest { schema_version: 2, media_type, config: config.descriptor(), layers: [layer], annotations };
    Ok(serde_json::to_vec(&manifest)?.into())
}

/// The blocks of a tar.
pub const BLOCK: usize = 512;

/// A tar (POSIX ustar) that holds one file, without owner or time.
fn tar(content: &[u8]) -> io::Result<Vec<u8>> {
    let header = tar_header(FILE_NAME, content.len() as u64)?;
    let mut tar = Vec::with_capacity(content.len() + 4 * BLOCK);
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    // Up to a whole block, then two empty ones: the end.
    tar.resize(tar.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    Ok(tar)
}

/// What stands before a file's bytes in such a tar. The name has at most 100 bytes.
pub fn tar_header(name: &str, size: u64) -> io::Result<[u8; BLOCK]> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the module has no place in a tar");
    let size = format!("{size:011o}\0");
    let mut header = [0; BLOCK];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes().get(..name.len().min(100)).unwrap_or_default());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, <&[u8; 12]>::try_from(size.as_bytes()).map_err(|_| too_large())?);
    put(136, b"00000000000\0");
    // The checksum is made with spaces in its place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let checksum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
    Ok(header)
}

/// What makes one doubt that an Envoy will run this.
pub(super) fn doubt(module: &[u8]) -> Option<&'static str> {
    match module.get(..8) {
        Some(b"\0asm\x01\0\0\0") => None,
        Some(b"\0asm\x0d\0\x01\0") => Some("this is a component; Envoy runs core modules only"),
        _ => Some("this is not a WebAssembly module; no Envoy will run it"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::{Value, json};

    use super::*;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    fn pack(layout: Layout, module: &'static [u8]) -> Package {
        layout.pack(Bytes::from_static(module)).unwrap()
    }

    fn parse(json: &[u8]) -> Value {
        serde_json::from_slice(json).unwrap()
    }

    #[test]
    fn a_manifest_describes_its_blobs() {
        for layout in [Layout::Artifact, Layout::Image, Layout::Docker] {
            let package = pack(layout, MODULE);
            let manifest = parse(&package.manifest);
            assert_eq!(manifest["schemaVersion"], 2);
            assert_eq!(manifest["mediaType"], package.manifest_type);
            for (descriptor, blob) in
                [(&manifest["config"], &package.config), (&manifest["layers"][0], &package.layer)]
            {
                assert_eq!(descriptor["mediaType"], blob.media_type);
                assert_eq!(descriptor["size"], blob.bytes.len());
                assert_eq!(descriptor["digest"], BlobDigest::of(&blob.bytes).to_string());
            }
            assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        }
    }

    #[test]
    fn an_artifact_holds_the_module_as_it_is() {
        let package = pack(Layout::Artifact, MODULE);
        assert_eq!(package.layer.bytes, MODULE);
        assert_eq!(package.layer.media_type, "application/wasm");
        assert_eq!(package.config.media_type, "application/vnd.wasm.config.v0+json");
        let config = parse(&package.config.bytes);
        assert_eq!((&config["architecture"], &config["os"]), (&"wasm".into(), &"wasip1".into()));
        assert_eq!(config["layerDigests"], json!([BlobDigest::of(MODULE).to_string()]));
    }

    #[test]
    fn an_image_holds_plugin_wasm_in_a_tar_that_others_read() {
        let long: &'static [u8] = vec![7; 100_000].leak();
        for module in [b"".as_slice(), MODULE, &[1; 512], long] {
            let package = pack(Layout::Image, module);
            let mut unzipped = Vec::new();
            GzDecoder::new(&*package.layer.bytes).read_to_end(&mut unzipped).unwrap();
            let config = parse(&package.config.bytes);
            assert_eq!(config["rootfs"]["diff_ids"], json!([BlobDigest::of(&unzipped).to_string()]));
            assert_eq!(unzipped.len() % BLOCK, 0);

            let mut archive = tar::Archive::new(&*unzipped);
            let mut entries = archive.entries().unwrap();
            let mut entry = entries.next().unwrap().unwrap();
            assert_eq!(entry.path().unwrap().to_str(), Some("plugin.wasm"));
            assert!(entry.header().entry_type().is_file());
            assert_eq!(entry.header().mode().unwrap(), 0o644);
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert_eq!(content, module);
            assert!(entries.next().is_none());
        }
    }

    #[test]
    fn a_docker_image_is_the_same_in_docker_s_own_words() {
        let (docker, oci) = (pack(Layout::Docker, MODULE), pack(Layout::Image, MODULE));
        assert_eq!((&docker.layer.bytes, &docker.config.bytes), (&oci.layer.bytes, &oci.config.bytes));
        let manifest = parse(&docker.manifest);
        assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
        assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert!(manifest.get("annotations").is_none());
    }

    #[test]
    fn the_same_module_always_has_the_same_digest() {
        // A change of this is a change of what people have pinned.
        let digest = pack(Layout::Artifact, MODULE).digest().hex();
        assert_eq!(digest, "aeb0651bfcce2e2a7ff35ed1b2d82fbdc7288e6822c6daf81b812860d463c242");
        for layout in [Layout::Artifact, Layout::Image, Layout::Docker] {
            assert_eq!(pack(layout, MODULE).digest(), pack(layout, MODULE).digest());
            assert_ne!(pack(layout, MODULE).digest(), pack(layout, b"other").digest());
        }
    }

    #[test]
    fn what_is_no_module_is_doubted() {
        assert_eq!(doubt(MODULE), None);
        assert!(doubt(b"\0asm\x0d\0\x01\0").unwrap().contains("component"));
        assert!(doubt(b"\0asm").is_some() && doubt(b"<html>").is_some() && doubt(b"").is_some());
    }
}
