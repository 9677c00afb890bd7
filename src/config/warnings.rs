//! What is allowed and probably not meant.

use super::{Config, ListenAddress, Upstream, UpstreamAddress};
use crate::module::is_loopback;

impl Config {
    /// One sentence each, beginning with its key. For `check`, and for the log of a start.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let agent = self.agent.as_ref();
        for (index, listener) in agent.iter().flat_map(|agent| &agent.listeners).enumerate() {
            let key = format!("listeners[{index}]");
            match &listener.address {
                ListenAddress::Unix(_) if listener.mode & 0o007 != 0 => warnings.push(format!(
                    "{key}.mode: {:04o} lets every user of this machine connect and be sent configuration",
                    listener.mode
                )),
                ListenAddress::Unix(_) if listener.mode & 0o600 != 0o600 => {
                    warnings
                        .push(format!("{key}.mode: {:04o} shuts out the agent's own user", listener.mode));
                }
                ListenAddress::Tcp(address) if !address.ip().is_loopback() => warnings.push(format!(
                    "{key}.address: whoever reaches {address} is sent configuration, unencrypted"
                )),
                _ => {}
            }
            if listener.group.is_some() && listener.mode & 0o060 != 0o060 {
                warnings.push(format!(
                    "{key}.group: has no effect, since mode {:04o} does not let a group connect",
                    listener.mode
                ));
            }
        }
        if let Some(Upstream::Grpc(UpstreamAddress::Http(uri))) = agent.map(|agent| &agent.upstream)
            && !is_loopback(uri.host().unwrap_or_default())
        {
            warnings.push(
                "upstream.address: configuration, pull secrets in it, and tokens travel unencrypted to another machine"
                    .to_owned(),
            );
        }
        if let Some(ListenAddress::Tcp(address)) = self.admin.as_ref().map(|admin| &admin.listen) {
            warnings.push(match address.ip().is_loopback() {
                true => format!(
                    "admin.listen: every user of this machine reaches {address}; a unix socket has mode 0600"
                ),
                false => {
                    format!("admin.listen: whoever reaches {address} is an administrator; use a unix socket")
                }
            });
        }
        if self.sources.file.iter().any(|folder| folder.parent().is_none()) {
            warnings.push("sources.file: a resource may read every file that the agent can".to_owned());
        }
        for (host, registry) in &self.registries {
            let key = format!("registries.{host}");
            let hosts = registry.mirrors.iter().map(|mirror| (mirror.url.as_str(), &mirror.access));
            for (host, access) in hosts.chain([(host.as_str(), &registry.access)]) {
                if access.skip_verify {
                    warnings.push(format!("{key}: whoever answers for {host} is believed to be it"));
                }
            }
            for mirror in registry.mirrors.iter().filter(|mirror| mirror.credentials) {
                if mirror.url.scheme() == "http" {
                    warnings.push(format!("{key}: credentials travel unencrypted to {}", mirror.url));
                }
            }
        }
        if !self.proxies.is_empty() {
            warnings.push(
                "proxies: behind them only addresses that stand in a URL can be checked, names cannot; the \
                 proxy has to keep resources away from your networks"
                    .to_owned(),
            );
        }
        warnings
    }
}
