//! What differs between two configurations, and whether a running agent can take it over.

use super::{Agent, Cache, Config, Fetch, Log, Relay, Shutdown};

/// The keys that differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// A running agent takes these over.
    pub now: Vec<&'static str>,
    /// These wait for the next start: name them in a warning.
    pub restart: Vec<&'static str>,
}

impl Changes {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.now.is_empty() && self.restart.is_empty()
    }
}

impl Config {
    /// What a running agent with the configuration `old` has to do about this one.
    pub fn changes_from(&self, old: &Self) -> Changes {
        // Taken apart whole, so that a new key cannot be forgotten here.
        let Self {
            agent,
            cache: Cache { directory, lower, max_module_bytes, max_bytes, min_free, expiry, lease, proof },
            sources,
            registries,
            containerd_hosts,
            fetch:
                Fetch {
                    timeout,
                    progress_timeout,
                    min_rate,
                    retries,
                    credential_timeout,
                    concurrency,
                    downloads,
                    hold,
                    fallback,
                    nack_fetch_failures,
                    tag_refresh,
                },
            blocked_cidrs,
            realms,
            credentials,
            credential_providers,
            programs: _,
            relay: Relay { queue_bytes, in_flight_bytes },
            wasm,
            health,
            admin,
            shutdown: Shutdown { timeout: shutdown_timeout },
            log: Log { level, format },
            // The environment does not change.
            proxies: _,
            variables: _,
        } = self;
        let listeners = |agent: &Option<Agent>| agent.as_ref().map(|agent| agent.listeners.clone());
        let upstream = |agent: &Option<Agent>| agent.as_ref().map(|agent| agent.upstream.clone());
        let now = [
            ("sources", *sources != old.sources),
            ("registries", *registries != old.registries),
            ("containerd_hosts", *containerd_hosts != old.containerd_hosts),
            ("cache.lower", *lower != old.cache.lower),
            ("cache.max_module_bytes", *max_module_bytes != old.cache.max_module_bytes),
            ("cache.max_bytes", *max_bytes != old.cache.max_bytes),
            ("cache.min_free", *min_free != old.cache.min_free),
            ("cache.expiry", *expiry != old.cache.expiry),
            ("cache.lease", *lease != old.cache.lease),
            ("cache.proof", *proof != old.cache.proof),
            ("fetch.timeout", *timeout != old.fetch.timeout),
            ("fetch.progress_timeout", *progress_timeout != old.fetch.progress_timeout),
            ("fetch.min_rate", *min_rate != old.fetch.min_rate),
            ("fetch.retries", *retries != old.fetch.retries),
            ("fetch.credential_timeout", *credential_timeout != old.fetch.credential_timeout),
            ("fetch.hold", *hold != old.fetch.hold),
            ("fetch.fallback", *fallback != old.fetch.fallback),
            ("fetch.nack_fetch_failures", *nack_fetch_failures != old.fetch.nack_fetch_failures),
            ("fetch.tag_refresh", *tag_refresh != old.fetch.tag_refresh),
            ("blocked_cidrs", *blocked_cidrs != old.blocked_cidrs),
            ("realms", *realms != old.realms),
            ("credentials", *credentials != old.credentials),
            ("credential_providers", *credential_providers != old.credential_providers),
            ("relay.queue_bytes", *queue_bytes != old.relay.queue_bytes),
            ("wasm", *wasm != old.wasm),
            ("shutdown.timeout", *shutdown_timeout != old.shutdown.timeout),
            ("log.level", *level != old.log.level),
        ];
        let restart = [
            ("listeners", listeners(agent) != listeners(&old.agent)),
            ("upstream", upstream(agent) != upstream(&old.agent)),
            ("cache.directory", *directory != old.cache.directory),
            ("fetch.concurrency", *concurrency != old.fetch.concurrency),
            ("fetch.downloads", *downloads != old.fetch.downloads),
            ("relay.in_flight_bytes", *in_flight_bytes != old.relay.in_flight_bytes),
            ("health", *health != old.health),
            ("admin", *admin != old.admin),
            ("log.format", *format != old.log.format),
        ];
        Changes { now: named(&now), restart: named(&restart) }
    }

    /// This configuration with what only a restart can change as it is in `running`.
    pub fn with_fixed_of(mut self, running: &Self) -> Self {
        self.agent.clone_from(&running.agent);
        self.cache.directory.clone_from(&running.cache.directory);
        self.fetch.concurrency = running.fetch.concurrency;
        self.fetch.downloads = running.fetch.downloads;
        self.relay.in_flight_bytes = running.relay.in_flight_bytes;
        self.health.clone_from(&running.health);
        self.admin.clone_from(&running.admin);
        self.log.format = running.log.format;
        self
    }
}

fn named(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    keys.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect()
}
