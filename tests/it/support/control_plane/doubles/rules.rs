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

/// What was asked for on one stream.
#[derive(Debug, Default)]
pub struct Rules {
    /// `None` before anything was.
    names: Option<BTreeSet<String>>,
    /// The last request was a rejection, in which istiod reads no names: they may be said again.
    rejected: bool,
}

impl Rules {
    /// A state-of-the-world request, and what it means.
    pub fn sotw(&mut self, request: &DiscoveryRequest, event: &Event) -> Result<(), Broken> {
        if request.type_url != resources::ecds_type() {
            return Ok(());
        }
        let rejected = std::mem::replace(&mut self.rejected, event.nack().is_some());
        match self.names.replace(event.names.clone()) {
            None if event.names.is_empty() => Err(Broken::NothingNamed),
            None if !request.version_info.is_empty() => {
                Err(Broken::VersionOfAnotherStream(request.version_info.clone()))
            }
            Some(before) if event.nack().is_some() && before != event.names => {
                Err(Broken::NamesOfRejection(event.names.clone(), before))
            }
            Some(before) if event.answer.is_none() && before == event.names && !rejected => {
                Err(Broken::Unheard)
            }
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
