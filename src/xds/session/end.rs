//! Why a stream ends, what is counted then, and what Envoy is told.

use http::HeaderMap;
use tonic::{Code, Status};

use super::NAMES_LIMIT;
use crate::protobuf::WireError;
use crate::xds::frame::FrameError;
use crate::xds::outbox::Overflow;

/// Why a stream ends, where no peer said so itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the control plane ended the stream")]
    ControlPlane(Option<HeaderMap>),
    #[error("Envoy ended the stream")]
    Envoy,
    #[error("Envoy's stream broke: {0}")]
    FromEnvoy(FrameError),
    #[error("Envoy reset the stream, or its connection ended")]
    EnvoyGone,
    #[error("the control plane's stream broke: {0}")]
    FromControlPlane(FrameError),
    #[error("{0}")]
    Unreachable(String),
    #[error("Envoy sent a malformed message: {0}")]
    MalformedRequest(WireError),
    #[error("the control plane sent a malformed message: {0}")]
    MalformedResponse(WireError),
    #[error("Envoy asks for more names than {NAMES_LIMIT} bytes hold")]
    TooManyNames,
    #[error("Envoy is too slow: {0}")]
    EnvoyStalled(Overflow),
    #[error("the control plane is too slow: {0}")]
    ControlPlaneStalled(Overflow),
    #[error("the agent is shutting down")]
    Shutdown,
}

impl End {
    pub(super) fn label(&self) -> &'static str {
        match self {
            End::ControlPlane(_) => "control_plane",
            End::Envoy => "envoy",
            End::FromEnvoy(_) | End::EnvoyGone => "envoy_broken",
            End::FromControlPlane(_) => "control_plane_broken",
            End::Unreachable(_) => "control_plane_unreachable",
            End::MalformedRequest(_) => "malformed_request",
            End::MalformedResponse(_) => "malformed_response",
            End::TooManyNames => "too_many_names",
            End::EnvoyStalled(_) => "envoy_stalled",
            End::ControlPlaneStalled(_) => "control_plane_stalled",
            End::Shutdown => "shutdown",
        }
    }

    /// The trailers that Envoy gets: the control plane's own where it sent some.
    pub(super) fn trailers(self) -> HeaderMap {
        let code = match &self {
            End::ControlPlane(Some(trailers)) if trailers.contains_key(Status::GRPC_STATUS) => {
                return trailers.clone();
            }
            End::Envoy => Code::Ok,
            End::EnvoyGone => Code::Cancelled,
            End::TooManyNames | End::EnvoyStalled(_) | End::ControlPlaneStalled(_) => Code::ResourceExhausted,
            End::FromEnvoy(error) | End::FromControlPlane(error)
                if matches!(error, FrameError::TooLarge { .. } | FrameError::NoRoom { .. }) =>
            {
                Code::ResourceExhausted
            }
            End::MalformedRequest(_) | End::FromEnvoy(_) => Code::InvalidArgument,
            End::MalformedResponse(_) | End::FromControlPlane(FrameError::Compressed) => Code::Internal,
            End::ControlPlane(_) | End::FromControlPlane(_) | End::Unreachable(_) | End::Shutdown => {
                Code::Unavailable
            }
        };
        let mut trailers = HeaderMap::new();
        // A status of ours always fits into headers.
        let _ = Status::new(code, self.to_string()).add_header(&mut trailers);
        trailers
    }
}
