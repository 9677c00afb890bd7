//! What the agent's relay is compared with: the least that a relay written with tonic can do. It passes
//! each message on as the bytes that it is, in a process of its own.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::server::{Grpc, NamedService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use crate::envoy_side::{MAX_MESSAGE, channel, path};
use crate::support::control_plane::{Protocol, Raw};
use crate::support::envoy::Xds;

/// An address as it is given to this process: `unix:PATH` or `HOST:PORT`.
pub fn address(text: &str) -> Xds {
    match text.strip_prefix("unix:") {
        Some(path) => Xds::Unix(path.into()),
        None => Xds::Tcp(text.parse().expect("an address")),
    }
}

/// Relays until it is killed.
pub async fn relay(listen: Xds, upstream: Xds) {
    let relay = Relay { upstream: channel(&upstream) };
    let server = Server::builder().add_service(relay);
    match listen {
        Xds::Tcp(address) => {
            let listener = TcpListener::bind(address).await.expect("a free address");
            server.serve_with_incoming(TcpListenerStream::new(listener)).await
        }
        Xds::Unix(path) => {
            let listener = UnixListener::bind(path).expect("a free path");
            server.serve_with_incoming(UnixListenerStream::new(listener)).await
        }
    }
    .expect("a server");
}

#[derive(Clone)]
struct Relay {
    upstream: Channel,
}

impl NamedService for Relay {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<tonic::body::Body>> for Relay {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut grpc =
            Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        let stream = OneStream(self.upstream.clone());
        Box::pin(async move { Ok(grpc.streaming(stream, request).await) })
    }
}

struct OneStream(Channel);

impl Service<Request<Streaming<Bytes>>> for OneStream {
    type Response = Response<Streaming<Bytes>>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let mut client = tonic::client::Grpc::new(self.0.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Box::pin(async move {
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let requests = request.into_inner().map_while(Result::ok);
            client.streaming(Request::new(requests), path(Protocol::Sotw), Raw).await
        })
    }
}
