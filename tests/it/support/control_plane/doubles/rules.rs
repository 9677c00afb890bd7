//! What an agent promises to say about extension configs, beyond what the protocol asks of any client.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::super::ledger::Event;
use crate::support::resources;

/// What an agent must not say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Broken {
    #[error("the first request of the stream brings the version {0:?}, of another one")]
    VersionOfAnotherStream(String),
    #[error("the first request of the stream names nothing, which some take for everything")]
    NothingNamed,
    #[error("a request that changes the subscription and has a nonce")]
    ChangeWithNonce,
    #[error("a rejection that names {0:?} where the last request named {1:?}")]
    NamesOfRejection(BTreeSet<String>, BTreeSet<String>),
    #[error("a request that answers nothing and changes nothing, to which some say nothing")]
    Unheard,
}

/// What was asked for on one stream; `None` before anything was.
#[derive(Debug, Default)]
pub struct Rules {
    names: Option<BTreeSet<String>>,
}

impl Rules {
    /// A state-of-the-world request, and what it means.
    pub fn sotw(&mut self, request: &DiscoveryRequest, event: &Event) -> Result<(), Broken> {
        if request.type_url != resources::ecds_type() {
            return Ok(());
        }
        match self.names.replace(event.names.clone()) {
            None if event.names.is_empty() => Err(Broken::NothingNamed),
            None if !request.version_info.is_empty() => {
                Err(Broken::VersionOfAnotherStream(request.version_info.clone()))
            }
            Some(before) if event.nack().is_some() && before != event.names => {
                Err(Broken::NamesOfRejection(event.names.clone(), before))
            }
            Some(before) if event.answer.is_none() && before == event.names => Err(Broken::Unheard),
            _ => Ok(()),
        }
    }

    /// A Delta request, and what it means.
    pub fn delta(&mut self, request: &DeltaDiscoveryRequest, event: &Event) -> Result<(), Broken> {
        if request.type_url != resources::ecds_type() {
            return Ok(());
        }
        let (add, remove) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        let changes = !add.is_empty() || !remove.is_empty();
        match self.names.replace(event.names.clone()) {
            _ if event.answer.is_some() && changes => Err(Broken::ChangeWithNonce),
            None if event.names.is_empty() => Err(Broken::NothingNamed),
            None => match event.initial_versions.values().find(|version| !version.is_empty()) {
                Some(version) => Err(Broken::VersionOfAnotherStream(version.clone())),
                None => Ok(()),
            },
            Some(before) if add.iter().any(|name| before.contains(name)) => Err(Broken::Unheard),
            Some(_) => Ok(()),
        }
    }
}

mod tests {
    use envoy_types::pb::envoy::config::core::v3::Node;
    use envoy_types::pb::google::rpc::Status;

    use super::super::super::ledger::Ledger;
    use super::*;

    fn sotw(version: &str, nonce: &str, names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: resources::ecds_type(),
            version_info: version.into(),
            response_nonce: nonce.into(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            node: Some(Node { id: "n".into(), ..Node::default() }),
            ..DiscoveryRequest::default()
        }
    }

    fn delta(nonce: &str, subscribe: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: resources::ecds_type(),
            response_nonce: nonce.into(),
            resource_names_subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
            node: Some(Node { id: "n".into(), ..Node::default() }),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// What the last of these requests breaks, where one response with nonce n1 came after the first.
    fn last_of_sotw(requests: &[DiscoveryRequest]) -> Result<(), Broken> {
        let (mut ledger, mut rules, mut last) = (Ledger::default(), Rules::default(), Ok(()));
        for (number, request) in requests.iter().enumerate() {
            let event = ledger.sotw(request).unwrap();
            last = rules.sotw(request, &event);
            if number == 0 {
                ledger.sent(&request.type_url, "1", "n1");
            }
        }
        last
    }

    fn last_of_delta(requests: &[DeltaDiscoveryRequest]) -> Result<(), Broken> {
        let (mut ledger, mut rules, mut last) = (Ledger::default(), Rules::default(), Ok(()));
        for (number, request) in requests.iter().enumerate() {
            let event = ledger.delta(request).unwrap();
            last = rules.delta(request, &event);
            if number == 0 {
                ledger.sent(&request.type_url, "1", "n1");
            }
        }
        last
    }

    #[test]
    fn the_rules_hold_a_state_of_the_world_client_to_what_an_agent_promises() {
        assert_eq!(last_of_sotw(&[sotw("", "", &[])]), Err(Broken::NothingNamed));
        let version = Broken::VersionOfAnotherStream("7".into());
        assert_eq!(last_of_sotw(&[sotw("7", "", &["a"])]), Err(version));
        let first = || sotw("", "", &["a"]);
        assert_eq!(last_of_sotw(&[first(), sotw("1", "n1", &["a"])]), Ok(()));
        let ack = sotw("1", "n1", &["a"]);
        assert_eq!(last_of_sotw(&[first(), ack.clone(), ack.clone()]), Err(Broken::Unheard));
        assert_eq!(last_of_sotw(&[first(), ack, sotw("1", "n1", &[])]), Ok(()));
        let error = Some(Status { code: 13, message: "no".into(), details: Vec::new() });
        let nack = DiscoveryRequest { error_detail: error.clone(), ..sotw("", "n1", &["a", "b"]) };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let expected = Broken::NamesOfRejection(names(&["a", "b"]), names(&["a"]));
        assert_eq!(last_of_sotw(&[first(), nack]), Err(expected));
        let nack = DiscoveryRequest { error_detail: error, ..sotw("", "n1", &["a"]) };
        assert_eq!(last_of_sotw(&[first(), nack]), Ok(()));
    }

    #[test]
    fn the_rules_hold_a_delta_client_to_what_an_agent_promises() {
        assert_eq!(last_of_delta(&[delta("", &[])]), Err(Broken::NothingNamed));
        let holds = |version: &str| DeltaDiscoveryRequest {
            initial_resource_versions: [("a".to_owned(), version.to_owned())].into(),
            ..delta("", &["a"])
        };
        assert_eq!(last_of_delta(&[holds("7")]), Err(Broken::VersionOfAnotherStream("7".into())));
        assert_eq!(last_of_delta(&[holds("")]), Ok(()));
        assert_eq!(last_of_delta(&[holds(""), delta("n1", &[])]), Ok(()));
        assert_eq!(last_of_delta(&[holds(""), delta("n1", &["b"])]), Err(Broken::ChangeWithNonce));
        assert_eq!(last_of_delta(&[holds(""), delta("", &["a"])]), Err(Broken::Unheard));
        assert_eq!(last_of_delta(&[holds(""), delta("", &["b"])]), Ok(()));
    }
}
