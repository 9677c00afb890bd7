//! One stream of one Envoy and its stream upstream. A single task reads both and never waits to
//! write: what is to be written goes into bounded outboxes that the connections drain.

mod control;
mod end;
mod fetches;
mod leases;
mod notes;
mod refresh;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Incoming as HyperBody;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::control::{Control, ReadWith};
use self::end::End;
use self::fetches::{Ended, Fetches, Whose};
use self::leases::{Held, leased};
use self::notes::shown;
use self::refresh::Refreshed;
use super::budget::Budget;
use super::frame::{Incoming, Message, Messages, STALL_LIMIT};
use super::intercept::{self, INTERCEPTED};
use super::leases::{self as node_leases, Leases};
use super::machine::{Action, Failure, Machine, Settings, Variant};
use super::memories::{Member, Memories};
use super::outbox::{Outbox, OutboxBody, outbox};
use super::state::{Entry, States};
use crate::clock::Clock;
use crate::metrics::{Metrics, result};
use crate::module::{Caller, Module, ModuleRequest};
use crate::protobuf::messages;
use crate::resolve::{ResolveError, Resolver};
use crate::upstream::Upstream;

/// The largest message that the control plane may send, in bytes.
pub const CONTROL_PLANE_LIMIT: usize = 256 * 1024 * 1024;
/// The largest message that an Envoy may send, in bytes.
pub const ENVOY_LIMIT: usize = 16 * 1024 * 1024;
/// What the names that one stream asks for may cost, in bytes: tens of thousands, where an Envoy asks
/// for dozens.
pub const NAMES_LIMIT: usize = 4 * 1024 * 1024;
/// So much of a peer's text goes into a line of the log, in characters.
const SHOWN_LIMIT: usize = 512;
/// Modules that are looked for in the store in one go.
const LOOKUPS: usize = 64;
/// How long the control plane may take to end its side after Envoy ended its own.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(10);

/// What all sessions share.
pub struct Shared {
    pub upstream: Upstream,
    pub resolver: Resolver,
    pub settings: watch::Receiver<RelaySettings>,
    pub budget: Budget,
    /// The part of the budget that is for what Envoys send, which is little: so no Envoy can keep
    /// others from being sent something by filling it.
    pub requests_budget: Budget,
    pub clock: Clock,
    pub metrics: Metrics,
    pub states: States,
    pub memories: Memories,
    pub leases: Leases,
    /// Cancelled when the agent drains.
    pub shutdown: CancellationToken,
}

/// What can change while streams are open. Each new stream takes what is set then; of what is set
/// later, an open one takes which tags are followed.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Bytes that may wait for a peer that does not read.
    pub queue_bytes: usize,
    pub machine: Settings,
}

type Fetched = Result<Module, Arc<ResolveError>>;

/// A running stream.
struct Session {
    variant: Variant,
    only_intercepted: bool,
    listener: Arc<str>,
    shared: Arc<Shared>,
    to_envoy: Outbox,
    fetches: Fetches<Fetched, Box<ModuleRequest>>,
    refreshes: JoinSet<Refreshed>,
    /// What can change while the stream is open.
    settings: watch::Receiver<RelaySettings>,
    /// Holds the machine.
    entry: Entry,
    /// When that has something to do.
    deadline: Option<Instant>,
    /// Envoy's node as it sent it, until the control plane has it.
    node: Option<Bytes>,
    node_sent: bool,
    node_id: String,
    /// The stream's part in what is remembered of the node.
    member: Option<Member>,
    /// Its part in what the node may open.
    lease: Option<node_leases::Member>,
    /// A response that waits for that to be written down.
    held: Option<Held>,
}

/// Which call a stream is.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    pub variant: Variant,
    /// The same upstream.
    pub path: &'static str,
    /// The service carries no other type, so that a message need not name it.
    pub only_intercepted: bool,
}

