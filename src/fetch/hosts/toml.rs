//! The text of a `hosts.toml`. Pure; a message never repeats a header's value.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml_span::value::{Table, Value};
use url::Url;

use super::{Access, KeyPair};

/// The parser takes a part of the stack for each that it is in.
const MAX_BRACKETS: usize = 256;

/// A host of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// None for the registry itself.
    pub(super) url: Option<Url>,
    pub(super) capabilities: Capabilities,
    pub(super) access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) pull: bool,
    pub(super) resolve: bool,
}

/// The hosts in the file's order, `server` last. Relative paths are below `folder`.
pub(super) fn parse(text: &str, folder: &Path) -> Result<Vec<Host>, String> {
    if text.matches(['[', '{']).count() > MAX_BRACKETS {
        return Err("holds too many brackets".to_owned());
    }
    let root = toml_span::parse(text).map_err(|error| match error.line_info {
        Some((line, _)) => format!("line {}: is no TOML", line + 1),
        None => "is no TOML".to_owned(),
    })?;
    let reader = Reader { text, folder };
    let table = root.as_table().ok_or("is no table")?;
    let mut hosts = Vec::new();
    if let Some(tables) = table.get("host") {
        let tables = reader.table(tables, "host")?;
        let mut ordered: Vec<_> = tables.iter().collect();
        ordered.sort_by_key(|(key, _)| key.span.start);
        for (key, value) in ordered {
            hosts.push(reader.host(Some(&key.name), reader.table(value, "host")?, key.span.start)?);
        }
    }
    let (server, at) = match table.get("server") {
        Some(value) => (Some(reader.text(value, "server")?), value.span.start),
        None => (None, 0),
    };
    hosts.push(reader.host(server.filter(|server| !server.is_empty()), table, at)?);
    Ok(hosts)
}

struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
}

