//! What is measured: each scenario with a fresh server.

mod connect;
mod push;
mod up;

use std::collections::BTreeMap;

use anyhow::Result;
use wirepost_testing::usage;

use crate::peer::{Kind, Peer, Programs, Reading};

/// A scenario; the order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    Connect,
    FanoutPaced,
    FanoutFull,
    Unicast,
    UnicastHttp,
    Up { window: usize },
}

/// A figure of a run; the order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    /// KiB of memory for each connection.
    Memory,
    /// Connections, deliveries or acknowledgements a second.
    Rate,
    /// Microseconds of CPU in the server for each of them.
    Cpu,
    /// The same in what stands behind it.
    CpuBehind,
    /// Milliseconds.
    P50,
    P99,
    /// Messages that were refused at first.
    Nacks,
}

pub(crate) type Figures = BTreeMap<Figure, f64>;

pub(crate) const ALL: [Scenario; 7] = [
    Scenario::Connect,
    Scenario::FanoutPaced,
    Scenario::FanoutFull,
    Scenario::Unicast,
    Scenario::UnicastHttp,
    Scenario::Up { window: 1 },
    Scenario::Up { window: 16 },
];

impl Scenario {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Connect => "connect".into(),
            Self::FanoutPaced => "fanout-paced".into(),
            Self::FanoutFull => "fanout".into(),
            Self::Unicast => "unicast".into(),
            Self::UnicastHttp => "unicast-http".into(),
            Self::Up { window } => format!("up-{window}"),
        }
    }

    /// Runs it once; `part` of its messages and connections.
    pub(crate) async fn run(self, kind: Kind, programs: &Programs, part: f64) -> Result<Figures> {
        let some = |count: usize| (count as f64 * part).ceil() as usize;
        let (clients, listening) = match self {
            Self::Connect => (some(15_000), false),
            Self::FanoutPaced | Self::FanoutFull => (some(1_000), true),
            Self::Unicast | Self::UnicastHttp => (some(5_000), false),
            Self::Up { .. } => (some(1_000), false),
        };
        let peer = kind.start(programs, clients + connect::WARM, listening).await?;
        match self {
            Self::Connect => connect::run(&peer, clients).await,
            Self::FanoutPaced => push::paced(&peer, clients, some(200), 20).await,
            Self::FanoutFull => push::fanout(&peer, clients, some(1_000)).await,
            Self::Unicast => push::unicast(&peer, clients, some(60_000), false).await,
            Self::UnicastHttp => push::unicast(&peer, clients, some(30_000), true).await,
            Self::Up { window: 1 } => up::run(&peer, clients, 1, some(40)).await,
            Self::Up { window } => up::run(&peer, clients, window, some(96)).await,
        }
    }
}

/// CPU for each of `count` things since `before`.
fn cpu(peer: &Peer, before: Reading, count: usize, figures: &mut Figures) -> Result<()> {
    let after = peer.reading()?;
    figures.insert(Figure::Cpu, usage::each(before.server, after.server, count));
    if let Some((before, after)) = before.behind.zip(after.behind) {
        figures.insert(Figure::CpuBehind, usage::each(before, after, count));
    }
    Ok(())
}
