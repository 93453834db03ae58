//! The certificate of the public listener and the CA of clients' certificates, reloaded whenever their files change.
//! Open connections keep what they were opened with.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{
    reload,
    settings::{ClientCertificates, TlsFiles},
};

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
    /// No client could be admitted with this file.
    #[error("the CA certificates of clients can't be used: {0}")]
    ClientCa(String),
}

/// What the public port shows, and asks for.
pub(crate) struct Certificate {
    current: ArcSwap<ServerConfig>,
    provider: Arc<CryptoProvider>,
    /// Saves reconnecting clients the signature, which is most of a handshake's work.
    tickets: Arc<dyn ProducesTickets>,
    files: TlsFiles,
    seen: reload::Seen,
}

/// What the files contain.
struct Contents<'a> {
    chain: &'a [u8],
    key: &'a [u8],
    client_ca: Option<&'a [u8]>,
}

impl Certificate {
    /// Reads the files.
    pub(crate) async fn load(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        let read = async |path: &std::path::Path| {
            reload::read(path)
                .await
                .map_err(|error| TlsError::Read { path: path.display().to_string(), reason: error.to_string() })
        };
        let pair = [read(&files.certificate).await?, read(&files.key).await?];
        let client_ca = match &files.clients {
            Some(clients) => Some(read(&clients.ca).await?),
            None => None,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tickets = aws_lc_rs::Ticketer::new().map_err(|error| TlsError::Invalid(error.to_string()))?;
        let [chain, key] = &pair;
        let contents = Contents { chain, key, client_ca: client_ca.as_deref() };
        let current = config(&contents, files.clients.as_ref(), &provider, &tickets)?;
        let seen = match client_ca {
            None => reload::digest(&pair),
            Some(ca) => {
                let [chain, key] = pair;
                reload::digest(&[chain, key, ca])
            }
        };
        let current = ArcSwap::from_pointee(current);
        Ok(Arc::new(Self { current, provider, tickets, files: files.clone(), seen }))
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    /// Follows the files until cancelled; invalid ones are reported and the last valid ones kept.
    pub(crate) async fn watch(self: Arc<Self>, interval: Duration, cancel: CancellationToken) {
        let TlsFiles { certificate, key, clients } = self.files.clone();
        match clients {
            None => {
                let apply = |[chain, key]: [Vec<u8>; 2]| self.apply(&chain, &key, None);
                reload::watch([certificate, key], self.seen, interval, cancel, apply).await;
            }
            Some(ClientCertificates { ca, .. }) => {
                let apply = |[chain, key, ca]: [Vec<u8>; 3]| self.apply(&chain, &key, Some(&ca));
                reload::watch([certificate, key, ca], self.seen, interval, cancel, apply).await;
            }
        }
    }

    fn apply(&self, chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) {
        let contents = Contents { chain, key, client_ca };
        match config(&contents, self.files.clients.as_ref(), &self.provider, &self.tickets) {
            Ok(config) => {
                tracing::info!(file = %self.files.certificate.display(), "certificate taken into use");
                self.current.store(Arc::new(config));
            }
            Err(error) => tracing::error!(%error, "certificate refused, the last good one stays in use"),
        }
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

fn config(
    contents: &Contents<'_>,
    clients: Option<&ClientCertificates>,
    provider: &Arc<CryptoProvider>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, TlsError> {
    let invalid = |error: rustls::Error| TlsError::Invalid(error.to_string());
    let (chain, key) = pair(contents)?;
    let verifier = match (clients, contents.client_ca) {
        (Some(clients), Some(ca)) => Some(verifier(ca, clients.required, provider)?),
        _ => None,
    };
    let config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(invalid)?;
    let asks = verifier.is_some();
    let config = match verifier {
        None => config.with_no_client_auth(),
        Some(verifier) => config.with_client_cert_verifier(verifier),
    };
    // Key and certificate must match: files that were read in the middle of a change do not.
    let mut config = config.with_single_cert(chain, key).map_err(invalid)?;
    // For HTTP/1.1 only: WebSockets over HTTP/2 are another protocol (RFC 8441), and a browser that is offered both
    // takes HTTP/2.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if asks {
        // A resumed session would not be verified again: whose certificate has expired, or whose CA is not trusted any
        // more, would get in.
        config.session_storage = Arc::new(NoServerSessionStorage {});
    } else {
        config.ticketer = Arc::clone(tickets);
    }
    Ok(config)
}

fn pair(contents: &Contents<'_>) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let invalid = |what: &str| TlsError::Invalid(what.to_owned());
    let chain = CertificateDer::pem_slice_iter(contents.chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| invalid("the certificate file is not PEM"))?;
    if chain.is_empty() {
        return Err(invalid("the certificate file holds no certificate"));
    }
    let key =
        PrivateKeyDer::from_pem_slice(contents.key).map_err(|_| invalid("the key file holds no private key in PEM"))?;
    Ok((chain, key))
}

fn verifier(
    ca: &[u8],
    required: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let invalid = |error: String| TlsError::ClientCa(error);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|_| invalid("the file is not PEM".to_owned()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| invalid(error.to_string()))
}
