//! The protocol towards the control plane: a whole xDS client. Every response is answered once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::envoy::Change;
use super::slot::Hash;
use super::{ControlRequest, Variant};

/// A response, as far as its answer depends on it.
#[derive(Debug)]
pub struct Received {
    pub version: String,
    pub nonce: String,
    pub content: Hash,
    /// Names of all that is in it.
    pub carried: BTreeSet<String>,
    /// Names of which the outcome is not known yet.
    pub waiting: BTreeSet<String>,
    /// Why it is rejected.
    pub error: Option<String>,
    pub at: Instant,
    /// When it is answered whatever is known.
    pub deadline: Instant,
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
    /// State of the world: names that were added with the nonce of a response. If the next response
    /// crossed that request it was dropped as stale, and so may have been each request since; what
    /// shows that a name was heard is a response that carries it.
    unheard: BTreeSet<String>,
    /// The response that has not been answered.
    due: Option<Received>,
    /// What was rejected last, and when it came.
    nacked: Option<(Hash, Instant)>,
    repeat_window: Duration,
}

impl Control {
    /// A conversation that has not begun. What was rejected is accepted where it comes again within
    /// `repeat_window`.
    pub fn new(variant: Variant, repeat_window: Duration) -> Self {
        Self {
            variant,
            started: false,
            version: String::new(),
            nonce: String::new(),
            names: BTreeSet::new(),
            unheard: BTreeSet::new(),
            due: None,
            nacked: None,
            repeat_window,
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
        self.unheard.retain(|name| all.contains(name));
        // Without a nonce, as on a new stream, a request is never stale.
        if !self.nonce.is_empty() {
            self.unheard.extend(change.added.iter().cloned());
        }
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
    pub fn received(&mut self, mut response: Received) {
        self.nonce.clone_from(&response.nonce);
        self.unheard.retain(|name| !response.carried.contains(name));
        let is_repeat = self.nacked.is_some_and(|(content, at)| {
            content == response.content && response.at < at + self.repeat_window
        });
        if is_repeat {
            response.error = None;
            response.waiting.clear();
        }
        self.due = Some(response);
    }

    /// Envoy rejected this resource: the control plane hears of it if it still waits.
    pub fn rejected(&mut self, name: &str) {
        self.object(name, "rejected by Envoy");
    }

    /// The resource's module could not be had: the control plane hears of it if it waits for that.
    pub fn fetch_failed(&mut self, name: &str, reason: &str) {
        self.object(name, &format!("cannot get the module: {reason}"));
    }

    fn object(&mut self, name: &str, reason: &str) {
        if let Some(due) = &mut self.due
            && due.waiting.contains(name)
        {
            object(&mut due.error, name, reason);
        }
    }

    /// Whether there is an answer due that waits for nothing more.
    pub fn is_settled(&self, verdict_due: impl Fn(&str) -> bool) -> bool {
        let due = self.due.as_ref().filter(|_| self.started);
        due.is_some_and(|due| !due.waiting.iter().any(|name| verdict_due(name)))
    }

    /// When the answer goes out whatever Envoy does.
    pub fn deadline(&self) -> Option<Instant> {
        // An unasked response is not answered until Envoy asks.
        self.due.as_ref().filter(|_| self.started).map(|due| due.deadline)
    }

    /// The answer that is due.
    ///
    /// In the state of the world a rejection is followed by the names on their own where some may not
    /// have been heard: some control planes read no names in a rejection.
    pub fn answer(&mut self) -> Vec<ControlRequest> {
        let Some(due) = self.due.take_if(|_| self.started) else { return Vec::new() };
        match &due.error {
            None => self.version = due.version,
            Some(_) => self.nacked = Some((due.content, due.at)),
        }
        let (nonce, error) = (due.nonce, due.error);
        if self.variant == Variant::Delta {
            return vec![ControlRequest { nonce, error, ..ControlRequest::default() }];
        }
        let answer = ControlRequest {
            version: self.version.clone(),
            names: self.names.iter().cloned().collect(),
            nonce,
            error,
            ..ControlRequest::default()
        };
        if answer.error.is_none() || self.unheard.is_empty() {
            return vec![answer];
        }
        vec![answer.clone(), ControlRequest { error: None, ..answer }]
    }
}

/// Adds what is wrong with one resource to the reason of a rejection.
pub fn object(error: &mut Option<String>, name: &str, reason: &str) {
    let text = error.get_or_insert_with(String::new);
    if !text.is_empty() {
        text.push_str("; ");
    }
    text.push_str(&format!("resource {name:?}: {reason}"));
}
