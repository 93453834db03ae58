//! `helm upgrade` with a new image while many clients talk (CASES 12 on a cluster, but for TLS: the clients are `ws`).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::ResourceExt;
use tokio::time::Instant;
use wirepost_testing::node::crowd::{Crowd, Move, size};
use wirepost_testing::node::{EdgeWatch, Node};

/// Long enough to see how clients spread over it.
const WINDOW: Duration = Duration::from_secs(12);
/// The same for the chart.
const WINDOW_VALUE: &str = "edge.drain.windowSeconds=12";
/// Between two newcomers.
const ARRIVALS: Duration = Duration::from_millis(50);
/// A roll-out takes the endpoint lag and the window at least, where three times as many come on a machine that is not busy.
const NEWCOMERS: usize = 100;
/// Of the window, in which clients are counted.
const SLICES: u32 = 12;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn a_new_image_moves_every_client_and_loses_nothing() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[WINDOW_VALUE]).await?;
    let size = size(2000);
    let gathering = Instant::now();
    let mut crowd = Crowd::gather(&node, "upgrade", size).await?;
    crowd.talks().await?;
    eprintln!("{size} clients are connected after {:?}", gathering.elapsed());

    let (old, watch) = (node.edges().await?, EdgeWatch::of(&node).await?);
    let began = Instant::now();
    let roll_out = async {
        node.upgrade(&[WINDOW_VALUE, "edge.image.tag=next"]).await?;
        node.gone(&old, Duration::from_mins(2)).await
    };
    // Through the Service: nobody may be refused while edges come and go.
    let newcomers = crowd.arrivals(ARRIVALS, roll_out).await?;
    ensure!(newcomers >= NEWCOMERS, "only {newcomers} came within {:?}", began.elapsed());
    let took = began.elapsed();
    crowd.talks().await?;
    let summary = crowd.settle().await?;

    crowd.saw_only(&[])?;
    ensure!(summary.repeated == 0, "{summary:?}: resuming repeats nothing");
    moved_once_or_twice(&crowd.moves(), size)?;
    let (first, last, fullest) = spread(&crowd.moves())?;
    let fates = watch.fates();
    for pod in &old {
        let fate = &fates[&pod.name_any()];
        ensure!(fate.gone && fate.ended == Some((0, "Completed".to_owned())), "{}: {fate:?}", pod.name_any());
    }
    let new = node.edges().await?;
    ensure!(new.len() == 2, "{} edges", new.len());
    for pod in &new {
        let fate = &fates[&pod.name_any()];
        ensure!(fate.image.ends_with(":next") && fate.ended.is_none(), "{}: {fate:?}", pod.name_any());
    }
    let connections = crowd.connected().await?;
    let memory = node.memory().await?;
    eprintln!(
        "{summary:?}; bytes of memory: {memory:?}; the roll-out took {took:?}, {newcomers} newcomers, {} moves, from {:?} to {:?} after its beginning, {fullest} in the fullest \
         twelfth of a window; sockets: {connections:?}",
        crowd.moves().len(),
        first - began,
        last - began
    );
    crowd.leave().await
}

fn moved_once_or_twice(moves: &[Move], size: usize) -> Result<()> {
    let mut times = BTreeMap::<usize, u32>::new();
    for moved in moves {
        *times.entry(moved.client).or_default() += 1;
    }
    ensure!(times.len() == size, "{} of {size} clients moved", times.len());
    let most = times.values().max();
    ensure!(most <= Some(&2), "a client moved {most:?} times");
    Ok(())
}

/// Checks that clients came back spread over the window: the first and the last one's time, and how many came in the slice of it that saw most.
fn spread(moves: &[Move]) -> Result<(Instant, Instant, usize)> {
    let mut back: Vec<_> = moves.iter().map(|moved| moved.back).collect();
    back.sort();
    let (first, last) = (back[0], back[back.len() - 1]);
    // Told over three quarters of the window, each has the last quarter to go.
    ensure!(last - first >= WINDOW / 2, "all came back within {:?} of a window of {WINDOW:?}", last - first);
    let slice = WINDOW / SLICES;
    let within = |end: usize| end - back.partition_point(|&time| time + slice < back[end]) + 1;
    let fullest = (0..back.len()).map(within).max().unwrap_or_default();
    ensure!(fullest <= moves.len() / 4, "{fullest} of {} came back within {slice:?} of {WINDOW:?}", moves.len());
    let share = WINDOW.mul_f64(0.25);
    let strange = moves.iter().find(|moved| moved.within > share || moved.within < share / 2);
    ensure!(strange.is_none(), "{strange:?}, in a window of {WINDOW:?}");
    Ok((first, last, fullest))
}
