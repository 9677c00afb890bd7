//! TLS: 1.2 and newer, HTTP/1.1, the system's roots and those that a host's own configuration adds.
//!
//! The system's roots are read when the first https connection needs them, so that a machine without any
//! can still fetch what does not need them. A host's own files are read for every connection: they are
//! few and small, and a new certificate holds at once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::FetchError;
use super::files::read_small;
use super::hosts::{Access, KeyPair};

/// Makes secure connections.
pub(super) struct Tls {
    roots: OnceCell<Arc<RootCertStore>>,
    /// With the system's roots alone.
    config: OnceCell<Arc<ClientConfig>>,
}

/// What is special about the TLS of one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trust {
    ca_files: Vec<PathBuf>,
    client_certificate: Option<KeyPair>,
    skip_verify: bool,
}

impl Trust {
    /// For the host that the access is configured for.
    pub(super) fn own(access: &Access) -> Self {
        let Access { ca_files, client_certificate, skip_verify, .. } = access.clone();
        Trust { ca_files, client_certificate, skip_verify }
    }

    /// For a host that it led to: a company's authority speaks for its token and blob servers too, but
    /// who they are is not taken on trust, and they are not told who we are.
    pub(super) fn led(access: &Access) -> Self {
        Trust { ca_files: access.ca_files.clone(), ..Trust::default() }
    }
}

impl Tls {
    pub(super) fn system() -> Self {
        Self { roots: OnceCell::new(), config: OnceCell::new() }
    }

    #[cfg(test)]
    pub(super) fn with_roots(roots: RootCertStore) -> Self {
        let config = client_config(roots.clone(), &None, false).unwrap();
        Self { roots: OnceCell::new_with(Some(Arc::new(roots))), config: OnceCell::new_with(Some(config)) }
    }

    /// Shakes hands over `stream` with the server that `host` names.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &url::Host<&str>,
        trust: &Trust,
        stream: S,
    ) -> Result<TlsStream<S>, FetchError> {
        let failed = |source| FetchError::Tls { host: host.to_string(), source };
        let name = match host {
            url::Host::Domain(name) => ServerName::try_from((*name).to_owned())
                .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?,
            url::Host::Ipv4(address) => ServerName::from(std::net::IpAddr::V4(*address)),
            url::Host::Ipv6(address) => ServerName::from(std::net::IpAddr::V6(*address)),
        };
        let config = self.config(trust).await?;
        TlsConnector::from(config).connect(name, stream).await.map_err(failed)
    }

    async fn config(&self, trust: &Trust) -> Result<Arc<ClientConfig>, FetchError> {
        if *trust == Trust::default() {
            let load = async || {
                let roots = self.roots().await?;
                if roots.is_empty() {
                    return Err(FetchError::NoRoots);
                }
                client_config(RootCertStore::clone(&roots), &None, false)
            };
            return self.config.get_or_try_init(load).await.cloned();
        }
        let roots = match trust.skip_verify {
            true => Arc::new(RootCertStore::empty()),
            false => self.roots().await?,
        };
        let trust = trust.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut roots = RootCertStore::clone(&roots);
            for path in &trust.ca_files {
                roots.add_parsable_certificates(certificates(path)?);
            }
            if roots.is_empty() && !trust.skip_verify {
                return Err(FetchError::NoRoots);
            }
            client_config(roots, &trust.client_certificate, trust.skip_verify)
        });
        reading.await.map_err(|_| FetchError::Interrupted)?
    }

    /// What cannot be read or parsed is left out, as every TLS client does; what matters is whether
    /// anything is left. Where nothing is, they are looked for again the next time.
    async fn roots(&self) -> Result<Arc<RootCertStore>, FetchError> {
        if let Some(roots) = self.roots.get() {
            return Ok(roots.clone());
        }
        let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.map_err(|_| FetchError::Interrupted)?.certs);
        let roots = Arc::new(roots);
        if roots.is_empty() {
            return Ok(roots);
        }
        Ok(self.roots.get_or_init(async || roots).await.clone())
    }
}

fn bad_file(path: &Path, source: io::Error) -> FetchError {
    FetchError::CertificateFile { path: path.to_owned(), source }
}

/// All certificates of a file, of which there has to be one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FetchError> {
    let bytes = read_small(path).map_err(|source| bad_file(path, source))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(bad_file(path, io::Error::other("there is no certificate in PEM in it"))),
    }
}

fn client_config(
    roots: RootCertStore,
    identity: &Option<KeyPair>,
    skip_verify: bool,
) -> Result<Arc<ClientConfig>, FetchError> {
    let failed = |error: rustls::Error| FetchError::Io(io::Error::other(error));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
    let builder = match skip_verify {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
        false => builder.with_root_certificates(roots),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(KeyPair { certificate, key: path }) => {
            let key = read_small(path).map_err(|source| bad_file(path, source))?;
            let key = PrivateKeyDer::from_pem_slice(&key)
                .map_err(|_| bad_file(path, io::Error::other("there is no private key in PEM in it")))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, key)
                .map_err(|error| bad_file(path, io::Error::other(error)))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes any certificate (`skip_verify`), though only from who has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_without_usable_roots_is_told_so_in_clear_words() {
        let tls = Tls {
            roots: OnceCell::new_with(Some(Arc::new(RootCertStore::empty()))),
            config: OnceCell::new(),
        };
        let error = tls.config(&Trust::default()).await.unwrap_err();
        assert_eq!(error.label(), "no_roots");
        assert!(error.to_string().contains("ca-certificates"));
    }

    #[tokio::test]
    async fn without_roots_of_the_system_a_hosts_own_will_do_and_none_are_needed_for_no_proof() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        std::fs::write(&file, certificate.pem()).unwrap();
        let tls = Tls {
            roots: OnceCell::new_with(Some(Arc::new(RootCertStore::empty()))),
            config: OnceCell::new(),
        };
        let own = Trust { ca_files: vec![file.clone()], ..Trust::default() };
        assert!(tls.config(&own).await.is_ok());
        assert!(tls.config(&Trust { skip_verify: true, ..Trust::default() }).await.is_ok());
        // Read again for each connection.
        std::fs::write(&file, "nothing").unwrap();
        let error = tls.config(&own).await.unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
    }
}
