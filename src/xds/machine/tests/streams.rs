//! What one stream leaves to the next of its node.

use super::*;

impl Bench {
    /// The next stream of the same node, on which Envoy asks for these names. In the state of the world
    /// it has a version from before; in Delta it says which of them it holds.
    pub(super) fn next_stream(&mut self, memory: &Memory, names: &[&str], held: &[&str]) {
        self.machine.leave(self.now);
        self.machine = Machine::new(self.variant, Settings::default(), 11);
        self.machine.remember_in(memory.clone());
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        (self.names, self.answered) = (set(names), String::new());
        self.responses.clear();
        let names = match self.variant {
            Variant::StateOfTheWorld => Names::All(set(names)),
            Variant::Delta => {
                Names::Change { subscribe: set(names), unsubscribe: BTreeSet::new(), held: set(held) }
            }
        };
        let resumes = self.variant == Variant::StateOfTheWorld && !held.is_empty();
        self.machine.on_envoy(EnvoyRequest { names, resumes, ..EnvoyRequest::default() }, self.now);
        self.act();
    }

    pub(super) fn remembering(variant: Variant, memory: &Memory) -> Self {
        let mut bench = Self::new(variant, &[]);
        bench.machine = Machine::new(variant, Settings::default(), 7);
        bench.machine.remember_in(memory.clone());
        bench.subscribe(&["a"], &[]);
        bench
    }

    /// Envoy accepts the filter of this version.
    fn accepts(&mut self, version: &str) {
        self.control(&[filter("a", &format!("oci://r.io/a:{version}"), false)], &[]);
        self.arrives(self.fetches.len() - 1, &format!("/store/{version}.wasm"));
        self.ack();
    }
}

#[test]
fn an_update_that_fails_on_the_next_stream_leaves_what_worked_before() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.accepts("1");
        // An Envoy of the same node that holds nothing.
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        assert!(bench.responses.is_empty());
        bench.fails(bench.fetches.len() - 1);
        assert!(holds(&bench.last()["a"], "/store/1.wasm"));
        assert_eq!(bench.serving("a"), Serving::LastGood);
        bench.ack();
        bench.passes(Duration::from_secs(2));
        bench.arrives(bench.fetches.len() - 1, "/store/2.wasm");
        assert!(holds(&bench.last()["a"], "/store/2.wasm"));
    }
}

#[test]
fn a_slow_update_on_the_next_stream_lets_what_worked_serve_after_the_hold() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.accepts("1");
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.passes(Settings::default().hold);
        assert!(holds(&bench.last()["a"], "/store/1.wasm"));
    }
}

#[test]
fn nothing_of_an_earlier_stream_is_used_for_a_name_that_is_not_offered_on_this_one() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.accepts("1");
        bench.next_stream(&memory, &["a"], &["a"]);
        bench.control(&[], &[]);
        bench.passes(Duration::from_secs(100));
        assert!(bench.responses.is_empty());
        // What the control plane removes is forgotten.
        bench.control(&[], &["a"]);
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.fails(bench.fetches.len() - 1);
        bench.passes(Duration::from_secs(6));
        assert!(is_fallback(&bench.last()["a"]));
    }
}

#[test]
fn what_envoy_rejected_is_not_sent_on_the_next_stream_nor_on_another_of_its_node() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.accepts("1");
        let mut other = Bench::remembering(variant, &memory);
        other.accepts("1");
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.arrives(bench.fetches.len() - 1, "/store/2.wasm");
        bench.nack("it does not start");
        assert!(holds(&bench.last()["a"], "/store/1.wasm"));
        bench.ack();

        let sent = other.responses.len();
        other.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        other.arrives(other.fetches.len() - 1, "/store/2.wasm");
        assert_eq!(other.responses.len(), sent);

        bench.next_stream(&memory, &["a"], &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.arrives(bench.fetches.len() - 1, "/store/2.wasm");
        assert!(holds(&bench.last()["a"], "/store/1.wasm"), "what works goes in its place");
        bench.ack();
        // A change is news.
        bench.accepts("3");
        assert_eq!(bench.serving("a"), Serving::Current);
    }
}

