//! The edges' key set, made by the operator.

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use wirepost_core::contract::key_file::KeyFile;
use wirepost_edge::identity::keys::KeyRing;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::cluster::wait;
use wirepost_testing::operator::World;
use wirepost_testing::operator::edges::client;
use wirepost_testing::setup::PAYMENTS;

const NAME: &str = "wirepost-edge-keys";

async fn key_set(secrets: &Api<Secret>) -> Result<Vec<u8>> {
    let secret = wait(secrets, NAME, "appear", |secret| secret.is_some()).await?.context("no Secret")?;
    let ByteString(content) = secret.data.unwrap_or_default().remove("keys.json").context("no keys.json")?;
    Ok(content)
}

/// One that was deleted comes back the same, so that clients keep their sessions; one that a person made is left alone.
#[tokio::test]
async fn the_operator_makes_a_key_set_that_edges_take() -> Result<()> {
    let world = World::new().await?;
    let secrets: Api<Secret> = world.cluster.api(&world.system.name);
    let operator = world.operator("one").start().await?;
    let first = key_set(&secrets).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &first)?;
    KeyRing::load(file.path().to_owned()).await.context("an edge does not take it")?;

    secrets.delete(NAME, &DeleteParams::default()).await?;
    let again = key_set(&secrets).await?;
    ensure!(first == again, "the key set that came back is another one");

    let own = json!({"apiVersion": "v1", "kind": "Secret", "stringData": {"keys.json": "a person's own"}});
    secrets.patch(NAME, &PatchParams::default(), &Patch::Merge(&own)).await?;
    drop(operator);
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    ensure!(key_set(&secrets).await? == b"a person's own", "a key set that was there is changed");
    operator.had_every_right()
}

/// A key that signs before every edge has it would end sessions at those that have not.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_signs_once_every_edge_has_it_and_no_client_notices() -> Result<()> {
    let world = World::new().await?;
    let secrets: Api<Secret> = world.cluster.api(&world.system.name);
    let operator = world.operator("one").start().await?;
    let file = async || -> Result<KeyFile> { Ok(serde_json::from_slice(&key_set(&secrets).await?)?) };
    let before = file().await?;
    std::fs::write(world.setup.keys_file(), key_set(&secrets).await?)?;
    let edge = world.edge("e1").await?;
    world.apply(&format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    let alice = client(&edge, &secret, "alice", "app").await?;

    let ask = json!({"metadata": {"annotations": {"wirepost.dev/rotate": "2026-12"}}});
    secrets.patch(NAME, &PatchParams::default(), &Patch::Merge(&ask)).await?;
    eventually("the new key is there", PATIENCE, || async { Ok(file().await?.keys.len() == 2) }).await?;
    let added = file().await?;
    ensure!(added.current == before.current, "it signs, and the edge does not have it");
    // As the kubelet does, a while later.
    std::fs::write(world.setup.keys_file(), key_set(&secrets).await?)?;
    eventually("the new key signs", PATIENCE, || async { Ok(file().await?.current != before.current) }).await?;
    let rotated = file().await?;
    ensure!(rotated.current == added.keys[1].id && rotated.keys == added.keys, "{rotated:?}");
    std::fs::write(world.setup.keys_file(), key_set(&secrets).await?)?;
    edge.client("alice", "app").token(alice.resume_token()).connect().await.context("her session goes on")?;
    operator.had_every_right()
}

/// A seed that was deleted by mistake changes nobody's password, also not at the next change of the leader. One that a person restores
/// from a backup counts from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_seed_comes_back_and_a_restored_one_counts() -> Result<()> {
    let world = World::new().await?;
    let secrets: Api<Secret> = world.cluster.api(&world.system.name);
    let operator = world.operator("one").start().await?;
    world.apply(&format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let before = world.secret("payments-wirepost").await?.context("no Secret")?;
    let seed = secrets.get("wirepost-seed").await?.data;

    secrets.delete("wirepost-seed", &DeleteParams::default()).await?;
    let back = wait(&secrets, "wirepost-seed", "come back", |secret| secret.is_some()).await?.context("no Secret")?;
    ensure!(back.data == seed, "the seed that came back is another one");
    operator.sigterm()?;
    operator.exited(PATIENCE).await?;
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    operator.looks(2).await?;
    ensure!(world.secret("payments-wirepost").await?.as_ref() == Some(&before), "the credentials have changed");

    let other = json!({"data": {"seed": ByteString(vec![7; 32])}});
    secrets.patch("wirepost-seed", &PatchParams::default(), &Patch::Merge(&other)).await?;
    eventually("the business has other credentials", PATIENCE, || async {
        Ok(world.secret("payments-wirepost").await?.is_some_and(|now| now["password"] != before["password"]))
    })
    .await?;
    operator.had_every_right()
}
