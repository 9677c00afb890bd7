//! One download for all processes that share the store: whoever brings a module holds the store's claim
//! to it, and the others wait, holding neither a claim nor a place. They only ever try for the claim, so
//! that one whose holder has died is theirs with the next try.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::places::Place;
use super::{Asked, Inner, ResolveError};
use crate::fetch::FetchError;
use crate::metrics::result;
use crate::module::Module;
use crate::store::Claim;

/// Between the first tries for a claim that another has, and between later ones: who waits takes over
/// within the latter.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// It is this process that brings it, for as long as this lives.
#[derive(Debug)]
pub(super) struct Turn {
    /// None where the store could not give one: then each process brings it for itself.
    _claim: Option<Claim>,
}

impl Inner {
    /// Waits until it is for this process to bring `what`, which two ask for under the same name if one
    /// can use what the other brought, and `look`s then whether another has. A place is given back before
    /// there is any waiting.
    ///
    /// # Errors
    /// Those of `look`; the deadline passed, or the agent is shutting down.
    pub(super) async fn turn(
        self: &Arc<Self>,
        asked: &Arc<Asked>,
        what: String,
        deadline: Instant,
        place: &mut Option<Place>,
        look: impl Fn(&Inner, &Asked) -> Result<Option<Module>, ResolveError> + Send + Sync + 'static,
    ) -> Result<(Turn, Option<Module>), ResolveError> {
        let (what, look) = (Arc::<str>::from(what), Arc::new(look));
        let (mut pause, mut waited) = (FIRST_PAUSE, false);
        loop {
            let (which, look) = (what.clone(), look.clone());
            let attempt = move |inner: &Inner, asked: &Asked| match inner.claim(asked, &which) {
                None => Ok(None),
                Some(turn) => Ok(Some((turn, look(inner, asked)?))),
            };
            if let Some((turn, found)) = self.blocking(asked, attempt).await? {
                if waited {
                    let label = if found.is_some() { "shared" } else { "taken_over" };
                    self.metrics.fetch_waits.get_or_create(&result(label)).inc();
                }
                return Ok((turn, found));
            }
            let now = self.clock.now();
            if now >= deadline {
                self.metrics.fetch_waits.get_or_create(&result("timeout")).inc();
                let host = asked.request.url.server().to_owned();
                let during = "waiting for another process to fetch from";
                return Err(asked.fetch_error(FetchError::Timeout { during, host }));
            }
            if !waited {
                waited = true;
                *place = None;
                tracing::debug!(url = %asked.request.url, "another process fetches this; waiting for it");
            }
            self.clock.sleep_until(deadline.min(now + pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The turn, unless another has it.
    fn claim(&self, asked: &Asked, what: &str) -> Option<Turn> {
        match self.store.claim(&asked.audience, what) {
            Ok(None) => None,
            Ok(claim) => Some(Turn { _claim: claim }),
            Err(error) => {
                if !self.claims_failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "cannot agree with other processes on who fetches what, so each fetches for \
                         itself; this is said once: {error}"
                    );
                }
                Some(Turn { _claim: None })
            }
        }
    }
}
