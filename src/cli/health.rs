//! Asks a running agent whether it is ready. A client of its own, since an image from scratch has no
//! curl.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::clock::{Clock, Elapsed};
use crate::config::{Config, ListenAddress};

/// For connecting, asking and the answer's head together.
const DEADLINE: Duration = Duration::from_secs(3);

/// Where an agent answers `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(ListenAddress);

/// The agent is not ready, as far as can be told.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("not ready: {target} answers {status}")]
    Answer { target: Target, status: StatusCode },
    #[error("not ready: cannot connect to {target}: {source}")]
    Connect { target: Target, source: io::Error },
    #[error("not ready: {target} does not speak HTTP: {source}")]
    Protocol { target: Target, source: hyper::Error },
    #[error("not ready: no answer from {target} within {} s", DEADLINE.as_secs())]
    Silent { target: Target, source: Elapsed },
}

impl Target {
    /// The health address, else the admin's; none where neither is configured or the system chose the
    /// port.
    pub fn of(config: &Config) -> Option<Self> {
        let health = config.health.as_ref().map(|health| ListenAddress::Tcp(health.listen));
        let admin = || config.admin.as_ref().map(|admin| admin.listen.clone());
        match health.or_else(admin)? {
            ListenAddress::Tcp(address) if address.port() == 0 => None,
            ListenAddress::Tcp(address) => Some(Self(ListenAddress::Tcp(reachable(address)))),
            unix => Some(Self(unix)),
        }
    }
}

/// Who listens everywhere is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Asks, for three seconds at most; only the answer 200 means ready.
pub async fn ask(target: &Target, clock: &Clock) -> Result<(), NotReady> {
    let answer = clock.timeout_at(clock.now() + DEADLINE, answer(target)).await;
    match answer.map_err(|source| NotReady::Silent { target: target.clone(), source })?? {
        StatusCode::OK => Ok(()),
        status => Err(NotReady::Answer { target: target.clone(), status }),
    }
}

async fn answer(target: &Target) -> Result<StatusCode, NotReady> {
    let connect = |source| NotReady::Connect { target: target.clone(), source };
    let status = match &target.0 {
        ListenAddress::Tcp(address) => get(TcpStream::connect(address).await.map_err(connect)?).await,
        ListenAddress::Unix(path) => get(UnixStream::connect(path).await.map_err(connect)?).await,
    };
    status.map_err(|source| NotReady::Protocol { target: target.clone(), source })
}

async fn get<S>(stream: S) -> hyper::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static("/readyz");
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
    // The connection ends when the sender and the answer, whose body nobody reads, are gone.
    let status = async move { sender.send_request(request).await.map(|answer| answer.status()) };
    let (status, _) = tokio::join!(status, connection);
    status
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::clock::ManualClock;
    use crate::config::{Environment, Loader, Overrides};

    fn target(lines: &str) -> Option<Target> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let agent = "version: 1\nlisteners: [{address: unix:/a}]\nupstream: {directory: /p}\n";
        std::fs::write(&file, format!("{agent}{lines}")).unwrap();
        let overrides = Overrides { cache_directory: Some("/c".into()), concurrency: None };
        Target::of(&Loader::new(Some(file), &Environment::default(), overrides).load_agent().unwrap())
    }

    fn shown(lines: &str) -> Option<String> {
        target(lines).map(|target| target.to_string())
    }

    /// Takes one request, checks it, and answers.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &str) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        assert!(request.starts_with(b"GET /readyz HTTP/1.1\r\n"), "{}", request.escape_ascii());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    async fn outcome(answer: &str) -> Result<(), NotReady> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target(ListenAddress::Tcp(listener.local_addr().unwrap()));
        let server = async { serve(listener.accept().await.unwrap().0, answer).await };
        tokio::join!(ask(&target, &Clock::System), server).0
    }

    #[test]
    fn health_is_asked_first_and_on_loopback_then_admin() {
        let admin = "admin: {listen: \"unix:/admin.sock\"}\n";
        let with_health = |address: &str| shown(&format!("{admin}health: {{listen: \"{address}\"}}\n"));
        assert_eq!(with_health("[::]:15074").unwrap(), "[::1]:15074");
        assert_eq!(with_health("0.0.0.0:15074").unwrap(), "127.0.0.1:15074");
        assert_eq!(with_health("10.1.2.3:15074").unwrap(), "10.1.2.3:15074");
        assert_eq!(shown(admin).unwrap(), "unix:/admin.sock");
        assert_eq!(shown(""), None);
        assert_eq!(shown("health: {listen: \"[::]:0\"}"), None);
    }

    #[tokio::test]
    async fn only_200_means_ready() {
        outcome("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").await.unwrap();
        outcome("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok").await.unwrap();
        let error =
            outcome("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await.unwrap_err();
        assert!(error.to_string().ends_with("answers 503 Service Unavailable"), "{error}");
        assert!(outcome("HTTP/1.1 204 No Content\r\n\r\n").await.is_err());
    }

    #[tokio::test]
    async fn who_speaks_something_else_or_closes_is_not_ready() {
        for answer in ["SSH-2.0-OpenSSH\r\n", ""] {
            assert!(matches!(outcome(answer).await, Err(NotReady::Protocol { .. })), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_asked_and_a_missing_one_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let target = Target(ListenAddress::Unix(path.clone()));
        let error = ask(&target, &Clock::System).await.unwrap_err();
        assert!(matches!(error, NotReady::Connect { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async { serve(listener.accept().await.unwrap().0, "HTTP/1.1 200 OK\r\n\r\n").await };
        tokio::join!(ask(&target, &Clock::System), server).0.unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_says_nothing_is_given_up_after_three_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target(ListenAddress::Tcp(listener.local_addr().unwrap()));
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        let clock = Clock::Manual(manual.clone());
        let silent = async {
            let connection = listener.accept().await.unwrap();
            manual.advance(DEADLINE);
            connection
        };
        let (asked, _connection) = tokio::join!(ask(&target, &clock), silent);
        assert!(matches!(asked, Err(NotReady::Silent { .. })));
    }
}
