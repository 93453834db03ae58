//! New credentials for a business's services: by rotation, after a leak, and with another seed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use wirepost_testing::broker::eventually;
use wirepost_testing::mirror::Mirror;
use wirepost_testing::operator::{World, times};
use wirepost_testing::proxy::{Network, Proxy};

use super::{Begun, SOON, annotate, api_keys, digest, log_in, ready, shop, users};

#[tokio::test(flavor = "multi_thread")]
async fn revoked_credentials_end_immediately() -> Result<()> {
    let (Begun { world, operator, entries: leaked }, _edge) = ready().await?;
    let thief = log_in(&leaked).await?;

    let both = json!({"metadata": {"annotations": {"wirepost.dev/rotate": "2", "wirepost.dev/revoke": "2"}}});
    world.team.businesses().patch("shop", &PatchParams::default(), &Patch::Merge(both)).await?;
    eventually("the leaked user is gone", SOON, || async { Ok(!users(&world).await?.contains(&leaked["username"])) })
        .await?;
    eventually("its connection is closed", SOON, || async { Ok(!thief.status().connected()) }).await?;
    eventually("the Secret has new ones", SOON, || async {
        Ok(world.secret("shop-wirepost").await?.is_some_and(|now| now["username"] != leaked["username"]))
    })
    .await?;
    let new = world.secret("shop-wirepost").await?.context("no Secret")?;
    ensure!(api_keys(&world).await?.keys().eq([&digest(&new)]), "{:?}", api_keys(&world).await?);
    let service = log_in(&new).await?;
    ensure!(times(&world.events("shop").await?, "CredentialsRevoked") == 1);

    // The next rotation has its hour again.
    annotate(&world, "wirepost.dev/rotate", "3").await?;
    eventually("there are two", SOON, || async { Ok(api_keys(&world).await?.len() == 2) }).await?;
    ensure!(users(&world).await?.contains(&new["username"]) && service.status().connected());
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_api_keys_while_the_broker_is_away() -> Result<()> {
    let world = World::new().await?;
    let _mirror = Mirror::start(&world, "edge-1").await?;
    let (proxy, management) = Proxy::of_uri(&world.setup.vhost().broker.management).await?;
    let operator = world.operator("one").flag("management", management).start().await?;
    world.apply(&shop("shop-wirepost")).await?;
    world.condition("shop", "Ready", "True").await?;
    let leaked = world.secret("shop-wirepost").await?.context("no Secret")?;
    // A mistake is reported.
    annotate(&world, "wirepost.dev/revoke", "now").await?;
    eventually("nothing is revoked", SOON, || async { Ok(times(&world.events("shop").await?, "NothingRevoked") == 1) })
        .await?;

    proxy.set(Network::Stalled);
    let both = json!({"metadata": {"annotations": {"wirepost.dev/rotate": "2", "wirepost.dev/revoke": "2"}}});
    world.team.businesses().patch("shop", &PatchParams::default(), &Patch::Merge(both)).await?;
    eventually("the edges refuse the key", SOON, || async {
        Ok(!api_keys(&world).await?.contains_key(&digest(&leaked)))
    })
    .await?;
    ensure!(world.secret("shop-wirepost").await?.as_ref() == Some(&leaked), "the broker can't have answered");

    proxy.set(Network::Fine);
    eventually("the Secret has new ones, and the leaked user is gone", SOON, || async {
        let new = world.secret("shop-wirepost").await?.context("no Secret")?;
        Ok(new["username"] != leaked["username"] && !users(&world).await?.contains(&leaked["username"]))
    })
    .await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_seed_is_replaced_without_an_outage() -> Result<()> {
    let (Begun { world, operator, entries: before }, _edge) = ready().await?;
    let service = log_in(&before).await?;

    let seeds: Api<Secret> = world.cluster.api(&world.system.name);
    let old = seeds.get("wirepost-seed").await?.data.and_then(|mut data| data.remove("seed")).context("no seed")?;
    let new = "0123456789abcdef0123456789abcdef";
    let patch = json!({"stringData": {"seed": new}, "data": {"former-seed": old}});
    seeds.patch("wirepost-seed", &PatchParams::default(), &Patch::Merge(patch)).await?;
    eventually("the Secret has other credentials", SOON, || async {
        Ok(world.secret("shop-wirepost").await?.is_some_and(|now| now["username"] != before["username"]))
    })
    .await?;
    let after = world.secret("shop-wirepost").await?.context("no Secret")?;
    for entries in [&before, &after] {
        ensure!(api_keys(&world).await?.get(&digest(entries)) == Some(&None), "{:?}", api_keys(&world).await?);
        log_in(entries).await?;
    }
    ensure!(service.status().connected(), "a service that has not read its Secret yet was cut off");

    let patch = json!({"data": {"former-seed": null}});
    seeds.patch("wirepost-seed", &PatchParams::default(), &Patch::Merge(patch)).await?;
    eventually("what was derived from the leaked seed is gone", SOON, || async {
        Ok(api_keys(&world).await?.keys().eq([&digest(&after)]) && !users(&world).await?.contains(&before["username"]))
    })
    .await?;
    eventually("its connection is closed", SOON, || async { Ok(!service.status().connected()) }).await?;
    log_in(&after).await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_gives_new_credentials_and_an_hour_for_the_old_ones() -> Result<()> {
    let (Begun { world, operator, entries: old }, _edge) = ready().await?;
    let connection = log_in(&old).await?;

    annotate(&world, "wirepost.dev/rotate", "2026-12").await?;
    eventually("the Secret has new credentials", SOON, || async {
        let entries = world.secret("shop-wirepost").await?.context("no Secret")?;
        Ok(["username", "password", "api-key", "uri"].iter().all(|key| entries[*key] != old[*key]))
    })
    .await?;
    let new = world.secret("shop-wirepost").await?.context("no Secret")?;
    log_in(&new).await?;
    log_in(&old).await?;
    ensure!(connection.status().connected());
    eventually("the hour of the old ones has begun", SOON, || async {
        Ok(api_keys(&world).await?[&digest(&old)].is_some())
    })
    .await?;
    let keys = api_keys(&world).await?;
    ensure!(keys.len() == 2 && keys[&digest(&new)].is_none(), "{keys:?}");
    let ends = keys[&digest(&old)].context("the old key never ends")?;
    let left = ends - Timestamp::now().as_millisecond();
    ensure!((55 * 60_000..=60 * 60_000).contains(&left), "{left} ms");
    world.condition("shop", "Ready", "True").await?;

    // Another process knows as much.
    drop(operator);
    let operator = world.operator("two").start().await?;
    operator.leads().await?;
    annotate(&world, "example.com/look", "again").await?;
    eventually("it was looked at", SOON, || async {
        Ok(operator.metric("wirepost_operator_reconciles_total{outcome=\"Ready\"}").await? > 0.0)
    })
    .await?;
    ensure!(api_keys(&world).await? == keys && users(&world).await?.len() == 2);

    // An hour later, as far as the next process knows.
    drop(operator);
    let config_maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
    let end = Timestamp::now().as_millisecond() - 1;
    let past = json!({"": end}).to_string();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"wirepost.dev/former-rotations": past}}}));
    config_maps.patch("wirepost-business-shop", &PatchParams::default(), &patch).await?;
    let operator = world.operator("three").start().await?;
    // Edges know it all the same: what it let in goes on.
    eventually("the old key has ended", SOON, || async {
        Ok(api_keys(&world).await? == BTreeMap::from([(digest(&new), None), (digest(&old), Some(end))]))
    })
    .await?;
    eventually("the old user is gone", SOON, || async {
        Ok(users(&world).await? == BTreeSet::from([new["username"].clone()]))
    })
    .await?;
    eventually("it is cut off", SOON, || async { Ok(!connection.status().connected()) }).await?;
    ensure!(log_in(&old).await.is_err());
    log_in(&new).await?;
    ensure!(world.secret("shop-wirepost").await?.as_ref() == Some(&new));
    operator.had_every_right()
}
