//! The machine against scripts, and against a model of Envoy (`model`).

mod answers;
mod fallbacks;
mod model;
mod refresh;
mod resume;
mod rotate;
mod streams;
mod ttl;

use bytes::Bytes;

use super::*;
use crate::digest::{PayloadDigest, SourceDigest};
use crate::protobuf::messages::{self, Any, Resource, TypedExtensionConfig};
use crate::protobuf::{type_url, wire};
use crate::rewrite;

use super::slot::{Wrapper, hash};

/// A Wasm filter whose code is at `url`.
fn filter(name: &str, url: &str, open: bool) -> Bytes {
    let mut out = Vec::new();
    wire::put_string(&mut out, 1, name);
    wire::put_message(&mut out, 2, |any| {
        wire::put_string(any, 1, type_url::HTTP_WASM);
        wire::put_message(any, 2, |wasm| {
            wire::put_message(wasm, 1, |plugin| {
                wire::put_message(plugin, 3, |vm| {
                    wire::put_message(vm, 3, |code| {
                        wire::put_message(code, 2, |remote| {
                            wire::put_message(remote, 1, |uri| wire::put_string(uri, 1, url));
                        });
                    });
                });
                wire::put_varint(plugin, 5, open.into());
            });
        });
    });
    out.into()
}

/// A filter that is not Wasm.
fn plain(name: &str, text: &str) -> Bytes {
    let mut out = Vec::new();
    wire::put_string(&mut out, 1, name);
    wire::put_message(&mut out, 2, |any| {
        wire::put_string(any, 1, type_url::STRING_VALUE);
        wire::put_message(any, 2, |value| wire::put_string(value, 1, text));
    });
    out.into()
}

/// A module with a payload and a manifest of its own.
fn module_at(path: &str) -> Module {
    Module {
        path: path.into(),
        payload: PayloadDigest::of(path.as_bytes()),
        source: SourceDigest::of(path.as_bytes()),
        size: 1,
        cached: false,
    }
}

fn offer(variant: Variant, body: &Bytes) -> Offer {
    Offer {
        name: TypedExtensionConfig::decode(body).unwrap().name.to_owned(),
        source: hash(&[body]),
        plan: rewrite::plan(type_url::EXTENSION_CONFIG, body).unwrap(),
        body: Some(body.clone()),
        wrapper: match variant {
            Variant::StateOfTheWorld => Wrapper::Bare,
            Variant::Delta => Wrapper::Delta(Bytes::new()),
        },
    }
}

/// The extension configs in a response, by name.
fn configs(variant: Variant, response: &EnvoyResponse) -> BTreeMap<String, Bytes> {
    configs_in_order(variant, response).into_iter().collect()
}

/// The extension configs in a response, as they come.
fn configs_in_order(variant: Variant, response: &EnvoyResponse) -> Vec<(String, Bytes)> {
    let decode = |bytes: &Bytes| {
        let any = match variant {
            Variant::StateOfTheWorld => Any::decode(bytes).unwrap(),
            Variant::Delta => {
                let resource = Resource::decode(bytes).unwrap();
                assert!(!resource.name.is_empty() && !resource.version.is_empty());
                resource.resource.unwrap()
            }
        };
        let any = match any.type_url {
            type_url::RESOURCE => Resource::decode(any.value).unwrap().resource.unwrap(),
            _ => any,
        };
        let config = TypedExtensionConfig::decode(any.value).unwrap();
        (config.name.to_owned(), Bytes::copy_from_slice(any.value))
    };
    response.resources.iter().map(decode).collect()
}

fn is_fallback(config: &Bytes) -> bool {
    TypedExtensionConfig::decode(config).unwrap().typed_config.unwrap().type_url == type_url::HTTP_RBAC
}

fn holds(config: &Bytes, path: &str) -> bool {
    config.windows(path.len()).any(|window| window == path.as_bytes())
}

/// A machine, its clock, and an Envoy and a control plane that say what they are told to.
struct Bench {
    variant: Variant,
    machine: Machine,
    now: Instant,
    responses: Vec<EnvoyResponse>,
    requests: Vec<ControlRequest>,
    fetches: Vec<(String, u64)>,
    /// What each of them is of.
    urls: Vec<String>,
    /// Name, generation, URL and what is known of the looks at tags.
    refreshes: Vec<(String, u64, String, SourceDigest)>,
    notes: Vec<Note>,
    names: BTreeSet<String>,
    sent: u64,
    /// The nonce of Envoy's last answer.
    answered: String,
}

const BOTH: [Variant; 2] = [Variant::StateOfTheWorld, Variant::Delta];

