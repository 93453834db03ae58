//! What neither schema nor CEL can express.

use super::keys;
use crate::{
    business::{WsBusiness, rules},
    compile::{MAX_CONFIG_BYTES, edge_config, merge_queues},
    content,
    contract::condition::Reason,
    problem::{FoundBy, Problem},
};

/// AMQP 0-9-1 names are short strings.
const MAX_AMQP_NAME: usize = 255;

pub(super) fn check(business: &WsBusiness) -> Vec<Problem> {
    let spec = &business.spec;
    let mut problems = Vec::new();
    let mut pattern_bytes = 0;
    for (i, route) in spec.routes.iter().enumerate() {
        let schema = route.schema.as_ref().map(content::Schema::try_new).transpose();
        match schema.map(|schema| schema.map_or(0, |schema| schema.pattern_bytes())) {
            Ok(bytes) => pattern_bytes += bytes,
            Err(error) => problems.push(Problem::at(
                format!("spec.routes[{i}].schema"),
                format!("the JSON Schema {error}"),
                "correct the schema, or remove it to accept any content",
            )),
        }
        if let Some(queue) = &route.queue
            && queue.name.len() > MAX_AMQP_NAME
        {
            problems.push(Problem::at(
                format!("spec.routes[{i}].queue.name"),
                format!("has {} bytes", queue.name.len()),
                format!("use at most {MAX_AMQP_NAME}, the broker accepts no longer name"),
            ));
        }
    }
    if pattern_bytes > content::DECLARED_PATTERN_BYTES {
        problems.push(Problem::new(
            "spec.routes",
            Reason::InvalidSchema,
            format!(
                "the patterns of the schemas take {pattern_bytes} bytes once they are compiled, all together may take {}",
                content::DECLARED_PATTERN_BYTES
            ),
            "use fewer patterns or smaller repetitions, enum for lists of words, or split the business in two",
        ));
    }
    problems.extend(merge_queues(&spec.routes).err().unwrap_or_default());
    if let Some(keys) =
        spec.auth.as_ref().and_then(|auth| auth.jwt.as_ref()).and_then(|jwt| jwt.jwks.as_ref()?.inline.as_ref())
        && let Err((message, remedy)) = keys::check(keys)
    {
        problems.push(Problem::at("spec.auth.jwt.jwks.inline", message, remedy));
    }
    if problems.is_empty() {
        problems.extend(too_large(business));
    }
    problems
}

/// Where exactly a rule about the whole spec is broken. Replaces what CEL can only report for the list of routes.
pub(super) fn locate(business: &WsBusiness, problems: &mut Vec<Problem>) {
    let spec = &business.spec;
    let mut found = Vec::new();
    for (i, route) in spec.routes.iter().enumerate() {
        for (field, types, rule) in
            [("from", &route.from, rules::FROM_IS_CLIENT_TYPE), ("to", &route.to, rules::TO_IS_CLIENT_TYPE)]
        {
            for unknown in types.iter().filter(|t| !spec.client_types.contains(t)) {
                let message = format!("{unknown} is not among clientTypes");
                let problem = Problem::at(format!("spec.routes[{i}].{field}"), message, rule.remedy);
                found.push(problem.found_by(FoundBy::Rule(rule)));
            }
        }
    }
    problems.retain(|problem| found.iter().all(|located| located.found_by != problem.found_by));
    problems.extend(found);
}

/// The configuration must fit into the one object that carries it to the edges.
fn too_large(business: &WsBusiness) -> Option<Problem> {
    let bytes = serde_json::to_string(&edge_config(business)).map_or(usize::MAX, |s| s.len());
    (bytes > MAX_CONFIG_BYTES).then(|| {
        Problem::new(
            "spec.routes",
            Reason::InvalidSchema,
            format!("the schemas have {bytes} bytes together, an edge configuration can have {MAX_CONFIG_BYTES}"),
            "shorten the schemas, or split the business in two",
        )
    })
}
