//! Tags that move.

use super::*;

const INTERVAL: Duration = Duration::from_secs(60);
const TAG: &str = "oci://r.io/a:1";

fn source(path: &str) -> SourceDigest {
    module_at(path).source
}

fn all() -> Option<Refresh> {
    Some(Refresh { interval: INTERVAL, registries: None })
}

impl Bench {
    /// With tags that are followed.
    fn following(variant: Variant, names: &[&str]) -> Self {
        let mut bench = Bench::new(variant, names);
        bench.machine.set_refresh(all(), bench.now);
        bench
    }

    /// One that Envoy has accepted.
    fn runs(&mut self, url: &str) {
        self.control(&[filter("a", url, false)], &[]);
        self.arrives(self.fetches.len() - 1, "/store/one.wasm");
        self.ack();
    }

    /// Passes until there have been so many looks.
    fn passes_until(&mut self, looks: usize) {
        self.passes(INTERVAL);
        assert_eq!(self.refreshes.len(), looks);
    }

    /// A look ends, with the path of the module where there is another one.
    fn seen(&mut self, look: usize, result: Result<Option<&str>, Failure>) {
        let (name, generation, ..) = self.refreshes[look].clone();
        let module = result.map(|path| path.map(module_at));
        let result = module.as_ref().map(Option::as_ref).map_err(Clone::clone);
        self.machine.refreshed(&name, generation, result, self.now);
        self.act();
    }

    fn moves(&mut self, look: usize, path: &str) {
        self.seen(look, Ok(Some(path)));
    }
}

fn down(retry_after: Option<Duration>) -> Failure {
    Failure { message: "registry down".into(), label: "connect", permanent: false, retry_after }
}

#[test]
fn no_tag_is_looked_at_unless_that_is_asked_for() {
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.runs(TAG);
    bench.passes(Duration::from_secs(86_400));
    assert_eq!((bench.refreshes.len(), bench.machine.deadline()), (0, None));
}

#[test]
fn a_tag_is_looked_at_after_half_the_interval_to_all_of_it_and_once_at_a_time() {
    let mut bench = Bench::following(Variant::Delta, &["a"]);
    bench.runs(TAG);
    let mut pauses = BTreeSet::new();
    for look in 0..20 {
        let begun = bench.now;
        let pause = bench.machine.deadline().expect("a look is planned") - begun;
        assert!((INTERVAL / 2..=INTERVAL).contains(&pause), "{pause:?}");
        pauses.insert(pause);
        bench.passes(pause);
        assert_eq!(bench.refreshes.len(), look + 1);
        assert_eq!(bench.refreshes[look], ("a".to_owned(), 1, TAG.to_owned(), source("/store/one.wasm")));
        // Nobody looks a second time while somebody does.
        bench.passes(INTERVAL * 3);
        assert_eq!(bench.refreshes.len(), look + 1);
        bench.seen(look, Ok(None));
    }
    assert!(pauses.len() > 5, "spread at random: {pauses:?}");
    assert_eq!((bench.responses.len(), bench.fetches.len()), (1, 1));
}

#[test]
fn the_module_of_a_tag_that_moved_is_delivered_and_the_control_plane_has_no_part_in_it() {
    for variant in BOTH {
        let mut bench = Bench::following(variant, &["a"]);
        bench.runs(TAG);
        let requests = bench.requests.len();
        bench.passes_until(1);
        bench.moves(0, "/store/two.wasm");
        assert!(holds(&bench.last()["a"], "/store/two.wasm"));
        assert_eq!(bench.serving("a"), Serving::Current);
        bench.ack();
        bench.passes_until(2);
        assert_eq!(bench.refreshes[1], ("a".to_owned(), 1, TAG.to_owned(), source("/store/two.wasm")));
        assert_eq!((bench.responses.len(), bench.requests.len()), (2, requests));
        assert_eq!(bench.notes, []);
    }
}

#[test]
fn a_look_that_fails_changes_nothing_but_may_put_off_the_next() {
    for variant in BOTH {
        let mut bench = Bench::following(variant, &["a"]);
        bench.runs(TAG);
        bench.passes_until(1);
        bench.seen(0, Err(down(None)));
        assert_eq!(bench.serving("a"), Serving::Current);
        assert!(bench.machine.slots().all(|(_, slot)| slot.failing.is_none()));
        bench.passes_until(2);
        bench.seen(1, Err(down(Some(INTERVAL * 5))));
        bench.passes(INTERVAL * 5 - Duration::from_secs(1));
        assert_eq!(bench.refreshes.len(), 2);
        bench.passes(Duration::from_secs(1));
        bench.moves(2, "/store/two.wasm");
        assert!(holds(&bench.last()["a"], "/store/two.wasm"));
        assert_eq!((bench.responses.len(), bench.notes.len()), (2, 0));
    }
}

