//! An image out of an OCI image layout on this machine (image specification 1.1, "Image Layout"), a folder
//! or a tar, for nodes without a network. Its manifests and layers are held to their digests as a
//! registry's are; nothing in it leads out of it: a blob is looked up by a digest's digits alone, and no
//! link is followed to elsewhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::Shared;
use super::body::{Body, Promise};
use super::error::{FetchError, RegistryCode};
use super::file;
use super::layers::{self, Below};
use super::manifest::{self, Child, Layers, Manifest, Refusal};
use super::repository::architecture;
use crate::digest::{BlobDigest, SourceDigest};
use crate::module::LayoutImage;
use crate::wasm::tar::{Archive, Kind};

const INDEX: &str = "index.json";
const BLOBS: &str = "blobs/sha256/";
/// Entries of a tar.
const MAX_ENTRIES: usize = 10_000;

/// An open layout.
pub(super) struct Layout {
    root: Root,
    what: String,
}

enum Root {
    Folder(OwnedFd),
    /// Where the files that matter lie in it: offset and size.
    Tar(File, HashMap<String, (u64, u64)>),
}

/// A module's layers, found.
pub(super) struct Found {
    pub(super) manifest: SourceDigest,
    /// The index within the layout that led to the manifest.
    pub(super) index: Option<SourceDigest>,
    pub(super) layers: Layers,
    layout: Arc<Layout>,
}

/// Opens a layout, checks its manifests and picks the layers. Blocks as file systems do. `what` names the
/// image in errors.
pub(super) fn locate(
    shared: &Shared,
    path: &Path,
    image: Option<&LayoutImage>,
    what: String,
) -> Result<Found, FetchError> {
    let layout = Layout::open(shared, path, what)?;
    let refused = |refusal| layers::refused(&layout.what, refusal);
    let invalid = |reason: &str| refused(Refusal::Invalid(reason.to_owned()));
    let limit = shared.config.max_manifest_bytes;
    let child = match image {
        Some(LayoutImage::Digest(digest)) => Child { digest: *digest, size: None },
        named => {
            let bytes = layout.small(INDEX, limit)?.ok_or_else(|| layout.missing(INDEX))?;
            let Manifest::Index(index) = manifest::read(&bytes, None).map_err(refused)? else {
                return Err(invalid("its index.json is no index"));
            };
            let index = match named {
                Some(LayoutImage::Tag(tag)) => index.tagged(tag).map_err(refused)?,
                _ => index,
            };
            match index.only().map_err(refused)? {
                Some(child) => child,
                None => index.choose(architecture()).map_err(refused)?,
            }
        }
    };
    let (manifest, index, image) = match layout.manifest(&child, limit)? {
        Manifest::Image(image) => (child.digest, None, image),
        Manifest::Index(index) => {
            let inner = index.choose(architecture()).map_err(refused)?;
            match layout.manifest(&inner, limit)? {
                Manifest::Image(image) => (inner.digest, Some(child.digest), image),
                Manifest::Index(_) => return Err(invalid("its index calls another index an image")),
            }
        }
    };
    let layers = image.layers().map_err(refused)?;
    layers::check_size(shared, &layers.top, &layout.what)?;
    Ok(Found { manifest, index, layers, layout: Arc::new(layout) })
}

impl Found {
    /// The bytes of the layers. Blocks as file systems do.
    pub(super) fn open(self, shared: &Shared) -> Result<Body, FetchError> {
        let Found { manifest, layers, layout, .. } = self;
        let (top, what) = (layers.top, layout.what.clone());
        let file = layout.blob(&top.digest)?;
        let promise = Promise::Blob { digest: top.digest, size: top.size, manifest };
        let body = Body::layout(layers::name(&what, &top), top.packaging, promise, file, layout);
        Ok(body.above(Below::new(shared, what, layers)))
    }

    /// The same once more.
    pub(super) fn again(&self) -> Self {
        let Found { manifest, index, layers, layout } = self;
        Found { manifest: *manifest, index: *index, layers: layers.clone(), layout: layout.clone() }
    }
}

