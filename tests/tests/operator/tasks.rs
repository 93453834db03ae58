//! A task that panics never leaves an operator that is ready and does nothing: it ends and says why.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::operator::{Operator, World};
use wirepost_testing::setup::PAYMENTS;

/// Operators at the same time: they mostly wait.
const OPERATORS: usize = 4;
/// Longest time for an operator's end: two of its stages, and what a busy machine adds.
const END: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_ends_the_operator_with_its_name_in_the_log() -> Result<()> {
    let tasks = [
        "keeper",
        "edges",
        "edge poll",
        "edge keys",
        "crd check",
        "edge configurations",
        "secret watch",
        "controller",
        "leftovers",
        "admin port",
        "leader election",
        "brake",
        "classes",
        "class crd check",
    ];
    stream::iter(tasks)
        .map(|task| async move {
            let world = World::new().await?;
            // It accepts and answers nothing; it is polled all the same.
            let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
            let silent = std::net::TcpListener::bind((address, 0))?;
            world.endpoint("silent", silent.local_addr()?).await?;
            let file = world.setup.dir().join("panic");
            let operator = world
                .operator("one")
                .flag("watch-secrets-in", &world.team.name)
                .env("WIREPOST_TEST_PANIC", format!("{task}@{}", file.display()))
                .start()
                .await
                .with_context(|| format!("operator for {task}"))?;
            world.apply(PAYMENTS).await?;
            world.condition("payments", "Provisioned", "True").await?;
            std::fs::File::create(&file)?;
            ended_by(&operator, task).await
        })
        .buffer_unordered(OPERATORS)
        .try_collect()
        .await
}

/// They end before a test can act, so their panic is due from the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_as_it_starts_ends_the_operator_too() -> Result<()> {
    for task in ["installation", "trigger on leading"] {
        let world = World::new().await?;
        let file = world.setup.dir().join("panic");
        std::fs::File::create(&file)?;
        let asked = format!("{task}@{}", file.display());
        let operator = world.operator("one").env("WIREPOST_TEST_PANIC", asked).start_unready().await?;
        ended_by(&operator, task).await?;
    }
    Ok(())
}

/// A connection to the API server is opened again, one to the admin port concerns its client.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_connection_ends_that_connection_only_and_is_counted() -> Result<()> {
    for task in ["api connection", "admin connection"] {
        let world = World::new().await?;
        let file = world.setup.dir().join("panic");
        let asked = format!("{task}@{}", file.display());
        let operator = world.operator("one").env("WIREPOST_TEST_PANIC", asked).start().await?;
        world.apply(PAYMENTS).await?;
        world.condition("payments", "Provisioned", "True").await?;
        std::fs::File::create(&file)?;
        // Whatever needs a connection now gets one, if none is open.
        world.apply(&PAYMENTS.replace("payments", "others")).await?;
        world.condition("others", "Provisioned", "True").await?;
        let panics = format!("wirepost_operator_task_panics_total{{task=\"{task}\"}}");
        // The request that asks may be the one that suffers.
        eventually(task, PATIENCE, || async { Ok(operator.metric(&panics).await.unwrap_or(0.0) >= 1.0) }).await?;
    }
    Ok(())
}

async fn ended_by(operator: &Operator, task: &str) -> Result<()> {
    let status = operator.exited(END).await.with_context(|| format!("{task} panicked"))?;
    let log = operator.log();
    let line = log.lines().find(|line| line.contains(&format!("task=\"{task}\""))).unwrap_or_default();
    ensure!(line.contains("ERROR") && line.contains("panicked: a test asked for it"), "{task}: {log}");
    ensure!(status.code() == Some(1), "{task}: {status}");
    Ok(())
}
