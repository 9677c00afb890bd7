//! A TCP proxy in front of a server, by which a test holds an answer in mid-air or takes the server away, and
//! sees who asked for what.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::soon;
use super::world::World;

/// Passes everything until told otherwise. Connections end when it is dropped.
pub struct Gate {
    address: SocketAddr,
    /// The bytes that each connection may carry from the server to the client.
    allowance: watch::Sender<u64>,
    /// How many connections have used up their allowance and have more to carry.
    held: Arc<watch::Sender<usize>>,
    /// How often all connections were cut.
    cuts: watch::Sender<usize>,
    said: Arc<Mutex<Vec<Said>>>,
    task: AbortHandle,
}

/// What a client said on one connection.
type Said = Arc<Mutex<Vec<u8>>>;

/// A request that came through, without a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
}

impl Gate {
    pub async fn in_front_of(server: SocketAddr, world: &World) -> Gate {
        let listener = TcpListener::bind(world.address()).await.expect("a free address");
        let address = listener.local_addr().expect("its address");
        let (allowance, limit) = watch::channel(u64::MAX);
        let held = Arc::new(watch::Sender::new(0));
        let counter = held.clone();
        let (cuts, cut) = watch::channel(0);
        let said = Arc::<Mutex<Vec<Said>>>::default();
        let all = said.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (limit, counter, mut cut) = (limit.clone(), counter.clone(), cut.clone());
                cut.mark_unchanged();
                let said = Said::default();
                all.lock().unwrap_or_else(PoisonError::into_inner).push(said.clone());
                connections.spawn(async move {
                    tokio::select! {
                        biased;
                        _ = cut.changed() => {}
                        () = carry(client, server, said, limit, counter) => {}
                    }
                });
            }
        });
        Gate { address, allowance, held, cuts, said, task: task.abort_handle() }
    }

    /// Where clients connect instead.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on each connection carries only this many bytes of answers, counted from its start;
    /// then it stands still.
    pub fn hold_after(&self, bytes: u64) {
        self.allowance.send_replace(bytes);
    }

    /// Lets everything pass again, what is held first.
    pub fn open(&self) {
        self.hold_after(u64::MAX);
    }

    /// Ends all connections there are; others may come.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// All requests that came so far, of clients that send no bodies; connection by connection.
    pub fn carried(&self) -> Vec<Carried> {
        let all = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let texts = all.iter().map(|said| {
            String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
        });
        let heads = texts.flat_map(|text| text.split("\r\n\r\n").map(str::to_owned).collect::<Vec<_>>());
        let read = |head: String| {
            let (first, headers) = head.split_once("\r\n")?;
            let mut first = first.split(' ');
            let mut headers = headers.lines().filter_map(|line| line.split_once(": "));
            let authorization = headers.find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
            Some(Carried {
                method: first.next()?.to_owned(),
                path: first.next()?.to_owned(),
                authorization: authorization.map(|(_, value)| value.to_owned()),
            })
        };
        heads.filter_map(read).collect()
    }

    /// Waits until at least one connection stands still with bytes to carry.
    pub async fn held(&self) {
        let mut held = self.held.subscribe();
        soon("an answer that is held", held.wait_for(|count| *count > 0)).await.expect("the gate's sender");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    said: Said,
    limit: watch::Receiver<u64>,
    held: Arc<watch::Sender<usize>>,
) {
    // Where the server is gone, the client's connection just ends.
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let _ = carry_requests(&mut from_client, &mut to_server, &said).await;
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = carry_answers(&mut from_server, &mut to_client, limit, &held).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}

async fn carry_requests(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    said: &Mutex<Vec<u8>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        said.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
        to.write_all(&buffer[..read]).await?;
    }
}

async fn carry_answers(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut limit: watch::Receiver<u64>,
    held: &watch::Sender<usize>,
) -> std::io::Result<()> {
    let mut carried: u64 = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let allowed = limit.borrow_and_update().saturating_sub(carried);
            if allowed == 0 {
                let standing = Standing::new(held);
                let changed = limit.changed().await;
                drop(standing);
                if changed.is_err() {
                    return Ok(());
                }
                continue;
            }
            let now = rest.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
            to.write_all(&rest[..now]).await?;
            carried += now as u64;
            rest = &rest[now..];
        }
    }
}

/// A connection that is held, until it is not or is cut.
struct Standing<'a>(&'a watch::Sender<usize>);

impl<'a> Standing<'a> {
    fn new(held: &'a watch::Sender<usize>) -> Self {
        held.send_modify(|count| *count += 1);
        Standing(held)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
