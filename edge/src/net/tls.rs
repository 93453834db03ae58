//! The certificate of the public listener, reloaded whenever its files change. Open connections keep theirs.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{reload, settings::TlsFiles};

/// Why a certificate is refused. Never contains a part of the key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The files can't be used.
    #[error("certificate and key can't be used: {0}")]
    Invalid(String),
}

/// The certificate in use.
pub(crate) struct Certificate {
    current: ArcSwap<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    files: TlsFiles,
    seen: reload::Seen,
}

impl Certificate {
    /// Reads chain and key (PEM).
    pub(crate) async fn load(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        let read = async |path: &std::path::Path| {
            reload::read(path)
                .await
                .map_err(|error| TlsError::Read { path: path.display().to_string(), reason: error.to_string() })
        };
        let contents = [read(&files.certificate).await?, read(&files.key).await?];
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = ArcSwap::from_pointee(parse(&contents, &provider)?);
        Ok(Arc::new(Self { current, provider, files: files.clone(), seen: reload::digest(&contents) }))
    }

    /// Offers it for HTTP/1.1 only: WebSockets over HTTP/2 are another protocol (RFC 8441).
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let invalid = |error: rustls::Error| TlsError::Invalid(error.to_string());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(invalid)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Saves reconnecting clients the signature, which is most of a handshake's work.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(invalid)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Follows the files until cancelled; an invalid certificate is reported and the last valid one kept.
    pub(crate) async fn watch(self: Arc<Self>, interval: Duration, cancel: CancellationToken) {
        let paths = [self.files.certificate.clone(), self.files.key.clone()];
        reload::watch(paths, self.seen, interval, cancel, |contents| match parse(&contents, &self.provider) {
            Ok(certified) => {
                tracing::info!(file = %self.files.certificate.display(), "certificate taken into use");
                self.current.store(Arc::new(certified));
            }
            Err(error) => tracing::error!(%error, "certificate refused, the last good one stays in use"),
        })
        .await;
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Chain and key, which must match: files that were read in the middle of a change do not.
fn parse([chain, key]: &[Vec<u8>; 2], provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let invalid = |what: &str| TlsError::Invalid(what.to_owned());
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| invalid("the certificate file is not PEM"))?;
    if chain.is_empty() {
        return Err(invalid("the certificate file holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| invalid("the key file holds no private key in PEM"))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| TlsError::Invalid(error.to_string()))
}
