//! A payload that is hashed beside its writing.

use super::faults::Plan;
use super::*;
use crate::store::Ingest;

/// Where the hash goes to a thread of its own.
const HANDOVER: usize = 256 * 1024;
const NOTHING_FAILS: Plan = Plan { at: usize::MAX, errno: rustix::io::Errno::IO, for_good: false };

/// No two parts of it are the same.
fn payload(size: usize) -> Vec<u8> {
    (0..size as u32).flat_map(|number| number.wrapping_mul(0x9e37_79b1).to_le_bytes()).take(size).collect()
}

fn beside(store: &Store) -> Ingest {
    let mut ingest = store.ingest().unwrap();
    ingest.hash_beside();
    ingest
}

fn has_a_thread(ingest: &Ingest) -> bool {
    format!("{ingest:?}").contains("Beside")
}

fn is_alone() -> bool {
    std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1)
}

#[test]
fn the_digest_is_that_of_all_that_was_written_whatever_the_size_and_the_chunks() {
    let home = Home::quick();
    let store = home.open().unwrap();
    let sizes = [0, 1, HANDOVER - 1, HANDOVER, HANDOVER + 1, HANDOVER + 7_777, 3_000_001];
    for (size, chunk) in sizes.into_iter().flat_map(|size| [(size, 7_777), (size, 65_536), (size, 300_000)]) {
        let mut ingest = beside(&store);
        let payload = payload(size);
        payload.chunks(chunk).for_each(|part| ingest.write_all(part).unwrap());
        assert_eq!(has_a_thread(&ingest), size >= HANDOVER && !is_alone(), "{size}, {chunk}");
        let finished = ingest.finish().unwrap();
        assert_eq!((finished.payload(), finished.size()), (digest(&payload), size as u64), "{size}, {chunk}");
    }
}

#[test]
fn writes_that_the_kernel_cuts_short_are_hashed_once_each() {
    let (home, faults) = (Home::quick(), Arc::new(Faults::default()));
    let store = home.faulty(&faults).unwrap();
    let mut ingest = beside(&store);
    faults.shorten_writes();
    faults.arm(NOTHING_FAILS);
    let payload = payload(HANDOVER + 10_000);
    ingest.write_all(&payload).unwrap();
    assert_eq!(has_a_thread(&ingest), !is_alone());
    assert_eq!(ingest.finish().unwrap().payload(), digest(&payload));
    assert!(faults.disarm().len() > 1_000, "the writes were not cut short");
}

#[test]
fn one_that_is_given_up_waits_for_no_thread_and_leaves_no_file() {
    let home = Home::quick();
    let store = home.open().unwrap();
    let mut ingest = beside(&store);
    ingest.write_all(&payload(HANDOVER)).unwrap();
    assert_eq!(has_a_thread(&ingest), !is_alone());
    drop(ingest);
    assert!(files(&home.v1("content/ingest")).is_empty());
}
