//! What happens in a run: made from a seed, and made short where it shows a fault.

use std::cell::Cell;
use std::panic;
use std::sync::Once;
use std::time::Duration;

use super::{NAMES, World};
use crate::upstream::directory::Variant;

/// Sequences, half of them in each variant, unless the environment says another number.
const SEQUENCES: u64 = 1000;
/// The first sequence's; the others' follow it.
const SEED: u64 = 0x7761_736d;
/// Steps of the longest.
const STEPS: u64 = 140;

#[derive(Debug, Clone)]
pub enum Step {
    /// The control plane wants this under this name, for so many seconds where that is limited.
    Offer {
        name: usize,
        version: u8,
        remote: bool,
        ttl: Option<u8>,
    },
    /// It sends an Envoy again all that it subscribes to, as some do when one thing changes.
    Resend {
        envoy: usize,
    },
    /// It extends the TTLs of what it has sent.
    Heartbeat {
        envoy: usize,
    },
    Remove {
        name: usize,
    },
    /// It reads what was sent to it.
    ControlReads {
        envoy: usize,
    },
    /// The machine gets its next response.
    ControlDelivers {
        envoy: usize,
    },
    /// The fetch at this position, counted among those under way, ends.
    Fetch {
        envoy: usize,
        position: usize,
        end: End,
    },
    /// The look at a tag at this position ends.
    Look {
        envoy: usize,
        position: usize,
        end: End,
    },
    /// The tag that is wanted under this name leads to another module.
    Move {
        name: usize,
    },
    /// Envoy reads the next response; its answer is on the way.
    EnvoyReads {
        envoy: usize,
    },
    /// The machine gets Envoy's next request.
    EnvoyDelivers {
        envoy: usize,
    },
    /// All that is on its way between an Envoy and the control plane arrives.
    Flow {
        envoy: usize,
    },
    Subscribe {
        envoy: usize,
        name: usize,
        on: bool,
    },
    /// Envoy subscribes a second time to what it has.
    Again {
        envoy: usize,
        name: usize,
    },
    Pass {
        seconds: u8,
    },
    /// The stream ends, with all that is on its way, and Envoy opens another.
    Reconnect {
        envoy: usize,
    },
    /// The agent starts again, with what is on disk.
    AgentRestarts,
    /// The registry is away for so long; all else goes on.
    Outage {
        seconds: u8,
    },
    /// A second Envoy of the node begins, and has nothing.
    HotRestart,
    /// One of two ends.
    Ends {
        envoy: usize,
    },
}

#[derive(Debug, Clone)]
pub enum End {
    Good,
    Fault { permanent: bool, retry_after: Option<Duration> },
}

/// How the peers of one run behave.
#[derive(Debug, Clone)]
pub struct Habits {
    pub variant: Variant,
    /// Envoy's `type_urls` list RBAC.
    pub rbac: bool,
    /// Its listeners pass by, so that this can be known.
    pub seen: bool,
    /// A state-of-the-world control plane sends all that is subscribed to, whatever changed.
    pub full: bool,
    /// State of the world: Envoy's unified multiplexer, which misses what is not in a response.
    pub unified: bool,
    /// It looks at a response from its end.
    pub reversed: bool,
    /// Some resources have a TTL.
    pub ttls: bool,
    /// Tags are looked at again, and move.
    pub follows: bool,
}

#[derive(Debug, Clone)]
pub struct Sequence {
    pub habits: Habits,
    pub steps: Vec<Step>,
}

