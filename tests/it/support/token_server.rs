//! A token server for the real registry: the distribution project's token protocol, by GET with a password
//! and by POST with an identity token. It remembers whom it gave which token.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::form_urlencoded;

use super::authority::Authority;
use super::world::World;

const SERVICE: &str = "the registry of the tests";
const ISSUER: &str = "the token server of the tests";
/// For so long after its end the registry takes a token all the same.
const LEEWAY: Duration = Duration::from_secs(60);

pub struct TokenServer {
    address: SocketAddr,
    /// The certificates that the registry trusts.
    roots: PathBuf,
    state: Arc<Mutex<State>>,
    // Aborts its tasks on drop.
    _server: JoinSet<()>,
}

struct State {
    key: EcdsaKeyPair,
    /// Its certificate as a token's header has it.
    certificate: String,
    accounts: BTreeMap<String, Account>,
    told: Option<Duration>,
    lives: Duration,
    asked: Vec<Asked>,
    /// How many tokens there are of each user.
    given: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Account {
    password: String,
    identity_token: Option<String>,
    repositories: BTreeSet<String>,
}

/// A request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// All scopes, as they were asked for.
    pub scope: String,
    pub service: String,
    /// None where whoever asks is not let in.
    pub user: Option<String>,
    /// Whom the token names, which is another one for each: `alice#1`.
    pub subject: Option<String>,
    pub token: Option<String>,
}

impl TokenServer {
    /// Knows nobody yet. Its tokens live for five minutes, and it says so.
    pub async fn start(world: &World) -> TokenServer {
        let address = world.address();
        let name = format!("tokens-{}", address.port());
        let authority = Authority::new(world, &format!("{name}-ca"));
        let pair = authority.pair(world, &name, &["tokens.test".to_owned()]);
        let key = BASE64_STANDARD.decode(pem_body(&pair.key)).expect("a key in PEM");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &SystemRandom::new());
        let minutes = Duration::from_secs(300);
        let state = Arc::new(Mutex::new(State {
            key: key.expect("a key of P-256"),
            certificate: pem_body(&pair.certificate),
            accounts: BTreeMap::new(),
            told: Some(minutes),
            lives: minutes,
            asked: Vec::new(),
            given: BTreeMap::new(),
        }));
        let listener = TcpListener::bind(address).await.expect("a free address");
        let mut server = JoinSet::new();
        server.spawn({
            let state = state.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let state = state.clone();
                    let service = service_fn(move |request| {
                        let state = state.clone();
                        async move { Ok::<_, Infallible>(answer(request, &state).await) }
                    });
                    connections.spawn(async move {
                        // A client that has gone is none of ours.
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            }
        });
        TokenServer { address, roots: authority.file, state, _server: server }
    }

    /// What the registry is configured with under `auth`.
    pub fn auth(&self) -> Value {
        json!({"token": {
            "realm": format!("http://{}/token", self.address),
            "service": SERVICE, "issuer": ISSUER, "rootcertbundle": self.roots,
        }})
    }

    /// Lets a user in by this password from now on, to pull these repositories.
    pub fn know(&self, user: &str, password: &str, repositories: &[&str]) {
        let mut state = self.lock();
        let account = state.accounts.entry(user.to_owned()).or_default();
        account.password = password.to_owned();
        account.repositories = repositories.iter().map(|&name| name.to_owned()).collect();
    }

    /// Lets the user in by this identity token from now on, and by no earlier one.
    pub fn identify(&self, user: &str, identity_token: &str) {
        self.lock().accounts.entry(user.to_owned()).or_default().identity_token = Some(identity_token.into());
    }

    /// How long tokens live from now on by what is told, if it is, and in truth.
    pub fn lifetime(&self, told: Option<Duration>, lives: Duration) {
        let mut state = self.lock();
        (state.told, state.lives) = (told, lives);
    }

