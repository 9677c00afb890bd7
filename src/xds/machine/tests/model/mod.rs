//! Random interleavings of Envoys of one node, a control plane and a registry, each a model with the
//! habits of the real ones, and what must hold whatever happens. Everything between them takes its
//! time: requests and responses wait in queues until a step delivers them.

mod checks;
mod control;
mod envoy;
mod sequences;
mod stream;

use std::collections::VecDeque;

use super::*;

use self::control::{AllWanted, ControlPlane, Wanted};
use self::envoy::{Envoy, Known, Rank, Runs};
use self::sequences::{End, Habits, Step};
use self::stream::{Carried, Sent, Stream};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Envoy rejects what holds this.
const POISON: &str = "poison";
/// How often tags are looked at.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long a name is remembered that no stream wants.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Longer than any retry or look is put off.
const LONG: Duration = Duration::from_secs(110);

fn owned(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What tells a config from all others of its name, in its source and in what becomes of it.
fn token(version: u8, remote: bool) -> String {
    // One version in six is one that Envoy rejects.
    let kind = if version.is_multiple_of(6) { POISON } else { "fine" };
    format!("{kind}-{}.{version:03}", if remote { "remote" } else { "plain" })
}

/// The token of what a config is or was made from, and what follows; None for a fallback.
fn read_token(config: &[u8]) -> Option<(&str, &[u8])> {
    let find = |word: &str| config.windows(word.len()).position(|window| window == word.as_bytes());
    let start = find("fine-").or_else(|| find(POISON))?;
    let end = start + config[start..].iter().position(|byte| *byte == b'.')? + 4;
    Some((std::str::from_utf8(&config[start..end]).ok()?, &config[end..]))
}

fn token_of(config: &[u8]) -> Option<&str> {
    Some(read_token(config)?.0)
}

/// How often the tag had moved that led to the module of this config.
fn moves_of(config: &[u8]) -> u32 {
    let moves = read_token(config).and_then(|(_, rest)| rest.strip_prefix(b"+")?.get(..2));
    moves.map_or(0, |digits| std::str::from_utf8(digits).unwrap().parse().unwrap())
}

/// The registry's tags, and how often each has moved.
#[derive(Default)]
struct Registry(BTreeMap<String, u32>);

impl Registry {
    fn moves(&self, token: &str) -> u32 {
        self.0.get(token).copied().unwrap_or(0)
    }

    /// The module that the tag leads to; one in four is one that Envoy rejects.
    fn module(&self, token: &str) -> Module {
        let moves = self.moves(token);
        let kind = if moves % 4 == 3 { POISON } else { "" };
        module_at(&format!("/store/{token}+{moves:02}{kind}"))
    }
}

struct World {
    habits: Habits,
    memory: Memory,
    now: Instant,
    wanted: AllWanted,
    registry: Registry,
    /// Of Envoys of one node, two at most.
    streams: Vec<Stream>,
}

impl World {
    fn new(habits: Habits) -> Self {
        let mut world = Self {
            habits,
            memory: Memory::default(),
            now: Instant::now(),
            wanted: BTreeMap::new(),
            registry: Registry::default(),
            streams: Vec::new(),
        };
        world.begins(owned(&NAMES));
        world
    }

    /// An Envoy that has nothing opens a stream.
    fn begins(&mut self, names: BTreeSet<String>) {
        let mut stream = Stream::new(self.habits.variant, self.now);
        stream.envoy.names = names;
        stream.connects(&self.habits, &self.memory);
        self.streams.push(stream);
    }

    fn stream(&mut self, envoy: usize) -> &mut Stream {
        let count = self.streams.len();
        &mut self.streams[envoy % count]
    }

    fn take(&mut self, step: &Step) {
        sequences::tell(|| format!("{step:?}"));
        match *step {
            Step::Offer { name, version, remote, ttl } => {
                let (name, token) = (NAMES[name], token(version, remote));
                let body = match remote {
                    true => filter(name, &format!("oci://r.io/x:{token}"), false),
                    false => plain(name, &token),
                };
                self.wanted.insert(name.into(), Wanted { body, ttl });
                for stream in
                    self.streams.iter_mut().filter(|stream| stream.control.subscribed.contains(name))
                {
                    stream.control.responds(&self.habits, &self.wanted, &[name.to_owned()].into(), &[]);
                }
            }
            Step::Resend { envoy } => self.resends(envoy),
            Step::Heartbeat { envoy } => {
                let habits = self.habits.clone();
                self.stream(envoy).control.heartbeat(&habits);
            }
            Step::Remove { name } => {
                let name = NAMES[name];
                // In the state of the world there is no way to say it: the name is absent.
                if self.habits.variant == Variant::Delta && self.wanted.remove(name).is_some() {
                    for stream in
                        self.streams.iter_mut().filter(|stream| stream.control.subscribed.contains(name))
                    {
                        let removed = [name.to_owned()];
                        stream.control.responds(&self.habits, &self.wanted, &BTreeSet::new(), &removed);
                    }
                }
            }
            Step::ControlReads { envoy } => while self.control_reads(envoy) {},
            Step::ControlDelivers { envoy } => _ = self.stream(envoy).control_delivers(),
            Step::Fetch { envoy, position, ref end } => _ = self.end_fetch(envoy, position, end),
            Step::Look { envoy, position, ref end } => _ = self.end_look(envoy, position, end),
            Step::Move { name } => {
                let wanted = self.wanted.get(NAMES[name]).filter(|wanted| holds(&wanted.body, "oci://"));
                if let Some(token) = wanted.and_then(|wanted| token_of(&wanted.body)) {
                    *self.registry.0.entry(token.to_owned()).or_default() += 1;
                }
            }
            Step::EnvoyReads { envoy } => _ = self.envoy_reads(envoy),
            Step::Flow { envoy } => while self.flows(envoy) {},
            Step::EnvoyDelivers { envoy } => _ = self.envoy_delivers(envoy),
            Step::Subscribe { envoy, name, on } => {
                let (variant, name) = (self.habits.variant, NAMES[name]);
                let envoy = &mut self.stream(envoy).envoy;
                match (on, envoy.names.contains(name)) {
                    (true, false) => envoy.subscribes(variant, &[name], &[]),
                    (false, true) => envoy.subscribes(variant, &[], &[name]),
                    _ => {}
                }
            }
            Step::Again { envoy, name } => {
                let (variant, name) = (self.habits.variant, NAMES[name]);
                let envoy = &mut self.stream(envoy).envoy;
                if envoy.names.contains(name) && envoy.runs.contains_key(name) {
                    envoy.owed.insert(name.to_owned());
                    envoy.subscribes(variant, &[name], &[]);
                }
            }
            Step::Pass { seconds } => self.passes(Duration::from_secs(seconds.into())),
            Step::Reconnect { envoy } => {
                let envoy = envoy % self.streams.len();
                self.leaves(envoy);
                self.streams[envoy].connects(&self.habits, &self.memory);
            }
            Step::AgentRestarts => self.agent_restarts(),
            Step::Outage { seconds } => {
                let fault = End::Fault { permanent: false, retry_after: None };
                self.rests(Duration::from_secs(seconds.into()), &fault, false);
            }
            Step::HotRestart if self.streams.len() == 1 => self.begins(self.streams[0].envoy.names.clone()),
            Step::Ends { envoy } if self.streams.len() == 2 => {
                self.leaves(envoy);
                self.streams.remove(envoy);
            }
            Step::HotRestart | Step::Ends { .. } => {}
        }
        self.note();
    }

    fn note(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.note(&self.habits));
    }

    fn resends(&mut self, envoy: usize) {
        let envoy = envoy % self.streams.len();
        let control = &mut self.streams[envoy].control;
        control.responds(&self.habits, &self.wanted, &control.subscribed.clone(), &[]);
    }

    fn control_reads(&mut self, envoy: usize) -> bool {
        let envoy = envoy % self.streams.len();
        let Stream { control, bench, .. } = &mut self.streams[envoy];
        let Some(request) = bench.requests.get(control.read) else { return false };
        control.reads(request, &self.habits, &self.wanted);
        true
    }

    fn envoy_delivers(&mut self, envoy: usize) -> bool {
        let envoy = envoy % self.streams.len();
        self.streams[envoy].envoy_delivers(&self.habits)
    }

    fn envoy_reads(&mut self, envoy: usize) -> bool {
        let number = envoy % self.streams.len();
        let Stream { envoy, sent, anew, gone, .. } = &mut self.streams[number];
        let Some(response) = sent.get(envoy.read) else { return false };
        sequences::tell(|| format!("Envoy {number}:"));
        let known = |name: &str, runs: &Runs| Known {
            works: stream::counts(anew, name, runs),
            is_held: stream::counts(gone, name, runs),
        };
        envoy.reads(response, &self.habits, self.now, known);
        true
    }

    fn end_fetch(&mut self, envoy: usize, position: usize, end: &End) -> bool {
        let envoy = envoy % self.streams.len();
        let stream = &mut self.streams[envoy];
        let Some(fetch) = stream.fetches.end(position) else { return false };
        let (name, generation) = stream.bench.fetches[fetch].clone();
        let url = stream.bench.urls[fetch].clone();
        let module = self.registry.module(url.rsplit_once(':').unwrap().1);
        let result = match end {
            End::Good => Ok(&module),
            End::Fault { permanent, retry_after } => Err(fault(*permanent, *retry_after)),
        };
        stream.bench.machine.fetched(&name, generation, result, self.now);
        stream.bench.act();
        true
    }

    fn end_look(&mut self, envoy: usize, position: usize, end: &End) -> bool {
        let envoy = envoy % self.streams.len();
        let stream = &mut self.streams[envoy];
        let Some(look) = stream.looks.end(position) else { return false };
        let (name, generation, url, known) = stream.bench.refreshes[look].clone();
        let module = self.registry.module(url.rsplit_once(':').unwrap().1);
        let result = match end {
            End::Good if module.source == known => Ok(None),
            End::Good => {
                // Another payload, which may be one that Envoy takes.
                stream.condemned.remove(&name);
                Ok(Some(&module))
            }
            End::Fault { permanent, retry_after } => Err(fault(*permanent, *retry_after)),
        };
        stream.bench.machine.refreshed(&name, generation, result, self.now);
        stream.bench.act();
        true
    }

    /// The stream ends, with all that is on its way.
    fn leaves(&mut self, envoy: usize) {
        self.check_last_good();
        self.streams[envoy].bench.machine.leave(self.now);
    }

    fn agent_restarts(&mut self) {
        self.check_last_good();
        let memory = Memory::default();
        {
            let before = self.memory.lock();
            let on_disk = before.kept().map(|(name, kept)| (name.to_owned(), kept.clone()));
            memory.lock().restore(on_disk, self.now);
        }
        self.memory = memory;
        for stream in &mut self.streams {
            stream.connects(&self.habits, &self.memory);
        }
    }

    fn passes(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            let due = self.streams.iter().filter_map(|stream| stream.bench.machine.deadline()).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                self.at(end);
                return;
            };
            self.at(due.max(self.now));
            for stream in &mut self.streams {
                stream.bench.machine.tick(self.now);
                stream.bench.act();
                stream.check_punctual();
            }
            self.note();
        }
        panic!("something is always due");
    }

    fn at(&mut self, now: Instant) {
        self.now = now;
        for stream in &mut self.streams {
            stream.bench.now = now;
            stream.envoy.expire(now);
        }
    }

    /// The next of all that is on its way between an Envoy and the control plane arrives; whether anything
    /// was.
    fn flows(&mut self, envoy: usize) -> bool {
        let mut moved = self.control_reads(envoy);
        moved |= self.stream(envoy).control_delivers();
        self.note();
        moved |= self.envoy_reads(envoy);
        moved |= self.envoy_delivers(envoy);
        self.note();
        moved
    }

    /// Everything that is on its way arrives, and fetches end so; whether anything was.
    fn moves(&mut self, end: &End) -> bool {
        let mut moved = false;
        for envoy in 0..self.streams.len() {
            self.note();
            while self.end_fetch(envoy, 0, end) || self.end_look(envoy, 0, end) {
                moved = true;
            }
            self.note();
            moved |= self.flows(envoy);
        }
        moved
    }

    /// All that can happen in this time happens, and fetches end so. `extends`: the control plane sees to
    /// it that nothing expires.
    fn rests(&mut self, time: Duration, fetches: &End, extends: bool) {
        let (end, every) = (self.now + time, Duration::from_secs(10));
        let extends = extends && self.wanted.values().any(|wanted| wanted.ttl.is_some());
        let mut heartbeat = self.now + every;
        for _ in 0..5000 {
            if self.moves(fetches) {
                continue;
            }
            let due = self.streams.iter().filter_map(|stream| stream.bench.machine.deadline()).min();
            let due = due.into_iter().chain(extends.then_some(heartbeat)).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                self.passes(end - self.now);
                return;
            };
            self.passes(due.saturating_duration_since(self.now));
            if extends && self.now >= heartbeat {
                heartbeat += every;
                for stream in &mut self.streams {
                    stream.control.heartbeat(&self.habits);
                }
            }
        }
        panic!("it never comes to rest");
    }

    fn settle(&mut self) {
        // What has expired is for the control plane to send again.
        while self.moves(&End::Good) {}
        for envoy in 0..self.streams.len() {
            let stream = &self.streams[envoy];
            if self
                .wanted
                .iter()
                .any(|(name, wanted)| wanted.ttl.is_some() && stream.control.missed.contains(name))
            {
                self.resends(envoy);
            }
        }
        self.rests(LONG, &End::Good, true);
    }
}

fn fault(permanent: bool, retry_after: Option<Duration>) -> Failure {
    Failure { message: "registry down".into(), label: "connect", permanent, retry_after }
}

#[test]
fn envoy_ends_with_the_newest_deliverable_config() {
    sequences::run(Variant::StateOfTheWorld);
}

#[test]
fn envoy_ends_with_the_newest_deliverable_config_in_delta() {
    sequences::run(Variant::Delta);
}
