//! Every value does what it says: a table with one row (or more) for each, in `values.yaml` beside this file.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::render::{Rendered, defaults, merge, nested, render};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Its name, `edge.replicas`.
    value: String,
    /// What it is set to.
    is: Value,
    /// What else it needs.
    #[serde(default)]
    with: Option<Value>,
    /// `Kind/name POINTER`, see `Rendered::at`.
    at: String,
    /// What is there then, and is not without it; null = nothing.
    gives: Value,
}

fn rows() -> Result<Vec<Row>> {
    Ok(serde_yaml::from_str(include_str!("values.yaml"))?)
}

#[test]
fn each_value_is_seen_in_what_is_rendered() -> Result<()> {
    let mut without: HashMap<String, Rendered> = HashMap::new();
    for Row { value, is, with, at, gives } in rows()? {
        let (object, pointer) = at.split_once(' ').unwrap_or((&at, ""));
        let mut values = with.unwrap_or_else(|| serde_json::json!({}));
        let before = match without.entry(values.to_string()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let rendered = render(entry.key())?;
                entry.insert(rendered)
            }
        };
        let before = before.at(object, pointer).unwrap_or_default();
        merge(&mut values, nested(&value, &is));
        let rendered = render(&values.to_string())?;
        let after = rendered.at(object, pointer).unwrap_or_default();
        ensure!(after == gives, "{value} = {is}: {at} is {after}, not {gives}; there are {:?}", rendered.ids());
        ensure!(before != after, "{value} = {is} changes nothing: {at} is {after} without it too");
    }
    Ok(())
}

fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value.as_object() {
        Some(map) if !map.is_empty() && !path.ends_with(".resources") => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&path, value, found);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn the_table_has_every_value() -> Result<()> {
    let mut values = BTreeSet::new();
    leaves("", &defaults()?, &mut values);
    let named: BTreeSet<String> = rows()?.into_iter().map(|row| row.value).collect();
    let missing: Vec<_> = values.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&values).collect();
    ensure!(missing.is_empty() && unknown.is_empty(), "without a row: {missing:?}; no values: {unknown:?}");
    Ok(())
}
