//! Requests that flow while something changes, so that a single one that fails is seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::client::{Answer, Broken};
use super::envoy;
use super::soon;

/// Requests one after another, each on a connection of its own. They end when this is dropped.
pub struct Traffic {
    seen: watch::Receiver<BTreeMap<String, usize>>,
    task: AbortHandle,
}

impl Traffic {
    pub fn to(listener: SocketAddr) -> Traffic {
        let (sender, seen) = watch::channel(BTreeMap::new());
        let task = tokio::spawn(async move {
            loop {
                let outcome = in_short(&envoy::request(listener).await);
                sender.send_modify(|seen| *seen.entry(outcome).or_default() += 1);
            }
        });
        Traffic { seen, task: task.abort_handle() }
    }

    /// Waits until this was the outcome of so many more requests.
    pub async fn sees(&self, outcome: &str, more: usize) {
        let count = |seen: &BTreeMap<String, usize>| seen.get(outcome).copied().unwrap_or_default();
        let mut seen = self.seen.clone();
        let enough = count(&seen.borrow()) + more;
        let what = format!("{more} requests with the outcome {outcome:?}");
        soon(&what, seen.wait_for(|seen| count(seen) >= enough)).await.expect("the task's sender");
    }

    /// How often there was which outcome.
    pub fn outcomes(&self) -> BTreeMap<String, usize> {
        self.seen.borrow().clone()
    }

    /// # Panics
    /// Where a request had any other outcome.
    pub fn saw_only(&self, allowed: &[&str]) {
        let outcomes = self.outcomes();
        let other = outcomes.keys().find(|outcome| !allowed.contains(&outcome.as_str()));
        assert!(other.is_none(), "only {allowed:?} was to be seen: {outcomes:?}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The status and what the demo filters put into their header, as `200 v1`; `-` where there is none.
pub fn in_short(outcome: &Result<Answer, Broken>) -> String {
    match outcome {
        Ok(answer) => {
            let header = match answer.header("x-wasmferry-demo") {
                "" => "-",
                header => header,
            };
            format!("{} {header}", answer.status.as_u16())
        }
        Err(broken) => format!("broken: {broken}"),
    }
}