#[test]
fn a_backoff_goes_on_where_the_last_stream_left_it() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        let broken = [filter("a", "oci://r.io/a:1", false)];
        bench.control(&broken, &[]);
        for _ in 0..6 {
            bench.fails(bench.fetches.len() - 1);
            let before = bench.fetches.len();
            while bench.fetches.len() == before {
                bench.passes(Duration::from_secs(1));
            }
        }
        bench.fails(bench.fetches.len() - 1);
        let fetches = bench.fetches.len();
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&broken, &[]);
        bench.passes(Duration::from_secs(5));
        assert_eq!(bench.fetches.len(), fetches, "its time has not come");
        assert!(is_fallback(&bench.last()["a"]), "and the hold was over long ago");
        bench.passes(Duration::from_secs(60));
        assert_eq!(bench.fetches.len(), fetches + 1);
        // Another source has nothing to do with that.
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        assert_eq!(bench.fetches.len(), fetches + 2);
    }
}

#[test]
fn an_envoy_that_comes_back_gets_a_fallback_for_what_it_was_never_sent() {
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::StateOfTheWorld, &memory);
    bench.subscribe(&["b"], &[]);
    let offers = [filter("a", "oci://r.io/a:1", false), filter("b", "oci://r.io/b:1", false)];
    bench.control(&offers, &[]);
    bench.arrives(0, "/store/a.wasm");
    bench.ack();
    bench.next_stream(&memory, &["a", "b"], &["a"]);
    bench.control(&offers, &[]);
    let fetches = bench.fetches.len();
    bench.arrives(fetches - 2, "/store/a.wasm");
    bench.fails(fetches - 1);
    bench.ack();
    bench.passes(Duration::from_secs(6));
    assert!(is_fallback(&bench.last()["b"]) && holds(&bench.last()["a"], "/store/a.wasm"));
}

#[test]
fn in_delta_what_listeners_said_on_the_last_stream_still_holds() {
    let memory = Memory::default();
    let mut bench = Bench::new(Variant::Delta, &[]);
    bench.machine.remember_in(memory.clone());
    bench.passes_by(&fallbacks::listener(Variant::Delta, "a", &[type_url::HTTP_WASM], false));
    // The listener is not sent again.
    bench.next_stream(&memory, &["a"], &[]);
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.fails(0);
    bench.passes(Duration::from_secs(30));
    assert!(bench.responses.is_empty());
}

#[test]
fn what_was_rejected_and_is_wanted_anew_by_another_source_is_offered_in_other_bytes() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.control(&[filter("a", "oci://r.io/a:1", true)], &[]);
        bench.arrives(0, "/store/1.wasm");
        bench.nack("it does not start");
        // There is nothing else to give but the fallback.
        assert!(is_fallback(&bench.last()["a"]));
        bench.ack();
        let rejected = bench.responses.len();
        bench.control(&[filter("a", "oci://r.io/a:1", true)], &[]);
        assert_eq!(bench.responses.len(), rejected, "the same again is no change");
        // What Envoy has seen another config since is news to it too.
        for name in ["/store/./1.wasm", "/store/1.wasm"] {
            // Another tag of the same payload.
            let tag = bench.fetches.len() + 1;
            bench.control(&[filter("a", &format!("oci://r.io/a:{tag}"), true)], &[]);
            bench.arrives(bench.fetches.len() - 1, "/store/1.wasm");
            assert!(holds(&bench.last()["a"], name));
            bench.nack("it still does not start");
            assert!(is_fallback(&bench.last()["a"]));
            bench.ack();
        }
        // And on another stream.
        bench.next_stream(&memory, &["a"], &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:9", true)], &[]);
        bench.arrives(bench.fetches.len() - 1, "/store/1.wasm");
        assert!(holds(&bench.last()["a"], "/store/././1.wasm"));
    }
}

