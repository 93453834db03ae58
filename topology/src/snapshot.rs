//! Everything that a vhost has at one moment, sorted by business, so that comparing one of a thousand costs only what that one has.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};
use wirepost_core::contract::headers;
use wirepost_core::names;
use wirepost_core::topology::{Topology, shared_policy_of};
use wirepost_rabbitmq::{ManagementClient, ManagementError};

use crate::actual::{
    Accounts, Actual, Binding, Node, Permission, Policy, User, UserLimits, nodes, of_vhost, user_limits, users,
};
use crate::bindings::is_declared_elsewhere;
use crate::control::Control;
use crate::destroys::plan_shared;
use crate::ownership::Marker;
use crate::plan::{Objects, Others, Plan, is_shared, plan_objects, plan_users, streams_without_policy};
use crate::reserved::{marked, namespace};
use crate::room::{self, WithRoom};
use crate::users::{DesiredUser, user_tag};

/// What a vhost has, read at about one moment by [`Snapshot::read`].
#[derive(Debug)]
pub struct Snapshot {
    /// The tag of our users in this vhost.
    tag: String,
    /// The installation that the vhost belongs to.
    marker: Option<Marker>,
    /// By business type.
    parts: BTreeMap<String, BusinessObjects>,
    /// Users of edges, of this vhost or another one.
    edges: Accounts,
    /// The shared policies that exist.
    shared_policies: Vec<Policy>,
    /// Queues that belong to no business, with their arguments.
    foreign_queues: HashMap<String, Map<String, Value>>,
    /// Policies that are not ours, then operator policies.
    foreign_policies: Vec<Policy>,
    /// The highest priority of a foreign policy that could win over ours. An operator policy is merged with ours, so it always could.
    highest_foreign_priority: Option<i32>,
    nodes: Vec<Node>,
    /// What there is of that by which edges tell each other.
    control: Control,
}

/// What one business has.
#[derive(Debug, Default)]
struct BusinessObjects {
    objects: Actual,
    /// The namespace that the mark of its owner names.
    owner: Option<String>,
    accounts: Accounts,
}

impl Snapshot {
    /// Everything in the vhost, and the broker's users. Six concurrent calls; the user needs the tag `administrator`.
    ///
    /// # Errors
    /// [`ManagementError::NoVhost`] where the vhost is missing.
    pub async fn read(management: &ManagementClient) -> Result<Self, ManagementError> {
        let vhost = management.vhost();
        let (operator_policies, permissions) = (["operator-policies", vhost], ["vhosts", vhost, "permissions"]);
        let (actual, operator_policies, users, permissions, limits, nodes) = tokio::try_join!(
            Actual::read(management),
            of_vhost::<Vec<Policy>>(management, "reading the operator policies of vhost", &operator_policies),
            users(management),
            of_vhost::<Vec<Permission>>(management, "reading the permissions of vhost", &permissions),
            user_limits(management),
            nodes(management),
        )?;
        let snapshot = Self::new(vhost, actual, operator_policies, users, (permissions, limits));
        Ok(Self { nodes, ..snapshot })
    }

