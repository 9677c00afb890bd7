//! What is asked for, and what comes back: the values that travel from a resource (or the command
//! line) through resolve to the store.

mod layout;
mod reference;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use oci_client::Reference;
use url::{Host, Position, Url};

use crate::digest::{ExpectedDigest, PayloadDigest, SourceDigest};
use crate::secret::Secret;

pub use self::layout::LayoutImage;

/// Where a module comes from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ModuleUrl {
    /// `oci://HOST/REPOSITORY[:TAG][@DIGEST]`, or the same without a scheme.
    Oci(Reference),
    /// `http://` or `https://`.
    Http(Url),
    /// `file:///absolute/path`.
    File(PathBuf),
    /// `oci-layout:///absolute/path[:TAG|@DIGEST]`: a folder or a tar.
    Layout(PathBuf, Option<LayoutImage>),
}

/// Why a text is no module URL. The text itself is not repeated: it may hold a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error("the module URL is empty")]
    Empty,
    #[error("the scheme of the module URL is not one of oci, http, https, file and oci-layout")]
    Scheme,
    #[error("not a valid OCI reference: {0}")]
    Reference(&'static str),
    #[error("not a valid URL: {0}")]
    Url(#[from] url::ParseError),
    #[error("a module URL must not hold a user name or password; use a pull secret")]
    Credentials,
    #[error("not a valid URL of an OCI layout: {0}")]
    Layout(&'static str),
    #[error("a file URL needs an absolute path of text and no host, as in file:///dir/module.wasm")]
    FilePath,
}

impl FromStr for ModuleUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidUrl::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Self::oci(text);
        };
        match scheme.to_ascii_lowercase().as_str() {
            "oci" => Self::oci(rest),
            "http" | "https" => {
                let url = Url::parse(text)?;
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(InvalidUrl::Credentials);
                }
                Ok(ModuleUrl::Http(url))
            }
            "file" => {
                let url = Url::parse(text)?;
                match url.to_file_path() {
                    // Line breaks and the like would be printed with the path.
                    Ok(path)
                        if url.host().is_none()
                            && path.file_name().is_some()
                            && path.to_str().is_some_and(|text| !text.contains(char::is_control)) =>
                    {
                        Ok(ModuleUrl::File(path))
                    }
                    _ => Err(InvalidUrl::FilePath),
                }
            }
            "oci-layout" => match layout::parse(rest) {
                Ok((path, image)) => Ok(ModuleUrl::Layout(path, image)),
                Err(why) => Err(InvalidUrl::Layout(why)),
            },
            _ => Err(InvalidUrl::Scheme),
        }
    }
}

impl ModuleUrl {
    fn oci(text: &str) -> Result<Self, InvalidUrl> {
        // Userinfo would be read as part of a repository and printed.
        if text.split('/').next().is_some_and(|host| host.contains('@')) && text.contains('/') {
            return Err(InvalidUrl::Credentials);
        }
        reference::parse(text).map(ModuleUrl::Oci).map_err(InvalidUrl::Reference)
    }

    /// The pull policy where none is given: `Always` for the tag `latest` or no tag and no digest,
    /// otherwise `IfNotPresent`, as for HTTP servers, files and layouts.
    pub fn default_policy(&self) -> PullPolicy {
        match self {
            ModuleUrl::Oci(reference)
                if reference.digest().is_none() && matches!(reference.tag(), None | Some("latest")) =>
            {
                PullPolicy::Always
            }
            _ => PullPolicy::IfNotPresent,
        }
    }

    /// The whole URL in one spelling, for keys. May hold a query that is secret: never print it.
    pub fn canonical(&self) -> String {
        match self {
            ModuleUrl::Oci(reference) => format!("oci://{}", reference.whole()),
            ModuleUrl::Http(url) => url.as_str().to_owned(),
            ModuleUrl::File(path) => format!("file://{}", path.display()),
            ModuleUrl::Layout(path, None) => format!("oci-layout://{}", path.display()),
            ModuleUrl::Layout(path, Some(LayoutImage::Tag(tag))) => {
                format!("oci-layout://{}:{tag}", path.display())
            }
            ModuleUrl::Layout(path, Some(LayoutImage::Digest(digest))) => {
                format!("oci-layout://{}@{digest}", path.display())
            }
        }
    }