impl Bench {
    fn new(variant: Variant, names: &[&str]) -> Self {
        Self::with(variant, Settings::default(), names)
    }

    fn with(variant: Variant, settings: Settings, names: &[&str]) -> Self {
        let mut bench = Self {
            variant,
            machine: Machine::new(variant, settings, 7),
            now: Instant::now(),
            responses: Vec::new(),
            requests: Vec::new(),
            fetches: Vec::new(),
            urls: Vec::new(),
            refreshes: Vec::new(),
            notes: Vec::new(),
            names: BTreeSet::new(),
            sent: 0,
            answered: String::new(),
        };
        bench.subscribe(names, &[]);
        bench
    }

    fn act(&mut self) {
        for action in self.machine.actions(self.now) {
            match action {
                Action::Respond(response) => {
                    let asked = configs(self.variant, &response).into_keys().all(|n| self.names.contains(&n));
                    assert!(asked, "only what was asked for is sent");
                    self.responses.push(response);
                }
                Action::Request(request) => self.requests.push(request),
                Action::Fetch { name, generation, request } => {
                    self.fetches.push((name, generation));
                    self.urls.push(request.url.to_string());
                }
                Action::Refresh { name, generation, request, known } => {
                    self.refreshes.push((name, generation, request.url.to_string(), known));
                }
                Action::Note(note) => self.notes.push(note),
            }
        }
    }

    fn envoy(&mut self, nonce: &str, error: Option<&str>, add: &[&str], drop: &[&str]) {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        self.names.extend(set(add));
        self.names.retain(|name| !drop.contains(&name.as_str()));
        let names = match self.variant {
            Variant::StateOfTheWorld => Names::All(self.names.clone()),
            Variant::Delta => {
                Names::Change { subscribe: set(add), unsubscribe: set(drop), held: BTreeSet::new() }
            }
        };
        let request =
            EnvoyRequest { nonce: nonce.to_owned(), error: error.map(str::to_owned), names, resumes: false };
        self.machine.on_envoy(request, self.now);
        self.act();
    }

    fn subscribe(&mut self, add: &[&str], drop: &[&str]) {
        // State of the world carries the nonce of what Envoy answered last.
        let nonce = match self.variant {
            Variant::StateOfTheWorld => self.answered.clone(),
            Variant::Delta => String::new(),
        };
        self.envoy(&nonce, None, add, drop);
    }

    fn answer(&mut self, error: Option<&str>) {
        self.answered = self.responses.last().expect("something to answer").nonce.clone();
        self.envoy(&self.answered.clone(), error, &[], &[]);
    }

    fn ack(&mut self) {
        self.answer(None);
    }

    fn nack(&mut self, reason: &str) {
        self.answer(Some(reason));
    }

    fn control(&mut self, offers: &[Bytes], removed: &[&str]) {
        self.responds(ControlResponse {
            offers: offers.iter().map(|body| offer(self.variant, body)).collect(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..ControlResponse::default()
        });
    }

    /// Resources that cannot be read, and why.
    fn malformed(&mut self, resources: &[(&str, &str)]) {
        let malformed = resources.iter().map(|(name, reason)| ((*name).to_owned(), (*reason).to_owned()));
        self.responds(ControlResponse { malformed: malformed.collect(), ..ControlResponse::default() });
    }

    fn passes_by(&mut self, listeners: &[u8]) {
        self.machine.passes_by(type_url::LISTENER, listeners, self.now);
        self.act();
    }

    fn responds(&mut self, response: ControlResponse) {
        self.sent += 1;
        let (version, nonce) = (format!("v{}", self.sent), format!("n{}", self.sent));
        let response = ControlResponse { version, nonce, ..response };
        self.machine.on_control(response, self.now);
        self.act();
    }

    fn arrives(&mut self, fetch: usize, path: &str) {
        let (name, generation) = self.fetches[fetch].clone();
        self.machine.fetched(&name, generation, Ok(&module_at(path)), self.now);
        self.act();
    }

    fn fails(&mut self, fetch: usize) {
        let (name, generation) = self.fetches[fetch].clone();
        let failure = Failure {
            message: "registry down".into(),
            label: "connect",
            permanent: false,
            retry_after: None,
        };
        self.machine.fetched(&name, generation, Err(failure), self.now);
        self.act();
    }

    fn passes(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.machine.deadline().filter(|deadline| *deadline <= end) {
            self.now = deadline.max(self.now);
            self.machine.tick(self.now);
            self.act();
        }
        self.now = end;
    }

    /// What the last response carries.
    fn last(&self) -> BTreeMap<String, Bytes> {
        configs(self.variant, self.responses.last().expect("a response"))
    }

    fn serving(&self, name: &str) -> Serving {
        self.machine
            .slots()
            .find(|(slot, _)| *slot == name)
            .map_or(Serving::Nothing, |(_, slot)| slot.serving())
    }
}

#[test]
fn an_empty_first_request_goes_no_further() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &[]);
        assert_eq!(bench.requests, []);
        bench.control(&[plain("a", "unasked")], &[]);
        assert_eq!(
            (bench.requests.len(), bench.responses.len()),
            (0, 0),
            "unasked is neither sent nor answered"
        );
        bench.subscribe(&["a"], &[]);
        assert_eq!(bench.requests.last().unwrap().nonce, "n1", "answered once Envoy has asked");
    }
}

