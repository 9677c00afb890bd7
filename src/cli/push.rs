//! `wasmferry push`: publishes a module in a registry.
//!
//! Takes any file: whether it is a module that Envoy would run is said on the way, not enforced.
//! Credentials come from the caller.

pub(super) mod layout;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;

use super::CliError;
use super::args::{self, PushArgs};
use crate::causes::with_causes;
use crate::clock::Clock;
use crate::config::Environment;
use crate::digest::SourceDigest;
use crate::fetch::{FetchConfig, Fetcher, NodeCredential};
use crate::module::{Caller, ModuleRequest, ModuleUrl, is_loopback};
use crate::secret::Secret;

pub use layout::Layout;
use layout::{Blob, Package};

/// The largest file that is published, in bytes; it is held in memory.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// What to publish, and where.
#[derive(Debug)]
pub struct PushOptions {
    pub file: PathBuf,
    /// An OCI reference with a tag.
    pub target: ModuleUrl,
    pub layout: Layout,
    /// User and password; anonymous where there is none.
    pub credential: Option<(String, Secret)>,
    /// Speak HTTP without TLS, as a registry on loopback is spoken to anyway.
    pub plain_http: bool,
}

/// Why a module was not published.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("cannot read {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{} is larger than {MAX_FILE_BYTES} bytes", file.display())]
    TooLarge { file: PathBuf },
    #[error("{target} is not an OCI reference; modules are pushed to oci://HOST/REPOSITORY:TAG")]
    NotOci { target: String },
    #[error("{target} has a digest; modules are pushed to a tag")]
    Digest { target: String },
    #[error("cannot pack the module: {0}")]
    Pack(#[source] io::Error),
    #[error("{target}: the registry refuses {}", if *.anonymous { "an anonymous push" } else { "this user" })]
    Unauthorized { target: String, anonymous: bool },
    /// `oci_client` sets TLS up whether the registry speaks it or not, and panics without a root.
    #[error(
        "no root certificates were found, and push needs some even where it speaks plain HTTP: install the \
         system's CA certificates (ca-certificates) or name a file of them in SSL_CERT_FILE"
    )]
    NoRoots,
    /// Not reached, or it did not take the upload.
    #[error("{target}: {why}")]
    Registry { target: String, why: String },
}

impl PushError {
    /// Short name for a machine-readable message.
    pub fn label(&self) -> &'static str {
        match self {
            PushError::Unreadable { .. } => "unreadable",
            PushError::TooLarge { .. } => "too_large",
            PushError::NotOci { .. } => "not_oci",
            PushError::Digest { .. } => "digest",
            PushError::Pack(_) => "pack",
            PushError::Unauthorized { .. } => "unauthorized",
            PushError::NoRoots => "no_roots",
            PushError::Registry { .. } => "registry",
        }
    }
}

/// `wasmferry push`: publishes with the user's own credential, and prints the digest.
pub fn run(args: PushArgs, environment: &Environment) -> Result<(), CliError> {
    let target: ModuleUrl = args
        .destination
        .parse()
        .map_err(|error| CliError::Usage(format!("the destination is no oci://HOST/REPO:TAG: {error}")))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let request = ModuleRequest { caller: Caller::Operator, ..ModuleRequest::new(target.clone()) };
    let own = environment.docker_config.clone().map(NodeCredential::of_user);
    let config = FetchConfig {
        credentials: own.into_iter().collect(),
        programs: environment.programs.clone(),
        ..FetchConfig::default()
    };
    let fetcher = Fetcher::new(config, Clock::System);
    let credential = runtime.block_on(fetcher.credential(&request));
    let credential = credential.map_err(|error| CliError::Usage(error.to_string()))?;
    let password = credential.password().map_err(|error| CliError::Usage(error.to_string()))?;
    let options = PushOptions {
        file: args.file,
        target,
        layout: match args.layout {
            args::Layout::Artifact => Layout::Artifact,
            args::Layout::Image => Layout::Image,
            args::Layout::Docker => Layout::Docker,
        },
        credential: password.map(|(user, password)| (user.expose().to_owned(), password.clone())),
        plain_http: args.plain_http,
    };
    let digest = runtime.block_on(push(options))?;
    writeln!(io::stdout(), "{digest}").map_err(CliError::Output)
}

