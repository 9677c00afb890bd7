//! Why a fetch failed. Variants are decisions: what to tell the user, whether and when to try again.
//!
//! No text in here comes from a peer except media types and the well-known codes of registries, and
//! none holds a credential, a token or the query of a URL.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use super::credentials::CredentialError;

/// Why a module could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{what} was not found{code}")]
    NotFound { what: String, code: RegistryCode },
    #[error("not authorised to read {what}{code}")]
    Unauthorized { what: String, code: RegistryCode },
    #[error("access to {what} is denied{code}")]
    Denied { what: String, code: RegistryCode },
    #[error("the server limits how often {what} may be asked for{code}")]
    RateLimited { what: String, code: RegistryCode, retry_after: Option<Duration> },
    #[error("the server cannot deliver {what} now: status {status}")]
    Unavailable { what: String, status: StatusCode, retry_after: Option<Duration> },
    #[error("unexpected status {status} for {what}{code}")]
    Status { what: String, status: StatusCode, code: RegistryCode },
    #[error("cannot look up the host name {host}")]
    Dns { host: String, source: io::Error },
    #[error("cannot connect to {host}")]
    Connect { host: String, source: io::Error },
    #[error("no secure connection to {host}")]
    Tls { host: String, source: io::Error },
    #[error(
        "no root certificates were found, which https needs: install the system's CA certificates \
         (ca-certificates) or name a file of them in SSL_CERT_FILE"
    )]
    NoRoots,
    #[error("cannot use {} for a connection", path.display())]
    CertificateFile { path: PathBuf, source: io::Error },
    #[error("{} {why}", path.display())]
    Hosts { path: PathBuf, why: String },
    #[error("the proxy {proxy} does not lead to {host}: {reason}")]
    Proxy { proxy: String, host: String, reason: String, status: Option<StatusCode> },
    #[error("{mirror} gave something else")]
    Mirror { mirror: String, source: Box<FetchError> },
    #[error("the connection to {host} failed")]
    Transport { host: String, source: hyper::Error },
    #[error("{host} is at {address}, which must not be connected to: {reason}")]
    Blocked { host: String, address: IpAddr, reason: &'static str },
    #[error("a redirect from {host} was refused: {reason}")]
    Redirect { host: String, reason: &'static str },
    #[error("the deadline passed while {during} {host}")]
    Timeout { during: &'static str, host: String },
    #[error("{host} stopped sending")]
    Stalled { host: String },
    #[error("{host} sends too slowly: {bytes} bytes in {window:?}, and {least} bytes a second are the least")]
    Slow { host: String, bytes: u64, window: Duration, least: u64 },
    #[error("{what} changed while it was fetched")]
    Changed { what: String },
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("{what} should have {expected} bytes, but has {}{actual}", if *.at_least { "at least " } else { "" })]
    SizeMismatch { what: String, expected: u64, actual: u64, at_least: bool },
    #[error("{what} does not have the digest {expected}, but {actual}")]
    DigestMismatch { what: String, expected: String, actual: String },
    #[error("the manifest of {what} is invalid: {reason}")]
    Manifest { what: String, reason: String },
    #[error("{what} is not supported: {reason}")]
    Unsupported { what: String, reason: String },
    #[error("the registry {registry} names {realm} as its token server, which is not known to belong to it")]
    Realm { registry: String, realm: String },
    #[error("the token server {host} did not give a usable token: {reason}")]
    Token { host: String, reason: &'static str },
    #[error("the pull secret of this module is not available, and pulling without it is not allowed")]
    SecretUnavailable,
    #[error("the pull secret is invalid: {0}")]
    BadSecret(&'static str),
    #[error("the pull secret of this module has nothing for {what}, and pulling without it is not allowed")]
    SecretUnmatched { what: String },
    #[error(transparent)]
    Credential(CredentialError),
    #[error("the file {} must not be read: {reason}", path.display())]
    FileNotAllowed { path: PathBuf, reason: &'static str },
    #[error("cannot read the file {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the fetch was interrupted")]
    Interrupted,
    #[error("cannot read what was fetched")]
    Io(#[source] io::Error),
}

impl FetchError {
    /// The kind of failure, for a metric's label.
    pub fn label(&self) -> &'static str {
        use FetchError::*;
        match self {
            NotFound { .. } => "not_found",
            Unauthorized { .. } => "unauthorized",
            Denied { .. } => "denied",
            RateLimited { .. } => "rate_limited",
            Unavailable { .. } => "unavailable",
            Status { .. } => "status",
            Dns { .. } => "dns",
            Connect { .. } => "connect",
            Tls { .. } => "tls",
            NoRoots => "no_roots",
            CertificateFile { .. } => "certificate_file",
            Hosts { .. } => "hosts",
            Proxy { .. } => "proxy",
            Mirror { source, .. } => source.label(),
            Transport { .. } => "transport",
            Blocked { .. } => "blocked",
            Redirect { .. } => "redirect",
            Timeout { .. } => "timeout",
            Stalled { .. } => "stalled",
            Slow { .. } => "slow",
            Changed { .. } => "changed",
            TooLarge { .. } => "too_large",
            SizeMismatch { .. } => "size_mismatch",
            DigestMismatch { .. } => "digest_mismatch",
            Manifest { .. } => "manifest",
            Unsupported { .. } => "unsupported",
            Realm { .. } => "realm",
            Token { .. } => "token",
            SecretUnavailable => "secret_unavailable",
            BadSecret(_) => "bad_secret",
            SecretUnmatched { .. } => "secret_unmatched",
            Credential(_) => "credential",
            FileNotAllowed { .. } => "file_not_allowed",
            File { .. } => "file",
            Interrupted => "interrupted",
            Io(_) => "io",
        }
    }

    /// Whether trying again soon is useless: somebody has to change the source, the resource or
    /// the configuration first. The rest may pass by itself.
    pub fn is_permanent(&self) -> bool {
        use FetchError::*;
        match self {
            RateLimited { .. }
            | Unavailable { .. }
            | Dns { .. }
            | Connect { .. }
            | Tls { .. }
            | NoRoots
            | CertificateFile { .. }
            | Hosts { .. }
            | Proxy { .. }
            | Mirror { .. }
            | Transport { .. }
            | Timeout { .. }
            | Stalled { .. }
            | Slow { .. }
            | Changed { .. }
            | Token { .. }
            | Credential(_)
            | File { .. }
            | Interrupted
            | Io(_) => false,
            NotFound { .. }
            | Unauthorized { .. }
            | Denied { .. }
            | Status { .. }
            | Blocked { .. }
            | Redirect { .. }
            | TooLarge { .. }
            | SizeMismatch { .. }
            | DigestMismatch { .. }
            | Manifest { .. }
            | Unsupported { .. }
            | Realm { .. }
            | SecretUnavailable
            | BadSecret(_)
            | SecretUnmatched { .. }
            | FileNotAllowed { .. } => true,
        }
    }

    /// Whether the same question may well be answered within moments: the connection failed, or the server
    /// said that it cannot answer now. One that answers slowly does so on purpose, or will do so again.
    pub fn may_pass_soon(&self) -> bool {
        use FetchError::*;
        match self {
            RateLimited { .. }
            | Dns { .. }
            | Connect { .. }
            | Transport { .. }
            | Timeout { .. }
            | Stalled { .. } => true,
            // What it refuses to do, it goes on to refuse.
            Proxy { status, .. } => status.is_none_or(|status| status.is_server_error()),
            // A certificate that is not believed stays that; rustls calls it invalid data.
            Tls { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
            }
            // Of these it is the request that is not understood.
            Unavailable { status, .. } => !matches!(status.as_u16(), 501 | 505 | 511),
            _ => false,
        }
    }

    /// How long the server asked us to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            FetchError::RateLimited { retry_after, .. } | FetchError::Unavailable { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    /// Takes the fetch's error out of what a [`Body`](super::Body) returned from `read`.
    pub fn from_io(error: io::Error) -> FetchError {
        error.downcast::<FetchError>().unwrap_or_else(FetchError::Io)
    }

    /// What a status other than success means. `what` names the thing that was asked for.
    pub(super) fn from_status(
        what: &str,
        status: StatusCode,
        headers: &HeaderMap,
        code: RegistryCode,
    ) -> Self {
        let what = what.to_owned();
        let retry_after = retry_after(headers);
        match status {
            StatusCode::UNAUTHORIZED => FetchError::Unauthorized { what, code },
            StatusCode::FORBIDDEN => FetchError::Denied { what, code },
            StatusCode::NOT_FOUND | StatusCode::GONE => FetchError::NotFound { what, code },
            StatusCode::TOO_MANY_REQUESTS => FetchError::RateLimited { what, code, retry_after },
            StatusCode::REQUEST_TIMEOUT => FetchError::Unavailable { what, status, retry_after },
            _ if status.is_server_error() => FetchError::Unavailable { what, status, retry_after },
            _ => FetchError::Status { what, status, code },
        }
    }

    /// Whether the server has answered, and what it said is that whoever asked may not have this, or that it
    /// is not there, which many say instead.
    pub fn is_refusal(&self) -> bool {
        self.refuses_the_credential() || matches!(self, FetchError::NotFound { .. })
    }

    /// Whether the server could not be asked, or could not answer: of what may be had it has said nothing.
    pub fn is_outage(&self) -> bool {
        use FetchError::*;
        matches!(
            self,
            RateLimited { .. }
                | Unavailable { .. }
                | Dns { .. }
                | Connect { .. }
                | Tls { .. }
                | Transport { .. }
                | Timeout { .. }
                | Stalled { .. }
                | Slow { .. }
        )
    }

    /// Whether another credential might be let in where this one was not.
    pub(super) fn refuses_the_credential(&self) -> bool {
        matches!(self, FetchError::Unauthorized { .. } | FetchError::Denied { .. })
    }
}

impl From<FetchError> for io::Error {
    fn from(error: FetchError) -> Self {
        io::Error::other(error)
    }
}

/// `Retry-After` (RFC 9110, 10.2.3), at most an hour: a peer must not silence us for good. Where it is a
/// date, it is the time from the answer's own date to it: clocks may differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    const MAX: Duration = Duration::from_secs(3600);
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |name| httpdate::parse_http_date(text(name)?).ok();
    let after = match text(header::RETRY_AFTER)?.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => date(header::RETRY_AFTER)?.duration_since(date(header::DATE)?).ok()?,
    };
    Some(after.min(MAX))
}

/// The code in a registry's error answer, if it is one of those that the distribution specification
/// lists. What else such an answer says is a stranger's text and is not repeated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryCode(Option<&'static str>);

impl RegistryCode {
    const KNOWN: [&'static str; 14] = [
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "SIZE_INVALID",
        "UNAUTHORIZED",
        "DENIED",
        "UNSUPPORTED",
        "TOOMANYREQUESTS",
    ];

    /// Reads the first error's code out of `{"errors": [{"code": ...}]}`.
    pub(super) fn from_body(body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Answer {
            errors: Vec<Entry>,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            code: String,
        }
        let code = serde_json::from_slice(body).ok().and_then(|Answer { errors }| errors.into_iter().next());
        RegistryCode(code.and_then(|entry| Self::KNOWN.into_iter().find(|known| *known == entry.code)))
    }
}

impl fmt::Display for RegistryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_own_words_are_never_repeated() {
        let known = RegistryCode::from_body(br#"{"errors":[{"code":"DENIED","message":"hunter2"}]}"#);
        assert_eq!(known.to_string(), " (DENIED)");
        for body in [&br#"{"errors":[{"code":"hunter2"}]}"#[..], b"hunter2", br#"{"errors":[]}"#] {
            assert_eq!(RegistryCode::from_body(body).to_string(), "");
        }
    }

    #[test]
    fn a_server_cannot_silence_us_for_longer_than_an_hour() {
        let wait = |value: &str| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
            FetchError::from_status("x", StatusCode::TOO_MANY_REQUESTS, &headers, RegistryCode::default())
                .retry_after()
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("99999999999"), Some(Duration::from_secs(3600)));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn a_date_until_which_to_wait_is_counted_from_that_of_the_answer() {
        let wait = |date: &'static str, until: &'static str| {
            let value = |text: &'static str| text.parse().unwrap();
            let headers =
                HeaderMap::from_iter([(header::DATE, value(date)), (header::RETRY_AFTER, value(until))]);
            FetchError::from_status("x", StatusCode::BAD_GATEWAY, &headers, RegistryCode::default())
                .retry_after()
        };
        const UNTIL: &str = "Sat, 21 Nov 2026 10:00:30 GMT";
        assert_eq!(wait("Sat, 21 Nov 2026 10:00:00 GMT", UNTIL), Some(Duration::from_secs(30)));
        assert_eq!(wait("Fri, 20 Nov 2026 10:00:00 GMT", UNTIL), Some(Duration::from_secs(3600)));
        for no_date in ["Sat, 21 Nov 2026 10:00:31 GMT", "today", ""] {
            assert_eq!(wait(no_date, UNTIL), None, "{no_date}");
        }
    }

    #[test]
    fn an_error_comes_back_out_of_the_io_error_that_carried_it() {
        let carried = io::Error::from(FetchError::Stalled { host: "h".to_owned() });
        assert_eq!(FetchError::from_io(carried).label(), "stalled");
        assert_eq!(FetchError::from_io(io::Error::other("x")).label(), "io");
    }
}
