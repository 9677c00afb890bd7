//! The gRPC server that Envoys connect to: connections, and which call is which.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::machine::Variant;
use super::outbox::OutboxBody;
use super::session::{self, Shared};
use crate::causes::with_causes;
use crate::listen::{Bound, Connection};
use crate::upstream::grpc::MAX_FRAME;

/// A peer that answers no ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection on which nobody has asked for anything by then is closed.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts Envoys until shutdown, then lets the connections finish.
pub async fn serve(bound: Bound, shared: Arc<Shared>, tracker: TaskTracker) {
    let name: Arc<str> = bound.address.to_string().into();
    loop {
        let accepted = tokio::select! {
            () = shared.shutdown.cancelled() => break,
            accepted = bound.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                tracker.spawn(connection(stream, shared.clone(), name.clone(), tracker.clone()));
            }
            Err(error) => {
                // Out of file descriptors, mostly: others may end meanwhile.
                tracing::warn!(listener = &*name, "cannot accept a connection: {error}");
                shared.clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: Connection, shared: Arc<Shared>, name: Arc<str>, tracker: TaskTracker) {
    let spoken = CancellationToken::new();
    let service = {
        let (shared, name, spoken) = (shared.clone(), name.clone(), spoken.clone());
        service_fn(move |request| {
            spoken.cancel();
            let response = call(request, &shared, &name, &tracker);
            async move { Ok::<_, Infallible>(response) }
        })
    };
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(64 * 1024)
        .max_frame_size(MAX_FRAME);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let silent = shared.clock.timeout_at(shared.clock.now() + SILENCE_LIMIT, spoken.cancelled());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        Err(_) = silent => {
            tracing::info!(listener = &*name, "closed a connection on which nothing was asked");
            return;
        }
        () = shared.shutdown.cancelled() => {
            // One that has not even said hello knows no farewell either.
            if !spoken.is_cancelled() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // An Envoy whose cluster name is no valid authority ends here without any other sign.
        let hint = if std::error::Error::source(&error).is_some_and(is_protocol_error) {
            "; is the gRPC service's authority set in Envoy's bootstrap?"
        } else {
            ""
        };
        tracing::warn!(listener = &*name, "a connection from an Envoy failed: {}{hint}", with_causes(&error));
    }
}

fn is_protocol_error(error: &(dyn std::error::Error + 'static)) -> bool {
    error.to_string().contains("protocol error")
}

/// The services by which extension configs come: with all other types, or alone.
const AGGREGATED: [&str; 2] = [
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
];
const EXTENSION_CONFIG: [&str; 2] = [
    "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
    "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
];

fn served(path: &str) -> Option<session::Method> {
    for (paths, only_intercepted) in [(AGGREGATED, false), (EXTENSION_CONFIG, true)] {
        for (known, variant) in paths.into_iter().zip([Variant::StateOfTheWorld, Variant::Delta]) {
            if known == path {
                return Some(session::Method { variant, path: known, only_intercepted });
            }
        }
    }
    None
}

fn call(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    listener: &Arc<str>,
    tracker: &TaskTracker,
) -> Response<http_body_util::Either<OutboxBody, http_body_util::Empty<Bytes>>> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST || !is_grpc(&parts.headers) {
        let mut response = Response::new(http_body_util::Either::Right(http_body_util::Empty::new()));
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let Some(method) = served(parts.uri.path()) else {
        let served = "only aggregated discovery and that of extension configs are served here";
        return refuse(Status::new(Code::Unimplemented, served));
    };
    if shared.shutdown.is_cancelled() {
        return refuse(Status::new(Code::Unavailable, "the agent is shutting down"));
    }
    let metadata = metadata(parts.headers);
    let (outbox, session) = session::start(shared, listener.clone(), method, metadata, body);
    tracker.spawn(session);
    let mut response = Response::new(http_body_util::Either::Left(outbox));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
    response
}

/// Whether the call is gRPC, with messages of whatever encoding; gRPC-Web is another protocol.
fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
    let rest = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn refuse<A>(status: Status) -> Response<http_body_util::Either<A, http_body_util::Empty<Bytes>>> {
    let mut response = Response::new(http_body_util::Either::Right(http_body_util::Empty::new()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
    let _ = status.add_header(response.headers_mut());
    response
}

/// What goes up of a request's headers: all but what belongs to this hop. Compression is of this
/// hop too, since messages are read here.
fn metadata(mut headers: HeaderMap) -> HeaderMap {
    for name in ["host", "te", "content-type", "content-length", "user-agent", "connection"] {
        headers.remove(name);
    }
    for name in ["grpc-encoding", "grpc-accept-encoding", "accept-encoding"] {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_from_what_only_begins_like_it() {
        let is =
            |value: &str| is_grpc(&HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]));
        for value in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is(value), "{value}");
        }
        for value in ["application/grpc-web", "application/grpcish", "application/json", ""] {
            assert!(!is(value), "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn metadata_goes_up_without_what_belongs_to_this_hop() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("authorization", "Bearer x"), ("te", "trailers"), ("grpc-accept-encoding", "gzip")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        let up = metadata(headers);
        assert_eq!(up.keys().map(|k| k.as_str()).collect::<Vec<_>>(), ["authorization"]);
    }
}
