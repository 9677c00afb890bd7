//! What a client may say on an ADS stream, given what was sent to it. Every request that breaks the
//! protocol is a [`Violation`].

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

/// A request, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub type_url: String,
    /// The response that it answers; `None` where it only asks for something.
    pub answer: Option<Answer>,
    /// All names that are subscribed to from here on.
    pub names: BTreeSet<String>,
    /// State of the world: the version that the client says it has.
    pub version: String,
    /// Delta, first request of a type: what the client has from earlier streams.
    pub initial_versions: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub nonce: String,
    /// Code and message of a NACK.
    pub error: Option<(i32, String)>,
}

impl Event {
    pub fn is_ack(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.error.is_none())
    }

    /// The message of a NACK.
    pub fn nack(&self) -> Option<&str> {
        self.answer.as_ref()?.error.as_ref().map(|(_, message)| message.as_str())
    }
}

/// What a client said that it must not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Violation {
    #[error("the first request of the stream names no node")]
    NoNode,
    #[error("a request without a type")]
    NoType,
    #[error("the first request for {0} on this stream has the nonce {1:?}, of nothing that was sent")]
    NonceOfAnotherStream(String, String),
    #[error("the nonce {1:?} was never sent for {0}")]
    UnknownNonce(String, String),
    #[error("the nonce {1:?} of {0} was answered already")]
    AnsweredTwice(String, String),
    #[error("{0}: {1:?} is answered before {2:?}, which was sent earlier")]
    OutOfOrder(String, String, String),
    #[error("a request for {0} without nonce, after responses were answered")]
    LostNonce(String),
    #[error("a request for {type_url} has version {got:?} where it must be {expected:?}")]
    Version { type_url: String, got: String, expected: String },
    #[error("an error for {0} that answers nothing, or has no message")]
    Error(String),
    #[error("initial_resource_versions in a request for {0} that is not the first")]
    LateInitialVersions(String),
    #[error("a request for {0} that answers nothing and changes nothing")]
    Empty(String),
    #[error("responses of {0} without an answer: {1:?}")]
    Unanswered(String, Vec<String>),
}

/// The state of one stream, as far as it decides what is legal.
#[derive(Debug, Default)]
pub struct Ledger {
    started: bool,
    types: BTreeMap<String, Type>,
}

#[derive(Debug, Default)]
struct Type {
    sent: Vec<Sent>,
    /// How many of `sent` are answered: always a first part of it.
    answered: usize,
    /// The last version that the client has accepted.
    accepted: String,
    names: BTreeSet<String>,
}

#[derive(Debug)]
struct Sent {
    version: String,
    nonce: String,
}

impl Type {
    /// The answer that a nonce makes of a request: to the oldest response that has none yet. `None`
    /// for the nonce of the last answer, which a later request repeats.
    fn answer(
        &mut self,
        type_url: &str,
        nonce: &str,
        error: Option<&Status>,
    ) -> Result<Option<(Answer, &Sent)>, Violation> {
        let position = self.sent.iter().position(|sent| sent.nonce == nonce);
        let position = position.ok_or_else(|| Violation::UnknownNonce(type_url.into(), nonce.into()))?;
        if position + 1 == self.answered {
            return Ok(None);
        }
        if position < self.answered {
            return Err(Violation::AnsweredTwice(type_url.into(), nonce.into()));
        }
        if position > self.answered {
            let earlier = self.sent[self.answered].nonce.clone();
            return Err(Violation::OutOfOrder(type_url.into(), nonce.into(), earlier));
        }
        if error.is_some_and(|error| error.code == 0 || error.message.is_empty()) {
            return Err(Violation::Error(type_url.into()));
        }
        self.answered += 1;
        let error = error.map(|error| (error.code, error.message.clone()));
        Ok(Some((Answer { nonce: nonce.into(), error }, &self.sent[position])))
    }

    fn expect_version(&self, type_url: &str, got: &str, expected: &str) -> Result<(), Violation> {
        if got == expected {
            return Ok(());
        }
        Err(Violation::Version { type_url: type_url.into(), got: got.into(), expected: expected.into() })
    }
}

impl Ledger {
    /// Writes down a response before it is sent.
    pub fn sent(&mut self, type_url: &str, version: &str, nonce: &str) {
        let sent = Sent { version: version.into(), nonce: nonce.into() };
        self.types.entry(type_url.into()).or_default().sent.push(sent);
    }

