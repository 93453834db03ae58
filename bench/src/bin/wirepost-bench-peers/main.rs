//! Measures wirepost beside Centrifugo, which keeps everything in its memory, and beside Centrifugo with its history in Redis: the same
//! clients, the same accounting, one adapter for each protocol. CPU and memory are the server's own.
//!
//! `make bench-peers`. Each server runs on the first core; this program, RabbitMQ and Redis have the others. Servers take turns within a
//! repetition, so that a slow moment of the machine meets all of them.

mod deliveries;
mod link;
mod peer;
mod protocol;
mod publisher;
mod scenario;
mod table;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;
use tokio::{task::LocalSet, time::sleep};

use crate::{
    peer::{Kind, Programs},
    scenario::{Figures, Scenario},
    table::Results,
};

/// For the kernel to let go of what the server before had open.
const BETWEEN: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Args {
    /// The program of Centrifugo.
    #[arg(long)]
    centrifugo: PathBuf,
    /// The program of Redis; without it, that column stays empty.
    #[arg(long)]
    redis: Option<PathBuf>,
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// The part of messages and connections that is run: less than 1 to try it.
    #[arg(long, default_value_t = 1.0)]
    part: f64,
    /// The document whose section is written.
    #[arg(long)]
    write: Option<PathBuf>,
    /// What stands above the table there.
    #[arg(long, default_value = "")]
    about: String,
    /// Scenarios; all without any.
    scenarios: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    // One TLS stack; an error says that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    LocalSet::new().run_until(run(Args::parse())).await
}

async fn run(args: Args) -> Result<()> {
    let all = scenario::ALL.map(Scenario::name);
    for name in &args.scenarios {
        ensure!(all.contains(name), "no scenario '{name}', there are: {}", all.join(", "));
    }
    let programs = Programs { centrifugo: args.centrifugo, redis: args.redis };
    let kinds = [Kind::Centrifugo, Kind::CentrifugoRedis, Kind::Wirepost];
    let mut results = Results::new();
    for repetition in 1..=args.repetitions {
        for scenario in scenario::ALL {
            if !args.scenarios.is_empty() && !args.scenarios.contains(&scenario.name()) {
                continue;
            }
            for kind in kinds {
                if kind == Kind::CentrifugoRedis && programs.redis.is_none() {
                    continue;
                }
                let figures = scenario.run(kind, &programs, args.part).await;
                match &figures {
                    Ok(figures) => println!("{repetition} {} {kind:?}: {}", scenario.name(), line(figures)),
                    Err(error) => println!("{repetition} {} {kind:?}: FAILED: {error:#}", scenario.name()),
                }
                results.entry((scenario, kind)).or_default().push(figures.ok());
                sleep(BETWEEN).await;
            }
        }
    }
    let table = table::table(&results);
    println!("\n{table}");
    let failed = results.values().flatten().filter(|run| run.is_none()).count();
    ensure!(failed == 0, "{failed} runs failed");
    if let Some(document) = &args.write {
        table::write(document, &format!("{}\n\n{table}", args.about))?;
    }
    Ok(())
}

fn line(figures: &Figures) -> String {
    figures.iter().map(|(figure, value)| format!("{figure:?} {value:.2}")).collect::<Vec<_>>().join(", ")
}