/// Publishes the file and returns the digest of its manifest. The same file always has the same
/// digest.
///
/// # Errors
/// See [`PushError`]. What was uploaded before an error is without a name in the registry.
pub async fn push(options: PushOptions) -> Result<SourceDigest, PushError> {
    let PushOptions { file, target: url, layout, credential, plain_http } = options;
    let target = url.to_string();
    let ModuleUrl::Oci(reference) = url else { return Err(PushError::NotOci { target }) };
    if reference.digest().is_some() {
        return Err(PushError::Digest { target });
    }
    let package = tokio::task::spawn_blocking(move || pack(&file, layout))
        .await
        .unwrap_or_else(|error| Err(PushError::Pack(io::Error::other(error))))?;
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(PushError::NoRoots);
    }
    let anonymous = credential.is_none();
    let auth = match credential {
        Some((user, password)) => RegistryAuth::Basic(user, password.expose().to_owned()),
        None => RegistryAuth::Anonymous,
    };
    match upload(&reference, &package, auth, plain_http).await {
        Ok(()) => Ok(package.digest()),
        Err(error) if is_refusal(&error) => Err(PushError::Unauthorized { target, anonymous }),
        Err(error) => Err(PushError::Registry { target, why: describe(error) }),
    }
}

fn is_refusal(error: &OciDistributionError) -> bool {
    matches!(
        error,
        OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::ServerError { code: 401 | 403, .. }
    )
}

/// What went wrong, in one line. URLs are left out: those of uploads have the registry's own state
/// in their query.
fn describe(error: OciDistributionError) -> String {
    match error {
        OciDistributionError::RequestError(error) => with_causes(&error.without_url()),
        OciDistributionError::ServerError { code, .. } => format!("the registry answers {code}"),
        OciDistributionError::RegistryError { envelope, .. } => {
            let codes: Vec<_> = envelope.errors.iter().map(|error| format!("{:?}", error.code)).collect();
            format!("the registry refuses it: {}", codes.join(", "))
        }
        other => with_causes(&other),
    }
}

fn pack(file: &Path, layout: Layout) -> Result<Package, PushError> {
    let mut module = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut module))
        .map_err(|source| PushError::Unreadable { file: file.to_owned(), source })?;
    if module.len() as u64 > MAX_FILE_BYTES {
        return Err(PushError::TooLarge { file: file.to_owned() });
    }
    if let Some(doubt) = layout::doubt(&module) {
        tracing::warn!(file = %file.display(), "{doubt}");
    }
    layout.pack(module.into()).map_err(PushError::Pack)
}

async fn upload(
    reference: &Reference,
    package: &Package,
    auth: RegistryAuth,
    plain_http: bool,
) -> Result<(), OciDistributionError> {
    let registry = reference.resolve_registry();
    let client = client(registry, plain_http || is_loopback(registry))?;
    client.store_auth_if_needed(registry, &auth).await;
    // The manifest last: it names blobs that must be there.
    for Blob { bytes, digest, .. } in [&package.layer, &package.config] {
        client.push_blob(reference, bytes.clone(), &digest.to_string()).await?;
    }
    let content_type = http::HeaderValue::from_static(package.manifest_type);
    client.push_manifest_raw(reference, package.manifest.clone(), content_type).await?;
    Ok(())
}

fn client(registry: &str, plain: bool) -> Result<Client, OciDistributionError> {
    // The client's TLS takes the process's provider; that another one is set already is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let protocol = match plain {
        true => ClientProtocol::HttpsExcept(vec![registry.to_owned()]),
        false => ClientProtocol::Https,
    };
    Client::try_from(ClientConfig { protocol, ..ClientConfig::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(file: &Path, target: &str) -> PushOptions {
        PushOptions {
            file: file.to_owned(),
            target: target.parse().unwrap(),
            layout: Layout::Artifact,
            credential: None,
            plain_http: false,
        }
    }

    #[tokio::test]
    async fn nothing_is_pushed_to_what_is_no_tag() {
        let file = Path::new("/nowhere");
        let digest = format!("oci://127.0.0.1:1/a@sha256:{}", "0".repeat(64));
        for (target, label) in [(digest.as_str(), "digest"), ("https://h/a.wasm", "not_oci")] {
            assert_eq!(push(options(file, target)).await.unwrap_err().label(), label);
        }
        assert_eq!(push(options(file, "oci://127.0.0.1:1/a:v1")).await.unwrap_err().label(), "unreadable");
    }

    #[test]
    fn an_error_shows_neither_the_upload_s_url_nor_what_the_registry_wrote() {
        let server_error = |code| OciDistributionError::ServerError {
            code,
            url: "http://h/v2/a/blobs/uploads/1?_state=hunter2".to_owned(),
            message: "hunter2".to_owned(),
        };
        assert!(is_refusal(&server_error(401)) && is_refusal(&server_error(403)));
        assert!(!is_refusal(&server_error(500)));
        assert_eq!(describe(server_error(500)), "the registry answers 500");
    }

    #[tokio::test]
    async fn an_unreachable_registry_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Port 1 on loopback: nobody listens there.
        let error = push(options(file.path(), "oci://127.0.0.1:1/a:v1")).await.unwrap_err();
        assert_eq!(error.label(), "registry");
        assert!(error.to_string().contains("oci://127.0.0.1:1/a:v1"), "{error}");
    }
}
