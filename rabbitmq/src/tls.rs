//! Which certificates of a broker are trusted.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// CA certificates that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CaError(String);

/// A TLS client that trusts the CA certificates in this PEM file and no others; without a file, those of the operating system.
///
/// # Errors
/// The file can't be read or contains no certificate; the operating system has none.
pub fn client_tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, CaError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca_file) = ca_file {
        let failed = |cause: String| CaError(format!("{}: {cause}", ca_file.display()));
        let certificates = CertificateDer::pem_file_iter(ca_file).map_err(|error| failed(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(CaError(format!("{} contains no certificate", ca_file.display())));
        }
    } else {
        // Some of them may be unreadable, or too old for rustls.
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let text = format!("no CA file is given, and this machine has no CA certificates: {:?}", found.errors);
            return Err(CaError(text));
        }
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
        let error = client_tls(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.contains("no certificate"), "{error}");
        assert!(client_tls(Some(Path::new("/nowhere/ca.pem"))).is_err());
    }
}
