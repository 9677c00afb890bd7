//! What operators hear of a stream: its log lines, its counts and its published state.

use super::{SHOWN_LIMIT, Session};
use crate::metrics::{MessageLabels, result};
use crate::xds::machine::Note;

impl Session {
    pub(super) fn note(&self, note: Note) {
        let count = |what| self.shared.metrics.resources.get_or_create(&result(what)).inc();
        let (listener, node) = (&*self.listener, self.node_id.as_str());
        match note {
            Note::FetchFailed { name, failure, retry_in, serving } => {
                let next = match retry_in {
                    Some(pause) => format!("next try in {} ms", pause.as_millis()),
                    None => "not tried again until the resource changes".to_owned(),
                };
                tracing::warn!(
                    listener, node, resource = name, reason = failure.label, serving = ?serving, next,
                    "cannot get the module: {}", failure.message
                );
            }
            Note::Recovered { name } => {
                count("recovered");
                tracing::info!(listener, node, resource = name, "the module is there after all");
            }
            Note::FallbackSent { name } => {
                count("fallback");
                tracing::warn!(listener, node, resource = name, "the failure policy's filter stands in");
            }
            Note::Expired { name } => {
                count("expired");
                tracing::warn!(
                    listener,
                    node,
                    resource = name,
                    "the control plane has let the resource's TTL pass, and Envoy drops it"
                );
            }
            Note::Rejected { names, reason } => {
                count("rejected");
                // A peer's text, which must not look like lines of ours.
                let reason = shown(&reason);
                tracing::warn!(listener, node, resources = ?names, "Envoy rejected the config: {reason:?}");
            }
            Note::Malformed { name, reason } => {
                count("malformed");
                tracing::warn!(
                    listener,
                    node,
                    resource = name,
                    "the control plane sent a bad resource: {reason}"
                );
            }
        }
    }

    pub(super) fn count(&self, from: &'static str, intercepted: bool) {
        let intercepted = if intercepted { "true" } else { "false" };
        self.shared.metrics.messages.get_or_create(&MessageLabels { from, intercepted }).inc();
    }
}

/// So much of a peer's text as is shown.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_LIMIT).collect()
}
