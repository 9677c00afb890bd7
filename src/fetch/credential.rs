//! Which credential a pull has: out of the text of a docker config or the older dockercfg, matched with
//! the image as the kubelet does it.
//!
//! Errors say what is wrong with the text's form and repeat nothing of it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};
use oci_client::Reference;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::error::FetchError;
use crate::secret::Secret;

/// What a request may prove itself with: nothing, or one or more logins to try in turn.
#[derive(Clone, Default)]
pub struct Credential {
    logins: Vec<Login>,
}

/// One way to prove who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: Secret,
        password: Secret,
    },
    /// A refresh token, to be exchanged at the token server.
    Identity(Secret),
    /// A bearer token, to be used as it is.
    Registry(Secret),
}

impl Credential {
    /// No credential.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The logins of a docker config or dockercfg for an image, the best match first. None where no
    /// entry matches.
    pub(super) fn from_docker_config(text: &Secret, image: &Reference) -> Result<Self, FetchError> {
        let entries = parse(text.expose())?;
        let mut logins = Vec::new();
        for entry in matching(&entries, image) {
            // An empty entry only says that a credential helper holds the password.
            let Some(login) = entry.login()? else { continue };
            if !logins.contains(&login) {
                logins.push(login);
            }
        }
        Ok(Self { logins })
    }

    /// Bytes that tell credentials apart, to be hashed with a key; none for anonymous.
    pub fn identity(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(Vec::new());
        for login in &self.logins {
            login.write_identity(&mut bytes);
        }
        (!bytes.is_empty()).then_some(bytes)
    }

    pub(super) fn logins(&self) -> &[Login] {
        &self.logins
    }
}

impl Login {
    /// Appends bytes that no other login has.
    pub(super) fn write_identity(&self, bytes: &mut Vec<u8>) {
        let (tag, parts) = match self {
            Login::Password { user, password } => (b'p', vec![user, password]),
            Login::Identity(token) => (b'i', vec![token]),
            Login::Registry(token) => (b'r', vec![token]),
        };
        bytes.push(tag);
        for part in parts {
            bytes.extend_from_slice(&(part.expose().len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.expose().as_bytes());
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.logins.is_empty() { "Credential(anonymous)" } else { "Credential(..)" })
    }
}

/// One entry of `auths`.
#[derive(Deserialize)]
struct Entry {
    #[serde(default, deserialize_with = "secret")]
    auth: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    username: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    identitytoken: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    registrytoken: Option<Secret>,
}

/// Reads a text that must not be seen; an empty one is none.
pub(super) fn secret<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Secret>, D::Error> {
    let text = Option::<String>::deserialize(input)?.map(Secret::new);
    Ok(text.filter(|secret| !secret.expose().is_empty()))
}

/// Both forms: `{"auths": {KEY: ENTRY}}`, and the bare map that `.dockercfg` was.
fn parse(text: &str) -> Result<BTreeMap<String, Entry>, FetchError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        auths: Option<BTreeMap<String, Entry>>,
    }
    const CONFIG_KEYS: [&str; 5] = ["auths", "credsStore", "credHelpers", "credStore", "HttpHeaders"];

    if text.trim().is_empty() {
        return Err(FetchError::BadSecret("it is empty"));
    }
    let keys: BTreeMap<String, IgnoredAny> =
        serde_json::from_str(text).map_err(|_| FetchError::BadSecret("it is not a JSON object"))?;
    if CONFIG_KEYS.iter().any(|key| keys.contains_key(*key)) {
        let config: Config = serde_json::from_str(text)
            .map_err(|_| FetchError::BadSecret("its auths are not in the form of a docker config"))?;
        Ok(config.auths.unwrap_or_default())
    } else {
        serde_json::from_str(text)
            .map_err(|_| FetchError::BadSecret("it is neither a docker config nor a dockercfg"))
    }
}

