//! Which images a key is for, as the kubelet sees it. Pure.

use oci_client::Reference;

/// Of these keyed things those whose key matches an image, in the kubelet's order: keys sorted backwards, so
/// that of two that match the longer comes first. An image of Docker Hub that nothing matches has Hub's own
/// old key.
pub(super) fn matching<'a, T>(keyed: impl Iterator<Item = (&'a str, T)>, image: &Reference) -> Vec<T> {
    let mut keyed: Vec<(String, T)> = keyed.map(|(key, value)| (strip(key), value)).collect();
    keyed.sort_by(|(a, _), (b, _)| b.cmp(a));
    let is_for = |key: &str, registry: &str| covers(key, registry, image.repository());
    let mut registry = image.registry();
    if registry == "docker.io" && !keyed.iter().any(|(key, _)| is_for(key, registry)) {
        registry = "index.docker.io";
    }
    keyed.into_iter().filter(|(key, _)| is_for(key, registry)).map(|(_, value)| value).collect()
}

/// Whether one of these keys matches an image.
pub(super) fn any_matches<'a>(keys: impl Iterator<Item = &'a str>, image: &Reference) -> bool {
    !matching(keys.map(|key| (key, ())), image).is_empty()
}

/// A key without its scheme and the `/v1/` or `/v2/` of an API.
pub(super) fn strip(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = match path {
        "v1" | "v2" => "",
        path => path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path),
    };
    match path {
        "" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

/// Whether a stripped key covers a repository: equal ports, as many host parts and each a glob for its
/// fellow, and the path a plain prefix (so `r.io/team` covers `r.io/teams/x`, as in the kubelet).
fn covers(key: &str, registry: &str, repository: &str) -> bool {
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let ((key_host, key_port), (host, port)) = (split_port(host), split_port(registry));
    let (key_parts, parts): (Vec<&str>, Vec<&str>) =
        (key_host.split('.').collect(), host.split('.').collect());
    key_port == port
        && key_parts.len() == parts.len()
        && key_parts.iter().zip(&parts).all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
        && repository.starts_with(path)
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (host, None),
    }
}

/// `*` for any bytes and `?` for one, ignoring the case of letters.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on from when a guess at the last star's length fails.
    let (mut p, mut t, mut retry) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || text.get(t).is_some_and(|b| b.eq_ignore_ascii_case(c)) => {
                (p, t) = (p + 1, t + 1);
            }
            _ => match retry {
                Some((star, start)) => {
                    retry = Some((star, start + 1));
                    (p, t) = (star + 1, start + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}
