//! What an agent does for its store while it is ready: counts the time, renews leases, and collects
//! garbage. Once a minute, in small steps on blocking threads.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::{Collection, Store, StoreError};
use crate::xds::leases::Leases;

const INTERVAL: Duration = Duration::from_secs(60);
/// After a start nothing is collected for so long: Envoys that have lost their agent come back first.
const PATIENCE: Duration = Duration::from_secs(600);
/// Every so often a collection also looks for what interrupted ones have left.
const SWEEPS_EVERY: u64 = 60;

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
