//! TLS to a broker: which certificates of it are trusted, and which one we show.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// After this long the operating system's certificates are read again: there are some hundred, and they change with its updates.
const SYSTEM_INTERVAL: Duration = Duration::from_mins(1);

/// Certificates that can't be used. The text contains no part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// Files for TLS to a broker, all in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// CA certificates: these are trusted and no others. `None`: those of the operating system.
    pub ca: Option<PathBuf>,
    /// What we show to a broker that asks for a certificate; without it a broker that requires one refuses us.
    pub client: Option<ClientFiles>,
}

/// A client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The chain, its own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Whom to trust at a broker, and who we are there.
///
/// The files are read when a connection is opened. To renew a CA, write both certificates to the file before the broker gets a certificate of
/// the new one. If they can't be read or used, the last ones stay in use, with a warning: so a certificate and a key that are read in the
/// middle of their renewal do no harm.
#[derive(Debug)]
pub struct BrokerTls {
    files: TlsFiles,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The operating system's certificates, as last read.
    system: Option<(Instant, Vec<u8>)>,
    loaded: Option<Loaded>,
}

/// As last read.
struct Loaded {
    /// What `tls` was created from.
    source: Source,
    tls: Arc<ClientConfig>,
    /// The last read failed, which a warning has reported.
    failing: bool,
}

impl fmt::Debug for Loaded {
    /// Without the source, which contains a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("failing", &self.failing).finish_non_exhaustive()
    }
}

/// The contents of the files: equal while nothing has changed.
#[derive(PartialEq, Eq)]
struct Source {
    ca: Vec<u8>,
    client: Option<Client>,
}

#[derive(PartialEq, Eq)]
struct Client {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl BrokerTls {
    /// Reads nothing yet.
    pub fn new(files: TlsFiles) -> Self {
        Self { files, state: Mutex::default() }
    }

    /// A TLS client with what the files contain now; the same one until they change. Blocks while it reads small files.
    ///
    /// # Errors
    /// They were never usable: a file is missing or contains no certificate, key and certificate do not match, or the operating system has
    /// no CA certificates.
    pub fn client_tls(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let source = self.source(&mut state.system);
        let loaded = &mut state.loaded;
        if let (Ok(source), Some(loaded)) = (&source, loaded.as_mut())
            && *source == loaded.source
        {
            loaded.failing = false;
            return Ok(Arc::clone(&loaded.tls));
        }
        let read = source.and_then(|source| Ok((self.files.client_tls(&source)?, source)));
        match (read, loaded.as_mut()) {
            (Ok((tls, source)), before) => {
                if before.is_some() {
                    tracing::info!(files = ?self.files, "the certificates for the broker have changed; new connections use the new ones");
                }
                Ok(Arc::clone(&loaded.insert(Loaded { source, tls, failing: false }).tls))
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(last)) => {
                if !std::mem::replace(&mut last.failing, true) {
                    tracing::warn!(%error, "the certificates for the broker can't be used; the last ones stay in use");
                }
                Ok(Arc::clone(&last.tls))
            }
        }
    }

