//! Whether a declaration is accepted, and what it compiles to.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;
use wirepost_core::{Compiled, Problem, Rejection, compile, contract::condition::Reason};

use super::Reconcile;
use crate::{
    conditions::{ConditionState, summarize},
    config_map,
    stored::StoredBusiness,
};

/// A declaration that was accepted.
#[derive(Clone, Debug)]
pub(super) struct AcceptedDeclaration {
    pub(super) compiled: Arc<Compiled>,
    /// As it was declared.
    pub(super) spec: Arc<Value>,
    /// Name of the access Secret.
    pub(super) secret: Option<String>,
}

impl AcceptedDeclaration {
    pub(super) fn new(stored: &StoredBusiness, compiled: Arc<Compiled>) -> Self {
        let spec = Arc::new(stored.spec.clone());
        Self { compiled, spec, secret: stored.secret_name().map(str::to_owned) }
    }
}

impl Reconcile<'_> {
    /// What the declaration compiles to, or why it is not accepted.
    pub(super) fn accept(&self) -> Result<Arc<Compiled>, ConditionState> {
        let Self { stored, context } = *self;
        let outdated = context.crd.borrow().as_ref().and_then(|check| check.as_ref().err()).map(ToString::to_string);
        if let Some(missing) = outdated {
            return Err(ConditionState::not_met(Reason::CustomResourceDefinitionOutdated, missing));
        }
        if let Some(owner) = stored.older_claimant(&context.businesses) {
            let problem = compile::business_type_taken(stored.business_type(), &owner);
            return Err(ConditionState::not_met(Reason::BusinessTypeTaken, problem.to_string()));
        }
        // It has the broker's objects and the edges, though it may be gone or not selected here: two would overwrite each other.
        if let Some(map) = self.other_owners_config() {
            let text = format!(
                "business type {} still runs for {}, which is gone or not seen by this installation: delete that resource (one that is gone ends within {} s), or immediately ConfigMap {}",
                stored.business_type(),
                config_map::owner(&map),
                context.options.orphan_grace.as_secs(),
                config_map::name(stored.business_type()),
            );
            return Err(ConditionState::not_met(Reason::BusinessTypeTaken, text));
        }
        self.compile().map_err(|rejection: Rejection| {
            let problems: Vec<String> = rejection.problems.iter().map(Problem::to_string).collect();
            ConditionState::not_met(rejection.reason(), summarize(&problems))
        })
    }

    /// What this generation compiles to; compiled once.
    pub(super) fn compile(&self) -> Result<Arc<Compiled>, Rejection> {
        let Self { stored, context } = *self;
        let generation = stored.generation();
        let known = context.states.of(stored, |state| {
            state.compiled.as_ref().filter(|(of, _)| *of == generation).map(|(_, result)| result.clone())
        });
        if let Some(result) = known {
            return result;
        }
        // Without the lock: a large declaration takes milliseconds.
        let rejection =
            |problems| Rejection { business: stored.business_type().to_owned(), owner: stored.owner(), problems };
        let result =
            stored.declaration().map_err(rejection).and_then(|business| compile::compile_one(&business).map(Arc::new));
        context.states.of(stored, |state| state.compiled = Some((generation, result.clone())));
        let uids = || context.businesses.state().iter().map(|stored| stored.uid().to_owned()).collect();
        context.states.forget_stale(context.businesses.len(), uids);
        result
    }

    /// What keeps running while a newer generation is not accepted; `None` where the business type belongs to another resource.
    pub(super) fn last_accepted(&self) -> Option<AcceptedDeclaration> {
        if self.stored.older_claimant(&self.context.businesses).is_some() || self.other_owners_config().is_some() {
            return None;
        }
        self.remembered().or_else(|| self.accepted_generation())
    }

    /// What was last accepted, by this process or one before it.
    fn remembered(&self) -> Option<AcceptedDeclaration> {
        let Self { stored, context } = *self;
        if let Some(declaration) = context.states.of(stored, |state| state.accepted.clone()) {
            return Some(declaration);
        }
        let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
        let then = config_map::declared(&map, stored)?;
        let declaration = AcceptedDeclaration::new(&then, Arc::new(then.compile_accepted()?));
        context.states.of(stored, |state| state.accepted = Some(declaration.clone()));
        Some(declaration)
    }

    /// This generation, if it was accepted before something else stood in its way, such as an older CRD or a rule that is newer than it.
    fn accepted_generation(&self) -> Option<AcceptedDeclaration> {
        let compiled = self.stored.compile_accepted().filter(|compiled| self.accepted_before(compiled))?;
        Some(AcceptedDeclaration::new(self.stored, Arc::new(compiled)))
    }

    /// Queues of the team's own that the business has not named before: without them its declaration can't be accepted.
    pub(super) fn new_existing_queues(&self, compiled: &Compiled) -> Vec<String> {
        let named = &compiled.topology.existing_queues;
        if named.is_empty() || self.accepted_before(compiled) {
            return Vec::new();
        }
        let before = self.remembered();
        let is_known = |queue: &String| {
            before.as_ref().is_some_and(|before| before.compiled.topology.existing_queues.contains(queue))
        };
        named.iter().filter(|queue| !is_known(queue)).cloned().collect()
    }

    /// Whether this generation was accepted once, by this process or another.
    pub(super) fn accepted_before(&self, compiled: &Compiled) -> bool {
        let map = self.context.config_map(&compiled.business).filter(|map| config_map::is_of(map, self.stored));
        map.and_then(|map| config_map::generation(&map)) == Some(compiled.config.generation)
    }

    /// The edge configuration of the business type, if it was written for a resource of another name that is not seen here: between those
    /// that are seen their age decides.
    pub(super) fn other_owners_config(&self) -> Option<Arc<ConfigMap>> {
        let Self { stored, context } = *self;
        let map = context.config_map(stored.business_type())?;
        let uid = config_map::owner_uid(&map).filter(|uid| *uid != stored.uid())?;
        let claims = |other: &StoredBusiness| other.uid() == uid && other.business_type() == stored.business_type();
        let other = !["", &stored.owner()].contains(&config_map::owner(&map))
            && context.businesses.state_filter(claims).is_empty();
        other.then_some(map)
    }
}
