//! Integration tests: the built binary among real parts. One file a behaviour; `support` starts the
//! parts and ends them.
//!
//! `make tools` gets the real parts, `make test` does that and runs everything. Run as root, agent and
//! Envoy are two different unprivileged users in every test, so that modes and groups are tested too.

mod agent_config;
mod bad_sources;
mod cache;
mod cold_start;
mod commands;
mod credentials;
mod documents;
mod ecds_memory;
mod ecds_rejections;
mod ecds_streams;
mod ecds_under_load;
mod ecds_updates;
mod endurance;
mod extension_service;
mod fallback;
mod filters;
mod flow;
mod full_disk;
mod harness;
mod hosts;
mod hot_restart;
mod hungry_modules;
mod image;
mod killed;
mod layouts;
mod leaks;
mod leases;
mod listeners;
mod metrics;
mod nacks;
mod no_fallback;
mod policy;
mod prefetch;
mod push;
mod relay;
mod restart;
mod resume;
mod same_node;
mod secrets;
mod shared_store;
mod standalone;
mod store;
mod structure;
mod support;
mod tags;
mod tenants;
mod token_protocol;
mod ttl;
mod updates;