#[test]
fn versions_and_nonces_of_one_side_are_never_shown_to_the_other() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        assert_eq!((bench.requests[0].version.as_str(), bench.requests[0].nonce.as_str()), ("", ""));
        bench.control(&[plain("a", "1")], &[]);
        let response = bench.responses[0].clone();
        assert!(response.version != "v1" && response.nonce != "n1");
        bench.ack();
        let answer = bench.requests.last().unwrap();
        assert_eq!((answer.nonce.as_str(), &answer.error), ("n1", &None));
        if variant == Variant::StateOfTheWorld {
            assert_eq!(
                (answer.version.as_str(), answer.names.as_slice()),
                ("v1", ["a".to_owned()].as_slice())
            );
        }
    }
}

#[test]
fn a_module_is_delivered_when_it_arrives() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        assert_eq!((bench.fetches.len(), bench.responses.len()), (1, 0));
        assert_eq!(bench.requests.last().unwrap().nonce, "n1", "answered without waiting for the fetch");
        bench.arrives(0, "/store/one.wasm");
        assert!(holds(&bench.last()["a"], "/store/one.wasm"));
        assert_eq!(bench.serving("a"), Serving::Current);
    }
}

#[test]
fn a_late_download_never_replaces_a_newer_config() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.arrives(1, "/store/two.wasm");
        bench.ack();
        bench.arrives(0, "/store/one.wasm");
        assert_eq!(bench.responses.len(), 1);
        assert!(holds(&bench.last()["a"], "/store/two.wasm"));
    }
}

#[test]
fn a_late_download_never_undoes_a_removal() {
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.control(&[], &["a"]);
    assert_eq!(bench.responses.last().unwrap().removed, ["a"]);
    bench.ack();
    bench.arrives(0, "/store/one.wasm");
    assert_eq!(bench.responses.len(), 1);
}

#[test]
fn a_removal_is_forwarded_for_a_name_that_was_never_held_and_void_once_it_is_offered_again() {
    let mut bench = Bench::new(Variant::Delta, &["a", "b"]);
    bench.control(&[], &["a"]);
    assert_eq!(bench.responses.last().unwrap().removed, ["a"]);
    bench.control(&[], &["b"]);
    bench.control(&[plain("b", "back")], &[]);
    bench.ack();
    let response = bench.responses.last().unwrap();
    assert_eq!((response.removed.len(), response.resources.len()), (0, 1));
}

#[test]
fn a_resend_with_equal_bytes_restarts_nothing() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        let config = filter("a", "oci://r.io/a:1", false);
        bench.control(std::slice::from_ref(&config), &[]);
        bench.fails(0);
        let due = bench.machine.deadline();
        bench.control(std::slice::from_ref(&config), &[]);
        assert_eq!((bench.fetches.len(), bench.machine.deadline()), (1, due));
        bench.passes(Duration::from_secs(2));
        bench.arrives(1, "/store/one.wasm");
        bench.ack();
        let responses = bench.responses.len();
        bench.control(&[config], &[]);
        assert_eq!((bench.responses.len(), bench.fetches.len()), (responses, 2));
        assert_eq!(bench.requests.last().unwrap().nonce, "n3", "every response is answered");
    }
}

#[test]
fn nobody_waits_for_a_neighbour() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["slow", "quick", "plain"]);
        bench.control(
            &[
                filter("slow", "oci://r.io/s:1", false),
                filter("quick", "oci://r.io/q:1", false),
                plain("plain", "1"),
            ],
            &[],
        );
        assert_eq!(bench.last().len(), 1);
        bench.ack();
        bench.arrives(1, "/store/quick.wasm");
        bench.ack();
        bench.arrives(0, "/store/slow.wasm");
        let carried: Vec<_> = bench.last().into_keys().collect();
        match variant {
            Variant::StateOfTheWorld => assert_eq!(carried, ["plain", "quick", "slow"], "all that is held"),
            Variant::Delta => assert_eq!(carried, ["slow"], "each by itself"),
        }
    }
}

