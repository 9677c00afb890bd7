//! The configuration: what a file says, with every default in place, or every mistake in it.
//!
//! Owns the file's format, the environment (nothing else reads it) and the watch for changes. Must not
//! know who uses a value, and opens nothing but the file itself and `/etc/group`.
//!
//! All keys, their defaults and limits are in the table in README.md, which a test holds to `schema`.
//!
//! A file without any of `listeners`, `upstream`, `relay`, `health`, `admin` and `shutdown` is for
//! `prefetch` alone. A key with no value (null) is unset.

mod address;
mod changes;
mod credentials;
mod environment;
mod error;
mod group;
mod load;
mod log;
mod reader;
mod registries;
mod schema;
mod units;
mod variables;
mod warnings;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustix::fs::Gid;

pub use crate::fetch::{Proxies, Registry};
pub use address::{InvalidAddress, ListenAddress, UpstreamAddress};
pub use changes::Changes;
pub use environment::Environment;
pub use error::{ConfigError, Problem};
pub use load::{Loader, Overrides};
pub use log::{Log, LogFormat, LogLevel, NotOneOf};
pub use units::{show_duration, show_size};
pub use variables::Variable;
pub use watch::Watch;

use crate::fetch::{NodeCredential, ProgramEnvironment};

/// A configuration file may have this many bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A whole configuration, valid in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What makes it an agent's; none where the file is for `prefetch` alone.
    pub agent: Option<Agent>,
    pub cache: Cache,
    pub sources: Sources,
    /// By `HOST` or `HOST:PORT`, in lower case, or [`ANY_REGISTRY`](crate::fetch::ANY_REGISTRY).
    pub registries: BTreeMap<String, Registry>,
    /// Folders as containerd's `certs.d`, for registries that have no entry.
    pub containerd_hosts: Vec<PathBuf>,
    pub fetch: Fetch,
    /// Networks that no fetch may reach, beside those that are always blocked.
    pub blocked_cidrs: Vec<IpNet>,
    /// Hosts, in lower case and perhaps with a port, that any registry may name as its token server.
    pub realms: Vec<String>,
    /// What the node itself may pull with, in the order in which it is tried.
    pub credentials: Vec<NodeCredential>,
    /// The same by the kubelet's credential providers.
    pub credential_providers: Option<NodeCredential>,
    /// Not the file's: what programs that give credentials find in their environment.
    pub programs: ProgramEnvironment,
    pub relay: Relay,
    pub wasm: WasmBudgets,
    pub health: Option<Health>,
    pub admin: Option<Admin>,
    pub shutdown: Shutdown,
    pub log: Log,
    /// From the environment alone.
    pub proxies: Proxies,
    /// What else the environment says.
    pub variables: Vec<Variable>,
}

/// What an agent serves, and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// At least one; no two are the same.
    pub listeners: Vec<Listener>,
    pub upstream: Upstream,
}

/// Where Envoys connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub address: ListenAddress,
    /// Permissions of a unix socket, set whatever the umask is.
    pub mode: u32,
    /// The group of a unix socket; none leaves it the agent's.
    pub group: Option<Gid>,
}

/// Where configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A control plane, by ADS.
    Grpc(UpstreamAddress),
    /// No control plane: a folder of plugin files.
    Directory(PathBuf),
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    pub directory: PathBuf,
    /// Other stores' folders, to look into before a source is asked. Never written to.
    pub lower: Vec<PathBuf>,
    /// A larger module is an error.
    pub max_module_bytes: u64,
    /// Of all modules together.
    pub max_bytes: u64,
    /// What is to be left of the file system.
    pub min_free: MinFree,
    /// How long a module that nobody uses stays, while an agent is ready.
    pub expiry: Duration,
    /// How long one that an Envoy was given stays after the last sign of that Envoy, while an agent is
    /// ready.
    pub lease: Duration,
    pub proof: Proof,
}

/// What it takes to be given a module that somebody else has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// How long a credential need not show again that it may read it, while an agent is ready.
    pub lasts: Duration,
    pub when_registry_is_down: WhenDown,
}

/// What an older proof is worth while its registry does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenDown {
    AllowIfSeen,
    Deny,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    Bytes(u64),
    Percent(u8),
}

/// What a resource may name beside registries and web servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The folders below which `file://` may read.
    pub file: Vec<PathBuf>,
}

/// How modules are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// For one fetch as a whole.
    pub timeout: Duration,
    /// Without a single byte.
    pub progress_timeout: Duration,
    /// Bytes a second that a source must send on average over that time; 0 is any.
    pub min_rate: u64,
    /// How often one fetch asks again for what fails for the moment.
    pub retries: u32,
    /// For one program that gives credentials.
    pub credential_timeout: Duration,
    /// Downloads at once from one host.
    pub concurrency: usize,
    /// Downloads at once from all; more than from one.
    pub downloads: usize,
    /// How long a resource whose fetch failed waits before its failure policy's filter is sent.
    pub hold: Duration,
    /// What is sent where nobody can see whether Envoy takes the failure policy's filter.
    pub fallback: Fallback,
    /// The control plane's answer waits for fetches, `hold` at most, and says which failed.
    pub nack_fetch_failures: bool,
    /// Whether tags are looked at again; none is never.
    pub tag_refresh: Option<TagRefresh>,
}

/// What stands in for a module that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// The filter of the resource's own failure policy.
    #[default]
    Policy,
    /// Nothing: the resource is held back.
    None,
}

/// How tags are looked at again, to see whether they have moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRefresh {
    /// Between two looks at the most.
    pub interval: Duration,
    /// `HOST` or `HOST:PORT`, in lower case; none is all.
    pub registries: Option<BTreeSet<String>>,
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(120),
            progress_timeout: Duration::from_secs(30),
            min_rate: 1024,
            retries: 2,
            credential_timeout: Duration::from_secs(60),
            concurrency: 4,
            downloads: 32,
            hold: Duration::from_secs(5),
            fallback: Fallback::Policy,
            nack_fetch_failures: false,
            tag_refresh: None,
        }
    }
}

/// What the relay may hold in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// For one peer that does not read; then its stream ends.
    pub queue_bytes: u64,
    /// For all streams together; never less than the largest message.
    pub in_flight_bytes: u64,
}

impl Default for Relay {
    fn default() -> Self {
        Self { queue_bytes: 64 << 20, in_flight_bytes: 512 << 20 }
    }
}

/// What a module may have of each before it is refused unread; none is the default of `wasm`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WasmBudgets {
    pub types: Option<u64>,
    /// Parameters and results of all types together.
    pub params: Option<u64>,
    pub imports: Option<u64>,
    pub functions: Option<u64>,
    /// Of the largest single function.
    pub function_body_bytes: Option<u64>,
}

/// `/healthz`, `/readyz` and `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub listen: SocketAddr,
}

/// The administrator's page. A unix socket has mode 0600.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    pub listen: ListenAddress,
}

/// The end of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// What runs at the signal may take this long to end.
    pub timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10) }
    }
}
