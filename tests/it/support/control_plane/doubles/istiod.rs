//! What istiod says.
//!
//! - It waits for no answer: each change of anything pushes all that is watched, of every type, changed or
//!   not.
//! - A NACK is logged and no more: names in it are not read, and nothing is sent again.
//! - A request with another nonce than the last one's is dropped whole, subscriptions in it too, in Delta
//!   as well.
//! - What a subscription adds is answered, alone. One that adds nothing gets no answer, nor does one that
//!   adds only what there is not.
//! - In Delta resources have no version, and extension configs are never removed.
//! - Streams end after half an hour or so; [`super::Double::close_at_random`] does that.

use std::collections::BTreeSet;

use super::{Offered, Request, Response, Watch};

/// No versions of single resources.
fn unversioned(offered: &Offered, names: impl Fn(&str) -> bool) -> Response {
    Response::of(offered, names, |_| String::new())
}

#[derive(Debug)]
pub(super) struct Sotw {
    /// All of the type, whatever the names.
    wildcard: bool,
    watched: Option<BTreeSet<String>>,
    nonce: String,
}

impl Sotw {
    pub(super) fn new(wildcard: bool) -> Sotw {
        Sotw { wildcard, watched: None, nonce: String::new() }
    }

    fn generate(&self, offered: &Offered, names: &BTreeSet<String>) -> Option<Response> {
        let response = unversioned(offered, |name| self.wildcard || names.contains(name));
        (self.wildcard || !response.resources.is_empty()).then_some(response)
    }
}

impl Watch for Sotw {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response> {
        if request.is_nack {
            return None;
        }
        if request.names.is_empty() && !self.wildcard {
            (self.watched, self.nonce) = (None, String::new());
            return None;
        }
        let watched = match &self.watched {
            Some(watched) if !request.nonce.is_empty() => watched,
            _ => {
                (self.watched, self.nonce) = (Some(request.names.clone()), String::new());
                return self.generate(offered, &request.names);
            }
        };
        if request.nonce != self.nonce {
            return None;
        }
        let added: BTreeSet<String> = request.names.difference(watched).cloned().collect();
        self.watched = Some(request.names.clone());
        if added.is_empty() { None } else { self.generate(offered, &added) }
    }

    fn changed(&mut self, offered: &Offered) -> Option<Response> {
        self.generate(offered, self.watched.as_ref()?)
    }

    fn sent(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.nonce);
    }
}

#[derive(Debug)]
pub(super) struct Delta {
    wildcard: bool,
    watched: Option<BTreeSet<String>>,
    nonce: String,
    /// Of a wildcard type: what the client has.
    known: BTreeSet<String>,
}

impl Delta {
    pub(super) fn new(wildcard: bool) -> Delta {
        Delta { wildcard, watched: None, nonce: String::new(), known: BTreeSet::new() }
    }

    fn generate(&mut self, offered: &Offered, names: &BTreeSet<String>) -> Option<Response> {
        let mut response = unversioned(offered, |name| self.wildcard || names.contains(name));
        if self.wildcard {
            let now: BTreeSet<String> = response.resources.keys().cloned().collect();
            response.removed = self.known.difference(&now).cloned().collect();
            self.known = now;
        } else if response.resources.is_empty() {
            return None;
        }
        Some(response)
    }
}

impl Watch for Delta {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response> {
        if request.is_nack {
            return None;
        }
        let mut asked: BTreeSet<String> =
            request.subscribe.iter().chain(request.initial.keys()).cloned().collect();
        asked.retain(|name| !request.unsubscribe.contains(name));
        let Some(watched) = &mut self.watched else {
            self.watched = Some(asked.clone());
            self.known.extend(request.initial.keys().cloned());
            return self.generate(offered, &asked);
        };
        if !request.nonce.is_empty() && request.nonce != self.nonce {
            return None;
        }
        let before = watched.clone();
        watched.extend(asked.iter().cloned());
        watched.retain(|name| !request.unsubscribe.contains(name));
        if *watched == before || asked.is_empty() {
            return None;
        }
        self.generate(offered, &asked)
    }

    fn changed(&mut self, offered: &Offered) -> Option<Response> {
        let watched = self.watched.clone()?;
        self.generate(offered, &watched)
    }

    fn sent(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.nonce);
    }
}
