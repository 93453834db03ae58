//! What the neighbours of a flood notice: the time of their messages and pushes, beside times without a flood of the same
//! run. One neighbour uses the flooded edge, another one an edge beside it at the same broker: what both notice is the
//! broker's.

use std::{process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use tokio::sync::oneshot;
use wirepost_testing::{
    edge::Edge,
    floods::{Flood, Neighbour, Prepared, Served},
    setup::Setup,
    usage,
};

/// Who floods at the same time.
const FLOODERS: usize = 8;
/// How long it goes on before anybody is measured, and how long the edge may rest afterwards.
const BEFORE: Duration = Duration::from_secs(1);
/// Times without and with a flood, in turn.
const TURNS: usize = 5;
/// How often a neighbour is served in each, and the time between two.
const ROUNDS: usize = 160;
const PAUSE: Duration = Duration::from_millis(5);

/// One neighbour, and what it got without and with a flood.
struct Side {
    edge: Arc<Edge>,
    neighbour: Neighbour,
    idle: Vec<Served>,
    flooded: Vec<Served>,
}

impl Side {
    async fn new(edge: Edge, name: &'static str) -> Result<Self> {
        let neighbour = Neighbour::named(name, &edge, "up").await?;
        Ok(Self { edge: Arc::new(edge), neighbour, idle: Vec::new(), flooded: Vec::new() })
    }

    async fn serve(&mut self, flooded: bool) -> Result<()> {
        let served = self.neighbour.served(&self.edge, "down").await?;
        if flooded { &mut self.flooded } else { &mut self.idle }.push(served);
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    fn report(&mut self, what: &str) {
        let times = |served: &[Served], time: fn(&Served) -> Duration| {
            let mut times: Vec<_> = served.iter().map(time).collect();
            times.sort();
            (usage::percentile(&times, 0.5), usage::percentile(&times, 0.99))
        };
        for (kind, time) in [("ack", (|served| served.ack) as fn(&Served) -> Duration), ("push", |served| served.push)]
        {
            let ((idle, idle99), (flooded, flooded99)) = (times(&self.idle, time), times(&self.flooded, time));
            let ratio = |flooded: Duration, idle: Duration| flooded.as_secs_f64() / idle.as_secs_f64();
            println!(
                "{what}: {kind} p50 {flooded:.1?} ({:.1} x {idle:.1?}), p99 {flooded99:.1?} ({:.1} x {idle99:.1?})",
                ratio(flooded, idle),
                ratio(flooded99, idle99),
            );
        }
        (self.idle, self.flooded) = (Vec::new(), Vec::new());
    }
}

/// Floods from a thread of its own, behind everything else on its core: so it takes what the broker and the neighbours
/// leave. Dropping the sender ends it.
fn flood(edge: &Arc<Edge>, prepared: &Prepared) -> oneshot::Sender<()> {
    let (stop, mut stopped) = oneshot::channel();
    let (edge, prepared) = (Arc::clone(edge), prepared.clone());
    std::thread::spawn(move || -> Result<()> {
        let thread = std::fs::read_link("/proc/thread-self")?;
        let thread = thread.file_name().context("no thread")?;
        let last = Command::new("renice").args(["-n", "19", "-p"]).arg(thread).output()?;
        ensure!(last.status.success(), "{last:?}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                _ = &mut stopped => {}
                _ = join_all((0..FLOODERS).map(|number| prepared.run(&edge, number))) => {}
            }
        });
        Ok(())
    });
    stop
}

/// `only`: the floods whose names contain it.
pub(crate) async fn run(setup: &Setup, only: &str) -> Result<()> {
    // The flooders, the broker and the other edge need the other core.
    let mut flooded = Side::new(setup.edge("floods").quiet().core("0").start().await?, "neighbour").await?;
    let mut beside = Side::new(setup.edge("beside").quiet().core("1").start().await?, "other").await?;
    for _ in 0..ROUNDS {
        flooded.serve(false).await?;
        beside.serve(false).await?;
    }
    (flooded.idle, beside.idle) = (Vec::new(), Vec::new());
    for kind in Flood::ALL {
        let name = format!("{kind:?}").to_lowercase();
        if !name.contains(only) {
            continue;
        }
        let prepared = kind.prepare(&flooded.edge).await?;
        let pid = flooded.edge.pid;
        usage::forget_peak(pid)?;
        let before = usage::resident(pid)?.now;
        for _ in 0..TURNS {
            for on in [false, true] {
                let flood = on.then(|| flood(&flooded.edge, &prepared));
                tokio::time::sleep(BEFORE).await;
                for _ in 0..ROUNDS {
                    flooded.serve(on).await?;
                    beside.serve(on).await?;
                }
                drop(flood);
            }
        }
        let grown = usage::resident(pid)?.most.saturating_sub(before) >> 20;
        flooded.report(&format!("flood of {name} ({grown} MiB more)"));
        beside.report(&format!("beside the flood of {name}, at another edge"));
    }
    Ok(())
}
