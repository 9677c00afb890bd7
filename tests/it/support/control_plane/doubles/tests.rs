//! What each double says when, and what the rules let pass.

// The benches take the doubles in without their tests.
#![allow(unused_imports)]

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;

use super::super::ledger::Ledger;
use super::message::{Request, Response};
use super::rules::{Broken, Rules};
use super::{Offer, Offered, Watch, go_control_plane, istiod};
use crate::support::resources;

/// A request of both variants, in which Delta subscribes to what state of the world names.
fn asked(version: &str, nonce: &str, names: &[&str]) -> Request {
    let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Request {
        version: version.into(),
        nonce: nonce.into(),
        subscribe: names.clone(),
        names,
        ..Request::default()
    }
}

/// These names with their revisions.
fn offered(version: u64, resources: &[(&str, u64)]) -> Offered {
    let offer = |revision: u64| Offer { revision, resource: Any::default() };
    let resources = resources.iter().map(|(name, revision)| ((*name).to_owned(), offer(*revision)));
    Offered { version, resources: resources.collect() }
}

fn names(response: &Response) -> Vec<&str> {
    response.resources.keys().map(String::as_str).collect()
}

/// The names in a response, or none.
fn sent(response: &Option<Response>) -> Vec<String> {
    response.iter().flat_map(|response| response.resources.keys().cloned()).collect()
}

#[test]
fn go_control_plane_says_nothing_more_before_it_is_answered() {
    let (mut sotw, mut delta) = (go_control_plane::Sotw::default(), go_control_plane::Delta::default());
    let first = sotw.request(&asked("", "", &["a"]), &offered(1, &[("a", 1)]));
    assert_eq!(sent(&first), ["a"]);
    sotw.sent("n1");
    assert_eq!(sent(&sotw.changed(&offered(2, &[("a", 2)]))), [""; 0]);
    assert_eq!(sent(&sotw.request(&asked("1", "n1", &["a"]), &offered(2, &[("a", 2)]))), ["a"]);
    let first = delta.request(&asked("", "", &["a"]), &offered(1, &[("a", 1)]));
    assert_eq!(sent(&first), ["a"]);
    delta.sent("n1");
    assert!(delta.changed(&offered(2, &[("a", 2)])).is_none());
    assert_eq!(sent(&delta.request(&asked("", "n1", &[]), &offered(2, &[("a", 2)]))), ["a"]);
}

#[test]
fn go_control_plane_sends_everything_where_a_version_differs_and_else_a_part() {
    let all = offered(1, &[("a", 1), ("b", 1)]);
    let mut sotw = go_control_plane::Sotw::default();
    assert_eq!(sent(&sotw.request(&asked("", "", &["a"]), &all)), ["a"]);
    sotw.sent("n1");
    assert!(sotw.request(&asked("1", "n1", &["a"]), &all).is_none());
    assert_eq!(sent(&sotw.request(&asked("1", "n1", &["a", "b"]), &all)), ["b"], "a part");
    sotw.sent("n2");
    assert!(sotw.request(&asked("1", "n1", &["a", "b"]), &all).is_none(), "stale");
    assert!(sotw.request(&asked("1", "n2", &["a", "b"]), &all).is_none());
    let next = offered(2, &[("a", 1), ("b", 1)]);
    assert_eq!(sent(&sotw.changed(&next)), ["a", "b"], "equal bytes in another version");
    sotw.sent("n3");
    let nack = Request { is_nack: true, ..asked("1", "n3", &["a", "b"]) };
    assert_eq!(sent(&sotw.request(&nack, &next)), ["a", "b"], "the same again, at once");
}

#[test]
fn go_control_plane_takes_no_names_on_a_new_stream_for_all() {
    let all = offered(1, &[("a", 1), ("b", 1)]);
    let nothing = || asked("1", "", &[]);
    assert_eq!(sent(&go_control_plane::Sotw::default().request(&nothing(), &all)), ["a", "b"]);
    assert_eq!(sent(&go_control_plane::Delta::default().request(&nothing(), &all)), ["a", "b"]);
    let mut sotw = go_control_plane::Sotw::default();
    sotw.request(&asked("", "", &["a"]), &all);
    sotw.sent("n1");
    assert!(sotw.request(&asked("1", "n1", &[]), &all).is_none());
    assert_eq!(sent(&sotw.changed(&offered(2, &[("a", 1), ("b", 1)]))), ["a", "b"], "on a running one");
}

#[test]
fn go_control_plane_takes_in_delta_what_it_sent_for_had_and_looks_at_no_nonce() {
    let mut delta = go_control_plane::Delta::default();
    let known = Request {
        initial: [("gone".to_owned(), String::new()), ("a".to_owned(), String::new())].into(),
        ..asked("", "", &["a", "gone"])
    };
    let first = delta.request(&known, &offered(1, &[("a", 1)])).expect("a response");
    assert_eq!((names(&first), &first.removed[..]), (vec!["a"], &["gone".to_owned()][..]));
    let nack = Request { is_nack: true, ..asked("", "n1", &[]) };
    assert!(delta.request(&nack, &offered(2, &[("a", 1)])).is_none(), "had, though it was rejected");
    let more = offered(3, &[("a", 1), ("b", 3)]);
    assert_eq!(sent(&delta.request(&asked("", "no nonce of ours", &["b"]), &more)), ["b"]);
}

/// A watch of each variant that has been sent `a` and `b` with the nonce n1.
fn begun() -> [Box<dyn Watch>; 2] {
    let both: [Box<dyn Watch>; 2] = [Box::new(istiod::Sotw::new(false)), Box::new(istiod::Delta::new(false))];
    both.map(|mut watch| {
        let first = watch.request(&asked("", "", &["a", "b"]), &offered(1, &[("a", 1), ("b", 1)]));
        assert_eq!(sent(&first), ["a", "b"]);
        assert!(first.expect("a response").resources.values().all(|(version, _)| version.is_empty()));
        watch.sent("n1");
        watch
    })
}

