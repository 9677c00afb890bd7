//! The answer to a 401: a token from the registry's token server, or the password itself.
//!
//! The distribution project's token protocol: GET with the password, or POST with a refresh token.
//! Tokens are kept per login, registry and scope, and never serve another login.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};
use zeroize::{Zeroize as _, Zeroizing};

use super::address::Reach;
use super::credential::{self, Login, basic};
use super::error::{FetchError, RegistryCode};
use super::http::{Request, Session, host};
use super::realm::{Challenge, permitted};
use crate::clock::Clock;
use crate::secret::Secret;

const MAX_TOKEN_BODY: u64 = 64 * 1024;
const MAX_TOKENS: usize = 1024;
/// A longer one no server would take, and many of them would be kept.
const MAX_TOKEN: usize = 16 * 1024;
/// How long a token is good for where its server does not say (distribution, token.md).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is not believed to live longer than this, whatever its server says.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// A token this close to its end is not used any more.
const MARGIN: Duration = Duration::from_secs(10);

/// What goes into an `Authorization` header.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    /// Whether a new one may succeed where this one failed.
    pub(super) renewable: bool,
    /// When it will have run out, where that is known.
    pub(super) until: Option<Instant>,
}

/// Who wants to pull what from where.
pub(super) struct Asker<'a> {
    /// Any URL of the registry.
    pub(super) registry: &'a Url,
    /// Where the registry lies.
    pub(super) reach: Reach,
    /// The repository's name.
    pub(super) repository: &'a str,
    pub(super) login: Option<&'a Login>,
    /// The image, for errors.
    pub(super) what: &'a str,
    /// What the registry said with its 401.
    pub(super) code: RegistryCode,
}

/// Gets and keeps tokens.
pub(super) struct Tokens {
    clock: Clock,
    /// Hosts of token servers that any registry may name.
    realms: Vec<String>,
    kept: Mutex<HashMap<Key, Kept>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    /// A hash of the login; none for anonymous.
    login: Option<[u8; 32]>,
    registry: url::Origin,
    repository: String,
}

struct Kept {
    header: HeaderValue,
    until: Instant,
}

