//! Claims: one at a time among all openings, gone with who held them.

use std::io::{BufRead as _, BufReader};

use super::*;
use crate::store::Claim;

const WHAT: &str = "oci://example.org/filter@sha256:1";

fn claim(store: &Store, what: &str) -> Option<Claim> {
    store.claim(&Audience::Public, what).unwrap()
}

#[test]
fn one_at_a_time_has_a_claim_and_each_kind_is_its_own() {
    let home = Home::new();
    let (store, other) = (home.store(), home.store());
    let held = claim(&store, WHAT).unwrap();
    assert!(claim(&other, WHAT).is_none());
    assert!(claim(&store, WHAT).is_none(), "nor twice in one process");
    assert!(claim(&other, "another").is_some());
    let private = Audience::Private(store.fingerprint(b"credential"));
    assert!(other.claim(&private, WHAT).unwrap().is_some());
    let file = only_file(&home.v1("content/flights"));
    assert_eq!((mode(&file), fs::read(&file).unwrap()), (0o600, Vec::new()));
    assert!(!file.to_str().unwrap().contains("example"));
    drop(held);
    assert!(files(&home.v1("content/flights")).is_empty());
    assert!(claim(&other, WHAT).is_some());
}

#[test]
fn of_many_who_come_and_go_never_two_have_it() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let home = Home::quick();
    let (held, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = home.store();
                while taken.load(Ordering::SeqCst) < 2000 {
                    if let Some(claim) = claim(&store, WHAT) {
                        assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(claim);
                    }
                }
            });
        }
    });
    assert!(files(&home.v1("content/flights")).is_empty());
}

#[test]
#[ignore = "run by a_claim_ends_with_its_process"]
fn child_holds_a_claim() {
    let store = store_of_parent();
    let _held = claim(&store, WHAT).unwrap();
    println!("held");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_claim_ends_with_its_process() {
    let home = Home::new();
    let store = home.store();
    let mut child = in_another_process("store::tests::claims::child_holds_a_claim", &home.path(), "022");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("held")));
    assert!(claim(&store, WHAT).is_none());
    drop(home.store());
    assert!(claim(&store, WHAT).is_none(), "a start leaves the living's alone");

    child.kill().unwrap();
    child.wait().unwrap();
    let left = only_file(&home.v1("content/flights"));
    assert!(claim(&store, WHAT).is_some());
    fs::write(&left, "").unwrap();
    drop(home.store());
    assert!(files(&home.v1("content/flights")).is_empty(), "a start sweeps the dead's");
}

#[test]
fn a_claim_of_which_any_operation_fails_is_an_error_and_none_is_left_locked() {
    let mut failed = 0;
    for at in 0.. {
        let home = Home::quick();
        let faults = Arc::new(Faults::default());
        let store = home.faulty(&faults).unwrap();
        faults.arm(faults::Plan { at, errno: rustix::io::Errno::NOSPC, for_good: false });
        let claimed = store.claim(&Audience::Public, WHAT);
        let seen = faults.disarm();
        if seen.len() <= at {
            break;
        }
        assert!(claimed.is_err(), "{:?}", seen[at]);
        drop(claimed);
        assert!(claim(&home.store(), WHAT).is_some(), "{:?}", seen[at]);
        failed += 1;
    }
    assert!(failed > 10, "{failed}");
}
