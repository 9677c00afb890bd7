//! A file system that fails when told to.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::Errno;

use super::super::error::Operation;

/// Counts the store's operations and fails some of them.
#[derive(Debug, Default)]
pub(in crate::store) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Which operation fails, counted from when this was set, and how.
    plan: Option<Plan>,
    short_writes: bool,
    seen: Vec<(Operation, PathBuf)>,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Plan {
    /// Counted from zero.
    pub(in crate::store) at: usize,
    pub(in crate::store) errno: Errno,
    /// Whether everything after it fails as well, as if the process were dead.
    pub(in crate::store) for_good: bool,
}

impl Faults {
    /// From here on operations are counted, and fail by this plan.
    pub(in crate::store) fn arm(&self, plan: Plan) {
        let mut state = self.0.lock().unwrap();
        state.seen.clear();
        state.plan = Some(plan);
    }

    /// Nothing fails any more. Returns the operations since it was armed.
    pub(in crate::store) fn disarm(&self) -> Vec<(Operation, PathBuf)> {
        let mut state = self.0.lock().unwrap();
        state.plan = None;
        std::mem::take(&mut state.seen)
    }

    /// Every write takes a few bytes at most.
    pub(in crate::store) fn shorten_writes(&self) {
        self.0.lock().unwrap().short_writes = true;
    }

    pub(in crate::store) fn before(&self, operation: Operation, path: &Path) -> rustix::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let number = state.seen.len();
        state.seen.push((operation, path.to_owned()));
        match state.plan {
            Some(plan) if number == plan.at || (plan.for_good && number > plan.at) => Err(plan.errno),
            _ => Ok(()),
        }
    }

    pub(in crate::store) fn write_limit(&self, length: usize) -> usize {
        if self.0.lock().unwrap().short_writes { length.min(7) } else { length }
    }
}
