//! The shape of the source, held to what `lib.rs` and ARCHITECTURE.md say of it. The source is read as
//! text: enough, since rustfmt has its say about how it is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file below `src`, with its path from there.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn module(&self) -> &str {
        let end = self.path.find(['/', '.']).unwrap();
        &self.path[..end]
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Line number and code of each line that is no comment.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The same without the unit tests at the end of the file.
    fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("#[cfg(test)]\nmod tests {").map(|at| self.text[..at].lines().count());
        self.lines().take_while(move |(line, _)| tests.is_none_or(|tests| *line <= tests))
    }

    /// Where its shipped code contains any of these.
    fn places(&self, words: &[&str]) -> Vec<String> {
        let found = self.shipped().filter(|(_, code)| words.iter().any(|word| code.contains(word)));
        found.map(|(line, code)| format!("src/{}:{line}: {}", self.path, code.trim())).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut folders = vec![src.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(sources.len() > 50, "the source was found");
    sources
}

/// The modules as `lib.rs` lists them.
fn modules() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    lib.lines().filter_map(name).collect()
}

/// The top modules that a line names by `crate::`.
fn used(code: &str) -> impl Iterator<Item = &str> {
    code.split("crate::").skip(1).map(move |rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        assert!(end > 0, "a group behind `crate::` hides what is used: {code}");
        &rest[..end]
    })
}

#[test]
fn every_module_uses_only_those_above_it_in_lib_rs() {
    let modules = modules();
    let rank = |name: &str| modules.iter().position(|module| module == name);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources() {
        if matches!(source.path.as_str(), "lib.rs" | "main.rs") {
            continue;
        }
        let Some(own) = rank(source.module()) else { panic!("lib.rs does not list {}", source.path) };
        seen.insert(own);
        for (line, code) in source.lines() {
            for name in used(code) {
                if rank(name).is_none_or(|rank| rank > own) {
                    wrong.push(format!("src/{}:{line} uses {name}", source.path));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(seen.len(), modules.len(), "each module of the list has a file");
}

#[test]
fn only_config_reads_the_environment() {
    let words = ["env::var", "env::vars", "option_env!", "ProjectDirs", "BaseDirs", "(env = \"", " env = \""];
    let places = |source: &Source| source.places(&words);
    let (config, others): (Vec<_>, Vec<_>) =
        sources().into_iter().partition(|source| source.path == "config/environment.rs");
    assert!(!config.iter().flat_map(places).collect::<Vec<_>>().is_empty(), "there it is read");
    let others = others.iter().filter(|source| !source.is_test());
    assert_eq!(others.flat_map(places).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn only_the_clock_asks_the_machine_for_the_time() {
    let words = ["Instant::now", "SystemTime::now", "tokio::time::", "thread::sleep", ".elapsed()"];
    let others = sources().into_iter().filter(|source| source.path != "clock.rs" && !source.is_test());
    let places: Vec<_> = others.flat_map(|source| source.places(&words)).collect();
    assert_eq!(places, Vec::<String>::new());
}

/// Others are spawned on a tracker, or on a set that their owner holds.
#[test]
fn a_task_that_no_tracker_knows_belongs_to_a_value_that_ends_it() {
    let sources = sources();
    let spawns = sources.iter().filter(|source| !source.is_test()).flat_map(|source| {
        let places = source.places(&["tokio::spawn(", "thread::spawn(", "Handle::spawn("]);
        let owned = ["AbortOnDropHandle::new(", ".drop_guard()"].iter().any(|own| source.text.contains(own));
        places.into_iter().map(move |place| (place, owned))
    });
    let (owned, loose): (Vec<_>, Vec<_>) = spawns.partition(|(_, owned)| *owned);
    assert_eq!(loose, []);
    // What reads a body, and the connections to sources and to the control plane.
    assert_eq!(owned.len(), 3, "{owned:?}");
}

#[test]
fn files_are_touched_only_where_the_list_says() {
    let expected = [
        // What somebody has named: a configuration, plugins, a module to push or to read.
        "cli/cache/export.rs",
        "cli/cache/import.rs",
        "cli/push.rs",
        "config/group.rs",
        "config/load.rs",
        "fetch/body.rs",
        // What the node pulls with.
        "fetch/credentials/files.rs",
        "fetch/file.rs",
        // Certificates, and containerd's hosts.
        "fetch/files.rs",
        "fetch/hosts/containerd.rs",
        "fetch/layout.rs",
        // Sockets have names and modes.
        "listen.rs",
        "upstream/directory/folder/reader.rs",
        "upstream/directory/plugin.rs",
    ];
    let words = ["std::fs", "fs::File", "tokio::fs"];
    let touches = |source: &Source| !source.is_test() && !source.places(&words).is_empty();
    let mut found: Vec<_> = sources().into_iter().filter(touches).map(|source| source.path).collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn the_store_reaches_the_kernel_through_one_layer() {
    let words = ["std::fs", "rustix::fs", "rustix::io::write", "rustix::io::pread", "rustix::io::fcntl"];
    let touches = |source: &Source| {
        source.module() == "store" && !source.is_test() && !source.places(&words).is_empty()
    };
    let mut found: Vec<_> = sources().into_iter().filter(touches).map(|source| source.path).collect();
    found.sort();
    // Of these, each call passes the observer; the second only reads.
    assert_eq!(
        found,
        ["store/file.rs", "store/foreign.rs", "store/fs.rs", "store/fs/entry.rs", "store/fs/root.rs"]
    );
}
