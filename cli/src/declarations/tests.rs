use super::*;

const VALID: &str = "\
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: pay, namespace: shop}
spec:
  clientTypes: [app]
  routes:
    - messageType: ask
      sendType: ClientToServer
      queue: {name: asks}
";

fn findings(text: &str) -> Vec<String> {
    check(Path::new("f.yaml"), text, |_| None).findings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_valid_file_has_its_businesses_and_no_findings() {
    let contents = check(Path::new("f.yaml"), &format!("{VALID}---\n---\nkind: Service\napiVersion: v1\n"), |_| None);
    assert_eq!(contents.findings, []);
    assert_eq!(contents.valid[0].business.business_type(), "pay");
}

#[test]
fn a_problem_has_the_line_of_its_field() {
    let text = VALID.replace("      queue: {name: asks}\n", "    - messageType: tell\n      sendType: ServerToClent\n");
    let found = findings(&text);
    assert!(
        found[0].starts_with("f.yaml:10: spec.routes[1].sendType: ServerToClent is not an allowed value. Write one of"),
        "{found:?}"
    );
}

#[test]
fn what_is_missing_is_at_the_object_that_lacks_it() {
    let found = findings(&VALID.replace("      queue: {name: asks}\n", ""));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("f.yaml:7: spec.routes[0].queue: "), "{found:?}");
}

#[test]
fn every_document_of_a_file_is_checked_with_lines_of_the_file() {
    let text = format!(
        "# two of them\n---\n{}---\n{}",
        VALID.replace("clientTypes: [app]", "clientTypes: []"),
        VALID.replace("pay", "other")
    );
    let contents = check(Path::new("f.yaml"), &text, |_| None);
    assert_eq!(contents.valid.len(), 1);
    assert_eq!((contents.findings.len(), contents.findings[0].line), (1, 7));
}

#[test]
fn broken_yaml_is_named_by_one_line() {
    let found = findings(&VALID.replace("    - messageType: ask", "    - messageType: [ask"));
    assert!(found[0].starts_with("f.yaml:8: is not YAML: "), "{found:?}");
    assert!(!found[0].contains("at line 8"), "{found:?}");
}

fn notes(text: &str) -> Vec<String> {
    check(Path::new("f.yaml"), text, |_| None).notes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_duplicate_key_gets_a_note() {
    let text = VALID.replace("  clientTypes: [app]\n", "  clientTypes: [app]\n  clientTypes: [pos]\n");
    assert_eq!(findings(&text), [] as [&str; 0]);
    let notes = notes(&text);
    assert!(notes[0].starts_with("f.yaml:6: spec.clientTypes: clientTypes is a duplicate"), "{notes:?}");
}

#[test]
fn a_word_that_the_cluster_reads_as_a_boolean_needs_quotes() {
    let found = findings(&VALID.replace("clientTypes: [app]", "clientTypes: [app, on]"));
    assert!(found[0].starts_with("f.yaml:5: spec.clientTypes[1]: is true or false, not text"), "{found:?}");
    assert!(found[0].contains("the cluster reads on as true, because it takes YAML 1.1"), "{found:?}");
    let notes = notes(&VALID.replace("queue: {name: asks}", "queue: {name: asks, existing: no}"));
    assert!(
        notes[0].starts_with("f.yaml:9: spec.routes[0].queue.existing: the cluster reads no as false"),
        "{notes:?}"
    );
}

#[test]
fn what_is_wrong_in_a_list_has_the_line_of_the_file() {
    let item: String = VALID.replace("[app]", "[]").lines().flat_map(|line| ["    ", line, "\n"]).collect();
    let found = findings(&format!("apiVersion: v1\nkind: List\nitems:\n  -\n{item}"));
    assert!(found[0].starts_with("f.yaml:9: spec.clientTypes: is empty"), "{found:?}");
}

#[test]
fn a_file_without_a_business_and_a_misspelt_kind_are_reported() {
    assert!(findings("kind: Service\napiVersion: v1\n")[0].contains("declares no WsBusiness"));
    assert!(findings("")[0].contains("declares no WsBusiness"));
    assert!(findings(&VALID.replace("kind: WsBusiness", "kind: WSBusines"))[0].starts_with("f.yaml:2: kind: "));
}

#[test]
fn two_declarations_with_one_name_are_reported() {
    let valid = |text: &str, file: &str| check(Path::new(file), text, |_| None).valid;
    let other = VALID.replace("namespace: shop", "namespace: till");
    let (accepted, found) =
        compile_all([valid(VALID, "a.yaml"), valid(&other, "b.yaml"), valid(VALID, "c.yaml")].concat());
    assert_eq!(accepted.len(), 1);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found[0].starts_with("c.yaml:3: metadata.name: shop/pay is already declared at a.yaml:3"), "{found:?}");
    assert!(found[1].starts_with("b.yaml:") && found[1].contains("belongs to shop/pay"), "{found:?}");
}
