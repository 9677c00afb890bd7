//! What of a resource goes out to Envoy, and what Envoy says to that.

use super::{Candidate, Doubt, Fetching, Hash, Slot, Trust};

impl Slot {
    pub(super) fn doubt(&self, candidate: &Candidate) -> Option<Doubt> {
        self.doubts.iter().find(|(hash, _)| *hash == candidate.hash).map(|(_, doubt)| *doubt)
    }

    /// An accepted config repairs what a rejected one left behind in Envoy, and where there is none,
    /// the fallback does. A fallback never takes the place of what works.
    fn stand_in(&self) -> Option<Candidate> {
        self.works().cloned().or_else(|| self.fallback()).or_else(|| self.accepted.clone())
    }

    /// What Envoy is to have now: what it ought to have, or what stands in for that.
    pub(super) fn presentable(&self) -> Option<Candidate> {
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
        let path = candidate.path().cloned();
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
            self.given.retain(|given| given != path || Some(given) == accepted);
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
}
