//! Leases: of each node, the views that Envoys were given and may open at any time, for as long as
//! that may be. Written before a path is handed out. What a node still needs is not known here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path};
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::fs::Folder;
use super::key::Purpose;
use super::layout::Way;
use super::small::{Unsynced, read_small, to_json};
use super::{Audience, CredentialTag, PayloadDigest, Store};

const FORMAT: u32 = 1;
/// The longest lease in bytes that is written or read.
const LIMIT: u64 = 32 << 20;

/// One audience's view of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    pub audience: Audience,
    pub payload: PayloadDigest,
}

/// Views, each with the age at which it was last seen to be needed.
pub type Views = BTreeMap<View, u64>;

/// The views that a node was given, by the resource's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    pub names: BTreeMap<String, Views>,
    /// Set where a lease was lost: then it may have been on anything.
    everything: Option<u64>,
}

/// A lease as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    /// Whose it is.
    node: String,
    everything: Option<u64>,
    names: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What is leased, of all nodes.
#[derive(Debug, Default)]
pub(super) struct Leased {
    pub(super) payloads: BTreeSet<PayloadDigest>,
    pub(super) everything: bool,
}

/// What this process holds, by node, on disk or not.
pub(super) type Holds = HashMap<String, BTreeSet<PayloadDigest>>;

impl View {
    /// As it is called on disk: its audience and its payload.
    fn name(&self) -> String {
        match self.audience {
            Audience::Public => format!("public/{}", self.payload.hex()),
            Audience::Private(tag) => format!("{}/{}", tag.hex(), self.payload.hex()),
        }
    }

    fn read(name: &str) -> Option<Self> {
        let (audience, payload) = name.split_once('/')?;
        let audience = match audience {
            "public" => Audience::Public,
            tag => Audience::Private(CredentialTag::from_hex(tag)?),
        };
        Some(Self { audience, payload: PayloadDigest::from_hex(payload).ok()? })
    }
}

impl Lease {
    /// A lease on all that there is, for as long as any lease lasts after `age`.
    pub(super) fn on_everything(age: u64) -> Self {
        Self { names: BTreeMap::new(), everything: Some(age) }
    }

    /// The lease that comes in the place of this one.
    pub fn followed_by(&self, names: BTreeMap<String, Views>) -> Self {
        Self { names, everything: self.everything }
    }

    /// Whether it is on the same views under the same names as `other`, needed so many seconds of age
    /// earlier at the most.
    pub fn says_the_same(&self, other: &Self, within: u64) -> bool {
        let same = |((name, ours), (other_name, others)): ((&String, &Views), (&String, &Views))| {
            let fresh = |(sign, other): (&u64, &u64)| sign.saturating_add(within) >= *other;
            name == other_name
                && ours.keys().eq(others.keys())
                && ours.values().zip(others.values()).all(fresh)
        };
        self.names.len() == other.names.len() && self.names.iter().zip(&other.names).all(same)
    }

    /// Whether it is on a view under this name that was needed at this age or later.
    pub fn has(&self, name: &str, view: &View, since: u64) -> bool {
        self.names.get(name).and_then(|views| views.get(view)).is_some_and(|sign| *sign >= since)
    }

    /// The payloads of all its views.
    pub fn payloads(&self) -> BTreeSet<PayloadDigest> {
        self.names.values().flat_map(BTreeMap::keys).map(|view| view.payload).collect()
    }

    /// What was written of a node; none where it cannot be understood.
    fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Entry>(bytes).ok()?.into_lease()
    }

    fn entry(&self, node: &str) -> Entry {
        let views = |views: &Views| views.iter().map(|(v, sign)| (v.name(), *sign)).collect();
        let names = self.names.iter().map(|(name, given)| (name.clone(), views(given))).collect();
        Entry { format: FORMAT, node: node.to_owned(), everything: self.everything, names }
    }

    fn signs(&self) -> impl Iterator<Item = u64> {
        self.names.values().flat_map(BTreeMap::values).copied().chain(self.everything)
    }
}

impl Entry {
    fn into_lease(self) -> Option<Lease> {
        let views = |views: BTreeMap<String, u64>| {
            views.into_iter().map(|(name, sign)| Some((View::read(&name)?, sign))).collect::<Option<_>>()
        };
        let names = self.names.into_iter().map(|(name, given)| Some((name, views(given)?)));
        Some(Lease { names: names.collect::<Option<_>>()?, everything: self.everything })
            .filter(|_| self.format == FORMAT)
    }
}

