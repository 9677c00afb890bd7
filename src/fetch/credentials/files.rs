//! Files with secrets: read whenever they are needed and never kept, so that a change counts at once and
//! nothing lies in memory for longer than it is used.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::fetch::files::read_small;

/// What a folder of secrets may hold.
const MAX_ENTRIES: usize = 10_000;

/// A secret's key in a folder where it is mounted.
const KEYS: [&str; 2] = [".dockerconfigjson", ".dockercfg"];

/// The text of a file. The error says what is wrong and nothing of what is in it.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let bytes = read_small(path).map_err(|error| error.to_string())?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err("it is not text".to_owned()),
    }
}

/// A file that holds one secret and perhaps the end of its line.
pub(super) fn read_value(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = read(path)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("it is empty".to_owned()),
        value => Ok(Zeroizing::new(value.to_owned())),
    }
}

/// The docker configs below a folder in which Kubernetes' secrets are mounted: the folder's own keys, those
/// of its subfolders, and files named `NAME.dockerconfigjson` or `NAME.dockercfg`.
pub(super) fn mounted_secrets(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for (seen, entry) in std::fs::read_dir(folder).map_err(|error| error.to_string())?.enumerate() {
        if seen >= MAX_ENTRIES {
            return Err(format!("it holds more than {MAX_ENTRIES} files"));
        }
        let path = entry.map_err(|error| error.to_string())?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        // The kubelet's own: versions of the secret, to which its keys are links.
        if name.starts_with("..") {
            continue;
        }
        if KEYS.iter().any(|key| name.ends_with(key)) {
            files.push(path);
        } else if path.is_dir() {
            files.extend(KEYS.iter().map(|key| path.join(key)).filter(|file| file.exists()));
        }
    }
    files.sort();
    Ok(files)
}

/// The program of this name in one of these folders.
pub(super) fn program<'a>(folders: impl Iterator<Item = &'a Path>, name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(is_program)
}

/// Whether something is there.
pub(super) fn exists(path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_anew_each_time_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        for text in ["one", "two\n", "three\r\n"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read_value(&file).unwrap().as_str(), text.trim());
        }
        for (bytes, why) in [
            (&b"\n"[..], "it is empty"),
            (b"\xff", "it is not text"),
            (&vec![b'x'; (1 << 20) + 1], "it is larger than 1 MiB"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(read_value(&file).unwrap_err(), why);
        }
        assert_eq!(read(folder.path()).unwrap_err(), "it is not a regular file");
        assert!(read(&folder.path().join("none")).unwrap_err().starts_with("No such file"));
    }

    #[test]
    fn secrets_are_found_as_kubernetes_mounts_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["..data", "a", "b", "c"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        for name in [
            "..data/.dockerconfigjson",
            "a/.dockerconfigjson",
            "b/.dockercfg",
            "c/tls.key",
            "d.dockerconfigjson",
            "e",
        ] {
            std::fs::write(at(name), "{}").unwrap();
        }
        std::os::unix::fs::symlink("..data/.dockerconfigjson", at(".dockerconfigjson")).unwrap();
        let expected =
            [".dockerconfigjson", "a/.dockerconfigjson", "b/.dockercfg", "d.dockerconfigjson"].map(at);
        assert_eq!(mounted_secrets(folder.path()).unwrap(), expected);
    }
}
