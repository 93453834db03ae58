//! What the neighbours of a flood notice: the time of their messages and pushes, beside an edge without one.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use wirepost_testing::{
    edge::Edge,
    floods::{Flood, Neighbour, Served},
    setup::Setup,
    usage,
};

/// Who floods at the same time.
const FLOODERS: usize = 8;
/// How long it goes on before anybody is measured.
const BEFORE: Duration = Duration::from_secs(1);
/// How often a neighbour is served, and the time between two.
const ROUNDS: usize = 300;
const PAUSE: Duration = Duration::from_millis(10);

async fn measure(edge: &Edge, neighbour: &mut Neighbour) -> Result<Vec<Served>> {
    let mut served = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        served.push(neighbour.served(edge, "down").await?);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(served)
}

fn report(what: &str, served: &[Served]) {
    let of = |time: fn(&Served) -> Duration| {
        let mut times: Vec<_> = served.iter().map(time).collect();
        times.sort();
        (usage::percentile(&times, 0.5), usage::percentile(&times, 0.99))
    };
    let ((ack, ack99), (push, push99)) = (of(|served| served.ack), of(|served| served.push));
    println!("flood of {what}: ack p50 {ack:.1?} p99 {ack99:.1?}; push p50 {push:.1?} p99 {push99:.1?}");
}

pub(crate) async fn run(setup: &Setup) -> Result<()> {
    // The flooders need the other core.
    let edge = setup.edge("floods").quiet().core("0").start().await?;
    let mut neighbour = Neighbour::connect(&edge, "up").await?;
    measure(&edge, &mut neighbour).await?;
    report("nothing", &measure(&edge, &mut neighbour).await?);
    for flood in Flood::ALL {
        let prepared = flood.prepare(&edge).await?;
        usage::forget_peak(edge.pid)?;
        let before = usage::resident(edge.pid)?.now;
        let flooding = join_all((0..FLOODERS).map(|number| prepared.run(&edge, number)));
        let measuring = async {
            tokio::time::sleep(BEFORE).await;
            measure(&edge, &mut neighbour).await
        };
        let served = tokio::select! {
            served = measuring => served?,
            _ = flooding => Vec::new(),
        };
        let grown = usage::resident(edge.pid)?.most.saturating_sub(before) >> 20;
        report(&format!("{flood:?} ({grown} MiB more)").to_lowercase(), &served);
    }
    Ok(())
}
