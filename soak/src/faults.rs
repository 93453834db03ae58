//! What happens meanwhile: three lanes, each of which does one thing after another, drawn from the seed; so faults of different lanes meet in
//! every combination, and those of one lane are over before the next.

mod broker;
mod edges;
mod team;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use wirepost_testing::proxy::{Network, Proxy};

use crate::chance::Chance;
use crate::record::{Class, What};
use crate::world::{Stage, World};

/// Begins all lanes. They end, with everything healed, soon after the time.
pub fn begin(world: &Arc<World>, seed: u64, until: Instant) -> Vec<JoinHandle<Result<()>>> {
    vec![
        tokio::spawn(edges::lane(Arc::clone(world), Chance::new(seed, "edges"), until)),
        tokio::spawn(broker::lane(Arc::clone(world), Chance::new(seed, "broker"), until)),
        tokio::spawn(team::lane(Arc::clone(world), Chance::new(seed, "team"), until)),
    ]
}

/// Between two faults of a lane. Whether there is time for another.
async fn calm(world: &World, pause: Duration, until: Instant) -> bool {
    sleep_until((Instant::now() + pause).min(until)).await;
    Instant::now() < until && world.stage() == Stage::Talking
}

/// Writes down a fault from its beginning to its end.
async fn fault<T>(world: &World, class: Class, what: String, happens: impl Future<Output = T>) -> T {
    world.journal.note(What::Fault { class, what: what.clone() });
    let result = happens.await;
    world.journal.note(What::Healed { class, what });
    result
}

/// What a network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// All connections are reset.
    Cut,
    /// They end amid what the server sends next.
    Torn,
    /// They carry nothing any more, and nobody is told.
    HalfOpen,
    /// Nothing passes for a while.
    Stalled,
    /// Nothing of what the server sends.
    DownStalled,
    /// Nothing of what the client sends.
    UpStalled,
}

impl Trouble {
    const ALL: [Self; 6] = [Self::Cut, Self::Torn, Self::HalfOpen, Self::Stalled, Self::DownStalled, Self::UpStalled];

    /// To several proxies that are one line.
    async fn happens(self, line: &[Proxy], pause: Duration) {
        let all = |what: &dyn Fn(&Proxy)| line.iter().for_each(what);
        let network = match self {
            Self::Cut => return all(&Proxy::cut),
            Self::Torn => return all(&Proxy::tear),
            Self::HalfOpen => return all(&Proxy::forget),
            Self::Stalled => Network::Stalled,
            Self::DownStalled => Network::DownStalled,
            Self::UpStalled => Network::UpStalled,
        };
        all(&|proxy| proxy.set(network));
        sleep(pause).await;
        all(&|proxy| proxy.set(Network::Fine));
    }
}