#[test]
fn a_failed_update_leaves_the_last_good_and_is_retried_until_it_arrives() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        bench.arrives(0, "/store/one.wasm");
        bench.ack();
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        for attempt in 1..8 {
            bench.fails(attempt);
            bench.passes(Duration::from_secs(60));
            assert_eq!(bench.fetches.len(), attempt + 2, "tried again within the cap");
        }
        assert_eq!((bench.responses.len(), bench.serving("a")), (1, Serving::LastGood));
        bench.arrives(8, "/store/two.wasm");
        assert!(holds(&bench.last()["a"], "/store/two.wasm"), "sent without anyone asking");
        assert!(bench.notes.contains(&Note::Recovered { name: "a".into() }));
    }
}

#[test]
fn without_a_predecessor_the_failure_policy_decides_after_a_failure_and_the_hold() {
    for variant in BOTH {
        for open in [false, true] {
            let mut bench = Bench::new(variant, &["a"]);
            bench.control(&[filter("a", "oci://r.io/a:1", open)], &[]);
            bench.passes(Duration::from_secs(4));
            bench.fails(0);
            assert!(bench.responses.is_empty(), "held");
            bench.passes(Duration::from_secs(1));
            let fallback = bench.last()["a"].clone();
            assert!(is_fallback(&fallback));
            assert!(holds(&fallback, if open { "wasm-default-allow" } else { "wasm-default-deny" }));
            assert_eq!(bench.serving("a"), Serving::Fallback);
            bench.ack();
            bench.arrives(1, "/store/one.wasm");
            assert!(holds(&bench.last()["a"], "/store/one.wasm"));
        }
    }
}

#[test]
fn a_download_in_progress_is_no_failure() {
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    // Only the resource's own time-out would say that it takes too long, and this one has none.
    bench.passes(Duration::from_secs(100));
    assert!(bench.responses.is_empty());
    bench.arrives(0, "/store/one.wasm");
    assert!(!is_fallback(&bench.last()["a"]));
}

#[test]
fn a_malformed_resource_is_nacked_by_name_and_its_neighbours_are_delivered() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        let response = ControlResponse {
            version: "v1".into(),
            nonce: "n1".into(),
            offers: vec![offer(variant, &plain("a", "1"))],
            malformed: vec![("b".into(), "it is broken".into())],
            removed: Vec::new(),
        };
        bench.machine.on_control(response, bench.now);
        bench.act();
        assert_eq!(bench.last().into_keys().collect::<Vec<_>>(), ["a"]);
        let nack = bench.requests.last().unwrap();
        assert_eq!((nack.nonce.as_str(), nack.version.as_str()), ("n1", ""));
        assert_eq!(nack.error.as_deref(), Some("resource \"b\": it is broken"));
    }
}

#[test]
fn what_envoy_rejects_gives_way_to_the_last_accepted_and_is_not_sent_again() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "good")], &[]);
        bench.ack();
        bench.control(&[plain("a", "bad")], &[]);
        bench.nack("no such thing");
        assert!(holds(&bench.last()["a"], "good"));
        assert!(bench.requests.last().unwrap().error.as_deref().unwrap().contains("\"a\""));
        bench.ack();
        let responses = bench.responses.len();
        bench.control(&[plain("a", "bad")], &[]);
        assert_eq!(bench.responses.len(), responses);
        bench.control(&[plain("a", "better")], &[]);
        assert!(holds(&bench.last()["a"], "better"));
    }
}

#[test]
fn several_rejected_together_are_tried_alone_after_the_last_accepted() {
    let mut bench = Bench::new(Variant::StateOfTheWorld, &["a", "b", "c", "d"]);
    let old = [plain("a", "old"), plain("b", "old"), plain("c", "old")];
    bench.control(&old, &[]);
    bench.ack();
    bench.control(&[plain("a", "new"), plain("b", "bad"), plain("c", "new")], &[]);
    bench.control(&[plain("d", "meanwhile")], &[]);
    bench.nack("one of them");
    assert!(bench.last().values().all(|config| holds(config, "old")), "first what Envoy accepted");
    bench.ack();
    let last = bench.last();
    assert!(holds(&last["d"], "meanwhile") && holds(&last["a"], "old"), "then what is no suspect");
    for _ in 0..6 {
        let bad = holds(&bench.last()["b"], "bad");
        if bad {
            assert!(!holds(&bench.last()["c"], "new"), "alone");
            bench.nack("that one");
        } else {
            bench.ack();
        }
        if !bench.machine.awaits_envoy() {
            break;
        }
    }
    let last = bench.last();
    assert!(holds(&last["a"], "new") && holds(&last["b"], "old") && holds(&last["c"], "new"));
}

