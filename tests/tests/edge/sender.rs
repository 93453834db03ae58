//! The sender is who the edge says, in every parser (CASES 18).

use std::fmt;

use anyhow::Result;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};
use wirepost_testing::service::{Service, next_json, payment};
use wirepost_testing::setup::{PAYMENTS, Setup};

/// An object's members as they stand in the text. Its first member of a name is what a first-wins parser sees, its last one what
/// browsers see.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Members {
    fn of(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("a push is an object: {error}"))
    }

    fn first(&self, name: &str) -> &Value {
        self.0.iter().find(|(n, _)| n == name).map_or(&Value::Null, |(_, value)| value)
    }

    fn last(&self, name: &str) -> &Value {
        self.0.iter().rev().find(|(n, _)| n == name).map_or(&Value::Null, |(_, value)| value)
    }
}

const NAMES: [(&str, &str); 15] = [
    ("id", r#""other""#),
    ("sendType", r#""ClientToClient""#),
    ("messageType", r#""cart.share""#),
    ("businessType", r#""payments""#),
    ("fromUniqueId", r#""alice""#),
    ("fromClientType", r#""app""#),
    ("toUniqueId", r#""bob""#),
    ("toClientType", r#""h5""#),
    ("timestamp", "1"),
    ("content", "{}"),
    ("tags", "[]"),
    ("businesses", "[]"),
    ("correlationId", r#""c""#),
    ("expiresAt", "9999999999999"),
    ("cursor", r#""x""#),
];

/// The name with its second character written as an escape: another text, the same name.
fn escaped(name: &str) -> String {
    let second = name.as_bytes()[1];
    format!("{}\\u00{second:02x}{}", &name[..1], &name[2..])
}

#[tokio::test]
async fn a_second_copy_of_a_name_is_refused_however_it_is_written() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "h5").connect().await?;
    let mut lies = vec![
        r#"{"messageType":"cart.share","toUniqueId":"bob","fromUniqueId":"alice","fromUniqueId":"ceo","content":{}}"#.to_owned(),
        r#"{"messageType":"cart.share","toUniqueId":"bob","fromUniqueId":"alice","from\u0055niqueId":"ceo","content":{}}"#.to_owned(),
        r#"{"from\u0055niqueId":"ceo","messageType":"cart.share","toUniqueId":"bob","fromUniqueId":"alice","content":{}}"#.to_owned(),
    ];
    for (name, value) in NAMES {
        for second in [name.to_owned(), escaped(name)] {
            let base = match name {
                "messageType" | "toUniqueId" => String::new(),
                _ => format!(r#""{name}":{value},"#),
            };
            lies.push(format!(r#"{{{base}"messageType":"cart.share","toUniqueId":"bob","{second}":{value}}}"#));
        }
    }
    for lie in lies {
        alice.send_text(lie.as_str()).await?;
        let nack = alice.answer().await?;
        assert_eq!((&nack["op"], &nack["code"]), (&json!("nack"), &json!("invalid_envelope")), "{lie}: {nack}");
    }
    // Once, and the truth: also where it is written with an escape. What is not ours may be there twice, and inside content anything.
    for truth in [
        r#"{"id":"t1","messageType":"cart.share","toUniqueId":"bob","from\u0055niqueId":"alice","content":{}}"#,
        r#"{"id":"t2","messageType":"cart.share","toUniqueId":"bob","x":1,"x":2,"content":{"fromUniqueId":"ceo","id":1,"id":2}}"#,
        r#"{"id":"t3","messageType":"cart.share","toUniqueId":"bob","FromUniqueId":"ceo","fromUniqueId\u0000":"ceo"}"#,
    ] {
        alice.send_text(truth).await?;
        let answer = alice.answer().await?;
        assert_eq!(answer["op"], "ack", "{truth}: {answer}");
        let text = bob.push_text().await?;
        let members = Members::of(&text);
        for (name, value) in
            [("fromUniqueId", "alice"), ("fromClientType", "app"), ("toUniqueId", "bob"), ("businessType", "payments")]
        {
            assert_eq!((members.first(name), members.last(name)), (&json!(value), &json!(value)), "{name} in {text}");
        }
        for (name, _) in NAMES {
            assert!(members.0.iter().filter(|(n, _)| n == name).count() <= 1, "{name} stands twice in {text}");
        }
    }
    assert!(bob.pushes().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_sender_that_contradicts_the_token_is_refused_and_not_corrected() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    let mut bob = edge.client("bob", "h5").connect().await?;
    for (field, lie) in [
        ("fromUniqueId", "ceo"),
        ("fromUniqueId", "Alice"),
        ("fromUniqueId", ""),
        ("fromClientType", "pos"),
        ("businessType", "bank"),
    ] {
        let mut share = json!({"id": "l", "messageType": "cart.share", "toUniqueId": "bob"});
        share[field] = json!(lie);
        alice.send(&share).await?;
        let nack = alice.nack("l").await;
        // An empty name is an absent one.
        match (lie, nack) {
            ("", Err(_)) => assert_eq!(bob.push().await?["fromUniqueId"], "alice"),
            (_, nack) => assert_eq!(nack?["code"], "identity_mismatch", "{field}: {lie:?}"),
        }
    }
    alice.send_acked(&json!({"id": "z", "messageType": "cart.share", "toUniqueId": "bob"})).await?;
    assert_eq!(bob.push().await?["id"], "z");
    assert!(bob.pushes().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_services_push_with_two_names_reaches_nobody() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let service = Service::connect(&setup).await?;
    let mut rejected = service.events("rejected").await?;
    let mut bob = edge.client("bob", "app").connect().await?;
    let twice = [
        r#"{"messageType":"payment.completed","toUniqueId":"bob","toUniqueId":"alice","content":{}}"#,
        r#"{"messageType":"payment.completed","toUniqueId":"bob","from\u0055niqueId":"bank","fromUniqueId":"ceo"}"#,
        r#"{"messageType":"payment.completed","toUniqueId":"bob","cursor":"x","cursor":"y"}"#,
    ];
    for body in twice {
        service.push_bytes(body.as_bytes()).await?;
        let event = next_json(&mut rejected).await?;
        assert_eq!(event["reason"], "invalid", "{event}");
        let (status, answer) = edge.post_bytes(body.as_bytes().to_vec()).await?;
        assert_eq!(status, 400, "{answer}");
    }
    service.push(&payment("bob", 1)).await?;
    assert_eq!(bob.numbers(1).await?, [1]);
    // A cursor that a service writes is not one.
    service
        .push(&json!({"messageType": "payment.completed", "toUniqueId": "bob", "cursor": "mine", "content": {"n": 2}}))
        .await?;
    let text = bob.push_text().await?;
    let members = Members::of(&text);
    assert_eq!(members.first("cursor"), members.last("cursor"), "{text}");
    assert_ne!(members.first("cursor"), "mine", "{text}");
    Ok(())
}
