//! The control plane over gRPC: one connection and one stream for each stream of an Envoy, so that
//! neither flow control nor a load balancer's choice is shared between Envoys.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version, header};
use http_body::Body;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service as _;

use crate::causes::with_causes;

/// Where the control plane is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `http://HOST:PORT`.
    Http(Uri),
    /// `unix:/absolute/path`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Http(uri) => write!(f, "http://{}", uri.authority().map_or("", |a| a.as_str())),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why no stream could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("upstream.address {address} is not usable: {reason}")]
    Address { address: String, reason: String },
    #[error("cannot reach the control plane at {address}: {reason}")]
    Unreachable { address: String, reason: String },
}

/// A control plane to open streams to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    endpoint: Endpoint,
    address: String,
}

/// A stream-wide window of HTTP/2, which bounds what the control plane sends ahead of our reading.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// The largest frame of HTTP/2 that a peer may send, in bytes. A message that comes in one is passed on
/// without a copy.
pub const MAX_FRAME: u32 = 128 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds a control plane that vanished without a word. Done by TCP: HTTP/2 pings more often than a
/// server allows make it drop the connection, and the allowance cannot be known.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// An open stream.
pub struct Stream {
    pub response: Response<tonic::body::Body>,
    pub connection: Connection,
}

/// A stream's connection, which ends when this is dropped: also where the control plane has stopped
/// reading, and would never be told the end of a stream.
pub struct Connection(#[expect(dead_code, reason = "held for its drop")] DropGuard);

/// Runs the tasks of one connection until that ends.
struct Tasks(CancellationToken);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Tasks {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}

impl ControlPlane {
    /// A control plane at this address. Connects to nothing yet.
    pub fn new(address: &Address) -> Result<Self, ConnectError> {
        let unusable = |reason: String| ConnectError::Address { address: address.to_string(), reason };
        let endpoint = match address {
            Address::Http(uri) => Endpoint::from_shared(uri.to_string()),
            Address::Unix(path) => Endpoint::from_shared(format!("unix://{}", path.display()))
                // The authority of a socket's server is by custom this.
                .map(|endpoint| endpoint.origin(Uri::from_static("http://localhost"))),
        }
        .map_err(|error| unusable(error.to_string()))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Some(KEEPALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW)
            .max_frame_size(MAX_FRAME)
            .http2_max_header_list_size(64 * 1024);
        Ok(Self { endpoint, address: address.to_string() })
    }

    /// Opens a stream: POSTs to `path` with this metadata, `body` being what we send. The answer
    /// comes when the control plane sends its headers, which many do with their first message.
    /// Dropping the future before that ends the connection.
    pub async fn open<B>(
        self,
        path: &'static str,
        metadata: HeaderMap,
        body: B,
    ) -> Result<Stream, ConnectError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let token = CancellationToken::new();
        let mut channel: Channel = self.endpoint.executor(Tasks(token.clone())).connect_lazy();
        let connection = Connection(token.drop_guard());
        let mut request = Request::new(tonic::body::Body::new(body));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_static(path);
        *request.headers_mut() = metadata;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
        let unreachable = |error: tonic::transport::Error| ConnectError::Unreachable {
            address: self.address.clone(),
            reason: with_causes(&error),
        };
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(unreachable)?;
        let response = channel.call(request).await.map_err(unreachable)?;
        Ok(Stream { response, connection })
    }
}
