//! What is known of one resource: what the control plane wants, what Envoy has, and what stands
//! between the two.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::memory::{LastGood, MAX_HASHES, Made, Remembered};
use super::refresh::Follow;
use super::{Failure, Serving};
use crate::module::{Module, ModuleRequest, ModuleUrl};
use crate::protobuf::messages::{self, RESOURCE_TTL};
use crate::protobuf::wire::{self, Fields, Value};
use crate::rewrite::Plan;

/// Identifies what is sent to Envoy by its bytes: a resource is news when its hash is.
pub type Hash = [u8; 16];

/// One resource as the control plane offers it.
#[derive(Debug)]
pub struct Offer {
    pub name: String,
    /// Hash of all that it says but for its version, so that a resend is told from a change.
    pub source: Hash,
    /// The TypedExtensionConfig as it came. None for a bare heartbeat.
    pub body: Option<Bytes>,
    pub plan: Plan,
    pub wrapper: Wrapper,
}

impl Offer {
    /// A heartbeat carries no resource.
    pub fn is_heartbeat(&self) -> bool {
        self.body.is_none()
    }

    /// A resend extends a TTL, also where it says nothing new.
    pub fn extends_ttl(&self) -> bool {
        self.is_heartbeat() || self.wrapper.ttl().is_some()
    }
}

/// What a resource comes wrapped in, and goes out in again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrapper {
    /// State of the world: an Any.
    Bare,
    /// State of the world: an Any of a `discovery.v3.Resource`; its fields but `resource`.
    Wrapped(Bytes),
    /// Delta: the fields of the Resource but `name`, `version` and `resource`.
    Delta(Bytes),
}

impl Wrapper {
    /// The fields that were kept.
    pub fn rest(&self) -> &[u8] {
        match self {
            Wrapper::Bare => &[],
            Wrapper::Wrapped(rest) | Wrapper::Delta(rest) => rest,
        }
    }

    /// How long Envoy may keep the resource, where it has a TTL.
    pub fn ttl(&self) -> Option<Duration> {
        let fields = Fields::of("Resource", self.rest()).filter_map(Result::ok);
        let ttl = fields.filter_map(|field| match field.value {
            Value::Len(bytes) if field.number == RESOURCE_TTL => Some(bytes),
            _ => None,
        });
        messages::duration(ttl.last()?).ok().flatten()
    }

    /// The fields that were kept, with this TTL.
    pub fn rest_with_ttl(&self, ttl: Duration) -> Vec<u8> {
        let mut field = Vec::new();
        wire::put_message(&mut field, RESOURCE_TTL, |message| {
            wire::put_varint(message, 1, ttl.as_secs());
            wire::put_varint(message, 2, ttl.subsec_nanos().into());
        });
        self.rest_with(&field)
    }

    fn rest_with(&self, ttl: &[u8]) -> Vec<u8> {
        // What cannot be read was refused when it came.
        wire::replace_fields(self.rest(), &[RESOURCE_TTL], ttl).unwrap_or_else(|_| self.rest().to_vec())
    }

    /// The same without a TTL.
    fn without_ttl(&self) -> Self {
        match self {
            Wrapper::Wrapped(_) if self.ttl().is_some() => Wrapper::Wrapped(self.rest_with(&[]).into()),
            Wrapper::Delta(_) if self.ttl().is_some() => Wrapper::Delta(self.rest_with(&[]).into()),
            _ => self.clone(),
        }
    }
}

/// A form of the resource that can be sent to Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Of the body alone: what it comes wrapped in is nothing to Envoy's memory of what it rejected.
    pub hash: Hash,
    /// TypedExtensionConfig.
    pub body: Bytes,
    /// Without a TTL, which is for the newest offer to say whatever goes out under its name.
    pub wrapper: Wrapper,
    pub fallback: bool,
    /// 0 for what an earlier stream left.
    generation: u64,
    /// Where it names a module's file.
    made: Option<Made>,
}

impl Candidate {
    fn new(body: Bytes, wrapper: &Wrapper, fallback: bool, generation: u64) -> Self {
        let wrapper = wrapper.without_ttl();
        Self { hash: hash(&[&body]), body, wrapper, fallback, generation, made: None }
    }

