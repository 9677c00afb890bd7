//! What must hold once all has come to rest, and once all is gone.

use super::*;

impl World {
    pub fn check(&self) {
        for stream in &self.streams {
            for name in &stream.envoy.names {
                self.check_name(stream, name);
            }
            check_answers(stream);
            self.check_last_good();
            assert_eq!(stream.control.subscribed, stream.envoy.names, "no subscription is lost");
            let mut slots = stream.bench.machine.slots().map(|(name, _)| name);
            assert!(slots.all(|name| stream.envoy.names.contains(name)), "nothing is left of the gone");
        }
    }

    /// What is kept as good has been looked at.
    pub fn check_last_good(&self) {
        for (name, kept) in self.memory.lock().kept() {
            let bad = kept.last_good.as_ref().is_some_and(|good| holds(&good.body, POISON));
            assert!(!bad, "{name}: what Envoy rejects is kept as what works");
        }
    }

    fn check_name(&self, stream: &Stream, name: &str) {
        let Stream { envoy, control, anew, .. } = stream;
        let runs = envoy.runs.get(name);
        if let Some(runs) = runs.filter(|runs| stream::counts(anew, name, runs)) {
            assert!(!envoy.owed.contains(name), "{name} is not sent to its second subscriber");
            let attempted = envoy.attempted.get(name);
            assert_eq!(attempted, Some(&runs.config), "{name}: a rejected config is left to poison it");
        }
        let Some(Wanted { body: wanted, .. }) = self.wanted.get(name) else { return };
        if control.missed.contains(name) {
            return;
        }
        let token = token_of(wanted).expect("a source");
        let remote = holds(wanted, "oci://");
        let moves = if remote { self.registry.moves(token) } else { 0 };
        if holds(wanted, POISON) || (remote && holds_poison(&self.registry.module(token))) {
            // An Envoy that comes back may run something that the machine never heard of, for as long
            // as its TTL says, and must not lose to a fallback.
            let may_run = envoy.resumes || envoy.outlived.contains(name);
            let stands_in = runs.is_some() || may_run || !remote || !self.habits.rbac;
            assert!(stands_in, "{name}: nothing stands in for what Envoy rejected");
            return;
        }
        let runs = runs.unwrap_or_else(|| panic!("{name} is not delivered"));
        let newest = token_of(&runs.config) == Some(token) && moves_of(&runs.config) == moves;
        assert!(newest, "{name} does not run the newest deliverable config");
    }

    /// What has a TTL that was not extended is dropped.
    fn check_expired(&self) {
        let limited = |name: &str| self.wanted.get(name).is_some_and(|wanted| wanted.ttl.is_some());
        for stream in &self.streams {
            let mut slots = stream.bench.machine.slots().map(|(name, _)| name);
            assert!(!slots.any(limited), "what has expired is dropped");
        }
    }

    /// Each Envoy unsubscribes from everything, after the control plane has ceased to extend TTLs.
    pub fn depart(mut self) {
        if self.habits.ttls {
            self.rests(LONG, &End::Good, false);
            self.check_expired();
        }
        for stream in &mut self.streams {
            let names = stream.envoy.names.clone();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            if !names.is_empty() {
                stream.envoy.subscribes(self.habits.variant, &[], &names);
            }
        }
        self.rests(LONG, &End::Good, false);
        for stream in &self.streams {
            let machine = &stream.bench.machine;
            assert_eq!(machine.slots().count(), 0, "nothing is left when all is gone");
            assert_eq!(machine.deadline(), None, "nothing is to be done when all is gone");
            assert_eq!(stream.control.subscribed, BTreeSet::new(), "nothing is asked for when all is gone");
            check_answers(stream);
        }
        let mut memory = self.memory.lock();
        memory.age(REMEMBERED, self.now + REMEMBERED);
        for name in NAMES {
            assert!(memory.get(name).is_none(), "{name} is remembered when all is gone");
        }
    }
}

fn check_answers(stream: &Stream) {
    let sent: BTreeSet<u64> = (stream.control.before + 1..=stream.control.sent).collect();
    assert_eq!(stream.control.answered, sent, "every response is answered");
}

fn holds_poison(module: &Module) -> bool {
    holds(&Bytes::copy_from_slice(module.path.to_string_lossy().as_bytes()), POISON)
}