/// Starts serving a stream; the body is what Envoy reads.
pub fn start(
    shared: &Arc<Shared>,
    listener: Arc<str>,
    method: Method,
    metadata: HeaderMap,
    body: HyperBody,
) -> (OutboxBody, impl Future<Output = ()> + Send + use<>) {
    let Method { variant, path, .. } = method;
    let mut watched = shared.settings.clone();
    let settings = watched.borrow_and_update().clone();
    let (to_envoy, envoy_body) = outbox(settings.queue_bytes, &shared.budget);
    let control = Control::open(shared, variant, path, metadata, settings.queue_bytes);
    let from_envoy = Messages::new(body, ENVOY_LIMIT, shared.requests_budget.clone(), shared.clock.clone());
    let caller = Caller::Listener(listener.clone());
    let machine = |id| Machine::new(variant, settings.machine, spread_seed(id)).with_caller(caller);
    let entry = shared.states.enter(listener.clone(), variant, machine);
    let session = Session {
        variant,
        only_intercepted: method.only_intercepted,
        listener,
        shared: shared.clone(),
        to_envoy,
        fetches: Fetches::new(),
        refreshes: JoinSet::new(),
        settings: watched,
        entry,
        deadline: None,
        node: None,
        node_sent: false,
        node_id: String::new(),
        member: None,
        lease: None,
        held: None,
    };
    (envoy_body, session.run(from_envoy, control))
}

