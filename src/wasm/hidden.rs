//! What an image's layer leaves nothing of in the layers below it: what it removes by whiteouts (OCI image
//! specification, "Image Layer Filesystem Changeset"), and what it puts something else in the place of.
//! Names are compared and never opened.

use std::collections::HashSet;

use super::tar::{Entry, Kind};
use super::unpack::UnpackError;

/// Begins the name of an entry that removes the one of the rest of its name.
const WHITEOUT: &[u8] = b".wh.";
/// Begins the names of a file system's own notes.
const META: &[u8] = b".wh..wh.";
/// Removes all in its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The longest path that is compared with others, in bytes.
const MAX_PATH: usize = 1024;
/// Bytes of all paths that are kept.
const MAX_BYTES: usize = 4 << 20;

/// Paths without `.` and empty parts. One that ends in a slash is a folder of which only the content is
/// gone; `/` is all.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    paths: HashSet<Vec<u8>>,
    bytes: usize,
}

impl Hidden {
    /// Takes in what an entry of a layer hides.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let base = entry.base_name();
        let Some(removed) = base.strip_prefix(WHITEOUT) else {
            // Folders of two layers are one folder.
            return match (entry.kind, path(&entry.name)) {
                (Kind::Folder, _) | (_, Err(_)) => Ok(()),
                (_, Ok(path)) => self.insert(path),
            };
        };
        let folder = entry.name.strip_suffix(base).unwrap_or_default();
        if base == OPAQUE {
            let mut folder = path(folder)?;
            folder.push(b'/');
            return self.insert(folder);
        }
        if base.starts_with(META) {
            return Ok(());
        }
        if matches!(removed, b"" | b"." | b"..") {
            return Err(UnpackError::Tar("a whiteout removes what has no name"));
        }
        self.insert(path(&[folder, removed].concat())?)
    }

    /// Whether a layer below has nothing under this name any more.
    pub(super) fn hides(&self, name: &[u8]) -> Result<bool, UnpackError> {
        if self.paths.is_empty() {
            return Ok(false);
        }
        let path = path(name)?;
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let within = |at: usize| {
            let folder = path.get(..at).unwrap_or_default();
            let content = path.get(..=at).unwrap_or_default();
            self.paths.contains(folder) || self.paths.contains(content)
        };
        Ok(self.is_all() || self.paths.contains(&path) || slashes.into_iter().any(within))
    }

    /// Whether nothing of any layer below counts.
    pub(super) fn is_all(&self) -> bool {
        self.paths.contains(&b"/"[..])
    }

    /// Takes in what another layer hides too.
    pub(super) fn merge(&mut self, other: Hidden) -> Result<(), UnpackError> {
        other.paths.into_iter().try_for_each(|path| self.insert(path))
    }

    fn insert(&mut self, path: Vec<u8>) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(path.len());
        if self.bytes > MAX_BYTES {
            return Err(UnpackError::Tar("its names take more than 4 MiB"));
        }
        self.paths.insert(path);
        Ok(())
    }
}

/// The parts of a name that lead somewhere, with a slash between them.
fn path(name: &[u8]) -> Result<Vec<u8>, UnpackError> {
    if name.len() > MAX_PATH {
        return Err(UnpackError::Tar("a name that matters is longer than 1024 bytes"));
    }
    let parts: Vec<&[u8]> =
        name.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(UnpackError::Tar("a name that matters has `..` in it"));
    }
    Ok(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind) -> Entry {
        Entry { name: name.into(), kind, size: 0 }
    }

    fn hidden(names: &[&str]) -> Hidden {
        let mut hidden = Hidden::default();
        names.iter().for_each(|name| hidden.add(&entry(name, Kind::File)).unwrap());
        hidden
    }

    #[test]
    fn a_whiteout_hides_what_it_names_and_all_below() {
        for whiteout in ["a/b/.wh.plugin.wasm", "./a/.wh.b", "/.wh.a", "a/b/.wh..wh..opq", ".wh..wh..opq"] {
            assert!(hidden(&[whiteout]).hides(b"a/b/plugin.wasm").unwrap(), "{whiteout}");
            assert!(hidden(&[whiteout]).hides(b"./a//b/plugin.wasm").unwrap(), "{whiteout}");
        }
        for other in
            ["a/.wh.plugin.wasm", ".wh.b", ".wh.a.", "b/.wh..wh..opq", ".wh..wh.plnk", "a/b/.wh.plugin"]
        {
            assert!(!hidden(&[other]).hides(b"a/b/plugin.wasm").unwrap(), "{other}");
        }
        assert!(!hidden(&["a/.wh..wh..opq"]).hides(b"a").unwrap(), "an opaque folder is still there");
        assert!(hidden(&[".wh..wh..opq"]).is_all() && !hidden(&["a/.wh..wh..opq"]).is_all());
    }

    #[test]
    fn whatever_is_no_folder_takes_the_place_of_what_was_there() {
        assert!(hidden(&["a"]).hides(b"a/plugin.wasm").unwrap());
        let mut folder = Hidden::default();
        folder.add(&entry("a/", Kind::Folder)).unwrap();
        assert!(!folder.hides(b"a/plugin.wasm").unwrap());
        folder.add(&entry("a/plugin.wasm", Kind::Other)).unwrap();
        assert!(folder.hides(b"a/plugin.wasm").unwrap());
    }

    #[test]
    fn a_whiteout_that_leads_anywhere_else_is_refused() {
        for name in ["../.wh.plugin.wasm", "a/../.wh.b", ".wh...", ".wh..", ".wh.", "../.wh..wh..opq"] {
            assert_eq!(Hidden::default().add(&entry(name, Kind::File)).unwrap_err().label(), "tar", "{name}");
        }
        assert!(hidden(&["a"]).hides(b"../plugin.wasm").is_err());
        // Other names are nothing to us.
        Hidden::default().add(&entry("../etc/passwd", Kind::File)).unwrap();
    }

    #[test]
    fn what_is_kept_of_names_is_bounded() {
        let long = "x".repeat(MAX_PATH - 5);
        let mut hidden = Hidden::default();
        let kept = (0..).take_while(|n| hidden.add(&entry(&format!("{n:05}{long}"), Kind::File)).is_ok());
        assert_eq!(kept.count(), MAX_BYTES / MAX_PATH);
        let whiteout = format!(".wh.{}", "x".repeat(MAX_PATH + 1));
        assert_eq!(Hidden::default().add(&entry(&whiteout, Kind::File)).unwrap_err().label(), "tar");
    }
}
