//! Whether a declaration is accepted, and what it compiles to.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;
use wirepost_core::{
    Compiled, Problem, Rejection, WsBusiness, compile,
    contract::condition::Reason,
    destruction::{self, Destruction, destructions},
    edge_config::JwtConfig,
    issuer_address, validate,
};

use super::{
    Reconcile,
    state::{Input, Judged, ResourceState},
};
use crate::{
    broker::Destroying,
    classes::{Class, class_of_terms, without_fillings},
    conditions::{ConditionState, Policy, summarize},
    config_map,
    stored::StoredBusiness,
};

/// A declaration that was accepted.
#[derive(Clone, Debug)]
pub(super) struct AcceptedDeclaration {
    pub(super) compiled: Arc<Compiled>,
    /// As it was declared.
    pub(super) spec: Arc<Value>,
    /// The terms of its class, if they filled in anything.
    pub(super) terms: Option<Arc<str>>,
    /// Name of the access Secret.
    pub(super) secret: Option<String>,
}

/// The terms that the class of an accepted generation gave it, if any.
struct AcceptedTerms(Option<Arc<str>>);

impl AcceptedDeclaration {
    fn new(stored: &StoredBusiness, terms: Option<Arc<str>>, compiled: Arc<Compiled>) -> Self {
        let spec = Arc::new(stored.spec.clone());
        Self { compiled, spec, terms, secret: stored.secret_name().map(str::to_owned) }
    }

    /// With what leads to the businesses that accept its messages now.
    fn shared_with(mut self, acceptors: &BTreeSet<String>) -> Self {
        if !self.compiled.config.accepted_by.iter().eq(acceptors) {
            Arc::make_mut(&mut self.compiled).share_with(acceptors);
        }
        self
    }
}

