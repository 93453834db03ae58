//! The edges' part of a reconcile.

use kube::ResourceExt;
use wirepost_core::contract::config_map::HASH;

use super::{AcceptedDeclaration, Error, Reconcile, secret::SecretResult};
use crate::{
    access::{AccessCredentials, Rotation},
    config_map,
    edges::EdgeProgress,
};

impl Reconcile<'_> {
    /// Gives the edges and the business's services what they need. Once the Secret has new credentials the hour of the former ones begins,
    /// and not before. `repaired`: something of the business was just repaired on the broker.
    pub(super) async fn deliver(
        &self,
        declaration: &AcceptedDeclaration,
        credentials: AccessCredentials,
        repaired: bool,
    ) -> Result<SecretResult, Error> {
        let written = self.program(declaration, &credentials).await?;
        let secret = self.write_secret(declaration, &credentials, repaired || written).await?;
        let delivered = credentials.rotation.as_ref().filter(|_| secret.obstacle.is_none());
        if let Some(rotation) = delivered.and_then(Rotation::delivered) {
            let credentials = self.derive(declaration, rotation).await?;
            self.program(declaration, &credentials).await?;
        }
        Ok(secret)
    }

    /// Writes the edges' configuration if it is not what they have. Whether it was written.
    async fn program(&self, declaration: &AcceptedDeclaration, credentials: &AccessCredentials) -> Result<bool, Error> {
        let Self { stored, context } = *self;
        let business = &declaration.compiled.business;
        let config = credentials.edge_config(&declaration.compiled);
        let should = config_map::build(stored, &declaration.spec, &config, credentials.rotation.as_ref());
        context.states.set_hash(business, config.hash());
        if context.config_map(business).is_some_and(|is| config_map::has_all_of(&is, &should)) {
            return Ok(false);
        }
        context.writer.config_map(&should).await?;
        tracing::info!(business, generation = config.generation, "edge configuration written");
        Ok(true)
    }

    /// How many edges run what was last written for them.
    pub(super) fn progress(&self, business: &str) -> EdgeProgress {
        // By another process, where this one has not written yet.
        let stored = || self.context.config_map(business)?.annotations().get(HASH).cloned();
        let hash = self.context.states.hash(business).or_else(stored);
        self.context.edges.progress(business, &hash.unwrap_or_default())
    }
}