    fn with(mut self, made: &Made) -> Self {
        self.made = Some(made.clone());
        self
    }

    fn path(&self) -> Option<&Path> {
        self.made.as_ref().map(|made| made.path.as_path())
    }
}

/// The first 16 bytes of the SHA-256 of the parts, each preceded by its length.
pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(&hasher.finalize()[..16]);
    hash
}

/// Other names that are tried for one file, at most.
const DETOURS: usize = 8;

/// Another name of the same file.
fn detoured(path: &Path, detour: usize) -> PathBuf {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let file = path.file_name().unwrap_or_default();
    let mut named = folder.as_os_str().to_owned();
    named.push("/.".repeat(detour));
    named.push("/");
    named.push(file);
    named.into()
}

/// Where the module is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fetching {
    #[default]
    Idle,
    Running,
    /// Failed; tried again at this time.
    Waiting(Instant),
}

/// Why a config is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// Envoy rejected it among others: tried alone.
    Suspect,
    /// Envoy rejected it alone.
    Rejected,
}

/// How likely it is that Envoy accepts a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It has accepted it before.
    Proven,
    New,
    /// It is of a type that Envoy may not expect here, or it may have been accepted unread.
    Risky,
}

/// A fetch, or several in a row, failed.
#[derive(Debug, Clone)]
pub struct Failing {
    pub since: Instant,
    pub attempts: u32,
    pub last: Failure,
}

/// One resource.
#[derive(Debug, Default)]
pub struct Slot {
    /// Counts what the control plane offered under this name; a result for an older one is void.
    pub generation: u64,
    pub offer: Option<Offer>,
    pub fetching: Fetching,
    pub failing: Option<Failing>,
    /// What the module came from, where it has come.
    pub follow: Option<Follow>,
    /// Envoy said on connecting that it holds this resource, or may hold it, so it gets no fallback.
    pub envoy_holds: bool,
    /// What other streams sent and Envoy did not judge there: if it rejected it, it would take the same
    /// bytes now without a look.
    unjudged_before: Vec<Hash>,
    /// When Envoy drops the resource, unless its TTL is extended.
    expires_at: Option<Instant>,
    /// What worked on an earlier stream.
    last_good: Option<Candidate>,
    /// When that is due, while there is nothing better.
    last_good_at: Option<Instant>,
    /// When the fallback is due, while there is nothing better.
    fall_back_at: Option<Instant>,
    /// A fetch that fails before this time is not yet a reason to fall back.
    hold_until: Option<Instant>,
    /// What Envoy ought to have.
    candidate: Option<Candidate>,
    /// What the last candidate that is no fallback was made with.
    made: Option<Made>,
    /// The last config that Envoy accepted; a fallback only where it accepted nothing better.
    accepted: Option<Candidate>,
    /// That was the resend of a suspect, which Envoy accepts unread where it read it before.
    accepted_unread: bool,
    /// What the last response to Envoy carried.
    sent: Option<Candidate>,
    /// The modules' files that Envoy may have to open: of all that was sent since it last accepted
    /// something, and of that.
    given: Vec<PathBuf>,
    /// Whether Envoy has judged what was sent.
    judged: bool,
    /// What Envoy judged last: it takes no second look at the same bytes.
    attempted: Option<Hash>,
    /// What Envoy rejected.
    doubts: Vec<(Hash, Doubt)>,
    /// What got a second chance, whatever other streams say of it: the latest.
    pardoned: Vec<Hash>,
    /// The offer of what Envoy rejected last: another one may lead to the same bytes.
    rejected_source: Option<Hash>,
    /// The same where that was on another stream, and nothing has been offered here since.
    learned_source: Option<Hash>,
    /// Envoy takes no fallback under this name, whatever config it stands in for.
    fallback_rejected: bool,
    /// What uses this name does not take the filter, or has something of its own to fall back on.
    fallback_refused: bool,
}

impl Slot {
    /// Whether this differs from what was offered last.
    pub fn is_news(&self, offer: &Offer) -> bool {
        match &self.offer {
            _ if offer.is_heartbeat() => false,
            Some(known) => known.source != offer.source,
            None => true,
        }
    }

