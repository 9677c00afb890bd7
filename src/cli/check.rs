//! Says what a configuration would do, and what in it is probably not meant.

use std::fmt;
use std::path::Path;

use rustix::fs::{FsWord, statfs};

use crate::config::{
    Config, ListenAddress, Listener, MinFree, Upstream, UpstreamAddress, show_duration, show_size,
};
use crate::fetch::{
    ANY_REGISTRY, CredentialSource, Listeners, NodeCredential, Repositories, Scheme, provider_problems,
};

/// What `check` prints.
#[derive(Debug)]
pub struct Report {
    title: String,
    lines: Vec<(&'static str, String)>,
    warnings: Vec<String>,
}

impl Report {
    /// Looks at the file system below `cache.directory`, at the configuration of credential providers and
    /// their programs, and at nothing else.
    pub fn new(file: &Path, config: &Config) -> Self {
        let command = if config.agent.is_some() { "run" } else { "prefetch" };
        let mut lines = agent_lines(config);
        lines.extend(engine_lines(config));
        let mut warnings = config.warnings();
        if on_tmpfs(&config.cache.directory) {
            warnings.push(format!(
                "cache.directory: {} is in memory (tmpfs): modules count as memory and a restart of the \
                 machine loses them",
                config.cache.directory.display()
            ));
        }
        if let Some(CredentialSource::Providers { config, bin_directory }) =
            config.credential_providers.as_ref().map(|providers| &providers.source)
        {
            let problems = provider_problems(config, bin_directory);
            warnings.extend(problems.iter().map(|problem| format!("credential_providers: {problem}")));
        }
        Self { title: format!("{}: valid; `wasmferry {command}` would", file.display()), lines, warnings }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for (verb, line) in &self.lines {
            writeln!(f, "  {verb:<13}{line}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

fn agent_lines(config: &Config) -> Vec<(&'static str, String)> {
    let Some(agent) = &config.agent else { return Vec::new() };
    let mut lines: Vec<_> =
        agent.listeners.iter().map(|listener| ("listen on", listener_line(listener))).collect();
    lines.push(match &agent.upstream {
        Upstream::Grpc(address @ UpstreamAddress::Http(_)) => ("relay to", format!("{address}, without TLS")),
        Upstream::Grpc(address @ UpstreamAddress::Unix(_)) => ("relay to", address.to_string()),
        Upstream::Directory(folder) => ("serve", format!("the plugins in {}", folder.display())),
    });
    if let Some(health) = &config.health {
        lines.push(("answer", format!("/healthz, /readyz and /metrics on {}", health.listen)));
    }
    if let Some(admin) = &config.admin {
        let mode = if admin.listen.unix_path().is_some() { " (mode 0600)" } else { "" };
        lines.push(("answer", format!("its administrator on {}{mode}", admin.listen)));
    }
    let relay = &config.relay;
    lines.push((
        "hold",
        format!(
            "at most {} in messages, {} of them for a peer that does not read",
            show_size(relay.in_flight_bytes),
            show_size(relay.queue_bytes)
        ),
    ));
    lines.push(("stop", format!("within {} of SIGTERM", show_duration(config.shutdown.timeout))));
    lines
}

fn listener_line(listener: &Listener) -> String {
    match (&listener.address, listener.group) {
        (address @ ListenAddress::Tcp(_), _) => address.to_string(),
        (address, Some(group)) => {
            format!("{address} (mode {:04o}, group {})", listener.mode, group.as_raw())
        }
        (address, None) => format!("{address} (mode {:04o})", listener.mode),
    }
}

fn engine_lines(config: &Config) -> Vec<(&'static str, String)> {
    let cache = &config.cache;
    let fetch = &config.fetch;
    let module = show_size(cache.max_module_bytes);
    let mut lines = vec![
        ("store", format!("modules of at most {module} in {}", cache.directory.display())),
        (
            "keep",
            format!(
                "at most {} of them, each for {} after its last use, and {} of the disk free",
                show_size(cache.max_bytes),
                show_duration(cache.expiry),
                match cache.min_free {
                    MinFree::Bytes(bytes) => show_size(bytes),
                    MinFree::Percent(percent) => format!("{percent}%"),
                }
            ),
        ),
        (
            "fetch",
            format!(
                "{} at once from one server, {} in all, each within {} and never {} {}",
                fetch.concurrency,
                fetch.downloads,
                show_duration(fetch.timeout),
                show_duration(fetch.progress_timeout),
                match fetch.min_rate {
                    0 => "without a byte".to_owned(),
                    rate => format!("below {} a second", show_size(rate)),
                }
            ),
        ),
    ];
    let lower: Vec<_> = cache.lower.iter().map(|folder| folder.display().to_string()).collect();
    if !lower.is_empty() {
        lines.push(("take", format!("what other stores have: {}", lower.join(", "))));
    }
    if let Some(refresh) = &fetch.tag_refresh {
        let of = match &refresh.registries {
            None => "all registries".to_owned(),
            Some(hosts) => hosts.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        };
        let interval = show_duration(refresh.interval);
        lines.push(("follow", format!("tags that move in {of}, looking every {interval}")));
    }
    let credentials = config.credentials.iter().chain(&config.credential_providers);
    lines.extend(credentials.map(|credential| ("pull with", credential_line(credential))));
    let folders: Vec<_> = config.sources.file.iter().map(|folder| folder.display().to_string()).collect();
    lines.push(match folders.is_empty() {
        true => ("refuse", "file:// in resources".to_owned()),
        false => ("read", format!("file:// in resources below {}", folders.join(", "))),
    });
    lines.extend(registry_lines(config));
    if !config.blocked_cidrs.is_empty() {
        let networks: Vec<_> = config.blocked_cidrs.iter().map(ToString::to_string).collect();
        lines.push(("block", networks.join(", ")));
    }
    if !config.realms.is_empty() {
        lines.push(("trust", format!("{} as token servers of any registry", config.realms.join(", "))));
    }
    lines
}

/// What a credential is, what it is for, and for whom.
fn credential_line(credential: &NodeCredential) -> String {
    let source = match &credential.source {
        CredentialSource::Password { user, file } => format!("{user}'s password in {}", file.display()),
        CredentialSource::RegistryToken(file) => format!("the token in {}", file.display()),
        CredentialSource::IdentityToken(file) => format!("the identity token in {}", file.display()),
        CredentialSource::DockerConfig(file) | CredentialSource::UserDockerConfig(file) => {
            format!("the docker config {}", file.display())
        }
        CredentialSource::KubernetesSecrets(folder) => format!("the secrets in {}", folder.display()),
        CredentialSource::Providers { config, .. } => format!("the providers of {}", config.display()),
    };
    let repositories = match &credential.repositories {
        Repositories::All => "whatever they are for".to_owned(),
        Repositories::These(patterns) => joined(patterns),
    };
    let listeners = match &credential.listeners {
        Listeners::All => "on every listener".to_owned(),
        Listeners::These(listeners) if listeners.is_empty() => "on no listener, in prefetch alone".to_owned(),
        Listeners::These(listeners) => format!("on {}", joined(listeners)),
    };
    format!("{source} for {repositories}, {listeners}")
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn registry_lines(config: &Config) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let plain = config.registries.iter().filter(|(_, registry)| registry.scheme == Scheme::Http);
    let plain: Vec<_> = plain.map(|(host, _)| host.as_str()).collect();
    if !plain.is_empty() {
        lines.push(("speak", format!("plain HTTP to {}", plain.join(", "))));
    }
    for (host, registry) in config.registries.iter().filter(|(_, registry)| !registry.mirrors.is_empty()) {
        let host = if host == ANY_REGISTRY { "other registries" } else { host };
        let mirrors: Vec<_> = registry.mirrors.iter().map(|mirror| mirror.url.as_str()).collect();
        lines.push(("ask", format!("{} for images of {host} first", mirrors.join(", "))));
    }
    if !config.containerd_hosts.is_empty() {
        let folders: Vec<_> =
            config.containerd_hosts.iter().map(|folder| folder.display().to_string()).collect();
        lines.push((
            "ask",
            format!("the hosts in {} for images of registries without an entry", folders.join(", ")),
        ));
    }
    for (scheme, proxy) in config.proxies.shown() {
        lines.push(("reach", format!("{scheme} servers through {proxy}, from the environment")));
    }
    for variable in &config.variables {
        lines.push(("read", format!("{variable}")));
    }
    lines
}

/// Whether the folder, or where it would be made, is on a file system in memory.
fn on_tmpfs(folder: &Path) -> bool {
    /// From Linux's `magic.h`.
    const TMPFS_MAGIC: FsWord = 0x0102_1994;
    let existing = folder.ancestors().find_map(|folder| statfs(folder).ok());
    existing.is_some_and(|stat| stat.f_type == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Loader, Overrides};

    fn report(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, text).unwrap();
        let environment = Environment { cache_directory: Some("/cache".into()), ..Environment::default() };
        let loader = Loader::new(Some(file.clone()), &environment, Overrides::default());
        Report::new(Path::new("f.yaml"), &loader.load().unwrap()).to_string()
    }

    #[test]
    fn an_agents_report_says_all_that_it_would_do() {
        let text = r#"
version: 1
listeners:
  - {address: unix:/run/xds.sock, mode: "0666", group: 1337}
  - {address: "127.0.0.1:0"}
upstream: {address: "http://127.0.0.1:15012"}
cache: {directory: /proc, max_module_bytes: 8MiB, lower: [/a, /b]}
fetch: {tag_refresh: {interval: 5m, registries: [a.io, b.io]}}
sources: {file: [/a, /b]}
registries: {a.io: {plain_http: true}, b.io: {}}
blocked_cidrs: [10.0.0.0/8]
realms: [auth.io]
credentials:
  - {for: [a.io/team, b.io], listeners: [unix:/run/xds.sock], user: puller, password_file: /pw}
  - {for: all, docker_config: /d}
credential_providers: {config: /none.yaml, bin_directory: /none, listeners: all}
health: {listen: "[::]:15074"}
admin: {listen: "unix:/run/admin.sock"}
"#;
        assert_eq!(
            report(text),
            "f.yaml: valid; `wasmferry run` would\n  \
               listen on    unix:/run/xds.sock (mode 0666, group 1337)\n  \
               listen on    127.0.0.1:0\n  \
               relay to     http://127.0.0.1:15012, without TLS\n  \
               answer       /healthz, /readyz and /metrics on [::]:15074\n  \
               answer       its administrator on unix:/run/admin.sock (mode 0600)\n  \
               hold         at most 512MiB in messages, 64MiB of them for a peer that does not read\n  \
               stop         within 10s of SIGTERM\n  \
               store        modules of at most 8MiB in /proc\n  \
               keep         at most 10GiB of them, each for 24h after its last use, and 5% of the disk free\n  \
               fetch        4 at once from one server, 32 in all, each within 2m and never 30s below 1KiB a second\n  \
               take         what other stores have: /a, /b\n  \
               follow       tags that move in a.io, b.io, looking every 5m\n  \
               pull with    puller's password in /pw for a.io/team, b.io, on unix:/run/xds.sock\n  \
               pull with    the docker config /d for whatever they are for, on no listener, in prefetch alone\n  \
               pull with    the providers of /none.yaml for whatever they are for, on every listener\n  \
               read         file:// in resources below /a, /b\n  \
               speak        plain HTTP to a.io\n  \
               block        10.0.0.0/8\n  \
               trust        auth.io as token servers of any registry\n\
             warning: listeners[0].mode: 0666 lets every user of this machine connect and be sent \
             configuration\n\
             warning: credential_providers: the credential file /none.yaml cannot be used: No such file or \
             directory (os error 2)\n"
        );
    }

    #[test]
    fn a_file_for_prefetch_says_so_and_where_modules_go() {
        let report = report("version: 1\ncache: {directory: /proc}\n");
        assert!(report.starts_with("f.yaml: valid; `wasmferry prefetch` would\n  store "), "{report}");
        assert!(report.contains("refuse       file:// in resources\n"), "{report}");
    }

    #[test]
    fn a_store_in_memory_is_told_even_before_its_folder_exists() {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let tmpfs = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let folder = fields.next()?;
            (fields.next()? == "tmpfs").then(|| Path::new(folder).join("not/there/yet"))
        });
        // Another file system may be mounted over one of them, but not over all.
        assert!(tmpfs.into_iter().any(|folder| on_tmpfs(&folder)));
        assert!(!on_tmpfs(Path::new("/proc/not/there")));
    }
}
