//! From what a resource says about its module, as text, to the request for it.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::InvalidRequest;
use super::frame::Template;
use crate::digest::ExpectedDigest;
use crate::module::{Caller, ModuleRequest, ModuleUrl, PullPolicy, PullSecret};
use crate::secret::Secret;

/// What a resource says about its module: read, not yet judged. Not `Debug`: the URL may hold a
/// query that is secret.
#[derive(Default)]
pub(super) struct Source {
    pub uri: String,
    pub sha256: String,
    /// `None` where it is no duration, or one that Envoy would refuse; zero where there is none.
    pub timeout: Option<Duration>,
    pub keys: AgentKeys,
}

/// The values of the keys in the VM's environment by which Istio's control plane talks to the
/// agent; `None` where a key is absent. The plugin never sees them.
#[derive(Default)]
pub(super) struct AgentKeys {
    pull_secret: Option<Secret>,
    pull_policy: Option<String>,
    resource_version: Option<String>,
}

impl AgentKeys {
    const PULL_SECRET: &'static str = "ISTIO_META_WASM_IMAGE_PULL_SECRET";
    const PULL_POLICY: &'static str = "ISTIO_META_WASM_IMAGE_PULL_POLICY";
    const RESOURCE_VERSION: &'static str = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION";

    /// Whether a key of the environment is for an agent, this one's or another's.
    pub fn owns(key: &[u8]) -> bool {
        key.starts_with(b"ISTIO_META_")
    }

    /// The key's own name, if it is one of those whose value counts.
    pub fn known(key: &[u8]) -> Option<&'static str> {
        [Self::PULL_SECRET, Self::PULL_POLICY, Self::RESOURCE_VERSION]
            .into_iter()
            .find(|known| known.as_bytes() == key)
    }

    /// Takes the value of a [`known`](Self::known) key. As in any map the last one counts.
    pub fn set(&mut self, key: &'static str, value: &str) {
        let value = value.to_owned();
        match key {
            Self::PULL_SECRET => self.pull_secret = Some(Secret::new(value)),
            Self::PULL_POLICY => self.pull_policy = Some(value),
            _ => self.resource_version = Some(value),
        }
    }
}

impl Source {
    /// See [`Remote::source_key`](super::Remote::source_key).
    pub fn key(&self, template: &Template) -> [u8; 32] {
        let timeout = self.timeout.map(|timeout| timeout.as_nanos()).unwrap_or(u128::MAX).to_le_bytes();
        let policy = self.keys.pull_policy.as_deref().unwrap_or_default();
        let parts: [&[u8]; 5] =
            [self.uri.as_bytes(), self.sha256.as_bytes(), &timeout, policy.as_bytes(), &template.fill(&[])];
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, so that no two lists of parts run together to the same bytes.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    pub fn into_request(self) -> Result<ModuleRequest, InvalidRequest> {
        let url: ModuleUrl = self.uri.parse()?;
        let timeout = self.timeout.ok_or(InvalidRequest::Timeout)?;
        let policy = match self.keys.pull_policy.as_deref() {
            None | Some("" | "UNSPECIFIED_POLICY") => url.default_policy(),
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            Some("Always") => PullPolicy::Always,
            Some(_) => return Err(InvalidRequest::PullPolicy),
        };
        let secret = match self.keys.pull_secret {
            None => PullSecret::None,
            // What the control plane sends where it cannot read the secret that was named.
            Some(text) if text.expose().is_empty() => PullSecret::Unavailable,
            Some(text) => PullSecret::DockerConfig(text),
        };
        Ok(ModuleRequest {
            url,
            expected: expected(&self.sha256)?,
            policy,
            resource_version: self.keys.resource_version.filter(|version| !version.is_empty()),
            secret,
            timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
            caller: Caller::Nobody,
        })
    }
}

/// An old control plane writes `nil` where there is no digest.
fn expected(sha256: &str) -> Result<Option<ExpectedDigest>, InvalidRequest> {
    match sha256 {
        "" | "nil" => Ok(None),
        hex => match ExpectedDigest::from_hex(&hex.to_ascii_lowercase()) {
            Ok(digest) => Ok(Some(digest)),
            Err(_) => Err(InvalidRequest::Sha256),
        },
    }
}
