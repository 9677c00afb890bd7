//! Tests of the store.
pub(super) mod faults;
