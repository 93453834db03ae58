//! A broker that is restarted, killed, frozen and out of memory or disk, and the lines of the edges to it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};
use wirepost_testing::broker::PrivateBroker;

use super::{Trouble, calm, fault};
use crate::chance::Chance;
use crate::record::Class;
use crate::world::control::repaired;
use crate::world::{Broker, World};

/// What happens to the broker itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    Restarted,
    Killed,
    Frozen,
    OutOfMemory,
    OutOfDisk,
    /// From the other nodes, not from clients.
    Parted,
    /// Each node after the other restarts, this one first, as in an upgrade.
    Rotated,
    /// What this node leads is led by others.
    Led,
}

impl Outage {
    /// Of any broker.
    const ALL: [Self; 5] = [Self::Restarted, Self::Killed, Self::Frozen, Self::OutOfMemory, Self::OutOfDisk];
    /// Of one of several nodes, beside those.
    const OF_NODES: [Self; 3] = [Self::Parted, Self::Rotated, Self::Led];

    async fn happens(self, broker: &PrivateBroker, others: &[&PrivateBroker], pause: Duration) -> Result<()> {
        match self {
            Self::Rotated => {
                for node in [broker].iter().chain(others) {
                    node.stop().await?;
                    repaired(|| node.start_again()).await?;
                }
                return Ok(());
            }
            Self::Led => {
                // Of quorum queues and streams alike.
                let away = "Other = hd(nodes()), \
                    [rabbit_quorum_queue:transfer_leadership(Q, Other) || Q <- rabbit_amqqueue:list_local_quorum_queues()] ++ \
                    [begin {resource, V, queue, Name} = amqqueue:get_name(Q), \
                        rabbit_stream_queue:restart_stream(V, Name, #{preferred_leader_node => Other}) end \
                     || Q <- rabbit_amqqueue:list_local_stream_queues()].";
                broker.ctl(&["eval", away]).await?;
                return Ok(());
            }
            Self::Parted => broker.part().await?,
            Self::Restarted => broker.stop().await?,
            Self::Killed => broker.kill9().await?,
            Self::Frozen => broker.pause().await?,
            Self::OutOfMemory => drop(broker.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await?),
            Self::OutOfDisk => drop(broker.ctl(&["set_disk_free_limit", "100000GB"]).await?),
        }
        sleep(pause).await;
        match self {
            Self::Rotated | Self::Led => Ok(()),
            Self::Parted => repaired(|| broker.rejoin()).await,
            Self::Restarted | Self::Killed => repaired(|| broker.start_again()).await,
            Self::Frozen => broker.resume().await,
            Self::OutOfMemory => broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await.map(drop),
            Self::OutOfDisk => broker.ctl(&["set_disk_free_limit", "50MB"]).await.map(drop),
        }
    }
}

pub(super) async fn lane(world: Arc<World>, mut chance: Chance, until: Instant) -> Result<()> {
    while calm(&world, chance.seconds(4.0, 12.0), until).await {
        let nodes = world.broker.as_ref().map(Broker::nodes).unwrap_or_default();
        if let Some(broker) = chance.pick(&nodes)
            && chance.once_in(2)
        {
            let others: Vec<_> = nodes.iter().copied().filter(|node| node.name() != broker.name()).collect();
            let of_nodes: &[Outage] = if others.is_empty() { &[] } else { &Outage::OF_NODES };
            let number = chance.below(Outage::ALL.len() + of_nodes.len());
            let outage = Outage::ALL.get(number).or_else(|| of_nodes.get(number - Outage::ALL.len()));
            let (outage, pause) = (outage.copied().unwrap_or(Outage::Restarted), chance.seconds(0.5, 8.0));
            fault(
                &world,
                Class::Broker,
                format!("{} {outage:?}, {pause:.1?}", broker.name()),
                outage.happens(broker, &others, pause),
            )
            .await?;
            continue;
        }
        let slot = chance.below(world.fleet.size());
        let (amqp, stream) = world.fleet.lines(slot);
        let (name, line) = if chance.once_in(2) { ("AMQP", amqp) } else { ("stream", stream) };
        let (trouble, pause) = (Trouble::ALL[chance.below(Trouble::ALL.len())], chance.seconds(0.5, 12.0));
        let what = format!("{name} line of edge {slot}: {trouble:?}, {pause:.1?}");
        fault(&world, Class::Broker, what, trouble.happens(&line.proxies, pause)).await;
    }
    Ok(())
}
