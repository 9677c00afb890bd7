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
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, FREE_BYTES, Held};
use super::frame::Message;

/// The transport takes this much of a message at a time, so that a peer that has stopped reading
/// leaves the rest counted here.
const PIECE: usize = 64 * 1024;

/// Of a message's first piece, which goes with its prefix in one HTTP/2 frame.
const FIRST_PIECE: usize = 16 * 1024 - PREFIX;

/// gRPC's: a flag, and the message's length in 32 bits.
const PREFIX: usize = 5;

/// What a queued message costs besides its payload, so that empty ones are bounded too.
const OVERHEAD: usize = 128;

/// More is queued for a peer than it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    #[error("the peer does not read: {queued} bytes wait for it, the limit is {limit}")]
    Queue { queued: usize, limit: usize },
    #[error("the peer does not read: {queued} bytes wait for it, and relay.in_flight_bytes is spent")]
    Budget { queued: usize },
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Waiting>,
    /// What `messages` cost.
    bytes: usize,
    limit: usize,
    /// What the messages do not hold of the budget themselves. Each alone is small, but not many.
    held: Held,
    end: Option<Option<HeaderMap>>,
    /// The first message's prefix has been handed out.
    begun: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Waiting {
    message: Message,
    /// The message's bytes, those that have been handed out too.
    whole: usize,
    /// Its part of the queue's `held`.
    held: usize,
}

/// The writing end. Dropping it without an end drops what waits, and ends the body.
#[derive(Debug)]
pub struct Outbox {
    queue: Arc<Mutex<Queue>>,
    gone: CancellationToken,
}

/// The body that drains the queue.
#[derive(Debug)]
pub struct OutboxBody {
    queue: Arc<Mutex<Queue>>,
    gone: CancellationToken,
}

/// A queue that costs at most `limit` bytes, within the budget for all; an empty one takes a
/// message of any size.
pub fn outbox(limit: usize, budget: &Budget) -> (Outbox, OutboxBody) {
    let queue = Arc::new(Mutex::new(Queue {
        messages: VecDeque::new(),
        bytes: 0,
        limit,
        held: budget.message(),
        end: None,
        begun: false,
        waker: None,
    }));
    let gone = CancellationToken::new();
    (Outbox { queue: queue.clone(), gone: gone.clone() }, OutboxBody { queue, gone })
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Queues a message.
    pub fn push(&self, message: Message) -> Result<(), Overflow> {
        let mut queue = lock(&self.queue);
        // Nobody will read it, and the session is about to hear of that.
        if self.gone.is_cancelled() {
            return Ok(());
        }
        let queued = queue.bytes + message.bytes.len() + OVERHEAD;
        let mut held = 0;
        if !queue.messages.is_empty() {
            if queued > queue.limit {
                return Err(Overflow::Queue { queued, limit: queue.limit });
            }
            held = message.uncounted() + OVERHEAD;
            if !queue.held.try_grow(held) {
                return Err(Overflow::Budget { queued });
            }
        }
        queue.bytes = queued;
        let whole = message.bytes.len();
        queue.messages.push_back(Waiting { message, whole, held });
        queue.wake();
        Ok(())
    }

    /// Ends the body after what is queued, with these trailers.
    pub fn finish(&self, trailers: Option<HeaderMap>) {
        let mut queue = lock(&self.queue);
        queue.end = Some(trailers);
        queue.wake();
    }

    /// Ends the body now and drops what is queued.
    pub fn abort(&self, trailers: Option<HeaderMap>) {
        let mut queue = lock(&self.queue);
        queue.clear();
        queue.end = Some(trailers);
        queue.wake();
    }

    /// Waits until nobody reads the body any more: it was read to its end, or its stream has failed.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// What waits, in bytes.
    pub fn queued(&self) -> usize {
        lock(&self.queue).bytes
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        if queue.end.is_none() {
            queue.clear();
            queue.end = Some(None);
            queue.wake();
        }
    }
}

impl Drop for OutboxBody {
    fn drop(&mut self) {
        lock(&self.queue).clear();
        self.gone.cancel();
    }
}

