//! The protocol towards Envoy: a whole xDS server. Versions are made from contents, so the same
//! config has the same version after a restart; nonces count the responses of a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::slot::{Candidate, Hash, Slot, Trust, Wrapper, hash};
use super::{EnvoyRequest, EnvoyResponse, Names, Variant, WILDCARD};
use crate::protobuf::{type_url, wire};

/// A response that Envoy has not answered.
#[derive(Debug, Clone)]
pub struct Sent {
    nonce: String,
    /// All that it carried.
    pub carried: Vec<(String, Hash)>,
    /// What of that was new.
    pub changed: Vec<(String, Hash)>,
}

/// What a request says about the last response.
#[derive(Debug)]
pub enum Verdict {
    None,
    Accepted(Sent),
    Rejected(Sent, String),
}

/// How a request changes the subscription.
#[derive(Debug, Default)]
pub struct Change {
    pub added: BTreeSet<String>,
    pub dropped: BTreeSet<String>,
    /// Subscribed names that Envoy holds, or may hold, from an earlier stream.
    pub held: BTreeSet<String>,
    /// The first request for this type on this stream.
    pub first: bool,
}

impl Change {
    pub fn is_change(&self) -> bool {
        self.first || !self.added.is_empty() || !self.dropped.is_empty()
    }
}

/// What Envoy has asked for and been told.
#[derive(Debug)]
pub struct Envoy {
    variant: Variant,
    started: bool,
    names: BTreeSet<String>,
    responses: u64,
    last_nonce: String,
    outstanding: Option<Sent>,
    /// Names to send again although nothing changed.
    again: BTreeSet<String>,
    /// Delta alone: in the state of the world an absent name is unchanged, and there is no way to say
    /// that one was removed.
    removed: BTreeSet<String>,
}

impl Envoy {
    pub fn new(variant: Variant) -> Self {
        Self {
            variant,
            started: false,
            names: BTreeSet::new(),
            responses: 0,
            last_nonce: String::new(),
            outstanding: None,
            again: BTreeSet::new(),
            removed: BTreeSet::new(),
        }
    }

    pub fn variant(&self) -> Variant {
        self.variant
    }

