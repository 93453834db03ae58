//! The key file that signs the edges' tickets: one Secret in the system namespace, which the edges mount. It is derived from the seed, so that
//! one that was deleted comes back the same and no client loses its session. One that exists is never changed: to rotate keys, an
//! administrator edits it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use wirepost_core::{
    contract::{
        edge_config::MAX_SESSION_SECONDS,
        key_file::{Key, KeyFile, MAX_KEYS, NAME, SECRET},
    },
    hex,
};
use wirepost_runtime::{backoff::Backoff, clock::now_ms};

use crate::{
    access::{Seed, SeedPair},
    api_client::BACKOFF,
    edges::Edges,
    seed::Seeds,
    triggers::Triggers,
    writer,
};

/// Between two checks whether it still exists: a new edge waits for it.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// Annotation of the Secret that asks for a rotation: a value that it did not have before gives another key.
const ROTATE: &str = "wirepost.dev/rotate";
/// Annotation in which the operator keeps until when former keys count.
const RETIRED: &str = "wirepost.dev/retired-keys";
/// How long a key counts after it has signed for the last time: the longest session.
const KEPT_MS: i64 = MAX_SESSION_SECONDS as i64 * 1000;

/// The Secret, and who has to know what it holds.
pub struct KeySecret {
    /// The API server.
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// What keys are derived from.
    pub seeds: Arc<Seeds>,
    /// Those who hold the keys.
    pub edges: Arc<Edges>,
}

impl KeySecret {
    /// Creates the Secret and the seed wherever they are missing, and rotates the keys where that is asked for, until `cancel`. Every replica
    /// may, leading or not: all of them make the same, and each change is refused if another was faster.
    pub async fn run(self, triggers: Arc<Triggers>, cancel: CancellationToken) {
        let (first, longest) = BACKOFF;
        let mut backoff = Backoff::new(first, longest);
        loop {
            let wait = match self.ensure().await {
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
                        "cannot create the seed or the edges' key file, or not rotate its keys; trying again"
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
    async fn ensure(&self) -> anyhow::Result<bool> {
        let another = self.seeds.check().await?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let seeds = self.seeds.get().await?;
        if let Some(secret) = secrets.get_opt(SECRET).await? {
            self.rotate(&secrets, &secret, &seeds.current).await?;
            return Ok(another);
        }
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

    /// One step of the rotation that an annotation asks for.
    async fn rotate(&self, secrets: &Api<Secret>, secret: &Secret, seed: &Seed) -> anyhow::Result<()> {
        let Some(asked) = secret.annotations().get(ROTATE) else { return Ok(()) };
        let content = secret.data.as_ref().and_then(|data| data.get(NAME)).map(|ByteString(bytes)| bytes.as_slice());
        let file: KeyFile = serde_json::from_slice(content.unwrap_or_default())
            .map_err(|_| anyhow!("the Secret {SECRET} holds no key file, so its keys are not rotated"))?;
        let known = secret.annotations().get(RETIRED).and_then(|json| serde_json::from_str(json).ok());
        let mut rotation = Rotation { file, retired: known.unwrap_or_default() };
        let new = rotated_key(seed, asked);
        let step = rotation.step(&new, |id| self.edges.take_key(id), now_ms())?;
        let Some(step) = step else { return Ok(()) };
        // Plain data with string keys: both always serialize.
        let text = serde_json::to_string(&rotation.file).unwrap_or_default();
        let retired = serde_json::to_string(&rotation.retired).unwrap_or_default();
        let patch = json!({
            "metadata": {"resourceVersion": secret.resource_version(), "annotations": {RETIRED: retired}},
            "stringData": {NAME: text},
        });
        match secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => tracing::info!(secret = SECRET, key = new.id, "rotating the edges' keys: {step}"),
            Err(error) if writer::is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A key file on its way to a new key.
struct Rotation {
    file: KeyFile,
    /// Keys that do not sign any more → when the last session that they signed has ended, ms since the epoch.
    retired: BTreeMap<String, i64>,
}

impl Rotation {
    /// Takes one step: the new key is added; when `known_everywhere`, it signs; what it replaces goes when the longest session has ended. What
    /// was done; `None`: nothing is due.
    fn step(
        &mut self,
        new: &Key,
        known_everywhere: impl FnOnce(&str) -> bool,
        now: i64,
    ) -> anyhow::Result<Option<&'static str>> {
        let Self { file, retired } = self;
        if !file.keys.iter().any(|key| key.id == new.id) {
            if file.keys.len() >= MAX_KEYS {
                bail!("the key file has {} keys already; remove the oldest", file.keys.len());
            }
            file.keys.push(new.clone());
            return Ok(Some("the new key is there, and signs when every edge has it"));
        }
        if file.current != new.id {
            if !known_everywhere(&new.id) {
                return Ok(None);
            }
            retired.remove(&new.id);
            retired.insert(std::mem::replace(&mut file.current, new.id.clone()), now + KEPT_MS);
            return Ok(Some("every edge has the new key, and it signs now"));
        }
        let before = file.keys.len();
        file.keys.retain(|key| key.id == file.current || retired.get(&key.id).is_none_or(|until| *until > now));
        retired.retain(|id, _| file.keys.iter().any(|key| key.id == *id));
        Ok((file.keys.len() < before).then_some("a key that signed no session that lasts is gone"))
    }
}

/// The key of a rotation.
fn rotated_key(seed: &Seed, asked: &str) -> Key {
    let key = seed.rotated_edge_key(asked);
    Key { id: format!("rotated-{}", &hex(Sha256::digest(&key))[..8]), secret: STANDARD.encode(key) }
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
    fn a_new_key_signs_only_when_every_edge_has_it_and_the_former_one_counts_as_long_as_its_sessions() {
        let pair = SeedPair { current: Seed::new(&[7; 32]), former: None };
        let file: KeyFile = serde_json::from_str(&key_set(&pair)).unwrap();
        let former = file.current.clone();
        let mut rotation = Rotation { file, retired: BTreeMap::new() };
        let new = rotated_key(&pair.current, "2026-12");
        assert_ne!(new.id, rotated_key(&pair.current, "2027-01").id);
        let mut step = |known: bool, now: i64| {
            let done = rotation.step(&new, |_| known, now).unwrap().is_some();
            (done, rotation.file.current == new.id, rotation.file.keys.len())
        };
        assert_eq!(step(true, 0), (true, false, 2), "first it is only there");
        assert_eq!(step(false, 1), (false, false, 2), "an edge does not have it");
        assert_eq!(step(true, 2), (true, true, 2));
        assert_eq!(step(true, KEPT_MS + 1), (false, true, 2));
        assert_eq!(step(true, KEPT_MS + 2), (true, true, 1));
        assert_eq!(step(true, KEPT_MS + 3), (false, true, 1));
        assert!(rotation.retired.is_empty() && rotation.file.keys.iter().all(|key| key.id != former));
    }

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
