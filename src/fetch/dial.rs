//! The only way out: every connection of a fetch is made here, and every address is checked when it is
//! dialled, be it a literal or a name's, the user's, a redirect's or a token server's.
//!
//! Behind a forward proxy it is the proxy that looks names up: there, only addresses that stand in the URL
//! itself can be checked, and any other host counts as one on the internet.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::{Host, Position, Url};

use super::address::{AddressPolicy, Reach};
use super::error::FetchError;
use super::names::Names;
use super::proxy::{Proxies, Proxy};
use super::tls::{Tls, Trust};
use crate::clock::Clock;

pub(super) const USER_AGENT: &str = concat!("wasmferry/", env!("CARGO_PKG_VERSION"));

/// The longest host with its port, in bytes: a name has 253 at most, and perhaps a dot at its end.
pub(super) const MAX_HOST: usize = 260;

/// How long one address is tried before the next one is tried beside it (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Makes connections.
pub(super) struct Dialer {
    pub(super) names: Names,
    pub(super) policy: AddressPolicy,
    pub(super) tls: Tls,
    pub(super) proxies: Proxies,
    /// The limit of each of the three steps: lookup, connection, TLS.
    pub(super) connect_timeout: Duration,
    pub(super) clock: Clock,
    /// Where a test's addresses really are.
    #[cfg(test)]
    pub(super) routes: std::collections::HashMap<SocketAddr, SocketAddr>,
}

/// A connection that was made.
pub(super) struct Dialled {
    pub(super) stream: Stream,
    pub(super) reach: Reach,
    /// The proxy at its other end, which is to be told the whole URL of each request.
    pub(super) proxy: Option<Proxy>,
}

pub(super) type Stream = Box<dyn Io>;

/// What goes both ways.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What one connection is made with.
pub(super) struct Dial<'a> {
    pub(super) url: &'a Url,
    /// Where the server lies that led here.
    pub(super) from: Option<Reach>,
    pub(super) trust: Trust,
    /// The limit of each step, where it is less than the dialer's.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) deadline: Instant,
}

/// When the steps of one connection must have ended.
#[derive(Clone, Copy)]
struct Limit {
    deadline: Instant,
    step: Duration,
}

