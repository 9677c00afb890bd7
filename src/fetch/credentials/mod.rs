//! The node's own rights: credentials out of files, and out of programs that the kubelet or docker would
//! ask. They are used only for the repositories and listeners that the configuration names; a resource has
//! no say in it, and one that brings a pull secret never comes here.
//!
//! ```text
//! sources -> files -> docker -> pattern
//!         \-> programs -> program
//!                     \-> provider, helper
//! ```
//!
//! What a program or file says is never in an error.

mod docker;
mod files;
mod helper;
mod pattern;
mod program;
mod programs;
mod provider;
mod sources;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_client::Reference;

pub(super) use self::docker::DockerConfig;
pub(super) use self::sources::Sources;
use crate::listen::ListenAddress;
use crate::module::Caller;

/// One of the node's own rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCredential {
    pub repositories: Repositories,
    pub listeners: Listeners,
    pub source: CredentialSource,
}

/// What a credential is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repositories {
    /// Whatever its source has something for.
    All,
    These(Vec<ImagePattern>),
}

/// On whose behalf a credential is used, besides that of who types a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listeners {
    All,
    These(Vec<ListenAddress>),
}

/// Where a credential comes from. Files are absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    Password {
        user: String,
        file: PathBuf,
    },
    /// A bearer token, to be used as it is.
    RegistryToken(PathBuf),
    /// A refresh token, to be exchanged at the token server.
    IdentityToken(PathBuf),
    DockerConfig(PathBuf),
    /// The same; it need not be there.
    UserDockerConfig(PathBuf),
    /// A folder where Kubernetes' secrets are mounted.
    KubernetesSecrets(PathBuf),
    /// The kubelet's credential providers.
    Providers {
        config: PathBuf,
        bin_directory: PathBuf,
    },
}

/// What programs that give credentials find in their environment, besides their own entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramEnvironment {
    pub path: Option<String>,
    pub home: Option<PathBuf>,
}

/// Why one of the node's own credentials cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("the credential file {} cannot be used: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("the credential program {program} gave nothing for {host}: {why}")]
    Program {
        program: String,
        host: String,
        /// For a metric's label.
        reason: &'static str,
        why: String,
    },
}

impl CredentialError {
    /// The kind of failure, for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            CredentialError::File { .. } => "file",
            CredentialError::Program { reason, .. } => reason,
        }
    }
}

impl NodeCredential {
    /// The docker configuration of who types a command.
    pub fn of_user(docker_config: PathBuf) -> Self {
        Self {
            repositories: Repositories::All,
            listeners: Listeners::These(Vec::new()),
            source: CredentialSource::UserDockerConfig(docker_config),
        }
    }

    /// Whether it may be used for this.
    fn applies(&self, caller: &Caller, image: &Reference) -> bool {
        let may = match (caller, &self.listeners) {
            (Caller::Nobody, _) => false,
            (Caller::Operator, _) | (Caller::Listener(_), Listeners::All) => true,
            (Caller::Listener(listener), Listeners::These(listeners)) => {
                listeners.iter().any(|named| named.to_string() == **listener)
            }
        };
        may && match &self.repositories {
            Repositories::All => true,
            Repositories::These(patterns) => {
                pattern::any_matches(patterns.iter().map(|pattern| pattern.0.as_str()), image)
            }
        }
    }
}

/// Repositories, as a key of a docker config names them and the kubelet reads it: `HOST[:PORT][/PREFIX]`, in
/// which `*` and `?` stand for any part of one label of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern(String);

/// Why a text names no repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not repositories: HOST[:PORT][/PREFIX], in which * stands for any part of one label of the host")]
pub struct InvalidPattern;

impl FromStr for ImagePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let stripped = pattern::strip(text);
        let host = stripped.split('/').next().unwrap_or_default();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._*?:[]".contains(&b);
        let in_path = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
        let path = stripped.get(host.len()..).unwrap_or_default();
        let sound = !host.split(['.', ':']).any(str::is_empty) || host.starts_with('[');
        // Of a single label: hardly what was meant.
        let vague = host.bytes().all(|b| matches!(b, b'*' | b'?'));
        match sound && !vague && host.bytes().all(plain) && path.bytes().all(in_path) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidPattern),
        }
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a kubelet's configuration of credential providers, and with the programs that it
/// names. Blocks on files.
pub fn provider_problems(config: &Path, bin_directory: &Path) -> Vec<CredentialError> {
    let problem = |path: &Path, why| CredentialError::File { path: path.to_owned(), why };
    let providers = match files::read(config).and_then(|text| provider::read(&text)) {
        Ok(providers) => providers,
        Err(why) => return vec![problem(config, why)],
    };
    let missing = |name: &String| files::program(std::iter::once(bin_directory), name).is_none();
    let missing = providers.into_iter().map(|provider| provider.name).filter(missing);
    missing.map(|name| problem(&bin_directory.join(name), "it is not there, or no program".into())).collect()
}
