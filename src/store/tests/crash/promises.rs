//! What the store has said, and what it shows.

use std::collections::BTreeMap;

use super::recording::Event;
use crate::digest::PayloadDigest;
use crate::store::{Audience, Lease, Store};

/// What somebody was told of. Whether and which, a [`Value`] says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) enum Told {
    Module(Who, PayloadDigest),
    Record(Who, &'static str),
    Lease(&'static str),
    Pin(PayloadDigest),
    /// Begins with the name of its subject.
    Note(&'static str),
}

/// Who asks. The audience depends on the store's key, which a crash may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) enum Who {
    Everybody,
    Holder(&'static str),
}

/// None where there is nothing of the kind.
pub(in crate::store) type Value = Option<String>;

/// Of each thing, what it may be: one value when it is promised, more while it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Promises(BTreeMap<Told, Vec<Value>>);

impl Who {
    pub(super) fn audience(self, store: &Store) -> Audience {
        match self {
            Self::Everybody => Audience::Public,
            Self::Holder(secret) => Audience::Private(store.fingerprint(secret.as_bytes())),
        }
    }
}

impl Told {
    /// A lease gets its place before it is durable.
    fn may_be_torn(&self, may_be: &[Value]) -> bool {
        matches!(self, Self::Lease(_)) && may_be.len() > 1
    }

    /// What the store shows of it.
    pub(super) fn shown(&self, store: &Store) -> Value {
        match self {
            Self::Module(who, payload) => {
                let stored = store.view(&who.audience(store), payload).unwrap()?;
                assert_eq!(PayloadDigest::of(&std::fs::read(&stored.path).unwrap()), *payload);
                Some(String::new())
            }
            Self::Record(who, source) => {
                let audience = who.audience(store);
                let record = store.lookup(&audience, source).unwrap()?;
                let stored = store.view(&audience, &record.payload).unwrap().expect("what a record leads to");
                assert_eq!(PayloadDigest::of(&std::fs::read(&stored.path).unwrap()), record.payload);
                Some(format!("{record:?}"))
            }
            Self::Lease(node) => {
                let lease = store.lease(node).unwrap();
                (lease != Lease::default()).then(|| format!("{lease:?}"))
            }
            Self::Pin(payload) => {
                let pins = store.pins().unwrap();
                pins.iter().find(|pin| pin.payload == *payload).map(|pin| format!("{pin:?}"))
            }
            Self::Note(subject) => {
                let notes = store.notes().unwrap();
                let mut notes = notes.into_iter().map(|note| String::from_utf8(note).unwrap());
                notes.find(|note| note.starts_with(subject))
            }
        }
    }
}

/// What is read in a damaged lease's place.
fn is_on_everything(shown: &Value) -> bool {
    shown.as_ref().is_some_and(|lease| lease.contains("names: {}") && lease.contains("everything: Some"))
}

impl Promises {
    pub(super) fn happen(&mut self, event: &Event) {
        match event {
            Event::Asked(told, value) => {
                self.0.entry(told.clone()).or_insert_with(|| vec![None]).push(value.clone());
            }
            Event::Promised(told, value) => drop(self.0.insert(told.clone(), vec![value.clone()])),
            _ => {}
        }
    }

    /// That the store shows what was promised. Says how many were torn that may be.
    pub(super) fn hold(&self, store: &Store) -> u64 {
        let mut torn = 0;
        for (told, may_be) in &self.0 {
            let shown = told.shown(store);
            let is_torn = told.may_be_torn(may_be) && is_on_everything(&shown);
            assert!(
                is_torn || may_be.contains(&shown),
                "{told:?} is {shown:?} and should be one of {may_be:?}"
            );
            torn += u64::from(is_torn);
        }
        torn
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = (Who, PayloadDigest)> {
        self.0.keys().filter_map(|told| match told {
            Told::Module(who, payload) => Some((*who, *payload)),
            _ => None,
        })
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().filter_map(|told| match told {
            Told::Lease(node) => Some(*node),
            _ => None,
        })
    }
}