impl Dialer {
    /// Connects to the server of an http or https URL.
    pub(super) async fn dial(&self, dial: Dial<'_>) -> Result<Dialled, FetchError> {
        let url = dial.url;
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(FetchError::Unsupported { what: "a URL".into(), reason: "it has no host".into() });
        };
        let name = host.to_string();
        if name.len() > MAX_HOST {
            let reason = "its host is longer than a name can be".to_owned();
            return Err(FetchError::Unsupported { what: "a URL".into(), reason });
        }
        let step = dial.connect_timeout.unwrap_or(self.connect_timeout).min(self.connect_timeout);
        let limit = Limit { deadline: dial.deadline, step };
        let (stream, reach) = match self.proxies.of(url) {
            None => {
                let addresses = self.addresses(&host, dial.from, limit).await?;
                let connect = self.race(&name, addresses, port);
                let (stream, reach) = self.step("connecting to", &name, limit, connect).await??;
                (Box::new(stream) as Stream, reach)
            }
            Some(proxy) => {
                let reach = self.reach_behind_a_proxy(&host, dial.from)?;
                let stream = self.reach_proxy(proxy, limit).await?;
                if url.scheme() != "https" {
                    return Ok(Dialled { stream, reach, proxy: Some(proxy.clone()) });
                }
                let through = tunnel(stream, proxy, url);
                (self.step("asking the proxy for", &name, limit, through).await??, reach)
            }
        };
        if url.scheme() != "https" {
            return Ok(Dialled { stream, reach, proxy: None });
        }
        let handshake = self.tls.connect(&host, &dial.trust, stream);
        let stream = self.step("securing the connection to", &name, limit, handshake).await??;
        Ok(Dialled { stream: Box::new(stream), reach, proxy: None })
    }

    /// The addresses of a host that may be dialled.
    async fn addresses(
        &self,
        host: &Host<&str>,
        from: Option<Reach>,
        limit: Limit,
    ) -> Result<Vec<(IpAddr, Reach)>, FetchError> {
        let addresses = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => {
                let lookup = self.step("looking up", name, limit, self.names.lookup(name)).await?;
                lookup.map_err(|source| FetchError::Dns { host: (*name).to_owned(), source })?
            }
        };
        self.allowed(&host.to_string(), addresses, from)
    }

    /// Where a host lies that a proxy leads to, as far as that can be known.
    fn reach_behind_a_proxy(&self, host: &Host<&str>, from: Option<Reach>) -> Result<Reach, FetchError> {
        let address = match host {
            Host::Ipv4(address) => IpAddr::V4(*address),
            Host::Ipv6(address) => IpAddr::V6(*address),
            Host::Domain(_) => return Ok(Reach::Public),
        };
        let blocked = |reason| FetchError::Blocked { host: host.to_string(), address, reason };
        self.policy.check(address, from).map_err(blocked)
    }

    /// A connection to a proxy, which the operator has named.
    async fn reach_proxy(&self, proxy: &Proxy, limit: Limit) -> Result<Stream, FetchError> {
        let (Some(host), Some(port)) = (proxy.url.host(), proxy.url.port_or_known_default()) else {
            return Err(FetchError::Unsupported { what: "a proxy".into(), reason: "it has no host".into() });
        };
        let name = format!("the proxy {host}");
        let addresses = self.addresses(&host, None, limit).await?;
        let connect = self.race(&name, addresses, port);
        let (stream, _) = self.step("connecting to", &name, limit, connect).await??;
        if proxy.url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let trust = Trust::default();
        let handshake = self.tls.connect(&host, &trust, stream);
        Ok(Box::new(self.step("securing the connection to", &name, limit, handshake).await??))
    }

    async fn step<F: Future>(
        &self,
        during: &'static str,
        host: &str,
        limit: Limit,
        step: F,
    ) -> Result<F::Output, FetchError> {
        let deadline = limit.deadline.min(self.clock.now() + limit.step);
        let output = self.clock.timeout_at(deadline, step).await;
        output.map_err(|_| FetchError::Timeout { during, host: host.to_owned() })
    }

    /// The addresses that may be dialled, both families in turn. A forbidden one among others is left
    /// out; forbidden ones alone are an error.
    fn allowed(
        &self,
        host: &str,
        addresses: Vec<IpAddr>,
        from: Option<Reach>,
    ) -> Result<Vec<(IpAddr, Reach)>, FetchError> {
        let mut allowed = Vec::with_capacity(addresses.len());
        let mut refused = None;
        for address in addresses {
            match self.policy.check(address, from) {
                Ok(reach) => allowed.push((address, reach)),
                Err(reason) => refused = Some(FetchError::Blocked { host: host.to_owned(), address, reason }),
            }
        }
        match refused {
            Some(error) if allowed.is_empty() => Err(error),
            _ => Ok(alternate(allowed)),
        }
    }

    /// The first address that answers. The next one is tried when one fails or dawdles.
    async fn race(
        &self,
        host: &str,
        addresses: Vec<(IpAddr, Reach)>,
        port: u16,
    ) -> Result<(TcpStream, Reach), FetchError> {
        let mut addresses = addresses.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
        loop {
            if let Some((address, reach)) = addresses.next() {
                let attempt = self.attempt(SocketAddr::new(address, port));
                attempts.push(async move { attempt.await.map(|stream| (stream, reach)) });
            }
            tokio::select! {
                biased;
                finished = attempts.next() => match finished {
                    Some(Ok(connected)) => return Ok(connected),
                    Some(Err(error)) => failure = error,
                    None => return Err(FetchError::Connect { host: host.to_owned(), source: failure }),
                },
                () = self.clock.sleep(STAGGER), if addresses.len() > 0 => {}
            }
        }
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<TcpStream> {
        #[cfg(test)]
        let address = self.routes.get(&address).copied().unwrap_or(address);
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A way through a proxy to the server of an https URL (RFC 9110, 9.3.6).
async fn tunnel(stream: Stream, proxy: &Proxy, url: &Url) -> Result<Stream, FetchError> {
    let host = url[Position::BeforeHost..Position::AfterHost].to_owned();
    let failed = |reason: String, status| {
        let (proxy, host) = (proxy.to_string(), host.clone());
        FetchError::Proxy { proxy, host, reason, status }
    };
    let broken = |error: hyper::Error| failed(error.to_string(), None);
    let target = format!("{host}:{}", url.port_or_known_default().unwrap_or(443));
    let mut request = http::Request::builder()
        .method(Method::CONNECT)
        .uri(&target)
        .header(header::HOST, &target)
        .header(header::USER_AGENT, USER_AGENT)
        .body(Empty::<Bytes>::new())
        .map_err(|_| failed("its name cannot be sent".to_owned(), None))?;
    if let Some(authorization) = &proxy.authorization {
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, HeaderValue::clone(authorization));
    }
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::OK => hyper::upgrade::on(response).await.map_err(broken),
            status => Err(failed(format!("it answered with status {}", status.as_u16()), Some(status))),
        }
    };
    let driving = async { driver.with_upgrades().await.map_err(broken) };
    let (asking, driving) = (std::pin::pin!(asking), std::pin::pin!(driving));
    let opened = match futures_util::future::select(asking, driving).await {
        futures_util::future::Either::Left((outcome, _)) => outcome?,
        // Its part ends when the way is open.
        futures_util::future::Either::Right((driven, asking)) => {
            driven?;
            asking.await?
        }
    };
    Ok(Box::new(TokioIo::new(opened)))
}

/// Takes the two families in turn and begins with that of the first, the resolver's favourite.
fn alternate(addresses: Vec<(IpAddr, Reach)>) -> Vec<(IpAddr, Reach)> {
    let first_is_v6 = addresses.first().is_some_and(|(address, _)| address.is_ipv6());
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|(address, _)| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut alternating = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        alternating.extend(first.next());
        alternating.extend(second.next());
    }
    alternating
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_alternate_and_the_resolvers_order_within_each_stays() {
        let addresses = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"];
        let parsed = addresses.iter().map(|address| (address.parse().unwrap(), Reach::Public)).collect();
        let ordered: Vec<String> = alternate(parsed).iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(ordered, ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]);
    }
}
