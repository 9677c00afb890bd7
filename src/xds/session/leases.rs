//! Responses to Envoy, and the leases that are written before they go out. Nothing else waits for that.

use tokio::sync::oneshot;

use super::Session;
use super::end::End;
use crate::metrics::result;
use crate::xds::frame::Message;
use crate::xds::intercept;
use crate::xds::machine::EnvoyResponse;

/// A response that names files which are being leased.
pub(super) struct Held {
    response: EnvoyResponse,
    lease: oneshot::Receiver<()>,
}

/// Waits until the files that it names are leased, where there is one. Cancel safe.
pub(super) async fn leased(held: &mut Option<Held>) {
    match held {
        // What went wrong was logged, and stops nobody.
        Some(held) => _ = (&mut held.lease).await,
        None => std::future::pending().await,
    }
}

impl Session {
    /// Leases what Envoy may open from now on, where that has changed; where it is told `now`, what to
    /// wait for before that.
    pub(super) fn lease(&mut self, now: bool) -> Option<oneshot::Receiver<()>> {
        // Where Envoy does not say who it is.
        let join = || self.shared.leases.join(&self.listener, "", None);
        let mut machine = self.entry.machine();
        if !machine.take_given_changed() {
            return None;
        }
        self.lease.get_or_insert_with(join).give(machine.given(), now)
    }

    /// Tells Envoy, once `lease` is written. There is one response out at a time, so that none is held
    /// already, unless Envoy answered what it was not sent.
    pub(super) fn respond(
        &mut self,
        response: EnvoyResponse,
        lease: Option<oneshot::Receiver<()>>,
    ) -> Result<(), End> {
        match lease {
            Some(lease) if self.held.is_none() => {
                self.held = Some(Held { response, lease });
                Ok(())
            }
            _ => self.deliver(&response),
        }
    }

    /// The files are leased.
    pub(super) fn on_leased(&mut self) -> Result<(), End> {
        match self.held.take() {
            Some(held) => self.deliver(&held.response),
            None => Ok(()),
        }
    }

    fn deliver(&self, response: &EnvoyResponse) -> Result<(), End> {
        let message = Message::own(intercept::write_response(self.variant, response));
        self.to_envoy.push(message).map_err(End::EnvoyStalled)?;
        let delivered = self.shared.metrics.resources.get_or_create(&result("delivered"));
        delivered.inc_by(response.resources.len() as u64);
        Ok(())
    }
}
