//! A scripted Envoy: connections and streams on which the test says every byte, and reads or does not
//! read what comes.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

use super::control_plane::{Protocol, Service};
use super::envoy::Xds;
use super::soon;

type Outgoing = StreamBody<ReceiverStream<io::Result<Frame<Bytes>>>>;

/// What a connection lets come in before anybody reads it, a stream and all of them.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    pub stream: u32,
    pub connection: u32,
}

impl Default for Windows {
    fn default() -> Windows {
        Windows { stream: 65_535, connection: 65_535 }
    }
}

/// An HTTP/2 connection. Closed when it is dropped, without a farewell.
pub struct Connection {
    sender: SendRequest<Outgoing>,
    _tasks: DropGuard,
}

/// Runs a connection's tasks until that is dropped.
#[derive(Clone)]
struct Tasks(CancellationToken);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}

impl Connection {
    pub async fn open(to: &Xds) -> Connection {
        Connection::with(to, Windows::default()).await
    }

    pub async fn with(to: &Xds, windows: Windows) -> Connection {
        let connect = async {
            match to {
                Xds::Unix(path) => Connection::over(UnixStream::connect(path).await?, windows).await,
                Xds::Tcp(address) => Connection::over(TcpStream::connect(address).await?, windows).await,
            }
        };
        soon(&format!("a connection to {to:?}"), connect).await.expect("a listener")
    }

    async fn over<S>(stream: S, windows: Windows) -> io::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let token = CancellationToken::new();
        let tasks = Tasks(token.clone());
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Its own errors come back through its streams.
        hyper::rt::Executor::execute(&tasks, connection);
        Ok(Connection { sender, _tasks: token.drop_guard() })
    }

    /// Any request; what it sends is its body.
    pub async fn request(&mut self, request: Request<()>) -> hyper::Result<(Sender, Response<Incoming>)> {
        let (sender, frames) = mpsc::channel(1);
        let body = StreamBody::new(ReceiverStream::new(frames));
        let response = self.sender.send_request(request.map(|()| body));
        let response = soon("a response", response).await?;
        Ok((Sender(sender), response))
    }

    /// Opens an aggregated stream with this metadata.
    pub async fn stream_with(&mut self, protocol: Protocol, metadata: &[(&str, &str)]) -> Stream {
        self.stream_of(Service::Aggregated, protocol, metadata).await
    }

    /// Opens a stream of this service with this metadata.
    pub async fn stream_of(
        &mut self,
        service: Service,
        protocol: Protocol,
        metadata: &[(&str, &str)],
    ) -> Stream {
        let uri = format!("http://agent{}", service.path(protocol));
        let mut request = Request::builder().method(Method::POST).uri(uri);
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(metadata)
        {
            request = request.header(*name, *value);
        }
        let (sender, response) =
            self.request(request.body(()).expect("a request")).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        let (parts, incoming) = response.into_parts();
        Stream { sender: Some(sender), headers: parts.headers, incoming, read: BytesMut::new() }
    }

    pub async fn stream(&mut self, protocol: Protocol) -> Stream {
        self.stream_with(protocol, &[]).await
    }
}

/// The sending half of a request.
pub struct Sender(mpsc::Sender<io::Result<Frame<Bytes>>>);

impl Sender {
    /// Sends these bytes; waits while the peer does not read. Whether they were taken: what has ended
    /// takes nothing.
    pub async fn bytes(&self, bytes: impl Into<Bytes>) -> bool {
        self.0.send(Ok(Frame::data(bytes.into()))).await.is_ok()
    }

    /// Resets the stream.
    pub async fn reset(self) {
        let _ = self.0.send(Err(io::Error::other("reset by the test"))).await;
    }
}

/// The five bytes in front of a message of this length.
pub fn prefix(length: u32) -> Bytes {
    let mut prefix = BytesMut::with_capacity(5);
    prefix.put_u8(0);
    prefix.put_u32(length);
    prefix.freeze()
}

/// How a stream ended.
#[derive(Debug)]
pub enum Ended {
    /// With these trailers.
    Trailers(HeaderMap),
    /// By a reset, or with its connection.
    Broken(hyper::Error),
}

impl Ended {
    /// # Panics
    /// Where the stream broke or has no status.
    pub fn status(&self) -> Status {
        match self {
            Ended::Trailers(trailers) => Status::from_header_map(trailers).expect("a gRPC status"),
            Ended::Broken(error) => panic!("the stream broke: {error:?}"),
        }
    }
}

/// One discovery stream.
pub struct Stream {
    sender: Option<Sender>,
    pub headers: HeaderMap,
    incoming: Incoming,
    /// Arrived and not yet taken.
    read: BytesMut,
}

impl Stream {
    /// Sends one message; waits while the peer does not read.
    pub async fn send(&mut self, message: impl AsRef<[u8]>) {
        assert!(self.try_send(message).await, "the stream has ended");
    }

    /// The same; whether it was taken, which a stream that has ended does not.
    pub async fn try_send(&mut self, message: impl AsRef<[u8]>) -> bool {
        let message = message.as_ref();
        let mut frame = BytesMut::from(&prefix(message.len().try_into().expect("a message"))[..]);
        frame.extend_from_slice(message);
        let sender = self.sender.as_ref().expect("a stream that was not finished");
        soon("room for a message", sender.bytes(frame)).await
    }

    /// Sends bytes as they are.
    pub async fn send_raw(&mut self, bytes: impl Into<Bytes>) {
        let sender = self.sender.as_ref().expect("a stream that was not finished");
        assert!(soon("room for a message", sender.bytes(bytes)).await, "the stream has ended");
    }

    /// Ends this side.
    pub fn finish(&mut self) {
        self.sender = None;
    }

    pub async fn reset(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.reset().await;
        }
    }

    /// The sending half, for a task of its own.
    pub fn take_sender(&mut self) -> Sender {
        self.sender.take().expect("a stream that was not finished")
    }

    /// The next message, or how the stream ended. May be cancelled.
    pub async fn next(&mut self) -> Result<Bytes, Ended> {
        loop {
            if let Some((prefix, rest)) = self.read.split_at_checked(5) {
                let length = u32::from_be_bytes(prefix[1..].try_into().expect("four bytes")) as usize;
                assert_eq!(prefix[0], 0, "a compressed message");
                if rest.len() >= length {
                    let _ = self.read.split_to(5);
                    return Ok(self.read.split_to(length).freeze());
                }
            }
            match self.incoming.frame().await {
                None => return Err(Ended::Trailers(HeaderMap::new())),
                Some(Err(error)) => return Err(Ended::Broken(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.read.extend_from_slice(&data),
                    Err(frame) => return Err(Ended::Trailers(frame.into_trailers().expect("trailers"))),
                },
            }
        }
    }

    /// The next message.
    ///
    /// # Panics
    /// Where the stream ends instead.
    pub async fn message(&mut self) -> Bytes {
        soon("a message from the agent", self.next()).await.expect("a stream that goes on")
    }

    /// Waits for the end, passing over messages.
    pub async fn end(&mut self) -> Ended {
        let end = async {
            loop {
                if let Err(end) = self.next().await {
                    return end;
                }
            }
        };
        soon("the end of the stream", end).await
    }

    /// Waits for the end: code and message.
    pub async fn status(&mut self) -> (Code, String) {
        let status = self.end().await.status();
        (status.code(), status.message().to_owned())
    }
}
