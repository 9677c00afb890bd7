//! Random interleavings of an Envoy, a control plane and a registry, each a model with the habits of
//! the real ones, and what must hold whatever happens. Everything between them takes its time:
//! requests and responses wait in queues until a step delivers them.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Envoy rejects what holds this.
const POISON: &str = "poison";

#[derive(Debug, Clone)]
enum Step {
    /// The control plane wants this under this name.
    Offer {
        name: usize,
        version: u8,
        remote: bool,
    },
    /// It sends again all that is subscribed to, as some do when one thing changes.
    Resend,
    Remove {
        name: usize,
    },
    /// It reads what was sent to it.
    ControlReads,
    /// The machine gets its next response.
    ControlDelivers,
    /// The fetch at this position, counted among those under way, ends.
    Fetch {
        position: usize,
        end: End,
    },
    /// Envoy reads the next response; its answer is on the way.
    EnvoyReads,
    /// The machine gets Envoy's next request.
    EnvoyDelivers,
    Subscribe {
        name: usize,
        on: bool,
    },
    /// Envoy subscribes a second time to what it has.
    Again {
        name: usize,
    },
    Pass {
        seconds: u8,
    },
    /// The stream ends, with all that is on its way, and Envoy opens another.
    Reconnect,
}

#[derive(Debug, Clone)]
enum End {
    Good,
    Fault { permanent: bool, retry_after: Option<Duration> },
}

/// How the peers of one run behave.
#[derive(Debug, Clone)]
struct Habits {
    delta: bool,
    /// Envoy's `type_urls` list RBAC.
    rbac: bool,
    /// A state-of-the-world control plane sends all that is subscribed to, whatever changed.
    full: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![
        3 => Just(End::Good),
        1 => (any::<bool>(), prop::option::of(1..90u64)).prop_map(|(permanent, seconds)| End::Fault {
            permanent,
            retry_after: seconds.map(Duration::from_secs),
        }),
    ];
    let name = 0..NAMES.len();
    prop_oneof![
        5 => (name.clone(), 0..24u8, any::<bool>())
            .prop_map(|(name, version, remote)| Step::Offer { name, version, remote }),
        1 => Just(Step::Resend),
        1 => name.clone().prop_map(|name| Step::Remove { name }),
        4 => Just(Step::ControlReads),
        6 => Just(Step::ControlDelivers),
        5 => (0..8usize, end).prop_map(|(position, end)| Step::Fetch { position, end }),
        5 => Just(Step::EnvoyReads),
        6 => Just(Step::EnvoyDelivers),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, on)| Step::Subscribe { name, on }),
        1 => name.prop_map(|name| Step::Again { name }),
        2 => (1..20u8).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::Reconnect),
    ]
}

fn habits() -> impl Strategy<Value = Habits> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(delta, rbac, full)| Habits { delta, rbac, full })
}

/// What tells a config from all others of its name, in its source and in what becomes of it.
fn token(version: u8, remote: bool) -> String {
    // One version in six is one that Envoy rejects.
    let kind = if version.is_multiple_of(6) { POISON } else { "fine" };
    format!("{kind}-{}.{version:03}", if remote { "remote" } else { "plain" })
}

/// The token of what a config is or was made from; None for a fallback.
fn token_of(config: &Bytes) -> Option<String> {
    let text = String::from_utf8_lossy(config);
    let start = text.find("fine-").or_else(|| text.find(POISON))?;
    let end = start + text[start..].find('.')? + 4;
    Some(text[start..end].to_owned())
}

fn source(name: &str, token: &str, remote: bool) -> Bytes {
    if remote { filter(name, &format!("oci://r.io/x:{token}"), false) } else { plain(name, token) }
}

/// A config that Envoy runs.
#[derive(Debug, Clone)]
struct Runs {
    config: Bytes,
    /// How new it was when it was sent.
    rank: u64,
    /// Whether Envoy has accepted a response with it. Of one that it rejects it may run a part, which
    /// nobody can know of.
    confirmed: bool,
}

