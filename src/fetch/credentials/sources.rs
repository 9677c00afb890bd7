//! From who asks for which image to a credential, out of all sources that apply.

use std::path::Path;
use std::sync::Arc;

use oci_client::Reference;
use zeroize::Zeroizing;

use super::docker::DockerConfig;
use super::programs::{Programs, Question};
use super::{CredentialError, CredentialSource, NodeCredential, files, pattern, provider};
use crate::clock::Clock;
use crate::fetch::FetchConfig;
use crate::fetch::credential::{Credential, Login};
use crate::metrics::{Metrics, result};
use crate::module::Caller;
use crate::secret::Secret;

/// All of the node's own credentials.
pub(in crate::fetch) struct Sources {
    all: Vec<NodeCredential>,
    programs: Arc<Programs>,
    metrics: Option<Metrics>,
}

/// What one source has for an image.
enum Part {
    Logins(Vec<Login>),
    Ask(Box<Question>),
    Failed(CredentialError),
}

impl Sources {
    /// Those of a configuration. Does no I/O.
    pub(in crate::fetch) fn of(config: &FetchConfig, clock: &Clock) -> Self {
        let metrics = config.metrics.clone();
        let programs =
            Programs::new(config.programs.clone(), config.program_timeout, clock.clone(), metrics.clone());
        Self { all: config.credentials.clone(), programs: Arc::new(programs), metrics }
    }

    /// Whether any is for this: where not, nothing needs to be read.
    fn apply(&self, caller: &Caller, image: &Reference) -> bool {
        self.all.iter().any(|credential| credential.applies(caller, image))
    }

    /// What may be used for an image, where that is known without running a program. Blocks on files.
    pub(in crate::fetch) fn at_hand(&self, caller: &Caller, image: &Reference) -> Option<Credential> {
        let mut credential = Credential::anonymous();
        for part in self.parts(caller, image) {
            let kept = match &part {
                Part::Ask(question) => Some(self.programs.kept(question, image)?),
                _ => None,
            };
            part.add_to(&mut credential, kept);
        }
        Some(credential)
    }

    /// What may be used for an image. Needs a tokio runtime.
    pub(in crate::fetch) async fn credential(
        self: Arc<Self>,
        caller: &Caller,
        image: &Reference,
    ) -> Credential {
        let mut credential = Credential::anonymous();
        if !self.apply(caller, image) {
            return credential;
        }
        let (sources, its_caller, its_image) = (self.clone(), caller.clone(), image.clone());
        let reading = tokio::task::spawn_blocking(move || sources.parts(&its_caller, &its_image));
        // Only a runtime that is shutting down leaves blocking work undone; a panic has been printed.
        for part in reading.await.unwrap_or_default() {
            let outcome = match &part {
                Part::Ask(question) => Some(self.programs.ask(question, image).await),
                Part::Failed(error) => {
                    tracing::warn!("{error}");
                    let count = |metrics: &Metrics| {
                        metrics.credentials.get_or_create(&result(error.reason())).inc();
                    };
                    self.metrics.iter().for_each(count);
                    None
                }
                Part::Logins(_) => None,
            };
            part.add_to(&mut credential, outcome);
        }
        credential
    }

    /// What the sources that apply have, in their order.
    fn parts(&self, caller: &Caller, image: &Reference) -> Vec<Part> {
        let apply = self.all.iter().filter(|credential| credential.applies(caller, image));
        let mut parts = Vec::new();
        for credential in apply {
            if let Err(error) = credential.source.read(image, &mut parts) {
                parts.push(Part::Failed(error));
            }
        }
        parts
    }
}

impl Part {
    fn add_to(self, credential: &mut Credential, outcome: Option<Result<Vec<Login>, CredentialError>>) {
        match (self, outcome) {
            (Part::Logins(logins), _) => logins.into_iter().for_each(|login| credential.add(login)),
            (Part::Failed(error), _) => credential.add_failure(error),
            (Part::Ask(question), Some(Ok(logins))) if !logins.is_empty() => {
                credential.add_right(&question.right, logins);
            }
            // What it gave before may be in the store.
            (Part::Ask(question), Some(Err(error))) => {
                credential.add_right(&question.right, []);
                credential.add_failure(error);
            }
            (Part::Ask(_), _) => {}
        }
    }
}

impl CredentialSource {
    fn read(&self, image: &Reference, parts: &mut Vec<Part>) -> Result<(), CredentialError> {
        match self {
            CredentialSource::Password { user, file } => {
                let password = value(file)?;
                parts.push(Part::Logins(vec![Login::Password { user: Secret::new(user.clone()), password }]));
            }
            CredentialSource::RegistryToken(file) => {
                parts.push(Part::Logins(vec![Login::Registry(value(file)?)]));
            }
            CredentialSource::IdentityToken(file) => {
                parts.push(Part::Logins(vec![Login::Identity(value(file)?)]));
            }
            CredentialSource::UserDockerConfig(file) if !files::exists(file) => {}
            CredentialSource::DockerConfig(file) | CredentialSource::UserDockerConfig(file) => {
                let config = docker_config(file)?;
                match config.helper(image) {
                    // As docker does it: what the helper does not have is not there.
                    Some((name, server)) => {
                        parts.push(Part::Ask(Box::new(Question::helper(name, server, image))));
                    }
                    None => parts.push(Part::Logins(logins(&config, file, image)?)),
                }
            }
            CredentialSource::KubernetesSecrets(folder) => {
                let mounted = files::mounted_secrets(folder).map_err(|why| failed(folder, why))?;
                for file in mounted {
                    // Secrets never name programs.
                    parts.push(match docker_config(&file).and_then(|config| logins(&config, &file, image)) {
                        Ok(logins) => Part::Logins(logins),
                        Err(error) => Part::Failed(error),
                    });
                }
            }
            CredentialSource::Providers { config, bin_directory } => {
                let text = files::read(config).map_err(|why| failed(config, why))?;
                for provider in provider::read(&text).map_err(|why| failed(config, why))? {
                    if pattern::any_matches(provider.match_images.iter().map(String::as_str), image) {
                        let question = Question::provider(Arc::new(provider), bin_directory, image);
                        parts.push(Part::Ask(Box::new(question)));
                    }
                }
            }
        }
        Ok(())
    }
}

fn value(file: &Path) -> Result<Secret, CredentialError> {
    let text: Zeroizing<String> = files::read_value(file).map_err(|why| failed(file, why))?;
    Ok(Secret::new(text.as_str().to_owned()))
}

fn docker_config(file: &Path) -> Result<DockerConfig, CredentialError> {
    let text = files::read(file).map_err(|why| failed(file, why))?;
    DockerConfig::parse(&text).map_err(|why| failed(file, why))
}

fn logins(config: &DockerConfig, file: &Path, image: &Reference) -> Result<Vec<Login>, CredentialError> {
    config.logins(image).map_err(|why| failed(file, why))
}

fn failed(path: &Path, why: impl Into<String>) -> CredentialError {
    CredentialError::File { path: path.to_owned(), why: why.into() }
}
