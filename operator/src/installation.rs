//! Which installation this is: the same after an upgrade, a reinstallation and a lost seed; another one in another cluster or namespace,
//! even if everything was copied there. So it is derived from the uid of namespace `kube-system`, which no copy has, and the namespace of
//! the operator.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wirepost_core::hex;
use wirepost_runtime::readiness::Pending;

use crate::triggers::Triggers;

/// What `/readyz` waits for.
pub const PART: &str = "installation";
/// The namespace that every cluster has, for as long as the cluster exists.
const CLUSTER: &str = "kube-system";
const RETRY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(4);
/// Hex digits of an id.
const DIGITS: usize = 12;

/// An id of 12 hex digits; `None` until it is known.
pub type Id = watch::Receiver<Option<String>>;

/// Asks for it until it is known. `pending`: dropped then.
pub async fn run(
    client: Client,
    namespace: String,
    id: watch::Sender<Option<String>>,
    triggers: Arc<Triggers>,
    pending: Pending,
    cancel: CancellationToken,
) {
    let namespaces: Api<Namespace> = Api::all(client);
    loop {
        let error = match timeout(TIMEOUT, namespaces.get(CLUSTER)).await {
            Ok(Ok(Namespace { metadata, .. })) => {
                let uid = metadata.uid.unwrap_or_default();
                let found = derive(&uid, &namespace);
                tracing::info!(installation = found, "the id of this installation is known");
                id.send_replace(Some(found));
                drop(pending);
                triggers.trigger_all();
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {TIMEOUT:?}"),
        };
        tracing::warn!(
            error,
            "cannot read namespace {CLUSTER}, so nothing is written; the operator's role needs the right to get it"
        );
        tokio::select! {
            () = sleep(RETRY) => {}
            () = cancel.cancelled() => return,
        }
    }
}

fn derive(cluster: &str, namespace: &str) -> String {
    hex(Sha256::digest(format!("wirepost installation|{cluster}|{namespace}")))[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_differs_by_cluster_and_namespace_and_fits_into_a_label() {
        let id = derive("1", "wirepost");
        assert_eq!(id, derive("1", "wirepost"));
        assert_ne!(id, derive("2", "wirepost"));
        assert_ne!(id, derive("1", "staging"));
        assert!(id.len() == DIGITS && id.chars().all(|c| c.is_ascii_hexdigit()));
    }
}
