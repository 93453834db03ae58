//! The key file that signs the edges' tickets: one Secret in the system namespace, which the edges mount. It is derived from the seed, so that
//! one that was deleted comes back the same and no client loses its session. One that exists is never changed: to rotate keys, an
//! administrator edits it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use wirepost_core::{
    contract::key_file::{Key, KeyFile, NAME, SECRET},
    hex,
};
use wirepost_runtime::backoff::Backoff;

use crate::{
    access::{Seed, SeedPair},
    api_client::BACKOFF,
    seed::Seeds,
    triggers::Triggers,
    writer,
};

/// Between two checks whether it still exists: a new edge waits for it.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Creates the Secret and the seed wherever they are missing, until `cancel`. Every replica may, leading or not: all of them create the same,
/// and only where there is none.
pub async fn run(
    client: Client,
    namespace: String,
    seeds: Arc<Seeds>,
    triggers: Arc<Triggers>,
    cancel: CancellationToken,
) {
    let (first, longest) = BACKOFF;
    let mut backoff = Backoff::new(first, longest);
    loop {
        let wait = match ensure(&client, &namespace, &seeds).await {
            Ok(another) => {
                if another {
                    triggers.trigger_all();
                }
                backoff.reset();
                CHECK_INTERVAL
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    secret = SECRET,
                    "cannot create the seed or the edges' key file; trying again"
                );
                backoff.next_pause()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Whether the seed has changed.
async fn ensure(client: &Client, namespace: &str, seeds: &Seeds) -> anyhow::Result<bool> {
    let another = seeds.check().await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if secrets.get_opt(SECRET).await?.is_some() {
        return Ok(another);
    }
    let seeds = seeds.get().await?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        string_data: Some(BTreeMap::from([(NAME.to_owned(), key_set(&seeds))])),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => tracing::info!(secret = SECRET, "created the edges' key file"),
        Err(error) if writer::is_conflict(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(another)
}

/// The id depends on the seed, so that no edge takes an old signature for a forged one. Signatures of the former seed's key stay valid.
fn key_set(seeds: &SeedPair) -> String {
    let key = |seed: &Seed| {
        let key = seed.edge_key();
        Key { id: format!("seed-{}", &hex(Sha256::digest(&key))[..8]), secret: STANDARD.encode(key) }
    };
    let current = key(&seeds.current);
    let file = KeyFile {
        current: current.id.clone(),
        keys: std::iter::once(current).chain(seeds.former.as_ref().map(key)).collect(),
    };
    // Plain data with string keys: it always serializes.
    serde_json::to_string(&file).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sets_are_the_same_again_and_differ_by_seed() {
        let pair = |current: u8, former: Option<u8>| SeedPair {
            current: Seed::new(&[current; 32]),
            former: former.map(|former| Seed::new(&[former; 32])),
        };
        assert_eq!(key_set(&pair(7, None)), key_set(&pair(7, None)));
        assert_ne!(key_set(&pair(7, None)), key_set(&pair(8, None)));
        let file = |pair| serde_json::from_str::<KeyFile>(&key_set(&pair)).unwrap();
        let both = file(pair(8, Some(7)));
        assert_eq!(both.current, file(pair(8, None)).current);
        assert_eq!(both.keys, [file(pair(8, None)).keys, file(pair(7, None)).keys].concat());
    }
}