    /// The control plane said how long Envoy may keep the resource, perhaps once more; whether Envoy has
    /// to hear of that.
    pub fn extend_ttl(&mut self, offer: &Offer, now: Instant) -> bool {
        let had_one = self.expires_at.is_some();
        let kept = self.offer.as_ref().and_then(|known| known.wrapper.ttl());
        let ttl = offer.wrapper.ttl().or(kept.filter(|_| offer.is_heartbeat()));
        self.expires_at = ttl.and_then(|ttl| now.checked_add(ttl));
        had_one || ttl.is_some()
    }

    /// How long Envoy may still keep the resource, where that is limited.
    pub fn remaining_ttl(&self, now: Instant) -> Option<Duration> {
        // None at all would mean that there is no limit.
        let least = Duration::from_millis(1);
        self.expires_at.map(|at| at.saturating_duration_since(now).max(least))
    }

    /// Whether Envoy has dropped the resource by now.
    pub fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Takes over an offer as the newest.
    pub fn take(&mut self, offer: Offer, generation: u64, now: Instant, hold: Duration) {
        self.generation = generation;
        self.fetching = Fetching::Idle;
        self.failing = None;
        self.follow = None;
        // Another Envoy of the node may have been quicker to be offered this one, and to reject it.
        if self.learned_source.take() != Some(offer.source) && self.offer.is_some() {
            self.give_second_chances();
        }
        let timeout = match &offer.plan {
            Plan::Remote(remote) => remote.request.as_ref().ok().and_then(|request| request.timeout),
            _ => None,
        };
        self.fall_back_at = match (&self.candidate, &offer.plan) {
            // A download that takes long is no failure, unless the resource says how long is too long.
            (None, _) => timeout.map(|timeout| now + timeout.max(hold)),
            (Some(_), _) => None,
        };
        self.offer = Some(offer);
        self.hold_until = Some(now + hold);
    }

    /// Takes over what the node's earlier streams left. To be called when the first offer has been taken.
    pub fn recall(&mut self, remembered: &Remembered, now: Instant, hold: Duration) {
        let Some(offer) = &self.offer else { return };
        let candidate =
            |good: &LastGood| Candidate::new(good.body.clone(), &offer.wrapper, false, 0).with(&good.made);
        self.last_good = remembered.last_good.as_ref().map(candidate);
        self.fallback_rejected |= remembered.fallback_rejected;
        let wanted = remembered.wanted.as_ref().filter(|wanted| wanted.source == offer.source);
        if let Some((wanted, failing)) = wanted.and_then(|wanted| Some((wanted, wanted.failing.clone()?))) {
            self.fetching = Fetching::Waiting(wanted.next);
            self.fall_back_at = Some((failing.since + hold).max(now));
            self.failing = Some(failing);
        }
        self.unjudged_before = remembered.unjudged.iter().map(|(hash, _)| *hash).collect();
        // With another credential the same module has another name; what works keeps the one it has.
        let known = self.last_good.as_ref().filter(|good| !self.unjudged_before.contains(&good.hash));
        self.made = known.and_then(|good| good.made.clone());
        self.attempted = self.unjudged_before.last().copied();
        // What Envoy holds may be newer.
        if self.envoy_holds {
            self.learn_rejections(remembered);
            return;
        }
        // A failure says that there is nothing to wait for; otherwise what is newer may come at once.
        let wait = if self.failing.is_some() { Duration::ZERO } else { hold };
        self.last_good_at = self.last_good.as_ref().map(|_| now + wait);
        self.learn_rejections(remembered);
    }

    /// What Envoy rejected on another stream. What it has accepted on this one, and not perhaps unread,
    /// stays.
    pub fn learn_rejections(&mut self, remembered: &Remembered) {
        self.accepted
            .take_if(|accepted| self.accepted_unread && remembered.rejected.contains(&accepted.hash));
        let accepted = self.accepted.as_ref().map(|accepted| accepted.hash);
        if self.rejected_source != remembered.rejected_source {
            self.rejected_source = remembered.rejected_source;
            self.learned_source = remembered.rejected_source;
        }
        let stays = |hash: &Hash| Some(*hash) == accepted || self.pardoned.contains(hash);
        for hash in remembered.rejected.iter().filter(|hash| !stays(hash)) {
            self.last_good.take_if(|good| good.hash == *hash);
            match self.doubts.iter_mut().find(|(doubted, _)| doubted == hash) {
                Some((_, doubt)) => *doubt = Doubt::Rejected,
                None => self.doubts.push((*hash, Doubt::Rejected)),
            }
        }
    }

