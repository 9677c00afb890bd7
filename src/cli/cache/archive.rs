//! The format of an export: an OCI image layout 1.0 in a tar, in which each module is a CNCF Wasm artifact.
//! What the index of a store needs beyond that stands in annotations of `index.json`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::cli::push::layout::{BLOCK, tar_header};

pub(super) const LAYOUT: &str = "oci-layout";
pub(super) const INDEX: &str = "index.json";
pub(super) const BLOBS: &str = "blobs/sha256/";
pub(super) const LAYOUT_VERSION: &str = "1.0.0";
pub(super) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// What other tools find an image by.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The URL that led to the module.
pub(super) const URL: &str = "io.wasmferry.url";
/// What its source served: a manifest's digest, or a body's.
pub(super) const SOURCE: &str = "io.wasmferry.source";
pub(super) const RESOURCE_VERSION: &str = "io.wasmferry.resource-version";
/// Set on what took a credential.
pub(super) const PRIVATE: &str = "io.wasmferry.private";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Layout {
    pub(super) image_layout_version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// The name by which skopeo and others know it, where their grammar has one for it.
pub(super) fn ref_name(url: &str) -> Option<String> {
    let (_, name) = url.split_once("://")?;
    let part = |part: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        part.chars().all(|c| c.is_ascii_alphanumeric() || "-._:@+".contains(c))
            && ends(part.chars().next())
            && ends(part.chars().next_back())
            // One separator at a time, or two hyphens.
            && !part.as_bytes().windows(2).any(|two| {
                two.iter().all(|b| !b.is_ascii_alphanumeric()) && two != b"--"
            })
    };
    name.split('/').all(part).then(|| name.to_owned())
}

/// Writes a tar, one file after the other.
pub(super) struct Tar<W>(pub(super) W);

impl<W: Write> Tar<W> {
    /// A file of so many bytes, which `content` writes.
    pub(super) fn file(
        &mut self,
        name: &str,
        size: u64,
        content: impl FnOnce(&mut W) -> io::Result<u64>,
    ) -> io::Result<()> {
        self.0.write_all(&tar_header(name, size)?)?;
        if content(&mut self.0)? != size {
            return Err(io::Error::other("a module changed while it was exported"));
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.0.write_all([0; BLOCK].get(..usize::try_from(padding).unwrap_or_default()).unwrap_or_default())
    }

    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name, bytes.len() as u64, |to| to.write_all(bytes).map(|()| bytes.len() as u64))
    }

    pub(super) fn end(mut self) -> io::Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_name_for_other_tools_where_their_grammar_has_one() {
        for (url, name) in [
            ("oci://localhost:5000/filters/auth:v1", Some("localhost:5000/filters/auth:v1")),
            ("oci://r.io/a--b@sha256:00", Some("r.io/a--b@sha256:00")),
            ("https://h/a.wasm", Some("h/a.wasm")),
            ("https://h/a%20b.wasm", None),
            ("oci://[::1]:5000/a:v1", None),
            ("file:///a.wasm", None),
            ("https://h/", None),
        ] {
            assert_eq!(ref_name(url).as_deref(), name, "{url}");
        }
    }
}
