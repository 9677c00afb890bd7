//! The engine for intercepted types: a pure state machine, events in and actions out. It knows no
//! sockets, no clock and no files; whoever drives it says what time it is.
//!
//! To Envoy it is a whole xDS server, to the control plane a whole client: both nonce spaces and
//! Envoy's versions are its own. One machine serves one stream. Its parts: [`slot`] is what is known
//! of one resource, [`envoy`] the protocol towards Envoy, [`control`] the one towards the control
//! plane, [`refresh`] what is done about tags that move; this file is what happens between them.

pub mod control;
pub mod envoy;
pub mod events;
pub mod refresh;
pub mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::module::Module;
use crate::rewrite::Plan;
pub use crate::upstream::directory::Variant;

pub use self::events::{
    Action, ControlRequest, ControlResponse, EnvoyRequest, EnvoyResponse, Failure, Names, Note, Serving,
};

pub use self::refresh::Refresh;

use self::control::Control;
use self::envoy::{Envoy, Verdict};
use self::slot::{Fetching, Offer, Slot};

/// What can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a resource without a working predecessor waits before its fallback is sent.
    pub hold: Duration,
    /// The first pause after a failed fetch; doubled for each further one.
    pub retry_first: Duration,
    /// The longest pause, and the one after a permanent fault. Each is cut short at random, by half
    /// at most.
    pub retry_cap: Duration,
    /// How long the control plane waits for Envoy's verdict at the most.
    pub answer_after: Duration,
    /// Whether tags are looked at again.
    pub refresh: Option<Refresh>,
}

/// The name that asks for all resources of a type.
pub const WILDCARD: &str = "*";

impl Default for Settings {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(5),
            retry_first: Duration::from_secs(1),
            retry_cap: Duration::from_secs(60),
            answer_after: Duration::from_secs(1),
            refresh: None,
        }
    }
}

/// How Envoy's unified mux rejects a state of the world that lacks a name which an earlier one had,
/// on an earlier stream too. It says so once for each such name, whatever else there is.
const MISSING: &str = "Unexpected number of resources in ExtensionConfigDS response: 0";

/// The state of all resources of one intercepted type on one stream.
pub struct Machine {
    settings: Settings,
    slots: BTreeMap<String, Slot>,
    envoy: Envoy,
    control: Control,
    generations: u64,
    /// Until when the first response waits for what is on its way, so that nothing is missing which
    /// Envoy has from an earlier stream.
    resuming: Option<Instant>,
    /// How often in a row Envoy has missed something.
    missed: usize,
    jitter: Jitter,
    actions: Vec<Action>,
}

