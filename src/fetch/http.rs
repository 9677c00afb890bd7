//! A small HTTP/1.1 client over the guarded connector. It follows redirects itself, because what may go
//! along depends on where they lead, and puts a limit in time and size on everything it reads.
//!
//! Connections are kept for the length of one [`Session`], which is one fetch: manifest and blob share
//! one where the server allows it, two fetches never do. Nothing here is ever logged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;
use url::{Position, Url};

use super::address::Reach;
use super::dial::{Dial, Dialer, MAX_HOST, Stream, USER_AGENT};
use super::error::FetchError;
use super::hosts::Access;
use super::pace::{Judgement, MinRate, Pace};
use super::proxy::Proxy;
use super::tls::Trust;
use crate::clock::Clock;

const MAX_REDIRECTS: usize = 10;
/// The limit of an answer's head, and of what is read ahead of a body.
const READ_BUFFER: usize = 128 * 1024;

/// What all sessions share.
pub(super) struct Client {
    pub(super) dialer: Dialer,
    pub(super) clock: Clock,
    /// How long a server may say nothing.
    pub(super) progress_timeout: Duration,
    /// The least that a server must send of a body, in bytes a second over that time.
    pub(super) min_rate: u64,
}

impl Client {
    fn least(&self) -> MinRate {
        MinRate { rate: self.min_rate, window: self.progress_timeout }
    }
}

/// The connections of one fetch.
pub(super) struct Session {
    client: Arc<Client>,
    peer: Peer,
    idle: Vec<Connection>,
}

/// The server that a session is with, and what is special about it. What it leads to is another's.
#[derive(Clone)]
pub(super) struct Peer {
    origin: url::Origin,
    host: Option<url::Host>,
    access: Arc<Access>,
}

impl Peer {
    pub(super) fn new(url: &Url, access: Arc<Access>) -> Self {
        Peer { origin: url.origin(), host: url.host().map(|host| host.to_owned()), access }
    }

    fn trust(&self, url: &Url) -> Trust {
        match url.host().map(|host| host.to_owned()) == self.host {
            true => Trust::own(&self.access),
            false => Trust::led(&self.access),
        }
    }
}

struct Connection {
    origin: url::Origin,
    reach: Reach,
    proxy: Option<Proxy>,
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes; ends with the connection's last user.
    _driver: AbortOnDropHandle<()>,
}

/// What is asked.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: Bytes,
    /// Where the server lies that named this URL; none where the user did.
    pub(super) from: Option<Reach>,
    /// Another origin led here: nothing that says who we are goes along any more.
    pub(super) led: bool,
}

impl Request {
    /// A GET of what the user named.
    pub(super) fn get(url: Url) -> Self {
        Self::of(Method::GET, url)
    }

    /// A request without a body for what the user named.
    pub(super) fn of(method: Method, url: Url) -> Self {
        Request {
            method,
            url,
            headers: HeaderMap::new(),
            authorization: None,
            body: Bytes::new(),
            from: None,
            led: false,
        }
    }
}

impl Session {
    pub(super) fn new(client: Arc<Client>, peer: Peer) -> Self {
        Session { client, peer, idle: Vec::new() }
    }

    /// The same with connections of its own.
    pub(super) fn again(&self) -> Self {
        Session::new(self.client.clone(), self.peer.clone())
    }

    /// Sends the request, follows redirects, and returns once the final answer's head is there.
    ///
    /// `Authorization` and configured headers go to the URL's own origin alone, and not there either once
    /// another one has led back to it. A redirect from https to http, one with a
    /// user name, and any redirect of a POST are refused.
    pub(super) async fn send(
        &mut self,
        mut request: Request,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange(&request, deadline).await?;
            let Some(target) = redirect(&request, &response)? else { return Ok(response) };
            if target.origin() != request.url.origin() {
                request.authorization = None;
                request.led = true;
            }
            request.from = Some(response.connection.reach);
            request.url = target;
        }
        Err(FetchError::Redirect { host: host(&request.url), reason: "there are more than ten in a row" })
    }

    /// One request and the head of its answer, over a connection that is there already or a new one.
    async fn exchange(&mut self, request: &Request, deadline: Instant) -> Result<Response, FetchError> {
        if let Some(connection) = self.reusable(request) {
            match self.send_over(connection, request, deadline).await {
                // A server may close an idle connection at any time, also while we send.
                Err(FetchError::Transport { .. }) => {}
                outcome => return outcome,
            }
        }
        let dial = Dial {
            url: &request.url,
            from: request.from,
            trust: self.peer.trust(&request.url),
            connect_timeout: self.peer.access.connect_timeout,
            deadline,
        };
        let dialled = self.client.dialer.dial(dial).await?;
        let origin = request.url.origin();
        let connection = handshake(dialled.stream, origin, dialled.reach, dialled.proxy).await;
        let connection =
            connection.map_err(|source| FetchError::Transport { host: host(&request.url), source })?;
        self.send_over(connection, request, deadline).await
    }

    fn reusable(&mut self, request: &Request) -> Option<Connection> {
        self.idle.retain(|connection| !connection.sender.is_closed());
        let inward =
            |connection: &Connection| request.from == Some(Reach::Public) && connection.reach == Reach::Inner;
        let origin = request.url.origin();
        let fits = |connection: &Connection| connection.origin == origin && !inward(connection);
        self.idle.iter().position(fits).map(|index| self.idle.swap_remove(index))
    }

    async fn send_over(
        &self,
        mut connection: Connection,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        let client = &self.client;
        let is_own = !request.led && request.url.origin() == self.peer.origin;
        let own = is_own.then_some(&self.peer.access.headers);
        let message = message(request, own, connection.proxy.as_ref())?;
        let exchange = async {
            connection.sender.ready().await?;
            connection.sender.send_request(message).await
        };
        let host = host(&request.url);
        let answer = within(client, &host, deadline, exchange).await?;
        let answer = answer.map_err(|source| FetchError::Transport { host: host.clone(), source })?;
        let (head, body) = answer.into_parts();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            url: request.url.clone(),
            pace: Pace::new(client.least()),
            client: client.clone(),
            body,
            connection,
            deadline,
            host,
        })
    }

    /// Reads a small body whole, and keeps the connection for the next request.
    pub(super) async fn read(
        &mut self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Bytes, FetchError> {
        let too_large = || FetchError::TooLarge { what: what.to_owned(), limit };
        if response.length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        self.idle.push(response.connection);
        Ok(body.freeze())
    }
}

