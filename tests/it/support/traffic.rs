//! Requests that flow while something changes, so that a single one that fails is seen.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::client::{Answer, Broken};
use super::envoy;
use super::soon;

/// Requests one after another, each on a connection of its own. They end when this is dropped.
pub struct Traffic {
    seen: watch::Receiver<BTreeMap<String, usize>>,
    task: AbortHandle,
}

impl Traffic {
    pub fn to(listener: SocketAddr) -> Traffic {
        let (sender, seen) = watch::channel(BTreeMap::new());
        let task = tokio::spawn(async move {
            loop {
                let outcome = in_short(&envoy::request(listener).await);
                sender.send_modify(|seen| *seen.entry(outcome).or_default() += 1);
            }
        });
        Traffic { seen, task: task.abort_handle() }
    }

    /// Waits until this was the outcome of so many more requests.
    pub async fn sees(&self, outcome: &str, more: usize) {
        let count = |seen: &BTreeMap<String, usize>| seen.get(outcome).copied().unwrap_or_default();
        let mut seen = self.seen.clone();
        let enough = count(&seen.borrow()) + more;
        let what = format!("{more} requests with the outcome {outcome:?}");
        soon(&what, seen.wait_for(|seen| count(seen) >= enough)).await.expect("the task's sender");
    }

    /// How often there was which outcome.
    pub fn outcomes(&self) -> BTreeMap<String, usize> {
        self.seen.borrow().clone()
    }

    /// # Panics
    /// Where a request had any other outcome.
    pub fn saw_only(&self, allowed: &[&str]) {
        let outcomes = self.outcomes();
        let other = outcomes.keys().find(|outcome| !allowed.contains(&outcome.as_str()));
        assert!(other.is_none(), "only {allowed:?} was to be seen: {outcomes:?}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Requests without their end, which a listener with [`super::resources::whole_requests`] does not answer
/// before that comes. They end when this is dropped.
pub struct InFlight {
    end: watch::Sender<bool>,
    requests: JoinSet<String>,
    // Aborts its tasks on drop.
    _connections: JoinSet<hyper::Result<()>>,
}

impl InFlight {
    /// A hundred a connection. They are on their way when this returns, and Envoy says when they are there.
    pub async fn to(listener: SocketAddr, count: usize) -> InFlight {
        const STREAMS: usize = 100;
        assert_eq!(count % STREAMS, 0);
        let (end, ended) = watch::channel(false);
        let (mut requests, mut connections) = (JoinSet::new(), JoinSet::new());
        for _ in 0..count / STREAMS {
            let stream = TcpStream::connect(listener).await.expect("a listener");
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
            connections.spawn(connection);
            for _ in 0..STREAMS {
                let (mut sender, mut ended) = (sender.clone(), ended.clone());
                let rest = stream::once(async move {
                    // Where the sender is gone, so is the test.
                    let _ = ended.wait_for(|ended| *ended).await;
                    Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"the end")))
                });
                requests.spawn(async move {
                    let request = Request::post("http://test/").body(StreamBody::new(Box::pin(rest)));
                    let outcome = async {
                        let answer = sender.send_request(request.expect("a request")).await?;
                        let (parts, body) = answer.into_parts();
                        let body = body.collect().await?.to_bytes();
                        Ok(Answer { status: parts.status, headers: parts.headers, body })
                    };
                    in_short(&outcome.await)
                });
            }
        }
        InFlight { end, requests, _connections: connections }
    }

    /// Ends them all, and gives how often there was which outcome.
    pub async fn finish(self) -> BTreeMap<String, usize> {
        self.end.send_replace(true);
        let outcomes = soon("the answers to all requests", self.requests.join_all()).await;
        outcomes.into_iter().fold(BTreeMap::new(), |mut counts, outcome| {
            *counts.entry(outcome).or_default() += 1;
            counts
        })
    }
}

/// The status and what the demo filters put into their header, as `200 v1`; `-` where there is none.
pub fn in_short(outcome: &Result<Answer, Broken>) -> String {
    match outcome {
        Ok(answer) => {
            let header = match answer.header("x-wasmferry-demo") {
                "" => "-",
                header => header,
            };
            format!("{} {header}", answer.status.as_u16())
        }
        Err(broken) => format!("broken: {broken}"),
    }
}