    /// A token that nobody asked for, for this user and repository.
    pub fn token(&self, user: &str, repository: &str) -> String {
        self.lock().sign(user, Some(repository)).1
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A token's subject and the token. Without a repository it allows nothing.
    fn sign(&mut self, user: &str, repository: Option<&str>) -> (String, String) {
        let number = self.given.entry(user.to_owned()).or_default();
        *number += 1;
        let subject = format!("{user}#{number}");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
        let access = repository.map(|name| json!({"type": "repository", "name": name, "actions": ["pull"]}));
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": subject, "jti": subject,
            "iat": now.as_secs(), "nbf": now.as_secs() - 1,
            "exp": (now + self.lives).saturating_sub(LEEWAY).as_secs(),
            "access": access.into_iter().collect::<Vec<_>>(),
        });
        let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let signed =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        (subject, format!("{signed}.{}", encode(signature.as_ref())))
    }

    /// Who asks by a password in a header, or by an identity token in a form.
    fn user(&self, authorization: Option<&str>, form: &BTreeMap<String, String>) -> Option<String> {
        let find = |is: &dyn Fn(&str, &Account) -> bool| {
            self.accounts.iter().find(|(user, account)| is(user, account)).map(|(user, _)| user.clone())
        };
        match form.get("refresh_token") {
            Some(token) if form.get("grant_type").is_some_and(|grant| grant == "refresh_token") => {
                find(&|_, account| account.identity_token.as_ref() == Some(token))
            }
            Some(_) => None,
            None => {
                let pair = BASE64_STANDARD.decode(authorization?.strip_prefix("Basic ")?).ok()?;
                let pair = String::from_utf8(pair).ok()?;
                let (user, password) = pair.split_once(':')?;
                find(&|name, account| name == user && account.password == password)
            }
        }
    }

    fn answer(
        &mut self,
        method: &Method,
        authorization: Option<&str>,
        form: BTreeMap<String, String>,
    ) -> (StatusCode, Value) {
        let of = |key: &str| form.get(key).cloned().unwrap_or_default();
        let user = self.user(authorization, &form);
        let mut asked = Asked {
            method: method.to_string(),
            scope: of("scope"),
            service: of("service"),
            user: user.clone(),
            subject: None,
            token: None,
        };
        let sound = asked.service == SERVICE && (*method == Method::GET || form.contains_key("client_id"));
        let answer = match user {
            _ if !sound => (StatusCode::BAD_REQUEST, json!({})),
            None => (StatusCode::UNAUTHORIZED, json!({"errors": [{"code": "UNAUTHORIZED"}]})),
            Some(user) => {
                // What is granted may be less than what was asked for.
                let may = self.accounts.get(&user).map(|account| account.repositories.clone());
                let wanted =
                    asked.scope.strip_prefix("repository:").and_then(|rest| rest.strip_suffix(":pull"));
                let granted = wanted.filter(|name| may.is_some_and(|may| may.contains(*name)));
                let (subject, token) = self.sign(&user, granted);
                // By GET most say `token`, by POST `access_token`.
                let key = if *method == Method::GET { "token" } else { "access_token" };
                let mut answer = json!({key: token});
                if let Some(told) = self.told {
                    answer["expires_in"] = told.as_secs().into();
                }
                (asked.subject, asked.token) = (Some(subject), Some(token));
                (StatusCode::OK, answer)
            }
        };
        self.asked.push(asked);
        answer
    }
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let form = match parts.method {
        Method::POST => body.to_vec(),
        _ => parts.uri.query().unwrap_or_default().as_bytes().to_vec(),
    };
    let form = form_urlencoded::parse(&form).into_owned().collect();
    let authorization = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, answer) = state.answer(&parts.method, authorization, form);
    let answer = Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(answer.to_string())));
    answer.expect("an answer")
}

/// What stands between the first line of a PEM file and its last.
fn pem_body(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("a file in PEM");
    text.lines().filter(|line| !line.starts_with("-----")).collect()
}
