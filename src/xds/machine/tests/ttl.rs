//! Resources that Envoy may keep for a limited time.

use super::*;

pub(super) fn ttl_field(seconds: u64) -> Vec<u8> {
    let mut rest = Vec::new();
    wire::put_message(&mut rest, messages::RESOURCE_TTL, |ttl| wire::put_varint(ttl, 1, seconds));
    rest
}

pub(super) fn wrapper(variant: Variant, seconds: u64) -> Wrapper {
    let rest = Bytes::from(ttl_field(seconds));
    if variant == Variant::Delta { Wrapper::Delta(rest) } else { Wrapper::Wrapped(rest) }
}

impl Bench {
    fn with_ttl(&mut self, config: &Bytes, seconds: u64) {
        let wrapper = wrapper(self.variant, seconds);
        let source = hash(&[config, wrapper.rest()]);
        let offer = Offer { wrapper, source, ..offer(self.variant, config) };
        self.responds(ControlResponse { offers: vec![offer], ..ControlResponse::default() });
    }

    fn heartbeat(&mut self, name: &str, seconds: u64) {
        let (name, source) = (name.to_owned(), hash(&[]));
        let wrapper = wrapper(self.variant, seconds);
        let offer = Offer { name, source, body: None, plan: rewrite::Plan::Untouched, wrapper };
        self.responds(ControlResponse { offers: vec![offer], ..ControlResponse::default() });
    }

    /// The TTL of the resource that the last response begins with.
    fn ttl(&self) -> Option<Duration> {
        let bytes = &self.responses.last().expect("a response").resources[0];
        ttl_of(self.variant, bytes)
    }
}

/// The TTL of a resource in a response.
pub(super) fn ttl_of(variant: Variant, resource: &Bytes) -> Option<Duration> {
    let resource = match variant {
        Variant::Delta => Resource::decode(resource).unwrap(),
        Variant::StateOfTheWorld => {
            let any = Any::decode(resource).unwrap();
            if any.type_url != type_url::RESOURCE {
                return None;
            }
            Resource::decode(any.value).unwrap()
        }
    };
    messages::duration(resource.ttl?).unwrap()
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_resource_that_was_fetched_for_a_while_goes_out_with_what_is_left_of_its_ttl() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.with_ttl(&filter("a", "oci://r.io/a:1", false), 60);
        bench.passes(seconds(4));
        bench.arrives(0, "/store/a.wasm");
        assert_eq!(bench.ttl(), Some(seconds(56)));
    }
}

#[test]
fn a_heartbeat_becomes_a_full_resend_with_its_ttl() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.with_ttl(&plain("a", "text"), 60);
        bench.ack();
        bench.passes(seconds(50));
        bench.heartbeat("a", 60);
        assert!(holds(&bench.last()["a"], "text"));
        assert_eq!(bench.ttl(), Some(seconds(60)));
        bench.ack();
        bench.passes(seconds(50));
        assert_eq!(bench.serving("a"), Serving::Current);
    }
}

#[test]
fn an_expired_resource_leaves_the_set_and_is_no_longer_fetched() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a", "b"]);
        bench.with_ttl(&filter("a", "oci://r.io/a:1", false), 60);
        bench.fails(0);
        bench.passes(seconds(61));
        let fetches = bench.fetches.len();
        bench.passes(seconds(200));
        assert_eq!((bench.fetches.len(), bench.serving("a")), (fetches, Serving::Nothing));
        assert!(bench.notes.contains(&Note::Expired { name: "a".into() }));
        // It can come back.
        bench.with_ttl(&plain("a", "text"), 60);
        if bench.machine.awaits_envoy() {
            bench.ack();
        }
        assert!(holds(&bench.last()["a"], "text"));
    }
}

#[test]
fn a_resource_without_a_ttl_has_none() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.with_ttl(&plain("a", "text"), 60);
        bench.ack();
        bench.control(&[plain("a", "other")], &[]);
        bench.ack();
        bench.passes(seconds(100));
        assert_eq!(bench.serving("a"), Serving::Current);
    }
}

#[test]
fn what_is_held_goes_out_with_the_ttl_of_a_newer_offer_that_is_not_ready() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.with_ttl(&plain("a", "text"), 15);
        bench.ack();
        bench.with_ttl(&filter("a", "oci://r.io/a:1", false), 60);
        assert!(holds(&bench.last()["a"], "text"));
        assert_eq!(bench.ttl(), Some(seconds(60)));
        bench.ack();
        // Without one Envoy may keep it.
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.fails(1);
        assert!(holds(&bench.last()["a"], "text"));
        assert_eq!((bench.responses.len(), bench.ttl()), (3, None));
    }
}

#[test]
fn what_stands_in_for_what_envoy_rejected_has_the_ttl_of_the_offer_that_it_stands_in_for() {
    for variant in BOTH {
        for (ttl, left) in [(None, None), (Some(30), Some(seconds(30)))] {
            let mut bench = Bench::new(variant, &["a"]);
            bench.with_ttl(&plain("a", "good"), 60);
            bench.ack();
            match ttl {
                Some(ttl) => bench.with_ttl(&plain("a", "bad"), ttl),
                None => bench.control(&[plain("a", "bad")], &[]),
            }
            bench.nack("bad");
            assert!(holds(&bench.last()["a"], "good"));
            assert_eq!(bench.ttl(), left);
        }
    }
}

#[test]
fn what_envoy_rejected_is_not_sent_again_for_another_ttl_of_it() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.control(&[plain("a", "good")], &[]);
        bench.ack();
        bench.with_ttl(&plain("a", "bad"), 60);
        bench.nack("bad");
        bench.ack();
        bench.with_ttl(&plain("a", "bad"), 50);
        // Envoy would accept it unread.
        assert!(holds(&bench.last()["a"], "good"));
    }
}

#[test]
fn in_delta_a_ttl_that_went_with_what_envoy_rejected_goes_out_again() {
    let mut bench = Bench::new(Variant::Delta, &["a", "b"]);
    bench.with_ttl(&plain("a", "good"), 15);
    // While Envoy reads that, its TTL is extended and a neighbour comes.
    bench.heartbeat("a", 60);
    bench.control(&[plain("b", "bad")], &[]);
    bench.ack();
    assert_eq!(bench.last().len(), 2);
    bench.nack("bad");
    assert!(holds(&bench.last()["a"], "good"));
    assert_eq!((bench.last().len(), bench.ttl()), (1, Some(seconds(60))));
    // It says nothing new: that it is rejected too is no reason to go on.
    let sent = bench.responses.len();
    bench.nack("bad");
    assert_eq!(bench.responses.len(), sent);
}

#[test]
fn what_envoy_rejected_is_not_sent_again_after_it_has_expired() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::new(variant, &[]);
        bench.machine.remember_in(memory);
        bench.subscribe(&["a"], &[]);
        bench.with_ttl(&plain("a", "bad"), 15);
        bench.nack("bad");
        bench.passes(seconds(20));
        let sent = bench.responses.len();
        bench.with_ttl(&plain("a", "bad"), 15);
        assert_eq!(bench.responses.len(), sent, "{variant:?}: Envoy would accept it unread");
    }
}
