//! Applies a class to a declaration: which fields it fills in, and what it forbids. Pure; the operator and `wirepost check --class` share
//! it.

use serde_json::Value;

use super::{CLASS_SCHEMA, metadata, read};
use crate::{
    SendType,
    business::{
        DEFAULT_QUEUE_BYTES, DEFAULT_RETENTION_BYTES, DEFAULT_RETENTION_SECONDS, LimitsSpec, Push, Queue, Retention,
        Route, Session, WsBusiness, WsBusinessSpec,
    },
    class::{ClassDefaults, ClassLimits, KIND, Owners, QueueLimits, WsBusinessClass, WsBusinessClassSpec},
    compile::{DEFAULT_MAX_LENGTH, RECEIPTS_BYTES, merge_queues, quantity},
    contract::{
        condition::Reason,
        edge_config::{Audience, DEFAULT_BYTES_PER_SECOND, DEFAULT_SESSION_SECONDS, Delivery, Limits, Validate},
    },
    problem::Problem,
};

/// A class as the API server would store it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(value: &Value) -> Result<WsBusinessClass, Vec<Problem>> {
    let (stored, problems) = read(&CLASS_SCHEMA, metadata::check(value, KIND), value, None)?;
    if !problems.is_empty() {
        return Err(problems);
    }
    serde_json::from_value(stored).map_err(|error| {
        vec![Problem::at("", format!("can't be read as a {KIND}: {error}"), "correct the field that the message names")]
    })
}

/// Fills in fields that the declaration leaves out: the class's default, else wirepost's own, but never more than the class allows. A value
/// that equals wirepost's own default stays absent.
pub fn fill(class: &WsBusinessClassSpec, business: &mut WsBusiness) {
    let limits = class.limits.clone().unwrap_or_default();
    let defaults = class.defaults.clone().unwrap_or_default();
    fill_retention(&limits.retention.unwrap_or_default(), &defaults.retention.unwrap_or_default(), business);

    let (most, given) = (limits.queue.unwrap_or_default(), defaults.queue.unwrap_or_default());
    if let Some(length) = filled(given.max_length, DEFAULT_MAX_LENGTH, most.max_length) {
        let unset = |queue: &Queue| queue.max_length.is_none();
        fill_queues(business, unset, |queue| queue.max_length = Some(length));
    }
    let bytes = smaller(given.max_length_bytes.as_deref(), DEFAULT_QUEUE_BYTES, most.max_length_bytes.as_deref());
    if bytes != DEFAULT_QUEUE_BYTES {
        let unset = |queue: &Queue| queue.max_length_bytes.is_none();
        fill_queues(business, unset, |queue| queue.max_length_bytes = Some(bytes.to_owned()));
    }

    let (most, given) = (limits.edge.unwrap_or_default(), defaults.edge.unwrap_or_default());
    let own = EDGE_LIMITS.map(|limit| {
        let declared = business.spec.limits.as_ref().and_then(|declared| (limit.of)(declared));
        if declared.is_some() { None } else { filled((limit.of)(&given), (limit.default)(), (limit.of)(&most)) }
    });
    for (limit, value) in EDGE_LIMITS.iter().zip(own).filter(|(_, value)| value.is_some()) {
        *(limit.of_mut)(business.spec.limits.get_or_insert_default()) = value;
    }

    let declared = business.spec.session.as_ref().and_then(|session| session.max_seconds);
    if declared.is_none()
        && let Some(seconds) = filled(None, signed(DEFAULT_SESSION_SECONDS), limits.session_seconds)
    {
        business.spec.session.get_or_insert_with(Session::default).max_seconds = Some(seconds);
    }
}