impl Reader<'_> {
    fn wrong(&self, at: usize, why: &str) -> String {
        let line = self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: {why}")
    }

    fn expected(&self, value: &Value<'_>, key: &str, what: &str) -> String {
        self.wrong(value.span.start, &format!("{key} should be {what}"))
    }

    fn table<'v, 'de>(&self, value: &'v Value<'de>, key: &str) -> Result<&'v Table<'de>, String> {
        value.as_table().ok_or_else(|| self.expected(value, key, "a table"))
    }

    fn text<'v>(&self, value: &'v Value<'_>, key: &str) -> Result<&'v str, String> {
        value.as_str().ok_or_else(|| self.expected(value, key, "a text"))
    }

    fn flag(&self, table: &Table<'_>, key: &str) -> Result<bool, String> {
        let flag = table
            .get(key)
            .map(|value| value.as_bool().ok_or_else(|| self.expected(value, key, "true or false")));
        Ok(flag.transpose()?.unwrap_or_default())
    }

    /// A text or a list of them.
    fn texts<'v>(&self, value: &'v Value<'_>, key: &str) -> Result<Vec<&'v str>, String> {
        match (value.as_str(), value.as_array()) {
            (Some(text), _) => Ok(vec![text]),
            (_, Some(list)) => list.iter().map(|value| self.text(value, key)).collect(),
            _ => Err(self.expected(value, key, "a text or a list of texts")),
        }
    }

    fn host(&self, url: Option<&str>, table: &Table<'_>, at: usize) -> Result<Host, String> {
        let override_path = self.flag(table, "override_path")?;
        let url = url.map(|url| server(url, override_path).map_err(|why| self.wrong(at, why))).transpose()?;
        let access = Access {
            ca_files: match table.get("ca") {
                Some(ca) => self.texts(ca, "ca")?.into_iter().map(|path| self.folder.join(path)).collect(),
                None => Vec::new(),
            },
            client_certificate: table.get("client").map(|client| self.client(client)).transpose()?.flatten(),
            skip_verify: self.flag(table, "skip_verify")?,
            headers: table.get("header").map(|header| self.headers(header)).transpose()?.unwrap_or_default(),
            connect_timeout: table.get("dial_timeout").map(|value| self.duration(value)).transpose()?,
        };
        let capabilities = table.get("capabilities").map(|value| self.capabilities(value)).transpose()?;
        let all = Capabilities { pull: true, resolve: true };
        Ok(Host { url, capabilities: capabilities.flatten().unwrap_or(all), access })
    }

    /// None where the list is empty, which means all.
    fn capabilities(&self, value: &Value<'_>) -> Result<Option<Capabilities>, String> {
        let list = value.as_array().ok_or_else(|| self.expected(value, "capabilities", "a list of texts"))?;
        let mut capabilities = Capabilities { pull: false, resolve: false };
        for value in list {
            match self.text(value, "capabilities")?.to_ascii_lowercase().as_str() {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                "push" | "referrers" => {}
                _ => return Err(self.wrong(value.span.start, "unknown capability")),
            }
        }
        Ok((!list.is_empty()).then_some(capabilities))
    }

    /// One file, a list of files, or a list of pairs of files; of several, the first.
    fn client(&self, value: &Value<'_>) -> Result<Option<KeyPair>, String> {
        let pair = |certificate: &str, key: &str| KeyPair {
            certificate: self.folder.join(certificate),
            key: self.folder.join(if key.is_empty() { certificate } else { key }),
        };
        let first = match value.as_array() {
            Some(list) => match list.first() {
                Some(first) => first,
                None => return Ok(None),
            },
            None => value,
        };
        match self.texts(first, "client")?[..] {
            [certificate] => Ok(Some(pair(certificate, ""))),
            [certificate, key] => Ok(Some(pair(certificate, key))),
            _ => Err(self.expected(first, "client", "a file, or a pair of certificate and key")),
        }
    }

    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (key, value) in self.table(value, "header")? {
            let wrong = |why| self.wrong(value.span.start, why);
            let name = header_name(&key.name).map_err(wrong)?;
            for text in self.texts(value, "header")? {
                headers.append(&name, header_value(text).map_err(wrong)?);
            }
        }
        Ok(headers)
    }

    fn duration(&self, value: &Value<'_>) -> Result<Duration, String> {
        let text = self.text(value, "dial_timeout")?;
        go_duration(text).ok_or_else(|| self.expected(value, "dial_timeout", "a duration, as in 1s"))
    }
}

/// As containerd reads it: https without a scheme, and `/v2` at the end unless it is told otherwise.
fn server(text: &str, override_path: bool) -> Result<Url, &'static str> {
    const WHY: &str = "not a host: SCHEME://HOST[:PORT][/PATH]";
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&text).map_err(|_| WHY)?;
    let sound =
        matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if !sound || url.host_str().is_none() || url.query().is_some() || url.fragment().is_some() {
        return Err(WHY);
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if path.ends_with("/v2") || override_path { path } else { format!("{path}/v2") };
    url.set_path(&format!("{path}/"));
    Ok(url)
}

/// A header that may be configured: none that is the connection's or the request's own.
pub fn header_name(text: &str) -> Result<HeaderName, &'static str> {
    use http::header::*;
    let name = HeaderName::try_from(text).map_err(|_| "not the name of a header")?;
    let own = [
        HOST,
        CONNECTION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TE,
        TRAILER,
        UPGRADE,
        EXPECT,
        RANGE,
        IF_RANGE,
        ACCEPT_ENCODING,
        PROXY_AUTHORIZATION,
    ];
    if own.contains(&name) { Err("this header is wasmferry's own") } else { Ok(name) }
}

/// A header's value, which may be a secret.
pub fn header_value(text: &str) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::try_from(text).map_err(|_| "holds what a header cannot carry")?;
    value.set_sensitive(true);
    Ok(value)
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `300ms`. None for others, negative and zero ones too.
pub fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let (unit, scale) = UNITS.iter().find(|(unit, _)| rest[end..].starts_with(unit))?;
        seconds += number * scale;
        rest = &rest[end + unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero())
}
