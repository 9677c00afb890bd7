//! The keys: from a tree of nodes to a [`Config`]. The only place that knows them all; README
//! has a table of them with their defaults and limits, which a test holds to this.
//!
//! A mistake never ends the reading, so that all of them are told at once: what is wrong is reported
//! and its default stands in, and the caller drops the result where anything was reported.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::address::{InvalidAddress, ListenAddress, collide, parse_host};
use super::reader::{Field, Place, Problems, Section};
use super::registries::registries;
use super::units::parse_size;
use super::variables::Defaults;
use super::{
    Admin, Agent, Cache, Config, Fallback, Fetch, Health, Listener, Log, MinFree, Proof, Proxies, Relay,
    Shutdown, Sources, TagRefresh, Upstream, WasmBudgets, WhenDown, credentials, group,
};
use crate::fetch::ProgramEnvironment;
use crate::yaml::Node;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// More often than this a registry is not to be asked for nothing.
const MIN_TAG_REFRESH: Duration = Duration::from_secs(10);

const DEFAULT_MODE: u32 = 0o660;
const DEFAULT_MODULE_BYTES: u64 = 256 * MIB;
const DEFAULT_STORE_BYTES: u64 = 10 * GIB;
const MAX_STORE_BYTES: u64 = 16 << 40;
const DEFAULT_MIN_FREE: MinFree = MinFree::Percent(5);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
pub(super) const EXPIRY: RangeInclusive<Duration> = Duration::from_secs(60)..=YEAR;
pub(super) const MODULE_BYTES: RangeInclusive<u64> = KIB..=4 * GIB;
pub(super) const TIMEOUT: RangeInclusive<Duration> = SECOND..=HOUR;
pub(super) const RETRIES: RangeInclusive<u64> = 0..=20;
/// How many servers may have all their downloads at once, where nothing is said.
pub(super) const SERVERS: usize = 8;
/// Longer than a node is remembered, so that what is kept for it is there.
const MIN_LEASE: Duration = Duration::from_secs(15 * 60);
/// The largest message that a control plane may send has to fit the budget for all.
const MAX_MESSAGE_BYTES: u64 = 256 * MIB;
const MAX_BUDGET: u64 = 100_000_000;

const NO_ADDRESS: &str = "missing: unix:/PATH or IP:PORT";

/// Any of these makes the file an agent's.
const AGENT_KEYS: [&str; 6] = ["listeners", "upstream", "relay", "health", "admin", "shutdown"];

/// Reads the whole document. The result means something only where `problems` stays empty.
pub(super) fn read(root: Node, defaults: &Defaults, problems: &Problems) -> Option<Config> {
    Section::read_root(root, problems, |root| document(root, defaults))
}

fn document(root: &mut Section, defaults: &Defaults) -> Config {
    let is_agent = AGENT_KEYS.iter().any(|key| root.has(key));
    match root.take("version") {
        Some(field) => _ = field.parsed_or_number(version),
        None => root.refuse("version", "missing: write `version: 1`"),
    }
    let mut taken = Taken::default();
    let listeners = root.take("listeners").map(|field| listeners(field, &mut taken));
    let upstream = root.take("upstream").map(|field| field.into_section(upstream).flatten());
    if is_agent && listeners.is_none() {
        root.refuse("listeners", "missing: an agent needs at least one");
    }
    if is_agent && upstream.is_none() {
        root.refuse("upstream", "missing: an agent needs `address` or `directory` in it");
    }
    let known: Vec<_> = listeners.iter().flatten().map(|listener| listener.address.clone()).collect();
    Config {
        agent: listeners.zip(upstream.flatten()).map(|(listeners, upstream)| Agent { listeners, upstream }),
        cache: root.section("cache", |section| cache(section, defaults)).unwrap_or_else(Cache::nowhere),
        sources: root.section("sources", sources).unwrap_or_default(),
        registries: root.take("registries").and_then(registries).unwrap_or_default(),
        containerd_hosts: list(root.take("containerd_hosts"), Field::path),
        fetch: root.section("fetch", |section| fetch(section, defaults)).unwrap_or_default(),
        blocked_cidrs: list(root.take("blocked_cidrs"), cidr),
        realms: list(root.take("realms"), |realm| realm.parsed(parse_host)),
        credentials: root
            .take("credentials")
            .map(|field| credentials::read(field, &known))
            .unwrap_or_default(),
        credential_providers: root.take("credential_providers").and_then(|field| {
            field.into_section(|section| credentials::providers(section, &known)).flatten()
        }),
        programs: ProgramEnvironment::default(),
        relay: root.section("relay", relay).unwrap_or_default(),
        wasm: root.section("wasm", wasm).unwrap_or_default(),
        health: root.take("health").and_then(|field| health(field, &mut taken)),
        admin: root.take("admin").and_then(|field| admin(field, &mut taken)),
        shutdown: root.section("shutdown", shutdown).unwrap_or_default(),
        log: root.section("log", log).unwrap_or_default(),
        proxies: Proxies::default(),
        variables: Vec::new(),
    }
}

