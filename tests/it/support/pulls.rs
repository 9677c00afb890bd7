//! `wasmferry prefetch`: what it is asked, what it says, and what it leaves on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::agent::{command, program};
use super::process::Process;
use super::registry::digest;
use super::world::{User, World};

/// The folder of the store that prefetch and agents of this world share.
pub fn cache(world: &World) -> PathBuf {
    world.folder("cache", User::Agent, 0o711)
}

/// What a run of `wasmferry prefetch --output json` said.
#[derive(Debug)]
pub struct Prefetched {
    pub code: Option<i32>,
    pub lines: Vec<Value>,
    pub stderr: String,
}

/// Prefetches into the world's store. `args` are sources, and flags beside those for output and store.
pub async fn prefetch(
    world: &World,
    args: impl IntoIterator<Item = impl Into<String>>,
    env: &[(&str, &str)],
) -> Prefetched {
    let cache = cache(world);
    let fixed = ["prefetch", "--output", "json", "--cache-dir", cache.to_str().expect("a path in UTF-8")];
    let args = fixed.into_iter().map(str::to_owned).chain(args.into_iter().map(Into::into));
    let output = command(world, args, env).await;
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = stdout.lines().map(|line| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not a line of JSON: {line}: {error}"))
    });
    Prefetched {
        code: output.status.code(),
        lines: lines.collect(),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// `wasmferry prefetch` of one URL into the world's store, begun.
pub fn begin_prefetch(world: &World, name: &str, url: &str) -> Process {
    let cache = cache(world);
    let cache = cache.to_str().expect("a path in UTF-8");
    let args = ["prefetch", "--output", "json", "--cache-dir", cache, url];
    let mut program = program(world, name, args.map(Into::into));
    program.env.push(("RUST_LOG".into(), "wasmferry=debug".into()));
    program.start(world)
}

impl Prefetched {
    /// The one line about this URL.
    pub fn of(&self, url: &str) -> &Value {
        let mut lines = self.lines.iter().filter(|line| line["url"] == url);
        match (lines.next(), lines.next()) {
            (Some(line), None) => line,
            found => panic!("expected one line about {url}, not {found:?} of {self:#?}"),
        }
    }

    /// The line about a URL that was to be had, whose module must be in the store as it says.
    pub fn module(&self, url: &str, module: &[u8]) -> &Value {
        let line = self.of(url);
        assert_eq!(line["payload_digest"], digest(module), "{line}");
        assert_eq!(line["size"], module.len(), "{line}");
        let path = line["path"].as_str().expect("a path");
        assert_eq!(std::fs::read(path).expect("the module's view"), module, "{line}");
        line
    }

    /// Reason and text of a URL that was not.
    pub fn error(&self, url: &str) -> (&str, &str) {
        let line = self.of(url);
        let keys: BTreeSet<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["error", "reason", "url"].into(), "{line}");
        (line["reason"].as_str().expect("a reason"), line["error"].as_str().expect("an error"))
    }
}

/// A `WasmPlugin` document in the namespace `default`; `spec` is added to its URL.
pub fn wasm_plugin(name: &str, url: &str, spec: Value) -> Value {
    let mut plugin = json!({
        "apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"url": url},
    });
    let fields = plugin["spec"].as_object_mut().expect("an object");
    fields.extend(spec.as_object().cloned().expect("an object"));
    plugin
}

/// A file or folder of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub folder: bool,
    pub mode: u32,
    pub inode: u64,
    pub links: u64,
    pub owner: u32,
}

/// All of a folder, by path below it.
pub fn tree(root: &Path) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for found in std::fs::read_dir(&folder).expect("a folder") {
            let path = found.expect("a folder's entry").path();
            let metadata = match path.symlink_metadata() {
                // Whoever uses the store has just given it its place, or removed it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                metadata => metadata.expect("metadata"),
            };
            let name = path.strip_prefix(root).expect("a path below it").to_str().expect("UTF-8").to_owned();
            if metadata.is_dir() {
                folders.push(path);
            }
            let entry = Entry {
                folder: metadata.is_dir(),
                mode: metadata.mode() & 0o7777,
                inode: metadata.ino(),
                links: metadata.nlink(),
                owner: metadata.uid(),
            };
            entries.insert(name, entry);
        }
    }
    entries
}

/// Files that are being written in a store, or were. An agent that runs there writes small ones at any time, for
/// an instant: those that stay count.
pub fn unfinished(cache: &Path) -> Vec<String> {
    staying(&cache.join("v1/content/ingest"))
}

/// What is in a folder, and stays there.
fn staying(folder: &Path) -> Vec<String> {
    let left = || tree(folder).into_keys().collect::<Vec<_>>();
    for _ in 0..200 {
        if left().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    left()
}

/// Of a store: the payloads, and that there is a view of each, nothing half written, and nothing else.
pub fn payloads(cache: &Path) -> BTreeSet<String> {
    assert_eq!(unfinished(cache), Vec::<String>::new());
    // The file of a claim goes a moment after the answer. Where nothing was ever claimed there is no folder.
    let flights = cache.join("v1/content/flights");
    if flights.exists() {
        assert_eq!(staying(&flights), Vec::<String>::new());
    }
    let mut tree = tree(cache);
    tree.retain(|path, entry| entry.folder || !path.starts_with("v1/content/ingest/"));
    let files = |folder: &str| -> Vec<String> {
        let below = tree.iter().filter(|(path, entry)| path.starts_with(folder) && !entry.folder);
        below.map(|(path, _)| path.rsplit('/').next().expect("a name").to_owned()).collect()
    };
    let blobs: BTreeSet<String> = files("v1/content/blobs").into_iter().collect();
    let views = [files("v1/public"), files("v1/private")].concat();
    let viewed: BTreeSet<String> = views.iter().map(|name| name.trim_end_matches(".wasm").into()).collect();
    assert_eq!(blobs, viewed);
    // And what the store keeps for itself.
    let others = [
        "index",
        "layers",
        "proofs",
        "notes",
        "leases",
        "pins",
        "uses",
        "seals",
        "quarantine",
        "age",
        "lock",
        "key",
    ];
    let others = others.map(|folder| files(&format!("v1/content/{folder}")).len());
    let accounted = blobs.len() + views.len() + others.iter().sum::<usize>();
    assert_eq!(tree.values().filter(|entry| !entry.folder).count(), accounted, "{tree:#?}");
    blobs.into_iter().map(|hex| format!("sha256:{hex}")).collect()
}

/// The digests of modules, as [`payloads`] gives them.
pub fn digests<'a>(modules: impl IntoIterator<Item = &'a [u8]>) -> BTreeSet<String> {
    modules.into_iter().map(digest).collect()
}
