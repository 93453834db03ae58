//! Everything that a vhost has at one moment, sorted by business, so that looking at one of a thousand costs what that one has.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};
use wirepost_core::names;
use wirepost_core::topology::Topology;
use wirepost_rabbitmq::{ManagementClient, ManagementError};

use crate::actual::{Actual, Permission, Policy, User, of_vhost, users};
use crate::bindings::is_anothers;
use crate::plan::{Objects, Plan, is_shared, plan_objects, plan_shared, plan_users};
use crate::users::{DesiredUser, user_tag};

/// What a vhost has, read at about one moment by [`Snapshot::read`].
#[derive(Debug)]
pub struct Snapshot {
    /// The tag of our users in this vhost.
    tag: String,
    /// By business type.
    parts: BTreeMap<String, Part>,
    /// Those of the policies that all businesses share which are there.
    shared_policies: Vec<Policy>,
    /// Queues that are nobody's of ours, with their arguments.
    foreign_queues: HashMap<String, Map<String, Value>>,
    /// Policies that are not ours, then operator policies.
    foreign_policies: Vec<Policy>,
    /// The highest priority of any of them that could stand in our way. An operator policy stands beside ours, so it always could.
    rival: Option<i32>,
}

/// What one business has.
#[derive(Debug, Default)]
struct Part {
    objects: Actual,
    /// Every user with a name of this business, also without our tag.
    users: Vec<User>,
    permissions: Vec<Permission>,
}

impl Snapshot {
    /// Everything that the vhost has, and the broker's users. Four calls at the same time; the user needs the tag `administrator`.
    ///
    /// # Errors
    /// [`ManagementError::NoVhost`] where the vhost is missing.
    pub async fn read(management: &ManagementClient) -> Result<Self, ManagementError> {
        let vhost = management.vhost();
        let (operator_policies, permissions) = (["operator-policies", vhost], ["vhosts", vhost, "permissions"]);
        let (actual, operator_policies, users, permissions) = tokio::try_join!(
            Actual::read(management),
            of_vhost::<Vec<Policy>>(management, "reading the operator policies of vhost", &operator_policies),
            users(management),
            of_vhost::<Vec<Permission>>(management, "reading the permissions of vhost", &permissions),
        )?;
        Ok(Self::new(vhost, actual, operator_policies, users, permissions))
    }

    /// `users` of the whole broker, `permissions` in this vhost.
    pub(crate) fn new(
        vhost: &str,
        actual: Actual,
        operator_policies: Vec<Policy>,
        users: Vec<User>,
        permissions: Vec<Permission>,
    ) -> Self {
        let mut parts = Parts::default();
        let mut foreign_queues = HashMap::new();
        let (mut shared, mut foreign_policies) = (Vec::new(), Vec::new());
        for exchange in actual.exchanges {
            if let Some(part) = parts.of(&exchange.name) {
                part.objects.exchanges.push(exchange);
            }
        }
        for queue in actual.queues {
            match parts.of(&queue.name) {
                Some(part) => part.objects.queues.push(queue),
                None => drop(foreign_queues.insert(queue.name, queue.arguments)),
            }
        }
        for binding in actual.bindings {
            let of = if names::owner(&binding.source).is_some() { &binding.source } else { &binding.destination };
            if let Some(part) = parts.of(of) {
                part.objects.bindings.push(binding);
            }
        }
        for policy in actual.policies {
            match parts.of(&policy.name) {
                Some(part) => part.objects.policies.push(policy),
                None if is_shared(&policy.name) => shared.push(policy),
                None => foreign_policies.push(policy),
            }
        }
        for user in users {
            if let Some(part) = parts.of(&user.name) {
                part.users.push(user);
            }
        }
        for permission in permissions {
            if let Some(part) = parts.of(&permission.user) {
                part.permissions.push(permission);
            }
        }
        let highest = foreign_policies.iter().map(|p| p.priority).max();
        let rival = if operator_policies.is_empty() { highest } else { Some(i32::MAX) };
        foreign_policies.extend(operator_policies);
        Self { tag: user_tag(vhost), parts: parts.0, shared_policies: shared, foreign_queues, foreign_policies, rival }
    }

    /// Every business that has an object or user of ours, sorted. What edges and listeners of events declared themselves does not count.
    pub fn businesses(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter(|(_, part)| part.has_any(&self.tag)).map(|(business, _)| business.as_str())
    }

    /// What makes the policies as they should be that all businesses share. To be applied before the plans of businesses: a queue should
    /// find its limits when it is made. They stay when the last business has gone.
    pub fn plan_shared(&self) -> Plan {
        let mut plan = Plan::default();
        plan_shared(&mut plan, &self.shared_policies);
        plan
    }

    /// What makes this business as declared; with an empty topology and no users, what removes it. `users: None` leaves users alone.
    ///
    /// The rules are those of [`plan`](crate::plan()) with [`Scope::Business`](crate::Scope::Business), but for the shared policies. Users with our tag that are not in
    /// `users` go; one without our tag is never touched.
    pub fn plan(&self, business: &str, topology: &Topology, users: Option<&[DesiredUser]>) -> Plan {
        let nothing = Part::default();
        let part = self.parts.get(business).unwrap_or(&nothing);
        let find = |queue: &str| {
            let own = || part.objects.queues.iter().find(|own| own.name == queue).map(|own| &own.arguments);
            self.foreign_queues.get(queue).or_else(own)
        };
        let mut plan = plan_objects(topology, &Objects::of(&part.objects, |_| true), find, self.rival);
        if let Some(users) = users {
            plan_users(&mut plan, users, &part.users, &part.permissions, &self.tag);
        }
        plan
    }

    /// Policies of others, operator policies included: they may overrule or limit ours. Where two snapshots differ in these, businesses
    /// that had nothing to do are worth another [`apply_plan`](crate::apply_plan), which looks at what is in force.
    pub fn foreign_policies(&self) -> &[Policy] {
        &self.foreign_policies
    }
}

impl Part {
    fn has_any(&self, tag: &str) -> bool {
        !self.objects.policies.is_empty()
            || self.objects.exchanges.iter().any(|e| !is_anothers(&e.name))
            || self.objects.queues.iter().any(|q| !is_anothers(&q.name))
            || self.users.iter().any(|user| user.tags.iter().any(|t| t == tag))
    }
}

#[derive(Default)]
struct Parts(BTreeMap<String, Part>);

impl Parts {
    /// That of the object's owner; `None` for an object that is not ours.
    fn of(&mut self, object: &str) -> Option<&mut Part> {
        let owner = names::owner(object)?;
        if !self.0.contains_key(owner) {
            self.0.insert(owner.to_owned(), Part::default());
        }
        self.0.get_mut(owner)
    }
}

#[cfg(test)]
mod tests;
