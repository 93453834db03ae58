use serde_json::json;

use super::*;

fn value(text: &str) -> Result<Value, String> {
    read(text, Syntax::Yaml, 1)
        .map(|found| found.map_or(Value::Null, |(value, _)| value))
        .map_err(|error| error.message)
}

#[test]
fn documents_have_kubectls_meaning() {
    for (text, expected) in [
        ("", json!(null)),
        ("# nothing\n", json!(null)),
        ("--- # with a comment\na: 1\n", json!({"a": 1})),
        ("a: &x {b: 1}\nc: *x\n", json!({"a": {"b": 1}, "c": {"b": 1}})),
        ("a: &x {b: 1, c: 1}\nd: {<<: *x, c: 2}\n", json!({"a": {"b": 1, "c": 1}, "d": {"b": 1, "c": 2}})),
        // It replaces what precedes it.
        ("a: &x {c: 1}\nd: {c: 2, <<: *x}\n", json!({"a": {"c": 1}, "d": {"c": 1}})),
        ("a: {<<: [{b: 1}, {b: 2, c: 2}]}\n", json!({"a": {"b": 1, "c": 2}})),
        ("a: {\"<<\": 1}\n", json!({"a": {"<<": 1}})),
        ("a: 1\na: 2\n", json!({"a": 2})),
        ("on: 1\n7: 2\n", json!({"true": 1, "7": 2})),
        ("a: 1\n...\nb: 2\n", json!({"a": 1})),
        ("a: \"\\u00e9\\x41\\\\/\"\nb: 'it''s'\n", json!({"a": "éA\\/", "b": "it's"})),
        ("a: !!str 5\nb: ! 5\nc: !mine 5\n", json!({"a": "5", "b": 5, "c": "5"})),
        ("? a\n: b\n", json!({"a": "b"})),
        ("{\"a\":1,\t\"b\":[]}", json!({"a": 1, "b": []})),
    ] {
        assert_eq!(value(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_kubectl_cannot_read_is_refused_with_its_line() {
    for (text, part) in [
        ("a: [1\n", "flow sequence"),
        ("a:\n\t- b\n", "token"),
        ("a: *x\n", "no anchor &x"),
        ("a: 1\nb: [!app, pos]\n", "begins with !"),
        ("a: &x [*x]\n", "contains itself"),
        ("? [a]\n: b\n", "a key is not text"),
        ("~: b\n", "a key is empty"),
        ("a: {<<: 5}\n", "merge key"),
        ("a: !!int b\n", "tag !!int"),
        ("a: .inf\n", "not a number"),
        ("a: b: c\n", "not allowed"),
        ("é: \"é\\/\"\n", "JSON files only"),
        ("a: \u{1}\n", "control characters"),
    ] {
        let message = value(text).expect_err(text);
        assert!(message.contains(part), "{text}: {message}");
    }
    assert_eq!(read("a: 1\nb: *x\n", Syntax::Yaml, 1).unwrap_err().line, Some(1));
    let deep = format!("a: {}", "[".repeat(600));
    assert!(value(&deep).unwrap_err().contains("nested deeper"));
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..9 {
        let line = format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        laughs.push_str(&line);
    }
    assert!(value(&laughs).unwrap_err().contains("multiply"));
}

#[test]
fn a_field_has_the_line_of_its_key_and_a_missing_one_that_of_its_parent() {
    let text = "# comment\na:\n  b: [1, {c: 2,\n    d: 3}]\n  e:\n  - x\n  - f: |\n      text\n    g: 1\n";
    let (_, line_map) = read(text, Syntax::Yaml, 1).unwrap().unwrap();
    let lines = super::super::lines::Lines::new(line_map);
    for (field, line) in [
        ("", 2),
        ("a", 2),
        ("a.b", 3),
        ("a.b[1].c", 3),
        ("a.b[1].d", 4),
        ("a.b[1].missing.deeper", 3),
        ("a.e[0]", 6),
        ("a.e[1].g", 9),
        ("a.e[2]", 5),
        ("z", 2),
    ] {
        assert_eq!(lines.of(field), line, "{field}");
    }
    let inner = lines.within("a.b[1]");
    assert_eq!((inner.of("d"), inner.of(""), inner.of("x")), (4, 3, 3));
}

#[test]
fn values_that_are_read_unexpectedly_get_a_note() {
    let text = "name: on\nquoted: \"on\"\nlist: [yes, 'no', 007]\nprops: {y: {type: number}}\nname: off\n...\na: 1\n";
    let (_, line_map) = read(text, Syntax::Yaml, 11).unwrap().unwrap();
    let found: Vec<_> = line_map.notes.iter().map(|s| (s.line, s.path.as_str())).collect();
    assert_eq!(
        found,
        [(11, "name"), (13, "list[0]"), (13, "list[2]"), (14, "props.true"), (15, "name"), (15, "name"), (17, "")]
    );
}

#[test]
fn json_may_escape_a_slash() {
    let text = "{\n\"a\": \"x\\/y\",\n\"a\": 1}";
    let (read_as, line_map) = read(text, Syntax::Json, 1).unwrap().unwrap();
    assert_eq!((read_as, line_map.of["a"], line_map.notes.len()), (json!({"a": 1}), 3, 1));
    assert!(read(text, Syntax::Yaml, 1).unwrap_err().message.contains("JSON files only"));
    assert_eq!(
        value("a: \"é\"\nb: [\"\\\\/\", '\\/', \"c\"] # \\/\n"),
        Ok(json!({"a": "é", "b": ["\\/", "\\/", "c"]}))
    );
}

#[test]
fn the_work_is_in_proportion_to_the_file() {
    // Scanning from the start for each quoted text would take 10^9 steps.
    let quoted = format!("a: [{}] # \\/\n", vec!["\"x\""; 30_000].join(", "));
    assert_eq!(value(&quoted).unwrap()["a"].as_array().unwrap().len(), 30_000);
    // Half a megabyte of path for each item would be 10 GB.
    let key = "k".repeat(1000);
    let deep = format!("{}[{}]{}", format!("{{{key}: ").repeat(480), vec!["yes"; 20_000].join(", "), "}".repeat(480));
    let (_, line_map) = read(&deep, Syntax::Yaml, 1).unwrap().unwrap();
    assert!(line_map.of.len() <= MAX_PATHS / 4000, "{} lines are kept", line_map.of.len());
    assert_eq!(line_map.notes.len(), 20_000);
    let copies = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
    assert!(value(&copies).unwrap_err().contains("multiply to more than 64 MiB"));
}
