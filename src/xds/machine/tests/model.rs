//! Random interleavings against a model of Envoy, with what the model must end with.

use proptest::prelude::*;

use super::*;

/// The model of one Envoy: applies what it accepts, as the real one does.
#[derive(Default)]
struct Model {
    runs: BTreeMap<String, Bytes>,
}

#[derive(Debug, Clone)]
enum Step {
    /// The control plane offers this version under this name.
    Offer {
        name: usize,
        version: u8,
        remote: bool,
    },
    Resend,
    Remove {
        name: usize,
    },
    /// The fetch at this position, counted among those under way, ends.
    Fetch {
        position: usize,
        good: bool,
    },
    /// Envoy answers what is out.
    Answer,
    Subscribe {
        name: usize,
        on: bool,
    },
    Pass {
        seconds: u8,
    },
}

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Envoy rejects what holds this.
const POISON: &str = "poison";

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, any::<u8>(), any::<bool>())
            .prop_map(|(name, version, remote)| Step::Offer { name, version, remote }),
        1 => Just(Step::Resend),
        1 => (0..3usize).prop_map(|name| Step::Remove { name }),
        4 => (0..8usize, prop::bool::weighted(0.7)).prop_map(|(position, good)| Step::Fetch { position, good }),
        4 => Just(Step::Answer),
        1 => (0..3usize, any::<bool>()).prop_map(|(name, on)| Step::Subscribe { name, on }),
        1 => (1..20u8).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

struct World {
    bench: Bench,
    model: Model,
    /// What the control plane wants, by name.
    wanted: BTreeMap<String, Bytes>,
    fetches_done: Vec<bool>,
}

impl World {
    fn new(variant: Variant) -> Self {
        Self {
            bench: Bench::new(variant, &NAMES),
            model: Model::default(),
            wanted: BTreeMap::new(),
            fetches_done: Vec::new(),
        }
    }

    fn config(name: &str, version: u8, remote: bool) -> Bytes {
        // One version in eight is one that Envoy rejects.
        let poison = if version.is_multiple_of(8) { POISON } else { "fine" };
        if remote {
            filter(name, &format!("oci://r.io/{poison}:{version}"), false)
        } else {
            plain(name, &format!("{poison} {version}"))
        }
    }

    fn under_way(&mut self) -> Vec<usize> {
        self.fetches_done.resize(self.bench.fetches.len(), false);
        (0..self.fetches_done.len()).filter(|fetch| !self.fetches_done[*fetch]).collect()
    }

    fn end_fetch(&mut self, fetch: usize, good: bool) {
        self.fetches_done[fetch] = true;
        if !good {
            return self.bench.fails(fetch);
        }
        let (name, generation) = self.bench.fetches[fetch].clone();
        let path = match self.bench.machine.slots.get(&name).and_then(|slot| slot.offer.as_ref()) {
            Some(offer) if holds(offer.body.as_ref().unwrap(), POISON) => {
                format!("/store/{POISON}-{generation}")
            }
            _ => format!("/store/{generation}"),
        };
        self.bench.arrives(fetch, &path);
    }

    /// Envoy takes or rejects the response that is out, whole.
    fn answer(&mut self) {
        if !self.bench.machine.awaits_envoy() {
            return;
        }
        let response = self.bench.responses.last().unwrap().clone();
        let mut configs = configs(self.bench.variant, &response);
        // What it has unsubscribed from since, Envoy ignores.
        configs.retain(|name, _| self.bench.names.contains(name));
        let news = |name: &String, config: &Bytes| self.model.runs.get(name) != Some(config);
        if configs.iter().any(|(name, config)| news(name, config) && holds(config, POISON)) {
            self.bench.nack("poison");
        } else {
            self.model.runs.extend(configs);
            for name in &response.removed {
                self.model.runs.remove(name);
            }
            self.bench.ack();
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Offer { name, version, remote } => {
                let config = Self::config(NAMES[*name], *version, *remote);
                self.wanted.insert(NAMES[*name].to_owned(), config.clone());
                self.bench.control(&[config], &[]);
            }
            Step::Resend => {
                let all: Vec<_> = self.wanted.values().cloned().collect();
                self.bench.control(&all, &[]);
            }
            Step::Remove { name } if self.bench.variant == Variant::Delta => {
                self.wanted.remove(NAMES[*name]);
                self.bench.control(&[], &[NAMES[*name]]);
            }
            Step::Remove { .. } => {}
            Step::Fetch { position, good } => {
                let under_way = self.under_way();
                if let Some(fetch) = under_way.get(position % under_way.len().max(1)) {
                    self.end_fetch(*fetch, *good);
                }
            }
            Step::Answer => self.answer(),
            Step::Subscribe { name, on } => {
                let name = NAMES[*name];
                if *on && !self.bench.names.contains(name) {
                    self.bench.subscribe(&[name], &[]);
                    // The control plane answers a new subscription.
                    if let Some(config) = self.wanted.get(name).cloned() {
                        self.bench.control(&[config], &[]);
                    }
                } else if !*on && self.bench.names.contains(name) {
                    self.bench.subscribe(&[], &[name]);
                    self.model.runs.remove(name);
                }
            }
            Step::Pass { seconds } => self.bench.passes(Duration::from_secs((*seconds).into())),
        }
    }

    /// Everything that can still happen happens well.
    fn settle(&mut self) {
        for _ in 0..400 {
            for fetch in self.under_way() {
                self.end_fetch(fetch, true);
            }
            self.answer();
            self.bench.passes(Duration::from_secs(61));
            if self.under_way().is_empty() && !self.bench.machine.awaits_envoy() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check(&self) {
        let bench = &self.bench;
        for name in &bench.names {
            let (Some(wanted), runs) = (self.wanted.get(name), self.model.runs.get(name)) else { continue };
            if !holds(wanted, POISON) {
                let runs = runs.unwrap_or_else(|| panic!("{name} is not delivered"));
                let generation = bench.machine.slots[name].generation;
                let newest = runs == wanted || holds(runs, &format!("/store/{generation}"));
                assert!(newest && !is_fallback(runs), "{name} does not run the newest deliverable config");
            }
        }
        let answers: Vec<_> = bench.requests.iter().filter(|r| !r.nonce.is_empty()).collect();
        for response in 1..=bench.sent {
            let nonce = format!("n{response}");
            let count = answers.iter().filter(|answer| answer.nonce == nonce).count();
            match bench.variant {
                Variant::Delta => assert_eq!(count, 1, "{nonce} has one answer"),
                // A later change of the subscription carries the last nonce too.
                Variant::StateOfTheWorld => assert!(count >= 1, "{nonce} is answered"),
            }
        }
        if let Variant::StateOfTheWorld = bench.variant {
            let last: BTreeSet<_> = bench.requests.last().unwrap().names.iter().cloned().collect();
            assert_eq!(last, bench.names, "no subscription is lost");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn envoy_ends_with_the_newest_deliverable_config(
        delta in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(if delta { Variant::Delta } else { Variant::StateOfTheWorld });
        for step in &steps {
            world.take(step);
        }
        world.settle();
        world.check();
    }
}
