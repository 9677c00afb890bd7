//! Programs that give credentials, and what they have answered: one run for all who ask the same at the same
//! time, and none while an answer is good.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use oci_client::Reference;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::program::{Ended, Fault, Run, run};
use super::provider::{CacheKey, Provider, is_program_name};
use super::{CredentialError, ProgramEnvironment, files, helper, pattern};
use crate::clock::Clock;
use crate::fetch::credential::Login;
use crate::metrics::{Metrics, result};
use crate::secret::Secret;

/// Programs that run at once; the others wait.
const PLACES: usize = 8;
/// What is kept of answers.
const MAX_KEPT: usize = 1024;
/// How long a helper's answer is good: it does not say so itself, and keeps its own.
const HELPER_DURATION: Duration = Duration::from_secs(60);
/// How long a program that failed is not run again.
const FAILURE_DURATION: Duration = Duration::from_secs(5);

/// What a program is asked.
#[derive(Clone)]
pub(super) struct Question {
    /// What stands for whatever it answers.
    pub(super) right: [u8; 32],
    pub(super) asked: Asked,
    /// `HOST[:PORT]`
    registry: String,
    /// `HOST[:PORT]/REPOSITORY`
    image: String,
}

#[derive(Clone)]
pub(super) enum Asked {
    Provider { provider: Arc<Provider>, bin_directory: PathBuf },
    Helper { name: String, server: String },
}

/// What one has answered: by image where it says so, else for what it was asked for.
type Answer = Arc<Vec<(Option<String>, Login)>>;
type Outcome = Result<Answer, CredentialError>;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    right: [u8; 32],
    /// None is for all that it may be asked.
    of: Option<String>,
}

struct Kept {
    outcome: Outcome,
    until: Instant,
}

/// Runs programs and keeps their answers.
pub(super) struct Programs {
    environment: ProgramEnvironment,
    timeout: Duration,
    clock: Clock,
    metrics: Option<Metrics>,
    places: Semaphore,
    kept: Mutex<HashMap<Key, Kept>>,
    running: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, Outcome>>>>,
}

impl Question {
    pub(super) fn provider(provider: Arc<Provider>, bin_directory: &Path, image: &Reference) -> Self {
        let right = provider.right(bin_directory);
        Self::of(right, Asked::Provider { provider, bin_directory: bin_directory.to_owned() }, image)
    }

    pub(super) fn helper(name: String, server: String, image: &Reference) -> Self {
        Self::of(helper::right(&name, &server), Asked::Helper { name, server }, image)
    }

    fn of(right: [u8; 32], asked: Asked, image: &Reference) -> Self {
        let registry = image.registry().to_owned();
        Self { right, asked, image: format!("{registry}/{}", image.repository()), registry }
    }

    /// Under what an answer to it may be kept, the narrowest first.
    fn keys(&self) -> [Key; 3] {
        [Some(self.image.clone()), Some(self.registry.clone()), None].map(|of| Key { right: self.right, of })
    }

    fn program(&self) -> String {
        match &self.asked {
            Asked::Provider { provider, .. } => provider.name.clone(),
            Asked::Helper { name, .. } => helper::program(name),
        }
    }

    fn fault(&self, reason: &'static str, why: impl Into<String>) -> CredentialError {
        let (program, host) = (self.program(), self.registry.clone());
        CredentialError::Program { program, host, reason, why: why.into() }
    }
}

impl Programs {
    pub(super) fn new(
        environment: ProgramEnvironment,
        timeout: Duration,
        clock: Clock,
        metrics: Option<Metrics>,
    ) -> Self {
        let (kept, running) = (Mutex::default(), Mutex::default());
        Self { environment, timeout, clock, metrics, places: Semaphore::new(PLACES), kept, running }
    }

    /// What is known without a program: the logins for an image, the best first.
    pub(super) fn kept(
        &self,
        question: &Question,
        image: &Reference,
    ) -> Option<Result<Vec<Login>, CredentialError>> {
        let now = self.clock.now();
        let kept = lock(&self.kept);
        let mut found = question.keys().into_iter().filter_map(|key| kept.get(&key));
        let outcome = found.find(|kept| kept.until > now)?.outcome.clone();
        Some(outcome.map(|answer| logins(&answer, image)))
    }

    /// The same, asking the program where it is not known. Whoever leaves does not end it for the others;
    /// when all have left, it is ended.
    pub(super) async fn ask(
        self: &Arc<Self>,
        question: &Question,
        image: &Reference,
    ) -> Result<Vec<Login>, CredentialError> {
        if let Some(known) = self.kept(question, image) {
            return known;
        }
        let running = {
            let mut running = lock(&self.running);
            let key = Key { right: question.right, of: Some(question.image.clone()) };
            match running.get(&key).and_then(WeakShared::upgrade) {
                Some(under_way) => under_way,
                None => {
                    running.retain(|_, other| other.upgrade().is_some());
                    let (programs, question) = (self.clone(), question.clone());
                    let run = async move { programs.run(&question).await }.boxed().shared();
                    running.extend(run.downgrade().map(|weak| (key, weak)));
                    run
                }
            }
        };
        Ok(logins(&running.await?, image))
    }