#[test]
fn what_listeners_said_on_another_stream_of_the_node_holds_here_whatever_came_first() {
    for variant in [Variant::StateOfTheWorld, Variant::Delta] {
        let memory = Memory::default();
        let mut of_listeners = Bench::new(variant, &[]);
        of_listeners.machine.remember_in(memory.clone());
        let mut bench = Bench::remembering(variant, &memory);
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
        bench.fails(0);
        of_listeners.passes_by(&fallbacks::listener(variant, "a", &[type_url::HTTP_WASM], false));
        bench.passes(Duration::from_secs(30));
        assert!(bench.responses.is_empty(), "{variant:?}: Envoy would refuse it");
        let both = &[type_url::HTTP_WASM, type_url::HTTP_RBAC];
        of_listeners.passes_by(&fallbacks::listener(variant, "a", both, false));
        bench.fails(1);
        assert!(is_fallback(&bench.last()["a"]), "{variant:?}");
    }
}

#[test]
fn what_is_wanted_is_for_others_to_see_to_once_the_stream_has_ended() {
    for variant in BOTH {
        let memory = Memory::default();
        let unattended = || memory.lock().unattended().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        let mut bench = Bench::remembering(variant, &memory);
        let offer = [filter("a", "oci://r.io/a:1", false)];
        bench.control(&offer, &[]);
        bench.fails(0);
        assert_eq!(unattended(), [""; 0]);
        bench.machine.leave(bench.now);
        assert_eq!(unattended(), ["a"]);
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&offer, &[]);
        assert_eq!(unattended(), [""; 0], "the next one does");
        bench.passes(Duration::from_secs(2));
        bench.arrives(bench.fetches.len() - 1, "/store/a.wasm");
        bench.machine.leave(bench.now);
        assert_eq!(unattended(), [""; 0], "it is there");
    }
}

#[test]
fn what_each_of_two_envoys_was_sent_and_did_not_judge_is_offered_in_other_bytes() {
    for variant in BOTH {
        let memory = Memory::default();
        let offer = [filter("a", "oci://r.io/a:1", false)];
        let mut bench = Bench::remembering(variant, &memory);
        bench.control(&offer, &[]);
        bench.arrives(0, "/store/1.wasm");
        assert!(holds(&bench.last()["a"], "/store/1.wasm"));
        // A second Envoy of the node, as in a hot restart.
        let mut other = Bench::remembering(variant, &memory);
        other.control(&offer, &[]);
        other.arrives(0, "/store/1.wasm");
        assert!(holds(&other.last()["a"], "/store/./1.wasm"));
        // What the first one said of its own is lost.
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&offer, &[]);
        bench.arrives(1, "/store/1.wasm");
        assert!(holds(&bench.last()["a"], "/store/././1.wasm"));
    }
}

#[test]
fn a_rejection_says_nothing_of_a_config_whose_neighbour_was_subscribed_to_anew_meanwhile() {
    let mut bench = Bench::new(Variant::StateOfTheWorld, &["a", "b"]);
    bench.control(&[plain("a", "1"), plain("b", "1")], &[]);
    bench.ack();
    bench.control(&[plain("a", "2")], &[]);
    // That is on its way, with `b` as it was, to an Envoy that has dropped `b` and wants it again.
    bench.subscribe(&[], &["b"]);
    bench.subscribe(&["b"], &[]);
    bench.nack("b is not what it was");
    assert!(holds(&bench.last()["a"], "1"));
    bench.ack();
    assert!(holds(&bench.last()["a"], "2"), "it is tried again");
}

