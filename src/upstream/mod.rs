//! Where resources come from: a control plane over gRPC, or a directory of plugin files.

pub mod directory;
pub mod grpc;