    pub fn subscribed(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Whether Envoy asked for this name.
    pub fn wants(&self, name: &str) -> bool {
        self.names.contains(name) || self.names.contains(WILDCARD)
    }

    pub fn outstanding(&self) -> Option<&Sent> {
        self.outstanding.as_ref()
    }

    /// What the request says about the response that is out. An answer to an older one says nothing.
    pub fn verdict(&mut self, request: &EnvoyRequest) -> Verdict {
        match self.outstanding.take_if(|sent| sent.nonce == request.nonce) {
            None => Verdict::None,
            Some(sent) => match &request.error {
                None => Verdict::Accepted(sent),
                Some(reason) => Verdict::Rejected(sent, reason.clone()),
            },
        }
    }

    /// Takes in what the request says about the subscription. `answered`: it was the answer to the
    /// response that was out.
    pub fn subscribe(&mut self, request: &EnvoyRequest, answered: bool) -> Change {
        let mut change = Change { first: !std::mem::replace(&mut self.started, true), ..Change::default() };
        match &request.names {
            Names::All(names) => {
                change.added = names.difference(&self.names).cloned().collect();
                change.dropped = self.names.difference(names).cloned().collect();
                // The same names with a nonce that has been answered: a second watch in Envoy for
                // a name that it has, which waits for a response of its own.
                let settled = self.outstanding.is_none() && request.nonce == self.last_nonce;
                if !change.first && !change.is_change() && !answered && settled {
                    self.again.clone_from(names);
                }
                if change.first && request.resumes {
                    // Any of them, for all that it says.
                    change.held.clone_from(names);
                }
                self.names.clone_from(names);
            }
            Names::Change { subscribe, unsubscribe, held } => {
                change.added = subscribe.difference(&self.names).cloned().collect();
                self.again.extend(subscribe.intersection(&self.names).cloned());
                change.dropped = unsubscribe.intersection(&self.names).cloned().collect();
                self.names.extend(change.added.iter().cloned());
                self.names.retain(|name| !change.dropped.contains(name));
                change.held = held.intersection(&self.names).cloned().collect();
            }
        }
        for name in &change.dropped {
            self.again.remove(name);
            self.removed.remove(name);
        }
        change
    }

    /// Sends this name again, changed or not.
    pub fn force(&mut self, name: &str) {
        self.again.insert(name.to_owned());
    }

    /// The control plane removed this name.
    pub fn remove(&mut self, name: String) {
        if self.wants(&name) {
            self.removed.insert(name);
        }
    }

    /// The control plane offers this name; an older removal that has not gone out is void.
    pub fn offered(&mut self, name: &str) {
        self.removed.remove(name);
    }

    /// The next response, where there is something to say. `slots` are those of wanted names.
    pub fn respond(&mut self, slots: &mut BTreeMap<String, Slot>, now: Instant) -> Option<EnvoyResponse> {
        let mut news = Self::choose(slots);
        let again = self.again.iter().any(|name| slots.get(name).is_some_and(|slot| slot.held().is_some()));
        if news.is_empty() && !again && self.removed.is_empty() {
            return None;
        }
        let mut sent = Sent { nonce: self.next_nonce(), carried: Vec::new(), changed: Vec::new() };
        let (mut resources, mut versions) = (Vec::new(), Vec::new());
        for (name, slot) in slots {
            if let Some(candidate) = news.remove(name) {
                sent.changed.push((name.clone(), candidate.hash));
                slot.mark_sent(candidate);
            } else if self.variant == Variant::Delta && !self.again.contains(name) {
                continue;
            }
            // In the state of the world what Envoy has goes along, byte for byte as it was.
            let Some(carried) = slot.held() else { continue };
            resources.push(encode(name, carried, slot.remaining_ttl(now)));
            versions.push(carried.hash);
            sent.carried.push((name.clone(), carried.hash));
        }
        self.again.clear();
        let versions: Vec<&[u8]> = versions.iter().map(<[u8; 16]>::as_slice).collect();
        let response = EnvoyResponse {
            version: hex::encode(hash(&versions)),
            nonce: sent.nonce.clone(),
            resources,
            removed: std::mem::take(&mut self.removed).into_iter().collect(),
        };
        self.outstanding = Some(sent);
        Some(response)
    }

    /// The news for Envoy that go into the next response. Envoy does not say which one of several it
    /// rejected, nor which ones it has looked at before that. So what it has accepted before, and what
    /// repairs what it rejected, goes before all else; a fallback, of a type that Envoy may not
    /// expect, goes alone; and so does everything while there are suspects, who come last.
    fn choose(slots: &BTreeMap<String, Slot>) -> BTreeMap<String, Candidate> {
        let (mut proven, mut new, mut risky) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, slot) in slots {
            let Some(candidate) = slot.news() else { continue };
            let group = match slot.trust(&candidate) {
                Trust::Proven => &mut proven,
                Trust::New => &mut new,
                Trust::Risky => &mut risky,
            };
            group.insert(name.clone(), candidate);
        }
        if !proven.is_empty() {
            return proven;
        }
        let careful = slots.values().any(|slot| slot.trial().is_some());
        if !new.is_empty() && !careful {
            return new;
        }
        let trial = || slots.iter().find_map(|(name, slot)| Some((name.clone(), slot.trial()?)));
        let alone = new.pop_first().or_else(|| risky.pop_first()).or_else(trial);
        alone.into_iter().collect()
    }

    fn next_nonce(&mut self) -> String {
        self.responses += 1;
        self.last_nonce = self.responses.to_string();
        self.last_nonce.clone()
    }
}

/// The resource as it goes into a response: an Any, or a Resource in Delta. Where Envoy may keep it for
/// a limited time, with what is left of that.
fn encode(name: &str, candidate: &Candidate, ttl: Option<Duration>) -> Bytes {
    let mut any = Vec::with_capacity(candidate.body.len() + 80);
    wire::put_string(&mut any, 1, type_url::EXTENSION_CONFIG);
    wire::put_len(&mut any, 2, &candidate.body);
    let rest = match ttl {
        Some(ttl) => candidate.wrapper.rest_with_ttl(ttl),
        None => candidate.wrapper.rest().to_vec(),
    };
    match &candidate.wrapper {
        Wrapper::Bare if ttl.is_none() => any.into(),
        Wrapper::Bare | Wrapper::Wrapped(_) => {
            let mut resource = rest;
            wire::put_len(&mut resource, 2, &any);
            if candidate.wrapper == Wrapper::Bare {
                wire::put_string(&mut resource, 3, name);
            }
            let mut outer = Vec::with_capacity(resource.len() + 80);
            wire::put_string(&mut outer, 1, type_url::RESOURCE);
            wire::put_len(&mut outer, 2, &resource);
            outer.into()
        }
        Wrapper::Delta(_) => {
            let mut resource = Vec::with_capacity(any.len() + rest.len() + name.len() + 50);
            wire::put_string(&mut resource, 1, &hex::encode(candidate.hash));
            wire::put_len(&mut resource, 2, &any);
            wire::put_string(&mut resource, 3, name);
            resource.extend_from_slice(&rest);
            resource.into()
        }
    }
}