#[test]
fn a_duplicate_of_the_last_ack_is_answered_from_what_is_held() {
    let mut bench = Bench::new(Variant::StateOfTheWorld, &["a"]);
    bench.control(&[plain("a", "1")], &[]);
    bench.ack();
    let requests = bench.requests.len();
    bench.ack();
    assert_eq!((bench.responses.len(), bench.requests.len()), (2, requests));
    assert_eq!(bench.responses[0].resources, bench.responses[1].resources);
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.control(&[plain("a", "1")], &[]);
    bench.ack();
    bench.subscribe(&["a"], &[]);
    assert_eq!(bench.responses[0].resources, bench.responses[1].resources);
}

#[test]
fn envoys_verdict_goes_up_and_silence_is_an_ack_after_a_second() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "1")], &[]);
        assert_eq!(bench.requests.len(), 1, "Envoy has not said");
        bench.passes(Duration::from_secs(1));
        assert_eq!((bench.requests.len(), bench.requests[1].error.as_ref()), (2, None));
        bench.nack("too late to tell");
        assert_eq!(bench.requests.len(), 2, "answered once");
    }
}

#[test]
fn a_verdict_goes_up_with_the_response_that_it_is_about() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.control(&[plain("a", "1")], &[]);
        bench.ack();
        bench.control(&[plain("a", "bad")], &[]);
        let answered = bench.requests.len();
        bench.envoy("1", None, &[], &[]);
        assert_eq!(bench.requests.len(), answered, "Envoy has not said, whatever it says besides");
        // Answered for want of a verdict, since something newer came.
        bench.control(&[plain("b", "1")], &[]);
        assert_eq!((bench.requests.len(), &bench.requests[answered].error), (answered + 1, &None));
        bench.nack("about a");
        bench.ack();
        bench.ack();
        let answer = bench.requests.last().unwrap();
        assert_eq!((answer.nonce.as_str(), &answer.error), ("n3", &None), "b is good");
    }
}

#[test]
fn a_registry_that_asks_to_be_left_alone_is() {
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    let (name, generation) = bench.fetches[0].clone();
    let failure = Failure {
        message: "too many requests".into(),
        label: "rate_limited",
        permanent: false,
        retry_after: Some(Duration::from_secs(300)),
    };
    bench.machine.fetched(&name, generation, Err(failure), bench.now);
    bench.act();
    bench.passes(Duration::from_secs(299));
    assert_eq!(bench.fetches.len(), 1);
    bench.passes(Duration::from_secs(1));
    assert_eq!(bench.fetches.len(), 2);
}

#[test]
fn a_newer_configs_failure_policy_replaces_the_older_ones() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        bench.fails(0);
        bench.passes(Duration::from_secs(5));
        assert!(holds(&bench.last()["a"], "wasm-default-deny"));
        bench.ack();
        bench.control(&[filter("a", "oci://r.io/a:2", true)], &[]);
        let newest = bench.fetches.len() - 1;
        bench.fails(newest);
        assert!(holds(&bench.last()["a"], "wasm-default-allow"));
    }
}

#[test]
fn a_rejection_counts_for_a_name_that_was_unsubscribed_from_meanwhile_and_is_wanted_again() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "bad")], &[]);
        bench.subscribe(&[], &["a"]);
        bench.subscribe(&["a"], &[]);
        bench.nack("bad");
        bench.control(&[plain("a", "bad")], &[]);
        assert_eq!(bench.responses.len(), 1);
        bench.control(&[plain("a", "good")], &[]);
        assert!(holds(&bench.last()["a"], "good"));
    }
}

#[test]
fn a_removal_is_nothing_to_one_who_has_unsubscribed() {
    let mut bench = Bench::new(Variant::Delta, &["a", "b"]);
    bench.control(&[plain("a", "1"), plain("b", "1")], &[]);
    bench.control(&[], &["b"]);
    bench.subscribe(&[], &["b"]);
    bench.ack();
    assert_eq!(bench.responses.len(), 1);
}

#[test]
fn what_envoy_may_have_accepted_unread_does_not_keep_a_fallback_away() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.control(&[plain("a", "bad"), plain("b", "bad")], &[]);
        bench.nack("both");
        // Envoy has rejected these bytes, and takes no second look at them.
        bench.ack();
        bench.ack();
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        bench.arrives(0, "/store/bad.wasm");
        bench.nack("bad too");
        assert!(holds(&bench.last()["a"], "bad"), "first what it said that it accepted");
        bench.nack("now it has looked");
        assert!(is_fallback(&bench.last()["a"]));
    }
}

