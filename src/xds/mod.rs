//! The relay: an xDS server to each Envoy, an xDS client to its control plane, and between them the
//! messages as the bytes that they are, except for the intercepted type.
//!
//! - [`listener`]: sockets, connections, and which call is which.
//! - [`session`]: one stream of one Envoy and its stream upstream; a single task that reads both.
//! - [`intercept`] and [`machine`]: the intercepted type, from bytes to events and back.
//! - [`frame`], [`outbox`], [`budget`]: gRPC messages in, out, and their memory.
//! - [`memories`]: what outlives the streams of a node; [`leases`]: the files that its Envoys may open.
//! - [`state`]: what the streams are doing, for the admin page.

pub mod budget;
pub mod frame;
pub mod intercept;
pub mod leases;
pub mod listener;
pub mod machine;
pub mod memories;
pub mod outbox;
pub mod session;
pub mod state;
