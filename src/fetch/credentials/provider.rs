//! The kubelet's credential providers: its CredentialProviderConfig (`kubelet.config.k8s.io/v1`), and the
//! requests and responses of its exec protocol (`credentialprovider.kubelet.k8s.io/v1`). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::fetch::credential::{Login, secret};
use crate::secret::Secret;
use crate::yaml::{Entry, Node, Value};

const CONFIG_VERSION: &str = "kubelet.config.k8s.io/v1";
const PROTOCOL: &str = "credentialprovider.kubelet.k8s.io/v1";

/// One program that the kubelet would ask.
#[derive(Debug, Clone)]
pub(super) struct Provider {
    pub(super) name: String,
    pub(super) match_images: Vec<String>,
    /// How long an answer is good that does not say it.
    pub(super) cache_duration: Duration,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, Secret)>,
}

/// For which images an answer is good too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum CacheKey {
    Image,
    Registry,
    Global,
}

/// What a provider answers.
pub(super) struct Response {
    pub(super) key: CacheKey,
    /// None is not to be kept at all.
    pub(super) duration: Option<Duration>,
    /// By the images that they are for.
    pub(super) logins: Vec<(String, Login)>,
}

/// Reads a CredentialProviderConfig, as strictly as the kubelet does. The error is for people; it names the
/// place and never a value of `env`.
pub(in crate::fetch) fn read(text: &str) -> Result<Vec<Provider>, String> {
    let root = Node::parse(text).map_err(|error| match error.line {
        Some(line) => format!("line {line}: {}", error.why),
        None => error.why,
    })?;
    let mut root = Map::of(root, "the document")?;
    for (key, expected) in [("apiVersion", CONFIG_VERSION), ("kind", "CredentialProviderConfig")] {
        if root.text(key)?.as_deref() != Some(expected) {
            return Err(format!("its {key} is not {expected}, which is all that is understood"));
        }
    }
    let providers = root.list("providers")?;
    root.end()?;
    let mut names = BTreeSet::new();
    let mut read = Vec::new();
    for (index, node) in providers.into_iter().enumerate() {
        let provider = provider(Map::of(node, format!("providers[{index}]"))?)?;
        if !names.insert(provider.name.clone()) {
            return Err(format!("two providers have the name {}", provider.name));
        }
        read.push(provider);
    }
    match read.is_empty() {
        true => Err("it names no providers".to_owned()),
        false => Ok(read),
    }
}

fn provider(mut map: Map) -> Result<Provider, String> {
    let missing = |map: &Map, key: &str| format!("{}.{key} is missing", map.place);
    let name = map.text("name")?.ok_or_else(|| missing(&map, "name"))?;
    if !is_program_name(&name) {
        return Err(format!("{}.name is not the name of a program in bin_directory", map.place));
    }
    if map.take("tokenAttributes").is_some_and(|value| !matches!(value.value, Value::Null)) {
        return Err(format!(
            "{}.tokenAttributes: the provider {name} wants a token of the pod's service account, which is not \
             to be had here",
            map.place
        ));
    }
    match map.text("apiVersion")?.as_deref() {
        Some(PROTOCOL) => {}
        _ => return Err(format!("{}.apiVersion is not {PROTOCOL}, which is all that is spoken", map.place)),
    }
    let match_images = map.texts("matchImages")?;
    if match_images.is_empty() {
        return Err(missing(&map, "matchImages"));
    }
    let duration = map.text("defaultCacheDuration")?.ok_or_else(|| missing(&map, "defaultCacheDuration"))?;
    let cache_duration = parse_duration(&duration)
        .ok_or_else(|| format!("{}.defaultCacheDuration is not a duration, as in 12h", map.place))?;
    let args = map.texts("args")?;
    let mut env = Vec::new();
    for (index, node) in map.list("env")?.into_iter().enumerate() {
        let mut entry = Map::of(node, format!("{}.env[{index}]", map.place))?;
        let name = entry.text("name")?.filter(|name| !name.is_empty() && !name.contains(['=', '\0']));
        let name = name.ok_or_else(|| format!("{}.name is no name of a variable", entry.place))?;
        let value = Secret::new(entry.text("value")?.unwrap_or_default());
        if value.expose().contains('\0') {
            return Err(format!("{}.value cannot be a value of a variable", entry.place));
        }
        entry.end()?;
        env.push((name, value));
    }
    map.end()?;
    Ok(Provider { name, match_images, cache_duration, args, env })
}

