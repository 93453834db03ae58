use super::*;

const GOOD: &str = "\
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
    judge(Path::new("f.yaml"), text, |_| None).findings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_file_has_its_businesses_and_nothing_to_say() {
    let contents = judge(Path::new("f.yaml"), &format!("{GOOD}---\n---\nkind: Service\napiVersion: v1\n"), |_| None);
    assert_eq!(contents.findings, []);
    assert_eq!(contents.good[0].business.business_type(), "pay");
}

#[test]
fn a_problem_has_the_line_of_its_field() {
    let text = GOOD.replace("      queue: {name: asks}\n", "    - messageType: tell\n      sendType: ServerToClent\n");
    let found = findings(&text);
    assert!(
        found[0].starts_with("f.yaml:10: spec.routes[1].sendType: ServerToClent is not an allowed value. Write one of"),
        "{found:?}"
    );
}

#[test]
fn what_is_missing_is_at_the_object_that_lacks_it() {
    let found = findings(&GOOD.replace("      queue: {name: asks}\n", ""));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("f.yaml:7: spec.routes[0].queue: "), "{found:?}");
}

#[test]
fn every_document_of_a_file_is_judged_with_lines_of_the_file() {
    let text = format!(
        "# two of them\n---\n{}---\n{}",
        GOOD.replace("clientTypes: [app]", "clientTypes: []"),
        GOOD.replace("pay", "other")
    );
    let contents = judge(Path::new("f.yaml"), &text, |_| None);
    assert_eq!(contents.good.len(), 1);
    assert_eq!((contents.findings.len(), contents.findings[0].line), (1, 7));
}

#[test]
fn broken_yaml_is_named_by_its_line_and_without_a_second_place() {
    let found = findings(&GOOD.replace("    - messageType: ask", "    - messageType: [ask"));
    assert!(found[0].starts_with("f.yaml:8: is not YAML: "), "{found:?}");
    assert!(!found[0].contains("at line 8"), "{found:?}");
}

fn notes(text: &str) -> Vec<String> {
    judge(Path::new("f.yaml"), text, |_| None).notes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_key_that_stands_twice_is_no_silent_choice() {
    let text = GOOD.replace("  clientTypes: [app]\n", "  clientTypes: [app]\n  clientTypes: [pos]\n");
    assert_eq!(findings(&text), [] as [&str; 0]);
    let notes = notes(&text);
    assert!(notes[0].starts_with("f.yaml:6: spec.clientTypes: clientTypes is a duplicate"), "{notes:?}");
}

#[test]
fn a_word_that_the_cluster_reads_as_a_boolean_needs_quotes() {
    let found = findings(&GOOD.replace("clientTypes: [app]", "clientTypes: [app, on]"));
    assert!(found[0].starts_with("f.yaml:5: spec.clientTypes[1]: is true or false, not text"), "{found:?}");
    assert!(found[0].contains("the cluster reads on as true, because it takes YAML 1.1"), "{found:?}");
    let notes = notes(&GOOD.replace("queue: {name: asks}", "queue: {name: asks, existing: no}"));
    assert!(
        notes[0].starts_with("f.yaml:9: spec.routes[0].queue.existing: the cluster reads no as false"),
        "{notes:?}"
    );
}

#[test]
fn what_is_wrong_in_a_list_has_the_line_of_the_file() {
    let item: String = GOOD.replace("[app]", "[]").lines().flat_map(|line| ["    ", line, "\n"]).collect();
    let found = findings(&format!("apiVersion: v1\nkind: List\nitems:\n  -\n{item}"));
    assert!(found[0].starts_with("f.yaml:9: spec.clientTypes: is empty"), "{found:?}");
}

#[test]
fn a_file_without_a_business_and_a_misspelt_kind_are_told() {
    assert!(findings("kind: Service\napiVersion: v1\n")[0].contains("declares no WsBusiness"));
    assert!(findings("")[0].contains("declares no WsBusiness"));
    assert!(findings(&GOOD.replace("kind: WsBusiness", "kind: WSBusines"))[0].starts_with("f.yaml:2: kind: "));
}

#[test]
fn two_that_claim_one_name_are_told_apart() {
    let good = |text: &str, file: &str| judge(Path::new(file), text, |_| None).good;
    let other = GOOD.replace("namespace: shop", "namespace: till");
    let (accepted, found) = compile_all([good(GOOD, "a.yaml"), good(&other, "b.yaml"), good(GOOD, "c.yaml")].concat());
    assert_eq!(accepted.len(), 1);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found[0].starts_with("c.yaml:3: metadata.name: shop/pay is declared at a.yaml:3 already"), "{found:?}");
    assert!(found[1].starts_with("b.yaml:") && found[1].contains("belongs to shop/pay"), "{found:?}");
}
