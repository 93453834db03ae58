//! A description as Markdown, made from the AsyncAPI document alone, so that both say the same.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The whole page.
pub fn markdown(document: &Value) -> String {
    let page = Page { document };
    let mut out = String::new();
    let info = &document["info"];
    let _ = writeln!(
        out,
        "# {}\n\nVersion {}\n\n{}",
        text(&info["title"]),
        text(&info["version"]),
        text(&info["description"])
    );
    page.servers(&mut out);
    page.channels(&mut out);
    page.messages(&mut out);
    page.schemas(&mut out);
    out
}

struct Page<'a> {
    document: &'a Value,
}

impl Page<'_> {
    fn servers(&self, out: &mut String) {
        let _ = writeln!(out, "\n## Servers\n\n| | address | |\n|---|---|---|");
        for (key, server) in members(&self.document["servers"]) {
            let address =
                format!("{}://{}{}", text(&server["protocol"]), text(&server["host"]), text(&server["pathname"]));
            let _ = writeln!(out, "| {key} | `{address}` | {} |", cell(text(&server["description"])));
        }
        let _ = writeln!(out, "\n### Security\n\n| | | |\n|---|---|---|");
        for (key, scheme) in members(&self.document["components"]["securitySchemes"]) {
            let place = [&scheme["type"], &scheme["scheme"], &scheme["in"], &scheme["name"]];
            let place: Vec<&str> = place.into_iter().map(text).filter(|word| !word.is_empty()).collect();
            let _ = writeln!(out, "| {key} | {} | {} |", place.join(" "), cell(text(&scheme["description"])));
        }
    }

    fn channels(&self, out: &mut String) {
        for (key, channel) in members(&self.document["channels"]) {
            let _ = writeln!(out, "\n## {}\n", cell(text(&channel["title"])));
            let servers: Vec<&str> = list(&channel["servers"]).filter_map(|server| last(&server["$ref"])).collect();
            let mut facts = vec![format!("Server {}", servers.join(", "))];
            if let Some(address) = channel["address"].as_str() {
                facts.push(format!("address `{address}`"));
            }
            let amqp = &channel["bindings"]["amqp"];
            if let Some(name) = amqp["exchange"]["name"].as_str() {
                facts.push(format!("{} exchange `{name}`", text(&amqp["exchange"]["type"])));
            }
            if let Some(name) = amqp["queue"]["name"].as_str() {
                facts.push(format!("queue `{name}`"));
            }
            let _ = writeln!(out, "{}.", facts.join(", "));
            for (name, parameter) in members(&channel["parameters"]) {
                let values: Vec<String> = list(&parameter["enum"]).map(|value| format!("`{}`", text(value))).collect();
                let _ = writeln!(out, "\n`{name}`: {}{}", text(&parameter["description"]), values.join(", "));
            }
            if let Some(description) = channel["description"].as_str() {
                let _ = writeln!(out, "\n{description}");
            }
            self.operations(key, out);
        }
    }

    fn operations(&self, channel: &str, out: &mut String) {
        let of_channel = format!("#/channels/{channel}");
        let _ = writeln!(out, "\n| operation | who to whom | messages | answers |\n|---|---|---|---|");
        for (key, operation) in members(&self.document["operations"]) {
            if operation["channel"]["$ref"] != of_channel.as_str() {
                continue;
            }
            let method = text(&operation["bindings"]["http"]["method"]);
            let summary = [method, text(&operation["summary"])].join(" ");
            let _ = writeln!(
                out,
                "| {key} | {} | {} | {} |",
                cell(summary.trim()),
                links(&operation["messages"]),
                links(&operation["reply"]["messages"]),
            );
            for (name, field) in members(&operation["bindings"]["http"]["query"]["properties"]) {
                let _ = writeln!(out, "| | query `{name}`: {} | | |", cell(&kind(field)));
            }
        }
    }

    fn messages(&self, out: &mut String) {
        let _ = writeln!(out, "\n## Messages");
        for (key, message) in members(&self.document["components"]["messages"]) {
            let _ = writeln!(out, "\n### {key}\n\n{}: {}", text(&message["title"]), text(&message["summary"]));
            for (title, part) in [("header", &message["headers"]), ("field", &message["payload"])] {
                let fields: Vec<_> = members(&part["properties"]).collect();
                if fields.is_empty() {
                    continue;
                }
                let _ = writeln!(out, "\n| {title} | required | |\n|---|---|---|");
                for (name, field) in fields {
                    let required = list(&part["required"]).any(|one| one == name.as_str());
                    let required = if required { "yes" } else { "" };
                    let _ = writeln!(out, "| `{name}` | {required} | {} |", cell(&kind(field)));
                }
            }
            for example in list(&message["examples"]) {
                code(&example["payload"], out);
            }
        }
    }

    fn schemas(&self, out: &mut String) {
        let schemas = &self.document["components"]["schemas"];
        if members(schemas).next().is_some() {
            let _ = writeln!(out, "\n## Schemas");
        }
        for (key, schema) in members(schemas) {
            let _ = writeln!(out, "\n### {key}");
            code(schema, out);
        }
    }
}

