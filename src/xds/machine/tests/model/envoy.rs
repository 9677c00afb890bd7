//! Envoy, as far as extension configs go, with its traps: what it rejected it remembers (T1) and would
//! fail listeners with (T2), and all of a rejected response may be lost (T3). That every Delta resource
//! has a name (T4) is seen to where responses are decoded.

use super::*;

/// How new a config is: when its offer came, and how often the tag had moved.
pub type Rank = (u64, u32);

/// How the unified multiplexer rejects a response that lacks a name which came before.
const MISSING: &str = "Unexpected number of resources in ExtensionConfigDS response: 0";

/// A config that Envoy runs.
#[derive(Debug, Clone)]
pub struct Runs {
    pub config: Bytes,
    /// How new it was when it was sent. None for what another Envoy's stream left.
    pub rank: Option<Rank>,
    /// How many offers the machine had when it was sent.
    pub offers: u64,
    /// Whether Envoy has accepted a response with it. Of one that it rejects it may run a part, which
    /// nobody can know of.
    pub confirmed: bool,
}

/// What the machine has to know of a config that Envoy runs.
pub struct Known {
    /// Which it is, and that it works: it is not replaced by an older one.
    pub works: bool,
    /// That there is one: no fallback takes its place.
    pub is_held: bool,
}

/// Applies what it accepts, remembers what it tried, and looks at nothing twice, as the real one does.
#[derive(Default)]
pub struct Envoy {
    pub names: BTreeSet<String>,
    pub runs: BTreeMap<String, Runs>,
    pub attempted: BTreeMap<String, Bytes>,
    /// Names that it subscribed to a second time and that have not come again.
    pub owed: BTreeSet<String>,
    /// Names of which it has accepted a version: in Delta it says so when it comes back.
    pub versions: BTreeSet<String>,
    /// Until when it keeps what has a TTL.
    expires: BTreeMap<String, Instant>,
    /// Names of which it dropped what it had by its TTL.
    pub outlived: BTreeSet<String>,
    /// What it would miss, unified.
    came: BTreeSet<String>,
    /// Responses of the machine that it has read.
    pub read: usize,
    pub nonce: String,
    /// State of the world: it has accepted a version, on this stream or an earlier one.
    pub resumes: bool,
    /// On their way to the machine, each with the subscription after it.
    pub requests: VecDeque<(EnvoyRequest, BTreeSet<String>)>,
}

impl Envoy {
    pub fn forget(&mut self, name: &str) {
        self.runs.remove(name);
        self.attempted.remove(name);
        self.owed.remove(name);
        self.versions.remove(name);
        self.expires.remove(name);
        self.came.remove(name);
        self.outlived.remove(name);
    }

