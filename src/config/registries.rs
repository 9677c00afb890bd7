//! `registries`: mirrors, and how each host is reached. A header's value may be a secret and is not shown.

use std::collections::BTreeMap;

use http::HeaderMap;
use url::Url;

use super::address::parse_host;
use super::reader::{Field, Section};
use super::schema::{list, required};
use crate::fetch::{ANY_REGISTRY, Access, KeyPair, Mirror, Registry, Scheme, header_name, header_value};

pub(super) fn registries(field: Field) -> Option<BTreeMap<String, Registry>> {
    field.into_section(|section| {
        let mut registries = BTreeMap::new();
        for (key, field) in section.take_all() {
            let host = if key == ANY_REGISTRY { Ok(key) } else { parse_host(&key) };
            match host {
                Err(why) => field.refuse_unseen(why),
                Ok(host) if registries.contains_key(&host) => {
                    field.refuse_unseen("this registry is set twice, in another spelling");
                }
                Ok(host) => {
                    let registry = field.into_section_or_empty(registry).unwrap_or_default();
                    registries.insert(host, registry);
                }
            }
        }
        registries
    })
}

fn registry(section: &mut Section) -> Registry {
    let plain_http = section.take("plain_http").and_then(Field::boolean).unwrap_or_default();
    let access = access(section);
    if plain_http && access.has_tls() {
        section.refuse("plain_http", "set together with what is for https");
    }
    Registry {
        mirrors: list(section.take("mirrors"), |item| item.into_section(mirror).flatten()),
        scheme: if plain_http { Scheme::Http } else { Scheme::Https },
        access,
    }
}

fn mirror(section: &mut Section) -> Option<Mirror> {
    let url = required(section, "url", "missing: https://HOST[:PORT][/PATH]")
        .and_then(|url| url.parsed(mirror_url));
    let access = access(section);
    let credentials = section.take("credentials").and_then(Field::boolean).unwrap_or_default();
    let url = url?;
    if url.scheme() == "http" && access.has_tls() {
        section.refuse("url", "http together with what is for https");
    }
    Some(Mirror { url, credentials, access })
}

fn mirror_url(text: &str) -> Result<Url, &'static str> {
    const WHY: &str = "not a mirror: https://HOST[:PORT][/PATH], or http:// for one without TLS";
    let url = Url::parse(text).map_err(|_| WHY)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a mirror's URL must not hold a user name or password");
    }
    let bare = url.query().is_none() && url.fragment().is_none();
    let sound =
        matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
    if bare && sound { Ok(url) } else { Err(WHY) }
}

fn access(section: &mut Section) -> Access {
    let pair = section.take("client_certificate").and_then(|field| field.into_section(key_pair).flatten());
    Access {
        ca_files: section.take("ca_file").and_then(Field::path).into_iter().collect(),
        client_certificate: pair,
        skip_verify: section.take("skip_verify").and_then(Field::boolean).unwrap_or_default(),
        headers: section.take("headers").and_then(headers).unwrap_or_default(),
        connect_timeout: None,
    }
}

fn key_pair(section: &mut Section) -> Option<KeyPair> {
    let certificate = required(section, "certificate", "missing: a file in PEM").and_then(Field::path);
    let key = required(section, "key", "missing: a file in PEM").and_then(Field::path);
    Some(KeyPair { certificate: certificate?, key: key? })
}

fn headers(field: Field) -> Option<HeaderMap> {
    field.into_section(|section| {
        let mut headers = HeaderMap::new();
        for (key, field) in section.take_all() {
            match header_name(&key) {
                Err(why) => field.refuse_unseen(why),
                Ok(name) => {
                    if let Some(value) = field.secret(header_value) {
                        headers.insert(name, value);
                    }
                }
            }
        }
        headers
    })
}
