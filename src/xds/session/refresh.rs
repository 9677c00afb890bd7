//! Looks at tags for the machine.

use std::sync::Arc;

use super::{Failure, Session};
use crate::digest::SourceDigest;
use crate::module::{Module, ModuleRequest};
use crate::resolve::ResolveError;

/// Whose look it was, and what it found.
pub(super) type Refreshed = (String, u64, Result<Option<Module>, Arc<ResolveError>>);

impl Session {
    pub(super) fn refresh(
        &mut self,
        name: String,
        generation: u64,
        request: ModuleRequest,
        known: SourceDigest,
    ) {
        let resolver = self.shared.resolver.clone();
        let look = async move { (name, generation, resolver.refresh(request, known).await) };
        self.refreshes.spawn(look);
    }

    pub(super) fn on_refreshed(&mut self, refreshed: Result<Refreshed, tokio::task::JoinError>) {
        // As for a fetch: this task only waits.
        let Ok((name, generation, outcome)) = refreshed else { return };
        let outcome = match &outcome {
            Ok(module) => Ok(module.as_ref()),
            Err(error) => Err(Failure::of(error)),
        };
        self.entry.machine().refreshed(&name, generation, outcome, self.shared.clock.now());
    }
}
