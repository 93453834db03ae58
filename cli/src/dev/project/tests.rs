use std::fs;

use super::*;

fn declaration(name: &str, queue: &str) -> String {
    format!(
        "apiVersion: wirepost.dev/v1alpha1\nkind: WsBusiness\nmetadata: {{name: {name}}}\nspec:\n  clientTypes: [app]\n  routes:\n    \
         - {{messageType: ask, sendType: ClientToServer, queue: {{name: {queue}}}}}\n"
    )
}

fn queue(project: &Project, name: &str) -> String {
    let compiled = project.running().find(|c| c.business == name).unwrap();
    super::super::card::shown_queues(compiled).next().unwrap().to_owned()
}

#[test]
fn a_bad_file_keeps_what_ran_and_a_good_one_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
    fs::write(&a, declaration("pay", "one")).unwrap();
    fs::write(&b, declaration("chat", "one")).unwrap();
    let mut project = Project::new(vec![folder.path().to_owned()], None);
    assert_eq!(project.refresh(true).unwrap().added, ["chat", "pay"]);
    assert!(project.refresh(false).unwrap().is_empty());

    fs::write(&a, declaration("pay", "two").replace("app", "a b")).unwrap();
    fs::write(&b, declaration("chat", "two")).unwrap();
    let change = project.refresh(false).unwrap();
    assert_eq!((change.kept, change.changed), (vec!["pay".to_owned()], vec!["chat".to_owned()]));
    assert_eq!((change.findings[0].file.as_path(), change.findings[0].line), (a.as_path(), 5));
    assert_eq!(queue(&project, "pay"), "wirepost.pay.q.one");

    fs::write(&a, "{").unwrap();
    let change = project.refresh(false).unwrap();
    assert_eq!(change.kept, ["pay"], "not even YAML, and known all the same");

    fs::write(&a, declaration("pay", "one")).unwrap();
    let change = project.refresh(false).unwrap();
    assert!(change.all_valid_again && change.changed.is_empty(), "back to the running version, which is reported");

    fs::write(&a, declaration("pay", "two")).unwrap();
    let change = project.refresh(false).unwrap();
    assert_eq!((change.changed.as_slice(), change.findings.len()), (["pay".to_owned()].as_slice(), 0));
    assert_eq!(queue(&project, "pay"), "wirepost.pay.q.two");

    fs::remove_file(&a).unwrap();
    assert_eq!(project.refresh(false).unwrap().removed, ["pay"]);
    fs::rename(&b, folder.path().join("c.yaml")).unwrap();
    assert!(project.refresh(false).unwrap().is_empty(), "the same declaration in another file is the same business");
}

#[test]
fn what_may_not_change_does_not_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let a = folder.path().join("a.yaml");
    fs::write(&a, declaration("pay", "one")).unwrap();
    let mut project = Project::new(vec![a.clone()], None);
    project.refresh(true).unwrap();
    fs::write(&a, declaration("pay", "one") + "  businessType: other\n").unwrap();
    let change = project.refresh(false).unwrap();
    assert_eq!(change.kept, ["pay"]);
    assert_eq!(change.findings[0].line, 8, "{}", change.findings[0]);
}

#[test]
fn a_path_that_is_not_there_at_the_start_is_an_error_with_a_remedy() {
    let error = Project::new(vec!["/nowhere/at/all".into()], None).refresh(true).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all") && error.contains("name a YAML or JSON file"), "{error}");
}
