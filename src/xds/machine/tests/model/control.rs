//! A control plane, as one stream sees it, and what it may expect of its client.

use super::*;

/// What is wanted under a name, by all of the node's streams.
pub struct Wanted {
    pub body: Bytes,
    /// Seconds.
    pub ttl: Option<u8>,
}

pub type AllWanted = BTreeMap<String, Wanted>;

#[derive(Default)]
pub struct ControlPlane {
    pub subscribed: BTreeSet<String>,
    /// On their way to the machine.
    pub responses: VecDeque<ControlResponse>,
    pub sent: u64,
    /// Responses that were answered.
    pub answered: BTreeSet<u64>,
    /// Names that it does not know to have been unsubscribed from, or to have expired before its
    /// heartbeat came, and has not sent since.
    pub missed: BTreeSet<String>,
    /// What it has sent with a TTL, and extends.
    kept: BTreeMap<String, u8>,
    /// Requests that it has read, and the names in the last one.
    pub read: usize,
    last_names: Vec<String>,
    /// What was rejected by the last one.
    nacked: Option<u64>,
    /// Responses that were sent before the stream began.
    pub before: u64,
}

impl ControlPlane {
    /// The next stream, of which `read` requests are older.
    pub fn next_stream(&self, read: usize) -> Self {
        Self { sent: self.sent, before: self.sent, read, ..Self::default() }
    }

    fn sends(&mut self, offers: Vec<Offer>, removed: &[String]) {
        if offers.is_empty() && removed.is_empty() {
            return;
        }
        self.sent += 1;
        let number = self.sent;
        self.responses.push_back(ControlResponse {
            version: format!("v{number}"),
            nonce: format!("n{number}"),
            offers,
            malformed: Vec::new(),
            removed: removed.to_vec(),
        });
    }

    /// Sends what is wanted under these names.
    pub fn responds(
        &mut self,
        habits: &Habits,
        wanted: &AllWanted,
        names: &BTreeSet<String>,
        removed: &[String],
    ) {
        let full = habits.variant == Variant::StateOfTheWorld && habits.full;
        let names = if full { self.subscribed.clone() } else { names.clone() };
        let mut offers = Vec::new();
        for (name, wanted) in names.iter().filter_map(|name| Some((name, wanted.get(name)?))) {
            self.missed.remove(name);
            self.kept.remove(name);
            self.kept.extend(wanted.ttl.map(|ttl| (name.clone(), ttl)));
            let mut offer = offer(habits.variant, &wanted.body);
            if let Some(ttl) = wanted.ttl {
                offer.wrapper = ttl::wrapper(habits.variant, ttl.into());
            }
            offer.source = hash(&[&wanted.body, offer.wrapper.rest()]);
            offers.push(offer);
        }
        removed.iter().for_each(|name| _ = self.kept.remove(name));
        self.sends(offers, removed);
    }

    /// Extends the TTLs of what it has sent.
    pub fn heartbeat(&mut self, habits: &Habits) {
        let kept = self.kept.iter().filter(|(name, _)| self.subscribed.contains(*name));
        let heartbeat = |(name, ttl): (&String, &u8)| Offer {
            name: name.clone(),
            source: hash(&[]),
            body: None,
            plan: rewrite::Plan::Untouched,
            wrapper: ttl::wrapper(habits.variant, (*ttl).into()),
        };
        let offers = kept.map(heartbeat).collect();
        self.sends(offers, &[]);
    }

    pub fn reads(&mut self, request: &ControlRequest, habits: &Habits, wanted: &AllWanted) {
        self.read += 1;
        let nonce: Option<u64> = request.nonce.strip_prefix('n').map(|number| number.parse().unwrap());
        let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        let mut answers = |number| assert!(self.answered.insert(number), "n{number} is answered once");
        let added = match habits.variant {
            Variant::Delta => {
                if let Some(number) = nonce {
                    answers(number);
                    let alone = request.subscribe.is_empty() && request.unsubscribe.is_empty();
                    assert!(alone, "changes of the subscription go alone");
                }
                for name in &request.unsubscribe {
                    assert!(self.subscribed.remove(name), "{name} was subscribed to");
                }
                self.subscribed.extend(request.subscribe.iter().cloned());
                // What the client says that it has, and is no more.
                let gone = request.initial.iter().filter(|name| !wanted.contains_key(*name));
                let gone: Vec<String> = gone.cloned().collect();
                self.responds(habits, wanted, &BTreeSet::new(), &gone);
                set(&request.subscribe)
            }
            Variant::StateOfTheWorld => {
                let is_change = request.names != self.last_names;
                self.last_names.clone_from(&request.names);
                let said_again = nonce.is_some() && self.nacked.take() == nonce;
                self.nacked = nonce.filter(|_| request.error.is_some());
                match nonce {
                    // After a rejection, in which some read no names.
                    Some(_) if said_again && request.error.is_none() => {}
                    Some(number) if !is_change => answers(number),
                    _ => assert!(is_change, "a request says something"),
                }
                let names = set(&request.names);
                // One that answers an older response is dropped whole: another follows. So it may
                // never hear that a name was gone for a while and what it sent meanwhile was lost.
                if nonce.is_some_and(|number| number != self.sent) {
                    self.missed.extend(self.subscribed.difference(&names).cloned());
                    return;
                }
                let added = names.difference(&self.subscribed).cloned().collect();
                self.subscribed = names;
                added
            }
        };
        if !added.is_empty() {
            self.responds(habits, wanted, &added, &[]);
        }
    }
}