    /// The names that are subscribed to.
    pub fn names(&self, type_url: &str) -> BTreeSet<String> {
        self.types.get(type_url).map(|of_type| of_type.names.clone()).unwrap_or_default()
    }

    /// The types that were asked for.
    pub fn types(&self) -> Vec<String> {
        self.types.keys().cloned().collect()
    }

    /// A state-of-the-world request.
    pub fn sotw(&mut self, request: &DiscoveryRequest) -> Result<Event, Violation> {
        let type_url = &request.type_url;
        let first = self.begin(request.node.as_ref(), type_url)?;
        let of_type = self.types.entry(type_url.clone()).or_default();
        let nonce = &request.response_nonce;
        let mut answer = None;
        if first {
            if !nonce.is_empty() {
                return Err(Violation::NonceOfAnotherStream(type_url.clone(), nonce.clone()));
            }
            // From an earlier stream, perhaps: what it is, is the test's to check.
            of_type.accepted = request.version_info.clone();
        } else if nonce.is_empty() {
            if of_type.answered > 0 {
                return Err(Violation::LostNonce(type_url.clone()));
            }
            of_type.expect_version(type_url, &request.version_info, &of_type.accepted)?;
        } else {
            let mut accepted = of_type.accepted.clone();
            if let Some((given, sent)) = of_type.answer(type_url, nonce, request.error_detail.as_ref())? {
                if given.error.is_none() {
                    accepted = sent.version.clone();
                }
                answer = Some(given);
            }
            of_type.expect_version(type_url, &request.version_info, &accepted)?;
            of_type.accepted = accepted;
        }
        if answer.is_none() && request.error_detail.is_some() {
            return Err(Violation::Error(type_url.clone()));
        }
        of_type.names = request.resource_names.iter().cloned().collect();
        Ok(Event {
            type_url: type_url.clone(),
            answer,
            names: of_type.names.clone(),
            version: request.version_info.clone(),
            initial_versions: BTreeMap::new(),
        })
    }

    /// A Delta request.
    pub fn delta(&mut self, request: &DeltaDiscoveryRequest) -> Result<Event, Violation> {
        let type_url = &request.type_url;
        let first = self.begin(request.node.as_ref(), type_url)?;
        let of_type = self.types.entry(type_url.clone()).or_default();
        let nonce = &request.response_nonce;
        let mut answer = None;
        if !nonce.is_empty() {
            if first {
                return Err(Violation::NonceOfAnotherStream(type_url.clone(), nonce.clone()));
            }
            // Each Delta nonce comes back once.
            let given = of_type.answer(type_url, nonce, request.error_detail.as_ref())?;
            let (given, _) =
                given.ok_or_else(|| Violation::AnsweredTwice(type_url.clone(), nonce.clone()))?;
            answer = Some(given);
        }
        if answer.is_none() && request.error_detail.is_some() {
            return Err(Violation::Error(type_url.clone()));
        }
        if !first && !request.initial_resource_versions.is_empty() {
            return Err(Violation::LateInitialVersions(type_url.clone()));
        }
        let (add, remove) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        if !first && answer.is_none() && add.is_empty() && remove.is_empty() {
            return Err(Violation::Empty(type_url.clone()));
        }
        of_type.names.extend(add.iter().cloned());
        of_type.names.retain(|name| !remove.contains(name));
        Ok(Event {
            type_url: type_url.clone(),
            answer,
            names: of_type.names.clone(),
            version: String::new(),
            initial_versions: request.initial_resource_versions.clone().into_iter().collect(),
        })
    }

    /// Whether everything that was sent has its answer.
    pub fn settled(&self) -> Result<(), Violation> {
        for (type_url, of_type) in &self.types {
            let unanswered = &of_type.sent[of_type.answered..];
            if !unanswered.is_empty() {
                let nonces = unanswered.iter().map(|sent| sent.nonce.clone()).collect();
                return Err(Violation::Unanswered(type_url.clone(), nonces));
            }
        }
        Ok(())
    }

