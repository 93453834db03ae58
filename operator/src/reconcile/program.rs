//! The edges' part of a reconcile.

use kube::ResourceExt;
use wirepost_core::contract::{config_map::HASH, edge_config::BusinessConfig};

use super::{AcceptedDeclaration, Error, Reconcile, phase::Delivered, secret::SecretResult, waiting::Waiting};
use crate::{
    access::{AccessCredentials, Rotation},
    conditions::EdgeProgress,
    config_map,
};

impl Reconcile<'_> {
    /// Gives the edges and the business's services what they need. Once the Secret has new credentials the hour of the former ones begins,
    /// and not before. `repaired`: something of the business was just repaired on the broker. `waiting`: what waits for the broker.
    pub(super) async fn deliver(
        &self,
        declaration: &AcceptedDeclaration,
        credentials: AccessCredentials,
        repaired: bool,
        waiting: &Waiting,
    ) -> Result<SecretResult, Error> {
        let written = self.program(declaration, &credentials, waiting).await?;
        if waiting.secret {
            // No edge gets what the broker refuses.
            let name = self.stored.status().binding.map(|binding| binding.name);
            return Ok(SecretResult { name, obstacle: None });
        }
        let secret = self.write_secret(declaration, &credentials, repaired || written, &waiting.kept).await;
        let rotation = credentials.rotation.as_ref();
        let delivered = rotation.filter(|_| secret.as_ref().is_ok_and(|secret| secret.obstacle.is_none()));
        if let Some(rotation) = delivered.and_then(Rotation::delivered) {
            let credentials = self.derive(declaration, rotation).await?;
            self.program(declaration, &credentials, waiting).await?;
        }
        secret
    }

    /// Writes the edges' configuration if it is not what they have. Whether it was written.
    async fn program(
        &self,
        declaration: &AcceptedDeclaration,
        credentials: &AccessCredentials,
        waiting: &Waiting,
    ) -> Result<bool, Error> {
        let Self { stored, context } = *self;
        let business = &declaration.compiled.business;
        let declared = self.edge_config(declaration, credentials);
        let config = waiting.permitted(&declared, self.present_config(business).as_ref());
        let should = config_map::build(
            stored,
            &declaration.spec,
            declaration.terms.as_deref(),
            &config,
            credentials.rotation.as_ref(),
        );
        let mut should = config_map::with_used_allowance(should, self.used_allowance());
        context.states.set_hash(business, config.hash());
        let declared = declared.hash();
        let delivered =
            || context.states.of(stored, |state| Delivered::update(&mut state.delivered, &config, declared.clone()));
        let present = context.config_map(business);
        if present.as_ref().is_some_and(|is| config_map::has_all_of(is, &should)) {
            delivered();
            return Ok(false);
        }
        // Only over the version that was compared: never over a newer one.
        let shows = present.and_then(|map| map.metadata.resource_version.clone());
        should.metadata.resource_version = context.states.version(business, shows.clone());
        let written = context.writer.config_map(&should).await;
        // Whatever failed: what the watch shows decides the next attempt.
        let written = written.inspect_err(|_| context.states.forget_version(business))?;
        context.states.set_version(business, shows, written);
        delivered();
        tracing::info!(business, generation = config.generation, "wrote the edge configuration");
        Ok(true)
    }

    /// What the edges should run.
    fn edge_config(&self, declaration: &AcceptedDeclaration, credentials: &AccessCredentials) -> BusinessConfig {
        let mut config = credentials.edge_config(&declaration.compiled);
        if let Some(jwt) = config.auth.jwt.as_mut().filter(|jwt| jwt.key_address().is_some()) {
            jwt.trusted_issuers.clone_from(&self.context.options.trusted_issuers);
        }
        config
    }

    /// Leaves the edges only these keys, and changes nothing else.
    pub(super) async fn end_former_keys(&self, business: &str, credentials: &AccessCredentials) -> Result<(), Error> {
        let Self { stored, context } = *self;
        let Some(map) = context.config_map(business).filter(|map| config_map::is_of(map, stored)) else {
            return Ok(());
        };
        let Some(mut config) = config_map::config(&map).filter(|_| !config_map::is_tombstone(&map)) else {
            return Ok(());
        };
        config.auth.api_keys.clone_from(&credentials.api_keys);
        let mut should = config_map::with_config(&map, &config, credentials.rotation.as_ref());
        if config_map::has_all_of(&map, &should) {
            return Ok(());
        }
        // Only over this version: the watch may not have shown a newer one yet.
        let shows = map.metadata.resource_version.clone();
        should.metadata.resource_version.clone_from(&shows);
        let written = context.writer.config_map(&should).await?;
        context.states.set_version(business, shows, written);
        context.states.set_hash(business, config.hash());
        // What else is to be delivered comes with the next run.
        context.states.of(stored, |state| Delivered::update(&mut state.delivered, &config, config.hash()));
        Ok(())
    }

    /// The edge configuration of a business, if it was written for this resource.
    pub(super) fn present_config(&self, business: &str) -> Option<BusinessConfig> {
        let map = self.context.config_map(business)?;
        if config_map::owner(&map) == self.stored.owner() { config_map::config(&map) } else { None }
    }

    /// How many edges run what was last written for them.
    pub(super) fn progress(&self, business: &str) -> EdgeProgress {
        // By another process, where this one has not written yet.
        let stored = || self.context.config_map(business)?.annotations().get(HASH).cloned();
        let hash = self.context.states.hash(business).or_else(stored);
        self.context.edges.progress(business, &hash.unwrap_or_default())
    }
}
