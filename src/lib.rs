//! wasmferry stands between an Envoy and its control plane and brings Envoy its Wasm modules.
//!
//! ```text
//! Envoy ==gRPC==> xds ------------------------------> upstream (control plane, or a directory)
//!   ^              |  every type: the bytes that came
//!   |              |  extension configs:
//!   +--- rewritten +--> rewrite -> resolve -> store (hit)
//!                                     |
//!                                     +-----> fetch (OCI, HTTP, file) -> wasm -> store
//! ```
//!
//! `prefetch` enters at `resolve`; `admin` reads what the others write. The invariants that the
//! modules keep are in ARCHITECTURE.md. Modules stand bottom-up: each uses only those above it.

// What a digest covers is part of its type.
pub mod digest;

// What must not be seen.
pub mod secret;

// An error in one line, with what caused it.
pub mod causes;

// Time, injected.
pub mod clock;

// What is counted.
pub mod metrics;

// Sockets that others connect to.
pub mod listen;

// Documents as trees that know their lines.
pub mod yaml;

// What is asked for, and what comes back.
pub mod module;

// The wire format, and the few messages that are read.
pub mod protobuf;

// What listeners and clusters say of the extension configs that they wait for.
pub mod discovery;

// Modules on disk: ingest, content, views, index.
pub mod store;

// Take a module out of what carries it; look inside.
pub mod wasm;

// Bytes from registries, servers and files, credentials apart.
pub mod fetch;

// Request to path: policy, and one flight per module.
pub mod resolve;

// Resource to resource.
pub mod rewrite;

// Where resources come from.
pub mod upstream;

// The relay and the engine.
pub mod xds;

// What an agent does for its store: its age, leases, garbage collection.
pub mod upkeep;

// Health, metrics, state.
pub mod admin;

// The configuration, and the only reader of the environment.
pub mod config;

// The agent, put together.
pub mod app;

// The commands.
pub mod cli;
