//! Where resources come from: a control plane over gRPC, or a directory of plugin files.

pub mod directory;
pub mod grpc;

use std::sync::Arc;

use tokio::sync::watch;

/// Where the sessions of an agent get their resources.
#[derive(Debug, Clone)]
pub enum Upstream {
    Grpc(Box<grpc::ControlPlane>),
    /// What the folder holds, as it changes.
    Directory(watch::Receiver<Arc<directory::Snapshot>>),
}
