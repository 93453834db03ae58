//! The credentials of a business's services, and the Secret that carries them.
//!
//! **When the Secret is checked.** To watch it the operator would need the right to read every Secret of the namespace, so it asks: a patch
//! that is not stored (see [`crate::writer`]). It asks
//! - when this process reconciles the resource for the first time, and when the Secret should have other entries than before;
//! - when anything that people change in the resource has changed: its spec, a label, an annotation;
//! - when something else of the business had to be written or repaired;
//! - when the namespace is one in which Secrets may be watched ([`crate::secret_watch`]), and the watch reports a change;
//! - else within [`Options::secret_check`](super::Options::secret_check), spread evenly over time.
//!
//! It used to ask every 20 s: with 1,000 businesses that was 50 calls a second and nearly all of an idle operator's CPU time
//! (docs/decisions/0013-no-right-to-read-secrets.md has the measurements).

use std::{collections::BTreeSet, time::Duration};

use kube::runtime::controller::Action;
use tokio::time::Instant;
use wirepost_core::contract::condition::Reason;
use wirepost_runtime::clock::now_ms;

use super::{
    AcceptedDeclaration, Error, Reconcile,
    state::{ResourceState, SecretCheck},
};
use crate::{
    AUDIT,
    access::{self, AccessCredentials, Rotation},
    conditions::ConditionState,
    config_map,
    stored::{REVOKE, ROTATE},
    writer::{self, SecretState},
};

/// What became of the Secret.
pub(super) struct SecretResult {
    /// The Secret that contains the credentials now.
    pub(super) name: Option<String>,
    /// What prevents that it is the declared one.
    pub(super) obstacle: Option<ConditionState>,
}

