//! Modules that come from a tag, which may move: when it is looked at again, and what follows.
//!
//! A tag that moved is no new generation: the control plane's offer is the same. The candidate that is
//! made from it is another one, and takes the same way to Envoy as any.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::slot::{Offer, Slot};
use super::{Action, Failure, Machine};
use crate::digest::SourceDigest;
use crate::module::{Module, ModuleRequest};
use crate::rewrite::Plan;

/// Which tags are looked at again, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    /// Cut short at random each time, by half at most.
    pub interval: Duration,
    /// `HOST[:PORT]`, in lower case; none is all.
    pub registries: Option<BTreeSet<String>>,
}

impl Refresh {
    fn covers(&self, request: &ModuleRequest) -> bool {
        let Some(registry) = request.tag_registry() else { return false };
        self.registries.as_ref().is_none_or(|known| known.contains(&registry.to_ascii_lowercase()))
    }
}

/// Where the module of a slot comes from, and when that is looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// The manifest that the tag led to.
    source: SourceDigest,
    next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Never,
    At(Instant),
    /// Somebody is looking.
    Now,
}

impl Follow {
    /// When the tag is to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        match self.next {
            Next::At(at) => Some(at),
            Next::Never | Next::Now => None,
        }
    }
}

impl Slot {
    fn request(&self) -> Option<&ModuleRequest> {
        let Some(Offer { plan: Plan::Remote(remote), .. }) = &self.offer else { return None };
        remote.request.as_ref().ok()
    }

    /// What to look at, once its time has come.
    fn refresh_due(&mut self, now: Instant) -> Option<(ModuleRequest, SourceDigest)> {
        self.follow.as_ref()?.deadline().filter(|at| *at <= now)?;
        let request = self.request()?.clone();
        let follow = self.follow.as_mut()?;
        follow.next = Next::Now;
        Some((request, follow.source))
    }
}

impl Machine {
    /// The module came from this manifest.
    pub(super) fn follow(&mut self, name: &str, source: SourceDigest, now: Instant) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.follow = Some(Follow { source, next: Next::Never });
        }
        self.plan_refresh(name, Duration::ZERO, now);
    }

    /// A look that was asked for has ended: the module is another one now, or it is the same, or
    /// nobody knows.
    pub fn refreshed(
        &mut self,
        name: &str,
        generation: u64,
        result: Result<Option<&Module>, Failure>,
        now: Instant,
    ) {
        let Some(slot) = self.slots.get_mut(name).filter(|slot| slot.generation == generation) else {
            return;
        };
        // The same offer may have begun anew meanwhile: what it follows now is another's to say.
        let Some(follow) = slot.follow.as_mut().filter(|follow| follow.next == Next::Now) else { return };
        let mut pause = Duration::ZERO;
        match result {
            Ok(None) => {}
            Ok(Some(module)) => {
                follow.source = module.source;
                slot.moved(module);
                self.given_changed = true;
            }
            Err(failure) => pause = failure.retry_after.unwrap_or_default(),
        }
        self.plan_refresh(name, pause, now);
    }

    /// Other tags are looked at from now on, or at other times.
    pub fn set_refresh(&mut self, refresh: Option<Refresh>, now: Instant) {
        if self.settings.refresh == refresh {
            return;
        }
        self.settings.refresh = refresh;
        // What is being looked at is planned when the look has ended.
        let idle = |slot: &Slot| slot.follow.as_ref().is_some_and(|follow| follow.next != Next::Now);
        let following = self.slots.iter().filter(|(_, slot)| idle(slot));
        for name in following.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.plan_refresh(&name, Duration::ZERO, now);
        }
    }

    /// Sets the next look, after `pause` at the earliest.
    fn plan_refresh(&mut self, name: &str, pause: Duration, now: Instant) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let covered = slot
            .request()
            .and_then(|request| self.settings.refresh.as_ref().filter(|refresh| refresh.covers(request)));
        let next = match covered {
            Some(refresh) => Next::At(now + self.backoff.spread(refresh.interval).max(pause)),
            None => Next::Never,
        };
        if let Some(follow) = &mut slot.follow {
            follow.next = next;
        }
    }

    /// Asks for the looks that are due.
    pub(super) fn refresh_due(&mut self, now: Instant) {
        for (name, slot) in &mut self.slots {
            if let Some((request, known)) = slot.refresh_due(now) {
                let (name, generation) = (name.clone(), slot.generation);
                self.actions.push(Action::Refresh { name, generation, request: Box::new(request), known });
            }
        }
    }
}
