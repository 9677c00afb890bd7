//! gRPC messages out of an HTTP/2 body, as the bytes that they are.
//!
//! This is the reading half of gRPC's length-prefixed framing
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). It is ours because a
//! message's memory must be counted as it arrives: a peer that declares 256 MiB and sends nothing
//! costs nothing.

use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt as _;

use super::budget::{Budget, FREE_BYTES, Held};
use crate::causes::with_causes;
use crate::clock::Clock;

/// How long a message that has begun may make no progress, be it for its peer or for the budget.
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// One gRPC message, with what it holds of the budget.
#[derive(Debug)]
pub struct Message {
    pub bytes: Bytes,
    held: Option<Held>,
}

impl Message {
    /// A message of our own making. It counts where it waits: in an outbox.
    pub fn own(bytes: Bytes) -> Self {
        Self { bytes, held: None }
    }

    /// Bytes of it that nobody has counted.
    pub fn uncounted(&self) -> usize {
        self.bytes.len().saturating_sub(self.held.as_ref().map_or(0, Held::counted))
    }

    /// The same claim on the budget with other bytes in it.
    pub fn with_bytes(self, bytes: Bytes) -> Self {
        Self { bytes, held: self.held }
    }
}

/// What a body yields next.
#[derive(Debug)]
pub enum Incoming {
    Message(Message),
    /// The peer has finished; a server's trailers, where it sent them.
    End(Option<HeaderMap>),
}

/// Why no further message can be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer declares a message of {declared} bytes, the limit is {limit}")]
    TooLarge { declared: u64, limit: usize },
    #[error("the peer sends a compressed message, which nobody asked for")]
    Compressed,
    #[error("the stream ended in the middle of a message")]
    Truncated,
    #[error("a message of {declared} bytes made no progress for {} s", STALL_LIMIT.as_secs())]
    Stalled { declared: usize },
    #[error(
        "for a message of {declared} bytes relay.in_flight_bytes had no room for {} s",
        STALL_LIMIT.as_secs()
    )]
    NoRoom { declared: usize },
    #[error("the connection failed: {0}")]
    Transport(String),
}

/// Reads messages from a body.
pub struct Messages<B> {
    body: B,
    clock: Clock,
    budget: Budget,
    limit: usize,
    /// Arrived and not yet taken.
    chunk: Bytes,
    /// The prefix, as far as it has arrived.
    prefix: BytesMut,
    message: Option<Partial>,
    progress: Instant,
}

