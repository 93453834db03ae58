//! What becomes different when one declaration takes the place of another. Pure.

use serde_json::{Map, Value};
use wirepost_core::{
    WsBusiness,
    business::Route,
    destruction::{Destruction, destructions},
    topology::{Queue, QueueKind, Topology},
};

use super::settings;

/// A value that is shown; a longer one, such as a schema, is only said to differ.
const SHOWN: usize = 60;

/// A declaration, filled in by its class, and what it needs on the broker.
#[derive(Clone, Copy)]
pub(super) struct Declared<'a> {
    pub business: &'a WsBusiness,
    pub topology: &'a Topology,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// One for each change; empty: nothing changes.
    pub lines: Vec<String>,
    /// Messages that go.
    pub destroyed: Vec<Destruction>,
}

impl Changes {
    /// All lines, also those of what is destroyed.
    pub(super) fn all(&self) -> Vec<String> {
        let destroyed = self.destroyed.iter().map(|destruction| format!("! destroys messages: {destruction}"));
        self.lines.iter().cloned().chain(destroyed).collect()
    }
}

/// `before`: what is in the cluster; `None`: nothing.
pub(super) fn changes(before: Option<Declared<'_>>, after: Declared<'_>) -> Changes {
    let nothing = Topology::default();
    let (old_routes, old_topology) =
        before.map_or((&[][..], &nothing), |before| (&before.business.spec.routes[..], before.topology));
    let mut lines = Vec::new();
    routes(old_routes, &after.business.spec.routes, &mut lines);
    queues(old_topology, after.topology, &mut lines);
    let secret = |declared: Declared<'_>| declared.business.spec.access.clone().map(|access| access.secret_name);
    let (old, new) = (before.and_then(secret), secret(after));
    if old != new {
        lines.extend(new.map(|name| format!("+ Secret {name}, with credentials for the business's services")));
        lines.extend(old.map(|name| format!("- Secret {name}, with the credentials in it")));
    }
    let rest = |declared: Declared<'_>| rest(declared.business);
    fields("", &before.map_or(Value::Null, rest), &rest(after), &mut lines);
    let destroyed = destructions(old_topology, after.topology);
    Changes { lines, destroyed }
}

/// The declaration without what is compared in another way.
fn rest(business: &WsBusiness) -> Value {
    let mut spec = serde_json::to_value(&business.spec).unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("routes");
        spec.remove("access");
    }
    spec
}

fn routes(before: &[Route], after: &[Route], lines: &mut Vec<String>) {
    let key = |route: &Route| (route.send_type, route.message_type.clone());
    let name = |route: &Route| format!("route {:?} {}", route.send_type, route.message_type);
    for route in after {
        let Some(old) = before.iter().find(|old| key(old) == key(route)) else {
            lines.push(format!("+ {}", name(route)));
            continue;
        };
        let (old, new) = (route_fields(old), route_fields(route));
        let changed: Vec<String> = old
            .keys()
            .chain(new.keys().filter(|key| !old.contains_key(*key)))
            .filter(|key| old.get(*key) != new.get(*key))
            .map(|key| format!("{key} {}", from_to(old.get(key), new.get(key))))
            .collect();
        if !changed.is_empty() {
            lines.push(format!("~ {}: {}", name(route), changed.join(", ")));
        }
    }
    let gone = before.iter().filter(|old| !after.iter().any(|route| key(route) == key(old)));
    lines.extend(gone.map(|old| format!("- {}", name(old))));
    let kept = |these: &[Route], others: &[Route]| -> Vec<_> {
        these.iter().map(key).filter(|route| others.iter().any(|other| key(other) == *route)).collect()
    };
    if kept(before, after) != kept(after, before) {
        lines.push("~ order of the routes: the first that fits a message decides".to_owned());
    }
}

/// What a route says, without the settings of its queue.
fn route_fields(route: &Route) -> Map<String, Value> {
    let mut route = match serde_json::to_value(route) {
        Ok(Value::Object(route)) => route,
        _ => Map::new(),
    };
    if let Some(queue) = route.get_mut("queue") {
        *queue = queue["name"].take();
    }
    route
}

fn queues(before: &Topology, after: &Topology, lines: &mut Vec<String>) {
    let has = |topology: &Topology, queue: &Queue| topology.queues.iter().any(|there| there.name == queue.name);
    let kind = |queue: &Queue| match queue.kind {
        QueueKind::Stream => "stream",
        QueueKind::Quorum => "queue",
    };
    for queue in &after.queues {
        let what = format!("{} {}", kind(queue), queue.name);
        if !has(before, queue) {
            lines.push(format!("+ {what}"));
            continue;
        }
        let of = |topology: &Topology| topology.policy_of(&queue.name).map(|policy| policy.definition.clone());
        let (old, new) = (of(before).unwrap_or_default(), of(after).unwrap_or_default());
        if old != new {
            lines.push(format!("~ {what}: {}", settings(&old, &new)));
        }
    }
    for queue in before.queues.iter().filter(|queue| !has(after, queue)) {
        let what = format!("- {} {}", kind(queue), queue.name);
        lines.push(match queue.kind {
            QueueKind::Stream => format!("{what} with its messages"),
            QueueKind::Quorum => format!("{what}: not filled any more, and deleted once it is empty"),
        });
    }
    let new = after.existing_queues.iter().filter(|queue| !before.existing_queues.contains(queue));
    lines.extend(new.map(|queue| format!("+ fills queue {queue} of the team's own")));
    let gone = before.existing_queues.iter().filter(|queue| !after.existing_queues.contains(queue));
    lines.extend(gone.map(|queue| format!("- fills queue {queue} of the team's own")));
}

