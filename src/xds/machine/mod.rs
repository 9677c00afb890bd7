//! The engine for intercepted types: a pure state machine, events in and actions out. It knows no
//! sockets, no clock and no files; whoever drives it says what time it is.
//!
//! To Envoy it is a whole xDS server, to the control plane a whole client: both nonce spaces and
//! Envoy's versions are its own. One machine serves one stream. Its parts: [`slot`] is what is known
//! of one resource, [`envoy`] the protocol towards Envoy, [`control`] the one towards the control
//! plane, [`refresh`] what is done about tags that move; this file is what happens between them.

pub mod backoff;
pub mod control;
pub mod envoy;
pub mod events;
pub mod memory;
pub mod refresh;
pub mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::discovery::Seen;
use crate::module::{Caller, Module};
use crate::rewrite::Plan;
pub use crate::upstream::directory::Variant;

pub use self::events::{
    Action, ControlRequest, ControlResponse, EnvoyRequest, EnvoyResponse, Failure, Names, Note, Serving,
};

pub use self::refresh::Refresh;

use self::backoff::Backoff;
use self::control::{Control, Received};
use self::envoy::{Envoy, Verdict};
use self::memory::{Memory, Wanted};
use self::slot::{Fetching, Hash, Offer, Slot};

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
    /// Whether a fallback is sent where nothing is known of the places that use its name.
    pub falls_back_unseen: bool,
    /// The answer to the control plane waits for fetches too, `hold` at the most.
    pub nack_fetch_failures: bool,
    /// Content that was NACKed and comes again within this time is ACKed: some control planes would
    /// send it for ever.
    pub repeat_window: Duration,
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
            falls_back_unseen: true,
            nack_fetch_failures: false,
            repeat_window: Duration::from_secs(10),
            refresh: None,
        }
    }
}

