//! What operators and probes see: health, metrics, and the state of every resource. Reads what
//! others write and is called by nobody.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::listen::{Bound, Connection};
use crate::xds::state::States;

/// Whether the agent can take Envoys. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    /// All is set up.
    pub fn ready(&self) {
        self.0.store(Self::READY, Ordering::Release);
    }

    /// The agent is about to stop.
    pub fn draining(&self) {
        self.0.store(Self::DRAINING, Ordering::Release);
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self.0.load(Ordering::Acquire) {
            Self::READY => (StatusCode::OK, "ready\n"),
            Self::DRAINING => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        }
    }
}

/// Which of the two faces a socket shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Health and metrics alone: nothing secret, no names of resources.
    Health,
    /// All of it, for the operator.
    Admin,
}

/// What is shown.
pub struct Shown {
    pub registry: Registry,
    pub readiness: Readiness,
    pub states: States,
    /// Brings gauges up to date that are read only when somebody looks.
    pub refresh: Box<dyn Fn() + Send + Sync>,
}

/// So many clients are served at once, so that they leave file descriptors to the Envoys. A probe that
/// comes on top waits.
const CONNECTIONS: usize = 64;

/// A client that takes longer to send its request's head is dropped.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const INDEX: &str = "\
wasmferry admin
/healthz  the process runs
/readyz   Envoys can connect
/metrics  Prometheus metrics
/state    every stream and its resources, as JSON
";

/// Serves one socket until `shutdown`.
pub async fn serve(
    bound: Bound,
    face: Face,
    shown: Arc<Shown>,
    clock: Clock,
    tracker: TaskTracker,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let next = async || {
        // Never closed.
        let place = places.clone().acquire_owned().await.ok();
        bound.accept().await.map(|stream| (stream, place))
    };
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = next() => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection = connection(stream, face, shown.clone(), shutdown.clone());
                tracker.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(address = %bound.address, "cannot accept a connection: {error}");
                clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: Connection, face: Face, shown: Arc<Shown>, shutdown: CancellationToken) {
    let service = service_fn(move |request| {
        let response = answer(&request, face, &shown);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(16 * 1024);
    // A client that breaks off is its own affair.
    tokio::select! {
        _ = server.serve_connection(TokioIo::new(stream), service) => {}
        () = shutdown.cancelled() => {}
    }
}

fn answer(request: &Request<Incoming>, face: Face, shown: &Shown) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is served here\n");
    }
    match (request.uri().path(), face) {
        ("/healthz", _) => respond(StatusCode::OK, TEXT, "ok\n"),
        ("/readyz", _) => {
            let (status, text) = shown.readiness.status();
            respond(status, TEXT, text)
        }
        ("/metrics", _) => {
            (shown.refresh)();
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &shown.registry) {
                Ok(()) => respond(
                    StatusCode::OK,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    text,
                ),
                Err(_) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "cannot encode the metrics\n"),
            }
        }
        ("/state", Face::Admin) => {
            let streams = serde_json::json!({ "streams": shown.states.all() });
            respond(StatusCode::OK, "application/json", format!("{streams:#}\n"))
        }
        ("/", Face::Admin) => respond(StatusCode::OK, TEXT, INDEX),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "not found\n"),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
