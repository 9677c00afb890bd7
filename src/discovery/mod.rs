//! What the listeners and clusters of one Envoy say of the extension configs that they wait for:
//! which `type_urls` they take, whether they have a `default_config`, and when that changes.
//!
//! Responses of LDS and CDS are read as they pass and never changed. Of each resource with a
//! `config_discovery` a few bytes are kept ([`Discoveries`]); where these stand is for `places` to
//! know.
//!
//! What is known is what the control plane has offered, whether or not Envoy took it. Knows nothing
//! of streams, of what Envoy holds, or of extension configs themselves.

mod index;
mod places;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::protobuf::messages::Any;
use crate::protobuf::wire::{Fields, Value, text};
use crate::protobuf::{WireError, type_url};
use index::{Index, Use};
use places::{PLACE_COST, Place, Unread};

/// What may be kept of all listeners, and of all clusters, in bytes: each place counts as 512 and
/// its name, each resource with a place too. A type with more is forgotten.
const LIMIT: usize = 8 << 20;

/// Whether Envoy would take a fallback (the RBAC filter of the resource's kind) for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No place is known that uses the name; or those that are known take it, and others may have
    /// been forgotten.
    Unseen,
    /// All places that use the name list the filter and none has a `default_config`.
    Takes,
    /// A place that uses the name does not list the filter, or has a `default_config`, or is one
    /// where no such filter can stand.
    Refuses,
}

/// What is known of one Envoy, all from responses that passed on its streams.
///
/// A resource that cannot be read counts as if it had not come: Envoy will refuse it and keep what
/// it has, and so is kept what was known of it. That a resource's TTL ends is not noticed.
#[derive(Debug)]
pub struct Discoveries {
    types: [Known; 2],
    names: Index,
}

/// What is known of all resources of one type.
#[derive(Debug)]
struct Known {
    type_url: &'static str,
    /// By the resource's name; only those with a `config_discovery`.
    resources: HashMap<String, Resource>,
    /// The sum of theirs.
    cost: usize,
    /// There was more than may be kept, and it has not been replaced as a whole since.
    forgotten: bool,
}

#[derive(Debug)]
struct Resource {
    uses: Vec<Use>,
    cost: usize,
}

/// What a response says of the resources that it names: their places, or `None` to leave what is
/// known as it is. Without those of which nothing is known and nothing is said.
type Said<'a> = HashMap<&'a str, Option<Vec<Place<'a>>>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Resources are Any, or Any of a wrapper; what is not named is gone.
    StateOfTheWorld,
    /// Resources are wrapped; what is gone is named.
    Delta,
}

impl Default for Discoveries {
    fn default() -> Self {
        let known = |type_url| Known { type_url, resources: HashMap::new(), cost: 0, forgotten: false };
        Self { types: [known(type_url::LISTENER), known(type_url::CLUSTER)], names: Index::default() }
    }
}

impl Discoveries {
    /// Reads a `DiscoveryResponse` of this type, which replaces all that was known of the type.
    /// Returns the names of which another set of `config_discovery` is known now than before.
    ///
    /// Of a type other than LDS's and CDS's not a byte is read. A response that is no message
    /// changes nothing.
    pub fn read_response(&mut self, type_url: &str, response: &[u8]) -> BTreeSet<Arc<str>> {
        self.read(type_url, Form::StateOfTheWorld, response)
    }

    /// Reads a `DeltaDiscoveryResponse`, which adds, replaces and removes by name; otherwise as
    /// [`Self::read_response`]. A type that was forgotten stays so.
    pub fn read_delta_response(&mut self, type_url: &str, response: &[u8]) -> BTreeSet<Arc<str>> {
        self.read(type_url, Form::Delta, response)
    }

    /// Whether a fallback can be sent for the ECDS resource of this name, as far as is known.
    pub fn fallback(&self, name: &str) -> Seen {
        let complete = self.types.iter().all(|known| !known.forgotten);
        match self.names.takes_fallback(name) {
            Some(false) => Seen::Refuses,
            Some(true) if complete => Seen::Takes,
            _ => Seen::Unseen,
        }
    }

    fn read(&mut self, type_url: &str, form: Form, response: &[u8]) -> BTreeSet<Arc<str>> {
        let mut known = self.types.iter_mut().filter(|known| type_url::same(known.type_url, type_url));
        let Some(known) = known.next() else { return BTreeSet::new() };
        if known.forgotten && form == Form::Delta {
            return BTreeSet::new();
        }
        match known.said_in(form, response) {
            Ok(said) => known.take(form, said, &mut self.names),
            Err(Unread::NoRoom) => known.forget(HashMap::new(), &mut self.names),
            Err(_) => BTreeSet::new(),
        }
    }
}

