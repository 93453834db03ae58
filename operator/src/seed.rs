//! The seed of all credentials: one Secret in the system namespace. If it is deleted by mistake, the next leader must not change every
//! password of the company: each process remembers what it has read, and restores it.
//!
//! A compromised seed is replaced without an outage: the Secret contains the new one, and the one before it as
//! `former-seed`, whose credentials stay valid until an administrator removes it.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::{Mutex, Notify},
    time::{sleep, timeout},
};
use wirepost_core::contract::key_file;

use crate::{
    AUDIT,
    access::{Seed, SeedPair},
    writer,
};

/// The Secret in the system namespace, and its key.
pub const SECRET: &str = "wirepost-seed";
const KEY: &str = "seed";
const FORMER_KEY: &str = "former-seed";
const BYTES: usize = 32;
/// Of a check.
const TIMEOUT: Duration = Duration::from_secs(4);
/// How long a process that knows no seed waits for one that does: two of its checks.
const OTHER_REPLICA_TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub struct Seeds {
    secrets: Api<Secret>,
    namespace: String,
    known: Mutex<Option<Bytes>>,
    changed: Notify,
}

/// What the Secret contains.
#[derive(Clone, PartialEq)]
struct Bytes {
    current: Vec<u8>,
    former: Option<Vec<u8>>,
}

impl Seeds {
    /// Nothing is read yet.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            known: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The seed and the one before it, read once and created where there is none.
    ///
    /// # Errors
    /// The API server, or a Secret without a seed in it.
    pub async fn get(&self) -> anyhow::Result<SeedPair> {
        let mut known = self.known.lock().await;
        let bytes = match &*known {
            Some(bytes) => bytes,
            None => known.insert(self.load(None).await?),
        };
        Ok(SeedPair { current: Seed::new(&bytes.current), former: bytes.former.as_deref().map(Seed::new) })
    }

    /// Checks whether the Secret still is as known: restores it where it is gone, and adopts another that an administrator put there. Whether
    /// it is another.
    ///
    /// # Errors
    /// The API server, or a Secret without a seed in it.
    pub async fn check(&self) -> anyhow::Result<bool> {
        self.get().await?;
        let before = self.known.lock().await.clone();
        // Not under the lock: all reconciles ask for what is known.
        let now = timeout(TIMEOUT, self.load(before.as_ref())).await.context("the API server does not answer")??;
        let mut known = self.known.lock().await;
        let another = known.as_ref().is_some_and(|known| *known != now);
        if another {
            tracing::warn!(
                target: AUDIT,
                action = "replace_seed",
                outcome = "done",
                secret = SECRET,
                former_stays_valid = now.former.is_some(),
                "the seed has changed: the credentials of all businesses change with it"
            );
            self.changed.notify_one();
        }
        *known = Some(now);
        Ok(another)
    }

    /// Returns when a check has found another seed since the last time. For one caller.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What the Secret contains. Where it is missing: `known`, or else a new one. Of several processes that create one, the first wins.
    async fn load(&self, known: Option<&Bytes>) -> anyhow::Result<Bytes> {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(secret) = self.secrets.get_opt(SECRET).await? {
                let mut data = secret.data.unwrap_or_default();
                let ByteString(current) = data.remove(KEY).unwrap_or_default();
                let former =
                    data.remove(FORMER_KEY).map(|ByteString(former)| former).filter(|former| !former.is_empty());
                anyhow::ensure!(
                    former.as_ref().is_none_or(|former| former.len() >= BYTES),
                    "Secret {}/{SECRET} has a {FORMER_KEY} of less than {BYTES} bytes: correct it, or remove it to end the credentials that were derived from the former seed",
                    self.namespace
                );
                anyhow::ensure!(
                    current.len() >= BYTES,
                    "Secret {}/{SECRET} has no seed of {BYTES} bytes or more under the key {KEY}; restore it, or delete it: all businesses then get new credentials, unless an operator still runs that knows the former seed",
                    self.namespace
                );
                return Ok(Bytes { current, former });
            }
            if known.is_none()
                && waited < OTHER_REPLICA_TIMEOUT
                && self.secrets.get_opt(key_file::SECRET).await?.is_some()
            {
                // There was one, and another process may know it.
                sleep(PAUSE).await;
                waited += PAUSE;
                continue;
            }
            let new = || Bytes { current: rand::random::<[u8; BYTES]>().to_vec(), former: None };
            let Bytes { current, former } = known.cloned().unwrap_or_else(new);
            let former = former.map(|former| (FORMER_KEY.to_owned(), ByteString(former)));
            let data = [(KEY.to_owned(), ByteString(current))].into_iter().chain(former).collect();
            let secret = Secret {
                metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
                data: Some(data),
                ..Secret::default()
            };
            match self.secrets.create(&PostParams::default(), &secret).await {
                Ok(_) if known.is_some() => tracing::warn!(secret = SECRET, "the seed was deleted; restored it"),
                Ok(_) => tracing::info!(secret = SECRET, "created the seed of all credentials"),
                Err(error) if writer::is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