impl Reconcile<'_> {
    /// What the declaration compiles to, or why it is not accepted.
    pub(super) async fn accept(&self) -> Result<AcceptedDeclaration, ConditionState> {
        let Self { stored, context } = *self;
        // A new declaration may have been read under an older definition, without some of its fields.
        let definition = if self.is_compiled() { context.crd.known() } else { context.crd.fresh().await };
        if let Err(missing) = definition {
            return Err(ConditionState::not_met(Reason::CustomResourceDefinitionOutdated, missing.to_string()));
        }
        if let Some(owner) = context.other_claimant(stored) {
            let problem = compile::business_type_taken(stored.business_type(), &owner);
            return Err(ConditionState::not_met(Reason::BusinessTypeTaken, problem.to_string()));
        }
        // It has the broker's objects and the edges, though it may be gone or not selected here: two would overwrite each other.
        if let Some(map) = self.other_owners_config() {
            if let Some(namespace) = config_map::reserved_for(&map) {
                return Err(self.reserved(&map, namespace));
            }
            let text = format!(
                "business type {} still runs for {}, which is gone or not seen by this installation: delete that resource (one that is gone ends within {} s), or immediately ConfigMap {}",
                stored.business_type(),
                config_map::owner(&map),
                context.options.orphan_grace.as_secs(),
                config_map::name(stored.business_type()),
            );
            return Err(ConditionState::not_met(Reason::BusinessTypeTaken, text));
        }
        if self.accepted_terms().is_none()
            && matches!(context.classes.of(stored.class_name()), Ok(Some(_)))
            && let Err(missing) = context.class_crd.fresh().await
        {
            let problem = validate::class::unknown(&missing.to_string(), "ask the administrator of wirepost");
            return Err(ConditionState::not_met(problem.reason, problem.to_string()));
        }
        let accepted = self.permit()?;
        self.check_issuer(&accepted.compiled)?;
        Ok(accepted.shared_with(&context.acceptors(stored.business_type())))
    }

    /// Edges refuse to ask such an address. What was accepted before goes on; its edges log the reason.
    fn check_issuer(&self, compiled: &Compiled) -> Result<(), ConditionState> {
        let address = compiled.config.auth.jwt.as_ref().and_then(JwtConfig::key_address);
        let Some(address) = address.filter(|_| self.accepted_terms().is_none()) else {
            return Ok(());
        };
        issuer_address::check(address, &self.context.options.trusted_issuers).map(drop).map_err(|defect| {
            let problem = Problem::at(
                "spec.auth.jwt",
                format!("edges must not fetch keys from {}: {defect}", issuer_address::shown(address)),
                "use an https address with a public name, or ask the platform team to list the host (chart value operator.trustedIssuers)",
            );
            ConditionState::not_met(problem.reason, problem.to_string())
        })
    }

    /// What becomes of changes that destroy messages. A change of what runs is refused as a whole, so that what runs goes on; the broker says
    /// whether there is anything to destroy. Otherwise only what destroys is left out: a resource that was created again must run.
    pub(super) fn destroying(&self, compiled: &Compiled) -> Destroying {
        if self.stored.may_destroy() {
            return Destroying::Allowed;
        }
        let before = self.remembered();
        let changes =
            before.is_some_and(|before| !destructions(&before.compiled.topology, &compiled.topology).is_empty());
        if changes { Destroying::Refused } else { Destroying::Held }
    }

    /// Why this generation has to wait for a person.
    pub(super) fn destructive(&self, destroyed: &[Destruction]) -> ConditionState {
        let texts: Vec<String> = destroyed.iter().map(ToString::to_string).collect();
        let text = format!(
            "this change destroys messages: {}. What was accepted before continues. Take the change back, or allow it by this command: {}",
            summarize(&texts),
            self.allow_destructive(destroyed),
        );
        ConditionState::not_met(Reason::Destructive, text)
    }

    /// How a person allows this generation to destroy this.
    pub(super) fn allow_destructive(&self, destroyed: &[Destruction]) -> String {
        let stored = self.stored;
        format!(
            "kubectl -n {} annotate wsb {} {}={} --overwrite",
            stored.metadata.namespace.as_deref().unwrap_or("default"),
            stored.metadata.name.as_deref().unwrap_or_default(),
            destruction::ALLOW,
            destruction::allowance(stored.generation(), destroyed, self.used_allowance().as_deref()),
        )
    }

    /// What a person has allowed before and is done. It allows nothing more, though its annotation stands.
    pub(super) fn used_allowance(&self) -> Option<String> {
        let Self { stored, context } = *self;
        context.states.of(stored, |state| state.used_allowance.clone()).or_else(|| {
            let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
            config_map::used_allowance(&map).map(str::to_owned)
        })
    }

    /// What the declaration compiles to under its class. An accepted generation keeps running on the terms of that time, even if its class
    /// changes: the condition `Permitted` reports what is forbidden now. A new generation would not be accepted.
    fn permit(&self) -> Result<AcceptedDeclaration, ConditionState> {
        let Self { stored, context } = *self;
        let accepted = self.accepted_terms();
        let before = self.class_before();
        let class = match still(context.classes.of(stored.class_name()), before.as_deref()) {
            // What was accepted before the installation asked for a class goes on.
            Ok(None) if context.options.require_class && accepted.is_none() => {
                Err(Box::new(validate::class::required()))
            }
            class => class,
        };
        let terms = match (&accepted, &class) {
            (Some(AcceptedTerms(terms)), _) => terms.clone(),
            (None, Ok(Some(class))) => Some(Arc::clone(&class.terms)),
            (None, _) => None,
        };
        let judged = self.compile(terms, class.as_ref().ok().and_then(Clone::clone));
        let policy = match (&class, &judged) {
            (Err(problem), _) => {
                let status = if problem.reason == Reason::ClassesUnknown && accepted.is_some() {
                    ConditionState::unknown
                } else {
                    ConditionState::not_met
                };
                let name = stored.class_name().or(before.as_deref());
                name.map(|name| (name, status(problem.reason, problem.to_string())))
            }
            (Ok(Some(class)), Ok(judged)) if !judged.forbidden.is_empty() => {
                let text = texts(&judged.forbidden);
                Some((class.name(), ConditionState::not_met(Reason::ClassForbids, text)))
            }
            (Ok(Some(class)), Ok(_)) => {
                let text = format!("class {} allows the declaration", class.name());
                Some((class.name(), ConditionState::met(Reason::ClassAllows, text)))
            }
            (Ok(_), _) => None,
        };
        let policy = policy.map(|(class, permitted)| Policy { class: class.to_owned(), permitted });
        // What runs does not need the classes now: no status is written only because they are listed again.
        let unknown = accepted.is_some() && class.as_ref().is_err_and(|it| it.reason == Reason::ClassesUnknown);
        context.states.of(stored, |state| {
            if !unknown || state.policy.is_none() {
                state.policy.clone_from(&policy);
            }
        });
        let Judged { compiled, terms, forbidden: _ } =
            judged.map_err(|rejection| ConditionState::not_met(rejection.reason(), texts(&rejection.problems)))?;
        if accepted.is_none() {
            if let Some(Policy { permitted, .. }) = policy.filter(|policy| !policy.permitted.is_met()) {
                return Err(permitted);
            }
            // A default class that can't be read.
            if let Err(problem) = class {
                return Err(ConditionState::not_met(problem.reason, problem.to_string()));
            }
        }
        Ok(AcceptedDeclaration::new(stored, terms, compiled))
    }

    /// The class that applied when the resource was last accepted.
    fn class_before(&self) -> Option<String> {
        let Self { stored, context } = *self;
        let known = context.states.of(stored, |state| state.accepted.as_ref().map(|accepted| accepted.terms.clone()));
        let terms = known.unwrap_or_else(|| {
            let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
            config_map::terms(&map).map(Arc::from)
        });
        class_of_terms(&terms?)
    }

    /// If this generation was accepted: the terms of its class at that time.
    fn accepted_terms(&self) -> Option<AcceptedTerms> {
        let Self { stored, context } = *self;
        let generation = stored.generation();
        let known = context.states.of(stored, |state| {
            let accepted = state.accepted.as_ref().filter(|accepted| accepted.compiled.config.generation == generation);
            accepted.map(|accepted| AcceptedTerms(accepted.terms.clone()))
        });
        known.or_else(|| {
            let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
            (config_map::generation(&map) == Some(generation))
                .then(|| AcceptedTerms(config_map::terms(&map).map(Arc::from)))
        })
    }

    /// Whether this very declaration was compiled before.
    fn is_compiled(&self) -> bool {
        let declaration = self.stored.fingerprint();
        let same =
            |state: &mut ResourceState| state.compiled.as_ref().is_some_and(|(of, _)| of.declaration == declaration);
        self.context.states.of(self.stored, same)
    }

    /// What this declaration compiles to with these terms, and what this class forbids in it; compiled once.
    fn compile(&self, terms: Option<Arc<str>>, class: Option<Arc<Class>>) -> Result<Judged, Rejection> {
        let Self { stored, context } = *self;
        let input = Input { declaration: stored.fingerprint(), terms, class };
        let known = context.states.of(stored, |state| {
            state.compiled.as_ref().filter(|(of, _)| *of == input).map(|(_, result)| result.clone())
        });
        if let Some(result) = known {
            return result;
        }
        // Without the lock: a large declaration takes milliseconds.
        let rejection =
            |problems| Rejection { business: stored.business_type().to_owned(), owner: stored.owner(), problems };
        let result = stored.declaration().map_err(rejection).and_then(|business| judge(business, &input));
        context.states.of(stored, |state| state.compiled = Some((input, result.clone())));
        let uids = || context.businesses.state().iter().map(|stored| stored.uid().to_owned()).collect();
        context.states.forget_stale(context.businesses.len(), uids);
        result
    }

    /// What keeps running while a newer generation is not accepted; `None` where the business type belongs to another resource. `outdated`:
    /// the resource was read under an older definition, and may lack fields.
    pub(super) fn last_accepted(&self, outdated: bool) -> Option<AcceptedDeclaration> {
        if self.context.other_claimant(self.stored).is_some() || self.other_owners_config().is_some() {
            return None;
        }
        let accepted = self.remembered().or_else(|| self.accepted_generation().filter(|_| !outdated))?;
        Some(accepted.shared_with(&self.context.acceptors(self.stored.business_type())))
    }

    /// What was last accepted, by this process or one before it.
    fn remembered(&self) -> Option<AcceptedDeclaration> {
        let Self { stored, context } = *self;
        if let Some(declaration) = context.states.of(stored, |state| state.accepted.clone()) {
            return Some(declaration);
        }
        let map = context.config_map(stored.business_type()).filter(|map| config_map::is_of(map, stored))?;
        let then = config_map::declared(&map, stored)?;
        let terms = config_map::terms(&map);
        let compiled = Arc::new(then.compile_accepted(terms)?);
        let declaration = AcceptedDeclaration::new(&then, terms.map(Arc::from), compiled);
        context.states.of(stored, |state| state.accepted = Some(declaration.clone()));
        Some(declaration)
    }

    /// This generation, if it was accepted before something else prevented it, such as a newer rule.
    fn accepted_generation(&self) -> Option<AcceptedDeclaration> {
        let AcceptedTerms(terms) = self.accepted_terms()?;
        let compiled = self.stored.compile_accepted(terms.as_deref())?;
        Some(AcceptedDeclaration::new(self.stored, terms, Arc::new(compiled)))
    }

    /// Queues of the team's own that are new in the declaration: without them it can't be accepted.
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
        map.is_some_and(|map| {
            // The same generation with another spec: fields were missing then, or are missing now.
            let same = config_map::declared(&map, self.stored).is_none_or(|then| then.spec == self.stored.spec);
            same && config_map::generation(&map) == Some(compiled.config.generation)
        })
    }
}

