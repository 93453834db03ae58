//! Whose a business type is: as long as anything of it is left on the broker, for its former owner's namespace alone.
//!
//! Two records say so: the edge configuration, or the reservation in its place, and the mark on the broker ([`wirepost_topology::BusinessOwner`]).
//! The broker's side is compared where the broker is written to; what it refuses becomes a reservation, so that an administrator has
//! something to decide by.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use wirepost_core::contract::{
    condition::{ConditionType, Reason},
    config_map::{ANY_NAMESPACE, RESERVED_FOR},
};
use wirepost_topology::{BusinessOwner, Evidence};

use super::{Done, Error, QUEUE_CHECK_INTERVAL, Reconcile};
use crate::{conditions::ConditionState, config_map, stored::StoredBusiness};

impl Reconcile<'_> {
    /// This resource as the owner of its business type, and what shows that what is left of it on the broker is its own.
    pub(super) fn owner(&self) -> BusinessOwner {
        let Self { stored, context } = *self;
        let namespace = stored.metadata.namespace.as_deref().unwrap_or("default").to_owned();
        let is_own = |map: &ConfigMap| match config_map::reserved_for(map) {
            Some(reserved) => reserved == namespace || reserved == ANY_NAMESPACE,
            None => config_map::is_of(map, stored) || config_map::owner(map) == stored.owner(),
        };
        let runs = || {
            let provisioned = ConditionType::Provisioned.as_str();
            stored.status().conditions.iter().any(|it| it.type_ == provisioned && it.status == "True")
        };
        let record = context.config_map(stored.business_type());
        // A reservation for nobody says no more than no record.
        let evidence = match record.filter(|map| config_map::reserved_for(map) != Some("")) {
            Some(map) if is_own(&map) => Evidence::Record,
            None if context.options.adopts || runs() => Evidence::Unmarked,
            Some(_) | None => Evidence::None,
        };
        BusinessOwner { namespace, evidence }
    }

    /// The edge configuration of the business type, if it was written for a resource of another name that is not seen here: between those
    /// that are seen their age decides.
    pub(super) fn other_owners_config(&self) -> Option<Arc<ConfigMap>> {
        let Self { stored, context } = *self;
        let map = context.config_map(stored.business_type())?;
        if let Some(namespace) = config_map::reserved_for(&map) {
            let own = stored.metadata.namespace.as_deref().unwrap_or("default");
            if namespace.is_empty() && self.owner().evidence != Evidence::None {
                return None;
            }
            return (namespace != own && namespace != ANY_NAMESPACE).then_some(map);
        }
        let uid = config_map::owner_uid(&map).filter(|uid| *uid != stored.uid())?;
        let claims = |other: &StoredBusiness| other.uid() == uid && other.business_type() == stored.business_type();
        let other = !["", &stored.owner()].contains(&config_map::owner(&map))
            && context.businesses.state_filter(claims).is_empty();
        other.then_some(map)
    }

    /// Objects of the former owner are left on the broker, and the next owner of the business type could read them.
    pub(super) fn reserved(&self, map: &ConfigMap, namespace: &str) -> ConditionState {
        let business = self.stored.business_type();
        let former = match config_map::owner(map) {
            "" => "a former owner".to_owned(),
            owner => format!("{owner}, which is gone,"),
        };
        let hand_over = format!(
            "kubectl -n {} annotate configmap {} {RESERVED_FOR}={} --overwrite",
            self.context.options.namespace,
            config_map::name(business),
            self.stored.metadata.namespace.as_deref().unwrap_or("default"),
        );
        let text = if namespace.is_empty() {
            let instead = if self.context.edges.running(business).is_empty() {
                format!("An administrator hands it over with all that is in them: {hand_over}. Or an administrator")
            } else {
                "Edges still run it, and go on. An administrator".to_owned()
            };
            format!(
                "business type {business} is reserved, and its namespace is not known (there is no edge configuration, and no mark of its owner on the broker): objects of {former} are still on the broker, and stay. {instead} starts the operator with --adopt-vhost=unmarked, which gives each such type to the resource that claims it"
            )
        } else if !self.context.edges.running(business).is_empty() && self.context.config_map(business).is_none() {
            format!(
                "business type {business} is reserved for namespace {namespace}, as the broker says. Edges still run it, and go on: apply its resource there again. Once no edge runs it, an administrator can hand it over with all that is left of it"
            )
        } else {
            format!(
                "business type {business} is reserved for namespace {namespace}: queues or a stream of {former} are still on the broker. It is free when they are gone: consume or delete them. Or an administrator hands it over with all that is in them: {hand_over}"
            )
        };
        ConditionState::not_met(Reason::BusinessTypeReserved, text)
    }

    /// Records for whom the business type is reserved, so that an administrator can hand it over, and reports it. `namespace`: as the broker
    /// says it; empty if it does not.
    pub(super) async fn reserve(&self, namespace: &str) -> Result<Done, Error> {
        let Self { stored, context } = *self;
        let reservation = config_map::reserved(stored.business_type(), namespace);
        // There is none: else it would have said so before, or have been a record that this resource may have the type. A reservation is a
        // tombstone, by which edges end the business's clients: not while they run it. Its owner has lost its record, and writes another.
        let ends_clients = !context.edges.running(stored.business_type()).is_empty();
        if context.config_map(stored.business_type()).is_none() && !ends_clients {
            context.writer.config_map(&reservation).await?;
        }
        let known_before = context.states.of(stored, |state| std::mem::replace(&mut state.is_anothers, true));
        if !known_before {
            context.triggers.trigger_business(stored.business_type());
        }
        self.reject(self.reserved(&reservation, namespace), Some(QUEUE_CHECK_INTERVAL)).await
    }
}
