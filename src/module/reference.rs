//! Reads an OCI reference: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, by the grammar of the
//! distribution specification (<https://github.com/opencontainers/distribution-spec>).
//!
//! By hand, since the regular expression that `oci_client` reads references with takes 18 MiB for
//! good once it is compiled, and knows no IPv6 hosts.

use std::net::Ipv6Addr;

use oci_client::Reference;

use crate::digest::SourceDigest;

/// What docker means where no host is given.
const DEFAULT_HOST: &str = "docker.io";
/// The longest repository with its host, as registries enforce it.
const MAX_NAME: usize = 255;

/// Reads a reference. Neither tag nor digest means the tag `latest`, as everywhere.
pub(super) fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| digest.parse::<SourceDigest>().is_err()) {
        return Err("the digest is not `sha256:` and 64 lower-case hex digits");
    }
    let (host, path) = split_host(rest);
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, None),
    };
    if !is_host(host) {
        return Err("the host is not a name or address with or without a port");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is not 1 to 128 letters, digits, `_`, `.` and `-`");
    }
    if host.len() + 1 + repository.len() > MAX_NAME || !repository.split('/').all(is_component) {
        return Err("the repository is not lower-case names with `/` between them");
    }
    let (host, mut repository) = (host.to_owned(), repository.to_owned());
    if host == DEFAULT_HOST && !repository.contains('/') {
        repository = format!("library/{repository}");
    }
    Ok(match (tag.map(str::to_owned), digest.map(str::to_owned)) {
        (None, None) => Reference::with_tag(host, repository, "latest".to_owned()),
        (Some(tag), None) => Reference::with_tag(host, repository, tag),
        (None, Some(digest)) => Reference::with_digest(host, repository, digest),
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(host, repository, tag, digest),
    })
}

/// The first part is a host where it looks like one; docker's rule.
fn split_host(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':', '[']) => {
            (if host == "index.docker.io" { DEFAULT_HOST } else { host }, path)
        }
        _ => (DEFAULT_HOST, text),
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            ("", port.strip_prefix(':').or(port.is_empty().then_some("1")))
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, Some("1")),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+');
    (text.starts_with('[') || name.split('.').all(label)) && port.is_some_and(is_port)
}

pub(super) fn is_tag(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=128).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(inner)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_well = text.starts_with(alphanumeric) && text.ends_with(alphanumeric);
    ends_well
        && text
            .split(alphanumeric)
            .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, whole) in [
            ("ghcr.io/a/b:v1".to_owned(), "ghcr.io/a/b:v1".to_owned()),
            ("a".to_owned(), "docker.io/library/a:latest".to_owned()),
            ("a/b".to_owned(), "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/a".to_owned(), "docker.io/library/a:latest".to_owned()),
            ("localhost/a:1".to_owned(), "localhost/a:1".to_owned()),
            ("127.0.0.1:5000/a__b/c-d.e:T_1".to_owned(), "127.0.0.1:5000/a__b/c-d.e:T_1".to_owned()),
            ("[::1]:5000/a:1".to_owned(), "[::1]:5000/a:1".to_owned()),
            (format!("r.io/a@{digest}"), format!("r.io/a@{digest}")),
            (format!("r.io/a:1@{digest}"), format!("r.io/a:1@{digest}")),
        ] {
            assert_eq!(parse(&text).map(|reference| reference.whole()), Ok(whole), "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("r.io/{}", "a".repeat(255));
        for text in [
            "",
            "/",
            "r.io/",
            "r.io/A",
            "r.io/a:",
            "r.io/a:.x",
            "r.io/a b",
            "r.io//a",
            "r.io/a/",
            "r.io/../a",
            "r.io/a..b",
            "r.io/a___b",
            "r.io/-a",
            "r.io:0/a",
            "r.io:99999/a",
            "r.io:/a",
            "-r.io/a",
            "[::x]/a",
            "[::1]5000/a",
            "r.io/a@sha256:00",
            "r.io/a@md5:00",
            "r.io/a?x=1",
            &long,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn valid_references_read_as_the_client_library_reads_them() {
        for text in ["ghcr.io/a/b:v1", "a", "a/b:1", "localhost:5000/a", "r.io/a--b/c_d:x-1.2"] {
            assert_eq!(parse(text).ok(), text.parse().ok(), "{text}");
        }
    }
}