/// Applies what it accepts, remembers what it tried, and looks at nothing twice, as the real one does.
#[derive(Default)]
struct Envoy {
    names: BTreeSet<String>,
    runs: BTreeMap<String, Runs>,
    attempted: BTreeMap<String, Bytes>,
    /// Names that it subscribed to a second time and that have not come again.
    owed: BTreeSet<String>,
    /// Responses that it has read.
    read: usize,
    nonce: String,
    /// State of the world: it has a version from an earlier stream.
    resumes: bool,
    /// On their way to the machine, each with the subscription after it.
    requests: VecDeque<(EnvoyRequest, BTreeSet<String>)>,
}

impl Envoy {
    fn forget(&mut self, name: &str) {
        self.runs.remove(name);
        self.attempted.remove(name);
        self.owed.remove(name);
    }
}

#[derive(Default)]
struct ControlPlane {
    wanted: BTreeMap<String, Bytes>,
    subscribed: BTreeSet<String>,
    /// On their way to the machine.
    responses: VecDeque<ControlResponse>,
    sent: u64,
    /// Responses that were answered.
    answered: BTreeSet<u64>,
    /// Names that it does not know to have been unsubscribed from, and has not sent since.
    missed: BTreeSet<String>,
    /// Requests that it has read, and the names in the last one.
    read: usize,
    last_names: Vec<String>,
    /// What was rejected by the last one.
    nacked: Option<u64>,
    /// Responses that were sent before the stream began.
    before: u64,
}

struct World {
    habits: Habits,
    memory: Memory,
    bench: Bench,
    envoy: Envoy,
    control: ControlPlane,
    fetches_done: Vec<bool>,
    /// The machine's responses, each with how new what it carries was.
    ranks: Vec<BTreeMap<String, u64>>,
    /// By name and token, when the machine last had it offered.
    offered: BTreeMap<(String, String), u64>,
    offers: u64,
    /// When the machine last began anew with a name: it was removed, or subscribed to again.
    anew: BTreeMap<String, u64>,
}

impl World {
    fn new(habits: Habits) -> Self {
        let variant = if habits.delta { Variant::Delta } else { Variant::StateOfTheWorld };
        let (mut bench, memory) = (Bench::new(variant, &[]), Memory::default());
        bench.machine = Machine::new(variant, Settings::default(), 7);
        bench.machine.remember_in(memory.clone());
        bench.subscribe(&NAMES, &[]);
        let envoy = Envoy { names: bench.names.clone(), ..Envoy::default() };
        let (control, fetches_done, ranks) = (ControlPlane::default(), Vec::new(), Vec::new());
        let (offered, offers, anew) = (BTreeMap::new(), 0, BTreeMap::new());
        Self { habits, memory, bench, envoy, control, fetches_done, ranks, offered, offers, anew }
    }

    fn variant(&self) -> Variant {
        self.bench.variant
    }

    /// How new this config is to the machine; a fallback is as new as what it stands in for.
    fn rank(&self, name: &str, config: &Bytes) -> u64 {
        let rank = match token_of(config) {
            Some(token) => self.offered.get(&(name.to_owned(), token)).copied(),
            None => self.offered.iter().filter(|((of, _), _)| of == name).map(|(_, rank)| *rank).max(),
        };
        rank.expect("what is sent was offered")
    }

    /// Whether the machine has to know that Envoy runs this, and may not make it worse.
    fn counts(&self, name: &str, runs: &Runs) -> bool {
        runs.confirmed && self.anew.get(name).is_none_or(|rank| runs.rank > *rank)
    }

    /// Notes how new the configs of new responses are, before anything newer is offered.
    fn note_responses(&mut self) {
        while let Some(response) = self.bench.responses.get(self.ranks.len()) {
            let configs = configs(self.variant(), response);
            let rank = |(name, config): (String, _)| (name.clone(), self.rank(&name, &config));
            let ranks = configs.into_iter().map(rank);
            self.ranks.push(ranks.collect());
        }
    }