    fn source(&self, system: &mut Option<(Instant, Vec<u8>)>) -> Result<Source, TlsError> {
        let TlsFiles { ca, client } = &self.files;
        let ca = ca.as_deref().map_or_else(|| system_certificates(system), read)?;
        let of = |files: &ClientFiles| Ok(Client { certificate: read(&files.certificate)?, key: read(&files.key)? });
        Ok(Source { ca, client: client.as_ref().map(of).transpose()? })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|error| TlsError(format!("{}: {error}", file.display())))
}

/// Some of them may be unreadable; that is no reason to trust none.
fn system_certificates(last: &mut Option<(Instant, Vec<u8>)>) -> Result<Vec<u8>, TlsError> {
    if let Some((at, source)) = last.as_ref()
        && at.elapsed() < SYSTEM_INTERVAL
    {
        return Ok(source.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    let source: Vec<u8> = found.certs.iter().flat_map(|certificate| framed(certificate)).collect();
    match last {
        _ if !source.is_empty() => Ok(last.insert((Instant::now(), source)).1.clone()),
        // They are being updated, perhaps.
        Some((at, source)) => {
            *at = Instant::now();
            Ok(source.clone())
        }
        None => {
            let text = format!("no CA file is given, and this machine has no CA certificates: {:?}", found.errors);
            Err(TlsError(text))
        }
    }
}

/// With its length, so that [`unframed`] finds its end.
fn framed(certificate: &[u8]) -> Vec<u8> {
    let length = u32::try_from(certificate.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], certificate].concat()
}

fn unframed(mut source: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut certificates = Vec::new();
    while let Some((length, rest)) = source.split_first_chunk::<4>() {
        let Some((certificate, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize) else { break };
        certificates.push(CertificateDer::from(certificate.to_vec()));
        source = rest;
    }
    certificates
}

impl TlsFiles {
    /// A TLS client for what was read.
    fn client_tls(&self, source: &Source) -> Result<Arc<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.ca {
            let failed = |cause: String| TlsError(format!("{}: {cause}", file.display()));
            for certificate in certificates(file, &source.ca)? {
                roots.add(certificate).map_err(|error| failed(error.to_string()))?;
            }
        } else if roots.add_parsable_certificates(unframed(&source.ca)).0 == 0 {
            // Certificates that are too old for rustls don't count.
            return Err(TlsError(
                "no CA file is given, and none of this machine's CA certificates can be used".to_owned(),
            ));
        }
        // The provider by name: in a process that has installed none, `builder()` panics.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(error.to_string()))?
            .with_root_certificates(roots);
        let config = match (&self.client, &source.client) {
            (Some(files), Some(client)) => {
                let chain = certificates(&files.certificate, &client.certificate)?;
                let key = PrivateKeyDer::from_pem_slice(&client.key)
                    .map_err(|_| TlsError(format!("{}: contains no private key in PEM", files.key.display())))?;
                let failed = |error: rustls::Error| {
                    let ClientFiles { certificate, key } = files;
                    TlsError(format!("{} and {} can't be used: {error}", certificate.display(), key.display()))
                };
                config.with_client_auth_cert(chain, key).map_err(failed)?
            }
            _ => config.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

/// The certificates of a PEM file; one at least.
fn certificates(file: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |cause: String| TlsError(format!("{}: {cause}", file.display()));
    let certificates = CertificateDer::pem_slice_iter(content).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| failed(error.to_string()))?;
    if certificates.is_empty() { Err(failed("contains no certificate".to_owned())) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |file: &Path| BrokerTls::new(TlsFiles { ca: Some(file.to_owned()), client: None }).client_tls();
        let error = of(file.path()).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.contains("no certificate"), "{error}");
        assert!(of(Path::new("/nowhere/ca.pem")).is_err());
    }

    #[test]
    fn a_changed_file_takes_effect_at_the_next_use_and_one_that_cannot_be_read_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let new = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap().cert.pem();
        fs::write(&file, new()).unwrap();
        let certificates = BrokerTls::new(TlsFiles { ca: Some(file.clone()), client: None });
        let first = certificates.client_tls().unwrap();
        assert!(Arc::ptr_eq(&first, &certificates.client_tls().unwrap()), "nothing has changed");
        fs::write(&file, new()).unwrap();
        let second = certificates.client_tls().unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        for broken in [Some("half a certificate"), None] {
            match broken {
                Some(text) => fs::write(&file, text).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            assert!(Arc::ptr_eq(&second, &certificates.client_tls().unwrap()));
        }
    }

    #[test]
    fn a_renewed_client_certificate_takes_effect_and_half_a_renewal_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let new = || rcgen::generate_simple_self_signed(vec!["edge".to_owned()]).unwrap();
        let (first, second) = (new(), new());
        fs::write(file("ca"), first.cert.pem()).unwrap();
        let client = ClientFiles { certificate: file("crt"), key: file("key") };
        let tls = BrokerTls::new(TlsFiles { ca: Some(file("ca")), client: Some(client) });
        let error = tls.client_tls().unwrap_err().to_string();
        assert!(error.contains("crt"), "{error}");
        fs::write(file("crt"), first.cert.pem()).unwrap();
        fs::write(file("key"), first.signing_key.serialize_pem()).unwrap();
        let before = tls.client_tls().unwrap();
        assert!(before.client_auth_cert_resolver.has_certs());
        fs::write(file("crt"), second.cert.pem()).unwrap();
        assert!(Arc::ptr_eq(&before, &tls.client_tls().unwrap()), "a key that is another certificate's");
        fs::write(file("key"), second.signing_key.serialize_pem()).unwrap();
        assert!(!Arc::ptr_eq(&before, &tls.client_tls().unwrap()));
        assert!(!format!("{tls:?}").contains("PRIVATE"));
    }

    #[test]
    fn framing_loses_nothing() {
        let source = [framed(b"one"), framed(b""), framed(b"three")].concat();
        assert_eq!(unframed(&source), [&b"one"[..], b"", b"three"].map(|der| CertificateDer::from(der.to_vec())));
    }
}