/// What of a class [`fill`] needs, without what gives nothing, such as a default above its limit or one that equals wirepost's own.
pub fn given(class: &WsBusinessClassSpec) -> WsBusinessClassSpec {
    let route = Route {
        message_type: "any".to_owned(),
        send_type: SendType::ClientToServer,
        from: Vec::new(),
        to: Vec::new(),
        queue: Some(Queue { name: "any".to_owned(), ..Queue::default() }),
        ttl_seconds: None,
        audience: Audience::default(),
        receipts: false,
        receipts_within_seconds: None,
        schema: None,
        validate: Validate::default(),
    };
    let mut probe = WsBusiness::new("any", WsBusinessSpec { routes: vec![route], ..WsBusinessSpec::default() });
    fill(class, &mut probe);
    let WsBusinessSpec { routes, push, limits: edge, session, .. } = probe.spec;
    let queue = routes.into_iter().next().and_then(|route| route.queue);
    let queue = queue.map(|Queue { max_length, max_length_bytes, .. }| QueueLimits { max_length, max_length_bytes });
    let queue = queue.filter(|queue| *queue != QueueLimits::default());
    let retention = push.and_then(|push| push.retention);
    let defaults = ClassDefaults { deletion_policy: None, retention, queue, edge };
    let session_seconds = session.and_then(|session| session.max_seconds);
    let limits =
        session_seconds.map(|seconds| ClassLimits { session_seconds: Some(seconds), ..ClassLimits::default() });
    let defaults = Some(defaults).filter(|defaults| *defaults != ClassDefaults::default());
    WsBusinessClassSpec { defaults, limits, ..WsBusinessClassSpec::default() }
}

/// Sets a field of each own queue that leaves it out.
fn fill_queues(business: &mut WsBusiness, unset: impl Fn(&Queue) -> bool, set: impl Fn(&mut Queue)) {
    let names: Vec<String> =
        own_queues(business).into_iter().filter(|(_, queue)| unset(queue)).map(|(name, _)| name).collect();
    // On each route that names it: a setting may be given once, or the same each time.
    let queues = business.spec.routes.iter_mut().filter_map(|route| route.queue.as_mut());
    queues.filter(|queue| !queue.existing && names.contains(&queue.name)).for_each(set);
}

/// The size to fill in: the class's default, else wirepost's own, but never more than the class allows.
fn smaller<'a>(given: Option<&'a str>, own: &'a str, most: Option<&'a str>) -> &'a str {
    let wanted = given.unwrap_or(own);
    most.filter(|most| size(most) < size(wanted)).unwrap_or(wanted)
}

fn fill_retention(most: &Retention, given: &Retention, business: &mut WsBusiness) {
    if business.spec.push.as_ref().is_some_and(|push| push.delivery == Delivery::Transient) {
        return;
    }
    let declared = business.spec.push.as_ref().and_then(|push| push.retention.clone()).unwrap_or_default();
    let seconds = declared.seconds.or_else(|| filled(given.seconds, DEFAULT_RETENTION_SECONDS, most.seconds));
    let bytes = declared.bytes.clone().or_else(|| {
        let text = smaller(given.bytes.as_deref(), DEFAULT_RETENTION_BYTES, most.bytes.as_deref());
        (text != DEFAULT_RETENTION_BYTES).then(|| text.to_owned())
    });
    if seconds != declared.seconds || bytes != declared.bytes {
        let push = business.spec.push.get_or_insert_with(Push::default);
        push.retention = Some(Retention { seconds, bytes });
    }
}

/// The value to fill in; `None` if it is wirepost's own default.
fn filled(given: Option<i64>, own: i64, most: Option<i64>) -> Option<i64> {
    let wanted = given.unwrap_or(own);
    let value = most.map_or(wanted, |most| wanted.min(most));
    (value != own).then_some(value)
}

/// One limit in each edge: its field, wirepost's default, and its accessors.
struct EdgeLimit {
    field: &'static str,
    default: fn() -> i64,
    of: fn(&LimitsSpec) -> Option<i64>,
    of_mut: fn(&mut LimitsSpec) -> &mut Option<i64>,
}

/// Of most that a whole business may use, wirepost has no default.
const UNLIMITED: fn() -> i64 = || i64::MAX;

