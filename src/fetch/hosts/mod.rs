//! Whom the images of a registry are asked of: its mirrors in turn and the registry itself, as the
//! configuration says, or as containerd's folders do (`containerd.rs`). Both are looked at for every pull,
//! so that what changes there holds for the next one.
//!
//! Knows no connection; what a host's certificates are is read by `tls`.

mod containerd;
mod doubts;
mod toml;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use url::Url;

pub(super) use self::doubts::{Doubt, Doubts};
pub use self::toml::{go_duration, header_name, header_value};
use super::error::FetchError;
use crate::module::is_loopback;

/// The entry of [`Registries`](Registry) for those that have none of their own.
pub const DEFAULT: &str = "*";

/// What is special about a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// Asked in this order, before the registry itself.
    pub mirrors: Vec<Mirror>,
    pub scheme: Scheme,
    pub access: Access,
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scheme {
    #[default]
    Https,
    Http,
    /// In http where https fails: the configuration allows both.
    HttpsThenHttp,
}

/// A host that has images of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// http or https, without user, query and fragment. `/v2` is added to a path that does not name it.
    pub url: Url,
    /// What may be pulled from the registry with is sent here too.
    pub credentials: bool,
    pub access: Access,
}

/// How a host is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Files in PEM with certificates that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    pub client_certificate: Option<KeyPair>,
    /// Believe whatever certificate is shown.
    pub skip_verify: bool,
    /// Sent with every request to this host.
    pub headers: HeaderMap,
    /// The limit of each step of a connection, where it is less than that of all.
    pub connect_timeout: Option<Duration>,
}

impl Access {
    /// Whether something in it is for https alone.
    pub fn has_tls(&self) -> bool {
        self.skip_verify || !self.ca_files.is_empty() || self.client_certificate.is_some()
    }
}

/// Files in PEM. The key may be in the certificate's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// One host that an image can be had from.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// What repositories are below: `https://HOST/v2/`.
    base: Url,
    /// The registry that is meant, for a host that is another one.
    pub(super) namespace: Option<String>,
    /// Whether it is sent what may be pulled with.
    pub(super) credentials: bool,
    /// Whether it may be asked for manifests by digest and for layers.
    pub(super) pull: bool,
    /// Whether it may be asked what a tag is.
    pub(super) resolve: bool,
    pub(super) access: Arc<Access>,
}

impl Endpoint {
    /// A host that may be asked for everything. None where the URL is of no host.
    fn new(mut url: Url, registry: &str, access: Arc<Access>) -> Option<Self> {
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let host = authority(&url)?;
        let own = host == registry || host == HUB.1 && registry == HUB.0;
        let namespace = (!own).then(|| registry.to_owned());
        Some(Endpoint { base: url, credentials: own, namespace, pull: true, resolve: true, access })
    }

    /// `SCHEME://HOST/v2/NAME/`, and the repository's name as this host knows it, which is what it names
    /// in a token's scope: all that follows `/v2/`.
    pub(super) fn repository(&self, name: &str) -> Option<(Url, String)> {
        let url = self.base.join(&format!("{name}/")).ok()?;
        let known = url.path().split_once("/v2/").map_or(name, |(_, known)| known.trim_end_matches('/'));
        let known = known.to_owned();
        Some((url, known))
    }

    /// Host and perhaps port, for messages.
    pub(super) fn host(&self) -> String {
        authority(&self.base).unwrap_or_default()
    }

    /// Tells it apart from others.
    pub(super) fn key(&self) -> &str {
        self.base.as_str()
    }
}

/// Where the images of docker.io are.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Whom to ask for the images of a registry (`HOST[:PORT]`), in order. Never none, unless the
/// configuration leaves none.
pub(super) async fn endpoints(
    registries: &BTreeMap<String, Registry>,
    folders: &[PathBuf],
    registry: &str,
) -> Result<Vec<Arc<Endpoint>>, FetchError> {
    let registry = registry.to_ascii_lowercase();
    let configured = |key: &str| {
        registries.get(key).map(|entry| match (key, entry.scheme) {
            // What holds for all registries takes nothing away from one on loopback.
            (DEFAULT, Scheme::Https) => entry.endpoints(&registry, default_scheme(&registry)),
            (_, scheme) => entry.endpoints(&registry, scheme),
        })
    };
    let found = match configured(&registry) {
        Some(endpoints) => Some(endpoints),
        None => match containerd::endpoints(folders, &registry, false).await? {
            Some(endpoints) => Some(endpoints),
            None => match configured(DEFAULT) {
                Some(endpoints) => Some(endpoints),
                None => containerd::endpoints(folders, &registry, true).await?,
            },
        },
    };
    let endpoints = found.unwrap_or_else(|| own(&registry, default_scheme(&registry), Arc::default()));
    Ok(endpoints.into_iter().map(Arc::new).collect())
}

impl Registry {
    fn endpoints(&self, registry: &str, scheme: Scheme) -> Vec<Endpoint> {
        let mirrors = self.mirrors.iter().filter_map(|mirror| {
            let access = Arc::new(mirror.access.clone());
            let endpoint = Endpoint::new(with_version(mirror.url.clone()), registry, access)?;
            let credentials = endpoint.credentials || mirror.credentials;
            Some(Endpoint { credentials, ..endpoint })
        });
        let mut endpoints: Vec<_> = mirrors.collect();
        endpoints.extend(own(registry, scheme, Arc::new(self.access.clone())));
        endpoints
    }
}

/// The registry itself.
fn own(registry: &str, scheme: Scheme, access: Arc<Access>) -> Vec<Endpoint> {
    let host = if registry == HUB.0 { HUB.1 } else { registry };
    let schemes: &[&str] = match scheme {
        Scheme::Https => &["https"],
        Scheme::Http => &["http"],
        Scheme::HttpsThenHttp => &["https", "http"],
    };
    // `set_scheme` would lose an explicit port 443, so each URL is read anew.
    let urls = schemes.iter().filter_map(|scheme| Url::parse(&format!("{scheme}://{host}/v2/")).ok());
    // Of a URL's default port nothing is left, though it may be the registry's spelling.
    let endpoint = |url| Endpoint::new(url, registry, access.clone());
    let endpoints = urls.filter_map(endpoint);
    endpoints.map(|endpoint| Endpoint { credentials: true, namespace: None, ..endpoint }).collect()
}

/// How a registry is spoken to that nothing names: in http on loopback, as docker and crane do it.
fn default_scheme(registry: &str) -> Scheme {
    if is_loopback(registry) { Scheme::Http } else { Scheme::Https }
}

/// As containerd does, `/v2` stands at the end of every path that does not say otherwise.
fn with_version(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/').to_owned();
    if !path.split('/').any(|part| part == "v2") {
        url.set_path(&format!("{path}/v2/"));
    }
    url
}

#[cfg(test)]
mod tests;