#[test]
fn what_a_look_finds_for_an_older_offer_is_void() {
    for variant in BOTH {
        let mut bench = Bench::following(variant, &["a"]);
        bench.runs(TAG);
        bench.passes_until(1);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.moves(0, "/store/old.wasm");
        assert_eq!(bench.responses.len(), 1, "the newer one is on its way");
        bench.arrives(1, "/store/new.wasm");
        assert!(holds(&bench.last()["a"], "/store/new.wasm"));
        bench.ack();
        bench.passes_until(2);
        assert_eq!(
            bench.refreshes[1],
            ("a".to_owned(), 2, "oci://r.io/a:2".to_owned(), source("/store/new.wasm"))
        );
    }
    let mut bench = Bench::following(Variant::Delta, &["a"]);
    bench.runs(TAG);
    bench.passes_until(1);
    bench.control(&[], &["a"]);
    bench.ack();
    bench.moves(0, "/store/old.wasm");
    assert_eq!((bench.responses.len(), bench.machine.deadline()), (2, None), "it was removed");
}

#[test]
fn a_resend_with_equal_bytes_puts_off_no_look() {
    let mut bench = Bench::following(Variant::StateOfTheWorld, &["a"]);
    bench.runs(TAG);
    let due = bench.machine.deadline();
    bench.passes(Duration::from_secs(5));
    bench.control(&[filter("a", TAG, false)], &[]);
    bench.passes(Duration::from_secs(2));
    assert_eq!(bench.machine.deadline(), due);
}

#[test]
fn what_is_pinned_or_no_tag_of_a_registry_that_is_followed_is_never_looked_at() {
    let digest = "0".repeat(64);
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    let of = Some(Refresh { interval: INTERVAL, registries: Some(["r.io".to_owned()].into()) });
    bench.machine.set_refresh(of, bench.now);
    let pinned = [format!("oci://r.io/a@sha256:{digest}"), format!("oci://r.io/a:1@sha256:{digest}")];
    let others = ["oci://other.io/a:1", "oci://r.io:5000/a:1", "https://r.io/a:1", "file:///a"];
    for url in others.into_iter().chain(pinned.iter().map(String::as_str)) {
        bench.runs(url);
        bench.passes(INTERVAL * 10);
        assert_eq!((bench.refreshes.len(), bench.machine.deadline()), (0, None), "{url}");
    }
    bench.runs("oci://R.io/a:1");
    bench.passes_until(1);
}

#[test]
fn a_tag_that_moves_to_what_envoy_rejects_leaves_the_last_good_until_it_moves_on() {
    for variant in BOTH {
        let mut bench = Bench::following(variant, &["a"]);
        bench.runs(TAG);
        bench.passes_until(1);
        bench.moves(0, "/store/bad.wasm");
        bench.nack("on_configure failed");
        assert!(holds(&bench.last()["a"], "/store/one.wasm"), "what works comes again at once");
        assert_eq!(bench.serving("a"), Serving::LastGood);
        bench.ack();
        let sent = bench.responses.len();
        bench.passes_until(2);
        bench.seen(1, Ok(None));
        assert_eq!(bench.responses.len(), sent, "what was rejected is not sent again");
        bench.passes_until(3);
        bench.moves(2, "/store/two.wasm");
        assert!(holds(&bench.last()["a"], "/store/two.wasm"));
        bench.ack();
        assert_eq!((bench.serving("a"), bench.responses.len()), (Serving::Current, sent + 1));
    }
}

#[test]
fn an_open_stream_takes_over_which_tags_are_followed() {
    let mut bench = Bench::new(Variant::Delta, &["a"]);
    bench.runs(TAG);
    assert_eq!(bench.machine.deadline(), None);
    bench.machine.set_refresh(all(), bench.now);
    bench.passes_until(1);
    // Also while somebody looks.
    bench.machine.set_refresh(None, bench.now);
    bench.moves(0, "/store/two.wasm");
    assert!(holds(&bench.last()["a"], "/store/two.wasm"));
    bench.passes(INTERVAL * 10);
    assert_eq!((bench.refreshes.len(), bench.machine.deadline()), (1, None));
    bench.machine.set_refresh(all(), bench.now);
    bench.passes_until(2);
}