const EDGE_LIMITS: [EdgeLimit; 10] = [
    EdgeLimit {
        field: "messageBytes",
        default: || signed(Limits::default().message_bytes),
        of: |limits| limits.message_bytes,
        of_mut: |limits| &mut limits.message_bytes,
    },
    EdgeLimit {
        field: "pushBytes",
        default: || signed(Limits::default().push_bytes),
        of: |limits| limits.push_bytes,
        of_mut: |limits| &mut limits.push_bytes,
    },
    EdgeLimit {
        field: "messagesPerSecond",
        default: || Limits::default().messages_per_second.into(),
        of: |limits| limits.messages_per_second,
        of_mut: |limits| &mut limits.messages_per_second,
    },
    EdgeLimit {
        field: "burst",
        default: || Limits::default().burst.into(),
        of: |limits| limits.burst,
        of_mut: |limits| &mut limits.burst,
    },
    EdgeLimit {
        field: "connectionsPerId",
        default: || Limits::default().connections_per_id.into(),
        of: |limits| limits.connections_per_id,
        of_mut: |limits| &mut limits.connections_per_id,
    },
    EdgeLimit {
        field: "perEdge.connections",
        default: UNLIMITED,
        of: |limits| limits.per_edge.as_ref()?.connections,
        of_mut: |limits| &mut limits.per_edge.get_or_insert_default().connections,
    },
    EdgeLimit {
        field: "perEdge.messagesPerSecond",
        default: UNLIMITED,
        of: |limits| limits.per_edge.as_ref()?.messages_per_second,
        of_mut: |limits| &mut limits.per_edge.get_or_insert_default().messages_per_second,
    },
    EdgeLimit {
        field: "perEdge.bytesPerSecond",
        default: || DEFAULT_BYTES_PER_SECOND.into(),
        of: |limits| limits.per_edge.as_ref()?.bytes_per_second,
        of_mut: |limits| &mut limits.per_edge.get_or_insert_default().bytes_per_second,
    },
    EdgeLimit {
        field: "perEdge.pushesPerSecond",
        default: UNLIMITED,
        of: |limits| limits.per_edge.as_ref()?.pushes_per_second,
        of_mut: |limits| &mut limits.per_edge.get_or_insert_default().pushes_per_second,
    },
    EdgeLimit {
        field: "perEdge.memoryBytes",
        default: UNLIMITED,
        of: |limits| limits.per_edge.as_ref()?.memory_bytes,
        of_mut: |limits| &mut limits.per_edge.get_or_insert_default().memory_bytes,
    },
];

