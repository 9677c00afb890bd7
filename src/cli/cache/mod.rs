//! `wasmferry cache`: the store, looked at and changed by hand.

mod archive;
pub mod args;
mod export;
mod import;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use self::args::{CacheArgs, CacheCommand, GcArgs, RmArgs};
use super::CliError;
use super::args::Output;
use crate::app::store_limits;
use crate::clock::Clock;
use crate::config::{Config, Environment};
use crate::digest::PayloadDigest;
use crate::module::ModuleUrl;
use crate::store::{Collection, Holding, Pin, Removal, Store, StoreConfig, Verification};

/// Why a command about the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("there is no store in {}", directory.display())]
    NoStore { directory: PathBuf },
    #[error("{module} is not in the store")]
    Missing { module: String },
    #[error("{module} led to more than one module: name one of {digests}")]
    Ambiguous { module: String, digests: String },
    #[error(
        "{module} may be opened by the Envoys of {nodes} nodes at any time; --force removes it all the same"
    )]
    Leased { module: String, nodes: usize },
    #[error("{module} is pinned; unpin it, or --force removes it all the same")]
    Pinned { module: String },
    #[error("{module} is not pinned")]
    NotPinned { module: String },
    #[error("{module} was pulled with a credential: it is exported only with --private")]
    Private { module: String },
    #[error("{damaged} of the modules were damaged and {failed} could not be verified")]
    Damaged { damaged: usize, failed: usize },
    #[error("{}: {source}", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("{}: {why}", file.display())]
    Archive { file: PathBuf, why: String },
}

/// What the commands print, a line at a time.
#[derive(Clone, Copy)]
struct Printer(Output);

