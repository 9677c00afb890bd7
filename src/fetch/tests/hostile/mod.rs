//! Registries, token servers and web servers that mean harm: each test has one that really does it.

mod addresses;
mod answers;
mod credentials;
mod digests;

use super::server::{Fault, Reply, Seen, Server};
use super::*;

/// A registry's question for a token.
fn ask(realm: &str) -> Reply {
    Reply::new(401).header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))
}

/// Where a server is, that is known by a name.
fn at(name: &str, server: &Server) -> String {
    format!("{name}:{}", server.address.port())
}