/// An answer whose body has not been read yet.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where the answer came from in the end.
    pub(super) url: Url,
    client: Arc<Client>,
    pace: Pace,
    body: Incoming,
    connection: Connection,
    deadline: Instant,
    host: String,
}

impl Response {
    /// The length that the server declares.
    pub(super) fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Where the server lies that answered.
    pub(super) fn reach(&self) -> Reach {
        self.connection.reach
    }

    /// The next piece of the body; none at its regular end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let Some(frame) = self.frame().await? else { return Ok(None) };
            let frame = frame.map_err(|source| FetchError::Transport { host: self.host.clone(), source })?;
            match frame.into_data() {
                Ok(data) if !data.is_empty() => {
                    self.pace.count(Duration::ZERO, data.len());
                    return Ok(Some(data));
                }
                // Trailers tell nothing that counts here.
                _ => {}
            }
        }
    }

    /// Waits for what comes next: as long as [`within`] says, and as long as enough comes.
    async fn frame(&mut self) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, FetchError> {
        let Response { client, host, deadline, pace, body, .. } = self;
        let receiving = async {
            loop {
                let began = client.clock.now();
                let frame = match pace.judged_at(began) {
                    Some(judged) => client.clock.timeout_at(judged, body.frame()).await.ok(),
                    None => Some(body.frame().await),
                };
                pace.count(client.clock.now() - began, 0);
                if let Some(frame) = frame {
                    return Ok(frame);
                }
                if let Judgement::TooSlow(bytes) = pace.judge() {
                    let MinRate { rate: least, window } = client.least();
                    return Err(FetchError::Slow { host: host.clone(), bytes, window, least });
                }
            }
        };
        within(client, host, *deadline, receiving).await?
    }
}

/// Waits for the server: until the deadline, and never longer than it may say nothing.
async fn within<F: Future>(
    client: &Client,
    host: &str,
    deadline: Instant,
    step: F,
) -> Result<F::Output, FetchError> {
    let silent = client.clock.now() + client.progress_timeout;
    let output = client.clock.timeout_at(deadline.min(silent), step).await;
    output.map_err(|_| match deadline <= silent {
        true => FetchError::Timeout { during: "reading from", host: host.to_owned() },
        false => FetchError::Stalled { host: host.to_owned() },
    })
}

async fn handshake(
    stream: Stream,
    origin: url::Origin,
    reach: Reach,
    proxy: Option<Proxy>,
) -> Result<Connection, hyper::Error> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_BUFFER);
    let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
    // The driver's error reaches whoever waits for the answer or its body.
    let driver = tokio::spawn(async move { drop(driver.await) });
    Ok(Connection { origin, reach, proxy, sender, _driver: AbortOnDropHandle::new(driver) })
}

/// `own`: the headers that are configured for this server. A proxy is told the whole URL, and who we are
/// to it.
fn message(
    request: &Request,
    own: Option<&HeaderMap>,
    proxy: Option<&Proxy>,
) -> Result<http::Request<Full<Bytes>>, FetchError> {
    let url = &request.url;
    let target = match proxy {
        Some(_) => &url[..Position::AfterQuery],
        None => &url[Position::BeforePath..Position::AfterQuery],
    };
    let invalid = |_| FetchError::Unsupported {
        what: format!("a URL of {}", host(url)),
        reason: "it holds what HTTP cannot carry".to_owned(),
    };
    let mut message = http::Request::builder()
        .method(request.method.clone())
        .uri(target)
        .header(header::HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(request.body.clone()))
        .map_err(invalid)?;
    message.headers_mut().extend(own.cloned().unwrap_or_default());
    message.headers_mut().extend(request.headers.clone());
    if let Some(authorization) = proxy.and_then(|proxy| proxy.authorization.as_ref()) {
        message.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
    }
    if let Some(authorization) = &request.authorization {
        message.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
    }
    Ok(message)
}

/// Where the answer leads, if it is a redirect, and if it may.
fn redirect(request: &Request, response: &Response) -> Result<Option<Url>, FetchError> {
    if !matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let refused = |reason| FetchError::Redirect { host: host(&request.url), reason };
    if request.method == Method::POST {
        return Err(refused("the request held a credential in its body"));
    }
    let location = response.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| refused("it does not say where to"))?;
    let target = request.url.join(location).map_err(|_| refused("its target is not a valid URL"))?;
    match (request.url.scheme(), target.scheme()) {
        ("https", "http") => return Err(refused("it leads from https to http")),
        (_, "http" | "https") => {}
        _ => return Err(refused("it leads to something that is not http or https")),
    }
    if !target.username().is_empty() || target.password().is_some() {
        return Err(refused("its target holds a user name"));
    }
    Ok(Some(target))
}

/// Host and port, for messages; of one that is longer than hosts can be, the beginning.
pub(super) fn host(url: &Url) -> String {
    url[Position::BeforeHost..Position::AfterPort].chars().take(MAX_HOST).collect()
}