#[test]
fn what_envoy_may_have_accepted_unread_takes_no_neighbour_down_with_it() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b", "c"]);
        bench.control(&[plain("a", "bad"), plain("b", "bad")], &[]);
        bench.nack("both");
        bench.ack();
        bench.ack();
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        bench.arrives(0, "/store/bad.wasm");
        bench.control(&[plain("c", "1")], &[]);
        bench.nack("bad too");
        let last = bench.last();
        assert!(holds(&last["c"], "1") && !last.get("a").is_some_and(|config| holds(config, "bad")));
    }
}

#[test]
fn what_repairs_a_rejection_goes_before_anything_that_envoy_might_reject_with_it() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.control(&[plain("b", "good")], &[]);
        bench.ack();
        bench.control(&[plain("b", "bad")], &[]);
        bench.control(&[plain("a", "bad")], &[]);
        bench.nack("b is bad");
        assert_eq!(bench.last().into_keys().collect::<Vec<_>>(), ["b"]);
        assert!(holds(&bench.last()["b"], "good"));
        bench.ack();
        assert!(holds(&bench.last()["a"], "bad"));
    }
}

#[test]
fn a_subscription_change_follows_the_answer_that_is_due() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "1")], &[]);
        bench.subscribe(&["b"], &[]);
        let [_, answer, change] = bench.requests.as_slice() else { panic!("{:?}", bench.requests) };
        assert_eq!(answer.nonce, "n1");
        match variant {
            Variant::StateOfTheWorld => {
                assert_eq!((answer.names.len(), change.names.len()), (1, 2));
                assert_eq!((change.nonce.as_str(), change.version.as_str()), ("n1", "v1"));
            }
            Variant::Delta => {
                assert_eq!(
                    (answer.subscribe.len(), change.subscribe.as_slice()),
                    (0, ["b".to_owned()].as_slice())
                );
                assert_eq!(change.nonce, "");
            }
        }
    }
}

#[test]
fn a_subscription_is_said_after_each_rejection_until_a_response_shows_that_it_was_heard() {
    let mut bench = Bench::new(Variant::StateOfTheWorld, &["a"]);
    bench.control(&[plain("a", "1")], &[]);
    bench.ack();
    bench.subscribe(&["b"], &[]);
    // On its way before the new name was heard, and so is the next when the answer to this is.
    bench.control(&[plain("a", "2")], &[]);
    bench.ack();
    let before = bench.requests.len();
    bench.malformed(&[("a", "it is broken")]);
    let [rejection, names] = &bench.requests[before..] else { panic!("{:?}", bench.requests) };
    assert_eq!((rejection.nonce.as_str(), names.nonce.as_str()), ("n3", "n3"));
    assert_eq!((rejection.error.is_some(), names.error.is_some()), (true, false));
    assert_eq!((names.version.as_str(), names.names.len()), ("v2", 2));

    bench.control(&[plain("b", "1")], &[]);
    bench.ack();
    let before = bench.requests.len();
    bench.malformed(&[("a", "it is broken otherwise")]);
    let [rejection] = &bench.requests[before..] else { panic!("{:?}", bench.requests) };
    assert!(rejection.error.is_some(), "what was heard hides no rejection");
}

/// An Envoy that comes back with this name from an earlier stream.
fn holding(name: &str) -> Bench {
    let mut bench = Bench::new(Variant::Delta, &[]);
    bench.machine = Machine::new(Variant::Delta, Settings::default(), 7);
    let names = Names::Change {
        subscribe: [name.to_owned()].into(),
        unsubscribe: BTreeSet::new(),
        held: [name.to_owned(), "gone".to_owned()].into(),
    };
    bench.names.insert(name.to_owned());
    bench.machine.on_envoy(EnvoyRequest { names, ..EnvoyRequest::default() }, bench.now);
    bench.act();
    bench
}

#[test]
fn a_name_that_envoy_holds_gets_no_fallback() {
    let mut bench = holding("a");
    assert_eq!(bench.requests.last().unwrap().initial, ["a"], "with an empty version, so all is resent");
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.fails(0);
    bench.passes(Duration::from_secs(30));
    assert!(bench.responses.is_empty());
    bench.arrives(bench.fetches.len() - 1, "/store/one.wasm");
    bench.nack("and it does not take this one");
    bench.passes(Duration::from_secs(30));
    assert_eq!(bench.responses.len(), 1);
}