impl Store {
    /// The view that a path leads to, where that is one of this store's.
    pub fn view_at(&self, path: &Path) -> Option<View> {
        let below = path.strip_prefix(self.directory()).ok()?;
        let mut parts = below.components().map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        });
        let mut next = || parts.next().flatten();
        let (_version, kind, folder, file) = (next()?, next()?, next()?, next()?);
        let audience = match kind {
            "public" => Audience::Public,
            _ => Audience::Private(CredentialTag::from_hex(folder)?),
        };
        Some(View { audience, payload: PayloadDigest::from_hex(file.strip_suffix(".wasm")?).ok()? })
    }

    /// Writes down what a node was given, in the place of what was written of it before, for all processes
    /// to see. All of it counts as used now. A crash of the machine, which no Envoy survives, may lose it
    /// until it is synced; one that it damages counts as a lease on everything.
    pub fn write_lease(&self, node: &str, lease: &Lease) -> Result<Unsynced, StoreError> {
        let bytes = to_json(&lease.entry(node))?;
        if bytes.len() as u64 > LIMIT {
            return Err(StoreError::RecordTooLarge { size: bytes.len(), limit: LIMIT });
        }
        self.place_small(&Way::leases(), &self.lease_name(node), &bytes, || {
            // Who is about to remove them looks at this, and not at the leases again.
            lease.payloads().iter().for_each(|payload| self.note_use(payload));
            Ok(())
        })
    }

    /// All of these count as used now.
    pub fn note_uses(&self, payloads: &BTreeSet<PayloadDigest>) -> Result<(), StoreError> {
        let _used = self.in_use()?;
        payloads.iter().for_each(|payload| self.note_use(payload));
        Ok(())
    }

    /// What is written down of a node.
    pub fn lease(&self, node: &str) -> Result<Lease, StoreError> {
        let Some(folder) = Way::leases().walk(self.root())? else { return Ok(Lease::default()) };
        Ok(self.read_lease(&folder, &self.lease_name(node))?.unwrap_or_default())
    }

    /// From now on this process keeps these payloads for a node, whatever is written on disk; an empty
    /// set ends that.
    pub fn hold(&self, node: &str, payloads: BTreeSet<PayloadDigest>) {
        match payloads.is_empty() {
            true => self.holds().remove(node),
            false => self.holds().insert(node.to_owned(), payloads),
        };
    }

    pub(super) fn holds(&self) -> MutexGuard<'_, Holds> {
        self.0.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one lease. One that cannot be read is counted, and a lease on everything takes its place:
    /// whatever it was on is kept for as long as it could have lasted.
    fn read_lease(&self, folder: &Folder, name: &str) -> Result<Option<Lease>, StoreError> {
        let read = match read_small(folder, name, LIMIT) {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => Lease::parse(&bytes),
            // Perhaps the next time.
            Err(error @ StoreError::Io { .. }) => return Err(error),
            Err(_) => None,
        };
        if let Some(lease) = read {
            return Ok(Some(lease));
        }
        self.drop_record();
        tracing::warn!(name, "a lease cannot be read: nothing is removed until it would have ended");
        let lease = Lease::on_everything(self.age());
        let entry = lease.entry("lost");
        let bytes = to_json(&entry)?;
        self.write_small(&Way::leases(), name, &bytes, || Ok(()))?;
        Ok(Some(lease))
    }

    /// The names of all leases.
    pub(super) fn lease_names(&self) -> Result<Vec<String>, StoreError> {
        match Way::leases().walk(self.root())? {
            Some(folder) => folder.names(),
            None => Ok(Vec::new()),
        }
    }

    /// Adds what these leases are on, and gives the names of those that have ended. Where one can be
    /// neither read nor replaced, it is an error.
    pub(super) fn read_leases(
        &self,
        names: &[String],
        leased: &mut Leased,
    ) -> Result<Vec<String>, StoreError> {
        let Some(folder) = Way::leases().walk(self.root())? else { return Ok(Vec::new()) };
        let mut ended = Vec::new();
        for name in names {
            let Some(lease) = self.read_lease(&folder, name)? else { continue };
            if !self.add_lease(&lease, leased) {
                ended.push(name.clone());
            }
        }
        Ok(ended)
    }

    /// How many leases are on a payload now. For who is alone in the store: one that cannot be read counts,
    /// and stays as it is.
    pub(super) fn leases_on(&self, payload: &PayloadDigest) -> Result<usize, StoreError> {
        let Some(folder) = Way::leases().walk(self.root())? else { return Ok(0) };
        let mut count = 0;
        for name in folder.names()? {
            let Some(bytes) = read_small(&folder, &name, LIMIT).ok().flatten() else {
                count += 1;
                continue;
            };
            let lease = Lease::parse(&bytes);
            let lease = lease.unwrap_or_else(|| Lease::on_everything(self.age()));
            let mut leased = Leased::default();
            self.add_lease(&lease, &mut leased);
            count += usize::from(leased.everything || leased.payloads.contains(payload));
        }
        Ok(count)
    }

    /// Whether there is anything left of it.
    fn add_lease(&self, lease: &Lease, leased: &mut Leased) -> bool {
        let (age, lasts) = (self.age(), self.limits().lease.as_secs());
        let is_on = |sign: &u64| sign.saturating_add(lasts) > age;
        let everything = lease.everything.as_ref().is_some_and(is_on);
        leased.everything |= everything;
        let views = lease.names.values().flatten().filter(|(_, sign)| is_on(sign));
        let mut any = everything;
        for (view, _) in views {
            leased.payloads.insert(view.payload);
            any = true;
        }
        any
    }

    /// Removes leases that have ended, unless somebody has renewed them meanwhile. Nobody else uses the
    /// store at the moment.
    pub(super) fn remove_ended_leases(&self, names: &[String]) -> Result<(), StoreError> {
        let Some(folder) = Way::leases().walk(self.root())? else { return Ok(()) };
        for name in names {
            let bytes = read_small(&folder, name, LIMIT)?.unwrap_or_default();
            let lease = Lease::parse(&bytes);
            if lease.is_some_and(|lease| !self.add_lease(&lease, &mut Leased::default())) {
                folder.remove(name)?;
            }
        }
        Ok(())
    }

    /// The largest age that a lease bears.
    pub(super) fn largest_sign(&self) -> Result<Option<u64>, StoreError> {
        let Some(folder) = Way::leases().walk(self.root())? else { return Ok(None) };
        let mut largest = None;
        for name in folder.names()? {
            let bytes = read_small(&folder, &name, LIMIT).ok().flatten().unwrap_or_default();
            let lease = Lease::parse(&bytes);
            largest = largest.max(lease.and_then(|lease| lease.signs().max()));
        }
        Ok(largest)
    }

    fn lease_name(&self, node: &str) -> String {
        format!("{}.json", hex::encode(self.key().hash(Purpose::Lease, &[node.as_bytes()])))
    }
}
