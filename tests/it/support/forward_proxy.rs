//! A forward proxy that knows some names and wants a password: `CONNECT`, and whole URLs in plain HTTP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::world::World;

/// `alice:hunter2` as a header has it.
const LOGIN: &str = "proxy-authorization: Basic YWxpY2U6aHVudGVyMg==";

pub struct ForwardProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    // Aborts its tasks on drop.
    _server: JoinSet<()>,
}

impl ForwardProxy {
    /// Leads each `HOST:PORT` to an address.
    pub async fn start(world: &World, names: HashMap<String, SocketAddr>) -> ForwardProxy {
        let address = world.address();
        let listener = TcpListener::bind(address).await.expect("a free address");
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let (names, log) = (Arc::new(names), seen.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                ways.spawn(way(stream, names.clone(), log.clone()));
            }
        });
        ForwardProxy { address, seen, _server: server }
    }

    /// With the user and password that it wants.
    pub fn url(&self) -> String {
        format!("http://alice:hunter2@{}", self.address)
    }

    /// With another password.
    pub fn wrong_url(&self) -> String {
        format!("http://alice:hunter3@{}", self.address)
    }

    /// The first line of each connection.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn way(
    stream: TcpStream,
    names: Arc<HashMap<String, SocketAddr>>,
    log: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let first = head.lines().next()?.to_owned();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(first.clone());
    if !head.to_ascii_lowercase().contains(&LOGIN.to_ascii_lowercase()) {
        stream.write_all(b"HTTP/1.1 407 x\r\ncontent-length: 0\r\n\r\n").await.ok()?;
        return None;
    }
    let target = first.split(' ').nth(1)?;
    let authority = match target.strip_prefix("http://") {
        Some(rest) => rest.split('/').next()?.to_owned(),
        None => target.to_owned(),
    };
    let authority = if authority.contains(':') { authority } else { format!("{authority}:80") };
    let Some(address) = names.get(&authority) else {
        stream.write_all(b"HTTP/1.1 502 x\r\ncontent-length: 0\r\n\r\n").await.ok()?;
        return None;
    };
    let mut server = TcpStream::connect(address).await.ok()?;
    match first.starts_with("CONNECT ") {
        true => stream.write_all(b"HTTP/1.1 200 x\r\n\r\n").await.ok()?,
        // Servers take whole URLs too (RFC 9112, 3.2.2).
        false => server.write_all(head.as_bytes()).await.ok()?,
    }
    copy_bidirectional(&mut stream, &mut server).await.ok().map(drop)
}
