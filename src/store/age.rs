//! The store's own time: the seconds during which an agent was ready. Leases and unused modules age by
//! it, so that neither a weekend's outage nor a clock that jumps ends them.
//!
//! One agent at a time counts, from its monotonic clock: whoever has `age.lock`, which is only ever
//! tried and then held while the agent is ready. The others read what it wrote. A count that lags
//! behind, or starts again a little lower after a crash, keeps things longer.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::file::File;
use super::fs::SECRET;
use super::layout::Way;
use super::small::read_small;
use super::temporary::Temporary;
use super::{Lease, Store};

const NAME: &str = "age";
const LOCK: &str = "age.lock";
/// The longest count that is read, in bytes.
const LIMIT: u64 = 32;
/// Time that passes between two looks at the clock counts up to here: an agent that was stopped and
/// goes on was not ready meanwhile.
const MOST: Duration = Duration::from_secs(120);
/// A stamp beyond this is no age, but a time of day that something gave the file.
pub(super) const PLAUSIBLE: u64 = 1 << 30;
/// Whose lease it is that a lost count leaves behind.
const LOST: &str = "the store's age was lost";

#[derive(Debug, Default)]
pub(super) struct Aging {
    known: Duration,
    counter: Option<Counter>,
}

/// What this process has while it counts.
#[derive(Debug)]
struct Counter {
    #[expect(dead_code, reason = "closing it lets another process count")]
    lock: File,
    counted_to: Instant,
}

impl Aging {
    pub(super) fn age(&self, now: Instant) -> Duration {
        let counting = self.counter.as_ref();
        let since = counting.map(|counter| now.saturating_duration_since(counter.counted_to).min(MOST));
        self.known + since.unwrap_or_default()
    }
}

impl Store {
    /// Seconds during which an agent that uses this store was ready, as far as is known here.
    pub fn age(&self) -> u64 {
        self.aging().age(self.clock().now()).as_secs()
    }

    /// To be called about once a minute while the agent is ready: counts on, or learns what another
    /// agent has counted.
    pub fn grow_older(&self) -> Result<(), StoreError> {
        let content = Way::content().make(self.root())?.folder;
        let now = self.clock().now();
        if self.aging().counter.is_none() {
            let lock = content.open_lock(LOCK)?;
            let is_ours = lock.try_lock()?;
            let read = read_age(self)?.map(Duration::from_secs).unwrap_or_default();
            let mut aging = self.aging();
            aging.known = aging.known.max(read);
            aging.counter = is_ours.then_some(Counter { lock, counted_to: now });
            return Ok(());
        }
        let age = {
            let mut aging = self.aging();
            aging.known = aging.age(now);
            if let Some(counter) = &mut aging.counter {
                counter.counted_to = now;
            }
            aging.known.as_secs()
        };
        self.write_small(&Way::content(), NAME, age.to_string().as_bytes(), || Ok(()))
    }

    /// The agent is ready no longer: counts what there is to count, and leaves it to another.
    pub fn stop_growing_older(&self) -> Result<(), StoreError> {
        let counted = self.grow_older();
        self.aging().counter = None;
        counted
    }

    /// Takes over the count of earlier processes.
    pub(super) fn load_age(&self) -> Result<(), StoreError> {
        if let Some(age) = read_age(self)? {
            self.aging().known = Duration::from_secs(age);
            return Ok(());
        }
        let content = Way::content().make(self.root())?.folder;
        let lost = content.inspect(NAME)?.is_some();
        let age = self.largest_stamp()?;
        self.aging().known = Duration::from_secs(age.unwrap_or_default());
        if age.is_none() && !lost {
            // A new store; of several processes one is first. What a crash of the machine leaves of this
            // is as good, or a lost age, and there is nothing yet to lose by that.
            let fresh = Temporary::create(&Way::ingest().make(self.root())?.folder, SECRET)?;
            fresh.file().write_all(b"0")?;
            fresh.link(&content, NAME)?;
            return Ok(());
        }
        tracing::warn!(age, "the store's age cannot be read: it starts again from the largest stamp");
        // Before there is an age again, so that this cannot be forgotten.
        self.write_lease(LOST, &Lease::on_everything(self.age()))?.sync()?;
        self.write_small(&Way::content(), NAME, self.age().to_string().as_bytes(), || Ok(()))
    }

    /// The largest age that anything in the store bears.
    fn largest_stamp(&self) -> Result<Option<u64>, StoreError> {
        let mut largest = None;
        let uses = Way::uses().make(self.root())?.folder;
        for name in uses.names()? {
            let Ok(Some(folder)) = uses.folder(&name, super::fs::OWNER_ONLY) else { continue };
            for name in folder.names()? {
                let found = folder.inspect(&name).ok().flatten();
                largest = largest.max(found.map(|found| found.stamp).filter(|stamp| *stamp < PLAUSIBLE));
            }
        }
        Ok(largest.max(self.largest_sign()?))
    }

    pub(super) fn aging(&self) -> MutexGuard<'_, Aging> {
        self.0.aging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_age(store: &Store) -> Result<Option<u64>, StoreError> {
    let Some(content) = Way::content().walk(store.root())? else { return Ok(None) };
    // A link, or a folder, in its place: as good as none.
    let bytes = read_small(&content, NAME, LIMIT).ok().flatten();
    let age = bytes.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
    Ok(age.filter(|age| *age < PLAUSIBLE))
}