/// Everything in a declaration that its class forbids; fields that it leaves out count as wirepost's own default. Empty: it is allowed.
pub fn check(class: &WsBusinessClass, business: &WsBusiness) -> Vec<Problem> {
    let mut found = Found { class: class.metadata.name.as_deref().unwrap_or_default(), problems: Vec::new() };
    found.owner(&class.spec.owners, business);
    let limits = class.spec.limits.clone().unwrap_or_default();
    let spec = &business.spec;

    if spec.push.as_ref().is_none_or(|push| push.delivery == Delivery::Durable) {
        let most = limits.retention.unwrap_or_default();
        let retention = spec.push.as_ref().and_then(|push| push.retention.clone()).unwrap_or_default();
        let seconds = retention.seconds.unwrap_or(DEFAULT_RETENTION_SECONDS);
        found.at_most("spec.push.retention.seconds", "limits.retention.seconds", seconds, most.seconds);
        let bytes = retention.bytes.as_deref().unwrap_or(DEFAULT_RETENTION_BYTES);
        if let Some(most) = most.bytes.as_deref().filter(|most| size(bytes) > size(most)) {
            found.more("spec.push.retention.bytes", "limits.retention.bytes", bytes, most);
        }
    }

    let queues = own_queues(business);
    if let Some(most) = limits.queues.filter(|most| signed(queues.len()) > *most) {
        found.more("spec.routes", "limits.queues", &format!("{} queues", queues.len()), &most.to_string());
    }
    if let Some(most) = limits.total_bytes.as_deref() {
        let total = total_bytes(business, &queues);
        if total > size(most) {
            found.more("spec", "limits.totalBytes", &format!("{total} bytes of queues and stream"), most);
        }
    }
    let most = limits.queue.unwrap_or_default();
    for (name, queue) in queues {
        let route = |route: &crate::business::Route| route.queue.as_ref().is_some_and(|queue| queue.name == name);
        let index = spec.routes.iter().position(route).unwrap_or_default();
        let field = format!("spec.routes[{index}].queue.maxLength");
        let length = queue.max_length.unwrap_or(DEFAULT_MAX_LENGTH);
        found.at_most(&field, "limits.queue.maxLength", length, most.max_length);
        let bytes = queue.max_length_bytes.as_deref().unwrap_or(DEFAULT_QUEUE_BYTES);
        if let Some(most) = most.max_length_bytes.as_deref().filter(|most| size(bytes) > size(most)) {
            found.more(&format!("{field}Bytes"), "limits.queue.maxLengthBytes", bytes, most);
        }
    }

    let most = limits.edge.unwrap_or_default();
    for EdgeLimit { field, default, of, .. } in &EDGE_LIMITS {
        let value = spec.limits.as_ref().and_then(of).unwrap_or_else(default);
        found.at_most(&format!("spec.limits.{field}"), &format!("limits.edge.{field}"), value, of(&most));
    }
    let session = spec.session.as_ref().and_then(|session| session.max_seconds);
    let session = session.unwrap_or(signed(DEFAULT_SESSION_SECONDS));
    found.at_most("spec.session.maxSeconds", "limits.sessionSeconds", session, limits.session_seconds);
    found.problems
}

/// What its own queues, its stream and that of its receipts may hold together.
fn total_bytes(business: &WsBusiness, queues: &[(String, Queue)]) -> u64 {
    let of_queue =
        |(_, queue): &(String, Queue)| size(queue.max_length_bytes.as_deref().unwrap_or(DEFAULT_QUEUE_BYTES));
    let queues = queues.iter().map(of_queue).fold(0, u64::saturating_add);
    let push = business.spec.push.as_ref();
    if push.is_some_and(|push| push.delivery == Delivery::Transient) {
        return queues;
    }
    let stream = push.and_then(|push| push.retention.as_ref()?.bytes.as_deref());
    let waits = business.spec.routes.iter().any(|route| route.receipts_within_seconds.is_some());
    let receipts = if waits { RECEIPTS_BYTES } else { 0 };
    queues.saturating_add(size(stream.unwrap_or(DEFAULT_RETENTION_BYTES))).saturating_add(receipts)
}

/// Whether these owners let a namespace own a business type; without any owners every namespace may.
pub fn may_own(owners: &[Owners], namespace: &str, business_type: &str) -> bool {
    let allows =
        |item: &Owners| any(&item.namespaces, namespace) && allows(item.business_types.as_ref(), business_type);
    owners.is_empty() || owners.iter().any(allows)
}

/// The problem of a declaration whose class can't be read.
pub fn unreadable(class: &str, why: &str) -> Problem {
    Problem::new(
        "spec.className",
        Reason::ClassNotFound,
        format!("class {class} can't be read: {why}"),
        "ask the platform team to correct it",
    )
}

/// The problem of a declaration to which no class applies any more, though one did when it was last accepted.
pub fn lost(class: &str) -> Problem {
    Problem::new(
        "spec.className",
        Reason::ClassNotFound,
        format!("class {class} applied when this was last accepted, and no class applies now"),
        "name one of `kubectl get wsbusinessclasses`, or ask the platform team for a default class; one without limits allows everything",
    )
}

/// The problem of a declaration while the classes are not known.
pub fn unknown(why: &str, remedy: &str) -> Problem {
    Problem::new("spec.className", Reason::ClassesUnknown, why, remedy)
}

