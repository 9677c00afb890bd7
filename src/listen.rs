//! Sockets that others connect to: addresses, binding, accepting. Knows nothing of what is spoken.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

/// A connection of either kind.
pub type Connection = Either<UnixStream, TcpStream>;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    Unix(PathBuf),
    /// Port 0 lets the system choose.
    Tcp(SocketAddr),
}

impl ListenAddress {
    /// The path, where it is a unix socket.
    pub fn unix_path(&self) -> Option<&Path> {
        match self {
            ListenAddress::Unix(path) => Some(path),
            ListenAddress::Tcp(_) => None,
        }
    }
}

/// As it is written in a configuration.
impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddress::Tcp(address) => address.fmt(f),
        }
    }
}

/// How a unix socket is given to its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits.
    pub mode: u32,
    /// Group id; none leaves the process's own.
    pub group: Option<u32>,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}: another process serves that socket")]
    Taken { address: ListenAddress },
    #[error("cannot listen on {address}: the path exists and is no socket")]
    NotASocket { address: ListenAddress },
    #[error("cannot listen on {address}: cannot give the socket to group {group}: {source}")]
    Group { address: ListenAddress, group: u32, source: io::Error },
    #[error("cannot listen on {address}: {source}")]
    Io { address: ListenAddress, source: io::Error },
}

/// A socket that is bound and accepts nobody yet.
#[derive(Debug)]
pub struct Bound {
    /// With the real port.
    pub address: ListenAddress,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    /// The file is there to be removed when this is dropped.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
    Tcp(TcpListener),
}

/// A socket's file, removed on drop if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds an address. A dead socket's file is replaced, a living socket's never; the mode is set
/// before the socket appears under its name.
pub async fn bind(address: &ListenAddress, access: SocketAccess) -> Result<Bound, BindError> {
    let io = |source| BindError::Io { address: address.clone(), source };
    match address {
        ListenAddress::Tcp(wanted) => {
            let listener = TcpListener::bind(wanted).await.map_err(io)?;
            let address = ListenAddress::Tcp(listener.local_addr().map_err(io)?);
            Ok(Bound { address, socket: Socket::Tcp(listener) })
        }
        ListenAddress::Unix(path) => {
            match std::fs::symlink_metadata(path) {
                Ok(found) if !found.file_type().is_socket() => {
                    return Err(BindError::NotASocket { address: address.clone() });
                }
                Ok(_) => match UnixStream::connect(path).await {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Ok(_) => return Err(BindError::Taken { address: address.clone() }),
                    Err(source) => return Err(io(source)),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(io(source)),
            }
            let (listener, file) = bind_unix(path, access).map_err(|fault| match fault {
                UnixFault::Io(source) => io(source),
                UnixFault::Group(group, source) => {
                    BindError::Group { address: address.clone(), group, source }
                }
            })?;
            Ok(Bound { address: address.clone(), socket: Socket::Unix { listener, _file: file } })
        }
    }
}

enum UnixFault {
    Io(io::Error),
    Group(u32, io::Error),
}

fn bind_unix(path: &Path, access: SocketAccess) -> Result<(UnixListener, SocketFile), UnixFault> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(UnixFault::Io)?;
    let prepare = || {
        if let Some(group) = access.group {
            std::os::unix::fs::chown(&temporary, None, Some(group))
                .map_err(|source| UnixFault::Group(group, source))?;
        }
        let mode = std::fs::Permissions::from_mode(access.mode);
        std::fs::set_permissions(&temporary, mode).map_err(UnixFault::Io)?;
        let inode = std::fs::symlink_metadata(&temporary).map_err(UnixFault::Io)?.ino();
        std::fs::rename(&temporary, path).map_err(UnixFault::Io)?;
        Ok(SocketFile { path: path.to_owned(), inode })
    };
    match prepare() {
        Ok(file) => Ok((listener, file)),
        Err(fault) => {
            let _ = std::fs::remove_file(&temporary);
            Err(fault)
        }
    }
}

impl Bound {
    /// The next connection. Cancel safe.
    pub async fn accept(&self) -> io::Result<Connection> {
        match &self.socket {
            Socket::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Either::Left(stream)),
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Messages are written whole; there is nothing to collect for.
                let _ = stream.set_nodelay(true);
                Ok(Either::Right(stream))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: SocketAccess = SocketAccess { mode: 0o660, group: None };

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let address = ListenAddress::Unix(dir.path().join("xds.sock"));
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("xds.sock")).unwrap());
        let bound = bind(&address, ACCESS).await.expect("nobody listens on the file that is there");
        let error = bind(&address, ACCESS).await.unwrap_err();
        assert!(matches!(error, BindError::Taken { .. }), "{error}");
        drop(bound);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file goes with the socket");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xds.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&ListenAddress::Unix(path.clone()), ACCESS).await.unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_sockets_mode_is_what_was_configured() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xds.sock");
        for mode in [0o600, 0o660, 0o666] {
            let access = SocketAccess { mode, group: None };
            let _bound = bind(&ListenAddress::Unix(path.clone()), access).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, mode);
        }
    }

    #[tokio::test]
    async fn port_zero_is_reported_as_the_port_that_was_chosen() {
        let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let bound = bind(&address, ACCESS).await.unwrap();
        assert!(matches!(bound.address, ListenAddress::Tcp(real) if real.port() != 0));
    }
}