impl Provider {
    /// A hash that no other configured provider has: its right, whatever it answers.
    pub(super) fn right(&self, bin_directory: &Path) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |text: &[u8]| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        part(b"provider");
        part(bin_directory.as_os_str().as_encoded_bytes());
        part(self.name.as_bytes());
        part(&(self.args.len() as u64).to_be_bytes());
        self.args.iter().for_each(|arg| part(arg.as_bytes()));
        for (name, value) in &self.env {
            part(name.as_bytes());
            part(value.expose().as_bytes());
        }
        hash.finalize().into()
    }

    /// What it is asked on its standard input.
    pub(super) fn request(image: &str) -> Zeroizing<Vec<u8>> {
        let request = serde_json::json!({ "apiVersion": PROTOCOL, "kind": "CredentialProviderRequest", "image": image });
        Zeroizing::new(request.to_string().into_bytes())
    }

    /// Reads what it answers. The error says what is wrong and nothing of what it said.
    pub(super) fn response(&self, output: &[u8]) -> Result<Response, &'static str> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            api_version: String,
            kind: String,
            cache_key_type: CacheKey,
            cache_duration: Option<String>,
            #[serde(default)]
            auth: Option<BTreeMap<String, Auth>>,
        }
        #[derive(Deserialize)]
        struct Auth {
            #[serde(default, deserialize_with = "secret")]
            username: Option<Secret>,
            #[serde(default, deserialize_with = "secret")]
            password: Option<Secret>,
        }
        let answer: Answer = serde_json::from_slice(output)
            .map_err(|_| "it did not answer with a CredentialProviderResponse")?;
        if answer.kind != "CredentialProviderResponse" || answer.api_version != PROTOCOL {
            return Err("it answered in another version of the protocol");
        }
        let duration = match answer.cache_duration {
            None => self.cache_duration,
            Some(text) => parse_duration(&text).ok_or("its cacheDuration is not a duration")?,
        };
        let empty = || Secret::new(String::new());
        let login = |(key, auth): (String, Auth)| {
            let Auth { username, password } = auth;
            // What has neither is for nobody.
            let some = username.is_some() || password.is_some();
            let user = username.unwrap_or_else(empty);
            some.then(|| (key, Login::Password { user, password: password.unwrap_or_else(empty) }))
        };
        Ok(Response {
            key: answer.cache_key_type,
            duration: Some(duration).filter(|duration| !duration.is_zero()),
            logins: answer.auth.into_iter().flatten().filter_map(login).collect(),
        })
    }
}

/// Whether a text names a program in a folder and nothing outside of it.
pub(super) fn is_program_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
    !matches!(name, "" | "." | "..") && name.len() <= 255 && name.bytes().all(plain)
}

/// A duration as Go writes it, such as `1h30m` or `0s`; not negative. A year is the longest.
fn parse_duration(text: &str) -> Option<Duration> {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0;
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("\u{b5}s", 1e-6),
        ("\u{3bc}s", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    match rest {
        "" => return None,
        "0" => return Some(Duration::ZERO),
        _ => {}
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, unit) = rest.split_at(end);
        let length = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(length);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds.min(YEAR)).ok()
}

/// A map, of which every key must be asked for.
struct Map {
    place: String,
    entries: Vec<Entry>,
}

impl Map {
    fn of(node: Node, place: impl Into<String>) -> Result<Self, String> {
        let place = place.into();
        match node.value {
            Value::Map(entries) => Ok(Self { place, entries }),
            _ => Err(format!("line {}: {place} is no map", node.line)),
        }
    }