impl Settings {
    /// Whether Envoy would take a fallback, as far as can be known.
    fn takes_fallback(&self, seen: Seen) -> bool {
        match seen {
            Seen::Takes => true,
            Seen::Refuses => false,
            Seen::Unseen => self.falls_back_unseen,
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
    /// How often Envoy has missed something since it last judged anything.
    missed: usize,
    backoff: Backoff,
    memory: Memory,
    /// This stream's number there.
    stream: u64,
    /// Rejections of the node that this stream knows of.
    rejections: u64,
    /// What is known of the node's listeners and clusters, as far as this stream has looked.
    discovered: u64,
    /// Since it was last asked.
    given_changed: bool,
    /// For whom modules are asked for.
    caller: Caller,
    actions: Vec<Action>,
}

impl Machine {
    /// A machine for a new stream. `seed` only spreads retries in time.
    pub fn new(variant: Variant, settings: Settings, seed: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            envoy: Envoy::new(variant),
            control: Control::new(variant, settings.repeat_window),
            generations: 0,
            resuming: None,
            missed: 0,
            backoff: Backoff::new(seed),
            memory: Memory::default(),
            stream: 0,
            rejections: 0,
            discovered: 0,
            given_changed: false,
            caller: Caller::Nobody,
            actions: Vec::new(),
            settings,
        }
    }

    /// Asks for modules as this caller.
    pub fn with_caller(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// Uses and keeps what is known of Envoy's node. To be called before anything else, or not at all.
    pub fn remember_in(&mut self, memory: Memory) {
        {
            let mut memory = memory.lock();
            self.stream = memory.join();
            (self.rejections, self.discovered) = (memory.rejections(), memory.discovered());
        }
        self.memory = memory;
    }

    /// The stream has ended: what it wants is for others to see to.
    pub fn leave(&mut self, now: Instant) {
        self.memory.lock().leave(self.stream, now);
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
        let answers = !matches!(verdict, Verdict::None);
        let change = self.envoy.subscribe(&request, answers);
        self.given_changed |= answers || !change.dropped.is_empty() || !change.held.is_empty();
        for name in &change.dropped {
            self.forget(name);
        }
        if change.first && request.resumes {
            self.resuming = Some(now + self.settings.hold);
        }
        if change.dropped.contains(WILDCARD) {
            let unwanted = self.slots.keys().filter(|name| !self.envoy.wants(name));
            unwanted.cloned().collect::<Vec<_>>().iter().for_each(|name| self.forget(name));
        }
        for name in &change.held {
            // In the state of the world Envoy may hold any of them, but for what it was never sent, or rejected.
            let cannot_be = || self.memory.lock().get(name).is_some_and(|known| !known.may_be_held());
            if self.envoy.variant() == Variant::Delta || !cannot_be() {
                self.slots.entry(name.clone()).or_default().envoy_holds = true;
                self.memory.lock().holds(name, self.stream);
            }
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
        self.given_changed = true;
        self.answer();
        let content = response.content();
        let mut malformed = response.malformed;
        let (mut immediate, mut fetching, mut refused) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
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
                    } else if self.settings.nack_fetch_failures && self.is_fetching(&name) {
                        fetching.insert(name);
                    } else if let Some(reason) = self.cannot_be_fetched(&name) {
                        refused.push((name, reason));
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
            self.memory.lock().removed(&name, self.stream);
            self.envoy.remove(name);
        }
        let carried = seen.into_keys().chain(malformed.iter().map(|(name, _)| name.clone())).collect();
        let mut error = None;
        for (name, reason) in malformed.iter().chain(&refused) {
            control::object(&mut error, name, reason);
        }
        let undecodable = error.is_some();
        for (name, reason) in malformed {
            self.actions.push(Action::Note(Note::Malformed { name, reason }));
        }
        let patience = match fetching.is_empty() {
            true => self.settings.answer_after,
            false => self.settings.answer_after.max(self.settings.hold),
        };
        immediate.append(&mut fetching);
        self.control.received(Received {
            version: response.version,
            nonce: response.nonce,
            content,
            carried,
            waiting: immediate,
            error,
            at: now,
            deadline: now + patience,
        });
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
        self.given_changed = true;
        if result.is_ok() {
            self.memory.lock().wants_none(name);
        }
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
        if self.control.is_settled(|name| self.verdict_due(name)) {
            self.answer();
        }
        self.tick(now);
    }

    /// A response of another type passes by. What listeners and clusters say of extension configs
    /// decides about fallbacks; whether that is news.
    pub fn passes_by(&mut self, type_url: &str, response: &[u8], now: Instant) -> bool {
        let variant = self.envoy.variant();
        let changed = self.memory.lock().read(variant, type_url, response);
        for name in &changed {
            let held = self.slots.get(&**name).is_some_and(|slot| slot.held().is_some());
            // In Delta a second watch for a name that Envoy has asks for nothing, and waits all the same.
            if variant == Variant::Delta && held {
                self.envoy.force(name);
            }
        }
        if !changed.is_empty() {
            self.tick(now);
        }
        !changed.is_empty()
    }

    /// What listeners and clusters said on one stream holds on all of the node's: extension configs may
    /// come by a stream of their own. Others learn of it when something happens on them.
    fn learn_discoveries(&mut self, now: Instant) {
        let memory = self.memory.lock();
        if self.discovered == memory.discovered() {
            return;
        }
        self.discovered = memory.discovered();
        for (name, slot) in &mut self.slots {
            slot.permit_fallback(self.settings.takes_fallback(memory.fallback(name)), now);
        }
    }

    /// Why no fetch of this was even begun, where the control plane wants to hear of that.
    fn cannot_be_fetched(&self, name: &str) -> Option<String> {
        let slot = self.slots.get(name).filter(|_| self.settings.nack_fetch_failures)?;
        let failing = slot.failing.as_ref().filter(|_| slot.fetching == Fetching::Idle)?;
        Some(failing.last.message.clone())
    }

    fn is_fetching(&self, name: &str) -> bool {
        self.slots.get(name).is_some_and(|slot| slot.fetching == Fetching::Running)
    }

    /// When [`Machine::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let slots = self.slots.values().filter_map(Slot::deadline);
        slots.chain(self.control.deadline()).chain(self.resuming).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.learn_discoveries(now);
        if self.control.deadline().is_some_and(|deadline| deadline <= now) {
            self.answer();
        }
        self.resuming = self.resuming.filter(|until| *until > now);
        let expired = self.slots.iter().filter(|(_, slot)| slot.has_expired(now));
        for name in expired.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            // Envoy has dropped it by itself, but for what it rejected.
            self.slots.remove(&name);
            self.memory.lock().expired(&name);
            self.actions.push(Action::Note(Note::Expired { name }));
        }
        self.refresh_due(now);
        for (name, slot) in &mut self.slots {
            if let Some(request) = slot.retry_due(now) {
                let (name, generation) = (name.clone(), slot.generation);
                self.actions.push(Action::Fetch { name, generation, request: Box::new(request) });
            }
            slot.serve_last_good_if_due(now);
            if slot.fall_back_if_due(now) {
                self.actions.push(Action::Note(Note::FallbackSent { name: name.clone() }));
            }
        }
    }