    async fn run(&self, question: &Question) -> Outcome {
        let outcome = self.outcome(question).await;
        let label = match &outcome {
            Ok((answer, ..)) if answer.is_empty() => "none",
            Ok(_) => "success",
            Err(error) => error.reason(),
        };
        if let Some(metrics) = &self.metrics {
            metrics.credentials.get_or_create(&result(label)).inc();
        }
        let (outcome, of, duration) = match outcome {
            Ok((answer, of, duration)) => (Ok(answer), of, duration),
            Err(error) => {
                tracing::warn!("{error}");
                (Err(error), Some(question.image.clone()), Some(FAILURE_DURATION))
            }
        };
        if let Some(duration) = duration {
            self.keep(Key { right: question.right, of }, outcome.clone(), duration);
        }
        outcome
    }

    /// What it answers, for which images that is good, and for how long.
    async fn outcome(
        &self,
        question: &Question,
    ) -> Result<(Answer, Option<String>, Option<Duration>), CredentialError> {
        let gone = |_| question.fault("start", "the process ends");
        let _place = self.places.acquire().await.map_err(gone)?;
        let deadline = self.clock.now() + self.timeout;
        let ended = run(self.command(question)?, deadline, &self.clock).await;
        let Ended { output, code } = ended.map_err(|fault| match fault {
            Fault::Start(error) => question.fault("start", error.to_string()),
            Fault::Timeout => question.fault("timeout", "it took too long, and was ended"),
            Fault::Output => question.fault("output", "it wrote too much"),
        })?;
        let exit = || match code {
            Some(code) => question.fault("exit", format!("it exited with {code}")),
            None => question.fault("exit", "a signal ended it"),
        };
        match &question.asked {
            Asked::Provider { .. } if code != Some(0) => Err(exit()),
            Asked::Provider { provider, .. } => {
                let response = provider.response(&output).map_err(|why| question.fault("answer", why))?;
                let of = match response.key {
                    CacheKey::Image => Some(question.image.clone()),
                    CacheKey::Registry => Some(question.registry.clone()),
                    CacheKey::Global => None,
                };
                let logins = response.logins.into_iter().map(|(key, login)| (Some(key), login));
                Ok((Arc::new(logins.collect()), of, response.duration))
            }
            Asked::Helper { .. } => {
                let login = helper::answer(code, &output).map_err(|why| match code {
                    Some(0) => question.fault("answer", why),
                    _ => exit(),
                })?;
                let answer = login.into_iter().map(|login| (None, login)).collect();
                Ok((Arc::new(answer), Some(question.registry.clone()), Some(HELPER_DURATION)))
            }
        }
    }

    fn command(&self, question: &Question) -> Result<Run, CredentialError> {
        let name = question.program();
        let path = self.environment.path.as_deref().unwrap_or_default();
        let (folders, args, own_env, input): (Vec<&Path>, _, _, _) = match &question.asked {
            Asked::Provider { provider, bin_directory } => (
                vec![bin_directory],
                provider.args.clone(),
                provider.env.clone(),
                Provider::request(&question.image),
            ),
            Asked::Helper { server, .. } => (
                path.split(':').map(Path::new).collect(),
                vec!["get".to_owned()],
                Vec::new(),
                Zeroizing::new(server.clone().into_bytes()),
            ),
        };
        if !is_program_name(&name) {
            return Err(question.fault("start", "its name is not that of a program"));
        }
        let file = files::program(folders.into_iter(), &name).ok_or_else(|| {
            let place = match &question.asked {
                Asked::Provider { bin_directory, .. } => bin_directory.display().to_string(),
                Asked::Helper { .. } => "PATH".to_owned(),
            };
            question.fault("start", format!("there is no such program in {place}"))
        })?;
        let home = self.environment.home.as_ref().map(|home| home.display().to_string());
        let mut env = Vec::new();
        for (name, value) in [("PATH", self.environment.path.clone()), ("HOME", home)] {
            env.extend(value.map(|value| (name.to_owned(), Secret::new(value))));
        }
        // Its own entries win.
        env.extend(own_env);
        Ok(Run { file, args, env, input })
    }

    fn keep(&self, key: Key, outcome: Outcome, duration: Duration) {
        let now = self.clock.now();
        let mut kept = lock(&self.kept);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| kept.until > now);
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, Kept { outcome, until: now + duration });
    }
}

/// Those of an answer that are for this image, the best match first.
fn logins(answer: &Answer, image: &Reference) -> Vec<Login> {
    let general = answer.iter().filter(|(key, _)| key.is_none()).map(|(_, login)| login.clone());
    let keyed = answer.iter().filter_map(|(key, login)| Some((key.as_deref()?, login.clone())));
    pattern::matching(keyed, image).into_iter().chain(general).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
