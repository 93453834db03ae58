//! The rules of the cluster, offline: what `kubectl apply` would reject (strictly: unknown fields too), by the same CRD that the cluster has,
//! then what CEL can't express: JSON Schemas, key sets, queues that contradict each other.

pub mod class;
mod keys;
mod metadata;
mod semantics;
mod structure;

use std::sync::LazyLock;

use kube_cel::CompiledSchema;
use serde_json::Value;

use crate::{
    business::{KIND, WsBusiness, rules},
    crd,
    problem::{FoundBy, Problem},
};

struct Schema {
    json: Value,
    cel: CompiledSchema,
}

impl Schema {
    fn new(json: Value) -> Self {
        let cel = kube_cel::compile_schema(&json);
        Self { json, cel }
    }
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::new(crd::schema()));
static CLASS_SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::new(crd::class_schema()));

/// Everything that is wrong with one resource, as parsed from YAML or JSON. `old` is the stored one, for fields that may not change; without
/// it the resource counts as new. Empty means that the cluster would accept it and that it compiles.
pub fn check(value: &Value, old: Option<&Value>) -> Vec<Problem> {
    parse(value, old).err().unwrap_or_default()
}

/// [`check`], with the resource as the API server would store it, defaults filled in.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(value: &Value, old: Option<&Value>) -> Result<WsBusiness, Vec<Problem>> {
    let (stored, mut problems) = read(&SCHEMA, metadata::check(value, KIND), value, old)?;
    match serde_json::from_value::<WsBusiness>(stored) {
        Ok(business) => {
            semantics::locate(&business, &mut problems);
            problems.extend(semantics::check(&business));
            if problems.is_empty() {
                return Ok(business);
            }
        }
        Err(error) => problems.push(Problem::at(
            "",
            format!("can't be read as a WsBusiness: {error}"),
            "correct the field that the message names",
        )),
    }
    Err(problems)
}

/// What the API server would store, and what it would report: unknown fields and broken rules. `problems`: those found before.
///
/// # Errors
/// The resource does not match the schema.
fn read(
    schema: &Schema,
    mut problems: Vec<Problem>,
    value: &Value,
    old: Option<&Value>,
) -> Result<(Value, Vec<Problem>), Vec<Problem>> {
    structure::check(&schema.json, value, &mut problems);
    // As in the API server: a rule may rely on the schema, so it is evaluated only if the resource matches it. Unknown fields affect no rule.
    if problems.iter().any(|problem| problem.found_by != FoundBy::UnknownField) {
        return Err(problems);
    }
    let stored = structure::store(&schema.json, value);
    let old = old.map(|old| structure::store(&schema.json, old));
    structure::repeated(&schema.json, &stored, "", &mut problems);
    problems.extend(cel(&schema.cel, &stored, old.as_ref()));
    Ok((stored, problems))
}

/// [`parse`] of a resource from the API server. What is listed twice in a set counts once: it does no harm, and such a resource may have been
/// stored before its list was a set.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_stored(value: &Value) -> Result<WsBusiness, Vec<Problem>> {
    let mut value = value.clone();
    structure::drop_former(&mut value);
    structure::drop_repeated(&SCHEMA.json, &mut value);
    parse(&value, None)
}

/// A resource that was accepted once, by the rules of that time: it is read without being validated again. `None`: it can't be read, or has
/// fields of a newer schema, without which it would mean something else.
pub fn parse_accepted(value: &Value) -> Option<WsBusiness> {
    let mut problems = Vec::new();
    let mut value = value.clone();
    structure::drop_former(&mut value);
    structure::check(&SCHEMA.json, &value, &mut problems);
    if problems.iter().any(|problem| problem.found_by == FoundBy::UnknownField) {
        return None;
    }
    let mut stored = structure::store(&SCHEMA.json, &value);
    structure::drop_repeated(&SCHEMA.json, &mut stored);
    serde_json::from_value(stored).ok()
}

/// [`check`] of a typed resource, such as one from the API server.
pub fn check_resource(business: &WsBusiness) -> Vec<Problem> {
    match serde_json::to_value(business) {
        Ok(value) => check(&value, None),
        Err(error) => vec![Problem::at("", format!("can't be written as JSON: {error}"), "apply it again")],
    }
}

fn cel(schema: &CompiledSchema, value: &Value, old: Option<&Value>) -> Vec<Problem> {
    let Err(errors) = kube_cel::validate_compiled(schema, value, old) else {
        return Vec::new();
    };
    let mut problems: Vec<Problem> = errors
        .into_iter()
        .map(|error| {
            let field = error.field_path.trim_start_matches('.');
            match rules::ALL.iter().find(|rule| rule.rule == error.rule) {
                Some(rule) => Problem::at(field, rule.problem, rule.remedy).found_by(FoundBy::Rule(*rule)),
                None => Problem::at(field, error.message.clone(), "correct the field that the message names"),
            }
        })
        .collect();
    // The evaluator visits fields in no fixed order.
    problems.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    problems
}

#[cfg(test)]
mod tests;