    /// What Envoy is known to reject.
    pub fn rejections(&self) -> Vec<Hash> {
        let rejected = self.doubts.iter().filter(|(_, doubt)| *doubt == Doubt::Rejected);
        rejected.map(|(hash, _)| *hash).collect()
    }

    /// What is to be remembered once Envoy has accepted this.
    pub fn last_good_for(&self, hash: Hash) -> Option<LastGood> {
        let accepted = self.accepted.as_ref().filter(|accepted| accepted.hash == hash)?;
        Some(LastGood { body: accepted.body.clone(), made: accepted.made.clone()? })
    }

    /// What Envoy has accepted another config since gets a second chance. Not so what it would only
    /// ignore, nor what is about to be replaced.
    fn give_second_chances(&mut self) {
        let kept = [self.attempted, self.candidate.as_ref().map(|candidate| candidate.hash)];
        let pardoned = self.doubts.extract_if(.., |(hash, _)| !kept.contains(&Some(*hash)));
        self.pardoned.extend(pardoned.map(|(hash, _)| hash));
        let excess = self.pardoned.len().saturating_sub(MAX_HASHES);
        self.pardoned.drain(..excess);
    }

    /// Makes the resource, or what is left of it without our keys, the candidate; whether that is
    /// news for Envoy.
    pub fn deliver_as_is(&mut self) -> bool {
        let Some(offer) = &self.offer else { return false };
        let body = match (&offer.plan, &offer.body) {
            (Plan::Stripped(body), _) | (Plan::Untouched, Some(body)) => body.clone(),
            _ => return false,
        };
        let candidate = Candidate::new(body, &offer.wrapper, false, self.generation);
        if self.unjudged_before.contains(&candidate.hash) && self.doubt(&candidate).is_none() {
            self.doubts.push((candidate.hash, Doubt::Suspect));
        }
        self.candidate = Some(candidate);
        (self.fall_back_at, self.last_good_at) = (None, None);
        self.awaits_verdict()
    }

    /// The module is there; whether a failure ended by that.
    pub fn arrived(&mut self, module: &Module) -> Result<bool, Failure> {
        let Some(Offer { plan: Plan::Remote(remote), wrapper, .. }) = &self.offer else { return Ok(false) };
        let made = Made { source_key: remote.source_key, payload: module.payload, path: module.path.clone() };
        // Another credential has another view of it, and that is all that changed.
        let last = self.made.take().filter(|last| last.is_as_good_as(&made));
        let detours = if last.is_some() { 0 } else { DETOURS };
        let mut made = last.unwrap_or(made);
        let path = made.path.clone();
        let candidate_of = |made: &Made| {
            let body = remote.with_local(&made.path).map_err(|error| Failure {
                message: error.to_string(),
                label: "unusable_path",
                permanent: true,
                retry_after: None,
            })?;
            Ok(Candidate::new(body, wrapper, false, self.generation).with(made))
        };
        let mut candidate = candidate_of(&made)?;
        // Envoy ignores what it has rejected; under another name of the same file it looks again. Only
        // where something has changed, if not in what Envoy gets to see.
        for detour in 1..=detours {
            if self.is_news_of_old(&candidate) || self.unjudged_before.contains(&candidate.hash) {
                made.path = detoured(&path, detour);
                candidate = candidate_of(&made)?;
            }
        }
        (self.candidate, self.made) = (Some(candidate), Some(made));
        (self.fall_back_at, self.last_good_at) = (None, None);
        Ok(self.failing.take().is_some())
    }

    /// The same offer's module is another one now.
    pub fn moved(&mut self, module: &Module) {
        self.give_second_chances();
        // Where its path cannot be used, what is there stays.
        let _ = self.arrived(module);
    }

