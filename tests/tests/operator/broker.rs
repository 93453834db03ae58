//! A broker that goes away, comes back empty, or expects another password: reported, and repaired within 30 s of its return, without a restart.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use wirepost_testing::broker::{PrivateBroker, depth, eventually, key_of};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::hand::{all_there_in_two_rows, differences, publish_orders, read_numbers};
use wirepost_testing::operator::World;
use wirepost_testing::setup::PAYMENTS;
use wirepost_testing::witness::Witness;

const RECEIVE: &str = "wirepost.payments.receive";
const ORDERS: &str = "wirepost.payments.q.orders";

fn payments() -> String {
    format!("{PAYMENTS}  access: {{secretName: payments-wirepost}}\n")
}

/// A business that pushes only.
fn news(name: &str) -> String {
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}}}
spec:
  clientTypes: [app]
  routes: [{{messageType: flash, sendType: ServerToClient, to: [app]}}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_rebuilt_empty_gets_everything_again_with_the_same_credentials() -> Result<()> {
    let broker = PrivateBroker::start("wiped", &[]).await?;
    let world = World::on_broker(&broker).await?;
    let operator = world.operator("one").start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let (before, secret) = (world.setup.picture().await?, world.secret("payments-wirepost").await?);

    let witness = Witness::of(&world, "payments").await?;
    broker.wipe().await?;
    let restored = || async {
        let after = world.setup.picture().await?;
        ensure!(after == before, "{:#?}", differences(&before, &after));
        Ok(true)
    };
    eventually("everything is there again", PATIENCE, restored).await?;
    world.condition("payments", "Provisioned", "True").await?;
    ensure!(witness.take().iter().any(|c| c.type_ == "Provisioned" && c.status != "True"), "it was not reported");
    ensure!(world.secret("payments-wirepost").await? == secret, "the credentials changed");
    let uri = &secret.context("no Secret")?["uri"];
    lapin::Connection::connect(uri, lapin::ConnectionProperties::default()).await?;
    ensure!(operator.running(), "it needed a restart");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_vhost_is_made_again_with_everything_in_it() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator("one").start().await?;
    world.apply(&payments()).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let before = world.setup.picture().await?;
    let secret = world.secret("payments-wirepost").await?.context("no Secret")?;
    world.setup.call("DELETE", &["vhosts", &world.setup.vhost().name], &serde_json::Value::Null).await?;
    let restored = || async { Ok(world.setup.picture().await? == before) };
    eventually("everything is there again", PATIENCE, restored).await?;
    world.condition("payments", "Provisioned", "True").await?;
    lapin::Connection::connect(&secret["uri"], lapin::ConnectionProperties::default()).await?;
    ensure!(operator.running(), "it needed a restart");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_of_the_broker_needs_no_restart() -> Result<()> {
    let broker = PrivateBroker::start("rotated", &[]).await?;
    let world = World::on_broker(&broker).await?;
    let vhost = world.setup.vhost();
    broker.ctl(&["add_user", "platform", "first"]).await?;
    broker.ctl(&["set_user_tags", "platform", "administrator"]).await?;
    broker.ctl(&["set_permissions", "-p", &vhost.name, "platform", ".*", ".*", ".*"]).await?;
    let (user, password) = (world.setup.dir().join("user"), world.setup.dir().join("password"));
    std::fs::write(&user, "platform")?;
    std::fs::write(&password, "first\n")?;
    let file = |path: &Path| path.display().to_string();
    let operator = world
        .operator("one")
        .flag("amqp", vhost.amqp().replace("guest:guest@", ""))
        .flag("management", broker.management.replace("guest:guest@", ""))
        .flag("amqp-username-file", file(&user))
        .flag("amqp-password-file", file(&password))
        .start()
        .await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;

    let witness = Witness::of(&world, "payments").await?;
    broker.ctl(&["change_password", "platform", "second"]).await?;
    broker.ctl(&["close_all_connections", "rotated"]).await?;
    witness.sees("Provisioned", "BrokerRefused", "password").await?;
    std::fs::write(&password, "second\n")?;
    world.condition("payments", "Provisioned", "True").await?;

    // The management API repairs, and AMQP moves back.
    world.setup.unbind(RECEIVE, ORDERS, &key_of(ORDERS)).await?;
    let sent = publish_orders(vhost, ORDERS, 1..11).await?;
    all_there_in_two_rows(&sent, &read_numbers(vhost, ORDERS, 10).await?)?;
    ensure!(operator.running() && !operator.log().contains("second"), "it restarted, or logged a password");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_told_holds_up_nothing_else_and_is_made_good_when_it_returns() -> Result<()> {
    let broker = PrivateBroker::start("away", &[]).await?;
    let world = World::on_broker(&broker).await?;
    let operator = world.operator("one").start().await?;
    world.apply(PAYMENTS).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let vhost = world.setup.vhost();
    publish_orders(vhost, ORDERS, 1..4).await?;

    for how in ["stopped", "paused", "killed"] {
        match how {
            "stopped" => broker.stop().await?,
            "paused" => broker.pause().await?,
            _ => broker.kill9().await?,
        }
        let told = world.reason("payments", "Provisioned", "BrokerUnavailable").await.context(how)?;
        ensure!(told.status.context("no status")?.edges.is_some(), "the edges are not reported any more");

        // What needs no broker goes on: a new declaration, one that clashes, the end of the latter.
        let late = format!("late-{how}");
        world.apply(&news(&late)).await?;
        world.condition(&late, "Accepted", "True").await.context(how)?;
        world.reason(&late, "Ready", "BrokerUnavailable").await.context(how)?;
        // Of two that were made in the same second the first by name is the older.
        let clash = news("rival").replace("spec:", "spec:\n  businessType: payments");
        world.apply(&clash).await?;
        world.reason("rival", "Accepted", "BusinessTypeTaken").await.context(how)?;
        world.cluster.delete(&world.team.name, "rival").await?;
        world.cluster.wait_gone(&world.team.name, "rival").await.context(how)?;
        // A replica that starts now is of use.
        let standby = world.operator("two").start().await.context(how)?;
        ensure!(operator.readyz().await?.0 == 200);
        drop(standby);

        match how {
            "paused" => broker.resume().await?,
            _ => broker.start_again().await?,
        }
        for business in ["payments", &late] {
            world.condition(business, "Provisioned", "True").await.context(how)?;
        }
    }
    let (_connection, channel) = vhost.channel().await?;
    ensure!(depth(&channel, ORDERS).await? == 3, "messages were lost");
    ensure!(operator.running(), "it needed a restart");
    Ok(())
}
