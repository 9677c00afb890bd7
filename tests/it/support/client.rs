//! Plain HTTP/1.1 requests, one a connection, over TCP and unix sockets.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::soon;

#[derive(Debug, Clone)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Peer::Tcp(address)
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header's value, empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A failure to connect, or a connection that ends before its answer does.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("no whole answer: {0}")]
    Answer(#[from] hyper::Error),
}

/// Sends one request; `Host` is added where it is missing.
pub async fn send(peer: impl Into<Peer>, request: Request<Bytes>) -> Result<Answer, Broken> {
    let peer = peer.into();
    let what = format!("an answer to {} {} from {peer:?}", request.method(), request.uri());
    let exchange = async move {
        match peer {
            Peer::Tcp(address) => exchange(TcpStream::connect(address).await?, request).await,
            Peer::Unix(path) => exchange(UnixStream::connect(path).await?, request).await,
        }
    };
    soon(&what, exchange).await
}

pub async fn get(peer: impl Into<Peer>, path: &str) -> Result<Answer, Broken> {
    send(peer, request(Method::GET, path, Bytes::new())).await
}

pub fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    Request::builder().method(method).uri(path).body(body.into()).expect("a request")
}

async fn exchange<S>(stream: S, mut request: Request<Bytes>) -> Result<Answer, Broken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let host = http::HeaderValue::from_static("test");
    request.headers_mut().entry(http::header::HOST).or_insert(host);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its own errors come back through the sender.
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request.map(Full::new)).await?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}
