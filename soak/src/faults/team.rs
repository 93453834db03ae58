//! What a business's people do: another limit, another route, whether other businesses are accepted, a binding deleted by
//! hand, and its repair. And what happens to the operator meanwhile.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use wirepost_core::names;

use super::{calm, fault};
use crate::chance::Chance;
use crate::plan::{CHANGED_KIND, CHANGED_TYPE, Changed, PLANS};
use crate::record::{Class, What};
use crate::world::World;
use crate::world::control::repaired;

pub(super) async fn lane(world: Arc<World>, mut chance: Chance, until: Instant) -> Result<()> {
    let (mut allowed, mut accepts) = (true, true);
    while calm(&world, chance.seconds(5.0, 15.0), until).await {
        let deadly = world.control.has_operator() && chance.once_in(2);
        let (first, away) = (chance.seconds(0.0, 2.0), chance.seconds(0.2, 5.0));
        let operator = async {
            if !deadly {
                return Ok(());
            }
            // Amid what the lane does otherwise.
            sleep(first).await;
            fault(&world, Class::Team, format!("operator killed, for {away:.1?}"), world.control.kill_operator(away))
                .await
        };
        if chance.once_in(2) {
            if chance.once_in(2) {
                allowed = !allowed;
            }
            if chance.once_in(2) {
                accepts = !accepts;
            }
            let rate = 15 + chance.below(20) as u32;
            let (changed, killed) = tokio::join!(change(&world, Changed { rate, allowed, accepts }), operator);
            changed.and(killed)?;
        } else {
            let (changed, killed) = tokio::join!(unbind(&world, &mut chance), operator);
            changed.and(killed)?;
        }
    }
    if !allowed || !accepts {
        change(&world, Changed::NOT).await?;
    }
    Ok(())
}

async fn unbind(world: &World, chance: &mut Chance) -> Result<()> {
    let (business, away) = (chance.below(PLANS.len()), chance.seconds(0.3, 4.0));
    let of_stream = PLANS[business].is_durable() && chance.once_in(2);
    let name = PLANS[business].name;
    let (exchange, queue, key) = if of_stream {
        (names::push_exchange(name), names::stream(name), String::new())
    } else {
        let queue = names::route_queue(name, "orders");
        (names::receive_exchange(name), queue.clone(), names::queue_key(&queue))
    };
    world.journal.note(What::Unbound { business });
    let unbound = Box::pin(async {
        repaired(|| world.setup.unbind(&exchange, &queue, &key)).await?;
        sleep(away).await;
        world.control.repair(&world.setup, PLANS[business], &exchange, &queue).await
    });
    fault(world, Class::Team, format!("{queue} is bound no more, for {away:.1?}"), unbound).await?;
    world.journal.note(What::Rebound { business });
    Ok(())
}

async fn change(world: &World, changed: Changed) -> Result<()> {
    let Changed { rate, allowed, accepts } = changed;
    let business = PLANS.iter().position(|plan| plan.changes).context("a business that changes")?;
    let plan = PLANS[business];
    let (kind, client_type) = (CHANGED_KIND.to_owned(), CHANGED_TYPE.to_owned());
    world.journal.note(What::RouteChanging { business, kind: kind.clone(), client_type: client_type.clone(), allowed });
    let senders: Vec<usize> = (0..PLANS.len()).filter(|other| plan.accepts(&PLANS[*other])).collect();
    for from in senders.iter().copied() {
        world.journal.note(What::AcceptChanging { business, from, accepts });
    }
    let what = format!(
        "{}: {rate} messages a second, {kind} for {client_type}: {allowed}, accepts from others: {accepts}",
        plan.name
    );
    let changed = world.control.change(&world.setup, &world.fleet, plan, changed);
    fault(world, Class::Team, what, changed).await?;
    world.journal.note(What::RouteSettled { business, kind, client_type, allowed });
    for from in senders {
        world.journal.note(What::AcceptSettled { business, from, accepts });
    }
    Ok(())
}
