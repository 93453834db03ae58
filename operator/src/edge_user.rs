//! The edges' user on the broker, with no more rights than an edge needs, and the Secret that the edges mount. Both are derived from the seed,
//! so that what was deleted comes back the same.
//!
//! **Order.** The Secret is written once the user exists with all its rights: an edge that has the Secret can use it. While the seed has a
//! former one, the users of both exist, so that edges whose Secret is a minute old stay connected.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wirepost_core::contract::edge_user::{PASSWORD, SECRET, USERNAME};
use wirepost_runtime::backoff::Backoff;
use wirepost_topology::DesiredUser;

use crate::{access::SeedPair, api_client::BACKOFF, broker::Broker, fresh::Fresh, seed::Seeds};

/// Between two checks of the Secret: a new edge waits for it.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Of one write: it must have ended before another replica may lead.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What it works with.
pub struct EdgeUser {
    /// Reads the Secret, as any replica may.
    pub client: Client,
    /// Writes it, as the leader alone.
    pub writing: Client,
    /// The operator's.
    pub namespace: String,
    /// In which the edges work.
    pub vhost: String,
    /// What the password is derived from.
    pub seeds: Arc<Seeds>,
    /// Where the user is made.
    pub broker: Broker,
    /// Whether this replica may write.
    pub fresh: Fresh,
}

impl EdgeUser {
    /// Keeps user and Secret as they should be while this replica leads, until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let (first, longest) = BACKOFF;
        let mut backoff = Backoff::new(first, longest);
        let mut complete = self.fresh.complete();
        loop {
            let wait = match self.ensure().await {
                Ok(()) => {
                    backoff.reset();
                    CHECK_INTERVAL
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, secret = SECRET, "cannot make the edges' broker user; trying again");
                    backoff.next_pause()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // It may write from now on.
                _ = complete.changed() => {}
                () = self.seeds.changed() => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn ensure(&self) -> anyhow::Result<()> {
        if !self.fresh.may_write() {
            return Ok(());
        }
        let SeedPair { current, former } = self.seeds.get().await?;
        let user = current.edge_user(&self.vhost);
        let former = former.map(|seed| seed.edge_user(&self.vhost));
        self.broker.keep_edge_users(std::iter::once(user.clone()).chain(former).collect()).await?;
        timeout(TIMEOUT, self.write(&user)).await.context("the API server does not answer")?
    }

    async fn write(&self, user: &DesiredUser) -> anyhow::Result<()> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data =
            BTreeMap::from([(USERNAME.to_owned(), bytes(&user.name)), (PASSWORD.to_owned(), bytes(&user.password))]);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let is = secrets.get_opt(SECRET).await?;
        let has = |is: &Secret| {
            let is = is.data.as_ref();
            data.iter().all(|(key, value)| is.is_some_and(|is| is.get(key) == Some(value)))
        };
        if is.as_ref().is_some_and(has) || !self.fresh.may_write() {
            return Ok(());
        }
        let writing: Api<Secret> = Api::namespaced(self.writing.clone(), &self.namespace);
        if is.is_some() {
            let change = serde_json::json!({ "data": data });
            writing.patch(SECRET, &PatchParams::default(), &Patch::Merge(change)).await?;
            tracing::info!(secret = SECRET, user = user.name, "the edges' broker user is another one, or was edited");
            return Ok(());
        }
        let metadata = ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() };
        let secret = Secret { metadata, data: Some(data), ..Secret::default() };
        writing.create(&PostParams::default(), &secret).await?;
        tracing::info!(secret = SECRET, user = user.name, "created the Secret of the edges' broker user");
        Ok(())
    }
}