    /// Whether this is the stream's first request for its type.
    fn begin(&mut self, node: Option<&Node>, type_url: &str) -> Result<bool, Violation> {
        if !self.started && node.is_none_or(|node| node.id.is_empty()) {
            return Err(Violation::NoNode);
        }
        self.started = true;
        if type_url.is_empty() {
            return Err(Violation::NoType);
        }
        Ok(!self.types.contains_key(type_url))
    }
}

mod tests {
    use super::*;

    const TYPE: &str = "type.googleapis.com/T";

    fn sotw(version: &str, nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: TYPE.into(),
            version_info: version.into(),
            response_nonce: nonce.into(),
            resource_names: vec!["a".into()],
            node: Some(Node { id: "n".into(), ..Node::default() }),
            ..DiscoveryRequest::default()
        }
    }

    fn delta(nonce: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: TYPE.into(),
            response_nonce: nonce.into(),
            node: Some(Node { id: "n".into(), ..Node::default() }),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn refused() -> Option<Status> {
        Some(Status { code: 13, message: "no".into(), details: Vec::new() })
    }

    /// A stream on which version 1 with nonce n1 was sent after the first request.
    fn begun() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.sotw(&sotw("", "")).unwrap();
        ledger.sent(TYPE, "1", "n1");
        ledger
    }

    #[test]
    fn the_ledger_tells_acks_from_nacks_and_from_changes() {
        let mut ledger = begun();
        assert!(ledger.sotw(&sotw("1", "n1")).unwrap().is_ack());
        assert_eq!(ledger.sotw(&sotw("1", "n1")).unwrap().answer, None);
        ledger.sent(TYPE, "2", "n2");
        let nack = DiscoveryRequest { error_detail: refused(), ..sotw("1", "n2") };
        assert_eq!(ledger.sotw(&nack).unwrap().nack(), Some("no"));
        assert_eq!(ledger.settled(), Ok(()));
    }

    #[test]
    fn the_ledger_refuses_versions_and_nonces_that_the_protocol_does_not_allow() {
        let version = |got: &str, expected: &str| Violation::Version {
            type_url: TYPE.into(),
            got: got.into(),
            expected: expected.into(),
        };
        assert_eq!(begun().sotw(&sotw("", "n1")), Err(version("", "1")));
        let nack = DiscoveryRequest { error_detail: refused(), ..sotw("1", "n1") };
        assert_eq!(begun().sotw(&nack), Err(version("1", "")));
        assert_eq!(begun().sotw(&sotw("1", "n0")), Err(Violation::UnknownNonce(TYPE.into(), "n0".into())));

        let mut skipped = begun();
        skipped.sent(TYPE, "2", "n2");
        let expected = Violation::OutOfOrder(TYPE.into(), "n2".into(), "n1".into());
        assert_eq!(skipped.sotw(&sotw("2", "n2")), Err(expected));
        let expected = Violation::Unanswered(TYPE.into(), vec!["n1".into(), "n2".into()]);
        assert_eq!(skipped.settled(), Err(expected));

        let mut lost = begun();
        lost.sotw(&sotw("1", "n1")).unwrap();
        assert_eq!(lost.sotw(&sotw("1", "")), Err(Violation::LostNonce(TYPE.into())));

        let stale = Ledger::default().sotw(&sotw("", "n1"));
        assert_eq!(stale, Err(Violation::NonceOfAnotherStream(TYPE.into(), "n1".into())));
        let nobody = DiscoveryRequest { node: None, ..sotw("", "") };
        assert_eq!(Ledger::default().sotw(&nobody), Err(Violation::NoNode));
    }

    #[test]
    fn the_ledger_wants_each_delta_nonce_back_once() {
        let mut ledger = Ledger::default();
        let subscribe = DeltaDiscoveryRequest { resource_names_subscribe: vec!["a".into()], ..delta("") };
        ledger.delta(&subscribe).unwrap();
        ledger.sent(TYPE, "", "n1");
        assert!(ledger.delta(&delta("n1")).unwrap().is_ack());
        assert_eq!(ledger.delta(&delta("n1")), Err(Violation::AnsweredTwice(TYPE.into(), "n1".into())));
        assert_eq!(ledger.delta(&delta("")), Err(Violation::Empty(TYPE.into())));
        let late = DeltaDiscoveryRequest {
            initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
            ..subscribe
        };
        assert_eq!(ledger.delta(&late), Err(Violation::LateInitialVersions(TYPE.into())));
    }
}
