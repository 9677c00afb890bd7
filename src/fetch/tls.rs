//! TLS: 1.2 and newer, the system's roots, HTTP/1.1.
//!
//! The roots are read when the first https connection needs them, so that a machine without any can
//! still fetch what does not need them.

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::FetchError;

/// Makes secure connections.
pub(super) struct Tls {
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// With the system's roots, and those alone.
    pub(super) fn system() -> Self {
        Self { config: OnceCell::new() }
    }

    #[cfg(test)]
    pub(super) fn with_roots(roots: RootCertStore) -> Self {
        Self { config: OnceCell::new_with(Some(client_config(roots).unwrap())) }
    }

    /// Shakes hands over `stream` with the server that `host` names.
    pub(super) async fn connect(
        &self,
        host: &url::Host<&str>,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, FetchError> {
        let failed = |source| FetchError::Tls { host: host.to_string(), source };
        let name = match host {
            url::Host::Domain(name) => ServerName::try_from((*name).to_owned())
                .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?,
            url::Host::Ipv4(address) => ServerName::from(std::net::IpAddr::V4(*address)),
            url::Host::Ipv6(address) => ServerName::from(std::net::IpAddr::V6(*address)),
        };
        let config = self.config.get_or_try_init(load).await?;
        TlsConnector::from(config.clone()).connect(name, stream).await.map_err(failed)
    }
}

async fn load() -> Result<Arc<ClientConfig>, FetchError> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let roots = roots(found.map_err(|_| FetchError::Interrupted)?.certs)?;
    client_config(roots).map_err(|error| FetchError::Io(io::Error::other(error)))
}

/// What cannot be read or parsed is left out, as every TLS client does; what matters is whether
/// anything is left.
fn roots(found: Vec<CertificateDer<'static>>) -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found);
    if roots.is_empty() { Err(FetchError::NoRoots) } else { Ok(roots) }
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_usable_roots_is_told_so_in_clear_words() {
        for found in [vec![], vec![CertificateDer::from(vec![1, 2, 3])]] {
            let error = roots(found).unwrap_err();
            assert_eq!(error.label(), "no_roots");
            assert!(error.to_string().contains("ca-certificates"));
        }
    }
}
