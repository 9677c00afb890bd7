//! Why the store could not do something. Paths are named, what was stored and for whom never is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What was done to a file or folder when it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Resolve,
    MakeFolder,
    OpenFolder,
    List,
    SyncFolder,
    Create,
    Open,
    Inspect,
    SetMode,
    Lock,
    Read,
    Write,
    Truncate,
    Sync,
    Link,
    Rename,
    Remove,
    Stamp,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "find",
            Self::MakeFolder => "create the folder",
            Self::OpenFolder => "open the folder",
            Self::List => "list the folder",
            Self::SyncFolder => "sync the folder",
            Self::Create => "create",
            Self::Open => "open",
            Self::Inspect => "inspect",
            Self::SetMode => "set the mode of",
            Self::Lock => "lock",
            Self::Read => "read",
            Self::Write => "write to",
            Self::Truncate => "cut off the end of",
            Self::Sync => "sync",
            Self::Link => "create the link",
            Self::Rename => "rename a file to",
            Self::Remove => "remove",
            Self::Stamp => "set the time of",
        })
    }
}

/// Why the store refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{path} belongs to user {owner} and this process runs as user {user}: the store must belong to the \
         user that writes it; name a folder that does not exist yet and it is created"
    )]
    NotOurs { path: PathBuf, owner: u32, user: u32 },

    #[error(
        "{path} can be written by its group or by others (mode {mode:04o}): only its owner may write to the \
         store; take that right away, or name a folder that does not exist yet and it is created"
    )]
    WritableByOthers { path: PathBuf, mode: u32 },

    #[error("{path} has mode {mode:04o}, where the store keeps {expected:04o}: others could look inside")]
    Mode { path: PathBuf, mode: u32, expected: u32 },

    #[error("{path} is not a folder")]
    NotAFolder { path: PathBuf },

    #[error("{path} is not a regular file")]
    NotAFile { path: PathBuf },

    #[error("{path} is a symbolic link, and the store follows none")]
    Link { path: PathBuf },

    #[error("{path} is on a read-only file system, and the store must be written to")]
    ReadOnly { path: PathBuf },

    #[error("no space, or no quota, is left for {path}")]
    NoSpace { path: PathBuf },

    #[error(
        "the module has {size} bytes and does not fit into the store, which may hold {limit} and holds \
         {held} in {modules} modules; of these {leased} are leased by Envoys, {pinned} pinned and {recent} \
         used within the last ten minutes: raise cache.max_bytes"
    )]
    Full { size: u64, limit: u64, held: u64, modules: u64, leased: u64, pinned: u64, recent: u64 },

    #[error(
        "the path of the store, {path:?}, is not UTF-8 text, so that no resource could name a file in it"
    )]
    NotText { path: PathBuf },

    #[error(
        "the key {path} is not {expected} bytes long; once it is removed, a new one is made and what \
             was pulled with credentials is pulled again"
    )]
    Key { path: PathBuf, expected: usize },

    #[error("the index entry is {size} bytes long, more than the {limit} that are read back")]
    RecordTooLarge { size: usize, limit: u64 },

    #[error("an earlier write of this ingest failed")]
    Broken,

    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),

    #[error("could not {operation} {path}: {source}")]
    Io { operation: Operation, path: PathBuf, source: io::Error },
}

impl StoreError {
    /// The metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotOurs { .. } => "store_not_ours",
            Self::WritableByOthers { .. } => "store_writable_by_others",
            Self::Mode { .. } => "store_mode",
            Self::NotAFolder { .. } => "store_not_a_folder",
            Self::NotAFile { .. } => "store_not_a_file",
            Self::Link { .. } => "store_link",
            Self::ReadOnly { .. } => "store_read_only",
            Self::NoSpace { .. } => "store_no_space",
            Self::Full { .. } => "store_full",
            Self::NotText { .. } => "store_not_text",
            Self::Key { .. } => "store_key",
            Self::RecordTooLarge { .. } => "store_record_too_large",
            Self::Broken => "store_broken",
            Self::Random(_) => "store_random",
            Self::Io { .. } => "store_io",
        }
    }

    /// Takes the store's error out of one that came through `io::Write` or `io::Read`.
    pub fn from_io(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(|source| Self::Io {
            operation: Operation::Write,
            path: "ingest".into(),
            source,
        })
    }

    pub(super) fn new(operation: Operation, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::ROFS => Self::ReadOnly { path },
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path },
            Errno::LOOP => Self::Link { path },
            errno => Self::Io { operation, path, source: errno.into() },
        }
    }
}

/// For `io::Write` and `io::Read`; [`StoreError::from_io`] is the way back.
impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } => source.kind(),
            StoreError::NoSpace { .. } | StoreError::Full { .. } => io::ErrorKind::StorageFull,
            StoreError::ReadOnly { .. } => io::ErrorKind::ReadOnlyFilesystem,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