/// The problem of a declaration to which no class applies, where one has to.
pub fn required() -> Problem {
    Problem::new(
        "spec.className",
        Reason::ClassNotFound,
        "no class applies, and this installation accepts nothing without one",
        "name one of `kubectl get wsbusinessclasses`, or ask the platform team for a default class",
    )
}

/// The problem of a declaration whose class does not exist.
pub fn not_found(class: &str) -> Problem {
    Problem::new(
        "spec.className",
        Reason::ClassNotFound,
        format!("there is no class {class}"),
        "name one of `kubectl get wsbusinessclasses`, or remove className to get the default",
    )
}

struct Found<'a> {
    class: &'a str,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn forbid(&mut self, field: &str, message: String, remedy: String) {
        self.problems.push(Problem::new(field, Reason::ClassForbids, message, remedy));
    }

    fn at_most(&mut self, field: &str, rule: &str, value: i64, most: Option<i64>) {
        if let Some(most) = most.filter(|most| value > *most) {
            let value = if value == UNLIMITED() { "no limit".to_owned() } else { value.to_string() };
            self.more(field, rule, &value, &most.to_string());
        }
    }

    fn more(&mut self, field: &str, rule: &str, value: &str, most: &str) {
        let message = format!("{value} is more than class {} allows ({rule}: {most})", self.class);
        self.forbid(field, message, format!("use at most {most}, or ask the platform team for another class"));
    }

    fn owner(&mut self, owners: &[Owners], business: &WsBusiness) {
        if owners.is_empty() {
            return;
        }
        let class = self.class;
        let namespace = business.metadata.namespace.as_deref().unwrap_or("default");
        let of_namespace: Vec<&Owners> = owners.iter().filter(|owners| any(&owners.namespaces, namespace)).collect();
        let ask = || "choose another className, or ask the platform team to add it there".to_owned();
        if of_namespace.is_empty() {
            return self.forbid(
                "metadata.namespace",
                format!("class {class} is not for namespace {namespace} (owners)"),
                ask(),
            );
        }
        let name = business.business_type();
        let of_type: Vec<&Owners> =
            of_namespace.iter().copied().filter(|owners| allows(owners.business_types.as_ref(), name)).collect();
        if of_type.is_empty() {
            let allowed = list(of_namespace.iter().filter_map(|owners| owners.business_types.as_ref()));
            let message = format!(
                "class {class} does not let namespace {namespace} own business type {name} (owners.businessTypes: {allowed})"
            );
            return self.forbid("spec.businessType", message, ask());
        }
        for (i, route) in business.spec.routes.iter().enumerate() {
            let Some(queue) = route.queue.as_ref().filter(|queue| queue.existing) else { continue };
            if !of_type.iter().any(|owners| allows(owners.existing_queues.as_ref(), &queue.name)) {
                let allowed = list(of_type.iter().filter_map(|owners| owners.existing_queues.as_ref()));
                let message = format!(
                    "class {class} does not let namespace {namespace} name queue {} (owners.existingQueues: {allowed})",
                    queue.name
                );
                self.forbid(&format!("spec.routes[{i}].queue.name"), message, ask());
            }
        }
    }
}

/// Queues that the business owns, each with its settings.
fn own_queues(business: &WsBusiness) -> Vec<(String, Queue)> {
    let queues = merge_queues(&business.spec.routes).unwrap_or_default();
    queues.into_iter().filter(|(_, queue)| !queue.existing).map(|(name, queue)| (name.to_owned(), queue)).collect()
}

fn allows(patterns: Option<&Vec<String>>, name: &str) -> bool {
    patterns.is_none_or(|patterns| any(patterns, name))
}

fn any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, name))
}

/// Whether a name matches a pattern, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    // The first match leaves the most for what follows.
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

fn list<'a>(patterns: impl Iterator<Item = &'a Vec<String>>) -> String {
    let all: Vec<&str> = patterns.flatten().map(String::as_str).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// The bytes of a quantity; 0 for a malformed one, which validation rejects.
fn size(text: &str) -> u64 {
    quantity(text).unwrap_or_default()
}

fn signed<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