impl Entry {
    fn login(&self) -> Result<Option<Login>, FetchError> {
        if let Some(token) = &self.registrytoken {
            return Ok(Some(Login::Registry(token.clone())));
        }
        if let Some(token) = &self.identitytoken {
            return Ok(Some(Login::Identity(token.clone())));
        }
        if let Some(auth) = &self.auth {
            let (user, password) = decode(auth)?;
            return Ok(Some(Login::Password { user, password }));
        }
        match (&self.username, &self.password) {
            (None, None) => Ok(None),
            (Some(user), Some(password)) => {
                Ok(Some(Login::Password { user: user.clone(), password: password.clone() }))
            }
            _ => Err(FetchError::BadSecret("an entry has only one of username and password")),
        }
    }
}

/// `auth`: base64 of `user:password`, the password sometimes followed by NULs.
fn decode(auth: &Secret) -> Result<(Secret, Secret), FetchError> {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = BASE64.decode(auth.expose().trim()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| FetchError::BadSecret("an auth is not base64"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| FetchError::BadSecret("an auth is not text"))?;
    let (user, password) =
        text.split_once(':').ok_or(FetchError::BadSecret("an auth is not USER:PASSWORD"))?;
    Ok((Secret::new(user.to_owned()), Secret::new(password.trim_matches('\0').to_owned())))
}

/// The value of an `Authorization: Basic` header, without the scheme.
pub(super) fn basic(user: &Secret, password: &Secret) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{}:{}", user.expose(), password.expose()));
    Zeroizing::new(general_purpose::STANDARD.encode(pair.as_bytes()))
}

/// The entries that match an image, in the kubelet's order: keys sorted backwards, so that of two that
/// match the longer comes first. An image of Docker Hub that nothing matches has Hub's own old key.
fn matching<'a>(entries: &'a BTreeMap<String, Entry>, image: &Reference) -> Vec<&'a Entry> {
    let mut keys: Vec<(String, &Entry)> = entries.iter().map(|(key, entry)| (strip(key), entry)).collect();
    keys.sort_by(|(a, _), (b, _)| b.cmp(a));
    let found = |registry: &str| -> Vec<&'a Entry> {
        let matches = keys.iter().filter(|(key, _)| covers(key, registry, image.repository()));
        matches.map(|(_, entry)| *entry).collect()
    };
    let mut matches = found(image.registry());
    if matches.is_empty() && image.registry() == "docker.io" {
        matches = found("index.docker.io");
    }
    matches
}

