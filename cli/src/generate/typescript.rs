//! The module of types: for each business its contents, and for each of its client types what it sends and receives.

mod names;
mod schema;

use std::{collections::BTreeMap, fmt::Write};

use serde_json::Value;
use wirepost_core::{
    SendType,
    edge_config::{BusinessConfig, RouteConfig},
};

use names::Names;

/// Patterns with more `#` than this become any message type.
const MOST_HASHES: usize = 3;

/// The whole module.
pub(super) fn module<'a>(businesses: impl Iterator<Item = &'a BusinessConfig>) -> String {
    let mut text = String::from("// Written by `wirepost generate typescript`. Do not edit: generate it again.\n");
    let mut names = Names::default();
    for business in businesses {
        let contents = contents(business, &mut names, &mut text);
        for client_type in &business.client_types {
            let name = names.unique(&[&business.business_type, client_type]);
            let sends =
                business.routes.iter().zip(&contents).filter(|(route, _)| {
                    route.send_type != SendType::ServerToClient && route.from.contains(client_type)
                });
            let receives = business
                .routes
                .iter()
                .zip(&contents)
                .filter(|(route, _)| route.send_type != SendType::ClientToServer && route.to.contains(client_type));
            let _ = write!(
                text,
                "\n/** What clients of type {} of the business {} send and receive. */\nexport interface {name} {{\n  \
                 send: {{\n{}  }};\n  receive: {{\n{}  }};\n}}\n",
                comment(client_type),
                comment(&business.business_type),
                members(sends),
                members(receives),
            );
        }
    }
    text
}

/// The type of each route's content; writes the types that need a name.
fn contents(business: &BusinessConfig, names: &mut Names, text: &mut String) -> Vec<String> {
    let content = |route: &RouteConfig| match &route.schema {
        None => "unknown".to_owned(),
        Some(schema) => {
            let name = names.unique(&[&business.business_type, &route.message_type]);
            text.push_str(&schema::declare(&name, schema, &route.message_type, names));
            name
        }
    };
    business.routes.iter().map(content).collect()
}

/// Message types with their contents, one on each line.
fn members<'a>(routes: impl Iterator<Item = (&'a RouteConfig, &'a String)>) -> String {
    // The first route that matches a message decides, so the first of a name counts.
    let mut exact: BTreeMap<String, &str> = BTreeMap::new();
    let mut patterns: BTreeMap<String, &str> = BTreeMap::new();
    let mut anything = false;
    for (route, content) in routes {
        for key in keys(&route.message_type) {
            match key {
                Key::Exact(name) => _ = exact.entry(name).or_insert(content),
                Key::Pattern(pattern) => _ = patterns.entry(pattern).or_insert(content),
                Key::Anything => anything = true,
            }
        }
    }
    // TypeScript wants each property to fit all patterns that it matches; routes need not.
    let alone = patterns.len() == 1 && exact.is_empty() && !anything;
    let mut lines = String::new();
    for (name, content) in &exact {
        let _ = writeln!(lines, "    {}: {content};", Value::from(name.as_str()));
    }
    for (pattern, content) in &patterns {
        let _ = writeln!(lines, "    [messageType: `{pattern}`]: {};", if alone { content } else { "any" });
    }
    if anything {
        lines.push_str("    [messageType: string]: any;\n");
    }
    lines
}

enum Key {
    Exact(String),
    /// Text of a template literal.
    Pattern(String),
    Anything,
}

/// A pattern of message types as keys of an interface. `*` is more than one word here: TypeScript has nothing closer.
fn keys(message_type: &str) -> Vec<Key> {
    let words: Vec<&str> = message_type.split('.').collect();
    let hashes = words.iter().filter(|word| **word == "#").count();
    if hashes > MOST_HASHES || message_type == "#" {
        return vec![Key::Anything];
    }
    // Each `#` is nothing, or something.
    (0..1_u32 << hashes)
        .filter_map(|choice| {
            let mut hash = 0;
            let mut kept = Vec::new();
            for word in &words {
                match *word {
                    "#" => {
                        if choice & 1 << hash != 0 {
                            kept.push("${string}".to_owned());
                        }
                        hash += 1;
                    }
                    "*" => kept.push("${string}".to_owned()),
                    word => kept.push(word.to_owned()),
                }
            }
            let wild = kept.iter().any(|word| word == "${string}");
            match kept.join(".") {
                empty if empty.is_empty() => None,
                name if !wild => Some(Key::Exact(name)),
                all if all == "${string}" => Some(Key::Anything),
                _ => {
                    let words = kept.iter().map(|word| if word == "${string}" { word.clone() } else { template(word) });
                    Some(Key::Pattern(words.collect::<Vec<_>>().join(".")))
                }
            }
        })
        .collect()
}

/// Text inside a template literal.
fn template(text: &str) -> String {
    text.replace('\\', "\\\\").replace('`', "\\`").replace("${", "\\${")
}

/// Text inside a comment.
fn comment(text: &str) -> String {
    text.replace("*/", "*\\/").replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests;