impl Queue {
    /// The next piece of the first message. Of a large one it is a copy, for a slice in the
    /// transport's hands would keep all of it in memory after it is no longer counted.
    fn piece(&mut self) -> Option<Bytes> {
        let Waiting { message, whole, held } = self.messages.front_mut()?;
        let most = if self.begun { PIECE } else { FIRST_PIECE };
        let length = message.bytes.len().min(most);
        let part = message.bytes.split_to(length);
        let piece = if self.begun && *whole <= FREE_BYTES {
            part
        } else {
            let mut piece = BytesMut::with_capacity(PREFIX + length);
            if !self.begun {
                // A message that came in was declared in 32 bits, and ours are smaller.
                let declared = u32::try_from(*whole).unwrap_or(u32::MAX);
                piece.extend_from_slice(&[0]);
                piece.extend_from_slice(&declared.to_be_bytes());
            }
            piece.extend_from_slice(&part);
            piece.freeze()
        };
        self.bytes = self.bytes.saturating_sub(length);
        self.begun = !message.bytes.is_empty();
        if !self.begun {
            self.bytes = self.bytes.saturating_sub(OVERHEAD);
            self.held.shrink(*held);
            self.messages.pop_front();
        }
        Some(piece)
    }

    fn clear(&mut self) {
        self.messages = VecDeque::new();
        self.bytes = 0;
        self.held.clear();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Body for OutboxBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut queue = lock(&self.queue);
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

    fn with_limit(limit: usize) -> (Outbox, OutboxBody) {
        outbox(limit, &Budget::new(1 << 30))
    }

    #[tokio::test]
    async fn messages_come_out_framed_in_order_and_then_the_trailers() {
        let (outbox, body) = with_limit(1 << 20);
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
        let limit = 100 + 2 * OVERHEAD;
        let (outbox, mut body) = with_limit(limit);
        outbox.push(message(1000)).expect("an empty queue takes a message of any size");
        let queued = 1001 + 2 * OVERHEAD;
        assert_eq!(outbox.push(message(1)), Err(Overflow::Queue { queued, limit }));
        body.frame().await.unwrap().unwrap();
        outbox.push(message(60)).unwrap();
        outbox.push(message(40)).unwrap();
        assert!(outbox.push(message(0)).is_err());
        assert_eq!(outbox.queued(), limit);
        outbox.abort(None);
        assert_eq!(outbox.queued(), 0);
        assert!(body.frame().now_or_never().expect("ended").is_none());
    }

    #[test]
    fn messages_without_a_payload_are_bounded_too() {
        let (outbox, _body) = with_limit(1 << 20);
        let taken = (0..100_000).take_while(|_| outbox.push(message(0)).is_ok()).count();
        assert_eq!(taken, (1 << 20) / OVERHEAD);
    }

    #[tokio::test]
    async fn many_small_messages_are_counted_in_the_budget_and_given_back() {
        let budget = Budget::new(10_000);
        let (outbox, mut body) = outbox(1 << 30, &budget);
        let taken = (0..100_000).take_while(|_| outbox.push(message(1000)).is_ok()).count();
        assert!(taken > 1 && taken * 1000 <= FREE_BYTES + 10_000 + 1000, "{taken} messages");
        assert!(matches!(outbox.push(message(1000)), Err(Overflow::Budget { .. })));
        for _ in 0..taken {
            body.frame().await.unwrap().unwrap();
        }
        assert_eq!((budget.available(), outbox.queued()), (10_000, 0));
        outbox.push(message(1000)).unwrap();
    }

    #[tokio::test]
    async fn what_the_transport_holds_keeps_no_large_message_in_memory() {
        let (outbox, mut body) = with_limit(1 << 30);
        let bytes = Bytes::from(vec![7; 3 * PIECE]);
        outbox.push(Message::own(bytes.clone())).unwrap();
        let pieces = [body.frame().await, body.frame().await, body.frame().await, body.frame().await];
        assert_eq!(outbox.queued(), 0);
        assert!(bytes.is_unique(), "{pieces:?}");
    }

    #[tokio::test]
    async fn an_outbox_that_is_dropped_drops_what_waits_and_a_finished_one_does_not() {
        let budget = Budget::new(1 << 20);
        for finished in [true, false] {
            let (outbox, mut body) = outbox(1 << 30, &budget);
            for _ in 0..200 {
                outbox.push(message(1000)).unwrap();
            }
            if finished {
                outbox.finish(None);
            }
            drop(outbox);
            assert_eq!(body.frame().await.is_some(), finished);
            assert_eq!(budget.available() < 1 << 20, finished);
        }
        assert_eq!(budget.available(), 1 << 20);
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_drops_what_waits_and_is_noticed() {
        let budget = Budget::new(1 << 20);
        let (outbox, body) = outbox(1 << 30, &budget);
        for _ in 0..200 {
            outbox.push(message(1000)).unwrap();
        }
        assert!(outbox.gone().now_or_never().is_none());
        drop(body);
        outbox.gone().await;
        outbox.push(message(1000)).unwrap();
        assert_eq!((outbox.queued(), budget.available()), (0, 1 << 20));
    }

    #[tokio::test]
    async fn a_waiting_body_is_woken_by_a_message_and_by_the_end() {
        let (outbox, mut body) = with_limit(100);
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
