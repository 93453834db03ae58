//! Which certificates of a broker are trusted.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// After this long the operating system's certificates are read again: there are some hundred, and they change with its updates.
const SYSTEM_INTERVAL: Duration = Duration::from_mins(1);

/// CA certificates that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CaError(String);

/// The CA certificates that are trusted: those in a PEM file and no others; without a file, those of the operating system.
///
/// They are read when a connection is opened. To renew a CA, write both certificates to the file before the broker gets a certificate of the
/// new one. If they can't be read, the last ones stay in use, with a warning.
#[derive(Debug)]
pub struct CaCertificates {
    file: Option<PathBuf>,
    loaded: Mutex<Option<Loaded>>,
}

/// As last read.
#[derive(Debug)]
struct Loaded {
    /// What `tls` was created from.
    source: Vec<u8>,
    tls: Arc<ClientConfig>,
    at: Instant,
    /// The last read failed, which a warning has reported.
    failing: bool,
}

impl CaCertificates {
    /// Reads nothing yet.
    pub fn new(file: Option<PathBuf>) -> Self {
        Self { file, loaded: Mutex::default() }
    }

    /// A TLS client with the CA certificates that are trusted now; the same one until they change. Blocks while it reads a small file.
    ///
    /// # Errors
    /// They were never readable: the file is missing or contains no certificate, or the operating system has none.
    pub fn client_tls(&self) -> Result<Arc<ClientConfig>, CaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if self.file.is_none()
            && let Some(loaded) = loaded.as_ref().filter(|loaded| loaded.at.elapsed() < SYSTEM_INTERVAL)
        {
            return Ok(Arc::clone(&loaded.tls));
        }
        let source = self.source();
        if let (Ok(source), Some(loaded)) = (&source, loaded.as_mut())
            && *source == loaded.source
        {
            (loaded.at, loaded.failing) = (Instant::now(), false);
            return Ok(Arc::clone(&loaded.tls));
        }
        let read = source.and_then(|source| Ok((client_tls(self.file.as_deref(), &source)?, source)));
        match (read, loaded.as_mut()) {
            (Ok((tls, source)), before) => {
                if before.is_some() {
                    tracing::info!(file = ?self.file, "the CA certificates have changed; new connections trust the new ones");
                }
                let at = Instant::now();
                Ok(Arc::clone(&loaded.insert(Loaded { source, tls, at, failing: false }).tls))
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(last)) => {
                if !std::mem::replace(&mut last.failing, true) {
                    tracing::warn!(%error, "the CA certificates can't be read; the last ones stay in use");
                }
                last.at = Instant::now();
                Ok(Arc::clone(&last.tls))
            }
        }
    }

    /// The bytes of the certificates: equal while the certificates are the same.
    fn source(&self) -> Result<Vec<u8>, CaError> {
        if let Some(file) = &self.file {
            return fs::read(file).map_err(|error| CaError(format!("{}: {error}", file.display())));
        }
        // Some of them may be unreadable; that is no reason to trust none.
        let found = rustls_native_certs::load_native_certs();
        let source: Vec<u8> = found.certs.iter().flat_map(|certificate| framed(certificate)).collect();
        if source.is_empty() {
            let text = format!("no CA file is given, and this machine has no CA certificates: {:?}", found.errors);
            return Err(CaError(text));
        }
        Ok(source)
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

/// A TLS client for what was read: the content of this file, or the operating system's certificates.
fn client_tls(file: Option<&Path>, source: &[u8]) -> Result<Arc<ClientConfig>, CaError> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = file {
        let failed = |cause: String| CaError(format!("{}: {cause}", file.display()));
        for certificate in CertificateDer::pem_slice_iter(source) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(failed("contains no certificate".to_owned()));
        }
    } else if roots.add_parsable_certificates(unframed(source)).0 == 0 {
        // Certificates that are too old for rustls don't count.
        return Err(CaError("no CA file is given, and none of this machine's CA certificates can be used".to_owned()));
    }
    // The provider by name: in a process that has installed none, `builder()` panics.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| CaError(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |file: &Path| CaCertificates::new(Some(file.to_owned())).client_tls();
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
        let certificates = CaCertificates::new(Some(file.clone()));
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
    fn framing_loses_nothing() {
        let source = [framed(b"one"), framed(b""), framed(b"three")].concat();
        assert_eq!(unframed(&source), [&b"one"[..], b"", b"three"].map(|der| CertificateDer::from(der.to_vec())));
    }
}
