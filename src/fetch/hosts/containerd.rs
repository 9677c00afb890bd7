//! containerd's folders of hosts (`certs.d`): a folder for each registry, with a `hosts.toml`, or with
//! certificates as docker has them. Layout and meaning are those of containerd's `docs/hosts.md`.
//!
//! Where containerd goes on without a `hosts.toml` that it cannot read, here the pull fails: one that
//! leaves the registry itself out must not lead there because of a slip.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::toml::{self, Host};
use super::{Access, Endpoint, HUB, KeyPair, Scheme, default_scheme, own};
use crate::fetch::error::FetchError;
use crate::fetch::files::read_small;

const FILE: &str = "hosts.toml";
const DEFAULT: &str = "_default";
/// More entries of a folder than this are not looked at.
const MAX_ENTRIES: usize = 1024;

/// What the first of the folders that speaks of the registry says; for `all`, of all registries.
pub(super) async fn endpoints(
    folders: &[PathBuf],
    registry: &str,
    all: bool,
) -> Result<Option<Vec<Endpoint>>, FetchError> {
    if folders.is_empty() {
        return Ok(None);
    }
    let names = if all { vec![DEFAULT.to_owned()] } else { names(registry) };
    let (folders, registry) = (folders.to_vec(), registry.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let folders = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
        let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) else { return Ok(None) };
        read(&folder, &registry).map(Some)
    });
    reading.await.map_err(|_| FetchError::Interrupted)?
}

/// What a registry's folder may be called.
fn names(registry: &str) -> Vec<String> {
    // Of an IPv6 address the last part is no port.
    let port = registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let mut names: Vec<_> = port.map(|(host, port)| format!("{host}_{port}_")).into_iter().collect();
    names.push(registry.to_owned());
    names
}

fn read(folder: &Path, registry: &str) -> Result<Vec<Endpoint>, FetchError> {
    let file = folder.join(FILE);
    let failed = |why: String| FetchError::Hosts { path: file.clone(), why };
    let text = match read_small(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
        Err(error) => return Err(failed(format!("cannot be read: {error}"))),
    };
    if text.is_empty() {
        let access = certificates(folder).map_err(|error| failed(format!("cannot be read: {error}")))?;
        return Ok(root(registry, access));
    }
    let text = std::str::from_utf8(&text).map_err(|_| failed("is not UTF-8".to_owned()))?;
    let hosts = toml::parse(text, folder).map_err(failed)?;
    let mut endpoints = Vec::new();
    for host in hosts {
        endpoints.extend(of_host(host, registry));
    }
    // Pushing is nothing that is done here.
    endpoints.retain(|endpoint| endpoint.pull);
    if endpoints.is_empty() {
        return Err(failed(format!("leaves no host to pull {registry} from")));
    }
    Ok(endpoints)
}

/// The endpoints of one host: two where http and TLS are both configured, as containerd tries them.
fn of_host(host: Host, registry: &str) -> Vec<Endpoint> {
    let Host { url, capabilities, access } = host;
    let Some(mut url) = url else { return root(registry, access) };
    if url.host_str() == Some(HUB.0) && url.set_host(Some(HUB.1)).is_err() {
        return Vec::new();
    }
    let mut urls = vec![url.clone()];
    if url.scheme() == "http" && access.has_tls() && url.port_or_known_default() != Some(80) {
        let secured = url.as_str().replacen("http:", "https:", 1);
        urls.extend(url::Url::parse(&secured));
        urls.reverse();
    }
    let access = Arc::new(access);
    let endpoints = urls.into_iter().filter_map(|url| Endpoint::new(url, registry, access.clone()));
    endpoints
        .map(|endpoint| Endpoint { pull: capabilities.pull, resolve: capabilities.resolve, ..endpoint })
        .collect()
}

/// The registry itself, with what stands at the root of its file.
fn root(registry: &str, access: Access) -> Vec<Endpoint> {
    let scheme = match default_scheme(registry) {
        Scheme::Http if access.has_tls() => Scheme::HttpsThenHttp,
        scheme => scheme,
    };
    own(registry, scheme, Arc::new(access))
}

/// Docker's layout: `*.crt` are authorities, `*.cert` ours, each with its `*.key`.
fn certificates(folder: &Path) -> io::Result<Access> {
    let mut access = Access::default();
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        names.push(entry?.path());
    }
    names.sort();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => access.ca_files.push(path),
            Some("cert") if access.client_certificate.is_none() => {
                let key = path.with_extension("key");
                let key = if key.exists() { key } else { path.clone() };
                access.client_certificate = Some(KeyPair { certificate: path, key });
            }
            _ => {}
        }
    }
    Ok(access)
}
