//! A file system that fails when told to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::Errno;

use super::crash::recording::Event;
use crate::store::error::Operation;
use crate::store::fs::Space;
use crate::store::observer::Done;

/// Sees the store's operations and fails some of them.
#[derive(Debug, Default)]
pub(in crate::store) struct Faults(Mutex<State>, Mutex<Option<Vec<Event>>>);

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    interlude: Option<(Operation, Box<dyn FnOnce() + Send>)>,
    short_writes: bool,
    /// Whether the next operation is interrupted, where they all are, each once.
    interrupts: Option<bool>,
    space: Option<Space>,
    seen: Vec<(Operation, PathBuf)>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Which operation fails, counted from zero when the plan was made, and how.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Plan {
    pub(in crate::store) at: usize,
    pub(in crate::store) errno: Errno,
    /// Whether all after it fail too, as if the process were dead.
    pub(in crate::store) for_good: bool,
}

impl Faults {
    /// From here on operations are counted, and fail by this plan.
    pub(in crate::store) fn arm(&self, plan: Plan) {
        let mut state = self.0.lock().unwrap();
        state.seen.clear();
        state.plan = Some(plan);
    }

    /// Nothing fails any more. Returns the operations since the plan was made.
    pub(in crate::store) fn disarm(&self) -> Vec<(Operation, PathBuf)> {
        let mut state = self.0.lock().unwrap();
        state.plan = None;
        std::mem::take(&mut state.seen)
    }

    /// How many operations there were since the plan was made.
    pub(in crate::store) fn seen(&self) -> usize {
        self.0.lock().unwrap().seen.len()
    }

    /// What another process does just before the next such operation.
    pub(in crate::store) fn just_before(&self, operation: Operation, then: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap().interlude = Some((operation, Box::new(then)));
    }

    /// From here on every write takes a few bytes at most.
    pub(in crate::store) fn shorten_writes(&self) {
        self.0.lock().unwrap().short_writes = true;
    }

    /// From here on a signal comes in each operation before it is done.
    pub(in crate::store) fn interrupt(&self) {
        self.0.lock().unwrap().interrupts = Some(true);
    }

    /// From here on the file system has this much room.
    pub(in crate::store) fn leave_space(&self, free: u64, total: u64) {
        self.0.lock().unwrap().space = Some(Space { free, total });
    }

    pub(in crate::store) fn space(&self) -> Option<Space> {
        self.0.lock().unwrap().space
    }

    pub(in crate::store) fn before(&self, operation: Operation, path: &Path) -> rustix::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if let Some((_, then)) = state.interlude.take_if(|(at, _)| *at == operation) {
            then();
        }
        let number = state.seen.len();
        state.seen.push((operation, path.to_owned()));
        if let Some(interrupts) = &mut state.interrupts {
            *interrupts = !*interrupts;
            if !*interrupts {
                return Err(Errno::INTR);
            }
        }
        match state.plan {
            Some(plan) if number == plan.at || (plan.for_good && number > plan.at) => Err(plan.errno),
            _ => Ok(()),
        }
    }

    /// From here on what is done is written down.
    pub(in crate::store) fn record(&self) {
        *self.1.lock().unwrap() = Some(Vec::new());
    }

    /// What was done since then.
    pub(in crate::store) fn recorded(&self) -> Vec<Event> {
        self.1.lock().unwrap().take().unwrap_or_default()
    }

    /// Writes down what somebody was told.
    pub(in crate::store) fn told(&self, event: Event) {
        self.1.lock().unwrap().as_mut().expect("it is recorded").push(event);
    }

    pub(in crate::store) fn done(&self, done: Done<'_>) {
        if let Some(events) = &mut *self.1.lock().unwrap() {
            events.push(Event::of(done));
        }
    }

    pub(in crate::store) fn write_limit(&self, length: usize) -> usize {
        if self.0.lock().unwrap().short_writes { length.min(7) } else { length }
    }
}
