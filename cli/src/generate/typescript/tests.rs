use std::path::PathBuf;

use serde_json::json;

use wirepost_core::edge_config::RouteConfig;

use super::{Names, keys, members, module, schema};
use crate::declarations;

/// Checked by TypeScript's compiler in clients/typescript/test/types.test.mjs.
const GENERATED: &str = include_str!("../../../../clients/typescript/test/types/payments.ts");

#[test]
fn the_types_of_the_example_are_those_that_the_compiler_checks() {
    let example = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/payments.yaml"));
    let text = std::fs::read_to_string(&example).unwrap();
    let valid = declarations::check(&example, &text, |_| None).valid;
    let (compiled, findings) = declarations::compile_all(valid);
    assert!(findings.is_empty(), "{findings:?}");
    let module = module(compiled.iter().map(|one| &one.config));
    assert_eq!(
        module, GENERATED,
        "wirepost generate typescript examples/payments.yaml > clients/typescript/test/types/payments.ts"
    );
}

#[test]
fn schemas_become_types() {
    let schema = json!({"type": "object", "required": ["id", "kind"], "additionalProperties": false, "properties": {
        "id": {"type": "string", "maxLength": 5, "description": "of the order */"},
        "kind": {"enum": ["a", 1, null]},
        "sum": {"type": ["number", "null"]},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        "either": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
        "names": {"type": "object", "additionalProperties": {"type": "integer"}},
        "parent": {"$ref": "#"},
        "free": {},
    }, "$defs": {"line": {"type": "object", "properties": {"n": {"const": 1}}}}});
    let text = schema::declare("Order", &schema, "order.placed", &mut Names::default());
    for part in [
        "export type Order = {",
        r#"/** of the order *\/ */ "id": string;"#,
        r#""kind": "a" | 1 | null;"#,
        r#""sum"?: number | null"#,
        r#""lines"?: OrderLine[];"#,
        r#""either"?: string | boolean;"#,
        r#""names"?: { [name: string]: number };"#,
        r#""parent"?: Order"#,
        r#""free"?: unknown"#,
        r#"export type OrderLine = { "n"?: 1 };"#,
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn patterns_become_keys() {
    let route = |pattern: &str| -> RouteConfig {
        let route = json!({"messageType": pattern, "sendType": "ClientToServer", "from": [], "to": [], "audience": "Addressed"});
        serde_json::from_value(route).unwrap()
    };
    let content = "Content".to_owned();
    let of = |patterns: &[&str]| {
        let routes: Vec<_> = patterns.iter().map(|pattern| route(pattern)).collect();
        members(routes.iter().map(|route| (route, &content)))
    };
    assert_eq!(of(&["chat.*"]), "    [messageType: `chat.${string}`]: Content;\n");
    assert_eq!(of(&["order.#"]), "    \"order\": Content;\n    [messageType: `order.${string}`]: any;\n");
    assert_eq!(of(&["#"]), "    [messageType: string]: any;\n");
    assert_eq!(of(&["a", "a"]), "    \"a\": Content;\n");
    assert_eq!(keys("#.#.#.#").len(), 1);
}