    fn respond(&mut self, names: &BTreeSet<String>, removed: &[&str]) {
        let full = !self.habits.delta && self.habits.full;
        let names = if full { self.control.subscribed.clone() } else { names.clone() };
        let wanted = names.iter().filter_map(|name| self.control.wanted.get(name));
        let offers: Vec<_> = wanted.map(|body| offer(self.bench.variant, body)).collect();
        if offers.is_empty() && removed.is_empty() {
            return;
        }
        for offer in &offers {
            self.control.missed.remove(&offer.name);
        }
        self.control.sent += 1;
        let number = self.control.sent;
        self.control.responses.push_back(ControlResponse {
            version: format!("v{number}"),
            nonce: format!("n{number}"),
            offers,
            malformed: Vec::new(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        });
    }

    fn control_reads(&mut self) -> bool {
        let Some(request) = self.bench.requests.get(self.control.read).cloned() else { return false };
        self.control.read += 1;
        let nonce: Option<u64> = request.nonce.strip_prefix('n').map(|number| number.parse().unwrap());
        let control = &mut self.control;
        let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        let mut answers = |number| assert!(control.answered.insert(number), "n{number} is answered once");
        let added = match self.bench.variant {
            Variant::Delta => {
                if let Some(number) = nonce {
                    answers(number);
                    let alone = request.subscribe.is_empty() && request.unsubscribe.is_empty();
                    assert!(alone, "changes of the subscription go alone");
                }
                for name in &request.unsubscribe {
                    assert!(control.subscribed.remove(name), "{name} was subscribed to");
                }
                control.subscribed.extend(request.subscribe.iter().cloned());
                // What the client says that it has, and is no more.
                let gone = request.initial.iter().filter(|name| !control.wanted.contains_key(*name));
                let gone: Vec<String> = gone.cloned().collect();
                if !gone.is_empty() {
                    let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
                    self.respond(&BTreeSet::new(), &gone);
                }
                set(&request.subscribe)
            }
            Variant::StateOfTheWorld => {
                let is_change = request.names != control.last_names;
                control.last_names.clone_from(&request.names);
                let said_again = nonce.is_some() && control.nacked.take() == nonce;
                control.nacked = nonce.filter(|_| request.error.is_some());
                match nonce {
                    // After a rejection, in which some read no names.
                    Some(_) if said_again && request.error.is_none() => {}
                    Some(number) if !is_change => answers(number),
                    _ => assert!(is_change, "a request says something"),
                }
                let names = set(&request.names);
                // One that answers an older response is dropped whole: another follows. So it may
                // never hear that a name was gone for a while and what it sent meanwhile was lost.
                if nonce.is_some_and(|number| number != control.sent) {
                    control.missed.extend(control.subscribed.difference(&names).cloned());
                    return true;
                }
                let added = names.difference(&control.subscribed).cloned().collect();
                control.subscribed = names;
                added
            }
        };
        if !added.is_empty() {
            self.respond(&added, &[]);
        }
        true
    }

    fn control_delivers(&mut self) -> bool {
        let Some(response) = self.control.responses.pop_front() else { return false };
        for offer in &response.offers {
            self.offers += 1;
            let body = offer.body.as_ref().unwrap();
            let token = token_of(body).expect("a source");
            self.offered.insert((offer.name.clone(), token), self.offers);
        }
        for name in &response.removed {
            self.anew.insert(name.clone(), self.offers);
        }
        self.bench.sent += 1;
        self.bench.machine.on_control(response, self.bench.now);
        self.bench.act();
        true
    }

    fn under_way(&mut self) -> Vec<usize> {
        self.fetches_done.resize(self.bench.fetches.len(), false);
        (0..self.fetches_done.len()).filter(|fetch| !self.fetches_done[*fetch]).collect()
    }

    fn end_fetch(&mut self, fetch: usize, end: &End) {
        self.fetches_done[fetch] = true;
        match end {
            End::Good => {
                let url = self.bench.urls[fetch].clone();
                let (_, token) = url.rsplit_once(':').unwrap();
                self.bench.arrives(fetch, &format!("/store/{token}"));
            }
            End::Fault { permanent, retry_after } => {
                let (name, generation) = self.bench.fetches[fetch].clone();
                let failure = Failure {
                    message: "registry down".into(),
                    label: "connect",
                    permanent: *permanent,
                    retry_after: *retry_after,
                };
                self.bench.machine.fetched(&name, generation, Err(failure), self.bench.now);
                self.bench.act();
            }
        }
    }

    fn envoy_rejects(&self, config: &Bytes) -> bool {
        holds(config, POISON) || (is_fallback(config) && !self.habits.rbac)
    }

    fn envoy_reads(&mut self) -> bool {
        let Some(response) = self.bench.responses.get(self.envoy.read).cloned() else { return false };
        let ranks = self.ranks[self.envoy.read].clone();
        self.envoy.read += 1;
        let mut error = None;
        self.envoy.owed.retain(|name| !ranks.contains_key(name));
        for (name, config) in configs(self.variant(), &response) {
            let known = self.envoy.attempted.get(&name) == Some(&config);
            if known || !self.envoy.names.contains(&name) {
                continue;
            }
            self.envoy.attempted.insert(name.clone(), config.clone());
            if self.envoy_rejects(&config) {
                error = Some("rejected".to_owned());
                // Delta goes on with the others, the older multiplexer does not.
                if self.variant() == Variant::StateOfTheWorld {
                    break;
                }
                continue;
            }
            let rank = ranks[&name];
            if let Some(running) = self.envoy.runs.get(&name)
                && self.counts(&name, running)
                && !is_fallback(&running.config)
            {
                assert!(!is_fallback(&config), "{name}: a fallback replaces what works");
                assert!(rank >= running.rank, "{name} goes backwards");
            }
            self.envoy.runs.insert(name, Runs { config, rank, confirmed: false });
        }
        if error.is_none() {
            for (name, config) in configs(self.variant(), &response) {
                let running = self.envoy.runs.get_mut(&name).filter(|running| running.config == config);
                running.into_iter().for_each(|running| running.confirmed = true);
            }
        }
        for name in &response.removed {
            self.envoy.forget(name);
        }
        self.envoy.nonce.clone_from(&response.nonce);
        self.envoy_sends(response.nonce, error, &[], &[]);
        true
    }

    fn envoy_sends(&mut self, nonce: String, error: Option<String>, add: &[&str], drop: &[&str]) {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let names = match self.variant() {
            Variant::StateOfTheWorld => Names::All(self.envoy.names.clone()),
            Variant::Delta => {
                Names::Change { subscribe: set(add), unsubscribe: set(drop), held: BTreeSet::new() }
            }
        };
        self.envoy
            .requests
            .push_back((EnvoyRequest { nonce, error, names, resumes: false }, self.envoy.names.clone()));
    }

    fn envoy_delivers(&mut self) -> bool {
        let Some((request, names)) = self.envoy.requests.pop_front() else { return false };
        for name in names.difference(&self.bench.names) {
            self.anew.insert(name.clone(), self.offers);
        }
        self.bench.names = names;
        self.bench.machine.on_envoy(request, self.bench.now);
        self.bench.act();
        true
    }

    fn envoy_subscribes(&mut self, add: &[&str], drop: &[&str]) {
        let nonce = match self.variant() {
            Variant::StateOfTheWorld => self.envoy.nonce.clone(),
            Variant::Delta => String::new(),
        };
        self.envoy_sends(nonce, None, add, drop);
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Offer { name, version, remote } => {
                let name = NAMES[*name];
                self.control.wanted.insert(name.into(), source(name, &token(*version, *remote), *remote));
                if self.control.subscribed.contains(name) {
                    self.respond(&[name.to_owned()].into(), &[]);
                }
            }
            Step::Resend => self.respond(&self.control.subscribed.clone(), &[]),
            Step::Remove { name } => {
                let name = NAMES[*name];
                // In the state of the world there is no way to say it: the name is absent.
                if self.habits.delta
                    && self.control.wanted.remove(name).is_some()
                    && self.control.subscribed.contains(name)
                {
                    self.respond(&BTreeSet::new(), &[name]);
                }
            }
            Step::ControlReads => while self.control_reads() {},
            Step::ControlDelivers => _ = self.control_delivers(),
            Step::Fetch { position, end } => {
                let under_way = self.under_way();
                if let Some(fetch) = under_way.get(position % under_way.len().max(1)) {
                    self.end_fetch(*fetch, end);
                }
            }
            Step::EnvoyReads => _ = self.envoy_reads(),
            Step::EnvoyDelivers => _ = self.envoy_delivers(),
            Step::Subscribe { name, on: true } => {
                if self.envoy.names.insert(NAMES[*name].to_owned()) {
                    self.envoy_subscribes(&[NAMES[*name]], &[]);
                }
            }
            Step::Subscribe { name, on: false } => {
                let name = NAMES[*name];
                if self.envoy.names.remove(name) {
                    self.envoy.forget(name);
                    self.envoy_subscribes(&[], &[name]);
                }
            }
            Step::Again { name } => {
                let name = NAMES[*name];
                if self.envoy.names.contains(name) && self.envoy.runs.contains_key(name) {
                    self.envoy.owed.insert(name.to_owned());
                    self.envoy_subscribes(&[name], &[]);
                }
            }
            Step::Reconnect => self.reconnect(),
            Step::Pass { seconds } => self.bench.passes(Duration::from_secs((*seconds).into())),
        }
        self.note_responses();
    }