/// A key without its scheme and the `/v1/` or `/v2/` of an API.
fn strip(key: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(config: &str, image: &str) -> Result<Vec<String>, FetchError> {
        let credential =
            Credential::from_docker_config(&Secret::new(config.to_owned()), &image.parse().unwrap())?;
        let show = |login: &Login| match login {
            Login::Password { user, password } => format!("{}:{}", user.expose(), password.expose()),
            Login::Identity(token) => format!("identity {}", token.expose()),
            Login::Registry(token) => format!("registry {}", token.expose()),
        };
        Ok(credential.logins().iter().map(show).collect())
    }

    /// A docker config whose entries' user is their key.
    fn users(keys: &[&str], image: &str) -> Vec<String> {
        let entries: BTreeMap<_, _> =
            keys.iter().map(|key| (key, BTreeMap::from([("username", *key), ("password", "p")]))).collect();
        let config = serde_json::json!({ "auths": entries }).to_string();
        let logins = parsed(&config, image).unwrap();
        logins.into_iter().map(|login| login.strip_suffix(":p").unwrap().to_owned()).collect()
    }

    #[test]
    fn keys_match_as_they_do_in_the_kubelet() {
        for (key, image, expected) in [
            ("r.io", "r.io/a/b:v1", true),
            ("https://r.io", "r.io/a/b:v1", true),
            ("http://r.io/v2/", "r.io/a/b:v1", true),
            ("https://r.io/v1/", "r.io/a/b:v1", true),
            ("r.io/v2/a", "r.io/a/b:v1", true),
            ("r.io/a", "r.io/a/b:v1", true),
            ("r.io/a/b", "r.io/a/b:v1", true),
            ("r.io/c", "r.io/a/b:v1", false),
            ("r.io/b", "r.io/a/b:v1", false),
            ("*.r.io", "x.r.io/a:v1", true),
            ("*.r.io", "r.io/a:v1", false),
            ("*.r.io", "x.y.r.io/a:v1", false),
            ("*.*.r.io", "x.y.r.io/a:v1", true),
            ("us-*.pkg.dev", "us-docker.pkg.dev/a/b:v1", true),
            ("x?.r.io", "x1.r.io/a:v1", true),
            ("*", "r.io/a:v1", false),
            ("r.io:5000", "r.io:5000/a:v1", true),
            ("r.io", "r.io:5000/a:v1", false),
            ("r.io:5000", "r.io/a:v1", false),
            ("evil.io", "r.io/a:v1", false),
            ("https://index.docker.io/v1/", "busybox:1", true),
            ("docker.io", "user/image:1", true),
            ("index.docker.io", "r.io/a:v1", false),
        ] {
            assert_eq!(!users(&[key], image).is_empty(), expected, "{key} for {image}");
        }
    }

    #[test]
    fn all_matches_are_tried_the_most_specific_first() {
        let keys = ["*.io", "r.io", "r.io/a", "r.io/a/b", "s.io"];
        assert_eq!(users(&keys, "r.io/a/b:v1"), ["r.io/a/b", "r.io/a", "r.io", "*.io"]);
    }

    #[test]
    fn both_forms_and_all_kinds_of_entries_are_read() {
        let image = "r.io/a:v1";
        let auth = general_purpose::STANDARD.encode("u:p:w\0\0");
        for (entry, expected) in [
            (format!(r#"{{"auth":"{auth}"}}"#), vec!["u:p:w"]),
            (format!(r#"{{"auth":"{}","email":"e"}}"#, auth.trim_end_matches('=')), vec!["u:p:w"]),
            (r#"{"username":"u","password":"p"}"#.to_owned(), vec!["u:p"]),
            (r#"{"auth":"","identitytoken":"t"}"#.to_owned(), vec!["identity t"]),
            (r#"{"registrytoken":"t"}"#.to_owned(), vec!["registry t"]),
            ("{}".to_owned(), vec![]),
        ] {
            let config = format!(r#"{{"auths":{{"r.io":{entry}}},"credsStore":"desktop"}}"#);
            assert_eq!(parsed(&config, image).unwrap(), expected, "{entry}");
            let dockercfg = format!(r#"{{"r.io":{entry}}}"#);
            assert_eq!(parsed(&dockercfg, image).unwrap(), expected, "{entry}");
        }
        assert!(parsed(r#"{"credsStore":"desktop"}"#, image).unwrap().is_empty());
        assert!(parsed("{}", image).unwrap().is_empty());
    }

    #[test]
    fn a_malformed_secret_is_an_error_that_shows_nothing_of_it() {
        for config in [
            "hunter2",
            " ",
            r#"["hunter2"]"#,
            r#"{"auths":"hunter2"}"#,
            r#"{"auths":{"r.io":"hunter2"}}"#,
            r#"{"auths":{"r.io":{"auth":"hunter2!"}}}"#,
            r#"{"auths":{"r.io":{"auth":"aHVudGVyMg=="}}}"#,
            r#"{"auths":{"r.io":{"password":"hunter2"}}}"#,
            r#"{"auths":{"r.io":{"auth":["hunter2"]}}}"#,
            r#"{"r.io":"hunter2"}"#,
        ] {
            let error = parsed(config, "r.io/a:v1").unwrap_err();
            assert_eq!(error.label(), "bad_secret", "{config}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn credentials_are_told_apart_and_do_not_print() {
        let credential = |user: &str, password: &str| {
            let config = serde_json::json!({"auths": {"r.io": {"username": user, "password": password}}});
            let image = "r.io/a:v1".parse().unwrap();
            Credential::from_docker_config(&Secret::new(config.to_string()), &image).unwrap()
        };
        assert_eq!(Credential::anonymous().identity(), None);
        assert_eq!(credential("a", "b").identity(), credential("a", "b").identity());
        assert_ne!(credential("a", "bc").identity(), credential("ab", "c").identity());
        assert!(!format!("{:?}", credential("hunter1", "hunter2")).contains("hunter"));
    }
}
