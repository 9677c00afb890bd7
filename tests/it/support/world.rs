//! A test's own folder, loopback address and users.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use tempfile::TempDir;

/// Who a process runs as. Where the tests themselves do not run as root, all are the tests' user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Tests,
    /// 1337:1337, as in an Istio proxy.
    Envoy,
    /// 1338:1338, with Envoy's group besides, so that it may hand its socket to that group.
    Agent,
    /// 1339:1339, who has nothing to do with either.
    Stranger,
}

impl User {
    /// User id, group id and all groups, where it differs from who runs the tests.
    pub fn ids(self) -> Option<(u32, u32, &'static str)> {
        match self {
            _ if !is_root() => None,
            User::Tests => None,
            User::Envoy => Some((1337, 1337, "1337")),
            User::Agent => Some((1338, 1338, "1338,1337")),
            User::Stranger => Some((1339, 1339, "1339")),
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The group through which Envoy reaches the agent's socket.
pub fn envoy_group() -> u32 {
    User::Envoy.ids().map_or_else(|| rustix::process::getegid().as_raw(), |(_, gid, _)| gid)
}

/// The place in which one test happens. Declare it before the processes that live in it, so that it
/// is dropped after them.
pub struct World {
    root: TempDir,
    address: Ipv4Addr,
    next_port: AtomicU16,
}

impl World {
    pub fn new() -> World {
        let root = tempfile::Builder::new()
            .prefix("wasmferry-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .expect("a temporary folder");
        World { root, address: own_loopback_address(), next_port: AtomicU16::new(10_000) }
    }

    /// The folder of everything, which all users may pass.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// A folder below it that belongs to a user, made where it is missing.
    pub fn folder(&self, name: &str, user: User, mode: u32) -> PathBuf {
        let path = self.path().join(name);
        if !path.exists() {
            fs::create_dir_all(&path).expect("a folder");
        }
        own(&path, user);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
        path
    }

    /// Writes a file that belongs to a user, in one step: what watches the folder never sees half.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>, user: User, mode: u32) -> PathBuf {
        let path = self.path().join(name);
        let beside =
            path.with_file_name(format!(".{}.new", path.file_name().expect("a file name").to_string_lossy()));
        fs::write(&beside, content).expect("a file");
        own(&beside, user);
        fs::set_permissions(&beside, Permissions::from_mode(mode)).expect("a mode");
        fs::rename(&beside, &path).expect("a rename");
        path
    }

    /// An address that nothing else uses: this world's own loopback address and a fresh port.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.next_port.fetch_add(1, Ordering::Relaxed)))
    }

    /// The program at `path`, where other users can reach it: there, or linked into this world.
    pub fn executable(&self, path: &Path) -> PathBuf {
        let path = path
            .canonicalize()
            .unwrap_or_else(|error| panic!("{}: {error}; `make tools` gets it", path.display()));
        let passable = |folder: &Path| {
            folder.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
        };
        if !is_root() || path.ancestors().all(passable) {
            return path;
        }
        let here = self.folder("bin", User::Tests, 0o755).join(path.file_name().expect("a file name"));
        if !here.exists() && fs::hard_link(&path, &here).is_err() {
            fs::copy(&path, &here).expect("a copy of the program");
        }
        here
    }
}

/// The file of one of the tools that `make tools` brings.
pub fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin").join(name)
}

fn own(path: &Path, user: User) {
    if let Some((uid, gid, _)) = user.ids() {
        chown(path, Some(uid), Some(gid)).expect("an owner");
    }
}

/// All of 127.0.0.0/8 is loopback: an address for each world keeps fixed ports apart, those of two
/// test runs on one machine too, and a stopped server finds its port free when it starts again.
fn own_loopback_address() -> Ipv4Addr {
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let world = WORLDS.fetch_add(1, Ordering::Relaxed) % 254 + 1;
    Ipv4Addr::new(127, high, low, world as u8)
}
