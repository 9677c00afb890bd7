//! What is known of one resource: what the control plane wants, what Envoy has, and what stands
//! between the two.

mod candidate;
mod offer;
mod verdicts;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::candidate::{Candidate, Hash, hash};
pub use self::offer::{Offer, Wrapper};
use super::memory::{LastGood, MAX_HASHES, Made, Remembered};
use super::refresh::Follow;
use super::{Failure, Serving};
use crate::module::{Module, ModuleRequest, ModuleUrl};
use crate::rewrite::Plan;

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
    given: Vec<Arc<Path>>,
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
        let made = Made {
            source_key: remote.source_key,
            payload: module.payload,
            path: module.path.as_path().into(),
        };
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
                made.path = detoured(&path, detour).into();
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

    /// The modules' files that Envoy may have to open, and those that it is about to be given, each once.
    pub fn paths(&self) -> impl Iterator<Item = &Path> + use<'_> {
        let candidates = [&self.candidate, &self.accepted, &self.sent, &self.last_good].into_iter().flatten();
        let paths = candidates.filter_map(Candidate::path).chain(&self.given);
        let mut each: Vec<&Arc<Path>> = Vec::new();
        for path in paths.chain(self.made.as_ref().map(|made| &made.path)) {
            // Most are clones of one.
            if !each.iter().any(|known| Arc::ptr_eq(known, path)) && !each.contains(&path) {
                each.push(path);
            }
        }
        each.into_iter().map(|path| &**path)
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