fn version(text: &str) -> Result<(), &'static str> {
    if text == "1" { Ok(()) } else { Err("this wasmferry reads version 1 only") }
}

/// The addresses that are in use so far, each with the key that took it.
#[derive(Default)]
struct Taken(Vec<(ListenAddress, Place)>);

impl Taken {
    /// Takes an address, unless it is in use.
    fn claim(&mut self, address: &ListenAddress, place: Place) -> Result<(), String> {
        match self.0.iter().find(|(other, _)| collide(other, address)) {
            Some((_, by)) => Err(format!("the same address as {} on line {}", by.key, by.line)),
            None => {
                self.0.push((address.clone(), place));
                Ok(())
            }
        }
    }

    /// Reads an address and takes it.
    fn address<T>(
        &mut self,
        field: Field,
        parse: impl FnOnce(&str) -> Result<T, InvalidAddress>,
        listen: impl FnOnce(&T) -> ListenAddress,
    ) -> Option<T> {
        let place = field.place.clone();
        field.parsed(|text| {
            let address = parse(text).map_err(|why| why.to_string())?;
            self.claim(&listen(&address), place)?;
            Ok::<_, String>(address)
        })
    }
}

fn listeners(field: Field, taken: &mut Taken) -> Vec<Listener> {
    field
        .list_of_some(|item| item.into_section(|section| listener(section, taken)).flatten())
        .unwrap_or_default()
}

fn listener(section: &mut Section, taken: &mut Taken) -> Option<Listener> {
    let address = required(section, "address", NO_ADDRESS);
    let address =
        address.and_then(|field| taken.address(field, str::parse::<ListenAddress>, ListenAddress::clone));
    let is_tcp = matches!(address, Some(ListenAddress::Tcp(_)));
    let mode = unix_only(section.take("mode"), is_tcp).and_then(|field| field.parsed(mode));
    let group =
        unix_only(section.take("group"), is_tcp).and_then(|field| field.parsed_or_number(group::resolve));
    Some(Listener { address: address?, mode: mode.unwrap_or(DEFAULT_MODE), group })
}

fn unix_only(field: Option<Field>, is_tcp: bool) -> Option<Field> {
    match field {
        Some(field) if is_tcp => field.refuse("only for a unix socket: IP:PORT has no permissions"),
        field => field,
    }
}

/// Permissions as `chmod` takes them. Unquoted, YAML would read another number.
fn mode(text: &str) -> Result<u32, &'static str> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    match mode {
        Some(mode) if mode > 0o777 => Err("must not be more than 0777"),
        Some(mode) => Ok(mode),
        None => Err("not a mode: octal digits in quotes, as in \"0660\""),
    }
}

fn upstream(section: &mut Section) -> Option<Upstream> {
    match (section.take("address"), section.take("directory")) {
        (Some(address), None) => address.parsed(str::parse).map(Upstream::Grpc),
        (None, Some(directory)) => directory.path().map(Upstream::Directory),
        (Some(_), Some(directory)) => {
            directory.refuse("set together with upstream.address: give one of the two")
        }
        (None, None) => {
            section.refuse("address", "missing, and so is upstream.directory: give one of the two");
            None
        }
    }
}

impl Cache {
    /// Stands in where the section is no map; never seen by anyone.
    fn nowhere() -> Self {
        Self {
            directory: PathBuf::new(),
            lower: Vec::new(),
            max_module_bytes: 0,
            max_bytes: 0,
            min_free: MinFree::Bytes(0),
            expiry: DAY,
            lease: DAY,
            proof: Proof::default(),
        }
    }
}

