//! What the control plane is told, and when.

use super::*;

fn nacks() -> Settings {
    Settings { nack_fetch_failures: true, ..Settings::default() }
}

fn errors(bench: &Bench) -> Vec<Option<String>> {
    let answers = bench.requests.iter().filter(|request| !request.nonce.is_empty());
    answers.map(|request| request.error.clone()).collect()
}

#[test]
fn a_control_plane_that_wants_to_hear_of_failed_fetches_does() {
    for variant in BOTH {
        let mut bench = Bench::with(variant, nacks(), &["a", "b"]);
        let offers = [filter("a", "oci://r.io/a:1", true), filter("b", "oci://r.io/b:1", true)];
        bench.control(&offers, &[]);
        bench.passes(Duration::from_secs(2));
        assert!(errors(&bench).is_empty(), "the answer waits for the fetches");
        bench.arrives(0, "/store/a.wasm");
        bench.ack();
        assert!(errors(&bench).is_empty());
        bench.fails(1);
        let error = errors(&bench)[0].clone().expect("a rejection");
        assert!(error.contains("\"b\"") && !error.contains("\"a\""), "{error}");
    }
}

#[test]
fn it_waits_for_them_no_longer_than_the_hold() {
    for variant in BOTH {
        let mut bench = Bench::with(variant, nacks(), &["a"]);
        bench.control(&[filter("a", "oci://r.io/a:1", true)], &[]);
        bench.passes(Settings::default().hold);
        assert_eq!(errors(&bench), [None]);
    }
}

#[test]
fn nor_for_one_that_cannot_even_begin() {
    for variant in BOTH {
        let mut bench = Bench::with(variant, nacks(), &["a"]);
        bench.control(&[filter("a", "oci://r.io/UPPER CASE", true)], &[]);
        assert!(matches!(&errors(&bench)[..], [Some(_)]));
    }
}

#[test]
fn content_that_was_rejected_and_comes_again_at_once_is_accepted_so_that_nobody_spins() {
    for variant in BOTH {
        let mut bench = Bench::new(variant, &["a"]);
        let malformed = |bench: &mut Bench| {
            let reason = "it is no message".to_owned();
            bench.malformed(&[("a", &reason)]);
        };
        malformed(&mut bench);
        malformed(&mut bench);
        assert!(matches!(&errors(&bench)[..], [Some(_), None]));
        // Later it is news again.
        bench.passes(Duration::from_secs(11));
        malformed(&mut bench);
        assert!(matches!(&errors(&bench)[..], [Some(_), None, Some(_)]));
        // And other content always.
        bench.malformed(&[("a", "it is another")]);
        assert!(matches!(&errors(&bench)[..], [.., Some(_), Some(_)]));
    }
}
