//! Forward proxies: which server is reached through which, as curl and Go's programs read `HTTP_PROXY`,
//! `HTTPS_PROXY` and `NO_PROXY`. Pure; the dialer makes the connections.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use ipnet::IpNet;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::module::is_loopback;

/// What is reached through proxies. By default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http and for https.
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Direct,
}

/// A forward proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Without user and password.
    pub(super) url: Url,
    /// `Basic ...`, where the URL held a user.
    pub(super) authorization: Option<HeaderValue>,
}

/// What is reached without one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Direct {
    all: bool,
    entries: Vec<Exempt>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exempt {
    what: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Networks(IpNet),
    /// A name and all below it; without its own the name begins with a dot.
    Names(String),
}

impl Proxies {
    /// The two proxies, and the list of what is exempt from them.
    pub fn new(http: Option<Proxy>, https: Option<Proxy>, no_proxy: &str) -> Self {
        Proxies { http, https, direct: Direct::parse(no_proxy) }
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxies for http and https, for people.
    pub fn shown(&self) -> impl Iterator<Item = (&'static str, String)> {
        let both = [("http", &self.http), ("https", &self.https)];
        both.into_iter().filter_map(|(scheme, proxy)| Some((scheme, proxy.as_ref()?.to_string())))
    }

    /// The proxy that leads to a URL. This machine is never asked of another one.
    pub(super) fn of(&self, url: &Url) -> Option<&Proxy> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        let (host, port) = (url.host()?, url.port_or_known_default()?);
        let exempt = is_loopback(&host.to_string()) || self.direct.holds(&host, port);
        (!exempt).then_some(proxy)
    }
}

impl Proxy {
    /// Reads `[http[s]://][USER:PASSWORD@]HOST[:PORT]`. The text is not repeated in the error.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const WHY: &str = "not a proxy: http://HOST:PORT or https://HOST:PORT, perhaps with USER:PASSWORD@";
        let whole = Zeroizing::new(match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        });
        let mut url = Url::parse(&whole).map_err(|_| WHY)?;
        if url.scheme().starts_with("socks") {
            return Err("SOCKS proxies are not supported: http://HOST:PORT or https://HOST:PORT");
        }
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) || !bare {
            return Err(WHY);
        }
        let authorization = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let decode = |text: &str| percent_decode(text).map(Zeroizing::new).ok_or(WHY);
                let (user, password) = (decode(user)?, decode(password.unwrap_or_default())?);
                let login = Zeroizing::new([&user[..], b":", &password[..]].concat());
                let value = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(&*login)));
                let mut value = HeaderValue::from_str(&value).map_err(|_| WHY)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| WHY)?;
        Ok(Proxy { url, authorization })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Direct {
    /// A comma-separated list: `*`, addresses, networks, names; each but `*` perhaps with a port. What
    /// is none of these names nothing.
    fn parse(text: &str) -> Self {
        let mut direct = Direct::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                direct.all = true;
                continue;
            }
            if let Ok(network) = entry.parse::<IpNet>() {
                direct.entries.push(Exempt { what: Hosts::Networks(network), port: None });
                continue;
            }
            let (host, port) = split_port(entry);
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let what = match bare.parse::<IpAddr>() {
                Ok(address) => Hosts::Networks(address.into()),
                Err(_) => {
                    let name = host.strip_prefix('*').unwrap_or(host);
                    Hosts::Names(name.trim_end_matches('.').to_ascii_lowercase())
                }
            };
            direct.entries.push(Exempt { what, port });
        }
        direct
    }

    fn holds(&self, host: &Host<&str>, port: u16) -> bool {
        let fits = |what: &Hosts| match (what, host) {
            (Hosts::Networks(network), Host::Ipv4(address)) => network.contains(&IpAddr::V4(*address)),
            (Hosts::Networks(network), Host::Ipv6(address)) => {
                network.contains(&IpAddr::V6(*address).to_canonical())
            }
            (Hosts::Names(name), Host::Domain(host)) => {
                let host = host.trim_end_matches('.');
                let below = |name: &str| host.len() > name.len() && host.ends_with(name);
                match name.starts_with('.') {
                    true => below(name),
                    false => host == name || below(&format!(".{name}")),
                }
            }
            _ => false,
        };
        let of_port = |exempt: &Exempt| exempt.port.is_none_or(|only| only == port);
        self.all || self.entries.iter().any(|exempt| of_port(exempt) && fits(&exempt.what))
    }
}

/// Host and port, where there is one. Of a bare IPv6 address the last part is none.
fn split_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, more) = rest.split_at_checked(2)?;
        bytes.extend(hex::decode(digits).ok()?);
        rest = more;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        let proxy = |text| Some(Proxy::parse(text).unwrap());
        Proxies::new(proxy("plain.example:3128"), proxy("https://secure.example"), no_proxy)
    }

    fn of(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.of(&Url::parse(url).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn each_scheme_has_its_proxy_and_this_machine_none() {
        let proxies = proxies("");
        assert_eq!(of(&proxies, "http://a.io/").as_deref(), Some("http://plain.example:3128"));
        assert_eq!(of(&proxies, "https://a.io/").as_deref(), Some("https://secure.example"));
        for url in ["http://localhost:5000/", "https://127.0.0.1/", "http://127.9.9.9/", "http://[::1]:5000/"]
        {
            assert_eq!(of(&proxies, url), None, "{url}");
        }
        assert_eq!(of(&Proxies::default(), "https://a.io/"), None);
    }

    #[test]
    fn no_proxy_names_hosts_suffixes_networks_and_ports() {
        let proxies = proxies(
            " a.io, .b.io ,*.c.io,d.io:8443,10.0.0.0/8,192.0.2.7,192.0.2.8:5000,2001:db8::/32,[2001:db9::1]:80,,Z.io",
        );
        for (url, direct) in [
            ("https://a.io/", true),
            ("https://x.a.io:444/", true),
            ("https://xa.io/", false),
            ("https://b.io/", false),
            ("https://x.b.io/", true),
            ("https://c.io/", false),
            ("https://x.y.c.io/", true),
            ("https://d.io/", false),
            ("https://d.io:8443/", true),
            ("https://10.255.0.1/", true),
            ("https://11.0.0.1/", false),
            ("https://192.0.2.7/", true),
            ("https://192.0.2.8/", false),
            ("https://192.0.2.8:5000/", true),
            ("https://[2001:db8::9]/", true),
            ("http://[2001:db9::1]/", true),
            ("https://[2001:db9::1]/", false),
            ("https://z.io/", true),
            ("https://e.io/", false),
        ] {
            assert_eq!(of(&proxies, url).is_none(), direct, "{url}");
        }
        assert_eq!(of(&self::proxies("a.io,*"), "https://b.io/"), None);
    }

    #[test]
    fn a_proxys_password_is_read_and_never_shown() {
        let proxy = Proxy::parse("http://alice:hunter%402@p.example:3128/").unwrap();
        assert_eq!(format!("{proxy} {proxy:?}"), "http://p.example:3128 Proxy(http://p.example:3128)");
        let authorization = proxy.authorization.unwrap();
        let login = authorization.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(BASE64_STANDARD.decode(login).unwrap(), b"alice:hunter@2");
        assert!(authorization.is_sensitive());
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_text() {
        for text in [
            "",
            "socks5://p:1",
            "ftp://p",
            "http://p/path",
            "http://p?x=hunter2",
            "http://",
            "http://u:%zz@p",
            "p:x",
        ] {
            let why = Proxy::parse(text).unwrap_err();
            assert!(!why.contains("hunter2"), "{text}");
        }
    }
}
