//! The only way out: every connection of a fetch is made here, and every address is checked when it is
//! dialled, be it a literal or a name's, the user's, a redirect's or a token server's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

use super::address::{AddressPolicy, Reach};
use super::error::FetchError;
use super::names::Names;
use super::tls::Tls;
use crate::clock::Clock;

/// How long one address is tried before the next one is tried beside it (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Makes connections.
pub(super) struct Dialer {
    pub(super) names: Names,
    pub(super) policy: AddressPolicy,
    pub(super) tls: Tls,
    /// The limit of each of the three steps: lookup, connection, TLS.
    pub(super) connect_timeout: Duration,
    pub(super) clock: Clock,
    /// Where a test's addresses really are.
    #[cfg(test)]
    pub(super) routes: std::collections::HashMap<SocketAddr, SocketAddr>,
}

/// A connection that was made.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Dialer {
    /// Connects to the server of an http or https URL. `from`: where the server lies that led here.
    pub(super) async fn dial(
        &self,
        url: &Url,
        from: Option<Reach>,
        deadline: Instant,
    ) -> Result<(Stream, Reach), FetchError> {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(FetchError::Unsupported { what: "a URL".into(), reason: "it has no host".into() });
        };
        let addresses = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(address)],
            Host::Ipv6(address) => vec![IpAddr::V6(address)],
            Host::Domain(name) => {
                let lookup = self.step("looking up", name, deadline, self.names.lookup(name)).await?;
                lookup.map_err(|source| FetchError::Dns { host: name.to_owned(), source })?
            }
        };
        let host_text = host.to_string();
        let addresses = self.allowed(&host_text, addresses, from)?;
        let connect = self.race(&host_text, addresses, port);
        let (stream, reach) = self.step("connecting to", &host_text, deadline, connect).await??;
        if url.scheme() != "https" {
            return Ok((Stream::Plain(stream), reach));
        }
        let handshake = self.tls.connect(&host, stream);
        let stream = self.step("securing the connection to", &host_text, deadline, handshake).await??;
        Ok((Stream::Tls(Box::new(stream)), reach))
    }

    async fn step<F: Future>(
        &self,
        during: &'static str,
        host: &str,
        deadline: Instant,
        step: F,
    ) -> Result<F::Output, FetchError> {
        let deadline = deadline.min(self.clock.now() + self.connect_timeout);
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