impl Known {
    fn said_in<'a>(&self, form: Form, response: &'a [u8]) -> Result<Said<'a>, Unread> {
        let mut said = Said::new();
        let mut room = LIMIT;
        for field in Fields::of("the discovery response", response) {
            let field = field?;
            match (field.number, field.value) {
                (2, Value::Len(bytes)) => {
                    let Ok((name, body)) = unwrapped(form, bytes) else { continue };
                    let places = match body.map(|body| self.places(&body, &mut room)) {
                        Some(Ok(places)) => Some(places),
                        Some(Err(Unread::NoRoom)) => return Err(Unread::NoRoom),
                        // Unreadable, or a heartbeat.
                        Some(Err(_)) | None => None,
                    };
                    let news = places.as_ref().is_some_and(|places| !places.is_empty());
                    if news || said.contains_key(name) || self.resources.contains_key(name) {
                        said.insert(name, places);
                    }
                }
                (6, Value::Len(bytes)) if form == Form::Delta => {
                    let name = text("DeltaDiscoveryResponse.removed_resources", bytes)?;
                    if self.resources.contains_key(name) {
                        said.entry(name).or_insert_with(|| Some(Vec::new()));
                    }
                }
                _ => {}
            }
        }
        Ok(said)
    }

    fn places<'a>(&self, body: &Any<'a>, room: &mut usize) -> Result<Vec<Place<'a>>, Unread> {
        if !type_url::same(body.type_url, self.type_url) {
            return Err(Unread::OtherType);
        }
        places::read(self.type_url, body.value, room)
    }

    fn take(&mut self, form: Form, said: Said<'_>, names: &mut Index) -> BTreeSet<Arc<str>> {
        let mut old = match form {
            Form::StateOfTheWorld => std::mem::take(&mut self.resources),
            Form::Delta => said.keys().filter_map(|name| self.resources.remove_entry(*name)).collect(),
        };
        let mut new = Vec::new();
        for (name, places) in said {
            match places {
                Some(places) if places.is_empty() => {}
                Some(places) => new.push((name, cost(name, &places), places)),
                None => self.resources.extend(old.remove_entry(name)),
            }
        }
        self.cost -= old.values().map(|resource| resource.cost).sum::<usize>();
        // Before anything is copied: names may be as long as the response.
        self.cost += new.iter().map(|(_, cost, _)| cost).sum::<usize>();
        if self.cost > LIMIT {
            return self.forget(old, names);
        }
        self.forgotten = false;

        let mut changed = BTreeSet::new();
        for (name, cost, places) in new {
            let uses = places.iter().map(|place| names.add(place, &mut changed)).collect();
            self.resources.insert(name.to_owned(), Resource { uses, cost });
        }
        // After the new ones, so that what both say is never gone.
        for gone in old.into_values().flat_map(|resource| resource.uses) {
            names.remove(gone, &mut changed);
        }
        changed
    }

    /// Forgets all resources, and these that were among them.
    fn forget(&mut self, others: HashMap<String, Resource>, names: &mut Index) -> BTreeSet<Arc<str>> {
        self.forgotten = true;
        self.cost = 0;
        let mut changed = BTreeSet::new();
        let resources = std::mem::take(&mut self.resources).into_values().chain(others.into_values());
        for gone in resources.flat_map(|resource| resource.uses) {
            names.remove(gone, &mut changed);
        }
        changed
    }
}

/// A resource's name and the resource; a heartbeat has none.
fn unwrapped(form: Form, bytes: &[u8]) -> Result<(&str, Option<Any<'_>>), WireError> {
    let wrapped = match form {
        Form::Delta => bytes,
        Form::StateOfTheWorld => {
            let any = Any::decode(bytes)?;
            if !type_url::same(any.type_url, type_url::RESOURCE) {
                return Ok((places::resource_name(any.value), Some(any)));
            }
            any.value
        }
    };
    let (mut name, mut body) = ("", None);
    for field in Fields::of("Resource", wrapped) {
        let field = field?;
        match (field.number, field.value) {
            (2, Value::Len(bytes)) => body = Some(Any::decode(bytes)?),
            (3, Value::Len(bytes)) => name = text("Resource.name", bytes)?,
            _ => {}
        }
    }
    let named =
        if name.is_empty() { body.map_or("", |body| places::resource_name(body.value)) } else { name };
    Ok((named, body))
}

/// What a resource counts towards [`LIMIT`].
fn cost(name: &str, places: &[Place<'_>]) -> usize {
    let names = places.iter().map(|place| place.name).chain([name]);
    names.map(|name| name.len() + PLACE_COST).sum()
}

#[cfg(test)]
mod tests;