    /// Whether [`Machine::given`] may be another than it was when this was last asked.
    pub fn take_given_changed(&mut self) -> bool {
        std::mem::take(&mut self.given_changed)
    }

    /// Of each name the modules' files that Envoy may have to open, or is about to be given, and whether
    /// it has accepted a config on this stream.
    pub fn given(&self) -> impl Iterator<Item = (&str, bool, impl Iterator<Item = &Path>)> {
        self.slots.iter().map(|(name, slot)| (name.as_str(), slot.is_settled(), slot.paths()))
    }

    /// The resources, for whoever shows the state.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.slots.iter().map(|(name, slot)| (name.as_str(), slot))
    }

    /// What is being fetched, by name and generation.
    pub fn fetching(&self) -> impl Iterator<Item = (&str, u64)> {
        let running = self.slots.iter().filter(|(_, slot)| slot.fetching == Fetching::Running);
        running.map(|(name, slot)| (name.as_str(), slot.generation))
    }

    /// Whether this is what is wanted and being fetched.
    pub fn awaits(&self, name: &str, generation: u64) -> bool {
        let slot = self.slots.get(name).filter(|slot| slot.generation == generation);
        slot.is_some_and(|slot| slot.fetching == Fetching::Running)
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
    fn offered(&mut self, mut offer: Offer, now: Instant) -> bool {
        if let Plan::Remote(remote) = &mut offer.plan
            && let Ok(request) = &mut remote.request
        {
            request.caller = self.caller.clone();
        }
        let name = offer.name.clone();
        let takes_fallback = self.settings.takes_fallback(self.memory.lock().fallback(&name));
        let slot = self.slots.entry(name.clone()).or_default();
        slot.permit_fallback(takes_fallback, now);
        if !slot.is_news(&offer) {
            // Control planes resend what has not changed; it restarts nothing. What extends a TTL,
            // be it a bare heartbeat, becomes a full resend.
            if offer.extends_ttl() && slot.extend_ttl(&offer, now) {
                self.envoy.force(&name);
            }
            return false;
        }
        self.generations += 1;
        self.envoy.offered(&name);
        let first = slot.offer.is_none();
        // What Envoy has meanwhile lives as long as what it waits for.
        if slot.extend_ttl(&offer, now) {
            self.envoy.force(&name);
        }
        slot.take(offer, self.generations, now, self.settings.hold);
        {
            let mut memory = self.memory.lock();
            let remembered = memory.used(&name, self.stream);
            if first {
                slot.recall(remembered, now, self.settings.hold);
            }
            if !matches!(slot.fetching, Fetching::Waiting(_)) {
                remembered.wanted = None;
            }
        }
        let Some(offer) = &slot.offer else { return false };
        let failure = match &offer.plan {
            Plan::Untouched | Plan::Stripped(_) => return slot.deliver_as_is(),
            // It has failed on an earlier stream, and its time has not come.
            Plan::Remote(_) if matches!(slot.fetching, Fetching::Waiting(_)) => return false,
            Plan::Remote(remote) => match &remote.request {
                Ok(request) => {
                    slot.fetching = Fetching::Running;
                    let (source, request) = (offer.source, request.clone());
                    let request_of = request.clone();
                    let wanted = Wanted { source, request: request_of, failing: None, next: now };
                    self.memory.lock().entry(&name).wanted = Some(wanted);
                    let request = Box::new(request);
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

    /// The name is no longer wanted.
    fn forget(&mut self, name: &str) {
        self.slots.remove(name);
        self.memory.lock().forget(name, self.stream);
    }

    fn failed(&mut self, name: &str, failure: Failure, now: Instant) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let earlier = slot.failing.as_ref().map_or(0, |failing| failing.attempts);
        let pause = self.backoff.pause(&self.settings, earlier, &failure);
        let retry_in = slot.fails(failure.clone(), pause, now);
        self.control.fetch_failed(name, &failure.message);
        if let Some(wanted) = &mut self.memory.lock().entry(name).wanted {
            wanted.failing.clone_from(&slot.failing);
            wanted.next = now + pause;
        }
        let serving = slot.serving();
        let name = name.to_owned();
        self.actions.push(Action::Note(Note::FetchFailed { name, failure, retry_in, serving }));
    }

    fn accepted(&mut self, sent: &envoy::Sent) {
        (self.resuming, self.missed) = (None, 0);
        for (name, hash) in &sent.carried {
            if let Some(slot) = self.slots.get_mut(name) {
                slot.accepted(*hash);
                let good = slot.last_good_for(*hash).filter(|_| !slot.accepted_unread());
                let mut memory = self.memory.lock();
                memory.accepted(name, slot.has_fallback(), good);
                if !slot.accepted_unread() {
                    memory.judged(name, *hash);
                }
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
        if !reason.contains(MISSING) {
            self.missed = 0;
        }
        let names: Vec<_> = sent.changed.iter().map(|(name, _)| name.clone()).collect();
        // In Delta Envoy takes no TTL out of a response that it rejects.
        if self.envoy.variant() == Variant::Delta && !names.is_empty() {
            for (name, _) in sent.carried.iter().filter(|(name, _)| !names.contains(name)) {
                self.envoy.force(name);
            }
        }
        // Envoy's text names no resource: one that came alone is the culprit, several are suspects
        // and are tried one by one.
        // What went along unchanged may be the culprit where Envoy has subscribed to it anew meanwhile.
        let began_anew = |name: &String, hash: &Hash| {
            let held = self.slots.get(name).and_then(Slot::held);
            self.envoy.wants(name) && !names.contains(name) && held.is_none_or(|held| held.hash != *hash)
        };
        let alone =
            sent.changed.len() == 1 && !sent.carried.iter().any(|(name, hash)| began_anew(name, hash));
        for (name, hash) in &sent.changed {
            // Also where it was unsubscribed from and is wanted again: Envoy remembers.
            if self.envoy.wants(name) {
                let slot = self.slots.entry(name.clone()).or_default();
                let is_fallback = slot.rejected(*hash, alone);
                if alone {
                    let source = slot.offer.as_ref().map(|offer| offer.source);
                    let mut memory = self.memory.lock();
                    memory.used(name, self.stream);
                    memory.rejected(name, *hash, source, is_fallback);
                }
            }
            if alone {
                self.control.rejected(name);
            }
        }
        self.actions.push(Action::Note(Note::Rejected { names, reason: reason.to_owned() }));
    }

    /// Whether it is not yet known what becomes of what was last offered under this name: Envoy owes
    /// a verdict, or the answer waits for the fetch.
    fn verdict_due(&self, name: &str) -> bool {
        let waits_for_fetch = self.settings.nack_fetch_failures && self.is_fetching(name);
        waits_for_fetch || self.slots.get(name).is_some_and(Slot::awaits_verdict)
    }

    /// Answers the control plane's last response, unless that has been done.
    fn answer(&mut self) {
        let requests = self.control.answer();
        self.actions.extend(requests.into_iter().map(Action::Request));
    }

    /// What Envoy rejected on one stream is not sent on another of its node's.
    fn learn_rejections(&mut self) {
        let memory = self.memory.lock();
        if self.rejections == memory.rejections() {
            return;
        }
        self.rejections = memory.rejections();
        for (name, slot) in &mut self.slots {
            if let Some(remembered) = memory.get(name) {
                slot.learn_rejections(remembered);
            }
        }
    }

    /// Sends Envoy what is new for it. One response at a time: what becomes ready meanwhile goes
    /// together in the next, so nothing queues up behind an Envoy that is slow to answer.
    fn flush(&mut self, now: Instant) {
        if self.envoy.outstanding().is_some() {
            return;
        }
        if self.resuming.is_some() && self.slots.values().any(Slot::is_on_its_way) {
            return;
        }
        self.learn_rejections();
        if let Some(response) = self.envoy.respond(&mut self.slots, now) {
            for (name, hash) in self.envoy.outstanding().into_iter().flat_map(|sent| &sent.changed) {
                let is_fallback = self.slots.get(name).is_some_and(Slot::has_fallback);
                self.memory.lock().sent(name, *hash, is_fallback);
            }
            self.given_changed = true;
            self.actions.push(Action::Respond(response));
        }
    }
}

#[cfg(test)]
mod tests;
