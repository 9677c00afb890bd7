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
    /// The nonce that the last change of the names went out with, until a response to it is accepted.
    changed_with: Option<String>,
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
            changed_with: None,
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
        self.changed_with = Some(self.nonce.clone());
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
    /// In the state of the world a rejection may be followed by the names on their own: a change of
    /// them that crossed the response was dropped as stale, and some control planes read no names in
    /// a rejection.
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
        // Without a nonce, as on a new stream, a request is never stale.
        let crossed = self.changed_with.as_ref().is_some_and(|with| !with.is_empty() && *with != nonce);
        let rejected = error.is_some();
        let answer = ControlRequest {
            version: self.version.clone(),
            names: self.names.iter().cloned().collect(),
            nonce,
            error,
            ..ControlRequest::default()
        };
        match (rejected, crossed) {
            (true, true) => {
                self.changed_with = Some(answer.nonce.clone());
                vec![answer.clone(), ControlRequest { error: None, ..answer }]
            }
            (true, false) => vec![answer],
            (false, _) => {
                self.changed_with = None;
                vec![answer]
            }
        }
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