impl Layout {
    fn open(shared: &Shared, path: &Path, what: String) -> Result<Self, FetchError> {
        let (file, metadata) = file::open_any(&shared.config.files, path)?;
        let failed = |source| FetchError::File { path: path.to_owned(), source };
        let root = match (metadata.is_dir(), metadata.is_file()) {
            (true, _) => Root::Folder(file.into()),
            (_, true) => {
                let places = places(&file).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => {
                        let refusal = Refusal::Invalid(format!("it is no layout in a tar: {error}"));
                        layers::refused(&what, refusal)
                    }
                    _ => failed(error),
                })?;
                Root::Tar(file, places)
            }
            _ => {
                let (path, reason) = (path.to_owned(), "it is neither a folder nor a regular file");
                return Err(FetchError::FileNotAllowed { path, reason });
            }
        };
        Ok(Layout { root, what })
    }

    /// A file of the layout, to be read to its end.
    fn file(&self, name: &str) -> Result<Option<io::Take<File>>, FetchError> {
        match &self.root {
            Root::Folder(folder) => {
                let file = file::within(folder, Path::new(name))?;
                Ok(file.map(|file| file.take(u64::MAX)))
            }
            Root::Tar(file, places) => {
                let Some((offset, size)) = places.get(name) else { return Ok(None) };
                let mut file = file.try_clone().map_err(FetchError::Io)?;
                // One place is shared by all clones, and one of them is read at a time.
                file.seek(SeekFrom::Start(*offset)).map_err(FetchError::Io)?;
                Ok(Some(file.take(*size)))
            }
        }
    }

    /// A small file whole.
    fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, FetchError> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(FetchError::Io)?;
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge { what: format!("{name} of {}", self.what), limit });
        }
        Ok(Some(bytes))
    }

    /// A blob, nothing of which has been checked.
    pub(super) fn blob(&self, digest: &BlobDigest) -> Result<io::Take<File>, FetchError> {
        let name = format!("{BLOBS}{}", digest.hex());
        self.file(&name)?.ok_or_else(|| self.missing(&name))
    }

    /// A manifest, which has the digest and the size that it is named by.
    fn manifest(&self, child: &Child, limit: u64) -> Result<Manifest, FetchError> {
        let name = format!("{BLOBS}{}", child.digest.hex());
        let bytes = self.small(&name, limit)?.ok_or_else(|| self.missing(&name))?;
        let what = format!("the manifest of {}", self.what);
        let actual = bytes.len() as u64;
        if let Some(expected) = child.size.filter(|size| *size != actual) {
            return Err(FetchError::SizeMismatch { what, expected, actual, at_least: false });
        }
        let actual = SourceDigest::of(&bytes);
        if actual != child.digest {
            let (expected, actual) = (child.digest.to_string(), actual.to_string());
            return Err(FetchError::DigestMismatch { what, expected, actual });
        }
        manifest::read(&bytes, None).map_err(|refusal| layers::refused(&self.what, refusal))
    }

    fn missing(&self, name: &str) -> FetchError {
        FetchError::NotFound { what: format!("{name} of {}", self.what), code: RegistryCode::default() }
    }
}

/// Where the files of a layout lie in a tar. Content is passed over, not read.
fn places(file: &File) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut archive = Archive::seeking(BufReader::new(file));
    let (mut places, mut count) = (HashMap::new(), 0);
    while let Some(entry) = archive.next_entry()? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has more than 10,000 entries"));
        }
        let Ok(name) = String::from_utf8(entry.name) else { continue };
        let name = name.strip_prefix("./").unwrap_or(&name);
        let matters =
            name == INDEX || name.strip_prefix(BLOBS).is_some_and(|hex| BlobDigest::from_hex(hex).is_ok());
        if entry.kind == Kind::File && matters {
            places.insert(name.to_owned(), (archive.position()?, entry.size));
        }
    }
    Ok(places)
}
