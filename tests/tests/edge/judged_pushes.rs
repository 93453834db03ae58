//! `validate: Always`: the content of pushes by AMQP is judged by the schema, in order, for live and for returning clients.

use anyhow::Result;
use serde_json::{Value, json};
use wirepost_testing::service::{Service, next_json};
use wirepost_testing::setup::Setup;

/// `judged` and `costly` are judged, `free` is not.
fn business() -> String {
    let constants: Vec<_> = (0..90).map(|n| json!({"const": n})).collect();
    let references: Vec<_> = (0..90).map(|_| json!({"$ref": "#/$defs/one"})).collect();
    let costly = json!({"type": "array", "items": {"anyOf": references}, "$defs": {"one": {"anyOf": constants}}});
    let number = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    json!({
        "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "judged", "namespace": "shop"},
        "spec": {
            "clientTypes": ["app"],
            "routes": [
                {"messageType": "judged", "sendType": "ServerToClient", "to": ["app"], "schema": number, "validate": "Always"},
                {"messageType": "costly", "sendType": "ServerToClient", "to": ["app"], "schema": costly, "validate": "Always"},
                {"messageType": "free", "sendType": "ServerToClient", "to": ["app"], "schema": number},
            ],
            "limits": {"pushBytes": 1_048_576},
        },
    })
    .to_string()
}

fn push(id: impl Into<String>, message_type: &str, content: &Value) -> Value {
    json!({"id": id.into(), "messageType": message_type, "toUniqueId": "alice", "content": content})
}

#[tokio::test]
async fn what_does_not_fit_is_reported_and_the_rest_comes_in_order() -> Result<()> {
    let setup = Setup::new(&[&business()]).await?;
    let (first, second) = (setup.edge("e1").start().await?, setup.edge("e2").start().await?);
    let service = Service::connect(&setup).await?;
    let mut rejected = service.events("rejected").await?;
    let mut alice = first.client("alice", "app").connect().await?;
    let cursor = alice.cursor();
    let mut pushes = Vec::new();
    for n in 0..200 {
        pushes.push(push(format!("good-{n}"), "judged", &json!({"n": n})));
        pushes.push(push(format!("bad-{n}"), "judged", &json!({"n": "no number"})));
        if n % 50 == 0 {
            // Heavy enough for a thread of its own; the ones behind it wait.
            pushes.push(push(format!("heavy-{n}"), "costly", &json!(vec![7; 100])));
        }
    }
    pushes.push(push("beyond", "costly", &json!(vec![-1; 100_000])));
    pushes.push(push("free", "free", &json!("anything")));
    let expected: Vec<&Value> = pushes
        .iter()
        .map(|push| &push["id"])
        .filter(|id| id.as_str().is_some_and(|id| !id.starts_with("bad") && id != "beyond"))
        .collect();
    service.push_all(pushes.iter().cloned()).await?;
    for id in &expected {
        assert_eq!(&&alice.push().await?["id"], id);
    }
    // Who returns gets the same, from another edge as well.
    for edge in [&first, &second] {
        let mut back = edge.client("alice", "app").cursor(&cursor).connect().await?;
        for id in &expected {
            assert_eq!(&&back.push().await?["id"], id);
        }
        back.sync().await?;
        assert!(back.pushes().is_empty(), "{:?}", back.pushes());
    }
    let event = next_json(&mut rejected).await?;
    assert_eq!((&event["id"], &event["reason"]), (&json!("bad-0"), &json!("schema_mismatch")));
    assert!(event["description"].as_str().is_some_and(|text| text.contains("/n")), "{event}");
    let kind = |kind: &str| format!("wirepost_edge_rejected_pushes_total{{kind={kind:?}}}");
    first.await_metric(&kind("schema_mismatch"), 200.0).await?;
    assert_eq!(first.count(&kind("schema_mismatch")).await?, 200);
    assert_eq!(first.count(&kind("too_complex")).await?, 1);
    Ok(())
}

/// By HTTP it is refused at the call, as ever.
#[tokio::test]
async fn a_changed_declaration_counts_for_what_is_read_from_then_on() -> Result<()> {
    let setup = Setup::new(&[&business()]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let (status, answer) = edge.post(&push("http", "judged", &json!({}))).await?;
    assert_eq!((status, &answer["data"]["field"]), (400, &json!("content")), "{answer}");
    let lax = business().replace(r#""validate":"Always","#, "").replace(r#","validate":"Always""#, "");
    assert!(!lax.contains("Always"));
    let before = setup.config("judged")?.hash();
    setup.declare(&[&lax]).await?;
    let changed = setup.config("judged")?.hash();
    assert_ne!(before, changed);
    wirepost_testing::wait::eventually("the edge has the change", wirepost_testing::wait::PATIENCE, || async {
        Ok(edge.admin("/configz").await?.1.contains(&changed))
    })
    .await?;
    service.push(&push("now", "judged", &json!("anything"))).await?;
    assert_eq!(alice.push().await?["id"], "now");
    Ok(())
}
