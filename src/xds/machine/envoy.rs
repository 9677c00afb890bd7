//! The protocol towards Envoy: a whole xDS server. Versions are made from contents, so the same
//! config has the same version after a restart; nonces count the responses of a stream.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::slot::{Candidate, Hash, Slot, Wrapper, hash};
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

    /// The next response, where there is something to say.
    pub fn respond(&mut self, slots: &mut BTreeMap<String, Slot>) -> Option<EnvoyResponse> {
        let mut carried = self.choose(slots, None);
        if carried.iter().all(|entry| !entry.2) && self.removed.is_empty() {
            // Nothing is ready but what was rejected among others: one of those is tried alone.
            let suspect = slots.iter().find(|(_, slot)| slot.awaits_trial()).map(|(name, _)| name.clone())?;
            carried = self.choose(slots, Some(&suspect));
        }
        if self.variant == Variant::Delta {
            carried.retain(|(_, _, send)| *send);
        } else {
            // A name that is absent from a state-of-the-world response is unchanged: there is no
            // way to say that one was removed.
            self.removed.clear();
        }
        if !carried.iter().any(|(_, _, send)| *send) && self.removed.is_empty() {
            return None;
        }
        self.again.clear();
        let mut sent = Sent { nonce: self.next_nonce(), carried: Vec::new(), changed: Vec::new() };
        let mut resources = Vec::new();
        for (name, candidate, _) in &carried {
            resources.push(encode(name, candidate));
            sent.carried.push((name.clone(), candidate.hash));
            if let Some(slot) = slots.get_mut(name) {
                if slot.sent() != Some(candidate.hash) {
                    sent.changed.push((name.clone(), candidate.hash));
                }
                slot.mark_sent(candidate.clone());
            }
        }
        let hashes: Vec<&[u8]> = carried.iter().map(|(_, candidate, _)| candidate.hash.as_slice()).collect();
        let response = EnvoyResponse {
            version: hex::encode(hash(&hashes)),
            nonce: sent.nonce.clone(),
            resources,
            removed: std::mem::take(&mut self.removed).into_iter().collect(),
        };
        self.outstanding = Some(sent);
        Some(response)
    }

    /// What a response would carry, in the order of names, each with whether it has to be sent.
    fn choose(&self, slots: &BTreeMap<String, Slot>, trial: Option<&str>) -> Vec<(String, Candidate, bool)> {
        slots
            .iter()
            .filter(|(name, _)| self.wants(name))
            .filter_map(|(name, slot)| {
                let candidate = slot.presentable(trial == Some(name))?;
                let send = slot.sent() != Some(candidate.hash) || self.again.contains(name);
                Some((name.clone(), candidate, send))
            })
            .collect()
    }

    fn next_nonce(&mut self) -> String {
        self.responses += 1;
        self.last_nonce = self.responses.to_string();
        self.last_nonce.clone()
    }
}

/// The resource as it goes into a response: an Any, or a Resource in Delta.
fn encode(name: &str, candidate: &Candidate) -> Bytes {
    let mut any = Vec::with_capacity(candidate.body.len() + 80);
    wire::put_string(&mut any, 1, type_url::EXTENSION_CONFIG);
    wire::put_len(&mut any, 2, &candidate.body);
    match &candidate.wrapper {
        Wrapper::Bare => any.into(),
        Wrapper::Wrapped(rest) => {
            let mut resource = rest.to_vec();
            wire::put_len(&mut resource, 2, &any);
            let mut outer = Vec::with_capacity(resource.len() + 80);
            wire::put_string(&mut outer, 1, type_url::RESOURCE);
            wire::put_len(&mut outer, 2, &resource);
            outer.into()
        }
        Wrapper::Delta(rest) => {
            let mut resource = Vec::with_capacity(any.len() + rest.len() + name.len() + 50);
            wire::put_string(&mut resource, 1, &hex::encode(candidate.hash));
            wire::put_len(&mut resource, 2, &any);
            wire::put_string(&mut resource, 3, name);
            resource.extend_from_slice(rest);
            resource.into()
        }
    }
}