/// SplitMix64: a seed next to another gives a sequence that is nothing like it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    fn byte(&mut self, from: u8, to: u8) -> u8 {
        from + u8::try_from(self.below(u64::from(to - from))).unwrap()
    }

    /// True once in so many times.
    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn end(&mut self) -> End {
        if !self.one_in(4) {
            return End::Good;
        }
        let permanent = self.one_in(2);
        let retry_after = self.one_in(2).then(|| Duration::from_secs(1 + self.below(89)));
        End::Fault { permanent, retry_after }
    }

    fn habits(&mut self, variant: Variant) -> Habits {
        Habits {
            variant,
            rbac: self.one_in(2),
            seen: self.one_in(3),
            full: self.one_in(2),
            unified: variant == Variant::StateOfTheWorld && self.one_in(3),
            reversed: self.one_in(3),
            ttls: self.one_in(3),
            follows: self.one_in(3),
        }
    }

    fn step(&mut self, habits: &Habits) -> Step {
        let (envoy, name) = (self.index(2), self.index(NAMES.len()));
        if habits.ttls && self.one_in(16) {
            return Step::Heartbeat { envoy };
        }
        if habits.follows && self.one_in(8) {
            return match self.one_in(3) {
                true => Step::Move { name },
                false => Step::Look { envoy, position: self.index(8), end: self.end() },
            };
        }
        match self.below(170) {
            0..20 => {
                let ttl = (habits.ttls && self.one_in(2)).then(|| self.byte(15, 60));
                Step::Offer { name, version: self.byte(0, 24), remote: self.one_in(2), ttl }
            }
            20..24 => Step::Resend { envoy },
            24..28 => Step::Remove { name },
            28..44 => Step::ControlReads { envoy },
            44..68 => Step::ControlDelivers { envoy },
            68..88 => Step::Fetch { envoy, position: self.index(8), end: self.end() },
            88..108 => Step::EnvoyReads { envoy },
            108..132 => Step::EnvoyDelivers { envoy },
            132..140 => Step::Subscribe { envoy, name, on: self.one_in(2) },
            140..144 => Step::Again { envoy, name },
            144..152 => Step::Pass { seconds: self.byte(1, 20) },
            152..156 => Step::Reconnect { envoy },
            156..164 => Step::Flow { envoy },
            164..166 => Step::HotRestart,
            166 => Step::Ends { envoy },
            167..169 => Step::AgentRestarts,
            _ => Step::Outage { seconds: self.byte(6, 12) },
        }
    }
}

impl Sequence {
    fn random(variant: Variant, seed: u64) -> Self {
        let mut random = Random(seed);
        let habits = random.habits(variant);
        let length = 1 + random.below(STEPS);
        let steps = (0..length).map(|_| random.step(&habits)).collect();
        Self { habits, steps }
    }

    fn run(&self) {
        let mut world = World::new(self.habits.clone());
        for step in &self.steps {
            world.take(step);
        }
        world.settle();
        world.check();
        world.depart();
    }

    fn fails(&self) -> bool {
        panic::catch_unwind(|| self.run()).is_err()
    }

    /// The same without the steps that the fault does not need.
    fn shortened(mut self) -> Self {
        let mut size = self.steps.len();
        while size > 0 {
            let mut at = 0;
            let before = self.steps.len();
            while at < self.steps.len() {
                let mut shorter = self.clone();
                shorter.steps.drain(at..(at + size).min(self.steps.len()));
                if shorter.fails() {
                    self = shorter;
                } else {
                    at += size;
                }
            }
            // What could not go may now that others have.
            size = if size == 1 && self.steps.len() < before { 1 } else { size / 2 };
        }
        self
    }
}

thread_local! {
    /// Whether panics of this thread are expected, and not worth a word.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static TELLS: Cell<bool> = const { Cell::new(false) };
}

/// Tells what happens, in the run that shows a fault.
pub fn tell(what: impl FnOnce() -> String) {
    if TELLS.get() {
        println!("    {}", what());
    }
}

fn quietly<T>(act: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = act();
    QUIET.set(false);
    result
}

fn from_environment(key: &str) -> Option<u64> {
    let value = std::env::var(key).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{key}={value} is no number")))
}

/// Runs half as many sequences as `WASMFERRY_SEQUENCES` says, from the seed that `WASMFERRY_SEED` says or
/// from always the same. Of one that fails it shows the seed and what is left of it when shortened.
pub fn run(variant: Variant) {
    let first = from_environment("WASMFERRY_SEED").unwrap_or(SEED);
    let count = from_environment("WASMFERRY_SEQUENCES").unwrap_or(SEQUENCES).div_ceil(2);
    for seed in (0..count).map(|number| first.wrapping_add(number)) {
        let sequence = Sequence::random(variant, seed);
        if quietly(|| sequence.fails()) {
            let short = quietly(|| sequence.shortened());
            println!(
                "WASMFERRY_SEED={seed} WASMFERRY_SEQUENCES=1 shows it again; shortened:\n{:?}",
                short.habits
            );
            TELLS.set(true);
            short.run();
            panic!("it fails only now and then");
        }
    }
}
