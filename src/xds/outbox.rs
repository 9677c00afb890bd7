//! What waits to be written to a peer: a bounded queue on one side, an HTTP/2 body on the other.
//! Putting into it never waits, so reading one peer never depends on the other's reading.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};

use super::frame::Message;

/// The transport takes this much of a message at a time, so that a peer that has stopped reading
/// leaves the rest counted here.
const PIECE: usize = 64 * 1024;

/// What a message costs besides its bytes: its place in the queue and what it is allocated in. Without
/// it, messages of no bytes could wait in any number.
const ENTRY: usize = 128;

/// More is queued for a peer than it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer does not read: {queued} bytes wait for it, the limit is {limit}")]
pub struct Overflow {
    pub queued: usize,
    pub limit: usize,
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Message>,
    /// What `messages` hold, an [`ENTRY`] for each among it.
    bytes: usize,
    limit: usize,
    end: Option<Option<HeaderMap>>,
    /// The first message's prefix has been handed out.
    begun: bool,
    waker: Option<Waker>,
}

/// The writing end. Dropping it ends the body.
#[derive(Debug)]
pub struct Outbox(Arc<Mutex<Queue>>);

/// The body that drains the queue.
#[derive(Debug)]
pub struct OutboxBody(Arc<Mutex<Queue>>);

/// A queue that holds at most `limit` bytes; a larger message is taken when it would be alone.
pub fn outbox(limit: usize) -> (Outbox, OutboxBody) {
    let queue = Arc::new(Mutex::new(Queue {
        messages: VecDeque::new(),
        bytes: 0,
        limit,
        end: None,
        begun: false,
        waker: None,
    }));
    (Outbox(queue.clone()), OutboxBody(queue))
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Queues a message.
    pub fn push(&self, message: Message) -> Result<(), Overflow> {
        let mut queue = lock(&self.0);
        let queued = queue.bytes + ENTRY + message.bytes.len();
        if !queue.messages.is_empty() && queued > queue.limit {
            return Err(Overflow { queued, limit: queue.limit });
        }
        queue.bytes = queued;
        queue.messages.push_back(message);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Ends the body after what is queued, with these trailers.
    pub fn finish(self, trailers: Option<HeaderMap>) {
        lock(&self.0).end = Some(trailers);
    }

    /// Ends the body now and drops what is queued.
    pub fn abort(self, trailers: Option<HeaderMap>) {
        let mut queue = lock(&self.0);
        queue.messages.clear();
        queue.bytes = 0;
        queue.end = Some(trailers);
    }

    /// Bytes that wait, with what the messages cost besides.
    pub fn queued(&self) -> usize {
        lock(&self.0).bytes
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.end.get_or_insert(None);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl Queue {
    /// The next piece of the first message.
    fn piece(&mut self) -> Option<Bytes> {
        let message = self.messages.front_mut()?;
        let length = message.bytes.len().min(PIECE);
        let part = message.bytes.split_to(length);
        let last = message.bytes.is_empty();
        let piece = if self.begun {
            part
        } else {
            // The prefix goes out in one frame with a small message, which is nearly all of them.
            let mut framed = BytesMut::with_capacity(5 + length);
            framed.extend_from_slice(&[0]);
            // A message that came in was declared in 32 bits, and ours are smaller.
            let declared = u32::try_from(length + message.bytes.len()).unwrap_or(u32::MAX);
            framed.extend_from_slice(&declared.to_be_bytes());
            framed.extend_from_slice(&part);
            framed.freeze()
        };
        self.bytes = self.bytes.saturating_sub(length);
        self.begun = !last;
        if last {
            self.bytes = self.bytes.saturating_sub(ENTRY);
            self.messages.pop_front();
        }
        Some(piece)
    }
}

impl Body for OutboxBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut queue = lock(&self.0);
        if let Some(piece) = queue.piece() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match queue.end.take() {
            Some(Some(trailers)) => {
                queue.end = Some(None);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Some(None) => {
                queue.end = Some(None);
                Poll::Ready(None)
            }
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    fn message(length: usize) -> Message {
        Message::own(Bytes::from(vec![7; length]))
    }

    #[tokio::test]
    async fn messages_come_out_framed_in_order_and_then_the_trailers() {
        let (outbox, body) = outbox(1 << 20);
        outbox.push(message(3)).unwrap();
        outbox.push(message(PIECE + 1)).unwrap();
        outbox.push(message(0)).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        outbox.finish(Some(trailers.clone()));
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        let mut expected = vec![0, 0, 0, 0, 3, 7, 7, 7, 0];
        expected.extend_from_slice(&(PIECE as u32 + 1).to_be_bytes());
        expected.extend(vec![7; PIECE + 1]);
        expected.extend_from_slice(&[0; 5]);
        assert_eq!(collected.to_bytes(), expected);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_costs_no_more_than_the_limit() {
        const LIMIT: usize = 2 * ENTRY + 100;
        let (outbox, mut body) = outbox(LIMIT);
        outbox.push(message(1000)).expect("a message that is alone is always taken");
        let queued = 1000 + 2 * ENTRY + 1;
        assert_eq!(outbox.push(message(1)), Err(Overflow { queued, limit: LIMIT }));
        body.frame().await.unwrap().unwrap();
        outbox.push(message(60)).unwrap();
        outbox.push(message(40)).unwrap();
        assert_eq!(outbox.push(message(0)), Err(Overflow { queued: LIMIT + ENTRY, limit: LIMIT }));
        assert_eq!(outbox.queued(), LIMIT);
        outbox.abort(None);
        assert!(body.frame().now_or_never().expect("ended").is_none());
    }

    #[tokio::test]
    async fn messages_without_bytes_count_too_and_leave_nothing_behind() {
        let (outbox, mut body) = outbox(1000);
        let taken = std::iter::repeat_with(|| outbox.push(message(0))).take_while(Result::is_ok).count();
        assert_eq!(taken, 1000 / ENTRY);
        for _ in 0..taken {
            body.frame().await.unwrap().unwrap();
        }
        assert_eq!(outbox.queued(), 0);
    }

    #[tokio::test]
    async fn a_waiting_body_is_woken_by_a_message_and_by_the_end() {
        let (outbox, mut body) = outbox(100);
        let reader = tokio::spawn(async move {
            let first = body.frame().await.unwrap().unwrap();
            (first.into_data().unwrap(), body.frame().await.is_none())
        });
        tokio::task::yield_now().await;
        outbox.push(message(1)).unwrap();
        tokio::task::yield_now().await;
        drop(outbox);
        assert_eq!(reader.await.unwrap(), (Bytes::from_static(&[0, 0, 0, 0, 1, 7]), true));
    }
}
