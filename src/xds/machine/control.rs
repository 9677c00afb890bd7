//! The protocol towards the control plane: a whole xDS client. Every response is answered once.

use std::collections::BTreeSet;
use std::time::Instant;

use super::envoy::Change;
use super::{ControlRequest, Variant};

/// A response that has not been answered.
#[derive(Debug)]
struct Due {
    version: String,
    nonce: String,
    /// Names that Envoy has yet to judge.
    waiting: BTreeSet<String>,
    error: Option<String>,
    /// None where Envoy has asked for nothing yet.
    deadline: Option<Instant>,
}

/// What has been said to the control plane, and what it waits for.
#[derive(Debug)]
pub struct Control {
    variant: Variant,
    started: bool,
    /// The version that was last accepted, and the nonce that was last seen.
    version: String,
    nonce: String,
    /// State of the world: the names in the last request. An answer repeats them; a change of the
    /// subscription is a request of its own.
    names: BTreeSet<String>,
    due: Option<Due>,
}

impl Control {
    pub fn new(variant: Variant) -> Self {
        Self {
            variant,
            started: false,
            version: String::new(),
            nonce: String::new(),
            names: BTreeSet::new(),
            due: None,
        }
    }

    /// The request that carries a changed subscription. Its own versions and nonces only: what
    /// Envoy says about ours means nothing to a control plane.
    pub fn subscribe(&mut self, change: &Change, all: &BTreeSet<String>) -> Option<ControlRequest> {
        // An empty first request would be read as a wildcard by some.
        if !self.started && all.is_empty() {
            return None;
        }
        let first = !std::mem::replace(&mut self.started, true);
        self.names.clone_from(all);
        Some(match self.variant {
            Variant::StateOfTheWorld => ControlRequest {
                version: self.version.clone(),
                nonce: self.nonce.clone(),
                names: all.iter().cloned().collect(),
                ..ControlRequest::default()
            },
            Variant::Delta => ControlRequest {
                subscribe: change.added.iter().cloned().collect(),
                unsubscribe: if first { Vec::new() } else { change.dropped.iter().cloned().collect() },
                // With an empty version everything is sent again, and what has vanished is
                // reported as removed.
                initial: if first { change.held.iter().cloned().collect() } else { Vec::new() },
                ..ControlRequest::default()
            },
        })
    }

    /// A response came in.
    pub fn received(
        &mut self,
        version: String,
        nonce: String,
        waiting: BTreeSet<String>,
        error: Option<String>,
        deadline: Instant,
    ) {
        self.nonce.clone_from(&nonce);
        // An unasked response is not answered until Envoy asks.
        let deadline = self.started.then_some(deadline);
        self.due = Some(Due { version, nonce, waiting, error, deadline });
    }

    /// Envoy rejected this resource: the control plane hears of it if it still waits.
    pub fn rejected(&mut self, name: &str) {
        if let Some(due) = &mut self.due
            && due.waiting.contains(name)
        {
            let text = due.error.get_or_insert_with(String::new);
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(&format!("resource {name:?}: rejected by Envoy"));
        }
    }

    /// Whether there is an answer due that waits for nothing more.
    pub fn is_settled(&self, verdict_due: impl Fn(&str) -> bool) -> bool {
        let due = self.due.as_ref().filter(|_| self.started);
        due.is_some_and(|due| !due.waiting.iter().any(|name| verdict_due(name)))
    }

    /// When the answer goes out whatever Envoy does.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.as_ref().and_then(|due| due.deadline)
    }

    /// The answer that is due.
    pub fn answer(&mut self) -> Option<ControlRequest> {
        if !self.started {
            return None;
        }
        let due = self.due.take()?;
        if due.error.is_none() {
            self.version = due.version;
        }
        Some(match self.variant {
            Variant::StateOfTheWorld => ControlRequest {
                version: self.version.clone(),
                nonce: due.nonce,
                names: self.names.iter().cloned().collect(),
                error: due.error,
                ..ControlRequest::default()
            },
            Variant::Delta => {
                ControlRequest { nonce: due.nonce, error: due.error, ..ControlRequest::default() }
            }
        })
    }
}
