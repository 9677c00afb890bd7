//! A store whose time is the test's, and what the store's own age does and does not follow.

use std::time::SystemTime;

use super::*;
use crate::clock::ManualClock;
use crate::store::{Limits, MinFree};

const MINUTE: Duration = Duration::from_secs(60);

/// A store and its clock.
pub(super) struct Aged {
    pub(super) home: Home,
    pub(super) clock: ManualClock,
    pub(super) faults: Arc<Faults>,
    pub(super) store: Store,
}

impl Aged {
    pub(super) fn new() -> Self {
        Self::at(Home::quick(), UNIX_EPOCH)
    }

    /// At a time of day.
    pub(super) fn at(home: Home, wall: SystemTime) -> Self {
        Self::with(home, wall, Arc::default())
    }

    pub(super) fn with(home: Home, wall: SystemTime, faults: Arc<Faults>) -> Self {
        let clock = ManualClock::new(wall);
        // Whatever the file system of the tests is like.
        faults.leave_space(1 << 40, 1 << 40);
        let store = another(&home, &clock, &faults);
        Self { home, clock, faults, store }
    }

    /// What another process has.
    pub(super) fn another(&self) -> Store {
        another(&self.home, &self.clock, &self.faults)
    }

    /// As it is after a restart. The limits are the same.
    pub(super) fn restart(&mut self) {
        let limits = self.store.limits();
        self.store.stop_growing_older().unwrap();
        self.store = self.another();
        self.store.limit(limits);
    }

    /// An agent is ready for so long.
    pub(super) fn pass(&self, time: Duration) {
        self.store.grow_older().unwrap();
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(MINUTE);
            self.clock.advance(step);
            self.store.grow_older().unwrap();
            left -= step;
        }
    }

    pub(super) fn limit(&self, change: impl FnOnce(&mut Limits)) {
        let mut limits = Limits { min_free: MinFree::Bytes(0), ..Limits::default() };
        change(&mut limits);
        self.store.limit(limits);
    }
}

fn another(home: &Home, clock: &ManualClock, faults: &Arc<Faults>) -> Store {
    let config = StoreConfig { directory: home.path() };
    Store::open_observed(&config, Clock::Manual(clock.clone()), Observer::Faults(faults.clone())).unwrap()
}

#[test]
fn the_store_ages_while_an_agent_is_ready_and_not_while_none_is() {
    let mut aged = Aged::new();
    assert_eq!(aged.store.age(), 0);
    aged.pass(10 * MINUTE);
    assert_eq!(aged.store.age(), 600);
    assert_eq!(aged.another().age(), 600);
    aged.store.stop_growing_older().unwrap();
    aged.clock.advance(Duration::from_secs(3 * 24 * 3600));
    aged.restart();
    assert_eq!(aged.store.age(), 600, "a weekend without an agent");
    aged.pass(MINUTE);
    assert_eq!(aged.store.age(), 660);
}

#[test]
fn of_two_agents_one_counts_and_the_other_goes_on_when_it_is_gone() {
    let aged = Aged::new();
    let second = aged.another();
    aged.store.grow_older().unwrap();
    for _ in 0..10 {
        aged.clock.advance(MINUTE);
        aged.store.grow_older().unwrap();
        second.grow_older().unwrap();
    }
    assert_eq!((aged.store.age(), second.age()), (600, 600));
    let Aged { clock, store, .. } = &aged;
    store.stop_growing_older().unwrap();
    second.grow_older().unwrap();
    clock.advance(MINUTE);
    second.grow_older().unwrap();
    store.grow_older().unwrap();
    assert_eq!((store.age(), second.age()), (660, 660));
}

#[test]
fn an_agent_that_was_stopped_for_a_year_and_goes_on_was_not_ready_meanwhile() {
    let aged = Aged::new();
    aged.store.grow_older().unwrap();
    aged.clock.advance(Duration::from_secs(365 * 24 * 3600));
    assert_eq!(aged.store.age(), 120);
    aged.store.grow_older().unwrap();
    assert_eq!(aged.store.age(), 120);
}

#[test]
fn a_lost_age_starts_again_from_the_largest_stamp_that_is_one() {
    for damage in ["", "12x", "99999999999999999999"] {
        let mut aged = Aged::new();
        aged.pass(30 * MINUTE);
        let stored = put(&aged.store, &Audience::Public, MODULE);
        put(&aged.store, &Audience::Public, b"another");
        aged.pass(5 * MINUTE);
        // A time of day, as a backup leaves it.
        let another = digest(b"another").hex();
        fs::write(aged.home.v1(&format!("content/uses/{}/{another}", &another[..2])), b"").unwrap();
        aged.store.stop_growing_older().unwrap();
        fs::write(aged.home.v1("content/age"), damage).unwrap();
        aged.store = aged.another();
        assert_eq!(aged.store.age(), 1800, "{damage:?}");
        assert_eq!(aged.another().age(), 1800, "written down");
        assert!(stored.path.exists());
    }
}
