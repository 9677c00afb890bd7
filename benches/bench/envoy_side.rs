//! A stream as an Envoy opens it, on tonic's raw codec.

use bytes::Bytes;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};

use crate::support::control_plane::{Protocol, Raw};
use crate::support::envoy::Xds;

/// The largest message that is sent or taken.
pub const MAX_MESSAGE: usize = 256 << 20;

/// A connection to whoever listens there.
pub fn channel(to: &Xds) -> Channel {
    let endpoint = match to {
        Xds::Tcp(address) => Endpoint::from_shared(format!("http://{address}")),
        Xds::Unix(path) => Endpoint::from_shared(format!("unix://{}", path.display())),
    };
    endpoint.expect("an address").connect_lazy()
}

/// The path of a protocol's method.
pub fn path(protocol: Protocol) -> PathAndQuery {
    PathAndQuery::from_static(match protocol {
        Protocol::Sotw => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        Protocol::Delta => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    })
}

/// One open stream.
pub struct Stream {
    requests: mpsc::Sender<Bytes>,
    responses: Streaming<Bytes>,
}

impl Stream {
    pub async fn open(to: &Xds, protocol: Protocol) -> Stream {
        let mut client = Grpc::new(channel(to))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        client.ready().await.expect("someone who listens");
        let (requests, outgoing) = mpsc::channel(1);
        let outgoing = tonic::Request::new(ReceiverStream::new(outgoing));
        let answer = client.streaming(outgoing, path(protocol), Raw).await.expect("a stream");
        Stream { requests, responses: answer.into_inner() }
    }

    pub async fn send(&self, request: Bytes) {
        self.requests.send(request).await.expect("a stream that goes on");
    }

    pub async fn receive(&mut self) -> Bytes {
        self.responses.message().await.expect("a stream that goes on").expect("another response")
    }
}
