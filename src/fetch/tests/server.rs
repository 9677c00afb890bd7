//! A small HTTP/1.1 server that misbehaves on request, and remembers what it was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// A request that arrived.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
    /// Which of the server's connections it came over, from 0.
    pub(super) connection: usize,
}

impl Seen {
    /// The target without its query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The connection ends without an answer.
    HangUp,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Silence after so many bytes of the body.
    Stall(usize),
    /// One byte of the body at a time, with so much time between two.
    Drip(Duration),
    /// No length is declared: the body comes in chunks.
    Chunked,
    /// The body comes in chunks, again and again, for as long as somebody reads.
    Endless,
    /// A head without end.
    EndlessHead,
    /// Silence instead of an answer.
    Mute,
    /// The body stands for the whole answer, head and all; what follows its first so many bytes comes
    /// again and again.
    Raw(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) fault: Fault,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Reply { status, headers: Vec::new(), body: Vec::new(), fault: Fault::None }
    }

    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Reply { body: body.into(), ..Reply::new(200) }
    }

    pub(super) fn redirect(to: &str) -> Self {
        Reply::new(302).header("Location", to)
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A server on a loopback port of its own; ends when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// How many connections have ended.
    pub(super) ended: watch::Receiver<usize>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    pub(super) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", None, handler).await
    }

    pub(super) async fn start_at(
        address: &str,
        tls: Option<TlsAcceptor>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let handler: Handler = Arc::new(handler);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (ended_sender, ended) = watch::channel(0);
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (handler, log, tls) = (handler.clone(), log.clone(), tls.clone());
                let ended = ended_sender.clone();
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, connection, &handler, &log).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, connection, &handler, &log).await,
                            Err(_) => None,
                        },
                    };
                    ended.send_modify(|count| *count += 1);
                });
            }
        });
        Server { address, seen, ended, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Methods and paths, without queries.
    pub(super) fn asked(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path())).collect()
    }

    /// `http://ADDRESS` and a path.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Answers requests until either side ends the connection, which it tells by `None`.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    connection: usize,
    handler: &Handler,
    log: &Mutex<Vec<Seen>>,
) -> Option<()> {
    loop {
        let seen = read_request(&mut stream, connection).await?;
        log.lock().unwrap().push(seen.clone());
        let reply = handler(&seen);
        write_reply(&mut stream, reply).await?;
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, connection: usize) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        // A TLS client has come to a server of plain http.
        if !head[0].is_ascii_uppercase() {
            return None;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen { method, target, headers, body: String::from_utf8(body).unwrap(), connection })
}

async fn write_reply<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, reply: Reply) -> Option<()> {
    let Reply { status, headers, body, fault } = reply;
    match fault {
        Fault::Mute => return silence(stream).await,
        Fault::HangUp => return None,
        _ => {}
    }
    if let Fault::Raw(from) = fault {
        stream.write_all(&body[..from]).await.ok()?;
        let again = body[from..].repeat(4096 / (body.len() - from) + 1);
        loop {
            stream.write_all(&again).await.ok()?;
        }
    }
    let mut head = format!("HTTP/1.1 {status} x\r\n");
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match fault {
        Fault::EndlessHead => loop {
            stream.write_all(format!("{head}x: {}\r\n", "x".repeat(4096)).as_bytes()).await.ok()?;
            head.clear();
        },
        Fault::Chunked | Fault::Endless => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        _ => head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len())),
    }
    stream.write_all(head.as_bytes()).await.ok()?;
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
    match fault {
        Fault::Cut(after) => {
            stream.write_all(&body[..after]).await.ok()?;
            stream.shutdown().await.ok()?;
            None
        }
        Fault::Stall(after) => {
            stream.write_all(&body[..after]).await.ok()?;
            silence(stream).await
        }
        Fault::Drip(pause) => {
            for byte in body {
                stream.write_all(&[byte]).await.ok()?;
                tokio::time::sleep(pause).await;
            }
            Some(())
        }
        Fault::Chunked => stream.write_all(&[&chunk[..], b"0\r\n\r\n"].concat()).await.ok(),
        Fault::Endless => loop {
            stream.write_all(&chunk).await.ok()?;
        },
        _ => stream.write_all(&body).await.ok(),
    }
}

/// Waits for the client to go.
async fn silence<S: AsyncRead + Unpin>(stream: &mut S) -> Option<()> {
    while stream.read(&mut [0; 1024]).await.ok()? > 0 {}
    None
}