/// What a token server answers.
#[derive(Deserialize)]
struct Answer {
    #[serde(default, deserialize_with = "credential::secret")]
    token: Option<Secret>,
    #[serde(default, deserialize_with = "credential::secret")]
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Tokens {
    pub(super) fn new(clock: Clock, realms: Vec<String>) -> Self {
        Self { clock, realms, kept: Mutex::default() }
    }

    /// A token that is there already.
    pub(super) fn kept(
        &self,
        registry: &Url,
        repository: &str,
        login: Option<&Login>,
    ) -> Option<Authorization> {
        let now = self.clock.now();
        let kept = self.lock();
        let kept = kept.get(&Key::new(registry, repository, login)).filter(|kept| kept.until > now)?;
        let until = Some(kept.until);
        Some(Authorization { header: kept.header.clone(), renewable: true, until })
    }

    /// Meets one of the challenges: always anew, what was kept is replaced.
    pub(super) async fn answer(
        &self,
        session: &mut Session,
        asker: &Asker<'_>,
        challenges: &[Challenge],
        deadline: Instant,
    ) -> Result<Authorization, FetchError> {
        let mut foreign = None;
        for challenge in challenges {
            let Challenge::Bearer { realm, service } = challenge else { continue };
            if let Some(Login::Registry(token)) = asker.login {
                let header = bearer(token.expose(), asker)?;
                return Ok(Authorization { header, renewable: false, until: None });
            }
            match permitted(realm, asker.registry, &self.realms) {
                Some(realm) => return self.fetch(session, asker, realm, service.as_deref(), deadline).await,
                None => foreign = Some(realm),
            }
        }
        match (asker.login, foreign) {
            (Some(Login::Password { user, password }), _) if challenges.contains(&Challenge::Basic) => {
                let header = sensitive(format!("Basic {}", *basic(user, password)), asker)?;
                Ok(Authorization { header, renewable: false, until: None })
            }
            (_, Some(realm)) => Err(FetchError::Realm {
                registry: host(asker.registry),
                // The host alone: the rest is a stranger's text.
                realm: Url::parse(realm).map(|realm| host(&realm)).unwrap_or_else(|_| "no valid URL".into()),
            }),
            _ => Err(FetchError::Unauthorized { what: asker.what.to_owned(), code: asker.code }),
        }
    }

    async fn fetch(
        &self,
        session: &mut Session,
        asker: &Asker<'_>,
        realm: Url,
        service: Option<&str>,
        deadline: Instant,
    ) -> Result<Authorization, FetchError> {
        let server = host(&realm);
        let request = token_request(asker, realm, service)?;
        let response = session.send(request, deadline).await?;
        if response.status != StatusCode::OK {
            // A 404 is the token server's fault, not a statement about the image.
            return Err(match response.status {
                StatusCode::NOT_FOUND => {
                    FetchError::Token { host: server, reason: "it answered with status 404" }
                }
                status => {
                    FetchError::from_status(asker.what, status, &response.headers, RegistryCode::default())
                }
            });
        }
        let what = format!("the answer of the token server {server}");
        let body = session.read(response, MAX_TOKEN_BODY, &what).await?;
        let refused = |reason| FetchError::Token { host: server.clone(), reason };
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| refused("its answer is not understood"))?;
        let token = answer.token.or(answer.access_token);
        let token = token.ok_or_else(|| refused("there is none in its answer"))?;
        if token.expose().len() > MAX_TOKEN {
            return Err(refused("it is too long"));
        }
        let header = bearer(token.expose(), asker).map_err(|_| refused("it cannot be sent in a header"))?;
        let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs).min(MAX_LIFETIME);
        // Where nobody else holds it any more.
        if let Ok(mut body) = body.try_into_mut() {
            body[..].zeroize();
        }
        let until = self.clock.now() + lifetime.saturating_sub(MARGIN);
        self.keep(asker, header.clone(), until);
        Ok(Authorization { header, renewable: true, until: Some(until) })
    }

    fn keep(&self, asker: &Asker<'_>, header: HeaderValue, until: Instant) {
        let now = self.clock.now();
        let mut kept = self.lock();
        if kept.len() >= MAX_TOKENS {
            kept.retain(|_, kept| kept.until > now);
        }
        if kept.len() >= MAX_TOKENS {
            kept.clear();
        }
        kept.insert(Key::new(asker.registry, asker.repository, asker.login), Kept { header, until });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn new(registry: &Url, repository: &str, login: Option<&Login>) -> Self {
        let hash = |login: &Login| {
            let mut bytes = Zeroizing::new(Vec::new());
            login.write_identity(&mut bytes);
            Sha256::digest(&*bytes).into()
        };
        Key { login: login.map(hash), registry: registry.origin(), repository: repository.to_owned() }
    }
}

/// Asks for the right to pull this repository and for nothing more, whatever scope the challenge or its
/// realm names.
fn token_request(asker: &Asker<'_>, realm: Url, service: Option<&str>) -> Result<Request, FetchError> {
    let scope = format!("repository:{}:pull", asker.repository);
    let mut request = Request { from: Some(asker.reach), ..Request::get(without_scope(realm)) };
    if let Some(Login::Identity(token)) = asker.login {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token");
        form.append_pair("client_id", "wasmferry");
        form.append_pair("service", service.unwrap_or_default());
        form.append_pair("scope", &scope);
        form.append_pair("refresh_token", token.expose());
        request.body = wiped(form.finish());
        request.method = Method::POST;
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers.insert(header::CONTENT_TYPE, form);
        return Ok(request);
    }
    {
        let mut query = request.url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &scope);
    }
    request.url.set_fragment(None);
    if let Some(Login::Password { user, password }) = asker.login {
        request.authorization = Some(sensitive(format!("Basic {}", *basic(user, password)), asker)?);
    }
    Ok(request)
}

fn without_scope(mut realm: Url) -> Url {
    let pairs = realm.query_pairs().into_owned();
    let (scopes, others): (Vec<_>, Vec<_>) = pairs.partition(|(key, _)| key == "scope");
    if !scopes.is_empty() {
        realm.query_pairs_mut().clear().extend_pairs(others);
    }
    realm
}

fn bearer(token: &str, asker: &Asker<'_>) -> Result<HeaderValue, FetchError> {
    sensitive(format!("Bearer {token}"), asker)
}

fn sensitive(value: String, asker: &Asker) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_maybe_shared(wiped(value))
        .map_err(|_| FetchError::Unauthorized { what: asker.what.to_owned(), code: asker.code })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Bytes that are wiped with the last of those who hold them.
fn wiped(text: String) -> Bytes {
    Bytes::from_owner(Zeroizing::new(text.into_bytes()))
}