    fn reconnect(&mut self) {
        let machine = Machine::new(self.variant(), Settings::default(), 11);
        let old = std::mem::replace(&mut self.bench.machine, machine);
        drop(old);
        self.bench.machine.remember_in(self.memory.clone());
        self.under_way();
        self.fetches_done.fill(true);
        self.envoy.read = self.bench.responses.len();
        self.envoy.requests.clear();
        self.bench.names.clear();

        let ControlPlane { wanted, sent, .. } = std::mem::take(&mut self.control);
        let read = self.bench.requests.len();
        self.control = ControlPlane { wanted, sent, before: sent, read, ..ControlPlane::default() };

        // Delta says what it holds; in the state of the world there is a version if ever one was accepted.
        let holds: BTreeSet<String> = self.envoy.runs.keys().cloned().collect();
        let resumes = !self.habits.delta && !std::mem::take(&mut self.envoy.nonce).is_empty();
        self.envoy.nonce.clear();
        self.envoy.resumes |= resumes;
        let names = match self.variant() {
            Variant::StateOfTheWorld => Names::All(self.envoy.names.clone()),
            Variant::Delta => Names::Change {
                subscribe: self.envoy.names.clone(),
                unsubscribe: BTreeSet::new(),
                held: holds,
            },
        };
        let request = EnvoyRequest { names, resumes: self.envoy.resumes, ..EnvoyRequest::default() };
        self.envoy.requests.push_back((request, self.envoy.names.clone()));
    }

