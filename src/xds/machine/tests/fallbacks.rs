//! What listeners say of extension configs decides whether a fallback is sent, and when what Envoy
//! holds is sent again.

use super::*;

/// A listener whose HTTP filter waits for `name`, in a response of LDS.
pub(super) fn listener(variant: Variant, name: &str, types: &[&str], default: bool) -> Vec<u8> {
    listener_named(variant, "l", name, types, default)
}

/// The same of a listener with this name. Such responses one after the other are one with all of them.
pub(super) fn listener_named(
    variant: Variant,
    of: &str,
    name: &str,
    types: &[&str],
    default: bool,
) -> Vec<u8> {
    let mut listener = Vec::new();
    wire::put_string(&mut listener, 1, of);
    wire::put_message(&mut listener, 3, |chain| {
        wire::put_message(chain, 3, |filter| {
            wire::put_string(filter, 1, "hcm");
            wire::put_message(filter, 4, |any| {
                wire::put_string(any, 1, type_url::HTTP_CONNECTION_MANAGER);
                wire::put_message(any, 2, |manager| {
                    wire::put_message(manager, 5, |filter| {
                        wire::put_string(filter, 1, name);
                        wire::put_message(filter, 5, |discovery| {
                            wire::put_message(discovery, 1, |source| wire::put_message(source, 3, |_| {}));
                            if default {
                                wire::put_message(discovery, 2, |any| wire::put_string(any, 1, types[0]));
                            }
                            for type_url in types {
                                wire::put_len(discovery, 4, type_url.as_bytes());
                            }
                        });
                    });
                });
            });
        });
    });
    let any = Any { type_url: type_url::LISTENER, value: &listener };
    let mut response = Vec::new();
    match variant {
        Variant::StateOfTheWorld => wire::put_message(&mut response, 2, |out| any.encode_onto(out)),
        Variant::Delta => wire::put_len(&mut response, 2, &messages::encode_resource(of, "1", &any)),
    }
    response
}

const WASM_ALONE: &[&str] = &[type_url::HTTP_WASM];
const BOTH_TYPES: &[&str] = &[type_url::HTTP_WASM, type_url::HTTP_RBAC];

fn with_listener(variant: Variant, types: &[&str], default: bool, settings: Settings) -> Bench {
    let mut bench = Bench::with(variant, settings, &[]);
    bench.passes_by(&listener(variant, "a", types, default));
    bench.subscribe(&["a"], &[]);
    bench.control(&[filter("a", "oci://r.io/a:1", true)], &[]);
    bench
}

#[test]
fn where_envoy_would_refuse_a_fallback_the_resource_is_held_back_until_its_module_is_there() {
    for variant in BOTH {
        for (types, default) in [(WASM_ALONE, false), (BOTH_TYPES, true)] {
            let mut bench = with_listener(variant, types, default, Settings::default());
            bench.fails(0);
            bench.passes(Duration::from_secs(30));
            assert!(bench.responses.is_empty(), "{types:?} {default}");
            let retry = bench.fetches.len() - 1;
            assert!(retry > 0);
            bench.arrives(retry, "/store/a.wasm");
            assert!(holds(&bench.last()["a"], "/store/a.wasm"));
        }
    }
}

#[test]
fn where_nothing_is_known_of_the_places_the_setting_decides() {
    for variant in BOTH {
        for falls_back_unseen in [true, false] {
            let settings = Settings { falls_back_unseen, ..Settings::default() };
            let mut bench = Bench::with(variant, settings.clone(), &["a"]);
            bench.control(&[filter("a", "oci://r.io/a:1", true)], &[]);
            bench.fails(0);
            bench.passes(Duration::from_secs(6));
            assert_eq!(!bench.responses.is_empty(), falls_back_unseen);
            // What is seen counts more.
            let mut bench = with_listener(variant, BOTH_TYPES, false, settings);
            bench.fails(0);
            bench.passes(Duration::from_secs(6));
            assert!(is_fallback(&bench.last()["a"]));
        }
    }
}

#[test]
fn a_fallback_that_became_welcome_is_sent_then() {
    for variant in BOTH {
        let mut bench = with_listener(variant, WASM_ALONE, false, Settings::default());
        bench.fails(0);
        bench.passes(Duration::from_secs(6));
        assert!(bench.responses.is_empty());
        bench.passes_by(&listener(variant, "a", BOTH_TYPES, false));
        assert!(is_fallback(&bench.last()["a"]));
    }
}

#[test]
fn in_delta_what_envoy_holds_is_sent_again_after_its_config_discovery_changed() {
    let mut bench = with_listener(Variant::Delta, WASM_ALONE, false, Settings::default());
    bench.arrives(0, "/store/a.wasm");
    bench.ack();
    let sent = bench.responses.len();
    // The same again changes nothing.
    bench.passes_by(&listener(Variant::Delta, "a", WASM_ALONE, false));
    assert_eq!(bench.responses.len(), sent);
    bench.passes_by(&listener(Variant::Delta, "a", BOTH_TYPES, false));
    assert_eq!(bench.responses.len(), sent + 1);
    assert!(holds(&bench.last()["a"], "/store/a.wasm"));
}