    fn take(&mut self, key: &str) -> Option<Node> {
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(index).node)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.take(key).map(|node| (node.line, node.value)) {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, Value::Text(text))) => Ok(Some(text)),
            Some((line, _)) => Err(format!("line {line}: {}.{key} is no text", self.place)),
        }
    }

    fn list(&mut self, key: &str) -> Result<Vec<Node>, String> {
        match self.take(key).map(|node| (node.line, node.value)) {
            None | Some((_, Value::Null)) => Ok(Vec::new()),
            Some((_, Value::List(items))) => Ok(items),
            Some((line, _)) => Err(format!("line {line}: {}.{key} is no list", self.place)),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>, String> {
        let place = self.place.clone();
        let text = |node: Node| match node.value {
            Value::Text(text) if !text.contains('\0') => Ok(text),
            _ => Err(format!("line {}: {place}.{key} holds what is no text", node.line)),
        };
        self.list(key)?.into_iter().map(text).collect()
    }

    fn end(&self) -> Result<(), String> {
        match self.entries.first() {
            None => Ok(()),
            Some(entry) => Err(format!(
                "line {}: {} has the unknown key {}",
                entry.line,
                self.place,
                entry.key.escape_debug()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECR: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages: ["*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr-fips.*.amazonaws.com"]
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env: [{name: AWS_PROFILE, value: hunter2}]
"#;

    #[test]
    fn a_nodes_configuration_is_read_as_it_stands() {
        let providers = read(ECR).unwrap();
        let provider = &providers[0];
        assert_eq!(providers.len(), 1);
        assert_eq!(provider.name, "ecr-credential-provider");
        assert_eq!(provider.match_images.len(), 2);
        assert_eq!(provider.cache_duration, Duration::from_secs(12 * 3600));
        assert_eq!(provider.args, ["get-credentials"]);
        assert_eq!(provider.env[0].0, "AWS_PROFILE");
        assert!(!format!("{provider:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_told_without_a_value_of_env() {
        for (old, new, expected) in [
            ("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "apiVersion"),
            (
                "    args",
                "    tokenAttributes: {serviceAccountTokenAudience: a}\n    args",
                "tokenAttributes",
            ),
            ("    args", "    unknown: 1\n    args", "unknown key unknown"),
            ("name: ecr-credential-provider", "name: ../bin/sh", "providers[0].name"),
            ("\"12h\"", "forever", "defaultCacheDuration"),
            (
                "credentialprovider.kubelet.k8s.io/v1",
                "credentialprovider.kubelet.k8s.io/v1alpha1",
                "apiVersion",
            ),
            ("[\"*.dkr.ecr.*.amazonaws.com\", \"*.dkr.ecr-fips.*.amazonaws.com\"]", "[]", "matchImages"),
            ("name: AWS_PROFILE", "name: A=B", "env[0].name"),
            ("value: hunter2", "value: [hunter2]", "env[0].value"),
            ("providers:", "providers: hunter2\nothers:", "providers"),
        ] {
            assert!(ECR.contains(old), "{old}");
            let error = read(&ECR.replacen(old, new, 1)).map(|_| ()).expect_err(new);
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_answer_is_read_and_its_time_is_its_own_or_the_configured_one() {
        let provider = read(ECR).unwrap().remove(0);
        let answer = |text: &str| {
            let text = format!(
                r#"{{"kind":"CredentialProviderResponse","apiVersion":"{PROTOCOL}","cacheKeyType":"Registry"{text}}}"#
            );
            provider.response(text.as_bytes())
        };
        let full =
            answer(r#","cacheDuration":"6h0m0s","auth":{"r.io":{"username":"u","password":"p"}}"#).unwrap();
        assert_eq!((full.key, full.duration), (CacheKey::Registry, Some(Duration::from_secs(6 * 3600))));
        assert_eq!(full.logins.len(), 1);
        assert_eq!(answer("").unwrap().duration, Some(Duration::from_secs(12 * 3600)));
        assert_eq!(answer(r#","cacheDuration":"0s""#).unwrap().duration, None);
        assert_eq!(answer(r#","cacheDuration":null,"auth":{"r.io":{}}"#).unwrap().logins.len(), 0);
        assert!(answer(r#","cacheDuration":"hunter2""#).is_err_and(|error| !error.contains("hunter2")));
        for text in ["", "hunter2", "{}", r#"{"kind":"x","apiVersion":"y","cacheKeyType":"Image"}"#] {
            assert!(provider.response(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in
            [("12h", 43200.0), ("1h30m", 5400.0), ("10m0s", 600.0), ("0s", 0.0), ("0", 0.0), ("1.5s", 1.5)]
        {
            assert_eq!(parse_duration(text).map(|read| read.as_secs_f64()), Some(seconds), "{text}");
        }
        for text in ["", "12", "h", "-1h", "1x", "1h ", "1e9h", "..s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn another_configuration_is_another_right() {
        let right = |config: &str| read(config).unwrap()[0].right(Path::new("/bin"));
        assert_eq!(right(ECR), right(&ECR.replace("12h", "1h")));
        assert_ne!(right(ECR), right(&ECR.replace("hunter2", "hunter3")));
        assert_ne!(right(ECR), right(&ECR.replace("[get-credentials]", "[]")));
    }
}
