//! Pull secrets that change, while all else stays.

use super::*;

/// A Wasm filter whose module needs a pull secret.
fn private(secret: &str, configuration: &str) -> Bytes {
    let mut out = Vec::new();
    wire::put_string(&mut out, 1, "a");
    wire::put_message(&mut out, 2, |any| {
        wire::put_string(any, 1, type_url::HTTP_WASM);
        wire::put_message(any, 2, |wasm| {
            wire::put_message(wasm, 1, |plugin| {
                wire::put_string(plugin, 1, configuration);
                wire::put_message(plugin, 3, |vm| {
                    wire::put_message(vm, 3, |code| {
                        wire::put_message(code, 2, |remote| {
                            wire::put_message(remote, 1, |uri| wire::put_string(uri, 1, "oci://r.io/a:1"));
                        });
                    });
                    wire::put_message(vm, 7, |environment| {
                        wire::put_message(environment, 2, |variable| {
                            wire::put_string(variable, 1, "ISTIO_META_WASM_IMAGE_PULL_SECRET");
                            wire::put_string(variable, 2, secret);
                        });
                    });
                });
            });
        });
    });
    out.into()
}

impl Bench {
    fn offers(&mut self, secret: &str, configuration: &str) {
        self.control(&[private(secret, configuration)], &[]);
    }

    /// The last fetch brings this payload under this path.
    fn brings(&mut self, path: &str, payload: &str) {
        let (name, generation) = self.fetches.last().cloned().expect("a fetch");
        let module = Module { payload: PayloadDigest::of(payload.as_bytes()), ..module_at(path) };
        self.machine.fetched(&name, generation, Ok(&module), self.now);
        self.act();
    }
}

#[test]
fn a_new_secret_for_the_same_module_is_tried_and_envoy_is_left_alone() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.offers("first", "x");
        bench.brings("/private/1/one.wasm", "one");
        bench.ack();
        bench.offers("second", "x");
        assert_eq!(bench.fetches.len(), 2, "the new secret has to show that it may");
        bench.brings("/private/2/one.wasm", "one");
        assert_eq!((bench.responses.len(), bench.serving("a")), (1, Serving::Current));
        // Nor when it comes back, nor with one that is no good.
        bench.offers("first", "x");
        bench.brings("/private/1/one.wasm", "one");
        bench.offers("third", "x");
        bench.fails(3);
        assert_eq!((bench.responses.len(), bench.serving("a")), (1, Serving::LastGood));
    }
}

#[test]
fn a_new_secret_that_comes_with_another_module_or_config_is_news_for_envoy() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.offers("first", "x");
        bench.brings("/private/1/one.wasm", "one");
        bench.ack();
        bench.offers("second", "x");
        bench.brings("/private/2/two.wasm", "two");
        assert!(holds(&bench.last()["a"], "/private/2/two.wasm"));
        bench.ack();
        bench.offers("third", "y");
        bench.brings("/private/3/two.wasm", "two");
        assert!(holds(&bench.last()["a"], "/private/3/two.wasm"));
        assert_eq!(bench.responses.len(), 3);
    }
}

#[test]
fn what_envoy_rejected_is_not_offered_again_for_a_new_secret() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.offers("first", "x");
        bench.brings("/private/1/one.wasm", "one");
        bench.ack();
        bench.offers("first", "y");
        bench.brings("/private/1/one.wasm", "one");
        bench.nack("on_configure failed");
        bench.ack();
        let sent = bench.responses.len();
        bench.offers("second", "y");
        bench.brings("/private/2/one.wasm", "one");
        assert_eq!((bench.responses.len(), bench.serving("a")), (sent, Serving::LastGood));
    }
}

#[test]
fn a_new_secret_ends_the_wait_for_the_next_try() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        bench.offers("wrong", "x");
        let failure =
            Failure { message: "denied".into(), label: "denied", permanent: true, retry_after: None };
        bench.machine.fetched("a", 1, Err(failure), bench.now);
        bench.act();
        assert!(bench.machine.deadline().is_some_and(|next| next > bench.now));
        bench.offers("right", "x");
        assert_eq!(bench.fetches.len(), 2, "at once");
        bench.brings("/private/2/one.wasm", "one");
        assert!(holds(&bench.last()["a"], "/private/2/one.wasm"));
    }
}

#[test]
fn a_new_secret_on_the_nodes_next_stream_leaves_envoy_alone_too() {
    for variant in BOTH {
        let memory = Memory::default();
        let mut bench = Bench::remembering(variant, &memory);
        bench.offers("first", "x");
        bench.brings("/private/1/one.wasm", "one");
        let before = bench.last()["a"].clone();
        bench.ack();
        bench.next_stream(&memory, &["a"], &["a"]);
        bench.offers("second", "x");
        bench.brings("/private/2/one.wasm", "one");
        assert_eq!(bench.last()["a"], before, "Envoy skips it");
        bench.ack();
        bench.offers("third", "x");
        bench.brings("/private/3/two.wasm", "two");
        assert!(holds(&bench.last()["a"], "/private/3/two.wasm"));
    }
}