struct Partial {
    declared: usize,
    /// Used only where the message spans chunks.
    bytes: BytesMut,
    held: Held,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error,
{
    /// Reads `body`; a message over `limit` bytes is an error.
    pub fn new(body: B, limit: usize, budget: Budget, clock: Clock) -> Self {
        Self {
            body,
            progress: clock.now(),
            clock,
            budget,
            limit,
            chunk: Bytes::new(),
            prefix: BytesMut::new(),
            message: None,
        }
    }

    /// The next message or the end. Cancel safe.
    pub async fn next(&mut self) -> Result<Incoming, FrameError> {
        loop {
            if let Some(message) = self.assemble().await? {
                return Ok(Incoming::Message(message));
            }
            let begun = self.message.as_ref().map(|partial| partial.declared);
            let frame = match begun {
                None if self.prefix.is_empty() => self.body.frame().await,
                _ => {
                    let stalled = |_| FrameError::Stalled { declared: begun.unwrap_or_default() };
                    self.clock
                        .timeout_at(self.progress + STALL_LIMIT, self.body.frame())
                        .await
                        .map_err(stalled)?
                }
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.progress = self.clock.now();
                        self.chunk = data;
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => return self.end(Some(trailers)),
                        Err(_) => continue,
                    },
                },
                Some(Err(error)) => return Err(FrameError::Transport(with_causes(&error))),
                None => return self.end(None),
            }
        }
    }

    fn end(&self, trailers: Option<HeaderMap>) -> Result<Incoming, FrameError> {
        if self.message.is_some() || !self.prefix.is_empty() {
            return Err(FrameError::Truncated);
        }
        Ok(Incoming::End(trailers))
    }

    /// Takes what it can from the chunk at hand.
    async fn assemble(&mut self) -> Result<Option<Message>, FrameError> {
        if self.message.is_none() {
            let wanted = 5 - self.prefix.len();
            self.prefix.extend_from_slice(&self.chunk.split_to(wanted.min(self.chunk.len())));
            if self.prefix.len() < 5 {
                return Ok(None);
            }
            let compressed = self.prefix.get_u8();
            let declared = self.prefix.get_u32();
            if compressed != 0 {
                return Err(FrameError::Compressed);
            }
            let length = usize::try_from(declared).unwrap_or(usize::MAX);
            if length > self.limit {
                return Err(FrameError::TooLarge { declared: declared.into(), limit: self.limit });
            }
            self.prefix.clear();
            self.message =
                Some(Partial { declared: length, bytes: BytesMut::new(), held: self.budget.message() });
        }
        let Some(partial) = &mut self.message else { return Ok(None) };
        let take = (partial.declared - partial.bytes.len()).min(self.chunk.len());
        let room = partial.held.grow(take);
        let no_room = |_| FrameError::NoRoom { declared: partial.declared };
        self.clock.timeout_at(self.progress + STALL_LIMIT, room).await.map_err(no_room)?;
        let part = self.chunk.split_to(take);
        if partial.bytes.len() + take < partial.declared {
            if partial.bytes.is_empty() {
                // What a message may have uncounted, at once; the rest as it comes.
                partial.bytes.reserve(partial.declared.min(FREE_BYTES));
            }
            partial.bytes.extend_from_slice(&part);
            return Ok(None);
        }
        let Some(mut partial) = self.message.take() else { return Ok(None) };
        let bytes = if partial.bytes.is_empty() {
            part
        } else {
            partial.bytes.extend_from_slice(&part);
            partial.bytes.freeze()
        };
        Ok(Some(Message { bytes, held: Some(partial.held) }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::FutureExt as _;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::clock::ManualClock;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.push(0);
            out.extend_from_slice(&(message.len() as u32).to_be_bytes());
            out.extend_from_slice(message);
        }
        out
    }

    fn read(chunks: Vec<Vec<u8>>, limit: usize) -> Result<Vec<Bytes>, FrameError> {
        let frames = chunks.into_iter().map(|c| Ok::<_, std::io::Error>(Frame::data(Bytes::from(c))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let mut messages = Messages::new(body, limit, Budget::new(1 << 20), Clock::System);
        let mut out = Vec::new();
        loop {
            match messages.next().now_or_never().expect("nothing to wait for")? {
                Incoming::Message(message) => out.push(message.bytes),
                Incoming::End(_) => return Ok(out),
            }
        }
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting_into_chunks(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in prop::collection::vec(1usize..20, 1..40),
        ) {
            let bytes = framed(&messages);
            let mut rest = &bytes[..];
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                chunks.push(head.to_vec());
                rest = tail;
            }
            let read = read(chunks, 1000).unwrap();
            prop_assert_eq!(read, messages.into_iter().map(Bytes::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_declared_size_alone() {
        let error = read(vec![vec![0, 0xff, 0xff, 0xff, 0xff]], 1000).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { declared: 0xffff_ffff, limit: 1000 }));
    }

    #[test]
    fn a_compressed_or_truncated_message_is_an_error() {
        assert!(matches!(read(vec![vec![1, 0, 0, 0, 0]], 9).unwrap_err(), FrameError::Compressed));
        assert!(matches!(read(vec![vec![0, 0, 0, 0, 3, 1]], 9).unwrap_err(), FrameError::Truncated));
        assert!(matches!(read(vec![vec![0, 0]], 9).unwrap_err(), FrameError::Truncated));
    }

    #[tokio::test]
    async fn a_message_that_finds_no_room_says_so_after_the_stall_limit() {
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(1u32 << 20).to_be_bytes());
        bytes.resize(5 + (1 << 20), 7);
        let frames = [Ok::<_, std::io::Error>(Frame::data(Bytes::from(bytes)))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let mut messages = Messages::new(body, 1 << 20, Budget::new(1 << 19), Clock::Manual(manual.clone()));
        assert!(messages.next().now_or_never().is_none());
        manual.advance(STALL_LIMIT);
        let error = messages.next().await.unwrap_err();
        assert!(matches!(error, FrameError::NoRoom { declared } if declared == 1 << 20), "{error}");
    }

    #[tokio::test]
    async fn a_declared_message_costs_nothing_and_a_stalled_one_ends() {
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        let budget = Budget::new(1 << 20);
        let (sender, frames) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(4);
        let body = StreamBody::new(ReceiverStream::new(frames));
        let mut messages = Messages::new(body, 256 << 20, budget.clone(), Clock::Manual(manual.clone()));
        let mut head = vec![0];
        head.extend_from_slice(&(256u32 << 20).to_be_bytes());
        head.extend_from_slice(b"begun");
        sender.send(Ok(Frame::data(head.into()))).await.unwrap();
        assert!(messages.next().now_or_never().is_none());
        assert_eq!(budget.available(), 1 << 20);
        manual.advance(STALL_LIMIT);
        assert!(
            matches!(messages.next().await.unwrap_err(), FrameError::Stalled { declared } if declared == 256 << 20)
        );
    }
}
