//! `acceptFrom`: what leads from one business to another follows both declarations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::business::WsBusiness;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::operator::edges::client;
use wirepost_testing::operator::{World, condition_of};
use wirepost_testing::service::Service;

const TO_CHAT: &str = "binding wirepost.payments.share -> wirepost.chat.push with ''";
const SHARE: &str = "exchange wirepost.payments.share";

fn business(name: &str, accept: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [app]
  routes: [{{messageType: 'payment.#', sendType: ServerToClient, to: [app]}}]
  access: {{secretName: {name}-wirepost}}
{accept}
"
    )
}

fn accepts(from: &str) -> String {
    format!("  acceptFrom: [{{businessType: {from}, messageTypes: ['payment.*']}}]")
}

fn linked(wsb: &WsBusiness, status: &str, part: &str) -> bool {
    condition_of(wsb, "Linked").is_some_and(|c| c.status == status && c.message.contains(part))
}

async fn has(world: &World, object: &str, there: bool) -> Result<Duration> {
    let begun = Instant::now();
    let as_it_should = || async { Ok(world.setup.picture().await?.contains_key(object) == there) };
    eventually(&format!("{object} is there: {there}"), PATIENCE, as_it_should).await?;
    Ok(begun.elapsed())
}

fn shared(id: &str) -> Value {
    json!({"id": id, "messageType": "payment.done", "toUniqueId": "alice", "businesses": ["payments", "chat"]})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_to_a_business_follows_its_declaration_and_the_life_of_the_other() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator("one").start().await?;
    let edge = world.edge("edge-1").await?;
    // The accepting business first: the other one does not exist yet, which does not stop it.
    world.apply(&business("chat", &accepts("payments"))).await?;
    world.condition("chat", "Ready", "True").await?;
    world.wait("chat", "name the missing one", |wsb| linked(wsb, "False", "no business is called payments")).await?;
    ensure!(!world.setup.picture().await?.contains_key(SHARE));
    // Both accept from each other: a circle.
    world.apply(&business("payments", &accepts("chat"))).await?;
    world.condition("payments", "Ready", "True").await?;
    world.wait("chat", "know the other", |wsb| linked(wsb, "True", "both ways with payments")).await?;
    world.wait("payments", "know who accepts", |wsb| linked(wsb, "True", "its messages are accepted by chat")).await?;
    has(&world, TO_CHAT, true).await?;
    ensure!(world.condition("payments", "Provisioned", "True").await?.metadata.generation == Some(1));

    let secrets = (world.secret("payments-wirepost").await?, world.secret("chat-wirepost").await?);
    let (payments, chat) = (secrets.0.context("no Secret")?, secrets.1.context("no Secret")?);
    let service = Service::with(&payments).await?;
    let mut there = client(&edge, &chat, "alice", "app").await?;
    let mut here = client(&edge, &payments, "alice", "app").await?;
    // Once the edges have what the operator wrote last.
    let key = payments.get("api-key").context("no key")?;
    let taken = || async { Ok(post(&edge, key, &shared("http")).await?["result"] == 0) };
    eventually("both take it", PATIENCE, taken).await?;
    ensure!(there.push().await?["id"] == "http" && here.push().await?["id"] == "http");
    service.share(&shared("amqp"), &["payments", "chat"]).await?;
    let pushed = there.push().await?;
    ensure!(pushed["id"] == "amqp" && pushed["businessType"] == "payments", "{pushed}");
    ensure!(here.push().await?["id"] == "amqp");

    // Others remove the binding: it is put back. Acceptance is taken back: it goes, and at once.
    world.setup.unlink("payments", "chat").await?;
    has(&world, TO_CHAT, true).await?;
    world.apply(&business("chat", "")).await?;
    let gone = has(&world, TO_CHAT, false).await?;
    world.wait("payments", "know that nobody accepts", |wsb| !linked(wsb, "True", "accepted by chat")).await?;
    has(&world, SHARE, false).await?;
    let refused =
        || async { Ok(post(&edge, key, &shared("late")).await?["data"]["businesses"][1]["result"] == 40_302) };
    eventually("it is refused", PATIENCE, refused).await?;

    // Given again, and the business is deleted: nothing of it stays in the other's topology.
    world.apply(&business("chat", &accepts("payments"))).await?;
    let there = has(&world, TO_CHAT, true).await?;
    eprintln!("a binding goes {gone:.1?} after acceptance is taken back, and comes {there:.1?} after it is given");
    let delete = json!({"spec": {"deletionPolicy": "Delete"}});
    world.team.businesses().patch("chat", &PatchParams::default(), &Patch::Merge(delete)).await?;
    world.condition("chat", "Ready", "True").await?;
    world.team.businesses().delete("chat", &DeleteParams::default()).await?;
    has(&world, TO_CHAT, false).await?;
    has(&world, SHARE, false).await?;
    world.condition("payments", "Ready", "True").await?;
    world.wait("payments", "miss the other", |wsb| linked(wsb, "False", "no business is called chat")).await?;
    Ok(())
}

async fn post(edge: &wirepost_testing::edge::Edge, key: &str, envelope: &Value) -> Result<Value> {
    let url = format!("http://{}/payments/websocket/messages", edge.public);
    let answer = reqwest::Client::new().post(url).header("x-api-key", key).body(envelope.to_string()).send().await?;
    Ok(answer.json().await?)
}
