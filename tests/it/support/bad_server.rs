//! A server that answers as a test says, misbehaves on request, and remembers what it was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::registry::{OCI_MANIFEST, digest};
use super::world::World;

/// A request that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub fault: Fault,
}

/// What goes wrong with a reply.
#[derive(Debug, Clone)]
pub enum Fault {
    None,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Silence after so many bytes of the body, for as long as the client waits.
    Stalled(usize),
    /// One byte of the body after the other, with so much time between two.
    Drip(Duration),
    /// The body waits for a permit, and uses it up.
    Held(Arc<Semaphore>),
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), body: Vec::new(), fault: Fault::None }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply { body: body.into(), ..Reply::status(200) }
    }

    /// These bytes, or those of them that the request asks for.
    pub fn part(body: &[u8], seen: &Seen) -> Reply {
        let from = seen.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let Some(from) = from.and_then(|from| from.parse::<usize>().ok()) else { return Reply::ok(body) };
        let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
        Reply { status: 206, ..Reply::ok(&body[from..]) }.header("content-range", &range)
    }

    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn fault(self, fault: Fault) -> Reply {
        Reply { fault, ..self }
    }
}

type Handler = Box<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    routes: BTreeMap<String, Reply>,
    handler: Option<Handler>,
    seen: Vec<Seen>,
}

/// Listens until it is dropped. What it has no answer for is a 404.
pub struct BadServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    at_once: Arc<AtOnce>,
    // Aborts its tasks on drop.
    _server: JoinSet<()>,
}

/// How many answers are under way.
#[derive(Default)]
struct AtOnce {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl BadServer {
    pub async fn start(world: &World) -> BadServer {
        let address = world.address();
        let listener = TcpListener::bind(address).await.expect("a free address");
        let (state, at_once) = (Arc::<Mutex<State>>::default(), Arc::<AtOnce>::default());
        let mut server = JoinSet::new();
        server.spawn({
            let (state, at_once) = (state.clone(), at_once.clone());
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(connection(stream, state.clone(), at_once.clone()));
                }
            }
        });
        BadServer { address, state, at_once, _server: server }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS` and a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers this path from now on; gives its URL.
    pub fn put(&self, path: &str, reply: Reply) -> String {
        self.lock().routes.insert(path.into(), reply);
        self.url(path)
    }

    /// Asks the handler first, whose None leaves it to the paths.
    pub fn handle(&self, handler: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) {
        self.lock().handler = Some(Box::new(handler));
    }

    /// An image of one layer under the tag `v1`: what its manifest promises, and what is sent instead.
    /// Gives its URL.
    pub fn image(&self, repository: &str, media_type: &str, promised: &[u8], sent: Reply) -> String {
        let layer = digest(promised);
        self.put(&format!("/v2/{repository}/blobs/{layer}"), sent);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/json", "digest": digest(b"{}"), "size": 2},
            "layers": [{"mediaType": media_type, "digest": layer, "size": promised.len()}],
        });
        self.manifest(repository, manifest.to_string().into_bytes())
    }

    /// Any manifest under the tag `v1`; gives its URL.
    pub fn manifest(&self, repository: &str, manifest: Vec<u8>) -> String {
        let reply = Reply::ok(manifest).header("content-type", OCI_MANIFEST);
        self.put(&format!("/v2/{repository}/manifests/v1"), reply);
        format!("oci://{}/{repository}:v1", self.address)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// How many answers are under way now.
    pub fn answering(&self) -> usize {
        self.at_once.now.load(Ordering::SeqCst)
    }

    /// The most that ever were under way together.
    pub fn most_at_once(&self) -> usize {
        self.at_once.most.load(Ordering::SeqCst)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connection(mut stream: TcpStream, state: Arc<Mutex<State>>, at_once: Arc<AtOnce>) {
    while let Some(seen) = read_request(&mut stream).await {
        let reply = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.seen.push(seen.clone());
            let handled = state.handler.as_ref().and_then(|handler| handler(&seen));
            handled.or_else(|| state.routes.get(&seen.path).cloned()).unwrap_or(Reply::status(404))
        };
        let now = at_once.now.fetch_add(1, Ordering::SeqCst) + 1;
        at_once.most.fetch_max(now, Ordering::SeqCst);
        let written = write_reply(&mut stream, reply).await;
        at_once.now.fetch_sub(1, Ordering::SeqCst);
        if written.is_none() {
            return;
        }
    }
}

/// None where the client is done.
async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let header = |wanted: &str| {
        let mut headers = lines.clone().filter_map(|line| line.split_once(": "));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned())
    };
    let (authorization, range) = (header("authorization"), header("range"));
    Some(Seen { method, path, authorization, range })
}

/// None where the connection has to end.
async fn write_reply(stream: &mut TcpStream, reply: Reply) -> Option<()> {
    let Reply { status, headers, body, fault } = reply;
    let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    match fault {
        Fault::None => {}
        Fault::Cut(after) => {
            stream.write_all(&body[..after]).await.ok()?;
            stream.shutdown().await.ok()?;
            return None;
        }
        Fault::Stalled(after) => {
            stream.write_all(&body[..after]).await.ok()?;
            while stream.read(&mut [0; 64]).await.ok()? > 0 {}
            return None;
        }
        Fault::Drip(pause) => {
            for byte in &body {
                stream.write_all(&[*byte]).await.ok()?;
                tokio::time::sleep(pause).await;
            }
            return Some(());
        }
        Fault::Held(permits) => permits.acquire().await.ok()?.forget(),
    }
    stream.write_all(&body).await.ok()
}
