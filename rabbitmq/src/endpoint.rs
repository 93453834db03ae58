//! What one AMQP connection needs.

use std::{fmt, sync::Arc};

use rustls::ClientConfig;
use wirepost_runtime::network::{Network, Tcp};

use crate::{Address, BrokerTls, TlsError, TlsFiles};

/// An address with the login that is valid now, whom to trust there, and the name of the connection.
#[derive(Clone)]
pub struct Endpoint {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    name: String,
    network: Arc<dyn Network>,
}

impl Endpoint {
    /// `tls`: the certificates for `amqps`, as they are now; without it those of the operating system are trusted. `name` appears in the
    /// broker's list of connections.
    ///
    /// # Errors
    /// There are no usable certificates.
    pub fn new(address: Address, tls: Option<&BrokerTls>, name: impl Into<String>) -> Result<Self, TlsError> {
        let tls = match (address.is_tls(), tls) {
            (false, _) => None,
            (true, Some(tls)) => Some(tls.client_tls()?),
            (true, None) => Some(BrokerTls::new(TlsFiles::default()).client_tls()?),
        };
        Ok(Self { address, tls, name: name.into(), network: Arc::new(Tcp) })
    }

    /// The same, reached over this network.
    #[must_use]
    pub fn over(self, network: Arc<dyn Network>) -> Self {
        Self { network, ..self }
    }

    /// How to reach it.
    pub fn network(&self) -> &dyn Network {
        &*self.network
    }

    /// Where to connect, and as which user.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How to check the broker's certificate; `None` = the connection is not encrypted.
    pub fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// What the broker's list of connections shows.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, tls, name, network: _ } = self;
        write!(f, "{name} at {address}{}", if tls.is_some() { ", TLS" } else { "" })
    }
}
