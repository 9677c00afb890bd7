//! What an operator removes by name.

use super::aging::Aged;
use super::*;
use crate::store::{Lease, Pin, Removal, View};

fn lease(stored: &Stored) -> Lease {
    let view = View { audience: Audience::Public, payload: stored.payload };
    Lease::default().followed_by([("filter".to_owned(), [(view, 0)].into())].into())
}

#[test]
fn what_is_leased_or_pinned_is_removed_by_force_alone() {
    let aged = Aged::new();
    let [leased, pinned, free] =
        [&b"leased"[..], b"pinned", b"free"].map(|bytes| put(&aged.store, &Audience::Public, bytes));
    aged.store.write_lease("node", &lease(&leased)).unwrap().sync().unwrap();
    aged.store.pin(&Pin { payload: pinned.payload, url: String::new(), who: String::new() }).unwrap();

    // Another process sees them too.
    let store = aged.another();
    assert_eq!(store.remove(&leased.payload, false).unwrap(), Removal::Leased(1));
    assert_eq!(store.remove(&pinned.payload, false).unwrap(), Removal::Pinned);
    assert!(leased.path.exists() && pinned.path.exists());
    assert_eq!(store.remove(&free.payload, false).unwrap(), Removal::Removed(4));
    assert_eq!(store.remove(&free.payload, false).unwrap(), Removal::Missing);

    for stored in [&leased, &pinned] {
        assert_eq!(store.remove(&stored.payload, true).unwrap(), Removal::Removed(6));
        assert!(!stored.path.exists());
    }
    assert!(store.pins().unwrap().is_empty());
}

#[test]
fn a_lease_that_cannot_be_read_or_may_be_on_it_keeps_it_and_one_that_has_ended_does_not() {
    let aged = Aged::new();
    let stored = put(&aged.store, &Audience::Public, MODULE);
    aged.store.write_lease("node", &lease(&stored)).unwrap().sync().unwrap();
    let file = only_file(&aged.home.v1("content/leases"));
    fs::write(&file, "torn").unwrap();
    assert_eq!(aged.store.remove(&stored.payload, false).unwrap(), Removal::Leased(1));
    assert_eq!(fs::read(&file).unwrap(), b"torn", "it is for a collection to replace it");

    aged.store.write_lease("node", &lease(&stored)).unwrap().sync().unwrap();
    aged.limit(|limits| limits.lease = Duration::from_secs(900));
    aged.pass(Duration::from_secs(1000));
    assert_eq!(aged.store.remove(&stored.payload, false).unwrap(), Removal::Removed(MODULE.len() as u64));
}
