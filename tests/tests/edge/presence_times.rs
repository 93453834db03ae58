//! How soon presence is right: while clients come and go, and after edges were killed. Prints the figures of
//! docs/services.md.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};
use wirepost_testing::broker::eventually;
use wirepost_testing::client::Client;
use wirepost_testing::edge::Edge;
use wirepost_testing::fleet::Fleet;
use wirepost_testing::setup::{PAYMENTS, Setup};

const PATH: &str = "/payments/websocket/presence";
/// What is promised while all edges live.
const LIFE: Duration = Duration::from_secs(2);
/// And after one was killed.
const DEATH: Duration = Duration::from_secs(10);
/// Clients that come and go, in each of two places.
const TURNS: usize = 40;
/// Clients of an edge that is killed.
const CROWD: usize = 25;

/// The number of connections, if every edge is known.
async fn count(edge: &Edge, unique_id: &str) -> Result<Option<u64>> {
    let query = [("uniqueId", unique_id)];
    let query = if unique_id.is_empty() { &[][..] } else { &query[..] };
    let (status, body) = edge.get(PATH, query).await?;
    ensure!(status == 200, "{status}: {body}");
    let data = &body["data"];
    let connections = data["connections"].as_u64().context("no number")?;
    Ok((data["complete"] == true).then_some(connections))
}

/// How long it takes until an edge says so.
async fn until(edge: &Edge, unique_id: &str, connections: u64, limit: Duration) -> Result<Duration> {
    let since = Instant::now();
    loop {
        let found = count(edge, unique_id).await?;
        if found == Some(connections) {
            return Ok(since.elapsed());
        }
        if since.elapsed() > limit {
            bail!("{found:?} connections instead of {connections} after {limit:?}");
        }
        // A business may ask an edge 20 times a second.
        sleep(Duration::from_millis(60)).await;
    }
}

fn figures(what: &str, mut all: Vec<Duration>) {
    all.sort_unstable();
    let (median, most) = (all[all.len() / 2], all[all.len() - 1]);
    eprintln!("{what}: median {median:.1?}, longest {most:.1?} of {}", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_right_within_its_times() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(4);
    let (asked, other, third, fourth) = tokio::try_join!(
        fleet.edge(&setup, 0).start(),
        fleet.edge(&setup, 1).start(),
        fleet.edge(&setup, 2).start(),
        fleet.edge(&setup, 3).start()
    )?;
    asked.await_metric("wirepost_edge_peers{kind=\"answers\"}", 3.0).await?;

    let (mut came, mut left) = (Vec::new(), Vec::new());
    for n in 0..TURNS {
        let edge = [&other, &third][n % 2];
        let client = edge.client(&format!("guest-{n}"), "app").connect().await?;
        came.push(until(&asked, &format!("guest-{n}"), 1, LIFE).await.context("it came")?);
        client.leave().await?;
        left.push(until(&asked, &format!("guest-{n}"), 0, LIFE).await.context("it left")?);
        // Below the rate at which a business may ask.
        sleep(Duration::from_millis(100)).await;
    }
    figures("a client that has its welcome is counted after", came);
    figures("one that has left is not counted after", left);

    let (mut stay, mut go): (Vec<Client>, Vec<Client>) = (Vec::new(), Vec::new());
    for n in 0..CROWD {
        stay.push(other.client(&format!("stays-{n}"), "app").connect().await?);
        for edge in [&third, &fourth] {
            go.push(edge.client(&format!("goes-{n}"), "app").connect().await?);
        }
    }
    let all = CROWD as u64 * 3;
    until(&asked, "", all, LIFE).await?;
    let mut right = Vec::new();
    for (dead, left) in [(&third, all - CROWD as u64), (&fourth, CROWD as u64)] {
        let killed = Instant::now();
        dead.kill9()?;
        for edge in [&asked, &other] {
            until(edge, "", left, DEATH).await.context("after an edge was killed")?;
            right.push(killed.elapsed());
        }
    }
    figures("after an edge was killed all is right after", right);
    drop((stay, go));
    eventually("nobody is left", LIFE * 5, || async { Ok(count(&asked, "").await? == Some(0)) }).await
}
