use serde_json::{Map, json};

use super::*;
use crate::Step;
use crate::actual::{self, Binding, Queue};
use crate::plan::merge;
use crate::plan::tests::{business, has};
use crate::report::Problem;
use crate::users::{HASHING, business_user, edge_user};

const VHOST: &str = "v";

fn is(user: &DesiredUser) -> (User, Permission) {
    (
        User {
            name: user.name.clone(),
            tags: user.tags.clone(),
            password_hash: user.password_hash(),
            hashing_algorithm: HASHING.to_owned(),
        },
        Permission {
            user: user.name.clone(),
            vhost: VHOST.to_owned(),
            configure: user.configure.clone(),
            write: user.write.clone(),
            read: user.read.clone(),
        },
    )
}

fn snapshot(actual: Actual, users: Vec<(User, Permission)>) -> Snapshot {
    let (users, permissions) = users.into_iter().unzip();
    Snapshot::new(VHOST, actual, Vec::new(), users, (permissions, Vec::new()))
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn foreign(name: &str, pattern: &str) -> Policy {
    Policy {
        name: name.to_owned(),
        pattern: pattern.to_owned(),
        apply_to: "all".to_owned(),
        priority: 1,
        definition: Map::new(),
    }
}

#[test]
fn the_edges_users_are_those_with_our_tag_and_belong_to_no_business() {
    let (ours, former) = (edge_user(VHOST, "01", "secret"), edge_user(VHOST, "00", "secret"));
    let another = edge_user("another vhost", "02", "secret");
    let there = snapshot(has(&business("pay")), vec![is(&ours), is(&former), is(&another)]);
    assert!(there.plan_edge_users(&[ours.clone(), former]).is_empty());
    assert_eq!(steps(&there.plan_edge_users(&[ours])), ["delete user wirepost-edge-00"]);
    assert!(there.plan("pay", &business("pay"), Some(&[])).is_empty() && there.businesses().eq(["pay"]));
    let missing = snapshot(has(&business("pay")), Vec::new()).plan_edge_users(&[edge_user(VHOST, "01", "secret")]);
    assert_eq!(steps(&missing), ["set user wirepost-edge-01", "set permissions of user wirepost-edge-01"]);
}

#[test]
fn each_business_is_planned_from_its_own_objects() {
    let user = |name| business_user(VHOST, name, "01", "secret");
    let users = vec![is(&user("pay")), is(&user("payments"))];
    let there = snapshot(has(&merge([&business("pay"), &business("payments")])), users);
    for name in ["pay", "payments"] {
        assert!(there.plan(name, &business(name), Some(&[user(name)])).is_empty());
        let removal = there.plan(name, &Topology::default(), Some(&[]));
        assert_eq!(steps(&removal).last().unwrap(), &format!("delete user wirepost.{name}.01"));
        // A user called as one ends in the same letters.
        let other = if name == "pay" { ".payments." } else { ".pay." };
        assert!(steps(&removal).iter().all(|step| !step.contains(other)), "{removal:?}");
    }
    assert!(there.plan_shared().is_empty());
    let new = there.plan("new", &business("new"), None);
    let same = crate::plan(&business("new"), &has(&Topology::default()), crate::Scope::Business("new"));
    assert_eq!(new.steps, same.steps);
}

#[test]
fn shared_policies_are_planned_once_and_belong_to_no_business() {
    let nothing = snapshot(Actual::default(), vec![]);
    assert_eq!(
        steps(&nothing.plan_shared()),
        [
            "set policy wirepost.keepers",
            "set policy wirepost.queues",
            "set policy wirepost.streams",
            "set policy wirepost.receipts",
            "set policy wirepost.events",
            "set policy wirepost.events-quorum",
            "set policy wirepost.control",
            "create queue wirepost.control",
            "create exchange wirepost.control",
            "bind queue wirepost.control to exchange wirepost.control with ''",
        ]
    );
    let there = snapshot(has(&Topology::default()), vec![]);
    assert!(there.plan_shared().is_empty());
    assert_eq!((there.businesses().count(), there.foreign_policies().len()), (0, 0));
}

#[test]
fn a_business_exists_as_long_as_any_object_of_ours_does() {
    let mut actual = has(&business("whole"));
    let queue = |name: &str| Queue { name: name.to_owned(), durable: true, auto_delete: false, arguments: Map::new() };
    actual.queues.extend([
        queue("wirepost.edge-only.edge.e1"),
        queue("wirepost.listener.events.audit"),
        queue("orders"),
    ]);
    actual.queues.push(queue("wirepost.queue-only.q.orders"));
    let ours = business_user(VHOST, "user-only", "01", "x");
    let anothers = business_user("other vhost", "elsewhere", "01", "x");
    let there = snapshot(actual, vec![is(&ours), is(&anothers)]);
    assert_eq!(there.businesses().collect::<Vec<_>>(), ["queue-only", "user-only", "whole"]);
}

#[test]
fn a_user_is_created_once_and_repaired() {
    let (topology, user) = (business("pay"), business_user(VHOST, "pay", "01", "secret"));
    let plan = |there: Vec<(User, Permission)>| {
        steps(&snapshot(has(&topology), there).plan("pay", &topology, Some(std::slice::from_ref(&user))))
    };
    let (set_user, set_permissions) = ("set user wirepost.pay.01", "set permissions of user wirepost.pay.01");
    assert_eq!(plan(vec![]), [set_user, set_permissions]);
    assert_eq!(plan(vec![is(&user)]), [""; 0]);
    let other_password = DesiredUser { password: "guessed".to_owned(), ..user.clone() };
    assert_eq!(plan(vec![is(&other_password)]), [set_user]);
    let (mut admin, permission) = is(&user);
    admin.tags.push("administrator".to_owned());
    assert_eq!(plan(vec![(admin, permission)]), [set_user]);
    let (same, mut permission) = is(&user);
    permission.read = ".*".to_owned();
    assert_eq!(plan(vec![(same, permission)]), [set_permissions]);
    // The one before the last rotation.
    assert_eq!(plan(vec![is(&user), is(&business_user(VHOST, "pay", "00", "old"))]), ["delete user wirepost.pay.00"]);
}

#[test]
fn users_are_left_alone_if_none_are_declared_or_they_are_not_ours() {
    let (topology, user) = (business("pay"), business_user(VHOST, "pay", "01", "secret"));
    let there = snapshot(has(&topology), vec![is(&user)]);
    assert!(there.plan("pay", &topology, None).is_empty());

    let anothers = business_user("other vhost", "pay", "01", "theirs");
    let there = snapshot(has(&topology), vec![is(&anothers)]);
    assert!(there.plan("pay", &topology, Some(&[])).is_empty());
    let plan = there.plan("pay", &topology, Some(&[user]));
    assert_eq!(plan.steps, []);
    assert!(matches!(&plan.problems[..], [Problem::UserTaken { user, .. }] if user == "wirepost.pay.01"), "{plan:?}");
}

#[test]
fn the_last_user_stays_until_the_queues_that_it_may_have_to_empty_are_deleted() {
    let users = vec![is(&business_user(VHOST, "pay", "01", "x"))];
    let waits = |desired: &[DesiredUser]| {
        let plan = snapshot(Actual::default(), users.clone()).plan("pay", &Topology::default(), Some(desired));
        let gone = plan.steps.iter().find(|s| matches!(s, Step::DeleteUser { .. })).unwrap().clone();
        gone.waits_for_queues_of().map(str::to_owned)
    };
    assert_eq!(waits(&[]), Some("pay".to_owned()));
    assert_eq!(waits(&[business_user(VHOST, "pay", "02", "x")]), None);
}

#[test]
fn existing_queues_and_foreign_policies_are_searched_in_the_whole_vhost() {
    let mut topology = business("pay");
    topology.existing_queues.push("theirs".to_owned());
    let mut actual = has(&business("pay"));
    let missing = snapshot(actual.clone(), vec![]).plan("pay", &topology, None);
    assert!(matches!(&missing.problems[..], [Problem::MissingQueue { queue }] if queue == "theirs"));
    actual.queues.push(Queue { name: "theirs".to_owned(), durable: true, auto_delete: false, arguments: Map::new() });
    actual.policies.push(foreign("low", ".*"));
    let there = snapshot(actual.clone(), vec![]);
    assert_eq!(there.plan("pay", &topology, None), Plan::default());
    assert_eq!(there.foreign_policies().len(), 1);
    // An operator policy stands beside ours, whatever its priority.
    let limited = Snapshot::new(VHOST, actual, vec![foreign("cap", "q$")], vec![], (vec![], vec![]));
    assert!(limited.plan("pay", &topology, None).foreign_policies_may_win);
    assert_eq!(limited.foreign_policies().len(), 2);
}

/// Prints what sorting and planning 1,000 businesses cost; run with `--nocapture`.
#[test]
fn a_thousand_businesses() {
    let names: Vec<String> = (0..1000).map(|i| format!("business-{i}")).collect();
    let topologies: Vec<Topology> = names.iter().map(|name| business(name)).collect();
    let users: Vec<_> = names.iter().map(|name| business_user(VHOST, name, "01", "secret")).collect();
    let mut actual = has(&merge(&topologies));
    // As many bindings as a business of eight routes has.
    for name in &names {
        actual.bindings.extend((0..5).map(|i| Binding {
            source: wirepost_core::names::events_exchange(name),
            destination: "x".to_owned(),
            destination_type: "queue".to_owned(),
            routing_key: i.to_string(),
            arguments: Map::from_iter([("x".to_owned(), json!(1))]),
        }));
    }
    let (are, permissions): (Vec<actual::User>, Vec<_>) = users.iter().map(is).unzip();
    let start = std::time::Instant::now();
    let there = Snapshot::new(VHOST, actual, Vec::new(), are, (permissions, Vec::new()));
    let sorted = start.elapsed();
    assert_eq!(there.businesses().count(), 1000);
    let start = std::time::Instant::now();
    for ((name, topology), user) in names.iter().zip(&topologies).zip(&users) {
        assert!(there.plan(name, topology, Some(std::slice::from_ref(user))).is_empty());
    }
    println!("1,000 businesses: sorted in {sorted:?}, all planned in {:?}", start.elapsed());
}
