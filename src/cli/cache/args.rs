//! The command line of `wasmferry cache`. Must not do anything.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::args::{ConfigArg, Output, absolute};

/// Looks into the store and changes what is in it, beside running agents too.
///
/// To be run as the store's own user. A module is named by the SHA-256 of its own bytes, `sha256:HEX`, or by
/// the URL that it came from.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    wasmferry cache ls --cache-dir /var/lib/wasmferry\n  \
    wasmferry cache export modules.tar && scp modules.tar airgapped:")]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    Ls(LsArgs),
    Verify(VerifyArgs),
    Gc(GcArgs),
    Rm(RmArgs),
    Pin(PinArgs),
    Unpin(UnpinArgs),
    Export(ExportArgs),
    Import(ImportArgs),
}

/// Which store, and how to print.
#[derive(Debug, Clone, Default, Args)]
pub struct StoreArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Where the store is [default: cache.directory, else the user's cache directory]
    #[arg(long, value_name = "DIR", value_parser = absolute())]
    pub cache_dir: Option<PathBuf>,
    /// What to print on standard output
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Lists the modules in the store.
///
/// Public modules are everybody's, private ones only those of a credential, which is never shown. The last
/// use is counted while an agent is ready.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache ls --cache-dir /var/lib/wasmferry\n\n\
    Output with --output json, one object a line:\n  \
    {\"payload_digest\", \"size\", \"sources\": [{\"url\", \"audience\"}], \"unused_seconds\", \"leased_by\", \
    \"pinned\", \"verified_at\"}")]
pub struct LsArgs {
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Hashes every module again.
///
/// One with other bytes than its name says goes to content/quarantine in the store, and is fetched again by
/// who asks for it next. Exits 1 where something was wrong.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache verify --config /etc/wasmferry/config.yaml\n\n\
    Output with --output json, one object a line:\n  \
    {\"damaged\", \"found\", \"path\", \"urls\"}\n  {\"failed\"}\n  {\"whole\", \"bytes\"}")]
pub struct VerifyArgs {
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Removes what the store's limits have go, at once.
///
/// As a running agent does it each minute: never what is leased, pinned, or was used within ten minutes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache gc --dry-run --config /etc/wasmferry/config.yaml\n\n\
    Output with --output json, one object a line:\n  {\"payload_digest\", \"size\", \"reason\"}\n  \
    {\"removed\", \"bytes\"}")]
pub struct GcArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// Removes a module.
///
/// Refused while an Envoy may open it, or while it is pinned.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache rm oci://registry.example/filters/auth:v1")]
pub struct RmArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Also what is leased or pinned: an Envoy that opens it later finds nothing
    #[arg(long)]
    pub force: bool,
    /// sha256:HEX, or a URL
    #[arg(value_name = "DIGEST|URL")]
    pub module: String,
}

/// Keeps a module whatever the store may hold.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache pin oci://registry.example/filters/auth:v1")]
pub struct PinArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// sha256:HEX, or a URL
    #[arg(value_name = "DIGEST|URL")]
    pub module: String,
}

/// Lets a pinned module go when its time comes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache unpin oci://registry.example/filters/auth:v1")]
pub struct UnpinArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// sha256:HEX, or a URL
    #[arg(value_name = "DIGEST|URL")]
    pub module: String,
}

/// Writes modules, and where they came from, to an OCI image layout in a tar.
///
/// All of them, or those that are named. Each is a CNCF Wasm artifact, which other tools read too: `skopeo
/// copy oci-archive:FILE:registry.example/filters/auth:v1 docker://...`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  wasmferry cache export modules.tar oci://registry.example/filters/auth:v1"
)]
pub struct ExportArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Also modules that were pulled with a credential: whoever has the file has them
    #[arg(long)]
    pub private: bool,
    /// The file to write, in the place of what is there
    #[arg(value_name = "FILE", value_parser = absolute())]
    pub archive: PathBuf,
    /// sha256:HEX, or a URL
    #[arg(value_name = "DIGEST|URL")]
    pub modules: Vec<String>,
}

/// Takes modules, and where they came from, out of an OCI image layout in a tar.
///
/// Every digest is verified and every module checked. The file is believed about which URL led to which
/// module, as a registry is: import what comes from people whom you trust.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wasmferry cache import --cache-dir /var/lib/wasmferry modules.tar")]
pub struct ImportArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Also private modules, for the credentials that your docker configuration has for their registries
    #[arg(long)]
    pub private: bool,
    /// The file to read
    #[arg(value_name = "FILE", value_parser = absolute())]
    pub archive: PathBuf,
}

impl CacheCommand {
    /// Which store, and how to print.
    pub fn store(&self) -> &StoreArgs {
        match self {
            Self::Ls(LsArgs { store })
            | Self::Verify(VerifyArgs { store })
            | Self::Gc(GcArgs { store, .. })
            | Self::Rm(RmArgs { store, .. })
            | Self::Pin(PinArgs { store, .. })
            | Self::Unpin(UnpinArgs { store, .. })
            | Self::Export(ExportArgs { store, .. })
            | Self::Import(ImportArgs { store, .. }) => store,
        }
    }
}