impl Default for Proof {
    fn default() -> Self {
        Self { lasts: DAY, when_registry_is_down: WhenDown::AllowIfSeen }
    }
}

fn cache(section: &mut Section, defaults: &Defaults) -> Cache {
    let default = defaults.cache_directory.clone();
    let directory = match section.take("directory") {
        Some(field) => field.path(),
        None if default.is_none() => {
            section.refuse("directory", "missing, and this user has no home directory to use instead");
            None
        }
        None => default,
    };
    let lower = list(section.take("lower"), Field::path);
    let max_module_bytes = section.take("max_module_bytes").and_then(|field| field.size(MODULE_BYTES));
    let max_bytes = section.take("max_bytes").and_then(|field| field.size(KIB..=MAX_STORE_BYTES));
    let min_free = section.take("min_free").and_then(|field| field.parsed_or_number(min_free));
    let expiry = section.take("expiry").and_then(|field| field.duration(EXPIRY));
    let lease = section.take("lease").and_then(|field| field.duration(MIN_LEASE..=YEAR));
    Cache {
        directory: directory.unwrap_or_default(),
        lower,
        max_module_bytes: max_module_bytes.or(defaults.max_module_bytes).unwrap_or(DEFAULT_MODULE_BYTES),
        max_bytes: max_bytes.unwrap_or(DEFAULT_STORE_BYTES),
        min_free: min_free.unwrap_or(DEFAULT_MIN_FREE),
        expiry: expiry.or(defaults.expiry).unwrap_or(DAY),
        lease: lease.unwrap_or(DAY),
        proof: section.section("proof", proof).unwrap_or_default(),
    }
}

fn proof(section: &mut Section) -> Proof {
    let default = Proof::default();
    let lasts = section.take("lasts").and_then(|field| field.duration(Duration::ZERO..=YEAR));
    let when_down = section.take("when_registry_is_down").and_then(|field| {
        field.parsed(|text| match text {
            "allow_if_seen" => Ok(WhenDown::AllowIfSeen),
            "deny" => Ok(WhenDown::Deny),
            _ => Err("must be `allow_if_seen` or `deny`"),
        })
    });
    Proof {
        lasts: lasts.unwrap_or(default.lasts),
        when_registry_is_down: when_down.unwrap_or(default.when_registry_is_down),
    }
}

fn min_free(text: &str) -> Result<MinFree, &'static str> {
    const WHY: &str = "not a size or a percentage up to 50%, as in 1GiB or 5%";
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent = percent.parse().ok().filter(|percent| *percent <= 50 && !text.starts_with('+'));
            percent.map(MinFree::Percent).ok_or(WHY)
        }
        None => parse_size(text).map(MinFree::Bytes).map_err(|_| WHY),
    }
}

fn sources(section: &mut Section) -> Sources {
    Sources { file: list(section.take("file"), Field::path) }
}

fn fetch(section: &mut Section, defaults: &Defaults) -> Fetch {
    let default = Fetch::default();
    let mut duration = |key| section.take(key).and_then(|field| field.duration(TIMEOUT));
    let (timeout, progress_timeout) = (duration("timeout"), duration("progress_timeout"));
    let credential_timeout = duration("credential_timeout");
    let hold = section.take("hold").and_then(|field| field.duration(Duration::ZERO..=HOUR));
    let min_rate = section.take("min_rate").and_then(|field| field.size(0..=GIB));
    let retries = section.take("retries").and_then(|field| field.integer(RETRIES));
    let retries = retries.and_then(|n| u32::try_from(n).ok());
    let mut places = |key, range| {
        let places = section.take(key).and_then(|field| field.integer(range));
        places.and_then(|n| usize::try_from(n).ok())
    };
    let concurrency = places("concurrency", 1..=64).unwrap_or(default.concurrency);
    let downloads = places("downloads", 2..=512).unwrap_or(concurrency * SERVERS);
    if downloads <= concurrency {
        section
            .refuse("downloads", "must be more than fetch.concurrency, or one server that hangs takes all");
    }
    Fetch {
        timeout: timeout.or(defaults.timeout).unwrap_or(default.timeout),
        progress_timeout: progress_timeout.unwrap_or(default.progress_timeout),
        min_rate: min_rate.unwrap_or(default.min_rate),
        retries: retries.or(defaults.retries).unwrap_or(default.retries),
        credential_timeout: credential_timeout.unwrap_or(default.credential_timeout),
        concurrency,
        downloads,
        hold: hold.unwrap_or(default.hold),
        fallback: section.take("fallback").and_then(fallback).unwrap_or_default(),
        nack_fetch_failures: section.take("nack_fetch_failures").and_then(Field::boolean).unwrap_or_default(),
        tag_refresh: section.take("tag_refresh").and_then(|field| field.into_section(tag_refresh).flatten()),
    }
}

