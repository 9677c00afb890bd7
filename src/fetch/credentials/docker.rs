//! Docker configs, and the older dockercfg: the logins in them, and the helpers that they name.
//!
//! What is wrong is told by its form, and nothing of the text is repeated.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use oci_client::Reference;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::pattern::{matching, strip};
use crate::fetch::credential::{Login, secret};
use crate::secret::Secret;

/// Hub's name to docker and to its helpers.
const HUB: &str = "https://index.docker.io/v1/";

/// How many logins for one image there may be: each is tried, and may be refused.
const MAX_LOGINS: usize = 64;

/// What a text of either form says.
#[derive(Deserialize, Default)]
pub(in crate::fetch) struct DockerConfig {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
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

impl DockerConfig {
    /// Reads `{"auths": {KEY: ENTRY}}`, and the bare map that `.dockercfg` was. The error is for people.
    pub(in crate::fetch) fn parse(text: &str) -> Result<Self, &'static str> {
        const KEYS: [&str; 5] = ["auths", "credsStore", "credHelpers", "credStore", "HttpHeaders"];

        if text.trim().is_empty() {
            return Err("it is empty");
        }
        let keys: BTreeMap<String, IgnoredAny> =
            serde_json::from_str(text).map_err(|_| "it is not a JSON object")?;
        if KEYS.iter().any(|key| keys.contains_key(*key)) {
            serde_json::from_str(text).map_err(|_| "its auths are not in the form of a docker config")
        } else {
            let auths = serde_json::from_str(text);
            let auths = auths.map_err(|_| "it is neither a docker config nor a dockercfg")?;
            Ok(Self { auths: Some(auths), ..Self::default() })
        }
    }

    /// The logins for an image, the best match first.
    pub(in crate::fetch) fn logins(&self, image: &Reference) -> Result<Vec<Login>, &'static str> {
        let entries = self.auths.iter().flatten().map(|(key, entry)| (key.as_str(), entry));
        let mut logins = Vec::new();
        for entry in matching(entries, image) {
            // An empty entry only says that a credential helper holds the password.
            let Some(login) = entry.login()? else { continue };
            if logins.contains(&login) {
                continue;
            }
            if logins.len() == MAX_LOGINS {
                return Err("it has too many different logins for one image");
            }
            logins.push(login);
        }
        Ok(logins)
    }

    /// The helper that is to be asked for an image's registry in place of `auths`, as docker does it: its
    /// name, and what it is asked for.
    pub(super) fn helper(&self, image: &Reference) -> Option<(String, String)> {
        let registry = image.registry();
        let is_hub = registry == "docker.io";
        let is_its = |key: &str| {
            let key = strip(key);
            key.eq_ignore_ascii_case(registry) || (is_hub && key == "index.docker.io")
        };
        let own = self.helpers.iter().flatten().find(|(key, _)| is_its(key)).map(|(_, name)| name);
        // An empty name says that there is none for this registry.
        let name = own.or(self.store.as_ref()).filter(|name| !name.is_empty())?;
        let server = if is_hub { HUB } else { registry };
        Some((name.clone(), server.to_owned()))
    }
}

impl Entry {
    fn login(&self) -> Result<Option<Login>, &'static str> {
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
            _ => Err("an entry has only one of username and password"),
        }
    }
}

/// `auth`: base64 of `user:password`, the password sometimes followed by NULs.
fn decode(auth: &Secret) -> Result<(Secret, Secret), &'static str> {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = BASE64.decode(auth.expose().trim()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| "an auth is not base64")?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "an auth is not text")?;
    let (user, password) = text.split_once(':').ok_or("an auth is not USER:PASSWORD")?;
    Ok((Secret::new(user.to_owned()), Secret::new(password.trim_matches('\0').to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(config: &str, image: &str) -> Result<Vec<String>, &'static str> {
        let logins = DockerConfig::parse(config)?.logins(&image.parse().unwrap())?;
        let show = |login: &Login| match login {
            Login::Password { user, password } => format!("{}:{}", user.expose(), password.expose()),
            Login::Identity(token) => format!("identity {}", token.expose()),
            Login::Registry(token) => format!("registry {}", token.expose()),
        };
        Ok(logins.iter().map(show).collect())
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
    fn nobody_has_us_try_thousands_of_logins() {
        let entries = |count: usize| -> String {
            let entry = |n: usize| format!(r#""{}r.io":{{"username":"u{n}","password":"p"}}"#, "*".repeat(n));
            format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","))
        };
        assert_eq!(parsed(&entries(MAX_LOGINS), "r.io/a:v1").unwrap().len(), MAX_LOGINS);
        assert!(parsed(&entries(MAX_LOGINS + 1), "r.io/a:v1").unwrap_err().contains("too many"));
    }

    #[test]
    fn both_forms_and_all_kinds_of_entries_are_read() {
        let image = "r.io/a:v1";
        let auth = base64::engine::general_purpose::STANDARD.encode("u:p:w\0\0");
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
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_helper_is_asked_as_docker_asks_it() {
        let config = r#"{"credsStore":"all","credHelpers":{"r.io":"own","https://index.docker.io/v1/":"hub",
            "none.io":""},"auths":{}}"#;
        let config = DockerConfig::parse(config).unwrap();
        for (image, expected) in [
            ("r.io/a:v1", Some(("own", "r.io"))),
            ("r.io:5000/a:v1", Some(("all", "r.io:5000"))),
            ("x.r.io/a:v1", Some(("all", "x.r.io"))),
            ("busybox:1", Some(("hub", "https://index.docker.io/v1/"))),
            ("none.io/a:v1", None),
        ] {
            let helper = config.helper(&image.parse().unwrap());
            let helper = helper.as_ref().map(|(name, server)| (name.as_str(), server.as_str()));
            assert_eq!(helper, expected, "{image}");
        }
        assert_eq!(DockerConfig::parse("{}").unwrap().helper(&"r.io/a:v1".parse().unwrap()), None);
    }
}
