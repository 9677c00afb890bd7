//! A server that gives every call the same answer: what a control plane should not say.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::envoy::Xds;

/// What it says.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status and headers.
    pub head: Response<()>,
    /// The bytes of the body, which ends only where `ends`.
    pub body: Bytes,
    pub ends: bool,
}

impl Answer {
    /// A gRPC answer that never ends.
    pub fn grpc(body: impl Into<Bytes>) -> Answer {
        let head = Response::builder().header("content-type", "application/grpc");
        Answer { head: head.body(()).expect("a response"), body: body.into(), ends: false }
    }
}

/// Its connections end when it is dropped.
pub struct Answering {
    pub address: Xds,
    // Aborts its tasks on drop.
    _server: JoinSet<()>,
}

impl Answering {
    pub async fn listen(address: std::net::SocketAddr, answer: Answer) -> Answering {
        let listener = TcpListener::bind(address).await.expect("a free address");
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |_| {
                    let Answer { head, body, ends } = answer.clone();
                    let body = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(body))]);
                    let rest = futures_util::stream::pending().take(if ends { 0 } else { 1 });
                    async move { Ok::<_, Infallible>(head.map(|()| StreamBody::new(body.chain(rest)))) }
                });
                connections.spawn(async move {
                    let server = http2::Builder::new(TokioExecutor::new());
                    _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Answering { address: Xds::Tcp(address), _server: server }
    }
}
