//! Edges that are killed, drained and frozen, and the network between them and their clients.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{Trouble, calm, fault};
use crate::chance::Chance;
use crate::record::Class;
use crate::world::control::repaired;
use crate::world::{Place, World};

/// From SIGTERM to the end of a debug build on a busy machine; the drain's own deadline is 10 s.
const DRAINED: Duration = Duration::from_secs(45);

pub(super) async fn lane(world: Arc<World>, mut chance: Chance, until: Instant) -> Result<()> {
    let mut draining = tokio::task::JoinSet::new();
    while calm(&world, chance.seconds(2.0, 7.0), until).await {
        let slot = chance.below(world.fleet.size());
        let Some(place) = world.fleet.place(slot) else { continue };
        let name = place.edge.name.clone();
        match chance.below(8) {
            0 | 1 => {
                let away = chance.seconds(0.2, 4.0);
                fault(
                    &world,
                    Class::Edges,
                    format!("{name} killed, replaced after {away:.1?}"),
                    killed(&world, slot, away),
                )
                .await?;
            }
            2 | 3 => {
                let old = world.fleet.fill(&world.control, slot).await?;
                let world = Arc::clone(&world);
                // The next fault may meet the drain.
                draining.spawn(async move {
                    fault(&world, Class::Edges, format!("{name} drained, replaced before"), drained(&world, old)).await;
                });
            }
            4 => {
                let pause = chance.seconds(0.5, 7.0);
                fault(&world, Class::Edges, format!("{name} frozen for {pause:.1?}"), async {
                    place.edge.pause()?;
                    sleep(pause).await;
                    place.edge.resume()
                })
                .await?;
            }
            _ => {
                let (trouble, pause) = (Trouble::ALL[chance.below(Trouble::ALL.len())], chance.seconds(0.5, 8.0));
                let what = format!("clients of {name}: {trouble:?}, {pause:.1?}");
                fault(&world, Class::Edges, what, trouble.happens(std::slice::from_ref(&*place.front), pause)).await;
            }
        }
    }
    while let Some(drained) = draining.join_next().await {
        drained?;
    }
    Ok(())
}

async fn killed(world: &World, slot: usize, away: Duration) -> Result<()> {
    if let Some(place) = world.fleet.take(slot) {
        place.edge.kill9()?;
        // Sockets are closed by the kernel, those behind the proxy as well.
        place.front.cut();
        repaired(|| world.control.left(&place.edge.name)).await?;
    }
    sleep(away).await;
    world.fleet.fill(&world.control, slot).await.map(drop)
}

async fn drained(world: &World, old: Option<Place>) {
    let Some(place) = old else { return };
    let ended = async {
        place.edge.sigterm()?;
        place.edge.exited(DRAINED).await
    };
    match ended.await {
        Ok(status) if status.success() => {}
        Ok(status) => world.journal.broken(format!("{} drained and ended with {status}", place.edge.name)),
        Err(error) => world.journal.broken(format!("{} does not end: {error:#}", place.edge.name)),
    }
    if let Err(error) = repaired(|| world.control.left(&place.edge.name)).await {
        world.journal.broken(format!("{} can't be taken off its Service: {error:#}", place.edge.name));
    }
}