    /// Whether the failure policy's filter may stand in, as far as is known now.
    pub fn permit_fallback(&mut self, allowed: bool, now: Instant) {
        let refused = std::mem::replace(&mut self.fallback_refused, !allowed);
        if refused && allowed && self.candidate.is_none() && self.failing.is_some() {
            self.fall_back_at = Some(self.hold_until.map_or(now, |until| until.max(now)));
        }
    }

    /// Whether Envoy has rejected these bytes, and for another offer.
    fn is_news_of_old(&self, candidate: &Candidate) -> bool {
        let changed = self.offer.as_ref().map(|offer| offer.source) != self.rejected_source;
        changed && self.doubt(candidate) == Some(Doubt::Rejected)
    }

    /// A fetch failed; the pause until the next, where another try can help.
    pub fn fails(&mut self, failure: Failure, pause: Duration, now: Instant) -> Option<Duration> {
        let failing = self.failing.get_or_insert(Failing { since: now, attempts: 0, last: failure.clone() });
        failing.attempts = failing.attempts.saturating_add(1);
        failing.last = failure;
        self.last_good_at = self.last_good_at.map(|_| now);
        match &mut self.candidate {
            None => {
                let due = self.fall_back_at.into_iter().chain(self.hold_until).min();
                self.fall_back_at = Some(due.map_or(now, |due| due.max(now)));
            }
            // The newer config may have another failure policy.
            Some(candidate) if candidate.fallback => self.fall_back_at = Some(now),
            Some(_) => {}
        }
        let retryable =
            matches!(&self.offer, Some(Offer { plan: Plan::Remote(remote), .. }) if remote.request.is_ok());
        self.fetching = if retryable { Fetching::Waiting(now + pause) } else { Fetching::Idle };
        retryable.then_some(pause)
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Instant> {
        let retry = match self.fetching {
            Fetching::Waiting(at) => Some(at),
            Fetching::Idle | Fetching::Running => None,
        };
        let refresh = self.follow.as_ref().and_then(Follow::deadline);
        let due = retry.into_iter().chain(self.fall_back_at).chain(self.last_good_at).chain(self.expires_at);
        due.chain(refresh).min()
    }

    /// The request to try again with, once its time has come.
    pub fn retry_due(&mut self, now: Instant) -> Option<ModuleRequest> {
        let Fetching::Waiting(at) = self.fetching else { return None };
        let Some(Offer { plan: Plan::Remote(remote), .. }) = &self.offer else { return None };
        let request = remote.request.as_ref().ok().filter(|_| at <= now)?;
        self.fetching = Fetching::Running;
        Some(request.clone())
    }

    /// Makes what worked on an earlier stream the candidate once that is due.
    pub fn serve_last_good_if_due(&mut self, now: Instant) {
        if self.last_good_at.is_some_and(|at| at <= now) {
            self.last_good_at = None;
            if let Some(good) = self.last_good.clone().filter(|_| self.candidate.is_none()) {
                (self.candidate, self.fall_back_at) = (Some(good), None);
            }
        }
    }

    /// Makes the failure policy's filter the candidate once that is due; whether it did.
    pub fn fall_back_if_due(&mut self, now: Instant) -> bool {
        if self.fall_back_at.is_none_or(|at| at > now) {
            return false;
        }
        self.fall_back_at = None;
        let fallback = self.fallback();
        let changed = fallback.is_some() && fallback != self.candidate;
        if changed {
            self.candidate = fallback;
        }
        changed
    }

    fn fallback(&self) -> Option<Candidate> {
        let Some(Offer { plan: Plan::Remote(remote), wrapper, .. }) = &self.offer else { return None };
        self.allows_fallback().then(|| Candidate::new(remote.fallback(), wrapper, true, self.generation))
    }

    /// Whether the failure policy's filter may stand in.
    pub fn allows_fallback(&self) -> bool {
        !self.envoy_holds && !self.fallback_rejected && !self.fallback_refused
    }

    /// The last config that Envoy accepted, on this stream or an earlier one; no fallback.
    pub fn works(&self) -> Option<&Candidate> {
        self.accepted.as_ref().filter(|accepted| !accepted.fallback).or(self.last_good.as_ref())
    }

    /// Where the module is that the offer names, if it names one.
    pub fn wanted(&self) -> Option<&ModuleUrl> {
        match &self.offer.as_ref()?.plan {
            Plan::Remote(remote) => remote.request.as_ref().ok().map(|request| &request.url),
            Plan::Untouched | Plan::Stripped(_) => None,
        }
    }

    fn doubt(&self, candidate: &Candidate) -> Option<Doubt> {
        self.doubts.iter().find(|(hash, _)| *hash == candidate.hash).map(|(_, doubt)| *doubt)
    }

    /// An accepted config repairs what a rejected one left behind in Envoy, and where there is none,
    /// the fallback does. A fallback never takes the place of what works.
    fn stand_in(&self) -> Option<Candidate> {
        self.works().cloned().or_else(|| self.fallback()).or_else(|| self.accepted.clone())
    }

    /// What Envoy is to have now: what it ought to have, or what stands in for that.
    fn presentable(&self) -> Option<Candidate> {
        let candidate = self.candidate.as_ref()?;
        // It was due before it was known that Envoy would reject it.
        if candidate.fallback && self.fallback_refused && self.sent() != Some(candidate.hash) {
            return None;
        }
        match self.doubt(candidate) {
            None => Some(candidate.clone()),
            Some(_) => self.stand_in().filter(|stand_in| self.doubt(stand_in).is_none()),
        }
    }

    /// What Envoy is to have and has not.
    pub fn news(&self) -> Option<Candidate> {
        if self.doubts.is_empty()
            && self.candidate.as_ref().is_none_or(|candidate| self.has_gone_out(candidate))
        {
            return None;
        }
        self.presentable().filter(|candidate| !self.has_gone_out(candidate))
    }

    /// Whether the last response to Envoy carried this, and in this wrapper.
    fn has_gone_out(&self, candidate: &Candidate) -> bool {
        let same = |sent: &Candidate| (sent.hash, &sent.wrapper) == (candidate.hash, &candidate.wrapper);
        self.sent.as_ref().is_some_and(same)
    }

    /// A suspect that Envoy ought to have, or that could stand in for it. The stand-in first: only
    /// after another config Envoy takes a second look at one that it rejected.
    pub fn trial(&self) -> Option<Candidate> {
        if self.doubts.is_empty() {
            return None;
        }
        let suspect = |candidate: &Candidate| self.doubt(candidate) == Some(Doubt::Suspect);
        let doubted = self.candidate.as_ref().filter(|candidate| self.doubt(candidate).is_some())?;
        // What is about to be replaced is not worth a trial.
        let current = doubted.generation == self.generation;
        self.stand_in().filter(suspect).or_else(|| Some(doubted.clone()).filter(|c| current && suspect(c)))
    }

    /// How likely it is that Envoy accepts this.
    pub fn trust(&self, candidate: &Candidate) -> Trust {
        match &self.accepted {
            Some(accepted) if accepted.hash == candidate.hash && self.accepted_unread => Trust::Risky,
            Some(accepted) if accepted.hash == candidate.hash => Trust::Proven,
            _ if candidate.fallback => Trust::Risky,
            _ => Trust::New,
        }
    }

    /// What Envoy has, as far as it has said.
    pub fn held(&self) -> Option<&Candidate> {
        self.sent.as_ref()
    }

    /// Whether that is a fallback.
    pub fn has_fallback(&self) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.fallback)
    }

    fn sent(&self) -> Option<Hash> {
        self.sent.as_ref().map(|sent| sent.hash)
    }

    /// A response that carries this went out.
    pub fn mark_sent(&mut self, candidate: Candidate) {
        self.judged = self.judged && self.sent() == Some(candidate.hash);
        let path = candidate.path().map(Path::to_owned);
        self.given.extend(path.filter(|path| !self.given.contains(path)));
        self.sent = Some(candidate);
    }

    /// Whether what Envoy ought to have has not been judged by it.
    pub fn awaits_verdict(&self) -> bool {
        self.candidate.as_ref().is_some_and(|candidate| {
            let undecided = self.doubt(candidate) != Some(Doubt::Rejected);
            undecided && !(self.judged && self.sent() == Some(candidate.hash))
        })
    }

    /// Envoy accepted a response that carried this.
    pub fn accepted(&mut self, hash: Hash) {
        let Some(sent) = self.sent.as_ref().filter(|sent| sent.hash == hash) else { return };
        let better = !sent.fallback || self.accepted.as_ref().is_none_or(|accepted| accepted.fallback);
        let unread = self.attempted == Some(hash);
        let known = self.accepted.as_ref().is_some_and(|accepted| accepted.hash == hash);
        if better && !(unread && known && self.doubt(sent).is_none()) {
            self.accepted = Some(sent.clone());
            self.accepted_unread = unread;
            // Unread, it says nothing of what Envoy has.
            self.given.retain(|path| unread || sent.path() == Some(path));
        }
        self.judged = true;
        self.attempted = Some(hash);
        self.doubts.retain(|(doubted, _)| *doubted != hash);
    }

    /// Whether that may have been without a look.
    pub fn accepted_unread(&self) -> bool {
        self.accepted_unread && self.accepted.as_ref().map(|accepted| accepted.hash) == self.sent()
    }

    /// A first fetch is under way, and nothing is known against it.
    pub fn is_on_its_way(&self) -> bool {
        let untroubled = self.candidate.is_none() && self.failing.is_none();
        untroubled && self.fetching == Fetching::Running
    }

    /// Envoy rejected a response that carried this, for another reason: it goes out again.
    pub fn unjudged(&mut self) {
        self.sent = None;
        self.judged = false;
    }

    /// Envoy rejected a response in which this was new, `alone` or among others; whether it was a
    /// fallback.
    pub fn rejected(&mut self, hash: Hash, alone: bool) -> bool {
        let sent = self.sent.take_if(|sent| sent.hash == hash);
        let is_fallback = sent.as_ref().is_some_and(|sent| sent.fallback);
        if let Some(path) = sent.as_ref().and_then(Candidate::path).filter(|_| alone) {
            let accepted = self.accepted.as_ref().and_then(Candidate::path);
            self.given.retain(|given| given != path || Some(given.as_path()) == accepted);
        }
        self.fallback_rejected |= alone && is_fallback;
        self.judged = false;
        self.attempted = Some(hash);
        self.doubts.retain(|(doubted, _)| *doubted != hash);
        // What Envoy takes no longer still runs, and is not to be replaced by a fallback. What it
        // may never have read does not.
        self.accepted.take_if(|accepted| alone && self.accepted_unread && accepted.hash == hash);
        self.last_good.take_if(|good| alone && good.hash == hash);
        if alone {
            self.rejected_source = self.offer.as_ref().map(|offer| offer.source);
        }
        self.pardoned.retain(|pardoned| *pardoned != hash);
        self.doubts.push((hash, if alone { Doubt::Rejected } else { Doubt::Suspect }));
        is_fallback
    }

    /// The modules' files that Envoy may have to open, and those that it is about to be given. Some come
    /// twice.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let candidates = [&self.candidate, &self.accepted, &self.sent, &self.last_good].into_iter().flatten();
        let paths = candidates.filter_map(Candidate::path);
        paths.chain(self.given.iter().map(PathBuf::as_path)).chain(self.made.as_ref().map(|made| &*made.path))
    }

    /// Whether Envoy has accepted a config on this stream, so that what earlier ones gave it under this
    /// name is behind it. A fallback does not count.
    pub fn is_settled(&self) -> bool {
        !self.accepted_unread && self.accepted.as_ref().is_some_and(|accepted| !accepted.fallback)
    }

    /// What Envoy runs, as far as it has been told.
    pub fn serving(&self) -> Serving {
        match (&self.candidate, self.presentable()) {
            (_, None) => Serving::Nothing,
            (_, Some(shown)) if shown.fallback => Serving::Fallback,
            (Some(candidate), Some(shown)) if shown.hash == candidate.hash => {
                if candidate.generation == self.generation { Serving::Current } else { Serving::LastGood }
            }
            _ => Serving::LastGood,
        }
    }
}
