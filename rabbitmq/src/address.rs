//! Where the broker is, and who connects.

use std::{fmt, path::Path, sync::Arc};

use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// A node of the broker, a vhost of it, and whom to be there.
#[derive(Clone)]
pub struct Address {
    /// Host name or address.
    pub host: String,
    /// The AMQP port; both versions of the protocol are spoken on it.
    pub port: u16,
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// Its password.
    pub password: String,
    /// With TLS, if any.
    pub tls: Option<Arc<ClientConfig>>,
    /// What the broker's list of connections shows.
    pub name: String,
}

impl Address {
    /// From `amqp(s)://user:password@host:port/vhost`. `tls` is used by `amqps` alone; without it the operating system's authorities
    /// are trusted.
    ///
    /// # Errors
    /// There are no authorities to trust.
    pub fn new(uri: &AMQPUri, tls: Option<Arc<ClientConfig>>, name: impl Into<String>) -> Result<Self, BadAuthorities> {
        let authority = &uri.authority;
        let tls = match (&uri.scheme, tls) {
            (AMQPScheme::AMQP, _) => None,
            (AMQPScheme::AMQPS, Some(tls)) => Some(tls),
            (AMQPScheme::AMQPS, None) => Some(client_tls(None)?),
        };
        Ok(Self {
            host: authority.host.clone(),
            port: authority.port,
            vhost: uri.vhost.clone(),
            user: authority.userinfo.username.clone(),
            password: authority.userinfo.password.clone(),
            tls,
            name: name.into(),
        })
    }

    /// Host and port.
    pub fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Address {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}:{}, vhost {}", self.user, self.host, self.port, self.vhost)
    }
}

/// Certificates that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAuthorities(String);

/// Trusts the authorities of this file (PEM) and no others; without one, those of the machine.
///
/// # Errors
/// The file can't be read or holds no certificate; the machine has none.
pub fn client_tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, BadAuthorities> {
    let mut roots = RootCertStore::empty();
    if let Some(ca_file) = ca_file {
        let bad = |cause: String| BadAuthorities(format!("{}: {cause}", ca_file.display()));
        let certificates = CertificateDer::pem_file_iter(ca_file).map_err(|error| bad(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(BadAuthorities(format!("{} holds no certificate", ca_file.display())));
        }
    } else {
        // Some of a machine's may be unreadable or too old for us.
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let text = format!("none is named, and this machine has no authorities: {:?}", found.errors);
            return Err(BadAuthorities(text));
        }
    }
    // The provider by name: a process that has none installed would panic in `builder()`.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| BadAuthorities(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
