//! State of the world, where Envoy comes back with configs of an earlier stream: it says that it has
//! some, and not which.

use super::*;

/// How Envoy's unified mux rejects a response from which a name is missing that an earlier one had,
/// whatever else is in it. It says so once for each such name.
const MISSING: &str = "Unexpected number of resources in ExtensionConfigDS response: 0";

/// An Envoy that comes back with these names.
fn comes_back(names: &[&str]) -> Bench {
    let mut bench = Bench::new(Variant::StateOfTheWorld, &[]);
    bench.machine = Machine::new(bench.variant, Settings::default(), 7);
    bench.names = names.iter().map(|name| (*name).to_owned()).collect();
    let names = Names::All(bench.names.clone());
    bench.machine.on_envoy(EnvoyRequest { names, resumes: true, ..EnvoyRequest::default() }, bench.now);
    bench.act();
    bench
}

fn names(bench: &Bench) -> Vec<String> {
    bench.last().into_keys().collect()
}

#[test]
fn the_first_response_waits_for_what_is_on_its_way() {
    let mut bench = comes_back(&["a", "b", "unknown"]);
    bench.control(&[filter("a", "oci://r.io/a:1", false), filter("b", "oci://r.io/b:1", false)], &[]);
    bench.arrives(0, "/store/a.wasm");
    assert!(bench.responses.is_empty());
    bench.arrives(1, "/store/b.wasm");
    assert_eq!(names(&bench), ["a", "b"]);
}

#[test]
fn it_waits_no_longer_than_the_hold_nor_for_what_has_failed() {
    let offers = [filter("a", "oci://r.io/a:1", false), filter("b", "oci://r.io/b:1", false)];
    let mut bench = comes_back(&["a", "b"]);
    bench.control(&offers, &[]);
    bench.arrives(0, "/store/a.wasm");
    bench.passes(Settings::default().hold);
    assert_eq!(names(&bench), ["a"]);

    let mut bench = comes_back(&["a", "b"]);
    bench.control(&offers, &[]);
    bench.arrives(0, "/store/a.wasm");
    bench.fails(1);
    assert_eq!(names(&bench), ["a"]);
}

#[test]
fn what_came_without_its_neighbours_is_not_condemned_for_it() {
    let mut bench = comes_back(&["a", "b", "c"]);
    bench.control(&[plain("a", "good")], &[]);
    for _ in ["b", "c"] {
        assert!(holds(&bench.last()["a"], "good"));
        bench.nack(MISSING);
    }
    assert!(holds(&bench.last()["a"], "good"));
    bench.ack();
    assert_eq!((bench.serving("a"), bench.responses.len()), (Serving::Current, 3));
    assert!(bench.notes.is_empty(), "{:?}", bench.notes);
}

#[test]
fn what_envoy_misses_since_it_was_taken_away_as_rejected_condemns_nothing_either() {
    let mut bench = comes_back(&["a", "b"]);
    bench.control(&[plain("a", "bad")], &[]);
    bench.nack(MISSING);
    bench.nack("bad");
    bench.control(&[plain("b", "bad")], &[]);
    bench.nack(MISSING);
    bench.nack("bad");
    bench.control(&[plain("a", "good")], &[]);
    bench.nack(MISSING);
    assert!(holds(&bench.last()["a"], "good") && bench.machine.awaits_envoy());
}

#[test]
fn an_envoy_that_misses_something_for_ever_is_not_asked_for_ever() {
    let mut bench = comes_back(&["a", "b"]);
    bench.control(&[plain("a", "good")], &[]);
    for _ in 0..4 {
        if bench.machine.awaits_envoy() {
            bench.nack(MISSING);
        }
    }
    assert!(!bench.machine.awaits_envoy());
    assert!(matches!(bench.notes[..], [Note::Rejected { .. }]));
}

#[test]
fn what_envoy_may_hold_gets_no_fallback() {
    let mut bench = comes_back(&["a"]);
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.fails(0);
    bench.passes(Duration::from_secs(30));
    assert!(bench.responses.is_empty());
    // A name that it asks for later is new to it.
    bench.subscribe(&["b"], &[]);
    bench.control(&[filter("b", "oci://r.io/b:1", false)], &[]);
    bench.fails(bench.fetches.len() - 1);
    bench.passes(Duration::from_secs(30));
    assert!(is_fallback(&bench.last()["b"]));
}