impl Printer {
    fn print(self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Result<(), CliError> {
        let line = match self.0 {
            Output::Text => text(),
            Output::Json => json().to_string(),
        };
        writeln!(io::stdout().lock(), "{line}").map_err(CliError::Output)
    }
}

/// Runs one of the commands.
pub fn run(args: &CacheArgs, config: &Config, environment: &Environment) -> Result<(), CliError> {
    let directory = config.cache.directory.clone();
    // Nobody wants a new store for a typing mistake.
    if !matches!(args.command, CacheCommand::Import(_)) && !directory.join("v1").is_dir() {
        return Err(CacheError::NoStore { directory }.into());
    }
    let store = Store::open(&StoreConfig { directory }, Clock::System)?;
    store.limit(store_limits(&config.cache));
    let printer = Printer(args.command.store().output);
    match &args.command {
        CacheCommand::Ls(_) => list(&store, printer),
        CacheCommand::Verify(_) => verify(&store, printer),
        CacheCommand::Gc(args) => collect(&store, args, printer),
        CacheCommand::Rm(args) => remove(&store, args, printer),
        CacheCommand::Pin(args) => {
            let payload = find(&store, &args.module)?;
            let holding = holding(&store, &args.module, &payload)?;
            let url = holding.sources.first().map(|(url, _)| url.clone()).unwrap_or_default();
            store.pin(&Pin { payload, url, who: "cache pin".to_owned() })?;
            printer.print(|| format!("{payload}: pinned"), || json!({"pinned": payload.to_string()}))
        }
        CacheCommand::Unpin(args) => {
            let payload = find(&store, &args.module)?;
            if !store.unpin(&payload)? {
                return Err(CacheError::NotPinned { module: args.module.clone() }.into());
            }
            printer.print(
                || format!("{payload}: not pinned any more"),
                || json!({"unpinned": payload.to_string()}),
            )
        }
        CacheCommand::Export(args) => export::export(&store, args, printer),
        CacheCommand::Import(args) => import::import(&store, args, config, environment, printer),
    }
}

fn list(store: &Store, printer: Printer) -> Result<(), CliError> {
    for holding in store.inventory()? {
        printer.print(|| described(&holding), || line(&holding))?;
    }
    Ok(())
}

fn described(holding: &Holding) -> String {
    let Holding { payload, size, sources, unused, leased_by, pin, verified } = holding;
    let mut text = format!("{payload}: {size} bytes");
    let unused = unused.map_or("just now".to_owned(), |seconds| format!("{} ago", shown(seconds)));
    text += &format!(", last used {unused}, leased by {leased_by} nodes");
    if pin.is_some() {
        text += ", pinned";
    }
    text += &match verified.map(seconds_since) {
        Some(seconds) => format!(", verified {} ago", shown(seconds)),
        None => ", not verified since it was touched".to_owned(),
    };
    for (url, is_private) in sources {
        text += &format!("\n  {} {url}", audience(*is_private));
    }
    text
}

fn line(holding: &Holding) -> Value {
    let sources =
        holding.sources.iter().map(|(url, private)| json!({"url": url, "audience": audience(*private)}));
    json!({
        "payload_digest": holding.payload.to_string(),
        "size": holding.size,
        "sources": sources.collect::<Vec<_>>(),
        "unused_seconds": holding.unused,
        "leased_by": holding.leased_by,
        "pinned": holding.pin.is_some(),
        "verified_at": holding.verified.map(since_1970),
    })
}

fn audience(is_private: bool) -> &'static str {
    if is_private { "private" } else { "public" }
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn seconds_since(time: SystemTime) -> u64 {
    Clock::System.wall().duration_since(time).unwrap_or(Duration::ZERO).as_secs()
}

/// A time for people.
fn shown(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn verify(store: &Store, printer: Printer) -> Result<(), CliError> {
    let mut verification = Verification::of_all(store);
    while verification.step()?.is_some() {}
    let found = verification.verified();
    for damage in &found.damaged {
        let bytes =
            damage.found.map_or("cannot be read".to_owned(), |found| format!("has the bytes of {found}"));
        printer.print(
            || format!("{}: damaged: {} {bytes}", damage.payload, damage.path.display()),
            || {
                json!({
                    "damaged": damage.payload.to_string(),
                    "found": damage.found.map(|found| found.to_string()),
                    "path": damage.path,
                    "urls": damage.urls,
                })
            },
        )?;
    }
    for failed in &found.failed {
        printer.print(|| format!("cannot be verified: {failed}"), || json!({"failed": failed}))?;
    }
    printer.print(
        || format!("{} modules are whole, {} bytes were hashed", found.whole, found.bytes),
        || json!({"whole": found.whole, "bytes": found.bytes}),
    )?;
    let (damaged, failed) = (found.damaged.len(), found.failed.len());
    if damaged + failed > 0 { Err(CacheError::Damaged { damaged, failed }.into()) } else { Ok(()) }
}

fn collect(store: &Store, args: &GcArgs, printer: Printer) -> Result<(), CliError> {
    let mut collection = if args.dry_run { Collection::plan(store) } else { Collection::of(store, true) };
    while collection.step()? {}
    for gone in collection.collected() {
        let (payload, size, reason) = (gone.payload, gone.size, gone.reason);
        printer.print(
            || format!("{payload}: {size} bytes, {reason}"),
            || json!({"payload_digest": payload.to_string(), "size": size, "reason": reason}),
        )?;
    }
    let count = collection.collected().len();
    let bytes: u64 = collection.collected().iter().map(|gone| gone.size).sum();
    let word = if args.dry_run { "would be removed" } else { "removed" };
    printer.print(
        || format!("{count} modules {word}, {bytes} bytes"),
        || json!({"removed": if args.dry_run { 0 } else { count }, "planned": count, "bytes": bytes}),
    )
}

fn remove(store: &Store, args: &RmArgs, printer: Printer) -> Result<(), CliError> {
    let payload = find(store, &args.module)?;
    let module = args.module.clone();
    match store.remove(&payload, args.force)? {
        Removal::Missing => Err(CacheError::Missing { module }.into()),
        Removal::Leased(nodes) => Err(CacheError::Leased { module, nodes }.into()),
        Removal::Pinned => Err(CacheError::Pinned { module }.into()),
        Removal::Removed(bytes) => printer.print(
            || format!("{payload}: removed, {bytes} bytes"),
            || json!({"removed": payload.to_string(), "bytes": bytes}),
        ),
    }
}

fn holding(store: &Store, module: &str, payload: &PayloadDigest) -> Result<Holding, CliError> {
    let found = store.inventory()?.into_iter().find(|holding| holding.payload == *payload);
    found.ok_or_else(|| CacheError::Missing { module: module.to_owned() }.into())
}

/// The payload that a digest names, or that a URL led to last.
fn find(store: &Store, module: &str) -> Result<PayloadDigest, CliError> {
    if module.starts_with("sha256:") {
        return module.parse().map_err(|error| CliError::Usage(format!("{module}: {error}")));
    }
    let url: ModuleUrl = module.parse().map_err(|error| match module.contains(['?', '@']) {
        // What is not valid may hold what is secret.
        true => CliError::Usage(format!("the module: {error}")),
        false => CliError::Usage(format!("{module}: {error}")),
    })?;
    let records = store.remembered()?;
    let of = |is: &dyn Fn(&&crate::store::Remembering) -> bool| {
        let mut found: Vec<_> = records.iter().filter(is).map(|record| record.record().payload).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let (source, shown) = (url.canonical(), url.to_string());
    let mut found = of(&|record| record.is_of(store, &source));
    if found.is_empty() {
        found = of(&|record| record.record().url == shown);
    }
    match found.as_slice() {
        [] => Err(CacheError::Missing { module: shown }.into()),
        [one] => Ok(*one),
        many => {
            let digests = many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(CacheError::Ambiguous { module: shown, digests }.into())
        }
    }
}
