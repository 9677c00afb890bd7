//! What a registry asks for in a 401, and which token server it may name. Pure.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use http_auth::ChallengeParser;
use url::Url;

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// All challenges of an answer that we can meet (RFC 9110, 11.6.1): there may be several headers, and
/// several in one.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
        // After what does not parse, nothing in that header can be told apart any more.
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            let parameter = |name: &str| {
                let mut all = challenge.params.iter();
                all.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                challenges.push(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                challenges.push(Challenge::Bearer { realm, service: parameter("service") });
            }
        }
    }
    challenges
}

/// Token servers that are not their registry's own host: the registry (`*.` for any host below), and
/// the token server's host.
const WELL_KNOWN: &[(&str, &str)] = &[
    ("registry-1.docker.io", "auth.docker.io"),
    ("index.docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
    ("*.gcr.io", "gcr.io"),
    ("docker.elastic.co", "docker-auth.elastic.co"),
    ("registry.digitalocean.com", "api.digitalocean.com"),
];

/// The token server's URL, if the registry may name it: https, or http where the registry itself is
/// spoken to in plain http; on the registry's own host, on that which is known to belong to it, or on
/// one that the configuration trusts. Without this rule anyone who can answer for a registry could have
/// the credential sent to himself, or make us ask where we should not.
pub(super) fn permitted(realm: &str, registry: &Url, configured: &[String]) -> Option<Url> {
    let realm = Url::parse(realm).ok()?;
    let (host, registry_host) = (realm.host_str()?, registry.host_str()?);
    let secure = realm.scheme() == "https" || (realm.scheme() == "http" && registry.scheme() == "http");
    let known = host == registry_host
        || WELL_KNOWN.iter().any(|(pattern, server)| *server == host && names(pattern, registry_host))
        || configured.iter().any(|server| server.eq_ignore_ascii_case(host));
    let plain = realm.username().is_empty() && realm.password().is_none();
    (secure && known && plain).then_some(realm)
}

fn names(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix),
        None => host == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read_in_all_their_spellings() {
        let headers = |values: &[&str]| -> Vec<Challenge> {
            let pairs = values.iter().map(|value| (WWW_AUTHENTICATE, value.parse().unwrap()));
            let mut map = HeaderMap::new();
            pairs.for_each(|(name, value)| {
                map.append(name, value);
            });
            challenges(&map)
        };
        let both = [bearer("https://t.io/x", Some("s")), Challenge::Basic];
        assert_eq!(
            headers(&[r#"Bearer realm="https://t.io/x",service="s",scope="a:b:c""#, "Basic realm=x"]),
            both
        );
        assert_eq!(headers(&[r#"Bearer realm="https://t.io/x", service=s, Basic realm="x""#]), both);
        assert_eq!(headers(&[r#"BEARER REALM="https://t.io/x",Service=s"#, "basic"]), both);
        assert_eq!(
            headers(&["Negotiate", r#"Bearer realm="https://t.io/x""#]),
            [bearer("https://t.io/x", None)]
        );
        assert_eq!(headers(&[r#"Bearer service="s""#, "Digest realm=x", "\"", ""]), []);
    }

    #[test]
    fn a_registry_may_name_only_token_servers_of_its_own() {
        let configured = ["sso.example.com".to_owned()];
        let allowed = |realm: &str, registry: &str| {
            permitted(realm, &Url::parse(registry).unwrap(), &configured).is_some()
        };
        for (realm, registry) in [
            ("https://r.io/token", "https://r.io/v2/a"),
            ("https://R.io:8443/token", "https://r.io/v2/a"),
            ("http://127.0.0.1:5001/token", "http://127.0.0.1:5000/v2/a"),
            ("https://auth.docker.io/token", "https://registry-1.docker.io/v2/a"),
            ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com/v2/a"),
            ("https://gcr.io/v2/token", "https://eu.gcr.io/v2/a"),
            ("https://sso.example.com/token", "https://r.io/v2/a"),
        ] {
            assert!(allowed(realm, registry), "{realm} for {registry}");
        }
        for (realm, registry) in [
            ("https://evil.io/token", "https://r.io/v2/a"),
            ("http://r.io/token", "https://r.io/v2/a"),
            ("https://r.io.evil.io/token", "https://r.io/v2/a"),
            ("https://u:p@r.io/token", "https://r.io/v2/a"),
            ("https://r.io@evil.io/token", "https://r.io/v2/a"),
            ("https://auth.docker.io/token", "https://r.io/v2/a"),
            ("https://gcr.io/token", "https://evilgcr.io/v2/a"),
            ("file:///etc/passwd", "http://127.0.0.1/v2/a"),
            ("/token", "https://r.io/v2/a"),
            ("", "https://r.io/v2/a"),
        ] {
            assert!(!allowed(realm, registry), "{realm} for {registry}");
        }
    }
}
