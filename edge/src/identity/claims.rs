//! Finds claims of a token by the names in the declaration.

use serde_json::{Map, Value};

/// The claim of exactly this name; else the one at this path, such as `realm_access.roles`. Names may contain dots
/// (`https://shop.example/claims`), so the longest prefix that names an object is tried first. A name that begins with
/// a slash is a JSON pointer (RFC 6901). `null` counts as absent.
pub fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(claim) = claims.get(name) {
        return Some(claim).filter(|claim| !claim.is_null());
    }
    if let Some(pointer) = name.strip_prefix('/') {
        let (first, rest) = pointer.find('/').map_or((pointer, ""), |slash| pointer.split_at(slash));
        let first = first.replace("~1", "/").replace("~0", "~");
        return claims.get(&first)?.pointer(rest).filter(|claim| !claim.is_null());
    }
    name.rmatch_indices('.').find_map(|(dot, _)| match claims.get(&name[..dot]) {
        Some(Value::Object(inner)) => find(inner, &name[dot + 1..]),
        _ => None,
    })
}

/// A text or a whole number, which has one decimal form: many systems number their users and groups.
pub fn text(claim: &Value) -> Option<String> {
    match claim {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// A list of texts and whole numbers, or one of them.
pub fn texts(claim: &Value) -> Option<Vec<String>> {
    match claim {
        Value::Array(list) => list.iter().map(text).collect(),
        one => Some(vec![text(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_exact_name_wins_over_a_path_and_a_longer_prefix_over_a_shorter() {
        let claims = json!({
            "realm_access": {"roles": ["nested"]},
            "a.b": "exact", "a": {"b": "path", "c": {"d": 1}, "c.d": 2, "n": null},
            "https://shop.example/claims": {"tags": ["namespaced"]},
            "https://shop.example/groups": ["plain"],
            "absent.after.all": null, "absent": {"after": {"all": 1}},
        });
        let claims = claims.as_object().unwrap();
        for (name, expected) in [
            ("realm_access.roles", Some(json!(["nested"]))),
            ("a.b", Some(json!("exact"))),
            ("a.c.d", Some(json!(2))),
            ("https://shop.example/claims.tags", Some(json!(["namespaced"]))),
            ("https://shop.example/groups", Some(json!(["plain"]))),
            ("/realm_access/roles", Some(json!(["nested"]))),
            ("/realm_access/roles/0", Some(json!("nested"))),
            ("/a/c.d", Some(json!(2))),
            ("/https:~1~1shop.example~1claims/tags", Some(json!(["namespaced"]))),
            ("/a.b", Some(json!("exact"))),
            ("/a/n", None),
            ("/a/x", None),
            ("/", None),
            ("absent.after.all", None),
            ("a.n", None),
            ("realm_access.roles.0", None),
            ("realm_access.", None),
            (".roles", None),
            (".", None),
        ] {
            assert_eq!(find(claims, name), expected.as_ref(), "{name}");
        }
    }
}
