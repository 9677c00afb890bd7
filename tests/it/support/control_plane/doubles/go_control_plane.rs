//! What go-control-plane says: its snapshot cache (outside of its ADS mode, in which it says less) behind
//! its server.
//!
//! - A response leaves it silent until the next request for the type, whatever that says.
//! - State of the world: a request with another version than the snapshot's is answered with all that it
//!   names, at once. So a NACK brings the rejected version again, and does so for ever. A request with the
//!   same version is answered only with names that it has not had: a part.
//! - State of the world: a request with another nonce than the last one's is dropped whole. In Delta no
//!   nonce is looked at.
//! - No names in the first request of a stream mean all. Nor does a release up to 0.14 send less than all
//!   to one who unsubscribed from everything in state of the world.
//! - Delta: what was sent counts as had, whatever the answer.

use std::collections::{BTreeMap, BTreeSet};

use super::{Offered, Request, Response, Watch};

#[derive(Debug, Default)]
pub(super) struct Sotw {
    /// There has been a request with names.
    named: bool,
    names: BTreeSet<String>,
    /// What the client is taken to have.
    known: BTreeSet<String>,
    /// What will be, once the last response is answered.
    sent: BTreeSet<String>,
    nonce: String,
    /// The version in the request that has not been answered.
    open: Option<String>,
}

impl Sotw {
    fn respond(&mut self, offered: &Offered) -> Option<Response> {
        let version = self.open.clone()?;
        let all = self.names.is_empty() || self.names.contains("*");
        let wanted = |name: &str| all || self.names.contains(name);
        let is_news = |name: &str| wanted(name) && !self.known.contains(name);
        let unsubscribed = self.named && self.names.is_empty();
        let (response, sent) = if offered.version.to_string() != version {
            let response = Response::of(offered, wanted, |offer| offer.revision.to_string());
            let sent = response.resources.keys().cloned().collect();
            (response, sent)
        } else {
            let response = Response::of(offered, is_news, |offer| offer.revision.to_string());
            if response.resources.is_empty() || unsubscribed {
                return None;
            }
            let sent = self.known.iter().chain(response.resources.keys()).cloned().collect();
            (response, sent)
        };
        self.open = None;
        self.sent = sent;
        Some(response)
    }
}

impl Watch for Sotw {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response> {
        if !self.nonce.is_empty() && request.nonce != self.nonce {
            return None;
        }
        self.known = std::mem::take(&mut self.sent);
        self.names.clone_from(&request.names);
        self.named |= !self.names.is_empty();
        if self.named && !self.names.contains("*") {
            self.known.retain(|name| self.names.contains(name));
        }
        // Until the next response these stay known.
        self.sent.clone_from(&self.known);
        self.open = Some(request.version.clone());
        self.respond(offered)
    }

    fn changed(&mut self, offered: &Offered) -> Option<Response> {
        // A version that is the same opens nothing.
        if self.open.as_ref() == Some(&offered.version.to_string()) {
            return None;
        }
        self.respond(offered)
    }

    fn sent(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.nonce);
    }
}

#[derive(Debug, Default)]
pub(super) struct Delta {
    started: bool,
    wildcard: bool,
    /// There has been a request that subscribed to something.
    named: bool,
    names: BTreeSet<String>,
    /// What the client is taken to have, with versions.
    known: BTreeMap<String, String>,
    /// Whether something may be said.
    open: bool,
}

impl Delta {
    fn respond(&mut self, offered: &Offered, even_if_empty: bool) -> Option<Response> {
        if !self.open {
            return None;
        }
        let wanted = |name: &str| self.wildcard || self.names.contains(name);
        let mut response = Response::of(offered, wanted, |offer| offer.revision.to_string());
        response.resources.retain(|name, (version, _)| self.known.get(name) != Some(version));
        let gone = |name: &&String| !offered.resources.contains_key(*name) || !wanted(name);
        response.removed = self.known.keys().filter(gone).cloned().collect();
        if response.resources.is_empty() && response.removed.is_empty() && !even_if_empty {
            return None;
        }
        self.open = false;
        self.known.retain(|name, _| !response.removed.contains(name));
        self.known
            .extend(response.resources.iter().map(|(name, (version, _))| (name.clone(), version.clone())));
        Some(response)
    }
}

impl Watch for Delta {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response> {
        if !std::mem::replace(&mut self.started, true) {
            self.known.clone_from(&request.initial);
            self.wildcard = request.subscribe.is_empty();
        }
        self.named |= !request.subscribe.is_empty();
        if self.named {
            self.wildcard |= request.subscribe.contains("*");
            self.names.extend(request.subscribe.iter().filter(|name| *name != "*").cloned());
            for name in &request.unsubscribe {
                if name == "*" {
                    self.wildcard = false;
                } else if self.names.remove(name) && self.wildcard {
                    // Had without a version: it is sent again.
                    self.known.insert(name.clone(), String::new());
                } else {
                    self.known.remove(name);
                }
            }
        }
        self.open = true;
        self.respond(offered, self.wildcard && request.nonce.is_empty())
    }

    fn changed(&mut self, offered: &Offered) -> Option<Response> {
        self.respond(offered, false)
    }

    fn sent(&mut self, _: &str) {}
}