#[test]
fn the_same_config_has_the_same_bytes_and_version_after_a_restart() {
    for variant in BOTH {
        let run = || {
            let mut bench = Bench::new(variant, &["a"]);
            bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
            bench.arrives(0, "/store/one.wasm");
            bench.responses[0].clone()
        };
        let (first, second) = (run(), run());
        assert_eq!((first.resources, first.version), (second.resources, second.version));
    }
}

#[test]
fn a_bad_reference_is_a_failure_and_no_reason_to_nack() {
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.control(&[filter("a", "ftp://r.io/a", true)], &[]);
    bench.passes(Duration::from_secs(5));
    assert!(is_fallback(&bench.last()["a"]));
    assert_eq!(bench.requests.last().unwrap().error, None);
    assert!(bench.fetches.is_empty());
}

/// A fallback that Envoy rejects, as it does where RBAC is not among the `type_urls`.
fn rejects_fallbacks(bench: &mut Bench) {
    for _ in 0..20 {
        if !bench.machine.awaits_envoy() {
            return;
        }
        match bench.last().values().any(is_fallback) {
            true => bench.nack("expect envoy.extensions.filters.http.wasm.v3.Wasm"),
            false => bench.ack(),
        }
    }
    panic!("Envoy is sent what it rejects again and again");
}

#[test]
fn fallbacks_that_envoy_rejects_are_each_tried_alone_and_then_held_back_for_good() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.control(&[filter("a", "oci://r.io/a:1", false), filter("b", "oci://r.io/b:1", false)], &[]);
        bench.fails(0);
        bench.fails(1);
        bench.passes(Duration::from_secs(5));
        rejects_fallbacks(&mut bench);
        let responses = bench.responses.len();
        assert_eq!(responses, 2);
        assert!(bench.responses.iter().all(|response| configs(variant, response).len() == 1), "each alone");
        bench.control(&[filter("a", "oci://r.io/a:2", true)], &[]);
        let newest = bench.fetches.len() - 1;
        bench.fails(newest);
        bench.passes(Duration::from_secs(5));
        assert_eq!(bench.responses.len(), responses, "known by now to be rejected");
        bench.arrives(bench.fetches.len() - 1, "/store/two.wasm");
        assert!(holds(&bench.last()["a"], "/store/two.wasm"));
    }
}

#[test]
fn a_last_accepted_config_that_envoy_no_longer_takes_is_not_sent_again_and_again() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        let old = [filter("a", "oci://r.io/a:1", false), filter("b", "oci://r.io/b:1", false)];
        bench.control(&old, &[]);
        bench.arrives(0, "/store/a1.wasm");
        bench.ack();
        bench.arrives(1, "/store/b1.wasm");
        bench.ack();
        bench.control(&[plain("a", "new"), plain("b", "new")], &[]);
        // Its files are gone, say: Envoy takes neither the new nor the old any more.
        for _ in 0..20 {
            if !bench.machine.awaits_envoy() {
                break;
            }
            bench.nack("Invalid path");
        }
        assert!(!bench.machine.awaits_envoy(), "it comes to rest");
        assert!(!bench.responses.iter().any(|r| configs(variant, r).values().any(is_fallback)));
    }
}

#[test]
fn a_config_that_envoy_accepted_while_a_newer_one_arrived_is_what_it_falls_back_to() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "one")], &[]);
        bench.ack();
        bench.control(&[plain("a", "two")], &[]);
        bench.control(&[plain("a", "bad")], &[]);
        bench.ack();
        assert!(holds(&bench.last()["a"], "bad"));
        bench.nack("bad");
        assert!(holds(&bench.last()["a"], "two"), "not back to one");
    }
}

#[test]
fn a_rejected_config_is_not_sent_again_while_its_successors_module_is_on_the_way() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "good")], &[]);
        bench.ack();
        bench.control(&[plain("a", "bad")], &[]);
        bench.nack("bad");
        bench.ack();
        let responses = bench.responses.len();
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        assert_eq!(bench.responses.len(), responses, "nothing is news until the module is there");
        bench.arrives(0, "/store/one.wasm");
        assert!(holds(&bench.last()["a"], "/store/one.wasm"));
    }
}

#[test]
fn a_suspect_is_not_tried_once_something_newer_is_on_its_way() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.control(&[plain("a", "old"), plain("b", "old")], &[]);
        bench.ack();
        bench.control(&[plain("a", "suspect"), plain("b", "bad")], &[]);
        bench.nack("one of them");
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        while bench.machine.awaits_envoy() {
            let last = bench.last();
            assert!(!last.get("a").is_some_and(|config| holds(config, "suspect")));
            match last.get("b").is_some_and(|config| holds(config, "bad")) {
                true => bench.nack("that one"),
                false => bench.ack(),
            }
        }
        // Offered again, it is no longer superseded.
        bench.control(&[plain("a", "suspect")], &[]);
        assert!(holds(&bench.last()["a"], "suspect"));
    }
}

