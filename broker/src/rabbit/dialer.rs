//! Where and as whom to connect: asked at each attempt, so that a rotated secret and renewed certificates take effect.

use std::{sync::Arc, time::Duration};

use wirepost_rabbitmq::{Address, BrokerTls, CredentialFiles, Endpoint};
use wirepost_runtime::network::Network;

use super::counters::Counters;

/// Between heartbeats; a connection that brings nothing for two is dead (RabbitMQ agrees on that).
pub(super) const HEARTBEAT: Duration = Duration::from_secs(4);

/// What connections are made with.
pub(super) struct Dialer {
    pub(super) addresses: Vec<Address>,
    pub(super) files: CredentialFiles,
    pub(super) tls: Arc<BrokerTls>,
    pub(super) edge: String,
    pub(super) network: Arc<dyn Network>,
    pub(super) counters: Arc<Counters>,
}

impl Dialer {
    /// Where to connect at this attempt, with the credentials and certificates that are valid now.
    pub(super) fn endpoint(&self, attempt: usize, name: &str) -> Result<Endpoint, String> {
        let address = self.addresses[attempt % self.addresses.len()].clone();
        let login = self.files.apply(address.login()).map_err(|error| error.to_string())?;
        let name = format!("wirepost-edge {} {name}", self.edge);
        Endpoint::new(address.with_login(login), Some(&self.tls), name)
            .map(|endpoint| endpoint.over(self.network.clone()))
            .map_err(|error| error.to_string())
    }
}
