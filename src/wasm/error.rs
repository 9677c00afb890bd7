//! What the check can find wrong with a module.

use std::io;

use super::abi::AbiVersion;

/// Why Envoy would not take a module, in the words of one who writes plugins.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The module could not be read from disk.
    #[error("the module could not be read: {0}")]
    Read(#[from] io::Error),
    #[error("the module is empty")]
    Empty,
    #[error("this is not a Wasm module: it looks like {0}")]
    NotWasm(&'static str),
    #[error(
        "this is a WebAssembly component; Envoy runs core modules only: build the plugin for wasm32-wasip1, not wasip2"
    )]
    Component,
    #[error("the module has WebAssembly version {0}; there is only version 1")]
    Version(u32),
    #[error("the module is cut off: it ends within a section, after {size} bytes")]
    Truncated { size: u64 },
    #[error("the module has {found} {what}, more than the limit of {limit}")]
    OverBudget { what: &'static str, found: u64, limit: u64 },
    #[error("the module is not valid WebAssembly: {what} (at byte {offset:#x})")]
    Invalid { offset: u64, what: String },
    #[error(
        "the module exports no proxy_abi_version_0_1_0, _0_2_0 or _0_2_1: not built with a Proxy-Wasm SDK?"
    )]
    NoAbiVersion,
    #[error(
        "the module exports neither malloc nor proxy_on_memory_allocate, which Envoy needs to pass it data"
    )]
    NoAllocator,
    #[error("the module exports no memory, and Envoy would crash when the plugin passes it data")]
    NoMemory,
    #[error("the module imports {name}, which no Envoy provides")]
    UnknownImport { name: String },
    #[error("the module imports {name}, which Envoy does not provide to plugins of ABI {abi}")]
    ImportOfOtherAbi { name: String, abi: AbiVersion },
    #[error("the module imports {name} as {found}, but Envoy provides it as {expected}")]
    WrongImport { name: String, expected: String, found: String },
    #[error("the module imports {name}, {what}, which no Envoy provides")]
    ImportKind { name: String, what: &'static str },
    #[error("the module exports {name} as {found}, but Envoy calls it as {expected}")]
    WrongCallback { name: String, expected: String, found: String },
    #[error("the module exports {name}, {what}, and Envoy would crash on it")]
    ExportCrashes { name: String, what: &'static str },
    #[error("a table of the module begins with {entries} entries; V8 takes {limit} at most")]
    TableTooLarge { entries: u64, limit: u64 },
    #[error(
        "the module's name section is malformed (at byte {offset:#x}), and Envoy refuses that; strip it or rebuild"
    )]
    NameSection { offset: u64 },
    #[error("the module holds precompiled native code (custom section {section}), which nobody can check")]
    Precompiled { section: String },
}

impl ModuleError {
    /// A short name for the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Empty => "empty",
            Self::NotWasm(_) => "not_wasm",
            Self::Component => "component",
            Self::Version(_) => "version",
            Self::Truncated { .. } => "truncated",
            Self::OverBudget { .. } => "over_budget",
            Self::Invalid { .. } => "invalid",
            Self::NoAbiVersion => "no_abi_version",
            Self::NoAllocator => "no_allocator",
            Self::NoMemory => "no_memory",
            Self::UnknownImport { .. } => "unknown_import",
            Self::ImportOfOtherAbi { .. } => "import_of_other_abi",
            Self::WrongImport { .. } => "wrong_import",
            Self::ImportKind { .. } => "import_kind",
            Self::WrongCallback { .. } => "wrong_callback",
            Self::ExportCrashes { .. } => "export_crashes",
            Self::TableTooLarge { .. } => "table_too_large",
            Self::NameSection { .. } => "name_section",
            Self::Precompiled { .. } => "precompiled",
        }
    }

    pub(super) fn invalid(offset: u64, what: String) -> Self {
        Self::Invalid { offset, what }
    }
}

/// For where the offset is that of the module already.
impl From<wasmparser::Error> for ModuleError {
    fn from(error: wasmparser::Error) -> Self {
        Self::invalid(error.offset(), error.message().to_owned())
    }
}
