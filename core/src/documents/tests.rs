use super::*;

const FILE: &str = r"# Two businesses and a stranger.
apiVersion: v1
kind: Secret
metadata: {name: other}
---
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata:
  name: pay
spec:
  clientTypes: [app]
  routes:
  - messageType: a
    sendType: ClientToServer
    queue: {name: a}

  # no queue here
  - messageType: b
    sendType: ClientToServer
  - messageType: c
    sendType: ServerToClient
    to: [app]
    ttlSeconds: soon
---
---
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: chat}
spec:
    clientTypes:
        - app
    routes:
        -
            messageType: hello
            sendType: ServerToClient
            to: [app]
            schema:
                type: nonsense
";

fn problems(document: &Document) -> Vec<(usize, &str)> {
    document.result.as_ref().unwrap_err().iter().map(|located| (located.line, located.problem.field.as_str())).collect()
}

#[test]
fn every_problem_has_its_line() {
    let documents = parse_documents(FILE);
    assert_eq!(documents.len(), 2);
    assert_eq!((documents[0].line, documents[1].line), (6, 26));
    assert_eq!(documents[0].name.as_deref(), Some("pay"));
    assert_eq!(problems(&documents[0]), [(23, "spec.routes[2].ttlSeconds")]);
    assert_eq!(problems(&documents[1]), [(37, "spec.routes[0].schema")]);
    // A rule runs once the schema holds; what is missing is shown at what is around it.
    let corrected = parse_documents(&FILE.replace("soon", "5"));
    assert_eq!(problems(&corrected[0]), [(18, "spec.routes[1].queue")]);
}

#[test]
fn broken_yaml_tells_its_line() {
    let documents = parse_documents("---\na: 1\n---\nkind: WsBusiness\nspec: {\n  routes: [\n");
    assert_eq!(documents.len(), 2, "{documents:?}");
    let problems = documents[1].result.as_ref().unwrap_err();
    assert!(problems[0].line >= 4, "{problems:?}");
    assert!(problems[0].problem.message.starts_with("is not YAML"));
}

#[test]
fn a_key_that_occurs_twice_is_refused() {
    let twice = "apiVersion: wirepost.dev/v1alpha1\nkind: WsBusiness\nkind: WsBusiness\n";
    let documents = parse_documents(twice);
    let problems = documents[0].result.as_ref().unwrap_err();
    assert!(problems[0].problem.message.contains("duplicate"), "{problems:?}");
}

#[test]
fn text_without_a_resource_has_no_document() {
    assert_eq!(parse_documents(""), []);
    assert_eq!(parse_documents("# nothing\n---\n# here\n"), []);
}

proptest::proptest! {
    #[test]
    fn any_text_is_documents(text in "[a-z:\\-\\[\\]{} \n#\"]{0,200}") {
        parse_documents(&text);
    }
}