#[test]
fn what_was_perhaps_accepted_unread_is_not_taken_for_good_on_the_next_stream() {
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::Delta, &memory);
    bench.subscribe(&["b"], &[]);
    bench.control(&[plain("a", "bad"), plain("b", "good")], &[]);
    bench.nack("one of them");
    // Each goes alone, and Envoy takes no second look at what it rejected.
    bench.ack();
    bench.ack();
    bench.next_stream(&memory, &["a", "b"], &[]);
    bench.control(&[plain("a", "bad")], &[]);
    bench.ack();
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.arrives(0, "/store/1.wasm");
    bench.nack("on_configure failed");
    assert!(holds(&bench.last()["a"], "bad"));
    bench.nack("now it has looked");
    assert!(is_fallback(&bench.last()["a"]));
}

#[test]
fn what_a_second_envoy_accepts_stands_in_though_the_first_has_not_judged_it() {
    for variant in BOTH {
        let memory = Memory::default();
        let offer = [filter("a", "oci://r.io/a:1", false)];
        let mut bench = Bench::remembering(variant, &memory);
        bench.control(&offer, &[]);
        bench.fails(0);
        bench.passes(Duration::from_secs(6));
        assert!(is_fallback(&bench.last()["a"]));
        let mut other = Bench::remembering(variant, &memory);
        other.control(&offer, &[]);
        if other.fetches.is_empty() {
            other.passes(Duration::from_secs(6));
        }
        if other.responses.is_empty() {
            other.fails(0);
            other.passes(Duration::from_secs(6));
        }
        assert!(is_fallback(&other.last()["a"]));
        other.ack();
        other.control(&[plain("a", "bad")], &[]);
        other.nack("bad");
        assert!(is_fallback(&other.last()["a"]) && other.machine.awaits_envoy());
    }
}

#[test]
fn a_second_envoy_that_unsubscribes_takes_nothing_from_the_first() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.accepts("1");
        // A second Envoy of the node, as in a hot restart.
        let mut other = Bench::remembering(variant, &memory);
        other.accepts("1");
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.arrives(bench.fetches.len() - 1, "/store/2.wasm");
        bench.nack("on_configure failed");
        other.subscribe(&[], &["a"]);
        bench.next_stream(&memory, &["a"], &[]);
        // Nor while the first is between two streams.
        other.subscribe(&["a"], &[]);
        other.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.machine.leave(bench.now);
        other.subscribe(&[], &["a"]);
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&[filter("a", "oci://r.io/a:2", false)], &[]);
        bench.arrives(bench.fetches.len() - 1, "/store/2.wasm");
        assert!(holds(&bench.last()["a"], "/store/1.wasm"), "{variant:?}: Envoy would not look at it");
    }
}

#[test]
fn what_the_last_stream_to_want_it_unsubscribes_from_is_forgotten() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        let mut other = Bench::remembering(variant, &memory);
        bench.accepts("1");
        other.accepts("1");
        bench.subscribe(&[], &["a"]);
        assert!(memory.lock().get("a").is_some());
        other.subscribe(&[], &["a"]);
        assert!(memory.lock().get("a").is_none());
    }
}

#[test]
fn what_was_perhaps_accepted_unread_is_rejected_where_another_envoy_of_the_node_rejects_it() {
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::Delta, &memory);
    bench.subscribe(&["b"], &[]);
    bench.control(&[plain("a", "bad"), plain("b", "good")], &[]);
    bench.nack("one of them");
    // Each goes alone, and Envoy takes no second look at what it rejected.
    bench.ack();
    bench.ack();
    let mut other = Bench::remembering(Variant::Delta, &memory);
    other.control(&[plain("a", "bad")], &[]);
    other.nack("bad");
    bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    bench.fails(0);
    bench.passes(Duration::from_secs(6));
    bench.ack();
    bench.passes(Duration::from_secs(60));
    bench.arrives(bench.fetches.len() - 1, "/store/1.wasm");
    bench.nack("on_configure failed");
    assert!(is_fallback(&bench.last()["a"]), "there is nothing that works");
}