impl Reconcile<'_> {
    /// The credentials that are valid now, rotated if that is asked for.
    pub(super) async fn credentials(&self, declaration: &AcceptedDeclaration) -> Result<AccessCredentials, Error> {
        if declaration.secret.is_none() {
            return Ok(AccessCredentials::default());
        }
        let asked = self.stored.annotation(ROTATE).unwrap_or_default();
        self.warn_of_revocation_without_effect(asked).await;
        let rotation = Rotation::next(self.rotation(), asked, self.stored.annotation(REVOKE));
        match rotation.revoked() {
            Some(revoked) => self.revoke(declaration, revoked).await,
            None => self.derive(declaration, rotation).await,
        }
    }

    /// Ends former credentials, before anything that can fail or has to wait: for the broker, for the Secret. The edges refuse the keys from
    /// now on, and the users are not among those that the broker should have.
    async fn revoke(&self, declaration: &AcceptedDeclaration, revoked: Rotation) -> Result<AccessCredentials, Error> {
        let Self { stored, context } = *self;
        let business = &declaration.compiled.business;
        let credentials = self.credentials_of(declaration, revoked.clone()).await?;
        match self.end_former_keys(business, &credentials).await {
            Ok(()) => {
                // Not before: until then each run tries it again.
                context.states.of(stored, |state| state.rotation = Some(revoked));
                tracing::info!(target: AUDIT, action = "revoke_credentials", outcome = "done", business, resource = stored.owner(), "the former credentials are revoked");
                context.events.revoked(stored).await;
            }
            Err(Error::Write(writer::Error::Api { cause, doing })) if writer::is_conflict(&cause) => {
                return Err(writer::Error::Api { cause, doing }.into());
            }
            Err(Error::Write(error @ (writer::Error::NotLeader | writer::Error::Outdated(_)))) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::error!(
                    business,
                    %error,
                    "cannot revoke the API keys: the edges still accept them; trying again. The broker users are removed in any case"
                );
            }
        }
        Ok(credentials)
    }

    /// An event if a revocation is requested with a value that is not the one of the rotation: nothing is revoked. A value from before a
    /// later rotation is ignored.
    async fn warn_of_revocation_without_effect(&self, asked: &str) {
        let Self { stored, context } = *self;
        let revoke = stored.annotation(REVOKE).unwrap_or_default();
        let before = context.states.of(stored, |state| state.revoke_asked.replace(revoke.to_owned()));
        if before.is_some_and(|before| has_no_effect(&before, revoke, asked)) {
            context.events.not_revoked(stored, revoke, asked).await;
        }
    }

    /// The credentials of a rotation, which is remembered.
    pub(super) async fn derive(
        &self,
        declaration: &AcceptedDeclaration,
        rotation: Rotation,
    ) -> Result<AccessCredentials, Error> {
        let credentials = self.credentials_of(declaration, rotation.clone()).await?;
        self.context.states.of(self.stored, |state| state.rotation = Some(rotation));
        Ok(credentials)
    }

    async fn credentials_of(
        &self,
        declaration: &AcceptedDeclaration,
        rotation: Rotation,
    ) -> Result<AccessCredentials, Error> {
        let Self { stored, context } = *self;
        let seeds = context.seeds.get().await.map_err(Error::Seed)?;
        let vhost = &context.options.endpoints.vhost;
        Ok(AccessCredentials::new(&seeds, vhost, &declaration.compiled.business, stored.uid(), rotation))
    }

    /// What was valid until now. The watch may lag behind our own last write.
    fn rotation(&self) -> Option<Rotation> {
        let Self { stored, context } = *self;
        if let Some(rotation) = context.states.of(stored, |state| state.rotation.clone()) {
            return Some(rotation);
        }
        let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
        Rotation::from_annotations(map.metadata.annotations.as_ref()?)
    }

    /// Writes the access Secret if it is not as it should be, and then deletes a former one. `touched`: something else of the business was
    /// just written, so the Secret is checked too. `kept`: see [`access::entries`].
    pub(super) async fn write_secret(
        &self,
        declaration: &AcceptedDeclaration,
        credentials: &AccessCredentials,
        touched: bool,
        kept: &BTreeSet<String>,
    ) -> Result<SecretResult, Error> {
        let Self { stored, context } = *self;
        // The status names it until it is gone: it is the only record.
        let former = stored.status().binding.map(|binding| binding.name);
        let former = former.filter(|name| Some(name) != declaration.secret.as_ref());
        if let (Some(name), Some(current)) = (&declaration.secret, &credentials.current) {
            let topology = &declaration.compiled.topology;
            let entries = access::entries(&context.options.endpoints, current, stored, topology, kept);
            let fresh = context
                .states
                .of(stored, |state| state.secret.as_ref().is_some_and(|check| check.is_fresh(stored, name, &entries)));
            if touched || !fresh {
                // After a failure, and after a change that is reported while it is checked, it is checked again.
                let changes = context.states.of(stored, |state| {
                    state.secret = None;
                    state.secret_changes
                });
                match context.writer.secret(stored, name, &entries).await? {
                    SecretState::Taken => {
                        let text = format!(
                            "Secret {name} exists and was not made by wirepost: choose another access.secretName, or delete it"
                        );
                        let obstacle = Some(ConditionState::not_met(Reason::SecretTaken, text));
                        return Ok(SecretResult { name: former, obstacle });
                    }
                    SecretState::Written | SecretState::Current => {
                        let check = SecretCheck::new(stored, name, entries, context.options.secret_check);
                        context.states.of(stored, |state| {
                            state.secret = (state.secret_changes == changes).then_some(check);
                        });
                    }
                }
            }
        }
        if let Some(former) = former {
            context.writer.delete_secret(stored, &former).await?;
        }
        Ok(SecretResult { name: declaration.secret.clone(), obstacle: None })
    }

    /// When the next reconcile is due though nothing has happened: former credentials end, or the Secret is to be checked. `also`: a
    /// further reason.
    pub(super) fn at_next_check(
        &self,
        declaration: &AcceptedDeclaration,
        credentials: &AccessCredentials,
        also: Option<Duration>,
    ) -> Action {
        let ends = credentials
            .changes_at()
            .map(|at| Duration::from_millis(u64::try_from(at - now_ms()).unwrap_or_default() + 1));
        let check = declaration.secret.as_ref().map(|_| {
            until_check(self.context.states.of(self.stored, |state| state.secret.as_ref().map(|check| check.next)))
        });
        let status = self.context.states.of(self.stored, ResourceState::status_due);
        let next = ends.into_iter().chain(check).chain(also).chain(status).min();
        next.map_or_else(Action::await_change, Action::requeue)
    }
}

/// Whether a revocation was just requested with a value that revokes nothing. `before`: the annotation when it was last seen. Empty: there
/// is none.
fn has_no_effect(before: &str, revoke: &str, rotate: &str) -> bool {
    !revoke.is_empty() && revoke != before && revoke != rotate
}

/// How long until the Secret is checked. `next`: when the last check wanted the next one; none: the Secret could not be written, or is not
/// ours. A check may be overdue because a problem on the broker keeps it from being made: that must not repeat the reconcile at once.
fn until_check(next: Option<Instant>) -> Duration {
    let left = next.map(|next| next.saturating_duration_since(Instant::now()));
    left.filter(|left| !left.is_zero()).unwrap_or(TAKEN_CHECK_INTERVAL)
}

/// Between two checks whether a foreign Secret still has the name.
const TAKEN_CHECK_INTERVAL: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_by_another_value_than_the_rotation_s_is_told_once() {
        assert!(has_no_effect("", "now", "2"));
        assert!(!has_no_effect("now", "now", "2"), "it was reported");
        assert!(!has_no_effect("", "2", "2"), "it has its effect");
        assert!(!has_no_effect("2", "2", "3"), "done before the next rotation");
        assert!(!has_no_effect("2", "", "3"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_overdue_check_that_cannot_be_made_does_not_repeat_the_reconcile_at_once() {
        let next = Instant::now() + Duration::from_secs(100);
        assert_eq!(until_check(Some(next)), Duration::from_secs(100));
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(until_check(Some(next)), TAKEN_CHECK_INTERVAL);
        assert_eq!(until_check(None), TAKEN_CHECK_INTERVAL);
    }
}