/// One line for each field that differs.
pub(super) fn fields(path: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    if before == after {
        return;
    }
    let empty = Map::new();
    if let (Value::Object(_) | Value::Null, Value::Object(_)) | (Value::Object(_), Value::Null) = (before, after) {
        let (old, new) = (before.as_object().unwrap_or(&empty), after.as_object().unwrap_or(&empty));
        let at = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
            let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or_default();
            fields(&at(key), &of(old), &of(new), lines);
        }
        return;
    }
    lines.push(match (before, after) {
        (Value::Null, new) => format!("+ {path} {}", shown(new).unwrap_or_default()).trim_end().to_owned(),
        (_, Value::Null) => format!("- {path}"),
        _ => format!("~ {path} {}", from_to(Some(before), Some(after))),
    });
}

fn from_to(before: Option<&Value>, after: Option<&Value>) -> String {
    let text = |value: Option<&Value>| value.map_or_else(|| Some("none".to_owned()), shown);
    match (text(before), text(after)) {
        (Some(before), Some(after)) => format!("{before} → {after}"),
        _ => "differs".to_owned(),
    }
}

/// `None`: too long.
fn shown(value: &Value) -> Option<String> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    (text.chars().count() <= SHOWN).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wirepost_core::{Compiled, compile::compile_one};

    use super::*;

    fn business(spec: &Value) -> (WsBusiness, Compiled) {
        let value = json!({"apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "pay"}, "spec": spec});
        let business: WsBusiness = serde_json::from_value(value).unwrap();
        let compiled = compile_one(&business).unwrap();
        (business, compiled)
    }

    fn declared((business, compiled): &(WsBusiness, Compiled)) -> Declared<'_> {
        Declared { business, topology: &compiled.topology }
    }

    fn compared(before: Option<&Value>, after: &Value) -> Vec<String> {
        let (before, after) = (before.map(business), business(after));
        changes(before.as_ref().map(declared), declared(&after)).all()
    }

    fn spec() -> Value {
        json!({
            "clientTypes": ["app"],
            "access": {"secretName": "pay-access"},
            "routes": [
                {"messageType": "order", "sendType": "ClientToServer", "queue": {"name": "orders"}},
                {"messageType": "paid", "sendType": "ServerToClient", "to": ["app"]},
            ],
        })
    }

    #[test]
    fn what_is_the_same_has_no_line_and_what_is_new_has_one_for_each_object() {
        assert_eq!(compared(Some(&spec()), &spec()), [""; 0]);
        assert_eq!(
            compared(None, &spec()),
            [
                "+ route ClientToServer order",
                "+ route ServerToClient paid",
                "+ queue wirepost.pay.dead",
                "+ queue wirepost.pay.q.orders",
                "+ stream wirepost.pay.stream",
                "+ queue wirepost.pay.unrouted",
                "+ Secret pay-access, with credentials for the business's services",
                r#"+ clientTypes ["app"]"#,
            ]
        );
    }

    #[test]
    fn each_change_is_a_line_and_those_that_destroy_messages_are_marked() {
        let mut after = spec();
        after["clientTypes"] = json!(["app", "h5"]);
        after["access"]["secretName"] = json!("other");
        after["push"] = json!({"delivery": "Transient"});
        after["session"] = json!({"maxSeconds": 60});
        after["routes"] = json!([
            {"messageType": "paid", "sendType": "ServerToClient", "to": ["app", "h5"]},
            {"messageType": "order", "sendType": "ClientToServer", "queue": {"name": "sales", "maxLength": 5}},
        ]);
        assert_eq!(
            compared(Some(&spec()), &after),
            [
                r#"~ route ServerToClient paid: to ["app"] → ["app","h5"]"#,
                "~ route ClientToServer order: queue orders → sales",
                "~ order of the routes: the first that fits a message decides",
                "+ queue wirepost.pay.q.sales",
                "- queue wirepost.pay.q.orders: not filled any more, and deleted once it is empty",
                "- stream wirepost.pay.stream with its messages",
                "+ Secret other, with credentials for the business's services",
                "- Secret pay-access, with the credentials in it",
                r#"~ clientTypes ["app"] → ["app","h5"]"#,
                "+ push.delivery Transient",
                "+ session.maxSeconds 60",
                "! destroys messages: stream wirepost.pay.stream is deleted with its messages",
            ]
        );
        let mut after = spec();
        after["routes"][0]["queue"]["maxLength"] = json!(5);
        after["push"] = json!({"retention": {"seconds": 60}});
        assert_eq!(
            compared(Some(&spec()), &after),
            [
                "~ queue wirepost.pay.q.orders: max-length 1000000 → 5",
                r#"~ stream wirepost.pay.stream: max-age "86400s" → "60s""#,
                "+ push.delivery Durable",
                "+ push.retention.seconds 60",
                "! destroys messages: wirepost.pay.stream drops messages that it keeps now: max-age 86400s → 60s",
            ]
        );
    }
}
