//! The keys of the node's own credentials.

use super::address::ListenAddress;
use super::reader::{Field, Section};
use crate::fetch::{CredentialSource, ImagePattern, Listeners, NodeCredential, Repositories};

/// The word for every repository or every listener.
const ALL: &str = "all";

const SOURCES: [&str; 5] =
    ["password_file", "token_file", "identity_token_file", "docker_config", "kubernetes_secrets"];

/// Reads `credentials`, for an agent with these listeners.
pub(super) fn read(field: Field, listeners: &[ListenAddress]) -> Vec<NodeCredential> {
    let entry = |item: Field| item.into_section(|section| credential(section, listeners)).flatten();
    field.list(entry).unwrap_or_default()
}

fn credential(section: &mut Section, known: &[ListenAddress]) -> Option<NodeCredential> {
    let repositories = section.take("for");
    if repositories.is_none() {
        section.refuse("for", "missing: the repositories, as in [registry.example/team], or `all`");
    }
    let listeners = listeners(section, known);
    let user = section.take("user").and_then(|field| field.parsed(user));
    let has_user = user.is_some();
    let mut found = Vec::new();
    for key in SOURCES {
        let Some(path) = section.take(key).and_then(Field::path) else { continue };
        let source = match (key, user.clone()) {
            ("password_file", Some(user)) => CredentialSource::Password { user, file: path },
            ("password_file", None) => {
                section.refuse("user", "missing: whose password that is");
                continue;
            }
            ("token_file", _) => CredentialSource::RegistryToken(path),
            ("identity_token_file", _) => CredentialSource::IdentityToken(path),
            ("docker_config", _) => CredentialSource::DockerConfig(path),
            _ => CredentialSource::KubernetesSecrets(path),
        };
        found.push(source);
    }
    let source = match found.len() {
        1 => found.pop(),
        _ => {
            section.refuse("", format!("give one of {}", SOURCES.join(", ")));
            None
        }
    };
    if has_user && !matches!(source, Some(CredentialSource::Password { .. }) | None) {
        section.refuse("user", "only together with password_file");
    }
    let own_keys = matches!(
        source,
        Some(CredentialSource::DockerConfig(_) | CredentialSource::KubernetesSecrets(_)) | None
    );
    let repositories = repositories.and_then(|field| self::repositories(field, own_keys));
    Some(NodeCredential { repositories: repositories?, listeners: listeners?, source: source? })
}

/// Reads `credential_providers`.
pub(super) fn providers(section: &mut Section, known: &[ListenAddress]) -> Option<NodeCredential> {
    let listeners = listeners(section, known);
    let mut path = |key, why| match section.take(key) {
        Some(field) => field.path(),
        None => {
            section.refuse(key, why);
            None
        }
    };
    let config = path("config", "missing: the kubelet's CredentialProviderConfig");
    let bin_directory = path("bin_directory", "missing: the folder of the programs that it names");
    let source = CredentialSource::Providers { config: config?, bin_directory: bin_directory? };
    Some(NodeCredential { repositories: Repositories::All, listeners: listeners?, source })
}

fn repositories(field: Field, own_keys: bool) -> Option<Repositories> {
    if !field.is(ALL) {
        return field.list_of_some(|item| item.parsed(str::parse::<ImagePattern>)).map(Repositories::These);
    }
    match own_keys {
        true => Some(Repositories::All),
        false => field.refuse("would be shown to any registry that a resource names: name repositories"),
    }
}

fn listeners(section: &mut Section, known: &[ListenAddress]) -> Option<Listeners> {
    let Some(field) = section.take("listeners") else { return Some(Listeners::These(Vec::new())) };
    if field.is(ALL) {
        return Some(Listeners::All);
    }
    let named = |text: &str| match text.parse::<ListenAddress>() {
        Err(why) => Err(why.to_string()),
        Ok(ListenAddress::Tcp(address)) if address.port() == 0 => {
            Err("a listener whose port is not known cannot be named".to_owned())
        }
        Ok(address) if known.contains(&address) => Ok(address),
        Ok(_) => Err("not the address of one of `listeners`".to_owned()),
    };
    field.list(|item| item.parsed(named)).map(Listeners::These)
}

fn user(text: &str) -> Result<String, &'static str> {
    match text.is_empty() || text.contains(':') || text.contains(char::is_control) {
        true => Err("not a user's name: without a colon"),
        false => Ok(text.to_owned()),
    }
}
