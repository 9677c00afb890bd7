//! Addresses: where we listen, where the control plane is, which registry is meant.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

pub use crate::listen::ListenAddress;
pub use crate::upstream::grpc::Address as UpstreamAddress;

/// Linux takes 108 bytes for a socket's path, with the zero at its end.
const MAX_SOCKET_PATH: usize = 107;

/// Why a text is no address. The text itself is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    #[error("not an address: unix:/PATH, or an IP address with a port, as in 127.0.0.1:15073 or [::1]:0")]
    Listen,
    #[error("not an address: an IP address with a port, as in 127.0.0.1:15074 or [::]:15074")]
    Tcp,
    #[error("not an address: http://HOST:PORT or unix:/PATH")]
    Upstream,
    #[error("TLS to the control plane is not supported yet: use http://HOST:PORT or unix:/PATH")]
    Https,
    #[error("the address must not hold a user name or password")]
    Credentials,
    #[error("a port is missing, as in http://HOST:15010")]
    Port,
    #[error("the address must end after the port: no path, no query")]
    Trailing,
    #[error("the path of a unix socket must be absolute, as in unix:/run/wasmferry/xds.sock")]
    Relative,
    #[error("the path of a unix socket must not be longer than {MAX_SOCKET_PATH} bytes")]
    TooLong,
    #[error("not a host: HOST or HOST:PORT, without scheme and path")]
    Host,
}

impl FromStr for ListenAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        match text.strip_prefix("unix:") {
            Some(path) => socket_path(path).map(Self::Unix),
            None => text.parse().map(Self::Tcp).map_err(|_| InvalidAddress::Listen),
        }
    }
}

impl FromStr for UpstreamAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let uri: Uri = text.parse().map_err(|_| InvalidAddress::Upstream)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(InvalidAddress::Https),
            _ => return Err(InvalidAddress::Upstream),
        }
        let authority = uri.authority().ok_or(InvalidAddress::Upstream)?;
        if authority.as_str().contains('@') {
            return Err(InvalidAddress::Credentials);
        }
        if !is_host(authority.host()) {
            return Err(InvalidAddress::Upstream);
        }
        if authority.port_u16().is_none_or(|port| port == 0) {
            return Err(InvalidAddress::Port);
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(InvalidAddress::Trailing);
        }
        Ok(Self::Http(uri))
    }
}

/// `unix:///path` means `unix:/path`, as gRPC's own names have it.
fn socket_path(text: &str) -> Result<PathBuf, InvalidAddress> {
    let path = text.strip_prefix("//").unwrap_or(text);
    // A zero byte would end the path early; a folder is no socket.
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err(InvalidAddress::Relative);
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(InvalidAddress::TooLong);
    }
    Ok(PathBuf::from(path))
}

/// A host with or without a port, in lower case.
pub(super) fn parse_host(text: &str) -> Result<String, InvalidAddress> {
    let authority: http::uri::Authority = text.parse().map_err(|_| InvalidAddress::Host)?;
    let port_is_sound = match text.strip_prefix(authority.host()) {
        Some("") => true,
        Some(_) => authority.port_u16().is_some_and(|port| port > 0),
        None => false,
    };
    if !is_host(authority.host()) || !port_is_sound {
        return Err(InvalidAddress::Host);
    }
    Ok(text.to_ascii_lowercase())
}

/// A DNS name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    }
}

/// Whether one process may listen on both.
pub(super) fn collide(a: &ListenAddress, b: &ListenAddress) -> bool {
    match (a, b) {
        (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => a == b && a.port() != 0,
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_read_back_as_shown() {
        for text in ["unix:/run/a.sock", "127.0.0.1:15073", "[::1]:0", "0.0.0.0:1"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert_eq!("unix:///run/a".parse(), Ok(ListenAddress::Unix("/run/a".into())));
    }

    #[test]
    fn a_listener_has_no_host_name_no_relative_path_and_no_abstract_socket() {
        use InvalidAddress::*;
        for (text, why) in [
            ("", Listen),
            ("localhost:15073", Listen),
            ("127.0.0.1", Listen),
            ("127.0.0.1:99999", Listen),
            ("::1:80", Listen),
            ("http://127.0.0.1:1", Listen),
            ("/run/a.sock", Listen),
            ("unix:", Relative),
            ("unix:run/a.sock", Relative),
            ("unix://run/a.sock", Relative),
            ("unix:@name", Relative),
            ("unix:/run/", Relative),
        ] {
            assert_eq!(text.parse::<ListenAddress>(), Err(why), "{text}");
        }
        let path = format!("unix:/{}", "x".repeat(107));
        assert_eq!(path.parse::<ListenAddress>(), Err(TooLong));
        assert!(path[..path.len() - 1].parse::<ListenAddress>().is_ok());
    }

    #[test]
    fn an_upstream_is_plain_http_with_a_port_or_a_unix_socket() {
        for text in
            ["http://127.0.0.1:15012", "http://istiod.istio-system.svc:15010", "http://[::1]:1", "unix:/a"]
        {
            assert_eq!(text.parse::<UpstreamAddress>().unwrap().to_string(), text);
        }
        assert_eq!("http://a:1/".parse::<UpstreamAddress>().unwrap().to_string(), "http://a:1");
    }

    #[test]
    fn other_upstreams_are_refused_each_with_its_reason() {
        use InvalidAddress::*;
        for (text, why) in [
            ("", Upstream),
            ("istiod:15012", Upstream),
            ("127.0.0.1:15012", Upstream),
            ("grpc://a:1", Upstream),
            ("https://istiod:15012", Https),
            ("http://istiod", Port),
            ("http://istiod:0", Port),
            ("http://user:hunter2@istiod:15012", Credentials),
            ("http://istiod:15012/path", Trailing),
            ("http://istiod:15012/?token=hunter2", Trailing),
            ("http://istiod:15012#x", Trailing),
            ("unix:a", Relative),
        ] {
            assert_eq!(text.parse::<UpstreamAddress>(), Err(why), "{text}");
        }
    }

    #[test]
    fn a_host_is_lower_case_and_nothing_but_a_host() {
        for (text, host) in
            [("Registry.Example:5000", "registry.example:5000"), ("a", "a"), ("[::1]:5000", "[::1]:5000")]
        {
            assert_eq!(parse_host(text).as_deref(), Ok(host));
        }
        for text in [
            "",
            "http://a",
            "a/b",
            "user@a",
            "a:",
            "a:0",
            "a:99999",
            ":5000",
            "a b",
            "*.example",
            "[a]:1",
            "[::1",
        ] {
            assert_eq!(parse_host(text), Err(InvalidAddress::Host), "{text}");
        }
    }

    #[test]
    fn two_listeners_collide_unless_the_system_chooses_the_ports() {
        let address = |text: &str| text.parse::<ListenAddress>().unwrap();
        assert!(collide(&address("127.0.0.1:1"), &address("127.0.0.1:1")));
        assert!(!collide(&address("127.0.0.1:0"), &address("127.0.0.1:0")));
        assert!(collide(&address("unix:/a"), &address("unix:///a")));
    }
}