fn fallback(field: Field) -> Option<Fallback> {
    field.parsed(|text| match text {
        "policy" => Ok(Fallback::Policy),
        "none" => Ok(Fallback::None),
        _ => Err("must be `policy` or `none`"),
    })
}

fn tag_refresh(section: &mut Section) -> Option<TagRefresh> {
    let interval = required(section, "interval", "missing: how often a registry is asked, as in 5m");
    let interval = interval.and_then(|field| field.duration(MIN_TAG_REFRESH..=DAY));
    let registries = section.take("registries");
    let registries = registries.and_then(|field| field.list_of_some(|host| host.parsed(parse_host)));
    Some(TagRefresh { interval: interval?, registries: registries.map(|hosts| hosts.into_iter().collect()) })
}

fn cidr(field: Field) -> Option<IpNet> {
    field.parsed(|text| {
        text.parse().map_err(|_| "not a network: an address and a length, as in 10.0.0.0/8 or fd00::/8")
    })
}

fn relay(section: &mut Section) -> Relay {
    let default = Relay::default();
    let size =
        |section: &mut Section, key, low| section.take(key).and_then(|field| field.size(low..=64 * GIB));
    let relay = Relay {
        queue_bytes: size(section, "queue_bytes", MIB).unwrap_or(default.queue_bytes),
        in_flight_bytes: size(section, "in_flight_bytes", MAX_MESSAGE_BYTES)
            .unwrap_or(default.in_flight_bytes),
    };
    if relay.queue_bytes > relay.in_flight_bytes {
        section.refuse("queue_bytes", "must not be more than relay.in_flight_bytes, which holds all queues");
    }
    relay
}

fn wasm(section: &mut Section) -> WasmBudgets {
    let mut count = |key| section.take(key).and_then(|field| field.integer(1..=MAX_BUDGET));
    WasmBudgets {
        types: count("types"),
        params: count("params"),
        imports: count("imports"),
        functions: count("functions"),
        function_body_bytes: section.take("function_body_bytes").and_then(|field| field.size(KIB..=GIB)),
    }
}

fn health(field: Field, taken: &mut Taken) -> Option<Health> {
    let listen = field.into_section(|section| required(section, "listen", "missing: IP:PORT")).flatten()?;
    let parse = |text: &str| text.parse().map_err(|_| InvalidAddress::Tcp);
    let listen = taken.address(listen, parse, |address: &SocketAddr| ListenAddress::Tcp(*address))?;
    Some(Health { listen })
}

fn admin(field: Field, taken: &mut Taken) -> Option<Admin> {
    let listen = field.into_section(|section| required(section, "listen", NO_ADDRESS)).flatten()?;
    Some(Admin { listen: taken.address(listen, str::parse, ListenAddress::clone)? })
}

pub(super) fn required<'p>(section: &mut Section<'p>, key: &'static str, why: &str) -> Option<Field<'p>> {
    let field = section.take(key);
    if field.is_none() {
        section.refuse(key, why);
    }
    field
}

fn shutdown(section: &mut Section) -> Shutdown {
    let timeout = section.take("timeout").and_then(|field| field.duration(Duration::ZERO..=HOUR));
    timeout.map_or_else(Shutdown::default, |timeout| Shutdown { timeout })
}

fn log(section: &mut Section) -> Log {
    Log {
        level: section.take("level").and_then(|field| field.parsed(str::parse)),
        format: section.take("format").and_then(|field| field.parsed(str::parse)),
    }
}

pub(super) fn list<'p, T>(field: Option<Field<'p>>, read: impl FnMut(Field<'p>) -> Option<T>) -> Vec<T> {
    field.and_then(|field| field.list(read)).unwrap_or_default()
}