impl Machine {
    /// A machine for a new stream. `seed` only spreads retries in time.
    pub fn new(variant: Variant, settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            slots: BTreeMap::new(),
            envoy: Envoy::new(variant),
            control: Control::new(variant),
            generations: 0,
            resuming: None,
            missed: 0,
            jitter: Jitter(seed | 1),
            actions: Vec::new(),
        }
    }

    /// What is to be done, in order. Ask after each event or batch of events.
    pub fn actions(&mut self, now: Instant) -> Vec<Action> {
        self.flush(now);
        std::mem::take(&mut self.actions)
    }

    /// Envoy sent a request.
    pub fn on_envoy(&mut self, request: EnvoyRequest, now: Instant) {
        let verdict = self.envoy.verdict(&request);
        match &verdict {
            Verdict::Accepted(sent) => self.accepted(sent),
            Verdict::Rejected(sent, reason) => self.rejected(sent, reason),
            Verdict::None => {}
        }
        let change = self.envoy.subscribe(&request, !matches!(verdict, Verdict::None));
        for name in &change.dropped {
            self.slots.remove(name);
        }
        if change.first && request.resumes {
            self.resuming = Some(now + self.settings.hold);
        }
        if change.dropped.contains(WILDCARD) {
            self.slots.retain(|name, _| self.envoy.wants(name));
        }
        for name in &change.held {
            self.slots.entry(name.clone()).or_default().envoy_holds = true;
        }
        if change.is_change() {
            // A control plane may drop a subscription that overtakes an answer it waits for.
            self.answer();
            let request = self.control.subscribe(&change, self.envoy.subscribed());
            self.actions.extend(request.map(Action::Request));
        }
        if self.control.is_settled(|name| self.verdict_due(name)) {
            self.answer();
        }
        self.tick(now);
    }

    /// The control plane sent a response.
    pub fn on_control(&mut self, response: ControlResponse, now: Instant) {
        self.answer();
        let mut malformed = response.malformed;
        let mut immediate = BTreeSet::new();
        let mut seen = BTreeMap::new();
        for offer in response.offers {
            let name = offer.name.clone();
            match seen.insert(name.clone(), offer.source) {
                Some(first) if first != offer.source => {
                    seen.insert(name.clone(), first);
                    malformed.push((name, "it comes twice, and not the same".to_owned()));
                }
                _ if !self.envoy.wants(&name) => {}
                _ => {
                    if self.offered(offer, now) {
                        immediate.insert(name);
                    }
                }
            }
        }
        for name in response.removed {
            if seen.contains_key(&name) {
                malformed.push((name, "the response that brings it also removes it".to_owned()));
                continue;
            }
            self.slots.remove(&name);
            self.envoy.remove(name);
        }
        let mut error = None;
        for (name, reason) in malformed {
            let text = error.get_or_insert_with(String::new);
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(&format!("resource {name:?}: {reason}"));
            self.actions.push(Action::Note(Note::Malformed { name, reason }));
        }
        let undecodable = error.is_some();
        let deadline = now + self.settings.answer_after;
        self.control.received(response.version, response.nonce, immediate, error, deadline);
        if undecodable || self.control.is_settled(|name| self.verdict_due(name)) {
            self.answer();
        }
        self.tick(now);
    }

    /// A fetch that was asked for has ended.
    pub fn fetched(&mut self, name: &str, generation: u64, result: Result<&Module, Failure>, now: Instant) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        // A newer config came meanwhile: what was fetched stays in the store.
        if slot.generation != generation {
            return;
        }
        slot.fetching = Fetching::Idle;
        match result {
            Ok(module) => match slot.arrived(module) {
                Ok(recovered) => {
                    if recovered {
                        self.actions.push(Action::Note(Note::Recovered { name: name.to_owned() }));
                    }
                    self.follow(name, module.source, now);
                }
                Err(reason) => self.failed(name, reason, now),
            },
            Err(failure) => self.failed(name, failure, now),
        }
        self.tick(now);
    }

    /// When [`Machine::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let slots = self.slots.values().filter_map(Slot::deadline);
        slots.chain(self.control.deadline()).chain(self.resuming).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if self.control.deadline().is_some_and(|deadline| deadline <= now) {
            self.answer();
        }
        self.resuming = self.resuming.filter(|until| *until > now);
        self.refresh_due(now);
        for (name, slot) in &mut self.slots {
            if let Some(request) = slot.retry_due(now) {
                let (name, generation) = (name.clone(), slot.generation);
                self.actions.push(Action::Fetch { name, generation, request: Box::new(request) });
            }
            if slot.fall_back_if_due(now) {
                self.actions.push(Action::Note(Note::FallbackSent { name: name.clone() }));
            }
        }
    }

    /// The resources, for whoever shows the state.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.slots.iter().map(|(name, slot)| (name.as_str(), slot))
    }

    /// The names that Envoy asks for.
    pub fn subscribed(&self) -> &BTreeSet<String> {
        self.envoy.subscribed()
    }

    /// Whether a response waits for Envoy's answer.
    pub fn awaits_envoy(&self) -> bool {
        self.envoy.outstanding().is_some()
    }

    /// Takes in a resource; whether it can go to Envoy without a fetch and is news to it.
    fn offered(&mut self, offer: Offer, now: Instant) -> bool {
        let name = offer.name.clone();
        let slot = self.slots.entry(name.clone()).or_default();
        if !slot.is_news(&offer) {
            // Control planes resend what has not changed; it restarts nothing. What extends a TTL,
            // be it a bare heartbeat, becomes a full resend.
            if offer.extends_ttl() {
                self.envoy.force(&name);
            }
            return false;
        }
        self.generations += 1;
        self.envoy.offered(&name);
        slot.take(offer, self.generations, now, self.settings.hold);
        let Some(offer) = &slot.offer else { return false };
        let failure = match &offer.plan {
            Plan::Untouched | Plan::Stripped(_) => return slot.deliver_as_is(),
            Plan::Remote(remote) => match &remote.request {
                Ok(request) => {
                    slot.fetching = Fetching::Running;
                    let request = Box::new(request.clone());
                    self.actions.push(Action::Fetch { name, generation: self.generations, request });
                    return false;
                }
                Err(invalid) => Failure {
                    message: invalid.to_string(),
                    label: invalid.label(),
                    permanent: true,
                    retry_after: None,
                },
            },
        };
        self.failed(&name, failure, now);
        false
    }

    fn failed(&mut self, name: &str, failure: Failure, now: Instant) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let attempts = slot.failing.as_ref().map_or(0, |failing| failing.attempts);
        let doubled = self.settings.retry_first.saturating_mul(1 << attempts.min(16));
        let cap = self.settings.retry_cap;
        let pause = self.jitter.spread(if failure.permanent { cap } else { doubled.min(cap) });
        let pause = pause.max(failure.retry_after.unwrap_or_default());
        let retry_in = slot.fails(failure.clone(), pause, now);
        let serving = slot.serving();
        let name = name.to_owned();
        self.actions.push(Action::Note(Note::FetchFailed { name, failure, retry_in, serving }));
    }

    fn accepted(&mut self, sent: &envoy::Sent) {
        (self.resuming, self.missed) = (None, 0);
        for (name, hash) in &sent.carried {
            if let Some(slot) = self.slots.get_mut(name) {
                slot.accepted(*hash);
            }
        }
    }

    fn rejected(&mut self, sent: &envoy::Sent, reason: &str) {
        if reason.contains(MISSING) && self.missed < self.envoy.subscribed().len() {
            self.missed += 1;
            for (name, _) in &sent.changed {
                if let Some(slot) = self.slots.get_mut(name) {
                    slot.unjudged();
                }
            }
            return;
        }
        let names: Vec<_> = sent.changed.iter().map(|(name, _)| name.clone()).collect();
        // Envoy's text names no resource: one that came alone is the culprit, several are suspects
        // and are tried one by one.
        let alone = sent.changed.len() == 1;
        for (name, hash) in &sent.changed {
            // Also where it was unsubscribed from and is wanted again: Envoy remembers.
            if self.envoy.wants(name) {
                self.slots.entry(name.clone()).or_default().rejected(*hash, alone);
            }
            if alone {
                self.control.rejected(name);
            }
        }
        self.actions.push(Action::Note(Note::Rejected { names, reason: reason.to_owned() }));
    }

    /// Whether Envoy still owes a verdict on what was last offered under this name.
    fn verdict_due(&self, name: &str) -> bool {
        self.slots.get(name).is_some_and(Slot::awaits_verdict)
    }

    /// Answers the control plane's last response, unless that has been done.
    fn answer(&mut self) {
        let request = self.control.answer();
        self.actions.extend(request.map(Action::Request));
    }

    /// Sends Envoy what is new for it. One response at a time: what becomes ready meanwhile goes
    /// together in the next, so nothing queues up behind an Envoy that is slow to answer.
    fn flush(&mut self, _now: Instant) {
        if self.envoy.outstanding().is_some() {
            return;
        }
        if self.resuming.is_some() && self.slots.values().any(Slot::is_on_its_way) {
            return;
        }
        if let Some(response) = self.envoy.respond(&mut self.slots) {
            self.actions.push(Action::Respond(response));
        }
    }
}

/// A small generator for spreading retries: quality does not matter, being without state outside
/// the machine does.
struct Jitter(u64);

impl Jitter {
    /// Between half of `pause` and all of it.
    fn spread(&mut self, pause: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let share = 50 + u32::try_from(self.0 % 51).unwrap_or(0);
        pause * share / 100
    }
}

#[cfg(test)]
mod tests;