/// Fills in the terms of the class, and finds what it forbids.
fn judge(mut business: WsBusiness, input: &Input) -> Result<Judged, Rejection> {
    let declared = business.spec.clone();
    // Another version wrote terms that can't be read: they count as none.
    if let Some(given) = input.terms.as_deref().and_then(|terms| serde_json::from_str(terms).ok()) {
        validate::class::fill(&given, &mut business);
    }
    let class = input.class.as_ref();
    let forbidden = class.map(|class| validate::class::check(&class.resource, &business)).unwrap_or_default();
    // Of a class that filled in nothing only the name is kept.
    let given = business.spec != declared;
    let terms = input.terms.clone().and_then(|terms| if given { Some(terms) } else { without_fillings(&terms) });
    let compiled = Arc::new(compile::compile_one(&business)?);
    Ok(Judged { compiled, terms, forbidden: forbidden.into() })
}

/// The class that applies. If one has applied `before`, one must: a business under a policy does not escape it because a class, or the
/// definition of classes, was deleted.
fn still(
    now: Result<Option<Arc<Class>>, Box<Problem>>,
    before: Option<&str>,
) -> Result<Option<Arc<Class>>, Box<Problem>> {
    match (now, before) {
        (Ok(None), Some(before)) => Err(Box::new(validate::class::lost(before))),
        (now, _) => now,
    }
}