    /// Everything that can still happen happens well.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut moved = false;
            for fetch in self.under_way() {
                self.end_fetch(fetch, &End::Good);
                moved = true;
            }
            self.note_responses();
            moved |= self.control_reads();
            moved |= self.control_delivers();
            self.note_responses();
            moved |= self.envoy_reads();
            moved |= self.envoy_delivers();
            self.note_responses();
            if moved {
                continue;
            }
            match self.bench.machine.deadline() {
                None => return,
                Some(deadline) => self.bench.passes(deadline - self.bench.now),
            }
            self.note_responses();
        }
        panic!("it never comes to rest");
    }

    fn check(&self) {
        for name in &self.envoy.names {
            let runs = self.envoy.runs.get(name);
            if let Some(runs) = runs.filter(|runs| self.counts(name, runs)) {
                assert!(!self.envoy.owed.contains(name), "{name} is not sent to its second subscriber");
                let attempted = self.envoy.attempted.get(name);
                assert_eq!(attempted, Some(&runs.config), "{name}: a rejected config is left to poison it");
            }
            let Some(wanted) = self.control.wanted.get(name) else { continue };
            if self.control.missed.contains(name) {
                continue;
            }
            let remote = holds(wanted, "oci://");
            if holds(wanted, POISON) {
                // An Envoy that comes back may run something that the machine never heard of, and must
                // not lose to a fallback.
                let may_run = self.envoy.resumes;
                let stands_in = runs.is_some() || may_run || !remote || !self.habits.rbac;
                assert!(stands_in, "{name}: nothing stands in for what Envoy rejected");
                continue;
            }
            let runs = runs.unwrap_or_else(|| panic!("{name} is not delivered"));
            let newest = token_of(&runs.config) == token_of(wanted);
            assert!(newest, "{name} does not run the newest deliverable config");
        }
        let sent: BTreeSet<u64> = (self.control.before + 1..=self.control.sent).collect();
        assert_eq!(self.control.answered, sent, "every response is answered");
        assert_eq!(self.control.subscribed, self.envoy.names, "no subscription is lost");
        let slots = self.bench.machine.slots().map(|(name, _)| name);
        assert!(slots.into_iter().all(|name| self.envoy.names.contains(name)), "nothing is left of the gone");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(1000), max_shrink_iters: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn envoy_ends_with_the_newest_deliverable_config(
        habits in habits(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(habits);
        for step in &steps {
            world.take(step);
        }
        world.settle();
        world.check();
    }
}