/// What a field may be, in one line.
fn kind(field: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(place) = field["$ref"].as_str() {
        parts.extend(place.rsplit('/').next().map(|key| format!("[{key}](#{})", anchor(key))));
    }
    if field == &Value::Bool(true) {
        parts.push("any JSON".to_owned());
    }
    match &field["type"] {
        Value::String(one) => parts.push(one.clone()),
        Value::Array(several) => parts.push(several.iter().map(text).collect::<Vec<_>>().join(" or ")),
        _ => {}
    }
    if let Some(value) = field.get("const") {
        parts.push(format!("`{value}`"));
    }
    if !field["enum"].is_null() {
        parts.push(list(&field["enum"]).map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "));
    }
    if let Some(pattern) = field["pattern"].as_str() {
        parts.push(format!("`{pattern}`"));
    }
    for (word, key) in
        [("at least", "minimum"), ("at most", "maximum"), ("at most", "maxLength"), ("at most", "maxItems")]
    {
        if let Some(bound) = field[key].as_u64() {
            parts.push(format!("{word} {bound}"));
        }
    }
    if let Some(description) = field["description"].as_str() {
        parts.push(description.to_owned());
    }
    parts.join("; ")
}

fn links(references: &Value) -> String {
    let keys = list(references).filter_map(|one| last(&one["$ref"]));
    keys.map(|key| format!("[{key}](#{})", anchor(key))).collect::<Vec<_>>().join(", ")
}

/// What a heading is reached by, as GitHub and most others make it.
fn anchor(heading: &str) -> String {
    heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect::<String>().to_lowercase()
}

fn code(value: &Value, out: &mut String) {
    if let Ok(json) = serde_json::to_string_pretty(value) {
        let _ = writeln!(out, "\n```json\n{json}\n```");
    }
}

/// For a line of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn last(reference: &Value) -> Option<&str> {
    reference.as_str()?.rsplit('/').next()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asyncapi::tests::{described, everything};

    #[test]
    fn everything_in_the_document_is_on_the_page_and_links_lead_somewhere() {
        let document = described(&everything()).value;
        let page = markdown(&document);
        let headings: Vec<String> = page.lines().filter_map(|line| line.strip_prefix("### ")).map(anchor).collect();
        for place in ["messages", "schemas", "securitySchemes"] {
            for (key, _) in members(&document["components"][place]) {
                assert!(page.contains(key.as_str()), "{place}: {key}");
            }
        }
        for (key, _) in members(&document["operations"]) {
            assert!(page.contains(&format!("| {key} |")), "{key}");
        }
        for link in page.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(headings.iter().any(|heading| heading == link), "{link}");
        }
        for row in page.lines().filter(|line| line.starts_with("| ")) {
            let columns = row.replace("\\|", "").matches('|').count();
            assert!((4..=5).contains(&columns), "{row}");
        }
    }
}
