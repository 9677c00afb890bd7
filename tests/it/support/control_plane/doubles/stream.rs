//! One stream of a double: reads, checks, asks the watch of the type what to say, and says it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::super::ledger::{Event, Ledger};
use super::super::{Accepted, Ended, Protocol};
use super::message::{Request, Response};
use super::rules::Rules;
use super::{Kind, Offered, Record, Said, State, Watch, lock, watch_for};

/// One stream being served.
pub(super) struct Stream {
    kind: Kind,
    accepted: Accepted,
    number: usize,
    ledger: Ledger,
    rules: Rules,
    watches: BTreeMap<String, Box<dyn Watch>>,
    nonces: u64,
    record: Arc<Mutex<Record>>,
}

impl Stream {
    pub(super) fn new(kind: Kind, accepted: Accepted, number: usize, record: Arc<Mutex<Record>>) -> Stream {
        Stream {
            kind,
            accepted,
            number,
            ledger: Ledger::default(),
            rules: Rules::default(),
            watches: BTreeMap::new(),
            nonces: 0,
            record,
        }
    }

    /// Until the peer ends it, breaks a rule, or all streams are closed.
    pub(super) async fn serve(
        mut self,
        mut state: watch::Receiver<State>,
        mut closings: watch::Receiver<u64>,
    ) {
        self.note(Said::Opened(self.accepted.service));
        let closed = loop {
            let served = tokio::select! {
                _ = closings.changed() => break true,
                request = self.accepted.request() => match request {
                    Ok(Some(request)) => {
                        let now = state.borrow().clone();
                        self.request(&request, &now).await
                    }
                    Ok(None) | Err(_) => break false,
                },
                _ = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    self.changed(&now).await
                }
            };
            if served.is_err() {
                break false;
            }
        };
        self.note(Said::Ended);
        if closed {
            self.accepted.end(Status::new(Code::Ok, "")).await;
        }
    }

    /// What of a type this control plane takes for its state: istiod has one version for all types.
    fn offered(&self, state: &State, type_url: &str) -> Offered {
        let mut offered = state.types.get(type_url).cloned().unwrap_or_default();
        if self.kind == Kind::Istiod {
            offered.version = state.version;
        }
        offered
    }

    async fn request(&mut self, bytes: &[u8], state: &State) -> Result<(), Ended> {
        let protocol = self.accepted.protocol;
        let (request, event) = match protocol {
            Protocol::Sotw => {
                let request = DiscoveryRequest::decode(bytes).expect("a DiscoveryRequest");
                (Request::from(&request), self.check(&request, Ledger::sotw, Rules::sotw))
            }
            Protocol::Delta => {
                let request = DeltaDiscoveryRequest::decode(bytes).expect("a DeltaDiscoveryRequest");
                (Request::from(&request), self.check(&request, Ledger::delta, Rules::delta))
            }
        };
        let Some(event) = event else { return Err(Ended) };
        let type_url = event.type_url.clone();
        self.note(Said::Request(event));
        let offered = self.offered(state, &type_url);
        let kind = self.kind;
        let watch =
            self.watches.entry(type_url.clone()).or_insert_with(|| watch_for(kind, protocol, &type_url));
        match watch.request(&request, &offered) {
            Some(response) => self.respond(type_url, response).await,
            None => Ok(()),
        }
    }

    /// What the request means, where it breaks no rule.
    fn check<R: std::fmt::Debug, V: std::fmt::Display, W: std::fmt::Display>(
        &mut self,
        request: &R,
        ledger: impl Fn(&mut Ledger, &R) -> Result<Event, V>,
        rules: impl Fn(&mut Rules, &R, &Event) -> Result<(), W>,
    ) -> Option<Event> {
        let broken = match ledger(&mut self.ledger, request) {
            Ok(event) => match rules(&mut self.rules, request, &event) {
                Ok(()) => return Some(event),
                Err(violation) => violation.to_string(),
            },
            Err(violation) => violation.to_string(),
        };
        let text = format!("stream {}: {broken}, in {request:?}", self.number);
        lock(&self.record).broken.get_or_insert(text);
        None
    }

    async fn changed(&mut self, state: &State) -> Result<(), Ended> {
        let types: Vec<String> = self.watches.keys().cloned().collect();
        for type_url in types {
            let offered = self.offered(state, &type_url);
            let response = self.watches.get_mut(&type_url).and_then(|watch| watch.changed(&offered));
            if let Some(response) = response {
                self.respond(type_url, response).await?;
            }
        }
        Ok(())
    }

    async fn respond(&mut self, type_url: String, mut response: Response) -> Result<(), Ended> {
        self.nonces += 1;
        response.nonce = match self.kind {
            Kind::GoControlPlane => self.nonces.to_string(),
            Kind::Istiod => format!("{}-{}-{}", response.version, self.number, self.nonces),
        };
        response.type_url = type_url;
        self.ledger.sent(&response.type_url, &response.version, &response.nonce);
        if let Some(watch) = self.watches.get_mut(&response.type_url) {
            watch.sent(&response.nonce);
        }
        let bytes = response.encode(self.accepted.protocol);
        self.note(Said::Response(response));
        self.accepted.respond(bytes).await
    }

    fn note(&self, said: Said) {
        lock(&self.record).said.push((self.number, said));
    }
}