#[test]
fn what_envoy_would_ignore_as_the_resend_of_what_it_rejected_is_not_sent() {
    let mut bench = holding("a");
    bench.control(&[plain("a", "bad")], &[]);
    bench.nack("bad");
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.control(&[plain("a", "bad")], &[]);
    assert_eq!(bench.responses.len(), 1);
    assert_eq!(bench.requests.last().unwrap().nonce, "n3", "nobody waits for a verdict on it");
    bench.control(&[plain("a", "good")], &[]);
    bench.ack();
    bench.control(&[plain("a", "bad")], &[]);
    assert!(holds(&bench.last()["a"], "bad"), "after another one Envoy looks at it anew");
}

#[test]
fn a_resend_that_extends_a_ttl_reaches_envoy() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        let ttl = Bytes::from_static(&[0x32, 2, 8, 60]);
        let with_ttl = || {
            let wrapper = match variant {
                Variant::StateOfTheWorld => Wrapper::Wrapped(ttl.clone()),
                Variant::Delta => Wrapper::Delta(ttl.clone()),
            };
            Offer { wrapper, ..offer(variant, &plain("a", "1")) }
        };
        for round in 1..4 {
            let nonce = format!("n{round}");
            let response = ControlResponse { nonce, offers: vec![with_ttl()], ..ControlResponse::default() };
            bench.machine.on_control(response, bench.now);
            let actions = bench.machine.actions(bench.now);
            let Some(Action::Respond(sent)) = actions.iter().find(|a| matches!(a, Action::Respond(_))) else {
                panic!("round {round}: {actions:?}")
            };
            assert_eq!(sent.resources.len(), 1);
            assert!(sent.resources[0].windows(ttl.len()).any(|window| window == &ttl[..]));
            bench.envoy(&sent.nonce, None, &[], &[]);
        }
    }
}

#[test]
fn a_name_that_comes_twice_or_comes_and_goes_in_one_response_is_nacked_by_name() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.control(&[plain("a", "1"), plain("a", "1"), plain("b", "1")], &[]);
        assert_eq!((bench.last().len(), bench.requests.len()), (2, 1), "the same twice says nothing new");
        bench.ack();
        bench.control(&[plain("a", "2"), plain("a", "3")], &[]);
        assert!(holds(&bench.last()["a"], "2"), "the first counts");
        let error = bench.requests.last().unwrap().error.clone().unwrap();
        assert!(error.contains("\"a\"") && error.contains("twice"), "{error}");
        bench.ack();
    }
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.control(&[plain("a", "1")], &["a"]);
    let response = bench.responses.last().unwrap();
    assert_eq!((response.resources.len(), response.removed.len()), (1, 0), "nothing is taken away");
    assert!(bench.requests.last().unwrap().error.as_deref().unwrap().contains("removes"));
}

#[test]
fn nothing_is_kept_of_what_only_a_wildcard_asked_for_once_that_is_gone() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["*", "a"]);
        bench.names.extend(["b".to_owned()]);
        bench.control(&[plain("a", "1"), filter("b", "oci://r.io/b:1", false)], &[]);
        bench.names.remove("b");
        bench.subscribe(&[], &["*"]);
        assert_eq!(bench.machine.slots().map(|(name, _)| name).collect::<Vec<_>>(), ["a"]);
    }
}

#[test]
fn permanent_faults_are_retried_at_the_cap_but_not_all_at_the_same_moment() {
    let settings = Settings::default();
    let pauses: BTreeSet<Duration> = (0..8)
        .map(|seed| {
            let mut bench = Bench::new(Variant::Delta, &[]);
            bench.machine = Machine::new(Variant::Delta, settings.clone(), seed << 40);
            bench.subscribe(&["a"], &[]);
            bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
            let (name, generation) = bench.fetches[0].clone();
            let failure = Failure {
                message: "not there".into(),
                label: "not_found",
                permanent: true,
                retry_after: None,
            };
            bench.machine.fetched(&name, generation, Err(failure), bench.now);
            bench.act();
            bench
                .notes
                .iter()
                .find_map(|note| match note {
                    Note::FetchFailed { retry_in, .. } => *retry_in,
                    _ => None,
                })
                .unwrap()
        })
        .collect();
    assert!(
        pauses.len() > 1 && pauses.iter().all(|p| *p >= settings.retry_cap / 2 && *p <= settings.retry_cap)
    );
}