/// Makes neighbouring numbers unlike, for the retries of streams that begin together.
fn spread_seed(id: u64) -> u64 {
    (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Session {
    async fn run(mut self, from_envoy: Messages<HyperBody>, control: Control) {
        self.shared.metrics.streams.inc();
        let end = self.serve(from_envoy, control).await;
        self.shared.metrics.streams.dec();
        self.shared.metrics.stream_ends.get_or_create(&result(end.label())).inc();
        tracing::info!(
            listener = &*self.listener, node = self.node_id, reason = %end, "stream ended"
        );
        self.entry.machine().leave(self.shared.clock.now());
        let Self { to_envoy, shared, entry, member, lease, fetches, .. } = self;
        drop((entry, member, lease, fetches));
        match end {
            // What is queued may be what the peer does not read.
            End::EnvoyStalled(_) | End::FromEnvoy(_) => to_envoy.abort(Some(end.trailers())),
            end => {
                to_envoy.finish(Some(end.trailers()));
                // Nor does what it leaves to an Envoy that stops reading now stay for ever.
                let deadline = shared.clock.now() + STALL_LIMIT;
                if shared.clock.timeout_at(deadline, to_envoy.gone()).await.is_err() {
                    to_envoy.abort(None);
                }
            }
        }
    }

    /// Serves the stream until it has an end to tell; what it had of the control plane is closed.
    async fn serve(&mut self, mut from_envoy: Messages<HyperBody>, mut control: Control) -> End {
        loop {
            match self.step(&mut from_envoy, &mut control).await {
                Ok(Step::On) => {}
                Ok(Step::HalfClosed) => match control.half_close() {
                    Ok(rest) => return self.read_out(rest).await,
                    Err(end) => return end,
                },
                Err(end) => return end,
            }
        }
    }

    /// Waits for one event, takes what else is ready, and does what follows from it.
    async fn step(
        &mut self,
        from_envoy: &mut Messages<HyperBody>,
        control: &mut Control,
    ) -> Result<Step, End> {
        let shared = self.shared.clone();
        let with = ReadWith { budget: shared.budget.clone(), clock: shared.clock.clone() };
        let told = tokio::select! {
            () = shared.shutdown.cancelled() => return Err(End::Shutdown),
            () = self.to_envoy.gone() => return Err(End::EnvoyGone),
            incoming = from_envoy.next() => match incoming.map_err(End::FromEnvoy)? {
                Incoming::Message(message) => self.on_envoy(message, control)?,
                Incoming::End(_) => return Ok(Step::HalfClosed),
            },
            message = control.next(&with) => self.on_control(message?)?,
            ended = self.fetches.next() => {
                self.on_ended(ended);
                // Modules that are ready together go to Envoy together.
                while let Some(ended) = self.fetches.try_next() {
                    self.on_ended(ended);
                }
                true
            }
            () = leased(&mut self.held) => return self.on_leased().map(|()| Step::On),
            Some(refreshed) = self.refreshes.join_next(), if !self.refreshes.is_empty() => {
                self.on_refreshed(refreshed);
                true
            }
            Ok(()) = self.settings.changed() => {
                let refresh = self.settings.borrow_and_update().machine.refresh.clone();
                self.entry.machine().set_refresh(refresh, shared.clock.now());
                true
            }
            () = sleep_until(&shared.clock, self.deadline) => {
                self.entry.machine().tick(shared.clock.now());
                self.let_go();
                true
            }
        };
        // What only passed by asks for nothing, however many resources there are.
        if told {
            self.act(control)?;
        }
        Ok(Step::On)
    }

    /// Envoy has ended its side: passes on what the control plane still has to say.
    async fn read_out(&mut self, mut control: Control) -> End {
        let with = ReadWith { budget: self.shared.budget.clone(), clock: self.shared.clock.clone() };
        let shared = self.shared.clone();
        let deadline = shared.clock.now() + HALF_CLOSED_LIMIT;
        loop {
            let message = tokio::select! {
                () = shared.shutdown.cancelled() => return End::Shutdown,
                () = self.to_envoy.gone() => return End::EnvoyGone,
                () = shared.clock.sleep_until(deadline) => return End::Envoy,
                message = control.next(&with) => message,
            };
            if let Err(end) = message.and_then(|message| self.on_control(message)) {
                return end;
            }
        }
    }

    /// Whether the machine was told something.
    fn on_envoy(&mut self, message: Message, control: &mut Control) -> Result<bool, End> {
        let type_url =
            intercept::request_type(self.variant, &message.bytes).map_err(End::MalformedRequest)?;
        let intercepted = self.is_intercepted(type_url);
        self.count("envoy", intercepted);
        if !self.node_sent
            && self.node.is_none()
            && let Some(node) = intercept::node(self.variant, &message.bytes)
        {
            self.node_id = shown(messages::node_id(node).unwrap_or_default());
            if let Ok(id) = messages::node_id(node)
                && !id.is_empty()
            {
                let member = self.shared.memories.join(&self.listener, id);
                self.entry.machine().remember_in(member.memory.clone());
                let memory = Some(member.memory.clone());
                self.lease = Some(self.shared.leases.join(&self.listener, id, memory));
                self.member = Some(member);
            }
            self.node = Some(Bytes::copy_from_slice(node));
            self.entry.named(&self.node_id);
            tracing::info!(listener = &*self.listener, node = self.node_id, "stream opened");
        }
        if !intercepted {
            let message = self.with_node(message);
            return control.send(message).map(|()| false);
        }
        if intercept::names_cost(self.variant, &message.bytes) > NAMES_LIMIT {
            return Err(End::TooManyNames);
        }
        let request = intercept::read_request(self.variant, &message.bytes).map_err(End::MalformedRequest)?;
        {
            let mut machine = self.entry.machine();
            machine.on_envoy(request, self.shared.clock.now());
            let names = machine.subscribed().iter();
            if names.map(|name| intercept::name_cost(name.len())).sum::<usize>() > NAMES_LIMIT {
                return Err(End::TooManyNames);
            }
        }
        self.let_go();
        Ok(true)
    }

    fn is_intercepted(&self, type_url: &str) -> bool {
        type_url == INTERCEPTED || (self.only_intercepted && type_url.is_empty())
    }

    /// The control plane has the node, which is large and not needed again.
    fn node_is_sent(&mut self) {
        self.node_sent = true;
        self.node = None;
    }

    /// The first message upstream names the node, also where Envoy named it in one that was kept.
    fn with_node(&mut self, message: Message) -> Message {
        if self.node_sent {
            return message;
        }
        let Some(node) = &self.node else { return message };
        if intercept::node(self.variant, &message.bytes).is_some() {
            self.node_is_sent();
            return message;
        }
        let bytes = intercept::prepend_node(self.variant, node, &message.bytes);
        self.node_is_sent();
        message.with_bytes(bytes)
    }

    /// Whether the machine was told something.
    fn on_control(&mut self, message: Message) -> Result<bool, End> {
        let type_url = intercept::response_type(&message.bytes).map_err(End::MalformedResponse)?;
        let intercepted = self.is_intercepted(type_url);
        self.count("control_plane", intercepted);
        if !intercepted {
            let told = self.entry.machine().passes_by(type_url, &message.bytes, self.shared.clock.now());
            return self.to_envoy.push(message).map_err(End::EnvoyStalled).map(|()| told);
        }
        let response =
            intercept::read_response(self.variant, &message.bytes).map_err(End::MalformedResponse)?;
        self.entry.machine().on_control(response, self.shared.clock.now());
        self.let_go();
        Ok(true)
    }

    fn on_ended(&mut self, ended: Ended<Fetched, Box<ModuleRequest>>) {
        match ended {
            Ended::Fetched(whose, outcome) => self.on_fetched(&whose, outcome),
            Ended::LookedUp(found) => {
                for (whose, outcome) in found {
                    match outcome {
                        Ok(outcome) => self.on_fetched(&whose, outcome),
                        Err(request) => self.fetch(whose, *request),
                    }
                }
            }
        }
    }

    fn on_fetched(&mut self, (name, generation): &Whose, outcome: Fetched) {
        let now = self.shared.clock.now();
        let result = outcome.as_ref().map_err(|error| Failure::of(error));
        self.entry.machine().fetched(name, *generation, result, now);
    }

    /// The store does not have it.
    fn fetch(&mut self, whose: Whose, request: ModuleRequest) {
        if self.entry.machine().awaits(&whose.0, whose.1) {
            let resolver = self.shared.resolver.clone();
            self.fetches.wait_for(whose, async move { resolver.resolve(request).await });
        }
    }

    /// No longer fetches for this stream what it no longer wants.
    fn let_go(&mut self) {
        self.fetches.keep(self.entry.machine().fetching());
    }

    /// Does what the machine wants.
    fn act(&mut self, control: &mut Control) -> Result<(), End> {
        let actions = {
            let mut machine = self.entry.machine();
            let actions = machine.actions(self.shared.clock.now());
            self.deadline = machine.deadline();
            actions
        };
        self.member.iter().for_each(Member::save);
        let responds = actions.iter().any(|action| matches!(action, Action::Respond(_)));
        let mut lease = self.lease(responds);
        let mut wanted = Vec::new();
        for action in actions {
            match action {
                Action::Respond(response) => self.respond(response, lease.take())?,
                Action::Request(request) => {
                    let bytes = intercept::write_request(self.variant, &request, self.node.as_deref());
                    if self.node.is_some() {
                        self.node_is_sent();
                    }
                    control.send(Message::own(bytes))?;
                }
                Action::Fetch { name, generation, request } => wanted.push(((name, generation), *request)),
                Action::Refresh { name, generation, request, known } => {
                    self.refresh(name, generation, *request, known);
                }
                Action::Note(note) => self.note(note),
            }
        }
        self.look_up(wanted);
        Ok(())
    }

    /// Looks for modules in the store, many at a time: each alone costs more in going to another thread
    /// and back.
    fn look_up(&mut self, mut wanted: Vec<(Whose, ModuleRequest)>) {
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(LOOKUPS));
            let (whose, requests): (Vec<_>, Vec<_>) =
                std::mem::replace(&mut wanted, rest).into_iter().unzip();
            let resolver = self.shared.resolver.clone();
            self.fetches.look_up(async move {
                let found = resolver.stored(&requests).await;
                let outcomes = found
                    .into_iter()
                    .zip(requests)
                    .map(|(found, request)| found.map(Ok).ok_or_else(|| Box::new(request)));
                whose.into_iter().zip(outcomes).collect()
            });
        }
    }
}

enum Step {
    On,
    HalfClosed,
}

async fn sleep_until(clock: &Clock, deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => clock.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
