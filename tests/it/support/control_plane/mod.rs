//! A control plane that does what a test says, on tonic's raw codec: the test sees each request's own
//! bytes, and answers with bytes of its own where that matters.
//!
//! - [`ControlPlane::accept`] gives the next stream as it is: [`Accepted`].
//! - [`script::Script`] on top of it checks every version and nonce ([`ledger`]).
//! - [`answer::Answering`] says what no control plane should.
//! - [`serve::Serving`] is a plain control plane that serves a set of resources to all who come.
//! - [`doubles::Double`] serves them as one of two real control planes would, quirks included.

pub mod answer;
pub mod doubles;
pub mod ledger;
pub mod script;
pub mod serve;

use std::convert::Infallible;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};

use super::envoy::Xds;
use super::soon;

/// The largest message that it takes and sends.
const MAX_MESSAGE: usize = 256 << 20;

/// The protocol of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Sotw,
    Delta,
}

impl Protocol {
    pub const BOTH: [Protocol; 2] = [Protocol::Sotw, Protocol::Delta];
}

/// The service of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// ADS: all types.
    Aggregated,
    /// ECDS alone.
    ExtensionConfigs,
}

impl Service {
    pub const BOTH: [Service; 2] = [Service::Aggregated, Service::ExtensionConfigs];

    /// The path of its method for a protocol.
    pub fn path(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Service::Aggregated, Protocol::Sotw) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            (Service::Aggregated, Protocol::Delta) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            (Service::ExtensionConfigs, Protocol::Sotw) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
            }
            (Service::ExtensionConfigs, Protocol::Delta) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
            }
        }
    }

    /// The method of a path.
    fn of(path: &str) -> Option<(Service, Protocol)> {
        let methods =
            Service::BOTH.into_iter().flat_map(|service| Protocol::BOTH.map(|protocol| (service, protocol)));
        methods.into_iter().find(|(service, protocol)| service.path(*protocol) == path)
    }
}

/// A listening control plane. Its connections end when it is dropped.
pub struct ControlPlane {
    address: Xds,
    accepted: mpsc::UnboundedReceiver<Accepted>,
    // Aborts its tasks on drop.
    _server: JoinSet<()>,
}

impl ControlPlane {
    /// Listens here; on a unix socket that everybody may connect to.
    pub async fn listen(address: Xds) -> ControlPlane {
        let (streams, accepted) = mpsc::unbounded_channel();
        let mut server = JoinSet::new();
        match &address {
            Xds::Tcp(socket) => {
                let listener = TcpListener::bind(socket).await.expect("a free address");
                server.spawn(async move {
                    let mut connections = JoinSet::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        connections.spawn(connection(stream, streams.clone()));
                    }
                });
            }
            Xds::Unix(path) => {
                // A control plane that comes back finds its own dead socket.
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path).expect("a free path");
                std::fs::set_permissions(path, Permissions::from_mode(0o666)).expect("a mode");
                server.spawn(async move {
                    let mut connections = JoinSet::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        connections.spawn(connection(stream, streams.clone()));
                    }
                });
            }
        }
        ControlPlane { address, accepted, _server: server }
    }

    pub async fn tcp(address: SocketAddr) -> ControlPlane {
        ControlPlane::listen(Xds::Tcp(address)).await
    }

    pub async fn unix(path: PathBuf) -> ControlPlane {
        ControlPlane::listen(Xds::Unix(path)).await
    }

    pub fn address(&self) -> &Xds {
        &self.address
    }

    /// The next stream that someone opens.
    pub async fn accept(&mut self) -> Accepted {
        soon("a stream to the control plane", self.next()).await.expect("the server's sender")
    }

    async fn next(&mut self) -> Option<Accepted> {
        self.accepted.recv().await
    }

    /// Whether a stream waits to be accepted.
    pub fn has_stream(&self) -> bool {
        !self.accepted.is_empty()
    }
}

/// One stream, as it is. Nobody reads it but the test: one that is left alone stalls its peer.
pub struct Accepted {
    pub service: Service,
    pub protocol: Protocol,
    /// What came with the stream.
    pub metadata: MetadataMap,
    requests: Streaming<Bytes>,
    responses: mpsc::Sender<Result<Bytes, Status>>,
}

impl Accepted {
    /// The next request's bytes; `None` where the peer has ended the stream, an error where it broke.
    pub async fn request(&mut self) -> Result<Option<Bytes>, Status> {
        self.requests.message().await
    }

    /// Sends these bytes as one response; waits while the peer does not read.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn respond(&self, response: impl Into<Bytes>) -> Result<(), Ended> {
        self.responses.send(Ok(response.into())).await.map_err(|_| Ended)
    }

    /// Ends the stream with this status, its metadata as trailers.
    pub async fn end(self, status: Status) {
        // The peer may have gone first.
        let _ = self.responses.send(Err(status)).await;
    }
}

/// The peer has ended the stream.
#[derive(Debug)]
pub struct Ended;

async fn connection<S>(stream: S, streams: mpsc::UnboundedSender<Accepted>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let streams = streams.clone();
        async move {
            let path = request.uri().path();
            let Some((service, protocol)) = Service::of(path) else {
                return Ok(Status::unimplemented(path.to_owned()).into_http());
            };
            let mut grpc =
                Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
            Ok::<_, Infallible>(grpc.streaming(Open { service, protocol, streams }, request).await)
        }
    });
    // A connection that breaks shows in its streams.
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// Hands a new stream to the test.
struct Open {
    service: Service,
    protocol: Protocol,
    streams: mpsc::UnboundedSender<Accepted>,
}

impl tower_service::Service<Request<Streaming<Bytes>>> for Open {
    type Response = Response<ReceiverStream<Result<Bytes, Status>>>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (metadata, _, requests) = request.into_parts();
        // One message of room: a peer that does not read is felt by who sends.
        let (responses, outgoing) = mpsc::channel(1);
        let accepted =
            Accepted { service: self.service, protocol: self.protocol, metadata, requests, responses };
        let sent = self.streams.send(accepted).map_err(|_| Status::unavailable("the test is over"));
        Box::pin(async move { sent.map(|()| Response::new(ReceiverStream::new(outgoing))) })
    }
}

/// Messages as the bytes that they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
