//! One Envoy's stream: a machine between a model of that Envoy and one of the control plane.

use super::*;

/// A config in a response of the machine.
pub struct Carried {
    pub config: Bytes,
    pub rank: Option<Rank>,
    /// How many offers the machine had when it was sent.
    pub offers: u64,
    pub ttl: Option<Duration>,
}

/// A response of the machine, and what is known of it.
pub struct Sent {
    pub nonce: String,
    pub configs: BTreeMap<String, Carried>,
    pub removed: Vec<String>,
    /// How often the machine had begun anew with a name.
    beginnings: u64,
    /// What of it was new.
    changed: Vec<String>,
}

/// Those that the machine asked for and that have not ended.
#[derive(Default)]
pub struct Jobs {
    begun: usize,
    under_way: Vec<usize>,
}

impl Jobs {
    fn begin(&mut self, begun: usize) {
        self.under_way.extend(self.begun..begun);
        self.begun = begun;
    }

    fn abandon(&mut self, begun: usize) {
        *self = Self { begun, under_way: Vec::new() };
    }

    /// Takes the one at this position, counted round and round.
    pub fn end(&mut self, position: usize) -> Option<usize> {
        let count = self.under_way.len();
        (count > 0).then(|| self.under_way.remove(position % count))
    }
}

pub struct Stream {
    pub bench: Bench,
    pub envoy: Envoy,
    pub control: ControlPlane,
    pub fetches: Jobs,
    pub looks: Jobs,
    /// The machine's responses.
    pub sent: Vec<Sent>,
    /// By name and token, when the machine last had it offered.
    offered: BTreeMap<String, BTreeMap<String, u64>>,
    offers: u64,
    /// When the machine last began anew with a name: it was removed, subscribed to again, or expired, or a
    /// stream began, to which the last left only what worked of Wasm.
    pub anew: BTreeMap<String, u64>,
    /// The same without the streams: that Envoy has something it is told, or remembers.
    pub gone: BTreeMap<String, u64>,
    beginnings: u64,
    /// When what it has of a name expires.
    expires: BTreeMap<String, Instant>,
    /// What was offered last, by name.
    newest: BTreeMap<String, Hash>,
    /// What Envoy has rejected, alone, since something else was offered: it is not sent again.
    pub condemned: BTreeMap<String, BTreeSet<Bytes>>,
    notes: usize,
    /// Nonces of responses that the control plane waits for an answer to, and until when.
    unanswered: Vec<(String, Instant)>,
    /// Requests of which that is known.
    answers: usize,
    /// What the machine knows Envoy to have asked for, on this stream or the last.
    asked: BTreeSet<String>,
}

/// Whether Envoy runs this since the machine last began with the name.
pub fn counts(anew: &BTreeMap<String, u64>, name: &str, runs: &Runs) -> bool {
    let begun = anew.get(name).copied().unwrap_or(0);
    runs.confirmed && runs.rank.map_or(runs.offers, |(offer, _)| offer) > begun
}

impl Stream {
    pub fn new(variant: Variant, now: Instant) -> Self {
        let mut bench = Bench::new(variant, &[]);
        bench.now = now;
        Self {
            bench,
            envoy: Envoy::default(),
            control: ControlPlane::default(),
            fetches: Jobs::default(),
            looks: Jobs::default(),
            sent: Vec::new(),
            offered: BTreeMap::new(),
            offers: 0,
            anew: BTreeMap::new(),
            gone: BTreeMap::new(),
            beginnings: 0,
            expires: BTreeMap::new(),
            newest: BTreeMap::new(),
            condemned: BTreeMap::new(),
            notes: 0,
            unanswered: Vec::new(),
            answers: 0,
            asked: BTreeSet::new(),
        }
    }

    /// Envoy opens a stream, and what was on its way on another is gone.
    pub fn connects(&mut self, habits: &Habits, memory: &Memory) {
        let refresh = habits.follows.then_some(Refresh { interval: INTERVAL, registries: None });
        let settings = Settings { refresh, ..Settings::default() };
        self.bench.machine = Machine::new(habits.variant, settings, 11);
        self.bench.machine.remember_in(memory.clone());
        self.bench.names.clear();
        self.expires.clear();
        self.unanswered.clear();
        self.fetches.abandon(self.bench.fetches.len());
        self.looks.abandon(self.bench.refreshes.len());
        self.envoy.read = self.sent.len();
        self.control = self.control.next_stream(self.bench.requests.len());
        if habits.seen {
            let types: &[&str] = match habits.rbac {
                true => &[type_url::HTTP_WASM, type_url::HTTP_RBAC],
                false => &[type_url::HTTP_WASM],
            };
            let mut listeners = Vec::new();
            for name in NAMES {
                listeners.extend(fallbacks::listener_named(habits.variant, name, name, types, false));
            }
            self.bench.passes_by(&listeners);
        }
        self.envoy.connects(habits.variant);
    }

    pub fn control_delivers(&mut self) -> bool {
        let Some(response) = self.control.responses.pop_front() else { return false };
        let now = self.bench.now;
        for offer in &response.offers {
            let name = &offer.name;
            let ttl = offer.wrapper.ttl();
            if self.bench.names.contains(name) {
                match ttl {
                    Some(ttl) => _ = self.expires.insert(name.clone(), now + ttl),
                    None => _ = self.expires.remove(name),
                }
            }
            let Some(body) = &offer.body else { continue };
            self.offers += 1;
            let token = token_of(body).expect("a source").to_owned();
            self.offered.entry(name.clone()).or_default().insert(token, self.offers);
            if self.newest.insert(name.clone(), hash(&[body])) != Some(hash(&[body])) {
                self.condemned.remove(name);
            }
        }
        for name in &response.removed {
            self.begins_anew(name);
        }
        self.bench.sent += 1;
        self.unanswered.push((response.nonce.clone(), now + Settings::default().answer_after));
        self.bench.machine.on_control(response, now);
        self.bench.act();
        true
    }