    /// The server that is asked, `HOST[:PORT]`; empty for files and layouts.
    pub fn server(&self) -> &str {
        match self {
            ModuleUrl::Oci(reference) => reference.registry(),
            ModuleUrl::Http(url) => &url[Position::BeforeHost..Position::AfterPort],
            ModuleUrl::File(_) | ModuleUrl::Layout(..) => "",
        }
    }

    /// The last part of the URL, for a progress bar.
    pub fn short_name(&self) -> String {
        match self {
            ModuleUrl::Oci(reference) => {
                let name = reference.repository().rsplit('/').next().unwrap_or_default();
                match reference.tag() {
                    Some(tag) => format!("{name}:{tag}"),
                    None => name.to_owned(),
                }
            }
            ModuleUrl::Http(url) => url
                .path_segments()
                .and_then(|mut segments| segments.next_back())
                .filter(|name| !name.is_empty())
                .unwrap_or("module")
                .to_owned(),
            ModuleUrl::File(path) | ModuleUrl::Layout(path, _) => {
                path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
        }
    }
}

/// For people: a URL's query may be a signature that grants access, so it is left out.
impl fmt::Display for ModuleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModuleUrl::Http(url) => {
                let mut shown = url.clone();
                let had_query = url.query().is_some();
                shown.set_query(None);
                shown.set_fragment(None);
                write!(f, "{shown}{}", if had_query { "?(query not shown)" } else { "" })
            }
            other => f.write_str(&other.canonical()),
        }
    }
}

impl fmt::Debug for ModuleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a server, `HOST[:PORT]`, is this machine by its name or address: what is spoken to without
/// TLS unless somebody says otherwise, as docker and crane do it.
pub fn is_loopback(server: &str) -> bool {
    // As the URL is read that is connected to, so that no spelling is one thing here and another there.
    let url = Url::parse(&format!("https://{server}/"));
    match url.as_ref().map(Url::host) {
        Ok(Some(Host::Domain(name))) => name == "localhost",
        Ok(Some(Host::Ipv4(address))) => address.is_loopback(),
        Ok(Some(Host::Ipv6(address))) => address.is_loopback(),
        Ok(None) | Err(_) => false,
    }
}

/// When a module that is in the store is looked for at its source again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Only when the store does not have it.
    IfNotPresent,
    /// Whenever the resource version of who asks has changed.
    Always,
}

/// What the one who asks may use as a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullSecret {
    /// None was named: anonymous.
    None,
    /// The text of a docker config JSON, or of the older `.dockercfg`.
    DockerConfig(Secret),
    /// One was named, but the control plane could not read it. The fetch must fail: pulling
    /// anonymously would hide the mistake or give a different image.
    Unavailable,
}

/// Through which door a request came. It decides which of the node's own credentials it may use, and
/// nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Caller {
    /// Nobody in particular: none of them.
    #[default]
    Nobody,
    /// A resource for an Envoy on this listener: those that the configuration gives it.
    Listener(Arc<str>),
    /// Whoever typed a command: all.
    Operator,
}

/// One request for a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleRequest {
    pub url: ModuleUrl,
    /// The digest that the payload or, for OCI, the manifest must have.
    pub expected: Option<ExpectedDigest>,
    pub policy: PullPolicy,
    /// The version of the resource that asks, where it says so; [`PullPolicy::Always`] pulls again
    /// when it changes.
    pub resource_version: Option<String>,
    pub secret: PullSecret,
    /// How long the resource would wait for the module, where it says so.
    pub timeout: Option<Duration>,
    pub caller: Caller,
}

impl ModuleRequest {
    /// An anonymous request for a URL, with the policy that the URL implies.
    pub fn new(url: ModuleUrl) -> Self {
        Self {
            policy: url.default_policy(),
            url,
            expected: None,
            resource_version: None,
            secret: PullSecret::None,
            timeout: None,
            caller: Caller::Nobody,
        }
    }

    /// The registry, `HOST[:PORT]`, whose tag this follows: the tag may come to name another module.
    /// None for what a digest pins and for what is no image.
    pub fn tag_registry(&self) -> Option<&str> {
        match &self.url {
            ModuleUrl::Oci(reference) if reference.digest().is_none() && self.expected.is_none() => {
                Some(reference.registry())
            }
            _ => None,
        }
    }
}

/// What an http server gave along with a body, to be asked later whether it still serves that one.
/// A weak ETag will do: whatever such a server calls the same, its owner does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<String>,
    /// As the server wrote it.
    pub last_modified: Option<String>,
}

