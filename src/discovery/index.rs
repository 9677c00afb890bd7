//! The places that are known, by the ECDS resource's name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::places::Place;

/// What is kept of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Facts {
    /// Whether Envoy takes a fallback there. Compared first, so that a place that refuses it is the
    /// first of its name.
    takes_fallback: bool,
    hash: [u8; 16],
}

/// One resource's use of a name.
#[derive(Debug)]
pub(super) struct Use {
    name: Arc<str>,
    facts: Facts,
}

/// How many resources say what of each name.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<Arc<str>, BTreeMap<Facts, usize>>);

impl Index {
    /// Whether all places of the name take a fallback; `None` where there is none.
    pub fn takes_fallback(&self, name: &str) -> Option<bool> {
        let (strictest, _) = self.0.get(name)?.first_key_value()?;
        Some(strictest.takes_fallback)
    }

    /// Adds a place. Its name goes into `changed` if nothing has said this of it.
    pub fn add(&mut self, place: &Place<'_>, changed: &mut BTreeSet<Arc<str>>) -> Use {
        let known = self.0.get_key_value(place.name);
        let name = known.map_or_else(|| Arc::from(place.name), |(name, _)| name.clone());
        let facts = Facts { takes_fallback: place.lists_rbac && !place.has_default, hash: place.hash };
        let count = self.0.entry(name.clone()).or_default().entry(facts).or_default();
        *count += 1;
        if *count == 1 {
            changed.insert(name.clone());
        }
        Use { name, facts }
    }

    /// Takes a place away. Its name goes into `changed` if nothing else says this of it.
    pub fn remove(&mut self, gone: Use, changed: &mut BTreeSet<Arc<str>>) {
        let Some(places) = self.0.get_mut(&gone.name) else { return };
        let Some(count) = places.get_mut(&gone.facts) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        places.remove(&gone.facts);
        if places.is_empty() {
            self.0.remove(&gone.name);
        }
        changed.insert(gone.name);
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
