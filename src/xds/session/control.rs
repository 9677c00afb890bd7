//! The upstream side of a stream: a control plane over gRPC, or the directory, which answers at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;
use tonic::Status;

use super::end::End;
use super::{CONTROL_PLANE_LIMIT, Shared};
use crate::clock::Clock;
use crate::upstream::Upstream;
use crate::upstream::directory::{Snapshot, serve};
use crate::upstream::grpc::{self, ControlPlane};
use crate::xds::budget::Budget;
use crate::xds::frame::{Incoming, Message, Messages};
use crate::xds::machine::Variant;
use crate::xds::outbox::{Outbox, outbox};

type Opening = Pin<Box<dyn Future<Output = Result<grpc::Stream, String>> + Send>>;

/// The upstream side of a stream.
pub(super) enum Control {
    /// A control plane over gRPC.
    Grpc { outbox: Outbox, stream: GrpcStream },
    /// The directory of plugin files, which answers in this task.
    Directory { session: serve::Session, snapshots: watch::Receiver<Arc<Snapshot>>, answers: VecDeque<Bytes> },
    /// Envoy has ended its side; what still comes is read.
    HalfClosed { stream: GrpcStream },
}

pub(super) enum GrpcStream {
    Opening(Opening),
    Open { messages: Box<Messages<tonic::body::Body>>, _connection: grpc::Connection },
}

/// What is needed to read a control plane's stream.
pub(super) struct ReadWith {
    pub(super) budget: Budget,
    pub(super) clock: Clock,
}

impl GrpcStream {
    /// Cancel safe: an opening that is interrupted is continued by the next call.
    pub(super) async fn next(&mut self, with: &ReadWith) -> Result<Message, End> {
        loop {
            match self {
                GrpcStream::Opening(opening) => {
                    let grpc::Stream { response, connection } = opening.await.map_err(End::Unreachable)?;
                    if response.status() != StatusCode::OK {
                        let status = response.status();
                        let reason = format!("the control plane answered with HTTP status {status}");
                        return Err(End::Unreachable(reason));
                    }
                    if response.headers().contains_key(Status::GRPC_STATUS) {
                        return Err(End::ControlPlane(Some(trailers_only(response.headers()))));
                    }
                    let body = response.into_body();
                    let (budget, clock) = (with.budget.clone(), with.clock.clone());
                    let messages = Messages::new(body, CONTROL_PLANE_LIMIT, budget, clock);
                    *self = GrpcStream::Open { messages: Box::new(messages), _connection: connection };
                }
                GrpcStream::Open { messages, .. } => {
                    return match messages.next().await.map_err(End::FromControlPlane)? {
                        Incoming::Message(message) => Ok(message),
                        Incoming::End(trailers) => Err(End::ControlPlane(trailers)),
                    };
                }
            }
        }
    }
}

/// A response of headers alone carries in them what trailers would.
fn trailers_only(headers: &HeaderMap) -> HeaderMap {
    let mut trailers = headers.clone();
    trailers.remove(http::header::CONTENT_TYPE);
    trailers.remove(http::header::CONTENT_LENGTH);
    trailers
}

impl Control {
    pub(super) fn open(
        shared: &Shared,
        variant: Variant,
        path: &'static str,
        metadata: HeaderMap,
        limit: usize,
    ) -> Self {
        match &shared.upstream {
            Upstream::Grpc(plane) => {
                let (outbox, body) = outbox(limit, &shared.budget);
                let opening = ControlPlane::clone(plane).open(path, metadata, body);
                let opening = async move { opening.await.map_err(|error| error.to_string()) };
                Control::Grpc { outbox, stream: GrpcStream::Opening(Box::pin(opening)) }
            }
            Upstream::Directory(snapshots) => Control::Directory {
                session: serve::Session::new(variant),
                snapshots: snapshots.clone(),
                answers: VecDeque::new(),
            },
        }
    }

    /// Sends a message upstream. Never waits.
    pub(super) fn send(&mut self, message: Message) -> Result<(), End> {
        match self {
            Control::Grpc { outbox, .. } => outbox.push(message).map_err(End::ControlPlaneStalled),
            Control::Directory { session, snapshots, answers } => {
                let snapshot = snapshots.borrow().clone();
                let answer = session.on_request(&message.bytes, &snapshot).map_err(End::MalformedRequest)?;
                answers.extend(answer);
                Ok(())
            }
            Control::HalfClosed { .. } => Ok(()),
        }
    }

    /// The next message from upstream. Cancel safe.
    pub(super) async fn next(&mut self, with: &ReadWith) -> Result<Message, End> {
        match self {
            Control::Grpc { stream, .. } | Control::HalfClosed { stream } => stream.next(with).await,
            Control::Directory { session, snapshots, answers } => loop {
                if let Some(answer) = answers.pop_front() {
                    return Ok(Message::own(answer));
                }
                if snapshots.changed().await.is_err() {
                    return Err(End::Shutdown);
                }
                let snapshot = snapshots.borrow_and_update().clone();
                answers.extend(session.on_snapshot(&snapshot));
            },
        }
    }

    /// Envoy has ended its side: so do we.
    pub(super) fn half_close(self) -> Result<Self, End> {
        match self {
            Control::Grpc { outbox, stream } => {
                outbox.finish(None);
                Ok(Control::HalfClosed { stream })
            }
            Control::Directory { .. } | Control::HalfClosed { .. } => Err(End::Envoy),
        }
    }
}