#[test]
fn istiod_sends_everything_at_any_change_and_waits_for_nobody() {
    for mut watch in begun() {
        for version in 2..4 {
            let response = watch.changed(&offered(version, &[("a", version), ("b", 1)]));
            assert_eq!(sent(&response), ["a", "b"]);
            watch.sent(&format!("n{version}"));
        }
        let response = watch.changed(&offered(4, &[("b", 1)])).expect("a response");
        assert_eq!(response.removed, [""; 0], "extension configs are never removed");
        assert!(watch.changed(&offered(5, &[])).is_none());
    }
}

#[test]
fn istiod_answers_what_a_request_adds_and_nothing_else() {
    let all = offered(1, &[("a", 1), ("b", 1), ("c", 1)]);
    for mut watch in begun() {
        assert!(watch.request(&asked("1", "n1", &["a", "b"]), &all).is_none(), "nothing is added");
        let response = watch.request(&asked("1", "n1", &["a", "b", "c"]), &all);
        assert!(sent(&response).contains(&"c".to_owned()), "{response:?}");
    }
    let [mut sotw, mut delta] = begun();
    assert_eq!(sent(&sotw.request(&asked("1", "n1", &["a", "b", "c"]), &all)), ["c"]);
    assert_eq!(sent(&delta.request(&asked("", "", &["c"]), &all)), ["c"]);
}

#[test]
fn istiod_reads_no_names_in_a_rejection_nor_in_an_answer_that_is_late() {
    let all = offered(1, &[("a", 1), ("b", 1), ("c", 1)]);
    let names = &["a", "b", "c"];
    for mut watch in begun() {
        let nack = Request { is_nack: true, ..asked("", "n1", names) };
        assert!(watch.request(&nack, &all).is_none());
        assert!(watch.request(&asked("1", "n0", names), &all).is_none(), "stale");
        assert_eq!(sent(&watch.changed(&all)), ["a", "b"], "c was never heard");
    }
}

#[test]
fn istiod_forgets_who_names_nothing() {
    let [mut sotw, _] = begun();
    let all = offered(2, &[("a", 2)]);
    assert!(sotw.request(&asked("1", "n1", &[]), &all).is_none());
    assert!(sotw.changed(&all).is_none());
    assert_eq!(sent(&sotw.request(&asked("1", "n1", &["a"]), &all)), ["a"], "a new beginning");
}

fn sotw_request(version: &str, nonce: &str, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: resources::ecds_type(),
        version_info: version.into(),
        response_nonce: nonce.into(),
        resource_names: names.iter().map(|name| (*name).into()).collect(),
        node: Some(Node { id: "n".into(), ..Node::default() }),
        ..DiscoveryRequest::default()
    }
}

fn delta_request(nonce: &str, subscribe: &[&str]) -> DeltaDiscoveryRequest {
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
    assert_eq!(last_of_sotw(&[sotw_request("", "", &[])]), Err(Broken::NothingNamed));
    let version = Broken::VersionOfAnotherStream("7".into());
    assert_eq!(last_of_sotw(&[sotw_request("7", "", &["a"])]), Err(version));
    let first = || sotw_request("", "", &["a"]);
    assert_eq!(last_of_sotw(&[first(), sotw_request("1", "n1", &["a"])]), Ok(()));
    let ack = sotw_request("1", "n1", &["a"]);
    assert_eq!(last_of_sotw(&[first(), ack.clone(), ack.clone()]), Err(Broken::Unheard));
    assert_eq!(last_of_sotw(&[first(), ack, sotw_request("1", "n1", &[])]), Ok(()));
    let error = Some(Status { code: 13, message: "no".into(), details: Vec::new() });
    let nack = DiscoveryRequest { error_detail: error.clone(), ..sotw_request("", "n1", &["a", "b"]) };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let expected = Broken::NamesOfRejection(names(&["a", "b"]), names(&["a"]));
    assert_eq!(last_of_sotw(&[first(), nack]), Err(expected));
    let nack = DiscoveryRequest { error_detail: error, ..sotw_request("", "n1", &["a"]) };
    assert_eq!(last_of_sotw(&[first(), nack.clone()]), Ok(()));
    let again = || sotw_request("", "n1", &["a"]);
    assert_eq!(
        last_of_sotw(&[first(), nack.clone(), again()]),
        Ok(()),
        "istiod reads no names in a rejection"
    );
    assert_eq!(last_of_sotw(&[first(), nack, again(), again()]), Err(Broken::Unheard));
}

#[test]
fn the_rules_hold_a_delta_client_to_what_an_agent_promises() {
    assert_eq!(last_of_delta(&[delta_request("", &[])]), Err(Broken::NothingNamed));
    let holds = |version: &str| DeltaDiscoveryRequest {
        initial_resource_versions: [("a".to_owned(), version.to_owned())].into(),
        ..delta_request("", &["a"])
    };
    assert_eq!(last_of_delta(&[holds("7")]), Err(Broken::VersionOfAnotherStream("7".into())));
    assert_eq!(last_of_delta(&[holds("")]), Ok(()));
    assert_eq!(last_of_delta(&[holds(""), delta_request("n1", &[])]), Ok(()));
    assert_eq!(last_of_delta(&[holds(""), delta_request("n1", &["b"])]), Err(Broken::ChangeWithNonce));
    assert_eq!(last_of_delta(&[holds(""), delta_request("", &["a"])]), Err(Broken::Unheard));
    assert_eq!(last_of_delta(&[holds(""), delta_request("", &["b"])]), Ok(()));
}
