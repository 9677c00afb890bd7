//! What the folder of plugins held at one time: what the reader makes and every stream reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::error::Problem;
use super::plugin::WasmPlugin;

/// What the folder held when it was last read: the last good version of each file.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) plugins: BTreeMap<String, Arc<WasmPlugin>>,
    pub(super) problems: Vec<Problem>,
    pub(super) complete: bool,
    pub(super) generation: u64,
    /// Versions are hashes of content that may hold secrets, so they are salted.
    pub(super) salt: [u8; 16],
}

impl Snapshot {
    /// The plugin called `NAMESPACE.NAME`.
    pub fn plugin(&self, full_name: &str) -> Option<&WasmPlugin> {
        self.plugins.get(full_name).map(Arc::as_ref)
    }

    /// All plugins by `NAMESPACE.NAME`.
    pub fn plugins(&self) -> impl Iterator<Item = (&str, &WasmPlugin)> {
        self.plugins.iter().map(|(name, plugin)| (name.as_str(), plugin.as_ref()))
    }

    /// What is not served as it stands in the folder, sorted.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether every file could be read at least once: only then is a plugin that is missing here
    /// known not to exist.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Counts up with each change of plugins or problems.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The version of this content: the same for the same content in one process.
    pub(super) fn version(&self, content: &[u8]) -> String {
        let digest = Sha256::new().chain_update(self.salt).chain_update(content).finalize();
        hex::encode(&digest[..8])
    }
}

#[cfg(test)]
impl Snapshot {
    /// A complete snapshot of these plugins.
    pub(super) fn of(plugins: impl IntoIterator<Item = WasmPlugin>) -> Self {
        let plugins = plugins.into_iter().map(|plugin| (plugin.full_name(), Arc::new(plugin))).collect();
        Self { plugins, problems: Vec::new(), complete: true, generation: 1, salt: [0; 16] }
    }
}