impl Validators {
    /// Whether nothing can be asked by these.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

/// A module that Envoy can open: complete, verified, durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The absolute path of the caller's view of it.
    pub path: PathBuf,
    pub payload: PayloadDigest,
    pub source: SourceDigest,
    /// Bytes.
    pub size: u64,
    /// Whether it was in the store already.
    pub cached: bool,
}

impl Module {
    /// The path as a resource carries it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ModuleUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_url_without_a_scheme_is_oci() {
        assert_eq!(url("ghcr.io/a/b:v1"), url("oci://ghcr.io/a/b:v1"));
        assert_eq!(url("localhost:5000/a:v1").to_string(), "oci://localhost:5000/a:v1");
    }

    #[test]
    fn a_server_is_known_by_host_and_port() {
        for (text, server) in [
            ("oci://r.io:5000/a:v1", "r.io:5000"),
            ("https://h/a?x#y", "h"),
            ("http://[::1]:80/a", "[::1]"),
            ("http://[::1]:81/a", "[::1]:81"),
            ("file:///a", ""),
        ] {
            assert_eq!(url(text).server(), server, "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for server in ["localhost", "LOCALHOST:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(server), "{server}");
        }
        for server in [
            "localhost.example",
            "128.0.0.1:5000",
            "0.0.0.0:80",
            "[::2]:5000",
            "ghcr.io",
            "127.example",
            "a/localhost",
            "",
        ] {
            assert!(!is_loopback(server), "{server}");
        }
    }

    #[test]
    fn only_latest_and_no_tag_are_pulled_always() {
        let policy = |text: &str| url(text).default_policy();
        let digest = "0".repeat(64);
        assert_eq!(policy("oci://r.io/a:latest"), PullPolicy::Always);
        assert_eq!(policy("oci://r.io/a"), PullPolicy::Always);
        assert_eq!(policy("oci://r.io/a:v1"), PullPolicy::IfNotPresent);
        assert_eq!(policy(&format!("oci://r.io/a@sha256:{digest}")), PullPolicy::IfNotPresent);
        assert_eq!(policy("https://r.io/a:latest"), PullPolicy::IfNotPresent);
    }

    #[test]
    fn only_a_tag_that_nothing_pins_is_followed() {
        let digest = "0".repeat(64);
        let request = |text: &str| ModuleRequest::new(url(text));
        assert_eq!(request("oci://r.io:5000/a:v1").tag_registry(), Some("r.io:5000"));
        assert_eq!(request("a").tag_registry(), Some("docker.io"));
        let expecting = ModuleRequest {
            expected: Some(ExpectedDigest::from_hex(&digest).unwrap()),
            ..request("oci://r.io/a:v1")
        };
        let pinned = [&format!("oci://r.io/a@sha256:{digest}"), &format!("oci://r.io/a:v1@sha256:{digest}")];
        for other in pinned.into_iter().map(|text| request(text)).chain([
            expecting,
            request("https://r.io/a:v1"),
            request("file:///a"),
        ]) {
            assert_eq!(other.tag_registry(), None, "{other:?}");
        }
    }

    #[test]
    fn a_url_that_holds_a_credential_is_refused_without_repeating_it() {
        for text in ["https://u:hunter2@h/x.wasm", "oci://u:hunter2@h/x:v1", "u:hunter2@h/x"] {
            let error = text.parse::<ModuleUrl>().unwrap_err();
            assert_eq!(error, InvalidUrl::Credentials, "{text}");
        }
        let signed = url("https://h/x.wasm?sig=hunter2");
        assert!(!format!("{signed} {signed:?}").contains("hunter2"));
        assert!(signed.canonical().contains("hunter2"), "the key still tells two queries apart");
    }

    #[test]
    fn bad_urls_are_refused() {
        for text in [
            "",
            "ftp://h/x",
            "file://host/x",
            "file://",
            "file:///a%0Aforged",
            "file:///%ff",
            "oci-layout://host/a",
            "oci-layout:///",
            "oci://",
            "oci://h/UPPER:v1",
        ] {
            assert!(text.parse::<ModuleUrl>().is_err(), "{text}");
        }
        assert_eq!(url("file:///a/b.wasm"), ModuleUrl::File("/a/b.wasm".into()));
        let layout = url("oci-layout:///a/b.tar:v1");
        assert_eq!(layout.canonical(), "oci-layout:///a/b.tar:v1");
        assert_eq!(layout.default_policy(), PullPolicy::IfNotPresent);
    }
}