    /// `users` and their limits: of the whole broker; their permissions: in this vhost.
    pub(crate) fn new(
        vhost: &str,
        actual: Actual,
        operator_policies: Vec<Policy>,
        users: Vec<User>,
        (permissions, limits): (Vec<Permission>, Vec<UserLimits>),
    ) -> Self {
        let control = Control::of(&actual);
        let mut parts = ByBusiness::default();
        let mut foreign_queues = HashMap::new();
        let (mut shared, mut foreign_policies) = (Vec::new(), Vec::new());
        let mut marker = None;
        for exchange in actual.exchanges {
            if exchange.name == names::INSTALLATION {
                marker = Some(Marker::read(&exchange));
            } else if marked(&exchange.name).is_some()
                && let Some(part) = parts.of(&exchange.name)
            {
                part.owner = Some(namespace(&exchange));
            } else if let Some(part) = parts.of(&exchange.name) {
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
            if let Some(part) = parts.of(binding.belongs_to()) {
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
        let mut edges = Accounts::default();
        for user in users {
            if let Some(accounts) = parts.accounts(&mut edges, &user.name) {
                accounts.users.push(user);
            }
        }
        for permission in permissions {
            if let Some(accounts) = parts.accounts(&mut edges, &permission.user) {
                accounts.permissions.push(permission);
            }
        }
        for limit in limits {
            if let Some(accounts) = parts.accounts(&mut edges, &limit.user) {
                accounts.limits.push(limit);
            }
        }
        let highest = foreign_policies.iter().map(|p| p.priority).max();
        let highest_foreign_priority = if operator_policies.is_empty() { highest } else { Some(i32::MAX) };
        foreign_policies.extend(operator_policies);
        Self {
            tag: user_tag(vhost),
            marker,
            parts: parts.0,
            edges,
            shared_policies: shared,
            foreign_queues,
            foreign_policies,
            highest_foreign_priority,
            nodes: Vec::new(),
            control,
        }
    }

    /// The nodes of the broker, sorted by name.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Every business that has an object or user of ours, sorted, be it the mark of its owner. Objects that edges and listeners declare do
    /// not count.
    pub fn businesses(&self) -> impl Iterator<Item = &str> {
        let has_any = |part: &BusinessObjects| part.has_any(&self.tag) || part.owner.is_some();
        self.parts.iter().filter(move |(_, part)| has_any(part)).map(|(business, _)| business.as_str())
    }

    /// The installation that the vhost is marked with.
    pub fn marker(&self) -> Option<&Marker> {
        self.marker.as_ref()
    }

    /// Businesses with exchanges, queues or policies here, sorted. Users don't count: they belong to the whole broker.
    pub(crate) fn with_objects(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter(|(_, part)| part.has_objects()).map(|(business, _)| business.as_str())
    }

    /// Businesses to which clients can send, sorted. Others have only queues that wait to be emptied.
    pub fn live(&self) -> impl Iterator<Item = &str> {
        let receives = |(business, part): &(&String, &BusinessObjects)| {
            let receive = names::receive_exchange(business);
            part.objects.exchanges.iter().any(|exchange| exchange.name == receive)
        };
        self.parts.iter().filter(receives).map(|(business, _)| business.as_str())
    }

    /// Businesses with anything left that a later owner could read, sorted; queues that listen to events count.
    pub fn present(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str).filter(|business| self.has_left(business))
    }

    /// Whether anything of a business is left that a later owner could read.
    pub fn has_left(&self, business: &str) -> bool {
        let is_left = |part: &BusinessObjects| part.has_any(&self.tag) || part.listeners(business).next().is_some();
        self.parts.get(business).is_some_and(is_left)
    }

    /// The namespace that a business type belongs to, as the broker knows it.
    pub fn owner(&self, business: &str) -> Option<&str> {
        self.parts.get(business)?.owner.as_deref()
    }

    /// Queues that services of a business declared to listen to its events.
    pub fn listeners(&self, business: &str) -> Vec<String> {
        let queues = self.parts.get(business).into_iter().flat_map(|part| part.listeners(business));
        queues.map(str::to_owned).collect()
    }

    /// The shared policies that exist.
    pub(crate) fn shared_policies(&self) -> &[Policy] {
        &self.shared_policies
    }

    /// Every queue of a route.
    pub(crate) fn route_queues(&self) -> impl Iterator<Item = &str> {
        let queues = self.parts.values().flat_map(|part| &part.objects.queues).map(|queue| queue.name.as_str());
        queues.filter(|queue| names::room_policy(queue).is_some())
    }

    /// What the policy of a route's queue sets: its own, or the shared one.
    pub(crate) fn definition_of(&self, queue: &str) -> Option<&Map<String, Value>> {
        let own = self.parts.get(names::owner(queue)?)?.objects.policies.iter().find(|policy| policy.name == queue);
        let shared =
            || self.shared_policies.iter().find(|is| shared_policy_of(queue).is_some_and(|it| it.name == is.name));
        Some(&own.or_else(shared)?.definition)
    }

    /// Whether any queue has a policy that gives it more room.
    pub(crate) fn has_room(&self) -> bool {
        let mut policies = self.parts.values().flat_map(|part| &part.objects.policies);
        policies.any(|policy| names::is_room_policy(&policy.name))
    }

    /// Queues of routes with a policy that gives them more room.
    pub(crate) fn with_room(&self) -> Vec<WithRoom> {
        let of = |part: &BusinessObjects, queue: &str| {
            let room = names::room_policy(queue)?;
            let policy = part.objects.policies.iter().find(|policy| policy.name == room)?.clone();
            Some(WithRoom { queue: queue.to_owned(), policy })
        };
        let parts = self.parts.values().filter(|part| !part.objects.policies.is_empty());
        parts.flat_map(|part| part.objects.queues.iter().filter_map(move |queue| of(part, &queue.name))).collect()
    }

    /// The topology of a business with the policies that leave its queues more room and still should; `None`: there are none.
    pub(crate) fn with_kept_room(&self, business: &str, topology: &Topology) -> Option<Topology> {
        let policies = &self.parts.get(business)?.objects.policies;
        room::kept(topology, &policies.iter().collect::<Vec<_>>())
    }

    /// Corrects the policies that all businesses share, and creates the control stream. Apply it before the plans of businesses: a queue
    /// should find its limits when it is created. All of it stays when the last business is removed.
    pub fn plan_shared(&self) -> Plan {
        let streams = self.parts.values().flat_map(|part| streams_without_policy(&part.objects));
        plan_shared(&self.shared_policies, streams, self.control)
    }

    /// The difference for this business; with an empty topology and no users, what removes it. `users: None` leaves users alone.
    ///
    /// The rules are the same as for [`plan`](crate::plan()) with [`Scope::Business`](crate::Scope::Business), except for the shared
    /// policies. Users with our tag that are not in `users` are deleted; one without our tag is never touched.
    pub fn plan(&self, business: &str, topology: &Topology, users: Option<&[DesiredUser]>) -> Plan {
        let nothing = BusinessObjects::default();
        let part = self.parts.get(business).unwrap_or(&nothing);
        let find = |queue: &str| {
            let own = || part.objects.queues.iter().find(|own| own.name == queue).map(|own| &own.arguments);
            self.foreign_queues.get(queue).or_else(own)
        };
        let has_exchange = |name: &str| {
            let owner = names::owner(name).and_then(|owner| self.parts.get(owner));
            owner.is_some_and(|part| part.objects.exchanges.iter().any(|exchange| exchange.name == name))
        };
        let others = Others { queue: &find, has_exchange: &has_exchange };
        let (objects, shared) = (Objects::of(&part.objects, |_| true), &self.shared_policies);
        let mut plan = plan_objects(topology, &objects, &others, shared, self.highest_foreign_priority);
        if let Some(users) = users {
            plan_users(&mut plan, users, &part.accounts, &self.tag);
        }
        plan
    }

    /// Whether a business has the exchange that messages of others are led to.
    pub(crate) fn takes_pushes(&self, business: &str) -> bool {
        let name = names::push_exchange(business);
        self.parts.get(business).is_some_and(|part| part.objects.exchanges.iter().any(|exchange| exchange.name == name))
    }

    /// Exchanges for several businesses, its own among them, from which a binding leads to this business's pushes.
    pub fn links_to(&self, business: &str) -> BTreeSet<String> {
        let (to, header) = (names::push_exchange(business), headers::to_business(business));
        let bindings = self.parts.values().flat_map(|part| &part.objects.bindings);
        let leads = |is: &&Binding| {
            is.destination == to && is.arguments.contains_key(&header) && names::is_share_exchange(&is.source)
        };
        bindings.filter(leads).map(|is| is.source.clone()).collect()
    }

    /// The difference for the users of the edges: one with our tag that is not among them is deleted.
    pub fn plan_edge_users(&self, users: &[DesiredUser]) -> Plan {
        let mut plan = Plan::default();
        plan_users(&mut plan, users, &self.edges, &self.tag);
        plan
    }

    /// Foreign policies, operator policies included: they may win over ours or limit them. When two snapshots differ in these, even
    /// businesses without steps need another [`apply_plan`](crate::apply_plan), which verifies what is in force.
    pub fn foreign_policies(&self) -> &[Policy] {
        &self.foreign_policies
    }
}

impl BusinessObjects {
    fn has_any(&self, tag: &str) -> bool {
        self.has_objects() || self.accounts.users.iter().any(|user| user.tags.iter().any(|t| t == tag))
    }

    fn listeners<'a>(&'a self, business: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let prefix = names::events_queue(business, "");
        let names = self.objects.queues.iter().map(|queue| queue.name.as_str());
        names.filter(move |name| name.starts_with(&prefix))
    }

    fn has_objects(&self) -> bool {
        !self.objects.policies.is_empty()
            || self.objects.exchanges.iter().any(|e| !is_declared_elsewhere(&e.name))
            || self.objects.queues.iter().any(|q| !is_declared_elsewhere(&q.name))
    }
}

#[derive(Default)]
struct ByBusiness(BTreeMap<String, BusinessObjects>);

impl ByBusiness {
    /// Where a user of this name belongs; `None` for a foreign one.
    fn accounts<'a>(&'a mut self, edges: &'a mut Accounts, user: &str) -> Option<&'a mut Accounts> {
        if names::is_edge_user(user) { Some(edges) } else { self.of(user).map(|part| &mut part.accounts) }
    }

    /// The entry of the object's owner; `None` for a foreign object.
    fn of(&mut self, object: &str) -> Option<&mut BusinessObjects> {
        let owner = names::owner(object)?;
        if !self.0.contains_key(owner) {
            self.0.insert(owner.to_owned(), BusinessObjects::default());
        }
        self.0.get_mut(owner)
    }
}

#[cfg(test)]
mod tests;