    pub fn envoy_delivers(&mut self, habits: &Habits) -> bool {
        let Some((request, names)) = self.envoy.requests.pop_front() else { return false };
        let alone = self.sent.last().filter(|sent| sent.nonce == request.nonce && sent.changed.len() == 1);
        if let Some(sent) = alone.filter(|_| request.error.as_deref() == Some("rejected")) {
            let name = &sent.changed[0];
            let rejected = sent.configs[name].config.clone();
            // It may be the neighbours that Envoy means, where it has dropped them meanwhile.
            if Envoy::rejects(&rejected, habits) && sent.beginnings == self.beginnings {
                self.condemned.entry(name.clone()).or_default().insert(rejected);
            }
        }
        let changes = names.symmetric_difference(&self.asked).cloned().collect::<Vec<_>>();
        changes.iter().for_each(|name| self.begins_anew(name));
        for name in names.difference(&self.bench.names) {
            self.anew.insert(name.clone(), self.offers);
            self.beginnings += 1;
        }
        self.asked.clone_from(&names);
        self.bench.names = names;
        self.bench.machine.on_envoy(request, self.bench.now);
        self.bench.act();
        true
    }

    /// The machine has no reason to know anything of this name.
    fn begins_anew(&mut self, name: &str) {
        self.anew.insert(name.to_owned(), self.offers);
        self.gone.insert(name.to_owned(), self.offers);
        self.beginnings += 1;
        self.expires.remove(name);
        self.condemned.remove(name);
    }

    /// No answer is later than it may be. What came before Envoy has asked for anything waits.
    pub fn check_punctual(&mut self) {
        for request in &self.bench.requests[self.answers..] {
            self.unanswered.retain(|(nonce, _)| *nonce != request.nonce);
        }
        self.answers = self.bench.requests.len();
        let late = self.unanswered.iter().find(|(_, until)| *until <= self.bench.now);
        assert!(late.is_none() || self.asked.is_empty(), "{late:?} is not answered in time");
    }

    /// How new this config is to the machine; a fallback is as new as what it stands in for. None for
    /// what was never offered on a stream of this Envoy, but on another of its node's.
    fn rank(&self, name: &str, config: &Bytes) -> Option<Rank> {
        let offered = self.offered.get(name).expect("what is sent was offered");
        match token_of(config) {
            Some(token) => Some((*offered.get(token)?, moves_of(config))),
            None => offered.values().max().map(|offer| (*offer, 0)),
        }
    }

    /// Takes note of what has expired, and looks at new responses, before anything newer is offered.
    pub fn note(&mut self, habits: &Habits) {
        self.fetches.begin(self.bench.fetches.len());
        self.looks.begin(self.bench.refreshes.len());
        let expired = self.bench.notes[self.notes..].iter().filter_map(|note| match note {
            Note::Expired { name } => Some(name.clone()),
            _ => None,
        });
        for name in expired.collect::<Vec<_>>() {
            self.begins_anew(&name);
            self.control.missed.insert(name);
        }
        self.notes = self.bench.notes.len();
        while let Some(response) = self.bench.responses.get(self.sent.len()) {
            let sent = self.look_at(response, habits);
            self.sent.push(sent);
        }
    }

    fn look_at(&self, response: &EnvoyResponse, habits: &Habits) -> Sent {
        let outstanding = self.bench.machine.envoy.outstanding().expect("it was sent just now");
        let changed: Vec<String> = outstanding.changed.iter().map(|(name, _)| name.clone()).collect();
        let ttls = response.resources.iter().map(|resource| ttl::ttl_of(habits.variant, resource));
        let decoded = configs_in_order(habits.variant, response);
        let mut configs = BTreeMap::new();
        for ((name, config), ttl) in decoded.into_iter().zip(ttls) {
            let rank = self.rank(&name, &config);
            self.check_sent(&name, &config, ttl, habits);
            assert!(!response.removed.contains(&name), "{name} comes and goes at once");
            let twice = configs.insert(name.clone(), Carried { config, rank, offers: self.offers, ttl });
            assert!(twice.is_none(), "{name} comes twice");
        }
        Sent {
            nonce: response.nonce.clone(),
            configs,
            removed: response.removed.clone(),
            beginnings: self.beginnings,
            changed,
        }
    }

    fn check_sent(&self, name: &str, config: &Bytes, ttl: Option<Duration>, habits: &Habits) {
        let left = self.expires.get(name).map(|at| at.saturating_duration_since(self.bench.now));
        assert_eq!(
            ttl,
            left.map(|left| left.max(Duration::from_millis(1))),
            "{name} has what is left of its TTL"
        );
        let known = habits.seen && !habits.rbac;
        assert!(!(known && is_fallback(config)), "{name}: Envoy's listeners do not take a fallback");
        let condemned = self.condemned.get(name).is_some_and(|condemned| condemned.contains(config));
        assert!(!condemned, "{name}: what Envoy has rejected is sent again");
    }
}