fn texts(problems: &[Problem]) -> String {
    summarize(&problems.iter().map(Problem::to_string).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_had_a_class_is_not_accepted_without_one_and_the_class_is_known_though_it_gave_nothing() {
        let class = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusinessClass", "metadata": {"name": "standard"},
            "spec": {"default": true, "limits": {"queues": 3}},
        }));
        let class = Arc::new(Class::new(class.unwrap()));
        let business: WsBusiness = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": "pay", "namespace": "shop", "uid": "1", "generation": 3},
            "spec": {"clientTypes": ["app"],
                "routes": [{"messageType": "a", "sendType": "ClientToServer", "queue": {"name": "q"}}]},
        }))
        .unwrap();
        let mut input =
            Input { declaration: [0; 32], terms: Some(Arc::clone(&class.terms)), class: Some(Arc::clone(&class)) };
        // Also when it is compiled again from what was kept.
        for _ in 0..2 {
            let judged = judge(business.clone(), &input).unwrap();
            assert_eq!(judged.terms.as_deref(), Some(r#"{"class":"standard"}"#));
            input.terms = judged.terms;
        }
        let before = input.terms.as_deref().and_then(class_of_terms);
        assert_eq!(still(Ok(None), before.as_deref()).unwrap_err().reason, Reason::ClassNotFound);
        assert_eq!(still(Ok(Some(Arc::clone(&class))), before.as_deref()), Ok(Some(class)));
        assert_eq!(still(Ok(None), None), Ok(None));
    }
}
