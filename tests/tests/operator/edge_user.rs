//! The edges' user on the broker, made by the operator.

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use wirepost_core::names;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::cluster::wait;
use wirepost_testing::operator::{World, edges};
use wirepost_testing::setup::PAYMENTS;
use wirepost_topology::{edge_user, user_tag};

const NAME: &str = "wirepost-edge-user";

/// User and password.
async fn secret(secrets: &Api<Secret>) -> Result<(String, String)> {
    let secret = wait(secrets, NAME, "appear", |secret| secret.is_some()).await?.context("no Secret")?;
    let data = secret.data.unwrap_or_default();
    let text = |key: &str| -> Result<String> {
        let ByteString(bytes) = data.get(key).with_context(|| format!("no {key}"))?;
        Ok(String::from_utf8(bytes.clone())?)
    };
    Ok((text("username")?, text("password")?))
}

/// The edges' users in the vhost, and their permissions.
async fn users(world: &World) -> Result<Vec<Value>> {
    let vhost = world.setup.vhost();
    let text = vhost.broker.call("GET", &format!("/api/vhosts/{}/permissions", vhost.name), "").await?;
    let permissions: Vec<Value> = serde_json::from_str(&text)?;
    Ok(permissions.into_iter().filter(|it| it["user"].as_str().is_some_and(names::is_edge_user)).collect())
}

/// Sends until it is confirmed: while its edge has no connection to the broker a client is told to repeat.
async fn sends(client: &mut Client, id: &str) -> Result<()> {
    for attempt in 0.. {
        let id = format!("{id}-{attempt}");
        client.send(&json!({"id": id, "messageType": "order.placed", "content": {}})).await?;
        let answer = client.answer().await?;
        if answer["op"] == "ack" {
            break;
        }
        ensure!(answer["retryable"] == true, "{answer}");
    }
    Ok(())
}

/// Nothing else gives edges a user: one of an installation from before goes on with the administrator that it has until its pod is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_makes_the_edges_user_and_keeps_it_as_it_should_be() -> Result<()> {
    let world = World::new().await?;
    let vhost = world.setup.vhost();
    let secrets: Api<Secret> = world.cluster.api(&world.system.name);
    let operator = world.operator("one").start().await?;
    world.apply(&format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")).await?;
    let (user, password) = secret(&secrets).await?;
    let right = edge_user(&vhost.name, user.trim_start_matches("wirepost-edge-"), &password);
    let is_right = || async {
        let [is] = &users(&world).await?[..] else { return Ok(false) };
        let tags = vhost.broker.call("GET", &format!("/api/users/{user}"), "").await?;
        let tags: Value = serde_json::from_str(&tags)?;
        let tags: Vec<&str> = tags["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let tagged = tags.len() == 2 && tags.contains(&"management") && tags.contains(&user_tag(&vhost.name).as_str());
        Ok(tagged && is["configure"] == right.configure && is["write"] == right.write && is["read"] == right.read)
    };
    // The Secret comes last.
    ensure!(is_right().await?, "{:?}", users(&world).await?);

    // An edge with it serves.
    world.condition("payments", "Provisioned", "True").await?;
    let amqp = vhost.amqp();
    let at = amqp.rsplit_once('@').map_or("", |(_, at)| at);
    let edge = world.edge_with("e1", &[("amqp", &format!("amqp://{user}:{password}@{at}"))]).await?;
    let access = world.secret("payments-wirepost").await?.context("no access Secret")?;
    let mut alice = edges::client(&edge, &access, "alice", "app").await?;
    sends(&mut alice, "m").await?;

    // What others change is put back.
    let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
    let administrator = json!({"password": "x", "tags": format!("administrator,{}", user_tag(&vhost.name))});
    for (what, method, path, body) in [
        ("wider permissions", "PUT", vec!["permissions", &vhost.name, &user], &all),
        ("another password and tag", "PUT", vec!["users", &user], &administrator),
        ("no user", "DELETE", vec!["users", &user], &Value::Null),
    ] {
        world.setup.call(method, &path, body).await?;
        eventually(&format!("{what} is repaired"), PATIENCE, is_right).await?;
    }
    sends(&mut alice, "n").await?;
    secrets.delete(NAME, &DeleteParams::default()).await?;
    ensure!(secret(&secrets).await? == (user.clone(), password), "the one that came back is another one");

    // A seed that leaked: both users, until the former seed goes.
    let seed = secrets.get("wirepost-seed").await?.data.unwrap_or_default().remove("seed").context("no seed")?;
    let pair = json!({"data": {"seed": ByteString(vec![7; 32]), "former-seed": seed}});
    secrets.patch("wirepost-seed", &PatchParams::default(), &Patch::Merge(&pair)).await?;
    eventually("the Secret names another user", PATIENCE, || async { Ok(secret(&secrets).await?.0 != user) }).await?;
    ensure!(users(&world).await?.len() == 2, "{:?}", users(&world).await?);
    sends(&mut alice, "o").await?;
    operator.had_every_right()
}
