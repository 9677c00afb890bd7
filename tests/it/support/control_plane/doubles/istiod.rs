//! What istiod says.
//!
//! - It waits for no answer: each change of anything pushes all that is watched, of every type, changed or
//!   not.
//! - A NACK is logged and no more: names in it are not read, and nothing is sent again.
//! - A request with another nonce than the last one's is dropped whole, subscriptions in it too, in Delta
//!   as well.
//! - What a subscription adds is answered, alone. One that adds nothing gets no answer, nor does one that
//!   adds only what there is not.
//! - In Delta resources have no version, and extension configs are never removed.
//! - Streams end after half an hour or so; [`super::Double::close_at_random`] does that.

use std::collections::BTreeSet;

use super::{Offered, Request, Response, Watch};

/// No versions of single resources.
fn unversioned(offered: &Offered, names: impl Fn(&str) -> bool) -> Response {
    Response::of(offered, names, |_| String::new())
}

#[derive(Debug)]
pub(super) struct Sotw {
    /// All of the type, whatever the names.
    wildcard: bool,
    watched: Option<BTreeSet<String>>,
    nonce: String,
}

impl Sotw {
    pub(super) fn new(wildcard: bool) -> Sotw {
        Sotw { wildcard, watched: None, nonce: String::new() }
    }

    fn generate(&self, offered: &Offered, names: &BTreeSet<String>) -> Option<Response> {
        let response = unversioned(offered, |name| self.wildcard || names.contains(name));
        (self.wildcard || !response.resources.is_empty()).then_some(response)
    }
}

impl Watch for Sotw {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response> {
        if request.is_nack {
            return None;
        }
        if request.names.is_empty() && !self.wildcard {
            (self.watched, self.nonce) = (None, String::new());
            return None;
        }
        let watched = match &self.watched {
            Some(watched) if !request.nonce.is_empty() => watched,
            _ => {
                (self.watched, self.nonce) = (Some(request.names.clone()), String::new());
                return self.generate(offered, &request.names);
            }
        };
        if request.nonce != self.nonce {
            return None;
        }
        let added: BTreeSet<String> = request.names.difference(watched).cloned().collect();
        self.watched = Some(request.names.clone());
        if added.is_empty() { None } else { self.generate(offered, &added) }
    }

    fn changed(&mut self, offered: &Offered) -> Option<Response> {
        self.generate(offered, self.watched.as_ref()?)
    }

    fn sent(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.nonce);
    }
}

#[derive(Debug)]
pub(super) struct Delta {
    wildcard: bool,
    watched: Option<BTreeSet<String>>,
    nonce: String,
    /// Of a wildcard type: what the client has.
    known: BTreeSet<String>,
}

impl Delta {
    pub(super) fn new(wildcard: bool) -> Delta {
        Delta { wildcard, watched: None, nonce: String::new(), known: BTreeSet::new() }
    }

    fn generate(&mut self, offered: &Offered, names: &BTreeSet<String>) -> Option<Response> {
        let mut response = unversioned(offered, |name| self.wildcard || names.contains(name));
        if self.wildcard {
            let now: BTreeSet<String> = response.resources.keys().cloned().collect();
            response.removed = self.known.difference(&now).cloned().collect();
            self.known = now;
        } else if response.resources.is_empty() {
            return None;
        }
        Some(response)
    }
}

impl Watch for Delta {
    fn request(&mut self, request: &Request, offered: &Offered) -> Option<Response> {
        if request.is_nack {
            return None;
        }
        let mut asked: BTreeSet<String> =
            request.subscribe.iter().chain(request.initial.keys()).cloned().collect();
        asked.retain(|name| !request.unsubscribe.contains(name));
        let Some(watched) = &mut self.watched else {
            self.watched = Some(asked.clone());
            self.known.extend(request.initial.keys().cloned());
            return self.generate(offered, &asked);
        };
        if !request.nonce.is_empty() && request.nonce != self.nonce {
            return None;
        }
        let before = watched.clone();
        watched.extend(asked.iter().cloned());
        watched.retain(|name| !request.unsubscribe.contains(name));
        if *watched == before || asked.is_empty() {
            return None;
        }
        self.generate(offered, &asked)
    }

    fn changed(&mut self, offered: &Offered) -> Option<Response> {
        let watched = self.watched.clone()?;
        self.generate(offered, &watched)
    }

    fn sent(&mut self, nonce: &str) {
        nonce.clone_into(&mut self.nonce);
    }
}

mod tests {
    use super::super::tests::{asked, offered, sent};
    use super::*;

    /// A watch of each variant that has been sent `a` and `b` with the nonce n1.
    fn begun() -> [Box<dyn Watch>; 2] {
        let both: [Box<dyn Watch>; 2] = [Box::new(Sotw::new(false)), Box::new(Delta::new(false))];
        both.map(|mut watch| {
            let first = watch.request(&asked("", "", &["a", "b"]), &offered(1, &[("a", 1), ("b", 1)]));
            assert_eq!(sent(&first), ["a", "b"]);
            assert!(first.expect("a response").resources.values().all(|(version, _)| version.is_empty()));
            watch.sent("n1");
            watch
        })
    }

    #[test]
    fn istiod_sends_everything_at_any_change_and_waits_for_nobody() {
        for mut watch in begun() {
            for version in 2..4 {
                let response = watch.changed(&offered(version, &[("a", version), ("b", 1)]));
                assert_eq!(sent(&response), ["a", "b"]);
                watch.sent(&format!("n{version}"));
            }
            let response = watch.changed(&offered(4, &[("b", 1)])).expect("a response");
            assert_eq!(response.removed, [""; 0], "extension configs are never removed");
            assert!(watch.changed(&offered(5, &[])).is_none());
        }
    }

    #[test]
    fn istiod_answers_what_a_request_adds_and_nothing_else() {
        let all = offered(1, &[("a", 1), ("b", 1), ("c", 1)]);
        for mut watch in begun() {
            assert!(watch.request(&asked("1", "n1", &["a", "b"]), &all).is_none(), "nothing is added");
            let response = watch.request(&asked("1", "n1", &["a", "b", "c"]), &all);
            assert!(sent(&response).contains(&"c".to_owned()), "{response:?}");
        }
        let [mut sotw, mut delta] = begun();
        assert_eq!(sent(&sotw.request(&asked("1", "n1", &["a", "b", "c"]), &all)), ["c"]);
        assert_eq!(sent(&delta.request(&asked("", "", &["c"]), &all)), ["c"]);
    }

    #[test]
    fn istiod_reads_no_names_in_a_rejection_nor_in_an_answer_that_is_late() {
        let all = offered(1, &[("a", 1), ("b", 1), ("c", 1)]);
        let names = &["a", "b", "c"];
        for mut watch in begun() {
            let nack = Request { is_nack: true, ..asked("", "n1", names) };
            assert!(watch.request(&nack, &all).is_none());
            assert!(watch.request(&asked("1", "n0", names), &all).is_none(), "stale");
            assert_eq!(sent(&watch.changed(&all)), ["a", "b"], "c was never heard");
        }
    }

    #[test]
    fn istiod_forgets_who_names_nothing() {
        let [mut sotw, _] = begun();
        let all = offered(2, &[("a", 2)]);
        assert!(sotw.request(&asked("1", "n1", &[]), &all).is_none());
        assert!(sotw.changed(&all).is_none());
        assert_eq!(sent(&sotw.request(&asked("1", "n1", &["a"]), &all)), ["a"], "a new beginning");
    }
}
