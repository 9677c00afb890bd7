//! A TCP proxy in front of a server, by which a test holds an answer in mid-air or takes the server away.

use std::net::SocketAddr;
use std::sync::Arc;

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
    task: AbortHandle,
}

impl Gate {
    pub async fn in_front_of(server: SocketAddr, world: &World) -> Gate {
        let listener = TcpListener::bind(world.address()).await.expect("a free address");
        let address = listener.local_addr().expect("its address");
        let (allowance, limit) = watch::channel(u64::MAX);
        let held = Arc::new(watch::Sender::new(0));
        let counter = held.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server, limit.clone(), counter.clone()));
            }
        });
        Gate { address, allowance, held, task: task.abort_handle() }
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
    limit: watch::Receiver<u64>,
    held: Arc<watch::Sender<usize>>,
) {
    // Where the server is gone, the client's connection just ends.
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = carry_answers(&mut from_server, &mut to_client, limit, &held).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
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
                held.send_modify(|count| *count += 1);
                let changed = limit.changed().await;
                held.send_modify(|count| *count -= 1);
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
