//! Where other edges are, by their names: all addresses of each.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{net::lookup_host, time::timeout};

use super::MAX_PEERS;

/// Longest time for a name.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Names that have no addresses now.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// One can't be resolved.
    #[error("{name} can't be resolved: {cause}")]
    Lookup {
        /// The name.
        name: String,
        /// Why.
        cause: io::Error,
    },
    /// The DNS server is slow.
    #[error("{0} was not resolved in time")]
    Timeout(String),
    /// Too many edges.
    #[error("{0} names more than {MAX_PEERS} edges")]
    TooMany(String),
}

impl NameError {
    /// The name.
    pub fn name(&self) -> &str {
        match self {
            Self::Lookup { name, .. } | Self::Timeout(name) | Self::TooMany(name) => name,
        }
    }
}

/// All addresses of all names.
pub(super) async fn resolve(names: &[String]) -> Result<Vec<SocketAddr>, NameError> {
    let of_each = join_all(names.iter().map(async |name| match timeout(TIMEOUT, lookup_host(name)).await {
        Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
        Ok(Err(cause)) => Err(NameError::Lookup { name: name.clone(), cause }),
        Err(_) => Err(NameError::Timeout(name.clone())),
    }))
    .await;
    let mut all = Vec::new();
    for (name, found) in names.iter().zip(of_each) {
        all.extend(found?);
        all.sort_unstable();
        all.dedup();
        if all.len() > MAX_PEERS + 1 {
            return Err(NameError::TooMany(name.clone()));
        }
    }
    Ok(all)
}
