//! What an agent does for its store while it is ready: counts the time, renews leases, and collects
//! garbage, once a minute, in small steps on blocking threads; and after a start it sees whether the modules
//! are what they were.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::digest::ExpectedDigest;
use crate::module::{ModuleRequest, ModuleUrl};
use crate::resolve::Resolver;
use crate::store::{Collection, Damage, Store, StoreError, Verification, Verified};
use crate::xds::leases::Leases;

const INTERVAL: Duration = Duration::from_secs(60);
/// After a start nothing is collected for so long: Envoys that have lost their agent come back first.
const PATIENCE: Duration = Duration::from_secs(600);
/// Every so often a collection also looks for what interrupted ones have left.
const SWEEPS_EVERY: u64 = 60;

/// Before the store is verified after a start: Envoys come first.
const CALM: Duration = Duration::from_secs(5);
/// How fast that is done at the most, so that it is in nobody's way.
const BYTES_A_SECOND: f64 = 16.0 * 1024.0 * 1024.0;

/// Looks after the store until shutdown.
pub async fn run(store: Store, leases: Leases, clock: Clock, shutdown: CancellationToken) {
    let started = clock.now();
    let mut collections: u64 = 0;
    let mut failing = false;
    loop {
        let mut outcome = blocking(&store, |store| store.grow_older()).await;
        leases.renew().await;
        let collection = if clock.now().saturating_duration_since(started) < PATIENCE {
            Collection::count(&store)
        } else {
            collections += 1;
            Collection::of(&store, collections % SWEEPS_EVERY == 1)
        };
        // As it was after a start, so that nothing is collected by an age that cannot be written.
        if outcome.is_ok() {
            outcome = run_to_end(collection, &shutdown).await;
        }
        if let Err(error) = &outcome
            && !failing
        {
            tracing::warn!("cannot look after the store, and will try again: {error}");
        }
        failing = outcome.is_err();
        if shutdown.run_until_cancelled(clock.sleep(INTERVAL)).await.is_none() {
            break;
        }
    }
    leases.renew().await;
    if let Err(error) = blocking(&store, |store| store.stop_growing_older()).await {
        tracing::warn!("cannot write down the age of the store: {error}");
    }
}

/// Hashes what is in the store, once, and slowly. What is damaged is fetched again where that takes no
/// credential: an Envoy that was given it may open it at any time.
pub async fn verify(store: Store, resolver: Resolver, clock: Clock, shutdown: CancellationToken) {
    if shutdown.run_until_cancelled(clock.sleep(CALM)).await.is_none() {
        return;
    }
    let mut verification = Verification::of_unchecked(&store);
    let mut damaged = 0;
    loop {
        let step = tokio::task::spawn_blocking(move || (verification.step(), verification));
        let read = match step.await {
            Ok((Ok(read), rest)) => {
                verification = rest;
                read
            }
            Ok((Err(error), _)) => {
                tracing::warn!("cannot verify the store: {error}");
                return;
            }
            // A panic in it has been printed.
            Err(_) => return,
        };
        let found: Vec<_> = verification.verified().damaged.iter().skip(damaged).cloned().collect();
        damaged += found.len();
        for damage in found {
            fetch_again(&resolver, damage).await;
        }
        let Some(read) = read else { break };
        let pause = Duration::from_secs(1).mul_f64(read as f64 / BYTES_A_SECOND);
        if shutdown.run_until_cancelled(clock.sleep(pause)).await.is_none() {
            return;
        }
    }
    let Verified { whole, bytes, failed, .. } = verification.verified();
    for failure in failed {
        tracing::warn!("cannot verify all of the store: {failure}");
    }
    tracing::info!(whole, bytes, damaged, "verified what is in the store");
}

async fn fetch_again(resolver: &Resolver, damage: Damage) {
    for url in &damage.urls {
        // What is shown of one with a query is not the URL.
        let Some(url) = url.parse::<ModuleUrl>().ok().filter(|_| !url.contains('?')) else { continue };
        let expected = Some(ExpectedDigest::from_bytes(*damage.payload.as_bytes()));
        match resolver.resolve(ModuleRequest { expected, ..ModuleRequest::new(url) }).await {
            Ok(_) => return,
            Err(error) => tracing::warn!("cannot fetch again what was damaged: {error}"),
        }
    }
}

async fn run_to_end(mut collection: Collection, shutdown: &CancellationToken) -> Result<(), StoreError> {
    while !shutdown.is_cancelled() {
        let step = tokio::task::spawn_blocking(move || {
            let more = collection.step();
            more.map(|more| more.then_some(collection))
        });
        match step.await {
            Ok(Ok(Some(rest))) => collection = rest,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(error),
            // A panic in it has been printed.
            Err(_) => break,
        }
    }
    Ok(())
}

async fn blocking(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
) -> Result<(), StoreError> {
    let store = store.clone();
    // A panic in it has been printed.
    tokio::task::spawn_blocking(move || work(&store)).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::SystemTime;

    use super::*;
    use crate::clock::ManualClock;
    use crate::metrics::Metrics;
    use crate::store::{Audience, Limits, MinFree, StoreConfig};

    #[tokio::test]
    async fn nothing_is_collected_in_the_first_ten_minutes_and_the_age_outlives_the_agent() {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let manual = ManualClock::new(SystemTime::UNIX_EPOCH);
        let clock = Clock::Manual(manual.clone());
        let config = StoreConfig { directory: folder.path().join("store") };
        let store = Store::open(&config, clock.clone()).unwrap();
        // Long unused, when the agent starts.
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(b"module").unwrap();
        let stored = ingest.finish().unwrap().commit(&Audience::Public).unwrap();
        std::fs::write(folder.path().join("store/v1/content/age"), "100000").unwrap();
        let limits =
            Limits { expiry: Duration::from_secs(60), min_free: MinFree::Bytes(0), ..Limits::default() };
        store.limit(limits);

        let shutdown = CancellationToken::new();
        let leases = Leases::new(store.clone(), Metrics::new().0);
        let upkeep = tokio::spawn(run(store.clone(), leases, clock.clone(), shutdown.clone()));
        let looked_through = async || {
            while store.stats().counted_at != Some(clock.wall()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // It sleeps when all else is done.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        looked_through().await;
        for minute in 1..=10 {
            assert!(stored.path.exists(), "before minute {minute}");
            assert_eq!((store.stats().entries, store.stats().bytes), (1, 6));
            manual.advance(INTERVAL);
            looked_through().await;
        }
        while stored.path.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        manual.advance(Duration::from_secs(30));
        shutdown.cancel();
        upkeep.await.unwrap();
        assert_eq!(Store::open(&config, clock).unwrap().age(), 100_630);
    }
}
