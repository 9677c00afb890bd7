//! Integration tests: the built binary among real parts. One file a behaviour; `support` starts the
//! parts and ends them.
//!
//! `make tools` gets the real parts, `make test` does that and runs everything. Run as root, agent and
//! Envoy are two different unprivileged users in every test, so that modes and groups are tested too.

mod agent_config;
mod bad_sources;
mod commands;
mod documents;
mod fallback;
mod filters;
mod flow;
mod harness;
mod image;
mod listeners;
mod metrics;
mod nacks;
mod policy;
mod prefetch;
mod push;
mod relay;
mod restart;
mod secrets;
mod standalone;
mod store;
mod structure;
mod support;
mod tags;
