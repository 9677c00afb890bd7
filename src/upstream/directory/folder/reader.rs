//! Reads the folder, and remembers the last good version of each of its files.
//!
//! Knows no clock, no task and no event: it is told when to look.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::upstream::directory::error::Problem;
use crate::upstream::directory::plugin::{self, WasmPlugin};
use crate::upstream::directory::snapshot::Snapshot;

/// Files that are read; those of later names are reported.
pub(super) const MAX_FILES: usize = 1000;

pub(super) struct Reader {
    directory: PathBuf,
    salt: [u8; 16],
    files: BTreeMap<OsString, Held>,
    /// As it was before the files were last read, so that what changed meanwhile is noticed.
    seen: Option<Stamps>,
    /// What is wrong with the folder itself.
    folder_problem: Option<Problem>,
    /// Whether the folder was ever listed.
    listed: bool,
    plugins: BTreeMap<String, Arc<WasmPlugin>>,
    problems: Vec<Problem>,
    complete: bool,
    generation: u64,
}

/// What is held of one file.
#[derive(Default)]
struct Held {
    /// SHA-256 of the text that was parsed last, good or not.
    parsed: Option<[u8; 32]>,
    /// Of the last good version; `None` where there never was one.
    plugins: Option<Vec<WasmPlugin>>,
    problem: Option<Problem>,
}

/// Tells one file system object from another.
pub(super) type Identity = (u64, u64);

/// Changes when a file does: identity, length, times of content and of metadata.
type Stamp = (Identity, u64, (i64, i64), (i64, i64));

#[derive(PartialEq, Eq)]
struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

impl Reader {
    pub fn new(directory: PathBuf, salt: [u8; 16]) -> Self {
        Self {
            directory,
            salt,
            files: BTreeMap::new(),
            seen: None,
            folder_problem: None,
            listed: false,
            plugins: BTreeMap::new(),
            problems: Vec::new(),
            complete: false,
            generation: 0,
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which folder is at the path now, links followed.
    pub fn identity(&self) -> Option<Identity> {
        std::fs::metadata(&self.directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            plugins: self.plugins.clone(),
            problems: self.problems.clone(),
            complete: self.complete,
            generation: self.generation,
            salt: self.salt,
        }
    }

    /// Whether anything looks different from when it was last read. Reads no file.
    pub fn has_changed(&self) -> bool {
        let now = self.list().ok().map(|names| self.stamps(&names));
        now != self.seen
    }

    /// Reads everything. Whether that changed anything.
    pub fn read(&mut self) -> bool {
        match self.list() {
            Ok(mut names) => {
                self.seen = Some(self.stamps(&names));
                self.listed = true;
                self.folder_problem = (names.len() > MAX_FILES).then(|| {
                    Problem::of_file(
                        &self.directory,
                        format!("more than {MAX_FILES} files; the others are not read"),
                    )
                });
                names.truncate(MAX_FILES);
                self.files.retain(|name, _| names.binary_search(name).is_ok());
                for name in names {
                    let file = self.directory.join(&name);
                    self.files.entry(name).or_default().read(&file);
                }
            }
            // Nothing can be said of the files, so they stay as they were.
            Err(error) => {
                self.seen = None;
                self.folder_problem = Some(Problem::of_file(&self.directory, error.to_string()));
            }
        }
        self.merge()
    }

    /// The plugins of all files. Of several with one name, that of the first file counts.
    fn merge(&mut self) -> bool {
        let mut problems: Vec<_> = self.folder_problem.iter().cloned().collect();
        let mut plugins: BTreeMap<String, Arc<WasmPlugin>> = BTreeMap::new();
        let mut owners: BTreeMap<String, &OsStr> = BTreeMap::new();
        for (name, held) in &mut self.files {
            let file = self.directory.join(name);
            problems.extend(held.problem.clone());
            for plugin in held.plugins.iter_mut().flatten() {
                problems.extend(plugin.load_secret(&file).err());
                let full_name = plugin.full_name();
                if let Some(owner) = owners.get(&full_name) {
                    let why = format!(
                        "{}/{} is defined in {} already",
                        plugin.namespace,
                        plugin.name,
                        owner.to_string_lossy()
                    );
                    let field = Some("metadata.name".to_owned());
                    problems.push(Problem { file: file.clone(), line: Some(plugin.line), field, why });
                    continue;
                }
                owners.insert(full_name.clone(), name);
                let unchanged = self.plugins.get(&full_name).filter(|known| ***known == *plugin);
                let plugin = unchanged.map_or_else(|| Arc::new(plugin.clone()), Arc::clone);
                plugins.insert(full_name, plugin);
            }
        }
        problems.sort();
        let complete = self.listed
            && self.folder_problem.is_none()
            && self.files.values().all(|held| held.plugins.is_some());
        let unchanged = self.generation > 0
            && (&self.plugins, &self.problems, self.complete) == (&plugins, &problems, complete);
        if unchanged {
            return false;
        }
        (self.plugins, self.problems, self.complete) = (plugins, problems, complete);
        self.generation += 1;
        true
    }

    /// The names of the plugin files, sorted. Hidden ones are left out: a `ConfigMap` is mounted
    /// as links into a hidden folder.
    fn list(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let extension = Path::new(&name).extension().and_then(OsStr::to_str);
            let hidden = name.as_encoded_bytes().starts_with(b".");
            // A dangling link is a file that cannot be read.
            let is_folder =
                || std::fs::metadata(self.directory.join(&name)).is_ok_and(|found| found.is_dir());
            if !hidden && matches!(extension, Some("yaml" | "yml" | "json")) && !is_folder() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Of the files and of the pull secrets that their plugins name.
    fn stamps(&self, names: &[OsString]) -> Stamps {
        let files = names.iter().map(|name| self.directory.join(name));
        let secrets = self.files.iter().flat_map(|(name, held)| {
            let file = self.directory.join(name);
            let named = held.plugins.iter().flatten().filter_map(|plugin| plugin.secret_name.as_deref());
            named.flat_map(|name| plugin::secret_files(&file, name)).collect::<Vec<_>>()
        });
        Stamps(
            files
                .chain(secrets)
                .map(|path| (stamp(&path), path))
                .map(|(stamp, path)| (path, stamp))
                .collect(),
        )
    }
}

impl Held {
    fn read(&mut self, file: &Path) {
        let text = match plugin::read(file) {
            Ok(text) => text,
            Err(error) => {
                self.parsed = None;
                self.problem = Some(error.into());
                return;
            }
        };
        let digest: [u8; 32] = Sha256::digest(&text).into();
        if self.parsed == Some(digest) {
            return;
        }
        self.parsed = Some(digest);
        match plugin::parse(file, &text) {
            Ok(plugins) => (self.plugins, self.problem) = (Some(plugins), None),
            Err(error) => self.problem = Some(error.into()),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    let identity = (found.dev(), found.ino());
    Some((identity, found.len(), (found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())))
}