    /// Drops what has outlived its TTL.
    pub fn expire(&mut self, now: Instant) {
        let expired = self.expires.iter().filter(|(_, at)| **at <= now);
        for name in expired.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.forget(&name);
            self.outlived.insert(name);
        }
    }

    pub fn rejects(config: &Bytes, habits: &Habits) -> bool {
        holds(config, POISON) || (is_fallback(config) && !habits.rbac)
    }

    /// Reads a response and answers it. `known`: what the machine has to know of what is run.
    pub fn reads(
        &mut self,
        response: &Sent,
        habits: &Habits,
        now: Instant,
        known: impl Fn(&str, &Runs) -> Known,
    ) {
        self.read += 1;
        self.owed.retain(|name| !response.configs.contains_key(name));
        if habits.variant == Variant::StateOfTheWorld {
            self.keep_for_their_ttls(response, now);
        }
        let error = self.apply(response, habits, known);
        sequences::tell(|| {
            let carried =
                response.configs.iter().map(|(name, sent)| (name, token_of(&sent.config), sent.ttl));
            format!("Envoy reads {:?} without {:?}: {error:?}", carried.collect::<Vec<_>>(), response.removed)
        });
        if error.is_none() {
            self.resumes = habits.variant == Variant::StateOfTheWorld;
            for (name, sent) in &response.configs {
                if let Some(running) = self.runs.get_mut(name).filter(|running| running.config == sent.config)
                {
                    running.confirmed = true;
                    self.versions.insert(name.clone());
                }
            }
            // In Delta after all has been accepted.
            if habits.variant == Variant::Delta {
                self.keep_for_their_ttls(response, now);
            }
        }
        for name in &response.removed {
            self.forget(name);
        }
        self.nonce.clone_from(&response.nonce);
        self.sends(habits.variant, response.nonce.clone(), error, &[], &[]);
    }

    fn keep_for_their_ttls(&mut self, response: &Sent, now: Instant) {
        for (name, sent) in response.configs.iter().filter(|(name, _)| self.names.contains(*name)) {
            match sent.ttl {
                Some(ttl) => _ = self.expires.insert(name.clone(), now + ttl),
                None => _ = self.expires.remove(name),
            }
        }
    }

    /// Applies what it takes, up to the first that it does not take: Delta goes on with the others, the
    /// multiplexers of the state of the world do not.
    fn apply(
        &mut self,
        response: &Sent,
        habits: &Habits,
        known: impl Fn(&str, &Runs) -> Known,
    ) -> Option<String> {
        let mut error = None;
        let mut names: Vec<String> = response.configs.keys().chain(&self.came).cloned().collect();
        names.sort();
        names.dedup();
        if habits.reversed {
            names.reverse();
        }
        for name in names {
            let Some(Carried { config, rank, offers, .. }) = response.configs.get(&name) else {
                self.came.remove(&name);
                error = Some(MISSING.to_owned());
                break;
            };
            if !self.names.contains(&name) {
                continue;
            }
            if habits.unified {
                self.came.insert(name.clone());
            }
            if self.attempted.get(&name) == Some(config) {
                continue;
            }
            self.attempted.insert(name.clone(), config.clone());
            if Self::rejects(config, habits) {
                error = Some("rejected".to_owned());
                match habits.variant {
                    Variant::StateOfTheWorld => break,
                    Variant::Delta => continue,
                }
            }
            if let Some(running) = self.runs.get(&name)
                && !is_fallback(&running.config)
            {
                let Known { works, is_held } = known(&name, running);
                assert!(!(is_held && is_fallback(config)), "{name}: a fallback replaces what works");
                let older = rank.is_some_and(|rank| running.rank.is_some_and(|running| rank < running));
                assert!(!(works && older), "{name} goes backwards");
            }
            self.runs.insert(
                name,
                Runs { config: config.clone(), rank: *rank, offers: *offers, confirmed: false },
            );
        }
        error
    }

    pub fn sends(
        &mut self,
        variant: Variant,
        nonce: String,
        error: Option<String>,
        add: &[&str],
        drop: &[&str],
    ) {
        let names = match variant {
            Variant::StateOfTheWorld => Names::All(self.names.clone()),
            Variant::Delta => {
                let (subscribe, unsubscribe) = (owned(add), owned(drop));
                Names::Change { subscribe, unsubscribe, held: BTreeSet::new() }
            }
        };
        let request = EnvoyRequest { nonce, error, names, resumes: false };
        self.requests.push_back((request, self.names.clone()));
    }

    pub fn subscribes(&mut self, variant: Variant, add: &[&str], drop: &[&str]) {
        self.names.extend(owned(add));
        for name in drop {
            self.names.remove(*name);
            self.forget(name);
        }
        let nonce = match variant {
            Variant::StateOfTheWorld => self.nonce.clone(),
            Variant::Delta => String::new(),
        };
        self.sends(variant, nonce, None, add, drop);
    }

    /// Opens a stream: Delta says what it holds; in the state of the world there is a version if ever
    /// one was accepted.
    pub fn connects(&mut self, variant: Variant) {
        self.requests.clear();
        self.nonce.clear();
        let names = match variant {
            Variant::StateOfTheWorld => Names::All(self.names.clone()),
            Variant::Delta => Names::Change {
                subscribe: self.names.clone(),
                unsubscribe: BTreeSet::new(),
                held: self.versions.clone(),
            },
        };
        let request = EnvoyRequest { names, resumes: self.resumes, ..EnvoyRequest::default() };
        self.requests.push_back((request, self.names.clone()));
    }
}