#[test]
fn what_was_perhaps_accepted_unread_is_no_last_good_of_the_node() {
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::Delta, &memory);
    bench.next_stream(&memory, &["a", "b"], &["a"]);
    bench.control(&[filter("a", "oci://r.io/a:1", false), plain("b", "1")], &[]);
    bench.arrives(0, "/store/1.wasm");
    bench.control(&[plain("b", "2")], &[]);
    bench.ack();
    assert_eq!(bench.last().len(), 2);
    bench.nack("one of them");
    // Each goes alone, and Envoy takes no second look at what it rejected.
    bench.ack();
    bench.ack();
    assert_eq!(memory.lock().get("a").unwrap().last_good, None);
}

#[test]
fn an_envoy_that_may_hold_a_config_still_may_on_the_stream_after() {
    // The agent has started again, and knows nothing of what is not Wasm.
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::StateOfTheWorld, &memory);
    for _ in 0..2 {
        bench.next_stream(&memory, &["a"], &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:1", false)], &[]);
    }
    bench.fails(bench.fetches.len() - 1);
    bench.passes(Duration::from_secs(30));
    assert!(bench.responses.is_empty());
}

#[test]
fn what_one_envoy_has_rejected_is_not_sent_to_another_that_hears_of_it_before_it_is_offered() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        let mut slow = Bench::remembering(variant, &memory);
        bench.accepts("1");
        slow.accepts("1");
        bench.control(&[plain("a", "bad")], &[]);
        bench.nack("bad");
        slow.subscribe(&["b"], &[]);
        let sent = slow.responses.len();
        slow.control(&[plain("a", "bad")], &[]);
        assert_eq!(slow.responses.len(), sent);
        // Nor is it forgotten by the node.
        bench.next_stream(&memory, &["a"], &[]);
        bench.control(&[plain("a", "bad")], &[]);
        assert!(!holds(&bench.last()["a"], "bad"), "{variant:?}");
    }
}

#[test]
fn what_one_envoy_may_look_at_again_another_may_not_have_got_past() {
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::Delta, &memory);
    let mut quick = Bench::remembering(Variant::Delta, &memory);
    let offer = |tag: &str| [filter("a", &format!("oci://r.io/a:{tag}"), false)];
    for bench in [&mut bench, &mut quick] {
        bench.control(&offer("1"), &[]);
        bench.arrives(0, "/store/1.wasm");
    }
    bench.nack("on_configure failed");
    quick.nack("on_configure failed");
    quick.ack();
    quick.control(&offer("2"), &[]);
    // The first has been given nothing else since, for all that anybody knows.
    bench.next_stream(&memory, &["a"], &[]);
    bench.control(&offer("1"), &[]);
    bench.arrives(bench.fetches.len() - 1, "/store/1.wasm");
    let last = bench.responses.last().map(|response| configs(Variant::Delta, response));
    assert!(last.is_none_or(|last| !holds(&last["a"], "/store/1.wasm")));
}

#[test]
fn what_an_envoy_rejected_and_comes_back_with_is_not_sent_though_another_rejects_something_else_meanwhile() {
    let memory = Memory::default();
    let mut bench = Bench::remembering(Variant::StateOfTheWorld, &memory);
    let mut other = Bench::remembering(Variant::StateOfTheWorld, &memory);
    bench.control(&[plain("a", "good")], &[]);
    bench.ack();
    bench.control(&[plain("a", "bad")], &[]);
    bench.nack("bad");
    bench.ack();
    bench.next_stream(&memory, &["a"], &["a"]);
    other.control(&[plain("a", "worse")], &[]);
    other.nack("worse");
    // It learns of that before it is offered anything.
    bench.passes(Duration::from_secs(1));
    bench.act();
    bench.control(&[plain("a", "bad")], &[]);
    assert!(bench.responses.is_empty());
}
